"""Runs whose requests fail: counted and shown, and the end of the run where every one did."""

import json
from pathlib import Path

import pytest

from stepladder.commands import evolve as evolve_command
from stepladder.errors import ConfigError
from tests.runs import called, stepladder, write_tiny_config


def _lengthen(path: Path, *, every: int) -> None:
    """Make every so many-th question longer than the model's context."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[::every]:
        row["question"] = "too long " * 400
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write the configuration of a run of one round."""
    return write_tiny_config(tmp_path, rounds=1, workers=1, num_train=8)


def test_failed_samples_are_counted_in_figures_and_events_and_shown(config: Path, tmp_path: Path) -> None:
    """Half of the training questions do not fit the context: the run goes on, and says so."""
    _lengthen(tmp_path / "train.jsonl", every=2)
    done = called("evolve", config, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    failed = row["failed_samples"]["trees"]
    assert failed > 0 and row["first_failure"].startswith("prefix must")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    [searched] = [event for event in events if event.get("stage") == "search" and "seconds" in event]
    assert searched["failed_samples"] == failed and searched["first_failure"] == row["first_failure"]
    assert f"round 1: search: {failed} samples failed, the first with: prefix must" in done.stderr
    assert "problems whose prompts do not fit, 4 or more, get no solution" in done.stderr


def test_questions_of_which_none_fits_are_refused(config: Path, tmp_path: Path) -> None:
    """Before anything is written: the longest prompt, the context, and what helps."""
    _lengthen(tmp_path / "train.jsonl", every=1)
    done = called("evolve", config, "--run-dir", tmp_path / "run")
    assert done.returncode == 2
    assert "error: train: a prompt must leave room for a solution in the" in done.stderr
    assert not (tmp_path / "run").exists()


def test_refusals_after_the_lock_leave_nothing(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No template, and what is noticed after run.json is written: no directory, nor those above it; what was there before stays."""
    runs, there = tmp_path / "new" / "runs", tmp_path / "there"
    (there / "start").mkdir(parents=True)

    def refuse(message: str, *arguments: object) -> None:
        for place in (runs / "run", there):
            done = called("evolve", *arguments, "--run-dir", place)
            assert done.returncode == 2 and message in done.stderr, done.stderr
            assert not (tmp_path / "new").exists() and [path.name for path in there.rglob("*")] == ["start"]

    refuse("chat template", config, "--set", "format.chat=true")
    with monkeypatch.context() as patch:
        patch.setattr(evolve_command, "InputGuard", _refusing)
        refuse("run.workers: must be lower", config)


def test_a_refused_embedded_task_leaves_nothing(tmp_path: Path) -> None:
    """Its files are made before the check that needs its model."""
    done = called("evolve", "--run-dir", tmp_path / "run", "--set", "format.chat=true")
    assert done.returncode == 2 and "chat template" in done.stderr
    assert not (tmp_path / "run").exists()


def _refusing(*_: object, **__: object) -> None:
    raise ConfigError("run.workers: must be lower")


def test_a_round_of_which_every_request_failed_is_a_failed_run(config: Path, tmp_path: Path) -> None:
    """One sentence and exit code 1; no shard is left, so the same command asks again.

    The questions fit the context, which is checked before any work; the round's only action adds a prompt that does not.
    """
    with config.open("a") as file:
        file.write(f'\n[[rounds]]\nround = 1\n[rounds.search.actions.long]\nshare = 1.0\nprompt = "{{prompt}}{"too long " * 400}"\n')
    done = stepladder("evolve", config, "--run-dir", tmp_path / "run")
    assert done.returncode == 1
    assert "error: round 1: search: samples must be given: all" in done.stderr and "prefix must" in done.stderr
    assert "Traceback" not in done.stderr
    again = called("evolve", config, "--run-dir", tmp_path / "run")
    assert again.returncode == 1 and "all" in again.stderr
    assert not list((tmp_path / "run" / "rounds" / "001").rglob("shard-*.parquet"))


def test_a_round_that_learns_nothing_says_why(config: Path, tmp_path: Path) -> None:
    """Answers that the policy never gives: the reason and what to try, on the screen, in the round's row and in the report."""
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({**row, "answer": "z"}) + "\n" for row in rows))
    done = called("evolve", config, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert row["nothing_learned"].startswith("none of 8 problems was solved: ")
    assert " -- " in row["nothing_learned"]
    assert f"round 1: the policy learned nothing: {row['nothing_learned']}" in done.stderr
    assert "The policy learned nothing in round 1: none of 8 problems was solved" in (tmp_path / "run" / "report.html").read_text()
