"""The shape of the package: imports point down, and reading a configuration loads no model library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "stepladder"

BASE = {"errors", "types", "files"}
MODELS = BASE | {"interfaces", "lm"}
ALLOWED = {
    "__init__": set(),
    "errors": set(),
    "types": set(),
    "files": {"errors"},
    "interfaces": BASE,
    "testing": BASE | {"interfaces"},
    "lm": BASE | {"interfaces"},
    "mcts": BASE | {"interfaces"},
    "policy": MODELS,
    "prm": MODELS,
    "data": BASE | {"interfaces", "mcts.tree"},
    "embedded": MODELS,
    "loops": MODELS | {"mcts", "policy", "prm", "data"},
    "commands": MODELS | {"mcts", "policy", "prm", "data", "loops"},
    "report": BASE | {"data", "loops"},
    "cli": BASE | {"loops", "commands", "report", "embedded"},
    "__main__": {"cli"},
}
"""What each part may import, besides itself and the package's version."""


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
    """Return the top-level part of the package that a file belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    """A file imports only its own part and the parts below it."""
    part = part_of(path)
    for name in imported_modules(path):
        target = name.removeprefix("stepladder.")
        allowed = ALLOWED[part] | {part, "__version__"}
        assert any(target == other or target.startswith(f"{other}.") for other in allowed), f"{path}: {part} must not import {name}"


def test_import_check_sees_function_level_imports(tmp_path: Path) -> None:
    """The walk finds an import hidden in a function, so the test above cannot be passed by hiding."""
    (tmp_path / "hidden.py").write_text("def f():\n    from stepladder.loops import run\n")
    assert imported_modules(tmp_path / "hidden.py") == {"stepladder.loops.run"}


def test_light_modules_load_no_model_library() -> None:
    """The command line, the configuration and the whole search import neither torch nor transformers, nor vllm nor datasets."""
    modules = [
        "stepladder.cli.app",
        "stepladder.loops.config.config",
        "stepladder.loops.runs.directory",
        "stepladder.testing",
        "stepladder.embedded",
    ]
    modules += [f"stepladder.mcts.{path.stem}" for path in (PACKAGE / "mcts").glob("*.py") if path.stem != "__init__"]
    code = f"import {', '.join(modules)}, sys; print([m for m in ('torch', 'transformers', 'vllm', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
