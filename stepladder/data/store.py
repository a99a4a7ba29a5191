"""Shards: immutable Parquet files of records, one kind of record per file.

The schema of every kind is written out here. So a file of another version or kind is recognised and refused, and an empty list has the same
type as a full one. The same records give the same bytes: nothing in a file depends on the time, the machine or the path. A file appears
completely or not at all. The leftovers of a killed process have another name and are never read. Pages have checksums, so reading notices
a byte that changed on disk.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from stepladder.errors import DataFormatError
from stepladder.files import atomic_file, reading
from stepladder.types import (
    TREE_SCHEMA_VERSION,
    AdvantageRow,
    GradedRow,
    PreferencePair,
    Provenance,
    SoftTarget,
    Trace,
    TreeRecord,
    ValueRow,
)

RecordT = TypeVar("RecordT", TreeRecord, Trace, SoftTarget, PreferencePair, GradedRow, AdvantageRow, ValueRow)

ROW_SCHEMA_VERSION = 1
"""Version of the stored form of traces, graded rows, rows with advantages and value rows."""
PAIR_SCHEMA_VERSION = 3
"""Version of the stored form of pairs."""

_KIND_KEY, _VERSION_KEY = b"stepladder.kind", b"stepladder.schema_version"
_REMAKE = "remove it and run the command again that wrote it"

_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()
PROVENANCE_TYPES: dict[str, pa.DataType] = {
    "round": _INT,
    "policy_version": _INT,
    "scorer_version": _INT,
    "seed": _INT,
    "config_hash": _TEXT,
    "renderer_hash": _TEXT,
}
"""Column types of the provenance."""

PROVENANCE_COLUMNS = {
    "round": "Round of the loop that searched it.",
    "policy_version": "Round whose training produced the policy that sampled it.",
    "scorer_version": "Round whose training produced the process reward model that scored it; null without one.",
    "seed": "Seed of the run.",
    "config_hash": "Hash of the run's settings.",
    "renderer_hash": "Hash of the prompt format and the tokenizer.",
}
"""Meaning of the provenance columns of every shard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardKind(Generic[RecordT]):
    """The stored form of one kind of record: the record's fields in order, then those of its provenance as separate columns."""

    name: str
    """Name of the kind, stored in the file."""
    version: int
    """Version of the stored form."""
    record: type[RecordT]
    """The record class."""
    columns: dict[str, pa.DataType]
    """Column types by field name, without provenance."""
    later: tuple[str, ...] = ()
    """Columns that files of earlier releases lack; their fields have defaults."""

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, with kind and version in its metadata."""
        metadata = {_KIND_KEY: self.name.encode(), _VERSION_KEY: str(self.version).encode()}
        return pa.schema({**self.columns, **PROVENANCE_TYPES}, metadata=metadata)

    def fits(self, schema: pa.Schema) -> bool:
        """Say whether a file's schema is that of the kind, perhaps without later columns."""
        absent = set(self.later) - set(schema.names)
        return schema.equals(pa.schema([field for field in self.schema if field.name not in absent]))


TREES = ShardKind(
    name="trees",
    version=TREE_SCHEMA_VERSION,
    record=TreeRecord,
    columns={
        "problem_id": _TEXT,
        "question": _TEXT,
        "prompt_ids": pa.list_(_INT),
        "method": _TEXT,
        "parents": pa.list_(_INT),
        "depths": pa.list_(_INT),
        "token_ids": pa.list_(pa.list_(_INT)),
        "logps": pa.list_(pa.list_(_FLOAT)),
        "texts": pa.list_(_TEXT),
        "priors": pa.list_(_FLOAT),
        "scores": pa.list_(_FLOAT),
        "visits": pa.list_(_INT),
        "values": pa.list_(_FLOAT),
        "stop_reasons": pa.list_(_TEXT),
        "answers": pa.list_(_TEXT),
        "outcomes": pa.list_(_FLOAT),
        "generated_tokens": _INT,
        "policy_calls": _INT,
        "scored_tokens": _INT,
        "num_simulations": _INT,
        "schema_version": _INT,
        "given_ids": pa.list_(pa.list_(_INT)),
        "given_texts": pa.list_(_TEXT),
        "qvalues": pa.list_(_FLOAT),
        "actions": pa.list_(_TEXT),
    },
    later=("given_ids", "given_texts", "qvalues", "actions"),
)
TRACES = ShardKind(
    name="traces",
    version=ROW_SCHEMA_VERSION,
    record=Trace,
    columns={
        "problem_id": _TEXT,
        "prompt_ids": pa.list_(_INT),
        "completion_ids": pa.list_(_INT),
        "prompt": _TEXT,
        "completion": _TEXT,
        "mean_value": _FLOAT,
        "completion_given": pa.list_(pa.bool_()),
    },
    later=("completion_given",),
)
SOFT_TARGETS = ShardKind(
    name="soft-targets",
    version=ROW_SCHEMA_VERSION,
    record=SoftTarget,
    columns={
        "problem_id": _TEXT,
        "prompt_ids": pa.list_(_INT),
        "completion_ids": pa.list_(_INT),
        "weight": _FLOAT,
        "prompt": _TEXT,
        "completion": _TEXT,
    },
)
PAIRS = ShardKind(
    name="pairs",
    version=PAIR_SCHEMA_VERSION,
    record=PreferencePair,
    columns={
        "problem_id": _TEXT,
        "prompt_ids": pa.list_(_INT),
        "chosen_ids": pa.list_(_INT),
        "rejected_ids": pa.list_(_INT),
        "prompt": _TEXT,
        "chosen": _TEXT,
        "rejected": _TEXT,
        "chosen_value": _FLOAT,
        "rejected_value": _FLOAT,
        "depth": _INT,
        "chosen_visits": _INT,
        "rejected_visits": _INT,
        "chosen_logps": pa.list_(_FLOAT),
        "rejected_logps": pa.list_(_FLOAT),
        "agreement": _FLOAT,
        "uncertainty": _FLOAT,
        "chosen_given": pa.list_(pa.bool_()),
        "rejected_given": pa.list_(pa.bool_()),
    },
    later=("chosen_given", "rejected_given"),
)
GRADED = ShardKind(
    name="graded",
    version=ROW_SCHEMA_VERSION,
    record=GradedRow,
    columns={
        "problem_id": _TEXT,
        "prompt_ids": pa.list_(_INT),
        "completion_ids": pa.list_(_INT),
        "good": pa.bool_(),
        "value": _FLOAT,
        "prompt_value": _FLOAT,
        "prompt": _TEXT,
        "completion": _TEXT,
        "logps": pa.list_(_FLOAT),
        "completion_given": pa.list_(pa.bool_()),
    },
    later=("completion_given",),
)
ADVANTAGES = ShardKind(
    name="advantages",
    version=ROW_SCHEMA_VERSION,
    record=AdvantageRow,
    columns={
        "problem_id": _TEXT,
        "prompt_ids": pa.list_(_INT),
        "completion_ids": pa.list_(_INT),
        "advantages": pa.list_(_FLOAT),
        "logps": pa.list_(_FLOAT),
        "prompt": _TEXT,
        "completion": _TEXT,
        "completion_given": pa.list_(pa.bool_()),
        "staleness": _INT,
    },
)
_PER_NODE = ("depths", "token_ids", "logps", "texts", "priors", "scores", "visits", "values", "stop_reasons", "answers", "outcomes")
"""Fields of a tree that have one entry per node, as ``parents`` has."""
_SOMETIMES_PER_NODE = ("given_ids", "given_texts", "qvalues", "actions")
"""The same, for trees with observations, rewards or actions; no entries at all for others."""

VALUES = ShardKind(
    name="values",
    version=ROW_SCHEMA_VERSION,
    record=ValueRow,
    columns={
        "problem_id": _TEXT,
        "prompt_ids": pa.list_(_INT),
        "step_ids": pa.list_(pa.list_(_INT)),
        "targets": pa.list_(_FLOAT),
        "prompt": _TEXT,
        "steps": pa.list_(_TEXT),
        "given_ids": pa.list_(pa.list_(_INT)),
        "given_texts": pa.list_(_TEXT),
    },
    later=("given_ids", "given_texts"),
)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file, completely or not at all. Equal tables give equal bytes.

    Raises:
        CheckpointError: If the disk is full or ``path`` is not writable.
    """
    # Through memory, because pyarrow writes to Python files slowly, and its own files do not tell the number that identifies a full disk.
    content = pa.BufferOutputStream()
    with atomic_file(path) as temporary:
        pq.write_table(table, content, compression="zstd", version="2.6", data_page_version="1.0", write_page_checksum=True)
        temporary.write_bytes(content.getvalue())


def read_table(path: Path, kind: ShardKind[Any]) -> pa.Table:
    """Read a shard as an Arrow table.

    Raises:
        DataFormatError: If the file is missing or damaged, is not a Parquet file, or is of another kind or version.
    """
    what = f"a Parquet shard of {kind.name}"
    with reading(path, what=what, remedy=_REMAKE, raises=DataFormatError), pq.ParquetFile(path, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        metadata = schema.metadata or {}
        found = metadata.get(_KIND_KEY, b"no stepladder shard").decode()
        version = metadata.get(_VERSION_KEY, b"none").decode()
        if found != kind.name or version != str(kind.version) or not kind.fits(schema):
            raise DataFormatError(
                f"{path}: must be a shard of {kind.name}, schema version {kind.version}: got {found}, version {version} "
                "-- use the stepladder that wrote it, or make it again"
            )
        table = file.read()
        table.validate(full=True)
    return table


def read_columns(path: Path, names: Sequence[str]) -> pa.Table:
    """Read some columns of a shard, of whatever kind; errors as for ``read_table``."""
    with reading(path, what="a Parquet shard", remedy=_REMAKE, raises=DataFormatError):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(columns=list(names)).select(list(names))
        table.validate(full=True)
    return table


def count_rows(path: Path) -> int:
    """Return how many rows a shard holds; errors as for ``read_table``."""
    with reading(path, what="a Parquet shard", remedy=_REMAKE, raises=DataFormatError):
        return pq.read_metadata(path).num_rows


def count_values(path: Path, name: str) -> int:
    """Return how many values all lists of a column of a shard hold, from the file's own statistics; errors as for ``read_table``."""
    with reading(path, what="a Parquet shard", remedy=_REMAKE, raises=DataFormatError):
        metadata = pq.read_metadata(path)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        return sum(column.statistics.num_values for column in columns if column.path_in_schema.split(".")[0] == name)


def whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, which is copied only if the column is in several pieces."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def read_parquet(path: Path, *, remedy: str) -> pa.Table:
    """Read a Parquet file that may be anybody's.

    Args:
        path: The file. A directory is none, and no column comes from a file's name, as ``pyarrow.parquet.read_table`` would have it.
        remedy: What to do about one that cannot be read.

    Raises:
        DataFormatError: If it is missing, damaged, or no Parquet file.
    """
    with reading(path, what="a Parquet file", remedy=remedy, raises=DataFormatError):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        table.validate(full=True)
    return table


def write_trees(path: Path, records: Sequence[TreeRecord]) -> None:
    """Write searched trees as one shard; errors as for ``write_table``."""
    write_records(path, records, TREES)


def read_trees(path: Path) -> list[TreeRecord]:
    """Read a shard of searched trees; errors as for ``read_table``."""
    return read_records(path, TREES)


def write_traces(path: Path, rows: Sequence[Trace]) -> None:
    """Write traces as one shard; errors as for ``write_table``."""
    write_records(path, rows, TRACES)


def read_traces(path: Path) -> list[Trace]:
    """Read a shard of traces; errors as for ``read_table``."""
    return read_records(path, TRACES)


def write_pairs(path: Path, rows: Sequence[PreferencePair]) -> None:
    """Write preference pairs as one shard; errors as for ``write_table``."""
    write_records(path, rows, PAIRS)


def read_pairs(path: Path) -> list[PreferencePair]:
    """Read a shard of preference pairs; errors as for ``read_table``."""
    return read_records(path, PAIRS)


def write_graded(path: Path, rows: Sequence[GradedRow]) -> None:
    """Write graded continuations as one shard; errors as for ``write_table``."""
    write_records(path, rows, GRADED)


def read_graded(path: Path) -> list[GradedRow]:
    """Read a shard of graded continuations; errors as for ``read_table``."""
    return read_records(path, GRADED)


def write_values(path: Path, rows: Sequence[ValueRow]) -> None:
    """Write value rows as one shard; errors as for ``write_table``."""
    write_records(path, rows, VALUES)


def read_values(path: Path) -> list[ValueRow]:
    """Read a shard of value rows; errors as for ``read_table``."""
    return read_records(path, VALUES)


def write_records(path: Path, records: Sequence[RecordT], kind: ShardKind[RecordT]) -> None:
    """Write records of one kind as one shard; errors as for ``write_table``."""
    getters: dict[str, Callable[[RecordT], Any]] = {name: lambda record, name=name: getattr(record, name) for name in kind.columns}
    getters |= {name: lambda record, name=name: getattr(record.provenance, name) for name in PROVENANCE_TYPES}
    schema = kind.schema
    arrays = [pa.array([getters[field.name](record) for record in records], type=field.type) for field in schema]
    write_table(path, pa.Table.from_arrays(arrays, schema=schema))


def read_records(path: Path, kind: ShardKind[RecordT], *, place: Path | None = None) -> list[RecordT]:
    """Read a shard of one kind.

    Args:
        path: The shard.
        kind: Its kind.
        place: What the shard was made of, for messages; None is the shard itself.

    Raises:
        DataFormatError: As for ``read_table``, and if a value is missing that every record has, or a tree is none.
    """
    table, place = read_table(path, kind), place or path
    if (name := incomplete_column(table, kind)) is not None:
        raise DataFormatError(f"{place}: must hold complete rows of {kind.name}: values of {name!r} are missing -- {_REMAKE}")
    fields = {field.name for field in dataclasses.fields(kind.record)}
    records = []
    for number, row in enumerate(table.to_pylist(), 1):
        provenance = Provenance(**{name: row[name] for name in PROVENANCE_TYPES})
        record = kind.record(**{name: row[name] for name in row if name in fields}, provenance=provenance)
        if isinstance(record, TreeRecord) and (wrong := _no_tree(record)):
            raise DataFormatError(f"{place}:{number}: must be a tree: {wrong} -- {_REMAKE}")
        records.append(record)
    return records


def incomplete_column(table: pa.Table, kind: ShardKind[Any]) -> str | None:
    """Return a column that lacks values which every record of a kind has; None if there is none."""
    hints = _type_hints(kind.record)
    return next((name for name in table.schema.names if _lacks_values(whole(table[name]), hints[name])), None)


@cache
def _type_hints(record: type) -> dict[str, Any]:
    return {**get_type_hints(record), **get_type_hints(Provenance)}


def _lacks_values(array: Any, hint: Any) -> bool:
    """Say whether a column has nulls where the type of the record's field allows none, at any depth of its lists."""
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if array.null_count and type(None) not in options:
        return True
    inner = next((get_args(option)[0] for option in options if get_origin(option) is list), None)
    return inner is not None and _lacks_values(array.flatten(), inner)


def _wrong_size(record: TreeRecord, size: int) -> str | None:
    """Name a list that does not have one entry per node; some may be empty."""
    for name in _PER_NODE:
        if len(getattr(record, name)) != size:
            return f"{name!r} must have an entry for each of the {size} nodes: got {len(getattr(record, name))}"
    for name in _SOMETIMES_PER_NODE:
        is_half = name.startswith("given_") and bool(record.given_ids) != bool(record.given_texts)
        if is_half or len(getattr(record, name)) not in (0, size):
            return f"{name!r} must be empty or have an entry for each of the {size} nodes: got {len(getattr(record, name))}"
    return None


def _no_tree(record: TreeRecord) -> str | None:
    """Say what keeps a record from being a tree, or None: lists of one entry per node, and every parent before its children."""
    size = len(record.parents)
    if wrong := _wrong_size(record, size):
        return wrong
    if not size or record.parents[0] != -1 or record.depths[0] != 0:
        return f"node 0 must be the root: got {record.parents[:1]} of depth {record.depths[:1]}"
    for node, (parent, depth) in enumerate(zip(record.parents[1:], record.depths[1:], strict=True), 1):
        if not 0 <= parent < node or depth != record.depths[parent] + 1:
            return f"the parent of node {node} must stand before it, one step nearer to the root: got {parent} and depth {depth}"
    if any(len(ids) != len(logps) for ids, logps in zip(record.token_ids, record.logps, strict=True)):
        return "every token must have its log-probability"
    return None
