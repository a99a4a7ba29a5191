"""The workers' idle time in the report, and what overlapping rounds saved."""

from dataclasses import replace

from stepladder.loops.runs.results import OverlapFigures, RoundRow
from stepladder.loops.runs.stage_work import RunWork, StageWork
from stepladder.report.idle_time import idle_time
from tests.report_run import row

WORK = {"search": StageWork(available=100.0, own=90.0), "train prm": StageWork(available=40.0, own=20.0, ahead=15.0)}


def overlapping(number: int, *, old: int = 0, early: bool = True) -> RoundRow:
    """A round of a run with overlap."""
    overlap = OverlapFigures(policy_version=number - 1, scorer_version=None, prm_rounds_old=old, began_early=early)
    return replace(row(number, policy=0.3, search=0.3, majority=0.3), overlap=overlap)


def test_idle_time_stands_by_stage() -> None:
    """10 of 100 s and 5 of 40 s are idle: 10.0%, 12.5% and together 10.7%. A run without overlap is told of it."""
    text = "".join(idle_time([row(1, policy=0.3, search=0.3, majority=0.3)], RunWork(stages=WORK)))
    assert all(share in text for share in ("10.0", "12.5", "10.7"))
    assert "With run.overlap, idle workers begin the next round" in text
    assert idle_time([], RunWork()) == []


def test_savings_and_old_models_are_stated() -> None:
    """7.5 s were saved and 2 s were in vain; rounds with an old PRM and rounds that began again are named."""
    rows = [overlapping(1), overlapping(2, early=False), overlapping(3, old=1), overlapping(4, old=1)]
    text = "".join(idle_time(rows, RunWork(stages=WORK, early={1: {"search": 4.0}, 3: {"search": 3.5}}, thrown_away=2.0)))
    assert "shortened the run by about 7.5 s" in text
    assert "one round old in rounds 3, 4." in text
    assert "in vain in round 2, because a gate refused the models. That cost 2.0 s" in text
