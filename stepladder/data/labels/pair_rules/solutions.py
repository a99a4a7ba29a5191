"""Pairs of whole solutions of the same trees."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stepladder.data.labels.candidates import Solution, find_solutions, judge_trees
from stepladder.data.labels.pairing import NO_SOURCES, Offers, PairSources, capped, solution_margins, solution_offer, unlike, wide_enough
from stepladder.data.labels.selection import Selection
from stepladder.settings import Count, Share, check_bounds
from stepladder.types import PreferencePair, TreeRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class SolutionPairs:
    """Whole solutions of a problem: the best against the worst.

    By ``outcome``, right solutions are paired with wrong ones. By ``value``, the solutions of highest mean value are paired with those of
    lowest, whatever their outcomes: with ``labels.value = "score"`` the PRM alone prefers. Candidates are all such pairs of a tree whose
    solutions have values.

    Dropped by reason: ``not among best and worst``, ``below margin``, ``same tokens``, ``over problem cap``.

    Source: By outcome: Pang et al. 2024, "Iterative Reasoning Preference Optimization". By value: Yuan et al. 2024, "Self-Rewarding
        Language Models", whose judge is the policy itself.
    """

    type: Literal["solutions"] = "solutions"
    """Name of the rule."""
    by: Literal["outcome", "value"] = "outcome"
    """``outcome`` or ``value``."""
    min_margin: Share = 0.0
    """Smallest difference of the mean values of two solutions, in [0, 1]; it must also be above zero."""
    pairs_per_problem: Count = 8
    """Most pairs of one problem, >= 1; larger margins go first."""
    best_and_worst: Count = 2
    """Solutions of each side that may take part, >= 1."""

    def __post_init__(self) -> None:
        check_bounds(self, where="labels.pairs")

    def select(self, records: Sequence[TreeRecord], sources: PairSources = NO_SOURCES) -> Selection[PreferencePair]:
        """Return the pairs of some trees with outcomes."""
        dropped: Counter[str] = Counter()
        offers: Offers = []
        considered = 0
        for tree in judge_trees(records):
            right, wrong = (find_solutions(tree, right=side, dropped=Counter()) for side in (True, False))
            better, worse = (right, wrong) if self.by == "outcome" else (right + wrong, right + wrong)
            count = len(better) * len(worse) if self.by == "outcome" else len(better) * (len(better) - 1) // 2
            margins = _distinct(solution_margins(better, worse, few=self.best_and_worst))
            considered += count
            dropped["not among best and worst"] += count - len(margins)
            wide = wide_enough(margins, self.min_margin, dropped)
            offers += [solution_offer(chosen, rejected) for _, chosen, rejected in unlike(wide, dropped)]
        return capped(offers, considered, dropped, self.pairs_per_problem)


def _distinct(margins: list[tuple[float, Solution, Solution]]) -> list[tuple[float, Solution, Solution]]:
    """Leave out pairs of a solution with itself, and every pair that is there the other way round with a larger margin."""
    found: dict[frozenset[int], tuple[float, Solution, Solution]] = {}
    for pair in margins:
        ends = frozenset(side.path[-1] for side in pair[1:])
        if len(ends) == 2 and (ends not in found or found[ends][0] < pair[0]):
            found[ends] = pair
    return list(found.values())
