"""Export of a run's finished rounds."""

from pathlib import Path

from stepladder.data.export import EXPORT_FORMATS, export_dataset
from stepladder.errors import ConfigError
from stepladder.loops.rundir import load_run

_KIND_OF_FORMAT = {"preference": "pairs", "value": "values", "sft": "traces", "tree": "trees"}


def export_rounds(run_path: Path, to: Path, *, format: str, rounds: str | None, overwrite: bool) -> str:
    """Write the rows of finished rounds as a data set directory and return the line to print.

    Raises:
        ConfigError: If the format or the rounds are not known.
        CheckpointError: If the directory is no run, or the target is not empty.
    """
    if format not in EXPORT_FORMATS:
        raise ConfigError(f"--format: must be one of {', '.join(EXPORT_FORMATS)}: got {format!r}")
    run = load_run(run_path)
    finished = [row["round"] for row in run.rows() if row["round"] > 0]
    chosen = finished if rounds is None else _parse_rounds(rounds, finished)
    shards = run.shards(_KIND_OF_FORMAT[format], rounds=chosen)
    if not shards:
        raise ConfigError(f"{run_path}: no finished round to export -- let evolve finish round 1")
    count = export_dataset(shards, format=format, out_dir=to, overwrite=overwrite)
    return f"{to}: {count} rows of {format} from round{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen))}"


def _parse_rounds(text: str, finished: list[int]) -> list[int]:
    first, _, last = text.partition("-")
    try:
        wanted = list(range(int(first), int(last or first) + 1))
    except ValueError:
        wanted = []
    if not wanted or not set(wanted) <= set(finished):
        raise ConfigError(
            f"--rounds: must name finished rounds ({', '.join(map(str, finished)) or 'there are none'}), as 2 or 1-3: got {text!r}"
        )
    return wanted
