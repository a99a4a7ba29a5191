"""The run that a command takes if none is named: the one whose last finished round is the newest."""

from pathlib import Path

from stepladder.errors import CheckpointError

RUNS = Path("runs")
"""Where runs are, unless a command names another place."""


def newest_run(folder: Path = RUNS) -> Path:
    """Return the directory of the run in a folder that finished a round last.

    Raises:
        CheckpointError: If no run in it has a finished round.
    """
    begun = [path.parent for path in folder.glob("*/run.json")]
    finished = {run: max(times) for run in begun if (times := _round_times(run))}
    if not finished:
        found = "found none" if not begun else f"{', '.join(sorted(str(run) for run in begun)[:3])} has none yet"
        raise CheckpointError(
            f"{folder}: must hold a run with a finished round: {found} -- make one with stepladder evolve, or name a run or a policy"
        )
    return max(finished, key=lambda run: (finished[run], run.name))


def _round_times(run: Path) -> list[float]:
    return [path.stat().st_mtime for path in (run / "rounds").glob("[0-9]*/round.json")]
