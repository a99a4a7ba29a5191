"""The shape of the package: imports point down, and reading a configuration loads no model library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "stepladder"

BASE = {
    "errors",
    "types",
    "boxes",
    "files",
    "hub",
    "tree_paths",
    "terminal",
    "outputs",
    "locks",
    "digests",
    "settings",
    "hold_out",
    "plugs",
    "toml_text",
    "remembered",
}
MODELS = BASE | {"interfaces", "lm"}
DATA = {"data.store", "data.grading", "data.step_checks", "data.datasets", "data.labels", "data.metrics", "data.exports"}
LOOPS = {"loops.config", "loops.runs", "loops.assembly", "loops.stages"}
ALLOWED = {
    "__init__": {"types", "interfaces", "mcts", "loops.config", "loops.runs", "commands", "solver"},
    "__main__": {"cli"},
    "errors": set(),
    "settings": {"errors"},
    "plugs": {"errors"},
    "toml_text": set(),
    "remembered": set(),
    "hold_out": {"types"},
    "types": set(),
    "boxes": set(),
    "files": {"errors"},
    "digests": set(),
    "locks": {"errors"},
    "outputs": {"errors"},
    "tree_paths": {"types"},
    "hub": {"errors"},
    "terminal": set(),
    "interfaces": BASE,
    "testing": BASE | {"interfaces"},
    "lm": BASE | {"interfaces"},
    "mcts": BASE | {"interfaces"},
    "policy": MODELS,
    "prm": MODELS,
    "data": set(),
    "data.store": BASE,
    "data.grading": BASE | {"interfaces"},
    "data.step_checks": BASE | {"interfaces"},
    "data.datasets": BASE | {"data.grading"},
    "data.metrics": BASE,
    "data.labels": BASE | {"interfaces", "data.datasets"},
    "data.exports": BASE | {"data.datasets", "data.labels", "data.store"},
    "embedded": MODELS,
    "recipes": BASE,
    "loops": set(),
    "loops.config": BASE
    | {"data.labels", "lm.settings", "policy.gradient_settings", "policy.preference_settings", "policy.backends.server_settings", "mcts"},
    "loops.runs": MODELS | {"data.metrics", "data.store", "loops.config"},
    "loops.assembly": MODELS | DATA | {"mcts", "policy", "prm", "loops.config", "loops.runs"},
    "loops.stages": MODELS | DATA | {"mcts", "policy", "prm", "loops.config", "loops.runs", "loops.assembly"},
    "commands": MODELS | DATA | LOOPS | {"mcts", "policy", "prm", "recipes"},
    "solver": MODELS | LOOPS | {"mcts", "commands", "report"},
    "report": BASE | {"data.store", "data.metrics", "loops.runs", "loops.config"},
    "serve": MODELS | {"mcts", "policy", "loops.config", "loops.assembly"},
    "cli": BASE | LOOPS | {"commands", "report", "embedded", "recipes", "serve"},
}
"""What each part may import, besides itself and the package's version; ``data`` and ``loops`` are cut into rooms of their own."""
ROOMS = ("data", "loops")


def imported_modules(path: Path) -> set[str]:
    """Return the stepladder modules that a file imports anywhere: in functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: imports must be absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "stepladder"}


def part_of(path: Path) -> str:
    """Return the part of the package that a file belongs to: its top-level name, or its room."""
    names = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(names[:2]) if names[0] in ROOMS and names[1] != "__init__" else names[0]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    """A file imports only its own part and the parts below it."""
    part = part_of(path)
    for name in imported_modules(path):
        target = name.removeprefix("stepladder.")
        allowed = ALLOWED[part] | {part, "__version__"}
        assert any(target == other or target.startswith(f"{other}.") for other in allowed), f"{path}: {part} must not import {name}"


def test_the_documentation_names_every_part() -> None:
    """Its table says of each top-level part what it holds."""
    rows = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    named = {name for row in rows if row.startswith("| `") for name in row.split("|")[1].replace("`", "").replace(" ", "").split(",")}
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert named == parts - {"__init__", "__main__"}


def test_import_check_sees_function_level_imports(tmp_path: Path) -> None:
    """The walk finds an import hidden in a function, so the test above cannot be passed by hiding."""
    (tmp_path / "hidden.py").write_text("def f():\n    from stepladder.loops import run\n")
    assert imported_modules(tmp_path / "hidden.py") == {"stepladder.loops.run"}


def test_light_modules_load_no_model_library() -> None:
    """The command line, the configuration and the whole search import no large library, and read no source of their own classes."""
    modules = [
        "stepladder.cli.app",
        "stepladder.loops.config.load",
        "stepladder.loops.runs.directory",
        "stepladder.testing",
        "stepladder.embedded",
        # Refusals, and the checks that come before them, wait for no model library.
        "stepladder.commands.doctor",
        "stepladder.commands.evolve",
        "stepladder.commands.solve",
        "stepladder.commands.compare",
        "stepladder.serve.server",
        "stepladder.solver",
    ]
    searching = [path.relative_to(PACKAGE.parent).with_suffix("") for path in (PACKAGE / "mcts").rglob("*.py") if path.stem != "__init__"]
    modules += [".".join(path.parts) for path in searching]
    heavy = ("torch", "transformers", "vllm", "datasets", "accelerate", "huggingface_hub", "matplotlib", "networkx", "pandas", "PIL", "ray")
    heavy += ("scipy.optimize", "sympy")
    code = f"import {', '.join(modules)}, sys, linecache; print([m for m in {heavy} if m in sys.modules])\n"
    code += "print([file for file in linecache.cache if 'stepladder' in file])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


def test_a_search_loads_no_training_library() -> None:
    """What ``solve`` imports to search with a policy and a PRM leaves out the libraries that only training needs."""
    modules = ("stepladder.commands.solve", "stepladder.policy.backends.transformers", "stepladder.loops.assembly.prms")
    heavy = ("datasets", "pandas", "peft", "sklearn", "matplotlib", "transformers.trainer", "vllm")
    code = f"import {', '.join(modules)}, stepladder.prm.checkpoints, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_pinned_package_has_one_version() -> None:
    """Pip reads the constraints of ``make test-vllm`` on top of the others: a package in both can have no version that fits."""
    root = PACKAGE.parent
    pinned = [
        line.split("==")[0].lower().replace("_", "-")
        for file in ("constraints.txt", "constraints-vllm.txt")
        for line in (root / file).read_text().splitlines()
        if "==" in line
    ]
    assert sorted(set(pinned)) == sorted(pinned)
