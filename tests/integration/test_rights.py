"""Files that may not be read and directories that may not be written: one sentence, an exit code, and nothing changed."""

import json
import shutil
from pathlib import Path

import pytest

from tests.folders import contents
from tests.models import save_tiny_policy
from tests.report_run import full_rows, write_run
from tests.rights import stepladder_without_privileges
from tests.runs import write_problems

# name: (command, what is closed, its mode, words of the sentence)
CASES: dict[str, tuple[list[str], str, int, str]] = {
    "an unreadable configuration": (["evolve", "c.toml", "--run-dir", "new"], "c.toml", 0, "c.toml"),
    "unreadable problems": (["evolve", "c.toml", "--run-dir", "new", "--dry-run"], "problems.jsonl", 0, "problems.jsonl"),
    "a run in an unwritable place": (["evolve", "c.toml", "--run-dir", "closed/new"], "closed", 0o555, "closed"),
    "the report of a read-only run": (["report", "run"], "run", 0o555, "run"),
    "the report of a run that may not be entered": (["report", "run"], "run", 0, "run"),
    "an unreadable description of a run": (["report", "run"], "run/run.json", 0, "run.json"),
    "an export of unreadable trees": (["export", "run", "--format", "tree", "--to", "out"], "run/rounds/001/trees", 0, "trees"),
    "an import into an unwritable place": (["import", "dataset", "--run-dir", "closed/new"], "closed", 0o555, "closed"),
    "unreadable questions": (
        ["solve", "--input", "problems.jsonl", "--output", "out", "--policy", "model"],
        "problems.jsonl",
        0,
        "problems",
    ),
    "answers in an unwritable place": (
        ["solve", "--input", "problems.jsonl", "--output", "closed/out", "--policy", "model"],
        "closed",
        0o555,
        "closed",
    ),
    "verdicts in an unwritable place": (["grade", "answers.jsonl", "--output", "closed/out"], "closed", 0o555, "closed"),
    "unreadable answers": (["grade", "answers.jsonl"], "answers.jsonl", 0, "answers.jsonl"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one of everything that the commands read, and an empty directory to close."""
    folder = tmp_path_factory.mktemp("rights")
    write_problems(folder / "problems.jsonl", prefix="train", count=4, seed=1)
    write_problems(folder / "test.jsonl", prefix="test", count=4, seed=2)
    save_tiny_policy(folder / "model")
    write_run(folder / "run", full_rows())
    (folder / "closed").mkdir()
    (folder / "answers.jsonl").write_text(json.dumps({"reference": "1", "answer": "1"}) + "\n")
    (folder / "c.toml").write_text(
        '[problems]\ntrain = "problems.jsonl"\ntest = "test.jsonl"\nrule = "exact"\nheld_out_size = 1\n[policy]\nmodel = "model"\n'
    )
    done = stepladder_without_privileges("export", folder / "run", "--format", "tree", "--to", folder / "dataset")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CASES)
def test_closed_files_and_directories_are_one_sentence(place: Path, name: str) -> None:
    """The sentence names the place, and nothing is written."""
    command, closed, mode, words = CASES[name]
    before, target = contents(place), place / closed
    rights = target.stat().st_mode
    try:
        target.chmod(mode)
        done = stepladder_without_privileges(
            *(place / word if (place / word.partition("/")[0]).exists() or word in ("new", "out") else word for word in command)
        )
    finally:
        target.chmod(rights)
    # A warning of the model's tokenizer may come first.
    errors = [line for line in done.stderr.strip().splitlines() if "tokenizer.json is used as it was saved" not in line]
    assert done.returncode == 2 and len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ") and words in errors[0] and "bug" not in errors[0], errors[0]
    assert contents(place) == before
    for made in ("new", "out"):
        assert not (place / made).exists()


def test_a_read_only_run_is_still_read(place: Path, tmp_path: Path) -> None:
    """Its report can be written elsewhere."""
    run = shutil.copytree(place / "run", tmp_path / "run")
    folders = [run, *(path for path in run.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        done = stepladder_without_privileges("report", run, "--to", tmp_path / "page.html")
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").exists()
