"""A run at one moment, as its directory shows it."""

import socket
from dataclasses import dataclass

from stepladder.locks import holder, process_lives
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.live import Live, read_live
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.run_places import LOCK_FILE
from stepladder.loops.runs.stage_times import StageTimes, stage_times
from stepladder.loops.runs.store_copy import name_of


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenRun:
    """A run at one moment."""

    name: str
    """Its directory."""
    rounds: int
    """Rounds that it is to have after the warm-up."""
    rows: list[RoundRow]
    """Finished rounds."""
    live: Live | None
    """What is done now, or was done when the process died."""
    times: StageTimes
    """Times of its stages."""
    is_running: bool
    """Whether a process works on it."""

    @property
    def is_finished(self) -> bool:
        """Whether it has all its rounds."""
        return len(self.rows) > self.rounds

    def state(self) -> str:
        """Return whether it runs, is finished or was stopped, in a few words."""
        if self.is_running:
            return "running"
        if self.is_finished:
            return "finished"
        return "its process has died; the same evolve command goes on" if self.live else "stopped; the same evolve command goes on"


def look(run: RunDir, rounds: int) -> SeenRun:
    """Read a run.

    Args:
        run: The run.
        rounds: Rounds that it is to have.

    Raises:
        CheckpointError: If a round's figures are damaged.
    """
    live = read_live(run.root)
    is_alive = live is not None and live.is_alive()
    has_just_begun = not is_alive and _holds_lock(run)
    return SeenRun(
        name=name_of(run.root),
        rounds=rounds,
        rows=run.rows(),
        # What a dead process was doing is nothing that the one after it does.
        live=None if has_just_begun else live,
        times=stage_times(run.events),
        is_running=is_alive or has_just_begun,
    )


def _holds_lock(run: RunDir) -> bool:
    """Say whether a process of this machine holds the lock; one that has just begun has not said yet what it does."""
    found = holder(run.root / LOCK_FILE)
    return found is not None and found.host == socket.gethostname() and process_lives(found.pid)
