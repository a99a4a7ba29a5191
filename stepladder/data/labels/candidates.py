"""Common parts of the rules that choose training rows: judged trees, whole solutions, distances between texts, caps per problem.

``pair_rules``, ``rstar_math.py``, ``graded.py`` and ``traces.py`` hold the rules. They read trees that are finished and graded;
nothing here is seen by a search.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from stepladder.data.labels.pair_weights import ranking_agreement
from stepladder.data.labels.selection import Selection
from stepladder.data.labels.values import Evidence, ValueTarget, gather_evidence, is_wrong, node_values
from stepladder.tree_paths import PathTokens, children_of, path_to, path_tokens
from stepladder.types import GradedRow, PreferencePair, Trace, TreeRecord

RowT = TypeVar("RowT", Trace, PreferencePair, GradedRow)


DECIMALS = 12
"""Differences and means of floats are rounded to so many decimals before they are compared: 0.7 - 0.5 must reach a margin of 0.2, and what
is equal but for the last bit must tie."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked(Generic[RowT]):
    """A row that competes with the others of its problem."""

    rank: tuple[float, ...]
    """Higher is better."""
    row: RowT
    """The row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedTree:
    """A tree with the facts known about its nodes; entry i of every list belongs to node i."""

    record: TreeRecord
    """The tree."""
    values: list[float | None]
    """Values, in [0, 1]; None without one."""
    evidence: Evidence
    """Graded leaves at and below each node."""
    children: list[list[int]]
    """Children of each node."""
    earlier_scores: Sequence[float | None] | None = None
    """Scores by the process reward model before the one that guided the search; None without one."""

    def comparable(self, node: int) -> bool:
        """Say whether a node's step can be set against another: it did not fail, and it has a value."""
        return self.values[node] is not None and bool(self.record.token_ids[node])

    def value(self, node: int) -> float:
        """Return the value of a node that has one."""
        value = self.values[node]
        assert value is not None, "nodes without a value were left out"
        return value

    def agreement(self, parent: int) -> float | None:
        """Return the agreement of both process reward models on the order of a node's children; None if unknown."""
        if self.earlier_scores is None:
            return None
        children = self.children[parent]
        return ranking_agreement([self.record.scores[node] for node in children], [self.earlier_scores[node] for node in children])


def judge_trees(
    records: Sequence[TreeRecord],
    *,
    critic_weight: float = 0.0,
    earlier_scores: Sequence[Sequence[float | None]] | None = None,
) -> list[JudgedTree]:
    """Return trees with their values and evidence.

    Args:
        records: Searched trees; ``valued_trees`` puts values of another definition in the place of the backed-up ones.
        critic_weight: Share of the step's score in its value, in [0, 1]. If the share is above 0, a step without a score has no value.
        earlier_scores: For each tree, scores of its nodes by an earlier process reward model.

    Raises:
        DataFormatError: If a tree breaks its own rules.
    """
    return [
        JudgedTree(
            record=record,
            values=_mixed(node_values(record, ValueTarget.TREE_VALUE), record.scores, critic_weight),
            evidence=gather_evidence(record),
            children=children_of(record),
            earlier_scores=None if earlier_scores is None else earlier_scores[index],
        )
        for index, record in enumerate(records)
    ]


def _mixed(values: list[float | None], scores: list[float | None], weight: float) -> list[float | None]:
    if not weight:
        return values
    return [
        None if value is None or score is None else (1 - weight) * value + weight * score
        for value, score in zip(values, scores, strict=True)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """A graded path from the root to a leaf."""

    tree: JudgedTree
    """Its tree."""
    path: list[int]
    """Its nodes below the root."""
    mean: float
    """Mean of the known values of its steps, in [0, 1]."""
    least: float
    """Smallest of them."""

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better: by mean value, then by smallest value."""
        return self.mean, self.least

    @property
    def tokens(self) -> PathTokens:
        """Its steps and the observations between them."""
        return path_tokens(self.tree.record, self.path)


def find_solutions(tree: JudgedTree, *, right: bool, dropped: Counter[str]) -> list[Solution]:
    """Return the right, or the wrong, solutions of a tree in the order of their leaves, and count unusable ones.

    A wrong solution whose last step has no tokens counts as ``failed step``. A solution without any value counts as ``no value``.
    """
    found = []
    for leaf, outcome in enumerate(tree.record.outcomes):
        if not (outcome == 1.0 if right else is_wrong(outcome)):
            continue
        path = path_to(tree.record, leaf)
        known = [value for node in path if (value := tree.values[node]) is not None]
        # A step that failed is graded wrong.
        if not right and not tree.record.token_ids[leaf]:
            dropped["failed step"] += 1
        elif known:
            found.append(Solution(tree=tree, path=path, mean=round(sum(known) / len(known), DECIMALS), least=min(known)))
        else:
            dropped["no value"] += 1
    return found


def best_per_problem(candidates: list[Ranked[RowT]], cap: int) -> list[RowT]:
    """Keep the ``cap`` highest-ranked candidates of each problem, ties to the earlier one, in the original order."""
    by_problem: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        by_problem.setdefault(candidate.row.problem_id, []).append(index)
    # Sorting is stable in reverse as well, so equal ranks stay in order.
    kept = [index for group in by_problem.values() for index in sorted(group, key=lambda index: candidates[index].rank, reverse=True)[:cap]]
    return [candidates[index].row for index in sorted(kept)]


def edit_distance(first: Sequence[object], second: Sequence[object], *, limit: int | None = None) -> int:
    """Return the fewest insertions, deletions and replacements that turn one sequence into another.

    Args:
        first: Characters or token ids.
        second: The same.
        limit: Stop at this distance. A larger distance is returned as ``limit``.

    Source: Levenshtein 1966, "Binary codes capable of correcting deletions, insertions, and reversals".
    """
    bound = len(first) + len(second) if limit is None else limit
    if abs(len(first) - len(second)) >= bound:
        return bound
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, 1):
            cheapest = diagonal if left == right else 1 + min(diagonal, row[j], row[j - 1])
            diagonal, row[j] = row[j], cheapest
        # Every way to the end passes through this row, and costs never fall on it.
        if min(row) >= bound:
            return bound
    return min(row[-1], bound)


def distinct_rows(candidates: Iterable[Ranked[RowT]]) -> list[Ranked[RowT]]:
    """Keep the best-ranked one of each problem's candidates with the same prompt and completion, in the original order."""
    candidates = list(candidates)
    best: dict[tuple[str, tuple[int, ...], tuple[int, ...]], int] = {}
    for index, candidate in enumerate(candidates):
        row = candidate.row
        completion = row.chosen_ids if isinstance(row, PreferencePair) else row.completion_ids
        key = (row.problem_id, tuple(row.prompt_ids), tuple(completion))
        if key not in best or candidate.rank > candidates[best[key]].rank:
            best[key] = index
    return [candidates[index] for index in sorted(best.values())]


def best_of_sides(sides: Iterable[list[Ranked[RowT]]], considered: int, dropped: Counter[str], cap: int) -> Selection[RowT]:
    """Return the best distinct rows of each side, one side after the other. The cap is per problem and side."""
    rows: list[RowT] = []
    for candidates in sides:
        distinct = distinct_rows(candidates)
        kept = best_per_problem(distinct, cap)
        dropped["same tokens"] += len(candidates) - len(distinct)
        dropped["over problem cap"] += len(distinct) - len(kept)
        rows += kept
    return Selection(rows=rows, considered=considered, dropped_by_reason=dict(+dropped))
