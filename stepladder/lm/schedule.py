"""The order in which a training forwards its rows: a pure function of the rows' lengths, the settings and the seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepladder.types import derive_seed

GROUPED_UPDATES = 8
"""Number of updates whose rows are sorted by length together: enough to make padding rare, few enough to keep batches mixed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """The last rows of a training. A pass takes some of them: all come in turn, in random order, before any comes twice."""

    first: int
    """Index of the first of these rows."""
    per_pass: int
    """Rows that a pass takes, >= 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The rows of every forward pass."""

    micro_batches: list[list[int]]
    """Row indices of every forward pass, in order. Simultaneous passes of several processes stand together, in their order."""
    passes_per_update: int
    """Forward passes of a process per update; their gradients are summed."""
    num_processes: int = 1
    """Processes that share every update."""
    weightless: frozenset[int] = frozenset()
    """Numbers of the passes without weight: a process that would have no row forwards one of another's, since all must keep step."""

    @property
    def updates(self) -> int:
        """Optimiser updates."""
        return len(self.micro_batches) // (self.passes_per_update * self.num_processes)


def batch_schedule(
    lengths: Sequence[int],
    *,
    epochs: float,
    batch_size: int,
    seed: int,
    micro_batch_size: int | None = None,
    max_updates: int | None = None,
    num_updates: int | None = None,
    group_by_length: bool = True,
    groups: Sequence[Sequence[int]] | None = None,
    together: int | None = None,
    num_processes: int = 1,
    pool: Pool | None = None,
) -> Schedule:
    """Cut a stream of permutations of the rows into updates of equal size.

    - Every update has ``min(batch_size, rows)`` rows. With groups, an update that is one forward pass may have up to a quarter more or
      less, if that keeps groups whole.
    - An update may straddle two passes over the rows. A further pass fills up the last update.
    - With ``group_by_length``, windows of at most ``GROUPED_UPDATES`` updates are sorted by length and cut into updates, which are then
      shuffled. A window is at most one pass over the rows, so that none repeats a small data set.
    - The rows of an update do not depend on the number of processes.

    Args:
        lengths: Positions of each row; not empty.
        epochs: Passes over the rows, > 0.
        batch_size: Rows per update, >= 1.
        seed: Seed of the order.
        micro_batch_size: Rows per forward pass of a process, >= 1; None is the process's whole share of the update.
        max_updates: Cap on the updates, >= 1; None is no cap.
        num_updates: The updates themselves, >= 1, instead of ``epochs`` and ``max_updates``; None goes by these.
        group_by_length: Whether rows of similar length share an update.
        groups: A partition of the rows. The rows of a group follow one another and share an update if they fit. Replaces grouping by
            length.
        together: Rows of a group that follow one another at most, >= 1; a larger group comes in several runs at different places, cut at
            other rows in every pass. None keeps groups whole.
        num_processes: Processes that share every update, >= 1; each gets about the same number of rows.
        pool: The last rows, if a pass takes only some of them, other ones each time; their groups do not matter. None takes all rows in
            every pass.

    Returns:
        The schedule. Within an update the longest rows come first, so that a lack of memory shows at once. Groups keep their order.
    """
    num_rows = len(lengths) if pool is None else pool.first + pool.per_pass
    size = min(batch_size, num_rows)
    # A product like 0.1 * 30 may come out just above a whole number; that must not cost an update.
    updates = max(1, math.ceil(epochs * num_rows / size - 1e-9))
    updates = num_updates or min(updates, max_updates or updates)
    rng = np.random.default_rng(derive_seed(seed, "rows"))
    if pool is None:
        stream = _row_stream(num_rows, updates * size, groups=groups, together=together, rng=rng)
    else:
        stream = _pooled_stream(pool, len(lengths), updates * size, groups=groups, together=together, rng=rng)
    if group_by_length and groups is None:
        stream = _grouped(stream, np.asarray(lengths), size=size, window=max(1, min(GROUPED_UPDATES, num_rows // size)) * size, rng=rng)
    # From here on only positions in the stream are cut: the stream alone decides which rows come when, for any number of processes.
    owners = _owners(groups, stream) if groups is not None else None
    one_pass = (micro_batch_size or size) >= size
    cuts = np.arange(1, updates) * size
    # Moving a cut by at most size // 8 at either end changes an update by at most a quarter.
    if owners is not None and one_pass:
        cuts = _nearest_ends(owners, cuts, reach=size // 8)
    per_pass = size if one_pass else min(size, (micro_batch_size or size) * num_processes)
    shares: list[list[int]] = []
    for update in np.split(np.arange(len(stream)), cuts):
        ordered = update if groups else update[np.argsort(-np.asarray(lengths)[stream[update]], kind="stable")]
        # Only an update of one pass may be larger than ``size``.
        for start in range(0, size, per_pass):
            rows = ordered if one_pass else ordered[start : start + per_pass]
            shares += _shares(stream[rows], None if owners is None else owners[rows], num_processes)
    return Schedule(
        micro_batches=_keeping_step(shares, num_processes),
        passes_per_update=math.ceil(size / per_pass),
        num_processes=num_processes,
        weightless=_empty_shares(shares),
    )


def _row_stream(
    num_rows: int, length: int, *, groups: Sequence[Sequence[int]] | None, together: int | None, rng: np.random.Generator
) -> np.ndarray:
    """Return ``length`` row indices: permutations of all rows, one after another."""
    passes = math.ceil(length / num_rows)
    return np.concatenate([_permutation(num_rows, groups, together, rng) for _ in range(passes)])[:length]


def _pooled_stream(
    pool: Pool,
    num_rows: int,
    length: int,
    *,
    groups: Sequence[Sequence[int]] | None,
    together: int | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return ``length`` row indices: permutations of the rows before the pool and the next ones of the pool, one after another."""
    passes = math.ceil(length / (pool.first + pool.per_pass))
    size = num_rows - pool.first
    rounds = math.ceil(passes * pool.per_pass / size) if size else 0
    drawn = pool.first + np.concatenate([np.zeros(0, dtype=np.int64), *(rng.permutation(size) for _ in range(rounds))])
    kept = [[row] for row in range(pool.first)] if groups is None else [each for group in groups if (each := _before(group, pool.first))]
    stream = []
    for number in range(passes):
        fresh = [[int(row)] for row in drawn[number * pool.per_pass : (number + 1) * pool.per_pass]]
        stream.append(_permutation(pool.first + len(fresh), [*kept, *fresh], together, rng))
    return np.concatenate(stream)[:length]


def _before(group: Sequence[int], first: int) -> list[int]:
    return [row for row in group if row < first]


def _empty_shares(shares: list[list[int]]) -> frozenset[int]:
    """Return the numbers of the shares without rows."""
    return frozenset(number for number, share in enumerate(shares) if not share)


def _keeping_step(shares: list[list[int]], num_processes: int) -> list[list[int]]:
    """Return the shares with the first row of the same pass in place of every empty one.

    A process without rows forwards one without weight, because gradients are reduced by all processes together.
    """
    kept = []
    for start in range(0, len(shares), num_processes):
        same_pass = shares[start : start + num_processes]
        first = next(share for share in same_pass if share)[:1]
        kept += [share or first for share in same_pass]
    return kept


def _shares(rows: np.ndarray, owners: np.ndarray | None, num_processes: int) -> list[list[int]]:
    """Deal the rows of a pass to processes: in turn if they are in order of length, else in runs that end with a group if one is near."""
    if owners is None:
        shares = [rows[process::num_processes] for process in range(num_processes)]
    else:
        cuts = np.arange(1, num_processes) * len(rows) // num_processes
        shares = np.split(rows, _nearest_ends(owners, cuts, reach=len(rows) // (8 * num_processes)))
    return [share.tolist() for share in shares]


def _owners(groups: Sequence[Sequence[int]], stream: np.ndarray) -> np.ndarray:
    """Return the group of every row of the stream."""
    owner = np.empty(sum(len(group) for group in groups), dtype=np.int64)
    for number, group in enumerate(groups):
        owner[list(group)] = number
    return owner[stream]


def _permutation(num_rows: int, groups: Sequence[Sequence[int]] | None, together: int | None, rng: np.random.Generator) -> np.ndarray:
    """Return all rows in random order, or the groups in random order, each rotated by a random number of rows.

    The rotation cuts a group that does not fit an update, or is larger than ``together``, at other rows in every pass.
    """
    if groups is None:
        return rng.permutation(num_rows)
    if together is not None:
        rolled = [np.roll(group, rng.integers(len(group))) for group in groups]
        runs = [group[begin : begin + together] for group in rolled for begin in range(0, len(group), together)]
        return np.concatenate([runs[run] for run in rng.permutation(len(runs))])
    return np.concatenate([np.roll(groups[group], rng.integers(len(groups[group]))) for group in rng.permutation(len(groups))])


def _nearest_ends(owners: np.ndarray, cuts: np.ndarray, *, reach: int) -> np.ndarray:
    """Move every cut to the nearest place between two groups, if one is within reach."""
    # Infinite ends give every cut a neighbour on either side and are never within reach.
    ends = np.concatenate([[-np.inf], np.flatnonzero(np.diff(owners)) + 1, [np.inf]])
    after = np.searchsorted(ends, cuts)
    nearest = np.where(cuts - ends[after - 1] <= ends[after] - cuts, ends[after - 1], ends[after])
    return np.where(np.abs(nearest - cuts) <= reach, nearest, cuts).astype(np.int64)


def _grouped(stream: np.ndarray, lengths: np.ndarray, *, size: int, window: int, rng: np.random.Generator) -> np.ndarray:
    """Return the stream with each window sorted by length and its updates of ``size`` rows shuffled."""
    grouped = []
    # Whole updates are shuffled, not rows: an update keeps rows of similar length, and short updates do not always come first.
    for start in range(0, len(stream), window):
        rows = stream[start : start + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        grouped.append(rng.permutation(rows.reshape(-1, size), axis=0).ravel())
    return np.concatenate(grouped)
