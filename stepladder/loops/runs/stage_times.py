"""How long the stages of a run took, from its events."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepladder.files import reading
from stepladder.loops.runs.stage_work import RunWork, run_work

EVENTS_FILE = "events.jsonl"
"""Exists in a run's directory from the first second of work on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTimes:
    """Times from events.jsonl."""

    seconds: dict[int, dict[str, float]]
    """Round -> stage -> seconds, of the stages that ended."""
    begin: float | None
    """Unix time of the first event; None without events."""
    end: float | None
    """Unix time of the last event."""
    num_starts: int
    """How often evolve was started on the run."""
    num_cut: int
    """Stages that began and never ended because the run was stopped; their time is in no figure."""
    num_unreadable: int
    """Lines that are no event: a stop may cut the line being written."""
    machine: str | None = None
    """The machine of the last start; None if it was not recorded."""
    memory_mb: dict[int, int] = field(default_factory=dict)
    """Round -> largest resident memory of the workers in MB, of rounds for which it was recorded."""
    work: RunWork = field(default_factory=RunWork)
    """What the workers did meanwhile."""
    open_stage: tuple[int, str, float] | None = None
    """Round, name and Unix time of the beginning of the last stage, if it has not ended."""


_STAGE: dict[str, Any] = {"round": int, "stage": str}
_KEYS: dict[str, dict[str, Any]] = {
    "stage_begin": _STAGE,
    "stage_end": _STAGE | {"seconds": int | float},
    "ahead": _STAGE,
    "thrown_away": {"round": int},
}
"""What the events of stages hold."""


def stage_times(path: Path) -> StageTimes:
    """Read the times of a run's stages from its events."""
    with reading(path, what="the events of a run", remedy="remove it: it holds nothing but times"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    events = [event for line in lines if (event := _event(line)) is not None]
    seconds: dict[int, dict[str, float]] = {}
    begun = ended = 0
    memory: dict[int, int] = {}
    machine: str | None = None
    opened: tuple[int, str, float] | None = None
    for event in events:
        if event["event"] == "stage_begin":
            begun, opened = begun + 1, (event["round"], event["stage"], event["time"])
        if event["event"] == "stage_end":
            ended, opened = ended + 1, None
            stages = seconds.setdefault(event["round"], {})
            stages[event["stage"]] = stages.get(event["stage"], 0.0) + event["seconds"]
            if isinstance(megabytes := event.get("memory_mb"), int):
                memory[event["round"]] = max(memory.get(event["round"], 0), megabytes)
        if event["event"] == "start" and isinstance(event.get("machine"), str):
            machine = event["machine"]
    return StageTimes(
        seconds=seconds,
        begin=events[0]["time"] if events else None,
        end=events[-1]["time"] if events else None,
        num_starts=sum(event["event"] == "start" for event in events),
        num_cut=max(begun - ended, 0),
        num_unreadable=len(lines) - len(events),
        machine=machine,
        memory_mb=memory,
        work=run_work(events),
        open_stage=opened,
    )


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("time"), int | float) or not isinstance(event.get("event"), str):
        return None
    keys = _KEYS.get(event["event"], {})
    return event if all(isinstance(event.get(key), kind) for key, kind in keys.items()) else None
