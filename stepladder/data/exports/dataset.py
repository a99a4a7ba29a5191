"""Export of shards to a directory that ``datasets.load_dataset`` reads, with a data card, and import of such a directory to shards.

``formats.EXPORT_FORMATS`` lists the formats.
"""

import gc
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stepladder.data.exports.card import CARD_MARK, EXPORT_VERSION, CardFacts, Exploration, ExportSummary, data_card
from stepladder.data.exports.formats import EXPORT_FORMATS, ExportFormat, record_from
from stepladder.data.exports.questions import StoredQuestions
from stepladder.data.exports.rows import ExportSource, Row
from stepladder.data.exports.shards import OpenShard, python_values
from stepladder.data.store import (
    PROVENANCE_TYPES,
    ShardKind,
    read_parquet,
    read_records,
    whole,
    write_records,
    write_table,
)
from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.files import atomic_directory, file_fault, reading
from stepladder.types import derive_seed

REST = "train"
"""The split of all problems that no other split takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportJob:
    """What to export, and how."""

    format: str
    """A name in ``EXPORT_FORMATS``."""
    source: ExportSource
    """The run's facts that the rows need."""
    trees: Sequence[Path] = ()
    """Shards of the searched trees of the rows, for the data card, and for questions that ``source`` does not have."""
    facts: CardFacts = field(default_factory=CardFacts)
    """The run's facts for the data card."""
    splits: Mapping[str, float] = field(default_factory=dict)
    """Share of the problems in each split except ``train``, in (0, 1)."""
    overwrite: bool = False
    """Replace an earlier export. Nothing else is ever removed."""


def export_dataset(
    paths: Sequence[Path], job: ExportJob, out_dir: Path, *, on_shard: Callable[[int], None] = lambda num_tokens: None
) -> ExportSummary:
    """Write shards as a data set directory, completely or not at all.

    The directory holds ``README.md``, the data card, and ``data/SPLIT-*.parquet`` (or ``.jsonl``), one file per shard and split with rows.
    Equal shards give equal bytes.

    Args:
        paths: Shards of the format's kind, in order.
        job: The export.
        out_dir: New or empty directory.
        on_shard: Called after every shard with the tokens of its rows.

    Raises:
        ConfigError: If the format is unknown, or a split is impossible.
        DataFormatError: If there is no row to export, a split gets none, or a file is not a shard of the right kind and version.
        CheckpointError: If ``out_dir`` is not empty, or is not writable.
    """
    chosen = find_format(job.format)
    _check_splits(job.splits)
    if not paths:
        raise DataFormatError(f"{out_dir}: an export needs at least one shard: got none -- run a round first")
    check_free(out_dir, overwrite=job.overwrite)
    questions = StoredQuestions(job.trees, job.source.questions)
    keys = questions.split_keys() if job.splits else {}
    summary, dropped = ExportSummary(rows=dict.fromkeys((REST, *job.splits), 0)), Counter[str]()
    exploration, unread = Exploration(), dict.fromkeys(job.trees)
    with atomic_directory(out_dir) as temporary, _no_cycles():
        (temporary / "data").mkdir()
        for index, path in enumerate(paths):
            num_tokens = 0
            shard = OpenShard.read(path, chosen.kind)
            if path in unread:
                exploration.add(shard)
                del unread[path]
            source = job.source
            if chosen.needs_questions:
                source = replace(source, questions=questions.of(path, set(shard.values("problem_id"))))
            rows = _rows(shard, chosen, source, dropped)
            for split, part in _by_split(rows, job.splits, keys).items():
                _write_rows(temporary / "data" / f"{split}-{index:05d}.{chosen.suffix}", part, chosen)
                num_tokens += summary.add(split, part, chosen)
            on_shard(num_tokens)
        summary.dropped = dict(sorted(dropped.items()))
        _check_rows(summary, out_dir, num_shards=len(paths))
        for path in unread:
            exploration.add(OpenShard.read_trees(path, _EXPLORED))
        card = data_card(job.format, chosen, summary, exploration, job.facts, job.source)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return summary


@contextmanager
def _no_cycles() -> Iterator[None]:
    """Do not look for garbage in cycles: rows have none, and the search would go through all of their lists again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def import_dataset(
    directory: Path, out_dir: Path, *, check: Callable[[Any, str], None] = lambda record, place: None
) -> tuple[ShardKind[Any], int]:
    """Write an exported data set as shards, completely or not at all, and return their kind and the number of rows.

    Every field of every record equals the one before the export, bit for bit. Splits keep the order of the data card, with one shard per
    file.

    Args:
        directory: An exported data set.
        out_dir: New or empty directory, for ``shard-*.parquet``.
        check: Called with every record, and with its file and row.

    Raises:
        DataFormatError: If the directory is not an importable export, or a file of it lacks columns.
        CheckpointError: If ``out_dir`` is not empty, or is not writable.
    """
    chosen, files = _exported_files(directory)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise CheckpointError(f"{out_dir}: must be new or empty: it is a file or holds files -- import into another place")
    kind = chosen.restored
    assert kind is not None, "formats without it were refused"
    num_rows = 0
    with atomic_directory(out_dir) as temporary:
        for index, path in enumerate(files):
            rows, what = _read_rows(path, chosen), f"rows of {chosen.title.lower()}"
            with reading(path, what=what, remedy="fetch or export it again", raises=DataFormatError):
                records = [record_from(row, chosen) for row in rows]
                for number, record in enumerate(records, 1):
                    check(record, f"{path}:{number}")
            shard = temporary / f"shard-{index:04d}.parquet"
            try:
                write_records(shard, records, kind)
            except (pa.ArrowException, TypeError, OverflowError) as error:
                raise DataFormatError(f"{path}: must hold values of the columns' types: {file_fault(error)} -- fetch it again") from None
            # What no run could read must not be imported: a null where every record has a value, a tree whose lists differ in length.
            read_records(shard, kind, place=path)
            num_rows += len(records)
    return kind, num_rows


def restored_kind(directory: Path) -> ShardKind[Any]:
    """Return the kind of shard that an exported data set becomes. Errors are those of ``import_dataset``."""
    kind = _exported_files(directory)[0].restored
    assert kind is not None, "formats without it were refused"
    return kind


def find_format(name: str) -> ExportFormat:
    """Return a format by name.

    Raises:
        ConfigError: If no format has that name.
    """
    if name not in EXPORT_FORMATS:
        raise ConfigError(f"format: must be one of {', '.join(EXPORT_FORMATS)}: got {name!r} -- choose one of these")
    return EXPORT_FORMATS[name]


def check_free(out_dir: Path, *, overwrite: bool) -> None:
    """Check that an export may write a directory: it must be new or empty, or an earlier export if ``overwrite`` is set.

    Raises:
        CheckpointError: If the export may not write it.
    """
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise CheckpointError(f"{out_dir}: must be a directory or not exist: it is a file -- choose another place")
    card = out_dir / "README.md"
    ours = card.is_file() and CARD_MARK in card.read_text(encoding="utf-8", errors="replace")
    if not any(out_dir.iterdir()) or (overwrite and ours):
        return
    remedy = "choose another directory" if not ours else "choose another directory or pass --overwrite"
    what = "an earlier export" if ours else "files that are no export of stepladder"
    raise CheckpointError(f"{out_dir}: must be new or empty: it holds {what} -- {remedy}")


def _check_splits(splits: Mapping[str, float]) -> None:
    for name, share in splits.items():
        if name == REST or not name.isidentifier() or not 0 < share < 1:
            raise ConfigError(
                f"split {name!r}: must be a word other than {REST!r} with a share in (0, 1): got {share!r} -- for example test=0.1"
            )
    if sum(splits.values()) >= 1:
        raise ConfigError(f"splits: shares must leave something to {REST!r}: got {sum(splits.values()):.4g} in all -- lower them")


def _by_split(rows: pa.Table, splits: Mapping[str, float], keys: Mapping[str, str]) -> dict[str, pa.Table]:
    """Return the rows of every split that has some."""
    if not splits:
        return {REST: rows} if rows.num_rows else {}
    places: dict[str, list[int]] = {}
    problems = rows["problem_id"].to_pylist()
    split_of = {problem: _split_of(keys.get(problem, problem), splits) for problem in set(problems)}
    for place, problem in enumerate(problems):
        places.setdefault(split_of[problem], []).append(place)
    return {split: _taken(rows, np.array(chosen)) for split, chosen in places.items()}


def _taken(rows: pa.Table, places: np.ndarray) -> pa.Table:
    """Return some rows, at least one, in order: copied in runs, since those of a problem stand together."""
    ends = np.flatnonzero(np.diff(places, append=-1) != 1)
    begins = np.concatenate([[0], ends[:-1] + 1])
    runs = zip(places[begins].tolist(), (ends - begins + 1).tolist(), strict=True)
    return pa.concat_tables([rows.slice(begin, length) for begin, length in runs]).combine_chunks()


def _split_of(key: str, splits: Mapping[str, float]) -> str:
    # The key does not depend on a run's seed. A problem is in the same split in every export, so data sets can be joined without a leak.
    place, bound = derive_seed("export split", key) / 2**63, 0.0
    for name, share in splits.items():
        bound += share
        if place < bound:
            return name
    return REST


def _rows(shard: OpenShard, chosen: ExportFormat, source: ExportSource, dropped: Counter[str]) -> pa.Table:
    """Return the rows of a shard. Columns that copy a field are not made of Python objects."""
    places, made = [], []
    for record, columns in chosen.rows(shard.records(), source, dropped):
        places.append(record.row)
        made.append(columns)
    taken = None if places == list(range(len(shard))) else pa.array(places, type=pa.int64())

    def copied(name: str) -> pa.Array:
        return shard.column(name) if taken is None else shard.column(name).take(taken)

    arrays = [
        pa.array([row[name] for row in made], type=column.type) if column.field is None else copied(column.field)
        for name, column in chosen.all_columns().items()
    ]
    return pa.Table.from_arrays([*arrays, *map(copied, PROVENANCE_TYPES)], schema=chosen.schema)


def _write_rows(path: Path, rows: pa.Table, chosen: ExportFormat) -> None:
    if chosen.suffix == "jsonl":
        names, columns = rows.schema.names, [python_values(whole(rows[name])) for name in rows.schema.names]
        with path.open("w", encoding="utf-8") as file:
            for values in zip(*columns, strict=True):
                file.write(json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False, allow_nan=False) + "\n")
        return
    write_table(path, rows)


def _check_rows(summary: ExportSummary, out_dir: Path, *, num_shards: int) -> None:
    if not summary.num_rows:
        left_out = f", {sum(summary.dropped.values())} candidates were left out" if summary.dropped else ""
        raise DataFormatError(
            f"{out_dir}: an export needs at least one row: the {num_shards} shards hold none{left_out} -- export other rounds"
        )
    if empty := [split for split, count in summary.rows.items() if not count]:
        raise DataFormatError(f"{out_dir}: every split needs a row: got none in {', '.join(map(repr, empty))} -- change its share")


_EXPLORED = ("problem_id", "parents", "depths", "stop_reasons", "answers", "outcomes", "generated_tokens")
"""Fields of trees that the figures of a data card are made of."""


def _exported_files(directory: Path) -> tuple[ExportFormat, list[Path]]:
    """Return the format of an export and its files, split by split."""
    from huggingface_hub import metadata_load

    card, what = directory / "README.md", "the card of a data set that stepladder export wrote"
    if not directory.is_dir():
        found = "it is a file" if directory.exists() else "there is no such directory"
        raise DataFormatError(f"{directory}: must be a data set that stepladder export wrote: {found} -- check the path")
    with reading(card, what=what, remedy="check the path, or export it again", raises=DataFormatError):
        facts: Any = metadata_load(card) or {}
        ours = facts.get("stepladder")
        patterns = [] if ours is None else [entry["path"] for entry in facts["configs"][0]["data_files"]]
    if not isinstance(ours, dict):
        raise DataFormatError(
            f"{directory}: must be a data set that stepladder export wrote: its README.md does not say so -- check the path"
        )
    if strangers := [each for each in patterns if not isinstance(each, str) or not _lies_inside(each)]:
        raise DataFormatError(f"{card}: must name files of the data set itself: got {_shown(strangers[0])} -- fetch it again")
    name, version = ours.get("format"), ours.get("version")
    if version != EXPORT_VERSION or not isinstance(name, str) or name not in EXPORT_FORMATS:
        raise DataFormatError(
            f"{card}: must be a known format of version {EXPORT_VERSION}: got {_shown(name)} of version {_shown(version)} "
            "-- use the stepladder that wrote it"
        )
    chosen = EXPORT_FORMATS[name]
    if chosen.restore is None:
        able = ", ".join(known for known, format in EXPORT_FORMATS.items() if format.restore is not None)
        raise DataFormatError(
            f"{directory}: must be of a format that can be imported ({able}): got {name!r} -- export the run's trees instead"
        )
    with reading(card, what=what, remedy="export it again", raises=DataFormatError):
        files = [path for pattern in patterns for path in sorted(directory.glob(pattern))]
    if not files:
        raise DataFormatError(f"{directory}: must hold the files that its README.md names: found none -- fetch the data set again")
    return chosen, files


def _lies_inside(pattern: str) -> bool:
    """Say whether a pattern names files below a directory; the data set may be a stranger's."""
    return bool(Path(pattern).parts) and not Path(pattern).is_absolute() and ".." not in Path(pattern).parts


def _shown(value: object) -> str:
    """Return a value of a card for a message. Aliases make a few lines of YAML a nest of lists whose text no memory holds."""
    return repr(value) if value is None or isinstance(value, str | int) else f"a {type(value).__name__}"


def _read_rows(path: Path, chosen: ExportFormat) -> list[Row]:
    with reading(path, what=f"a {chosen.suffix} file", remedy="fetch it again", raises=DataFormatError):
        if chosen.suffix == "jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        else:
            rows = read_parquet(path, remedy="fetch it again").to_pylist()
    expected, later = set(chosen.schema.names), chosen.later_columns
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataFormatError(f"{path}:{number}: must be a JSON object: got {type(row).__name__} -- export it again")
        if missing := sorted(expected - set(row) - set(later)):
            raise DataFormatError(f"{path}:{number}: must have the columns of the format: {', '.join(missing)} missing -- export it again")
    return [{name: [] for name in later} | row for row in rows]
