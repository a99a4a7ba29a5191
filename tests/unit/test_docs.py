"""The documentation says what the code does: generated pages are current, and every name it mentions exists."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import stepladder

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


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path: Path) -> None:
    """Every file in configs/ passes the checks that a run would make, once it is told which model to use."""
    from stepladder.loops.assembly.checks import check_searches
    from stepladder.loops.config.load import load_config

    assert tomllib.loads(path.read_text(encoding="utf-8"))
    check_searches(load_config(path, ["policy.model=some-model"]))


def test_readme_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The Python of the README runs as it stands and prints the answer that its comment says."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == code.strip().rpartition("# ")[2]


def test_blocks_of_the_python_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks of docs/python.md run one after the other, with a tiny model and a written run; rounds are not run again here."""
    from stepladder.commands import evolve
    from stepladder.policy.prompts import StepFormat
    from tests.models import save_tiny_policy
    from tests.report_run import full_rows, write_run

    monkeypatch.chdir(tmp_path)
    StepFormat(answer_pattern=r"(\d)").save(save_tiny_policy(tmp_path / "my-model"))
    run = write_run(tmp_path / "runs" / "embedded", full_rows())
    called = []
    monkeypatch.setattr(evolve, "evolve", lambda *arguments, **changes: (called.append((arguments, changes)), run)[1])
    # The package keeps what was imported once; it must neither hide the stand-in nor keep it.
    monkeypatch.setitem(vars(stepladder), "evolve", evolve.evolve)
    names = {"__name__": "__main__"}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(code, "python.md", "exec"), names)
    assert called == [(("my.toml", "runs/mine"), {"overrides": ["run.rounds=2"]})]
    assert "<details" in names["html"]
    assert capsys.readouterr().out.count("\n") > 10


def test_the_block_of_the_serving_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The client's code of docs/serving.md runs against a server."""
    from tests.served import serving

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    with serving() as served:
        names = {}
        exec(compile(code.replace("http://127.0.0.1:8000", served.url), "serving.md", "exec"), names)
        names["client"].close()
    shown = capsys.readouterr().out
    assert names["choice"].message.content in shown
    assert str(names["reply"].usage.completion_tokens) in shown
