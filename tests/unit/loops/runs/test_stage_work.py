"""The workers' time by stage, from events."""

from typing import Any

from stepladder.loops.runs.stage_work import RunWork, StageWork, run_work


def ended(number: int, stage: str, seconds: float, *, own: float, ahead: float = 0.0) -> dict[str, Any]:
    """The end of a stage with two workers."""
    return {"event": "stage_end", "round": number, "stage": stage, "seconds": seconds, "workers": 2, "work_s": own, "ahead_s": ahead}


def test_idle_time_is_what_nobody_worked() -> None:
    """Two workers have 20 s in a stage of 10 s: 13 s of work leave 7 s idle, 35%. A stage without records has no figures."""
    found = run_work(
        [ended(1, "search", 6.0, own=8.0), ended(2, "search", 4.0, own=5.0), {**ended(1, "label", 1.0, own=0), "workers": None}]
    )
    assert found.stages == {"search": StageWork(available=20.0, own=13.0)}
    assert (found.stages["search"].idle, found.stages["search"].idle_share) == (7.0, 0.35)
    assert StageWork().idle_share is None


def test_work_ahead_is_saved_unless_it_is_thrown_away() -> None:
    """While round 1 ends, two workers do 6 + 2 s for round 2, which shortens the run by 4 s.

    The second that is left when round 2 itself searches is its own. What they do for round 3, 3 s of both, is thrown away.
    """
    events = [
        {"event": "ahead", "round": 2, "stage": "search", "shards": 4},
        ended(1, "train prm", 8.0, own=8.0, ahead=6.0),
        ended(1, "evaluate", 5.0, own=7.0, ahead=2.0),
        ended(2, "search", 2.0, own=2.5, ahead=1.0),
        {"event": "ahead", "round": 3, "stage": "search", "shards": 4},
        ended(2, "evaluate", 5.0, own=4.0, ahead=6.0),
        {"event": "thrown_away", "round": 3},
    ]
    assert run_work(events) == RunWork(
        stages={
            "train prm": StageWork(available=16.0, own=8.0, ahead=6.0),
            "evaluate": StageWork(available=20.0, own=11.0, ahead=8.0),
            "search": StageWork(available=4.0, own=3.5),
        },
        early={2: {"search": 4.0}},
        thrown_away=3.0,
    )
