"""What the workers of a run did with the time of its stages, from its events."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class StageWork:
    """How workers spent the time of a stage, in seconds summed over the workers."""

    available: float = 0.0
    """The time that they had."""
    own: float = 0.0
    """Work on the stage itself."""
    ahead: float = 0.0
    """Work on the next round."""

    @property
    def idle(self) -> float:
        """The rest."""
        return max(self.available - self.own - self.ahead, 0.0)

    @property
    def idle_share(self) -> float | None:
        """Share of the time without work, in [0, 1]; None without any time."""
        return self.idle / self.available if self.available else None

    @classmethod
    def sum(cls, parts: Sequence["StageWork"]) -> "StageWork":
        """Add the work of several."""
        return cls(
            available=sum(part.available for part in parts), own=sum(part.own for part in parts), ahead=sum(part.ahead for part in parts)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunWork:
    """The work of a run, of stages for which it was recorded."""

    stages: dict[str, StageWork] = field(default_factory=dict)
    """Stage -> work in it, over all rounds."""
    early: dict[int, dict[str, float]] = field(default_factory=dict)
    """Round -> stage -> seconds that all workers together did of it before the round before had ended."""
    thrown_away: float = 0.0
    """Seconds that all workers together did ahead in vain."""


def run_work(events: Sequence[dict[str, Any]]) -> RunWork:
    """Return the work of the workers.

    Args:
        events: ``stage_end``, ``ahead`` and ``thrown_away`` as a run logs them, in order; others are passed over.
    """
    stages: dict[str, StageWork] = {}
    early: dict[int, dict[str, float]] = {}
    thrown_away = 0.0
    begun, begun_stage = None, ""
    for event in events:
        if event["event"] == "ahead":
            begun, begun_stage = event["round"], event["stage"]
        if event["event"] == "thrown_away":
            thrown_away += sum(early.pop(event["round"], {}).values())
        done = _work(event) if event["event"] == "stage_end" else None
        if done is None:
            continue
        if event["round"] == begun:
            # The round that had begun early goes on: this is its own time.
            done = StageWork(available=done.available, own=done.own + done.ahead)
        elif begun is not None and done.ahead:
            saved = early.setdefault(begun, {})
            saved[begun_stage] = saved.get(begun_stage, 0.0) + done.ahead / event["workers"]
        stages[event["stage"]] = StageWork.sum([stages.get(event["stage"], StageWork()), done])
    return RunWork(stages=stages, early=early, thrown_away=thrown_away)


def _work(event: dict[str, Any]) -> StageWork | None:
    """Return the work in a stage that has ended; None if it was not recorded."""
    workers, own, ahead = (event.get(name) for name in ("workers", "work_s", "ahead_s"))
    if not isinstance(workers, int) or workers < 1 or not isinstance(own, int | float) or not isinstance(ahead, int | float):
        return None
    return StageWork(available=workers * event["seconds"], own=own, ahead=ahead)
