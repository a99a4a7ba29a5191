"""Rows of PRM training: paths with targets at some of their tokens, and groups of compared paths.

Rows are made from the policy's own tokens here, and from written solutions in ``text_training.py``. The same two collators lay them out,
one sequence below the other or merged into trees.

Axes: B groups, G members of the largest group, M targets.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stepladder.errors import DataFormatError
from stepladder.lm.packing import PackedRow, lay_out
from stepladder.lm.training import Batch
from stepladder.lm.training_rows import check_ids, pad
from stepladder.lm.tree_attention import tree_inputs
from stepladder.types import PreferencePair, ValueRow

NO_TARGET = float("nan")

Supervise = Literal["step-end", "every-token"]
"""Tokens of a step that learn its target: the last one, at which scores are read, or all of them (Cobbe et al. 2021, section 4.2)."""
Compare = Literal["siblings", "problem"]
"""Members of a group: steps after the same beginning, or everything with a target in one problem."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetRow:
    """A path of tokens with targets at some of them."""

    ids: list[int]
    """Prompt and steps, up to the last step with a target."""
    positions: list[int]
    """Indices into ``ids`` of the tokens that learn a target, ascending; not empty."""
    targets: list[float]
    """Their targets, in [0, 1]."""
    group: str = ""
    """Problem of the row."""

    @property
    def sequences(self) -> tuple[list[int], ...]:
        """What is forwarded."""
        return (self.ids,)

    @property
    def length(self) -> int:
        """Positions forwarded."""
        return len(self.ids)

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded."""
        return len(self.ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRow:
    """Paths that are compared by their outputs at the last token."""

    paths: list[list[int]]
    """Tokens of every path; not empty."""
    targets: list[float]
    """Target of every member, in [0, 1]."""
    pairs: list[tuple[int, int]] | None = None
    """Compared (better, worse) members; None compares all members with different targets."""
    group: str = ""
    """Problem of the row."""

    @property
    def sequences(self) -> tuple[list[int], ...]:
        """What is forwarded."""
        return tuple(self.paths)

    @property
    def length(self) -> int:
        """Positions of the longest path."""
        return max(map(len, self.paths))

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded."""
        return sum(map(len, self.paths))


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One path of a group that is being gathered."""

    label: float
    """Its target, in [0, 1]."""
    path: Callable[[], list[int] | None]
    """Returns its tokens up to its read token; None if there is nothing to read."""


Groups = dict[Hashable, dict[Hashable, Member]]
"""Groups by key; each maps the keys of its members to the members."""


def target_rows(
    rows: Sequence[ValueRow], *, vocabulary: int, dropped: dict[str, int], supervise: Supervise = "step-end", lag: int = 0
) -> list[TargetRow]:
    """Return one row per path that has a target; the others are counted in ``dropped``.

    Args:
        rows: The paths.
        vocabulary: Ids that the model knows.
        dropped: Counts by reason, added to.
        supervise: Tokens of a step that learn its target.
        lag: Tokens before these at which the model is read instead, 0 or 1.

    Raises:
        DataFormatError: If a prompt is empty, steps and targets differ in number, a step with a target has no tokens, a target is outside
            [0, 1], or an id is outside the vocabulary.
    """
    kept = []
    for i, row in enumerate(rows):
        ids, ranges = _checked(row, f"value row {i} (problem {row.problem_id!r})", vocabulary)
        scored = [
            (position, target)
            for (begin, end), target in zip(ranges, row.targets, strict=True)
            if target is not None
            for position in range((begin if supervise == "every-token" else end - 1) - lag, end - lag)
        ]
        if not scored:
            count_dropped(dropped, "no target", 1)
            continue
        positions, targets = zip(*scored, strict=True)
        kept.append(TargetRow(ids=ids[: positions[-1] + 1], positions=list(positions), targets=list(targets), group=row.problem_id))
    return kept


def group_rows(
    rows: Sequence[ValueRow], *, vocabulary: int, dropped: dict[str, int], compare: Compare = "siblings", lag: int = 0
) -> list[GroupRow]:
    """Return one row per beginning (or per problem) with targets that differ; what is left out is counted in ``dropped``.

    Args:
        rows: The paths.
        vocabulary: Ids that the model knows.
        dropped: Counts by reason, added to.
        compare: Members of a group.
        lag: Tokens before the end of a step at which the model is read, 0 or 1.

    Raises:
        DataFormatError: As for ``target_rows``, or if nothing can be compared.
    """
    groups: Groups = {}
    for i, row in enumerate(rows):
        ids, ranges = _checked(row, f"value row {i} (problem {row.problem_id!r})", vocabulary)
        for (begin, end), target in zip(ranges, row.targets, strict=True):
            if target is not None:
                key = (row.problem_id, tuple(ids[:begin])) if compare == "siblings" else (row.problem_id, ())
                add_member(groups, key, tuple(ids[:end]), Member(label=target, path=lambda ids=ids, end=end: ids[: end - lag]), dropped)
    return finish_groups(groups, dropped, what="value rows", problem_of=lambda key: key[0])


def pair_rows(pairs: Sequence[PreferencePair], *, vocabulary: int, dropped: dict[str, int], lag: int = 0) -> list[GroupRow]:
    """Return one row per node with the steps of its pairs. Only those pairs are compared. ``lag`` is that of ``group_rows``.

    Raises:
        DataFormatError: If a prompt or a step is empty, a value is outside [0, 1], or an id is outside the vocabulary.
    """
    nodes: dict[tuple[str, tuple[int, ...]], tuple[dict[tuple[int, ...], float], set[tuple[int, int]]]] = {}
    for i, pair in enumerate(pairs):
        place = f"pair {i} (problem {pair.problem_id!r})"
        members, compared = nodes.setdefault((pair.problem_id, tuple(pair.prompt_ids)), ({}, set()))
        for ids, value in ((pair.chosen_ids, pair.chosen_value), (pair.rejected_ids, pair.rejected_value)):
            if not pair.prompt_ids or not ids or not 0.0 <= value <= 1.0:
                raise DataFormatError(f"{place}: prompt and steps must have tokens and values in [0, 1]: got {value!r} -- drop the row")
            check_ids([*pair.prompt_ids, *ids], vocabulary=vocabulary, place=place)
            members.setdefault(tuple(ids), value)
        numbers = {member: number for number, member in enumerate(members)}
        found = (numbers[tuple(pair.chosen_ids)], numbers[tuple(pair.rejected_ids)])
        count_dropped(dropped, "repeated pair", found in compared)
        compared.add(found)
    return [
        GroupRow(
            paths=[[*prefix, *ids][: len(prefix) + len(ids) - lag] for ids in members],
            targets=list(members.values()),
            pairs=sorted(compared),
            group=problem,
        )
        for (problem, prefix), (members, compared) in nodes.items()
    ]


def add_member(groups: Groups, key: Hashable, member_key: Hashable, member: Member, dropped: dict[str, int]) -> None:
    """Put a member into its group; one that is there already is counted instead."""
    members = groups.setdefault(key, {})
    if (known := members.get(member_key)) is None:
        members[member_key] = member
    else:
        count_dropped(dropped, "repeated step" if known.label == member.label else "repeated step with another label", 1)


def finish_groups(groups: Groups, dropped: dict[str, int], *, what: str, problem_of: Callable[..., str]) -> list[GroupRow]:
    """Return a row for every group whose readable members have different labels; the others are counted in ``dropped``.

    Raises:
        DataFormatError: If no group is left.
    """
    rows = []
    for key, members in groups.items():
        if len({member.label for member in members.values()}) < 2:
            count_dropped(dropped, "beginning without steps to compare", 1)
            continue
        paths = [(path, member.label) for member in members.values() if (path := member.path()) is not None]
        count_dropped(dropped, "label on a step without tokens", len(members) - len(paths))
        if len({label for _, label in paths}) < 2:
            count_dropped(dropped, "beginning without steps to compare", 1)
            continue
        rows.append(GroupRow(paths=[path for path, _ in paths], targets=[label for _, label in paths], group=problem_of(key)))
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise DataFormatError(
            f"{what}: a comparing loss needs different labels after the same beginning: got none ({reasons}) -- use alternatives of steps, "
            "a tree of solutions, or the loss 'bce'"
        )
    return rows


def count_dropped(dropped: dict[str, int], reason: str, count: int) -> None:
    """Add to a count of dropped rows, unless it is 0."""
    if count:
        dropped[reason] = dropped.get(reason, 0) + count


def collate_values(rows: Sequence[TargetRow]) -> Batch:
    """Lay out one row per path.

    Returns:
        ``inputs``: the model's arguments. ``targets``, float32 ``[B, T]``: the target of each token that learns one, NaN elsewhere.
    """
    input_ids = pad([row.ids for row in rows], value=0)
    targets = torch.full(input_ids.shape, NO_TARGET)
    for i, row in enumerate(rows):
        targets[i, row.positions] = torch.tensor(row.targets)
    return {"inputs": {"input_ids": input_ids}, "targets": targets}


def collate_packed_values(trees: Sequence[PackedRow[TargetRow]], *, width: int = 0) -> Batch:
    """Lay out trees of paths.

    Returns:
        ``inputs``: arguments of ``run_rows``. ``targets``, float32 ``[M]``: every target. ``sources``, ``[M]``: the token that learns it,
        as an index into the tokens of all rows; equal tokens after equal tokens are one, which then learns several targets.
    """
    layout = lay_out([tree.tree for tree in trees], width=width)
    sources, targets = [], []
    for tree, offset in zip(trees, layout.offsets, strict=True):
        for row, path in zip(tree.rows, tree.tree.paths, strict=True):
            sources.append(path[row.positions] + offset)
            targets += row.targets
    return {"inputs": tree_inputs(layout), "targets": torch.tensor(targets), "sources": torch.from_numpy(np.concatenate(sources))}


def collate_groups(rows: Sequence[GroupRow]) -> Batch:
    """Lay out the members of all groups, one row per member.

    Returns:
        ``inputs``: the model's arguments. ``sources`` [B, G]: the last token of every member, as an index into the tokens of all
        sequences. ``targets`` [B, G], float32: NaN if a group has no such member. ``pairs`` [B, G, G]: whether the first is better than
        the second and compared with it.
    """
    input_ids = pad([path for row in rows for path in row.paths], value=0)
    starts = accumulate((len(row.paths) for row in rows), initial=0)
    ends = [
        [(start + i) * input_ids.shape[1] + len(path) - 1 for i, path in enumerate(row.paths)]
        for row, start in zip(rows, starts, strict=False)
    ]
    return {"inputs": {"input_ids": input_ids}, **_group_tensors(rows, ends)}


def collate_packed_groups(trees: Sequence[PackedRow[GroupRow]], *, width: int = 0) -> Batch:
    """Lay out trees of groups. The batch has the parts of ``collate_groups``, for the arguments of ``run_rows``."""
    layout = lay_out([tree.tree for tree in trees], width=width)
    rows, ends = [], []
    for tree, offset in zip(trees, layout.offsets, strict=True):
        paths = iter(tree.tree.paths)
        for row in tree.rows:
            rows.append(row)
            ends.append([int(next(paths)[-1]) + offset for _ in row.paths])
    return {"inputs": tree_inputs(layout), **_group_tensors(rows, ends)}


def _group_tensors(rows: Sequence[GroupRow], ends: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    width = max(len(row.paths) for row in rows)
    sources, targets = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), NO_TARGET)
    pairs = torch.zeros(len(rows), width, width, dtype=torch.bool)
    for i, row in enumerate(rows):
        count = len(row.paths)
        sources[i, :count], targets[i, :count] = torch.tensor(ends[i]), torch.tensor(row.targets)
        if row.pairs is None:
            # NaN is greater than nothing, so absent members are in no pair.
            pairs[i] = targets[i][:, None] > targets[i][None]
        else:
            pairs[i, [better for better, _ in row.pairs], [worse for _, worse in row.pairs]] = True
    return {"sources": sources, "targets": targets, "pairs": pairs}


def _checked(row: ValueRow, place: str, vocabulary: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the tokens of a path, and the range of each step."""
    _check(row, place)
    ids = [*row.prompt_ids, *solution_of_path(row)[0]]
    check_ids(ids, vocabulary=vocabulary, place=place)
    return ids, step_ranges(row)


def solution_of_path(row: ValueRow) -> tuple[list[int], list[bool]]:
    """Return the tokens after a path's prompt, and whether each was given; the second list is empty without observations."""
    if not row.given_ids:
        return [token for step in row.step_ids for token in step], []
    parts = [part for step, observed in zip(row.step_ids, row.given_ids, strict=True) for part in ((step, False), (observed, True))]
    return [token for ids, _ in parts for token in ids], [is_given for ids, is_given in parts for _ in ids]


def step_ranges(row: ValueRow) -> list[tuple[int, int]]:
    """Return where each step begins and ends among the tokens of a path, its prompt included. Observations lie between them."""
    ranges, at = [], len(row.prompt_ids)
    for step, observed in zip(row.step_ids, row.given_ids or [[]] * len(row.step_ids), strict=True):
        ranges.append((at, at + len(step)))
        at += len(step) + len(observed)
    return ranges


def _check(row: ValueRow, place: str) -> None:
    if not row.prompt_ids:
        raise DataFormatError(f"{place}: the prompt must have at least one token: got none -- drop the row")
    if len(row.step_ids) != len(row.targets):
        raise DataFormatError(f"{place}: every step needs a target or None: got {len(row.step_ids)} steps and {len(row.targets)} targets")
    if row.given_ids and len(row.given_ids) != len(row.step_ids):
        raise DataFormatError(
            f"{place}: every step needs an observation, or an empty one: got {len(row.step_ids)} steps and {len(row.given_ids)} "
            "observations -- correct the row"
        )
    for number, (step, target) in enumerate(zip(row.step_ids, row.targets, strict=True), start=1):
        if target is None:
            continue
        if not step:
            raise DataFormatError(f"{place}: step {number} must have tokens where it has a target: got none -- set its target to None")
        if not 0.0 <= target <= 1.0:
            raise DataFormatError(f"{place}: the target of step {number} must be in [0, 1]: got {target!r}")


def check_path_ids(rows: Iterable[TargetRow | GroupRow], *, vocabulary: int, what: str) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        DataFormatError: If an id is outside [0, vocabulary).
    """
    for number, row in enumerate(rows):
        for path in row.sequences:
            check_ids(path, vocabulary=vocabulary, place=f"{what} {number}")
