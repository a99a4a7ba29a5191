"""Pairs whose rejected side always comes from the first policy."""

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
class AnchoredPairs:
    """Whole solutions: the best right ones of the round against the worst wrong ones of the first policy.

    The rejected solutions are wrong ones of the first policy in every round. Candidates are the right solutions of a problem times its
    wrong ones in ``sources.first_trees``, if they have values. In the first round both come from the round's trees.

    Dropped by reason: ``other prompt``, ``not among best and worst``, ``below margin``, ``same tokens``, ``over problem cap``.

    Source: Wang et al. 2025, "Temporal Self-Rewarding Language Models: Decoupling Chosen-Rejected via Past-Future", anchored rejection:
        rejected answers stay those of the initial model. We leave out their other half, answers of a model one step ahead.
    """

    type: Literal["anchored"] = "anchored"
    """Name of the rule."""
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
        right = _solutions_by_problem(records, right=True)
        wrong = _solutions_by_problem(sources.first_trees or records, right=False)
        offers: Offers = []
        considered = 0
        for problem, solutions in right.items():
            prompt = solutions[0].tree.record.prompt_ids
            others = [other for other in wrong.get(problem, []) if other.tree.record.prompt_ids == prompt]
            candidates, count = len(solutions) * len(wrong.get(problem, [])), len(solutions) * len(others)
            considered += candidates
            dropped["other prompt"] += candidates - count
            margins = solution_margins(solutions, others, few=self.best_and_worst)
            dropped["not among best and worst"] += count - len(margins)
            wide = wide_enough(margins, self.min_margin, dropped)
            offers += [solution_offer(chosen, rejected) for _, chosen, rejected in unlike(wide, dropped)]
        return capped(offers, considered, dropped, self.pairs_per_problem)


def _solutions_by_problem(records: Sequence[TreeRecord], *, right: bool) -> dict[str, list[Solution]]:
    found: dict[str, list[Solution]] = {}
    for tree in judge_trees(records):
        if solutions := find_solutions(tree, right=right, dropped=Counter()):
            found.setdefault(tree.record.problem_id, []).extend(solutions)
    return found
