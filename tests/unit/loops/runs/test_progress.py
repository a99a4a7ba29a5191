"""What people see of long work, with a clock set by hand."""

import io
import time

import pytest
from rich.console import Console

from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.workers import Progress


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
