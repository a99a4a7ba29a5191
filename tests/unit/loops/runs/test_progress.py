"""What people see of long work, with a clock set by hand."""

import io
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from stepladder.loops.runs.live import LiveStage, read_live
from stepladder.loops.runs.progress import ProgressDisplay, RunFrame, rough, stage_table
from stepladder.loops.runs.workers import Progress
from stepladder.loops.stages.trainings import TrainingProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until its one entry is changed."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def shown(clock: list[float], reports: list[tuple[float, Progress]]) -> list[str]:
    """Return the lines that appear away from a terminal when reports come in at these seconds."""
    out = io.StringIO()
    with ProgressDisplay(Console(file=out, width=200)).stages({"samples": 4, "search": 10}) as update:
        for seconds, progress in reports:
            clock[0] = 1000.0 + seconds
            update(progress)
    return out.getvalue().splitlines()


def test_rates_and_time_left_are_of_the_stage(clock: list[float]) -> None:
    """20 s for the samples; the search begins then: 600 tokens in 12 s, 1 of 10 problems done in 12 s leaves 108 s."""
    lines = shown(
        clock,
        [
            (20, Progress(stage="samples", items=4, tokens=2000)),
            (26, Progress(stage="search", tokens=300)),
            (32, Progress(stage="search", items=1, tokens=300, solved=1)),
        ],
    )
    assert lines == [
        "samples: 4/4, 100 tokens/s, 20 s, 0 s left",
        "search: 1/10, 50 tokens/s, solved 1, 12 s, 108 s left",
        "samples: 4/4, 100 tokens/s, 20 s, 0 s left",
        "search: 1/10, 50 tokens/s, solved 1, 12 s, 108 s left",
    ]


def test_a_rate_of_nothing_is_left_out(clock: list[float]) -> None:
    """Work that counts no tokens has no tokens/s, in lines and in the table."""
    assert shown(clock, [(10, Progress(stage="samples", items=2))])[0] == "samples: 2/4, 10 s, 10 s left"
    part = LiveStage(name="samples", items=2, total=4, tokens=0, solved=0, seconds=10.0)
    out = io.StringIO()
    Console(file=out, width=80).print(stage_table([part, replace(part, name="search", tokens=30)]))
    first, second = out.getvalue().splitlines()[1:]
    assert first.split()[-3:] == ["2/4", "0:10", "0:10"] and second.split()[-4:] == ["2/4", "3", "0:10", "0:10"]


def test_no_time_left_is_guessed_before_the_first_item(clock: list[float]) -> None:
    """A line every ten seconds; without a finished problem it says tokens and seconds only, and a total may come late."""
    lines = shown(
        clock,
        [
            (5, Progress(stage="samples", tokens=50)),
            (10, Progress(stage="samples", tokens=50)),
            (12, Progress(stage="training", items=2, tokens=10, total=6)),
        ],
    )
    assert lines == [
        "samples: 0/4, 10 tokens/s, 10 s",
        "samples: 0/4, 10 tokens/s, 10 s",
        "training: 2/6, 5 tokens/s, 2 s, 4 s left",
    ]


def test_a_training_reports_the_updates_and_tokens_since_its_last_call() -> None:
    """As on a GPU, which tells of every third update, in a training that was continued after two of eight."""
    told: list[Progress] = []
    progress = TrainingProgress("policy", told.append)
    for step, tokens in ((3, 10), (6, 40), (8, 60)):
        progress(step, 8, 0.5, tokens)
    assert [(each.items, each.tokens, each.total) for each in told] == [(3, 10, 8), (3, 30, 8), (2, 20, 8)]


def _frame(root: Path, left: float | None = None, expected_s: float | None = None) -> RunFrame:
    plan = {0: ["train policy", "evaluate"], 1: ["search", "evaluate"], 2: ["search", "evaluate"]}
    return RunFrame(
        root, rounds=2, plan=plan, purpose=lambda number, stage: f"why {stage}", left=lambda *facts: left, expected_s=expected_s
    )


def test_a_stage_begins_with_its_place_in_the_run(clock: list[float], tmp_path: Path) -> None:
    """Round, stage, purpose and the time of the whole; names of parts do not repeat the round."""
    out = io.StringIO()
    display = ProgressDisplay(Console(file=out, width=200))
    display.frame = _frame(tmp_path, left=250.0)
    clock[0] += 65
    display.enter(1, "search")
    assert out.getvalue() == "round 1 of 2, stage 1 of 2: search -- why search (whole run: 1:05, about 4 min left)\n"
    with display.stages({"round 1: search": 10}) as update:
        clock[0] += 5
        update(Progress(stage="round 1: search", items=2, tokens=100, solved=1))
        live = read_live(tmp_path)
        assert live is not None
        assert (live.round, live.stage, live.stage_number, live.num_stages, live.seconds_left) == (1, "search", 1, 2, 250.0)
        assert [(part.name, part.items, part.total, part.rate, part.solved) for part in live.parts] == [("search", 2, 10, 20.0, 1)]
        clock[0] += 0.5
        update(Progress(stage="round 1: search", items=1))
        assert read_live(tmp_path) == live
        clock[0] += 0.5
        update(Progress(stage="round 1: search", items=1))
        assert read_live(tmp_path).parts[0].items == 4
    display.frame.close()
    assert read_live(tmp_path) is None


def test_the_time_of_the_whole_is_expected_until_it_is_known(clock: list[float], tmp_path: Path) -> None:
    """A known task says how long it usually takes; another one says when it will know."""
    expected, unknown = _frame(tmp_path, expected_s=600.0), _frame(tmp_path)
    for frame in (expected, unknown):
        frame.enter(0, "train policy")
    clock[0] += 120
    assert expected.footer(()) == "whole run: 2:00, about 8 min left"
    assert unknown.footer(()) == "whole run: 2:00, time left is known after the first round"
    assert expected.heading() == "warm-up, stage 1 of 2: train policy -- why train policy"


def test_a_terminal_of_80_columns_holds_the_picture(clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headings over the figures, waiting stages, and no line that is too long, whatever the figures."""
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    display = ProgressDisplay(Console(file=out, width=80, force_terminal=True, no_color=True))
    display.frame = _frame(tmp_path)
    display.enter(1, "search")
    with display.stages({"round 1: held_out samples-best-prm": 123456, "round 1: test search": 9}) as update:
        clock[0] += 7200
        update(Progress(stage="round 1: held_out samples-best-prm", items=12345, tokens=10**10, solved=12345))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    lines = [each for each in re.split(r"[\r\n]+", text) if each.strip()]
    assert max(map(len, lines)) <= 80
    last = lines[-6:]
    assert last[1].split() == ["why", "search"] and last[2].split() == ["done", "tokens/s", "solved", "time", "left"]
    assert "12345/123456" in last[3] and "2:00:00" in last[3] and "0/9" in last[4]


@pytest.mark.parametrize(
    ("seconds", "says"), [(3, "10 s"), (84, "80 s"), (100, "2 min"), (3600, "60 min"), (5400, "1 h 30 min"), (9000, "2 h 30 min")]
)
def test_guesses_are_no_more_exact_than_they_are(seconds: float, says: str) -> None:
    """Tens of seconds, minutes, tens of minutes."""
    assert rough(seconds) == says


def test_results_on_standard_output_are_not_drawn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command prints while bars are on the terminal goes where standard output goes, such as a pipe."""
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    with ProgressDisplay(Console(file=out, force_terminal=True)).stages({"questions": 1}) as update:
        print("a row")
        update(Progress(stage="questions", items=1))
    assert capsys.readouterr().out == "a row\n"
    assert "a row" not in out.getvalue()
