"""``stepladder eval`` as a user calls it, with a tiny saved model and worker processes."""

import json
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from tests.models import save_tiny_policy
from tests.runs import files_below, started, write_problems


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    """Return a call that compares three methods on eight problems."""
    settings = ["problems.rule=exact", "format.answer_pattern=([a-d])", "search.max_depth=4", "search.max_step_tokens=3"]
    settings += ["run.shard_size=4", "run.workers=1", "policy.device=cpu"]
    chosen = [word for setting in settings for word in ("--set", setting)]
    methods = ["--method", "mcts", "--method", "beam,wave=2", "--method", "majority"]
    return ["eval", str(folder / "problems.jsonl"), "--policy", str(folder / "model"), "--out", str(out), *methods, *chosen, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    write_problems(folder / "problems.jsonl", prefix="test", count=8, seed=1)
    save_tiny_policy(folder / "model")
    return folder


def outcomes(out: Path) -> list[dict]:
    return json.loads((out / "results.json").read_text())["outcomes"]


@pytest.mark.slow
def test_a_call_that_was_stopped_ends_as_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C ends with code 130 and a sentence; the same command continues, and two processes come to the same outcomes."""
    more = ("--tokens", "12,24,48", "--seeds", "2")
    with started(*arguments(folder, tmp_path / "stopped", *more)) as process:
        while process.poll() is None and not any(path.suffix == ".json" for path in files_below(tmp_path / "stopped" / "cells")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "stopped; everything finished is in" in said
    assert not (tmp_path / "stopped" / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("stopped/cells/*/*/*/shard-*.json")}
    assert kept
    for name in ("stopped", "whole"):
        done = CliRunner().invoke(app, arguments(folder, tmp_path / name, *more))
        assert done.exit_code == 0, done.output
        assert "page: " in done.output and "beam,wave=2" in done.output
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert outcomes(tmp_path / "stopped") == outcomes(tmp_path / "whole")
    assert all((tmp_path / "whole" / name).exists() for name in ("comparison.html", "results.csv", "results.md", "accuracy-by-tokens.svg"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--method", "mtcs"], "did you mean 'mcts'"),
        (["--tokens", "many"], "--tokens: must be whole numbers above 0"),
        (["--run", "runs/demo"], "--run and --policy: both name a policy"),
        (["--round", "1"], "--round and --policy: a round has a policy of its own"),
        (["--set", "policy.device=gpu"], "setting 'policy.device': string should match pattern"),
        (["--policy", "/nowhere/model"], "'/nowhere/model' does not exist"),
        (["--set", "search.depth=3"], "unknown setting 'search.depth'"),
    ],
)
def test_bad_settings_are_one_sentence(folder: Path, tmp_path: Path, more: list[str], words: str) -> None:
    """Exit code 2, one line that says what is wrong, and nothing is written."""
    done = CliRunner().invoke(app, arguments(folder, tmp_path / "out", *more))
    assert done.exit_code == 2, done.output
    assert words in done.output
    assert not (tmp_path / "out").exists()


def test_missing_runs_and_problems_say_what_to_do(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a run the message says what is missing and what to name instead; a bare policy needs problems."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["eval", "--run", "runs/demo", "--out", "out"])
    assert (done.exit_code, "runs/demo: must be a run: there is no such directory" in done.output) == (2, True), done.output
    done = CliRunner().invoke(app, ["eval", "--policy", str(folder / "model"), "--out", "out"])
    assert (done.exit_code, "name a file with questions and answers" in done.output) == (2, True), done.output
