"""Failed samples of a stage: recorded next to their shard, counted, and displayed.

If every sample of a stage failed, the run has failed; the questions are not just hard. Its shards are removed, so that the same command
asks again.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from stepladder.errors import BackendError
from stepladder.files import atomic_write_text, read_json
from stepladder.loops.runs.json_records import record_of
from stepladder.loops.runs.results import FailureFigures
from stepladder.types import Failures

_SUFFIX = ".failures"


def failures_path(shard: Path) -> Path:
    """Return the JSON file of a shard's ``Failures``; it does not exist if no sample failed."""
    return shard.with_suffix(_SUFFIX)


def write_failures(shard: Path, total: Failures) -> None:
    """Record the failures of a shard before the shard is written."""
    path = failures_path(shard)
    if total.num_failed:
        atomic_write_text(path, json.dumps(total.to_dict()) + "\n")
    else:
        path.unlink(missing_ok=True)


def read_failures(shards: Iterable[Path]) -> Failures:
    """Return the failures of shards; ``num_samples`` counts only shards with failures."""
    return Failures.sum(_read(path) for path in map(failures_path, shards) if path.exists())


def _read(path: Path) -> Failures:
    what, remedy = "the failed samples of a shard", "remove the file and the shard beside it, and run evolve again"
    return record_of(Failures, read_json(path, what=what, remedy=remedy), place=path, what=what, remedy=remedy)


def check_stage(shards: Sequence[Path], place: str) -> Failures:
    """Return the failures of a finished stage.

    Args:
        shards: Everything that the stage wrote.
        place: The stage, for the message.

    Raises:
        BackendError: If every sample failed; the shards are then gone.
    """
    total = read_failures(shards)
    if not (total.all_failed and all(failures_path(shard).exists() for shard in shards)):
        return total
    for path in shards:
        path.unlink(missing_ok=True)
        failures_path(path).unlink()
    raise BackendError(f"{place}: samples must be given: {total.sentence()} -- mend that and repeat the command")


def failure_figures(folder: Path) -> FailureFigures | None:
    """Return the failed samples of a round by the folder of their shards, with the first message; None if none failed."""
    paths = sorted(folder.rglob(f"*{_SUFFIX}"))
    if not paths:
        return None
    counts: dict[str, int] = {}
    for path in paths:
        kind = path.parent.relative_to(folder).as_posix()
        counts[kind] = counts.get(kind, 0) + read_failures([path]).num_failed
    return FailureFigures(failed_samples=counts, first_failure=read_failures(paths).first_message)
