"""Shards as an export reads them: columns of Arrow. The fields of records become Python objects when they are first asked for.

Most columns of an export are copies of a shard's. They never leave Arrow, which is several times as fast as a detour through Python.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stepladder.data.store import (
    PROVENANCE_TYPES,
    TREES,
    ShardKind,
    count_values,
    incomplete_column,
    read_columns,
    read_records,
    read_table,
    whole,
)
from stepladder.types import Provenance


class OpenShard:
    """The rows of a shard."""

    def __init__(self, path: Path, table: pa.Table, kind: ShardKind[Any]) -> None:
        """Take rows that have been checked.

        Args:
            path: Their file.
            table: The rows, or some columns of them.
            kind: Their kind.
        """
        self._path, self._table, self._kind = path, table.combine_chunks(), kind
        self._values: dict[str, list[Any]] = {}

    @classmethod
    def read(cls, path: Path, kind: ShardKind[Any]) -> "OpenShard":
        """Read a shard; arguments and errors as for ``read_records``."""
        return cls._checked(path, read_table(path, kind), kind)

    @classmethod
    def read_trees(cls, path: Path, fields: Sequence[str]) -> "OpenShard":
        """Read some fields of a shard of trees, ``parents`` and ``depths`` among them; errors as for ``read_records``."""
        return cls._checked(path, read_columns(path, fields), TREES)

    @classmethod
    def _checked(cls, path: Path, table: pa.Table, kind: ShardKind[Any]) -> "OpenShard":
        if not _is_sound(table, kind):
            # This says what is wrong, and where.
            read_records(path, kind)
        return cls(path, table, kind)

    def __len__(self) -> int:
        return self._table.num_rows

    def records(self) -> list["StoredRecord"]:
        """Return the records in order."""
        return [StoredRecord(self, row) for row in range(len(self))]

    def column(self, name: str) -> pa.Array:
        """Return a column; of one that files of earlier releases lack, the values that records have without it."""
        if name in self._table.schema.names:
            return whole(self._table[name])
        return pa.array(self.values(name), type=self._kind.columns[name])

    def count_values(self, name: str) -> int:
        """Return how many values all lists of a column hold; the column need not have been read."""
        return count_values(self._path, name)

    def values(self, name: str) -> list[Any]:
        """Return a field of every record."""
        if name not in self._values:
            self._values[name] = self._made(name)
        return self._values[name]

    def _made(self, name: str) -> list[Any]:
        if name in self._table.schema.names:
            return python_values(self.column(name))
        if name == "provenance":
            rows = zip(*(self.values(each) for each in PROVENANCE_TYPES), strict=True)
            return [Provenance(**dict(zip(PROVENANCE_TYPES, row, strict=True))) for row in rows]
        field = {each.name: each for each in dataclasses.fields(self._kind.record)}.get(name)
        if field is None or (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING):
            raise AttributeError(name)
        if field.default_factory is not dataclasses.MISSING:
            return [field.default_factory() for _ in range(len(self))]
        return [field.default] * len(self)


class StoredRecord:
    """A record of a shard. It has the fields of its kind's class, and makes each of them when it is first asked for."""

    def __init__(self, shard: OpenShard, row: int) -> None:
        """Stand for a row of a shard."""
        self.shard, self.row = shard, row

    def __getattr__(self, name: str) -> Any:
        # Called only for what is not there yet.
        value = self.shard.values(name)[self.row]
        setattr(self, name, value)
        return value


def python_values(array: pa.Array) -> list[Any]:
    """Return what ``array.to_pylist()`` returns: numbers in lists several times as fast."""
    if array.null_count == 0 and pa.types.is_list(array.type):
        inner, ends = python_values(array.flatten()), np.cumsum(_sizes(array)).tolist()
        return [inner[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    if array.null_count == 0 and (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        return array.to_numpy(zero_copy_only=False).tolist()
    return array.to_pylist()


def inner_sizes(array: pa.ListArray) -> np.ndarray:
    """Return how many entries the inner lists of each row have together.

    Args:
        array: A list of lists in each row.
    """
    inner = np.concatenate([[0], np.cumsum(_sizes(array.flatten()))])
    ends = np.cumsum(_sizes(array))
    return inner[ends] - inner[np.concatenate([[0], ends[:-1]])] if len(ends) else np.zeros(0, dtype=np.int64)


def _sizes(array: pa.ListArray) -> np.ndarray:
    return array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


_SOMETIMES_EMPTY = ("given_ids", "given_texts", "qvalues", "actions")


def _is_sound(table: pa.Table, kind: ShardKind[Any]) -> bool:
    """Say whether rows are certainly complete, and trees; if not, ``read_records`` decides."""
    if incomplete_column(table, kind) is not None:
        return False
    if kind is not TREES or not table.num_rows:
        return True
    arrays = {name: whole(table[name]) for name in table.schema.names}
    sizes = _sizes(arrays["parents"])
    for name, array in arrays.items():
        if pa.types.is_list(array.type) and name != "prompt_ids":
            found = _sizes(array)
            fits = (found == sizes) | ((found == 0) if name in _SOMETIMES_EMPTY else False)
            if not fits.all():
                return False
    if "logps" in arrays and not np.array_equal(_sizes(arrays["logps"].flatten()), _sizes(arrays["token_ids"].flatten())):
        return False
    if "given_ids" in arrays and not np.array_equal(_sizes(arrays["given_ids"]), _sizes(arrays["given_texts"])):
        return False
    return _are_trees(sizes, *(arrays[name].flatten().to_numpy(zero_copy_only=False) for name in ("parents", "depths")))


def _are_trees(sizes: np.ndarray, parents: np.ndarray, depths: np.ndarray) -> bool:
    """Say whether every root comes first, and every parent before its children and one step nearer to the root."""
    if not sizes.all():
        return False
    starts = np.cumsum(sizes) - sizes
    first = np.repeat(starts, sizes)
    is_root = np.arange(len(parents)) == first
    if (parents[is_root] != -1).any() or (depths[is_root] != 0).any():
        return False
    places, above = np.arange(len(parents))[~is_root] - first[~is_root], parents[~is_root]
    if ((above < 0) | (above >= places)).any():
        return False
    return bool((depths[~is_root] == depths[first[~is_root] + above] + 1).all())
