"""The documentation says what the code does: generated pages are current, and every name it mentions exists."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("generator", sorted(path.name for path in (ROOT / "docs").glob("generate_*.py")))
def test_generated_pages_are_current(generator: str) -> None:
    """docs/cli.md is what --help prints today, the other generated pages what the code says of itself."""
    done = subprocess.run([sys.executable, ROOT / "docs" / generator, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_documentation_exist(page: Path) -> None:
    """Every `stepladder.x.y` that a page names can be imported."""
    for name in set(re.findall(r"`(stepladder(?:\.\w+)+)`", page.read_text(encoding="utf-8"))):
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), f"{page.name} names {name}, which does not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_documentation_exist(page: Path) -> None:
    """Every file of the repository that a page names in code or links to is there."""
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:docs|configs|benchmarks|tests|stepladder)/[\w./-]+)`", text)) | set(
        re.findall(r"\]\(((?!https?:)[\w./-]+)\)", text)
    )
    for name in named:
        assert (ROOT / name).exists() or (page.parent / name).exists(), f"{page.name} names {name}, which does not exist"


@pytest.mark.parametrize("path", sorted((ROOT / "stepladder").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_named_in_docstrings_exist(path: Path) -> None:
    """A docstring that names a module by its file means one beside it, or gives its path; files of other projects stand in a Source."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (said := ast.get_docstring(node)):
            for name in re.findall(r"``(\w+\.py)``", said.partition("Source:")[0]):
                assert (path.parent / name).exists(), f"{path.relative_to(ROOT)} names {name}, which does not exist"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path: Path) -> None:
    """Every file in configs/ passes the checks that a run would make, once it is told which model to use."""
    from stepladder.loops.assembly.checks import check_searches
    from stepladder.loops.config.load import load_config

    assert tomllib.loads(path.read_text(encoding="utf-8"))
    check_searches(load_config(path, ["policy.model=some-model"]))
