"""What ``evolve`` says before and after its work."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from stepladder import embedded
from stepladder.commands import opening
from stepladder.commands.opening import Opening, next_commands
from stepladder.loops.config.load import load_config
from stepladder.loops.runs.evaluation_rows import SolvedRow, write_rows
from stepladder.loops.runs.machine import machine
from stepladder.loops.runs.stage_times import stage_times
from stepladder.loops.stages.plan import planned_stages
from tests.report_run import config, full_rows, write_run

SIZES = {"train": 800, "held_out": 200, "test": 1000}


def _lines(task: str, *, num_done: int = 0, last: int = 3, expected_s: float | None = None) -> list[str]:
    settings = load_config(None, [], base=embedded.settings(Path("start"), task))
    return Opening(settings, Path("runs/x"), num_done=num_done, last=last, expected_s=expected_s).lines(SIZES)


def test_the_opening_says_what_is_done_where_and_for_how_long() -> None:
    """And that it may be stopped. All lines but that of the machine fit 80 columns."""
    lines = _lines("glyphs", expected_s=445.0)
    text = "\n".join(lines)
    assert lines[0] == "evolve: a warm-up and 3 rounds"
    for said in ("mcts (num_children=8), at most 16 simulations", "800 to learn from", "in        runs/x", "about 7 min", "Ctrl-C is fine"):
        assert said in text
    assert max(len(line) for line in lines if not line.startswith("  machine")) <= 80
    assert machine() in text and "core" in machine()


def test_a_run_that_goes_on_says_what_is_done() -> None:
    """Half of four parts is left; nothing is promised about a run of which nobody knows."""
    lines = _lines("puzzle", num_done=2, expected_s=400.0)
    assert lines[0] == "evolve: a warm-up and 3 rounds, of which the warm-up is done and round 1"
    assert "about 3 min" in lines[-1]
    assert "known after the first round" in _lines("puzzle")[-1]
    assert _lines("puzzle", num_done=2, last=1) == ["evolve: runs/x has its 1 round already"]


def test_the_times_of_earlier_stages_are_read_once_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every drawing, four times a second. Every stage took 10 s in round 1, and takes as long again."""
    settings, reads = config(), list[Path]()
    run, stages = write_run(tmp_path / "run", full_rows()[:2], settings=settings), planned_stages(settings, 1)
    (run.root / "events.jsonl").unlink()
    for stage in stages:
        run.log_event("stage_end", round=1, stage=stage, seconds=10.0)
    monkeypatch.setattr("stepladder.commands.opening.stage_times", lambda path: reads.append(path) or stage_times(path))
    frame = Opening(settings, run.root, num_done=2, last=2, expected_s=None).frame(run)
    for place in (0, 1):
        frame.enter(2, stages[place])
        for _ in range(5):
            assert frame.seconds_left(()) == pytest.approx(10.0 * (len(stages) - place), abs=2.0)
    assert len(reads) == 2


def test_the_task_describes_itself(tmp_path: Path) -> None:
    """An embedded task by its name, another one by its file and its grading."""
    (tmp_path / "start" / "problems").mkdir(parents=True)
    (tmp_path / "start" / "task.json").write_text(json.dumps({"name": "puzzle", "about": "sort eight digits by reversing prefixes"}))
    settings = load_config(None, [], base=embedded.settings(tmp_path / "start", "puzzle"))
    opening = Opening(settings, tmp_path, num_done=0, last=1, expected_s=None)
    assert "puzzle (sort eight digits by reversing prefixes), graded by verifier" in "\n".join(opening.lines(SIZES))
    assert "train.jsonl, graded by rule exact" in "\n".join(Opening(config(), tmp_path, num_done=0, last=1, expected_s=None).lines(SIZES))


def test_the_next_commands_can_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a test problem, measure, export; quoted for a shell, and with the program as it is called here."""
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/stepladder")
    monkeypatch.setattr(opening, "searched_questions", lambda _: {})
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"id": "a", "question": "it's 4 1?", "answer": "1"}) + "\n")
    problems = {"train": "train.jsonl", "test": str(path), "rule": "exact"}
    run = write_run(tmp_path / "a run", full_rows(), settings=config(problems=problems))
    words = [shlex.split(command) for command in next_commands(run)]
    assert words == [
        ["stepladder", "solve", "it's 4 1?", "--run", str(run.root)],
        ["stepladder", "eval", "--run", str(run.root), "--out", f"{run.root}-eval"],
        ["stepladder", "export", str(run.root), "--format", "preference", "--to", f"{run.root}-data"],
    ]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    path.unlink()
    assert next_commands(run)[0].endswith(f"-m stepladder solve --interactive --run {shlex.quote(str(run.root))}")


def test_the_question_is_one_that_the_best_policy_solves_easily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both at once and with a search, with the fewest tokens; a long one is passed over. Without any, the first of the file is asked."""
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"id": "a", "question": "first?", "answer": "1"}) + "\n")
    rows = full_rows()
    run = write_run(tmp_path / "run", rows, settings=config(problems={"train": "train.jsonl", "test": str(path), "rule": "exact"}))
    folder = run.evaluation(rows[-1].best_policy, "test")
    asked = {"a": "first?", "b": "long? " * 40, "c": "third?", "d": "fourth?", "e": "fifth?"}
    monkeypatch.setattr(opening, "searched_questions", lambda where: asked if where == folder / "search" else {})

    def write(kind: str, right: str) -> None:
        tokens = {"a": 5, "b": 6, "c": 9, "d": 8, "e": 7}
        found = [SolvedRow(problem_id=key, answer=None, correct=key in right, tokens=count) for key, count in tokens.items()]
        write_rows(folder / kind / "shard-0000.json", found)

    write("greedy", "bcd")
    write("search", "abcde")
    assert "solve 'fourth?' --run" in next_commands(run)[0]
    write("greedy", "b")
    assert "solve 'first?' --run" in next_commands(run)[0]


def test_a_warm_up_has_nothing_to_export(tmp_path: Path) -> None:
    """Two commands are left."""
    assert len(next_commands(write_run(tmp_path / "run", full_rows()[:1]))) == 2
