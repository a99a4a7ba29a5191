"""Rules that choose single good and bad continuations, from which the policy learns without pairs.

A rule is a frozen dataclass like those of ``pair_rules``; to add one, write it here and add it to ``GradedRule``.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stepladder.data.labels.candidates import DECIMALS, JudgedTree, Ranked, Solution, best_of_sides, find_solutions, judge_trees
from stepladder.data.labels.selection import Selection
from stepladder.settings import Count, Share, check_bounds
from stepladder.tree_paths import ids_along, join_prompt, path_to, text_along
from stepladder.types import GradedRow, TreeRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class GradedSteps:
    """Steps that changed the chance of a right end.

    A step is good if its value exceeds its parent's by the margin and a right leaf is below it. It is bad if its value is lower by the
    margin and a wrong leaf is below it. Candidates are all steps. The cap applies to good and bad steps separately; larger changes go
    first.

    Dropped by reason: ``failed step``, ``no value``, ``below margin``, ``no evidence``, ``same tokens``, ``over problem cap``.

    Source: the progress of a step in Setlur et al. 2024, "Rewarding progress"; the rows are what Ethayarajh et al. 2024, "KTO", learns
        from.
    """

    type: Literal["steps"] = "steps"
    """Name of the rule."""
    min_margin: Share = 0.2
    """Smallest change of value, in [0, 1]; it must also be above zero."""
    per_problem: Count = 8
    """Good steps, and bad steps, of one problem, >= 1."""

    def __post_init__(self) -> None:
        check_bounds(self, where="labels.graded")

    def select(self, records: Sequence[TreeRecord]) -> Selection[GradedRow]:
        """Return the graded steps of some trees with outcomes."""
        dropped: Counter[str] = Counter()
        considered = 0
        sides: dict[bool, list[Ranked[GradedRow]]] = {True: [], False: []}
        for tree in judge_trees(records):
            for node in range(1, len(tree.record.parents)):
                considered += 1
                if reason := self._unusable(tree, node):
                    dropped[reason] += 1
                else:
                    change = _change(tree, node)
                    sides[change > 0].append(Ranked(rank=(abs(change),), row=_graded_step(tree, node, good=change > 0)))
        return best_of_sides(sides.values(), considered, dropped, self.per_problem)

    def _unusable(self, tree: JudgedTree, node: int) -> str | None:
        """Return the reason for which a step is not graded; None if it is graded."""
        if not tree.record.token_ids[node]:
            return "failed step"
        if tree.values[node] is None or tree.values[tree.record.parents[node]] is None:
            return "no value"
        change = _change(tree, node)
        if not change or abs(change) < self.min_margin:
            return "below margin"
        evidence = tree.evidence.right if change > 0 else tree.evidence.wrong
        return None if evidence[node] else "no evidence"


@dataclass(frozen=True, kw_only=True, slots=True)
class GradedSolutions:
    """Right and wrong solutions of problems with at least one right solution, each with the share of right solutions.

    Candidates are all graded leaves. The cap applies to right and wrong solutions separately. Higher mean values go first: the best right
    solutions, and the wrong ones that the search took for right.

    Dropped by reason: ``no right solution``, ``failed step``, ``no value``, ``same tokens``, ``over problem cap``.

    Source: Lyu et al. 2025, "Exploring the Limit of Outcome Reward for Learning Mathematical Reasoning" (OREAL), sections 2.2, 2.3: right
        samples, and wrong ones with the share p of right ones; a problem is sampled until it has a right one.
    """

    type: Literal["solutions"] = "solutions"
    """Name of the rule."""
    per_problem: Count = 2
    """Right solutions, and wrong solutions, of one problem, >= 1."""

    def __post_init__(self) -> None:
        check_bounds(self, where="labels.graded")

    def select(self, records: Sequence[TreeRecord]) -> Selection[GradedRow]:
        """Return the graded solutions of some trees with outcomes."""
        dropped: Counter[str] = Counter()
        outcomes: dict[str, list[float]] = {}
        for record in records:
            outcomes.setdefault(record.problem_id, []).extend(outcome for outcome in record.outcomes if outcome is not None)
        considered = sum(map(len, outcomes.values()))
        sides: dict[bool, list[Ranked[GradedRow]]] = {True: [], False: []}
        for tree in judge_trees(records):
            graded = outcomes[tree.record.problem_id]
            if 1.0 not in graded:
                dropped["no right solution"] += sum(outcome is not None for outcome in tree.record.outcomes)
                continue
            for good, side in sides.items():
                for solution in find_solutions(tree, right=good, dropped=dropped):
                    row = _graded_solution(solution, good=good, share=sum(graded) / len(graded))
                    side.append(Ranked(rank=solution.rank, row=row))
        return best_of_sides(sides.values(), considered, dropped, self.per_problem)


GradedRule = GradedSteps | GradedSolutions
"""Any rule."""


def _change(tree: JudgedTree, node: int) -> float:
    """Return the change of the value by a step; both nodes have a value."""
    return round(tree.value(node) - tree.value(tree.record.parents[node]), DECIMALS)


def _graded_step(tree: JudgedTree, node: int, *, good: bool) -> GradedRow:
    record = tree.record
    shared = path_to(record, record.parents[node])
    return GradedRow(
        problem_id=record.problem_id,
        prompt_ids=[*record.prompt_ids, *ids_along(record, shared)],
        completion_ids=record.token_ids[node],
        good=good,
        value=tree.value(node),
        prompt_value=tree.value(record.parents[node]),
        prompt=join_prompt(record.question, [text_along(record, shared)]),
        completion=record.texts[node],
        logps=record.logps[node],
        provenance=record.provenance,
    )


def _graded_solution(solution: Solution, *, good: bool, share: float) -> GradedRow:
    record, tokens = solution.tree.record, solution.tokens
    return GradedRow(
        problem_id=record.problem_id,
        prompt_ids=record.prompt_ids,
        completion_ids=tokens.ids,
        good=good,
        value=solution.mean,
        prompt_value=share,
        prompt=join_prompt(record.question, []),
        completion=tokens.text,
        logps=tokens.logps,
        provenance=record.provenance,
        completion_given=tokens.given,
    )
