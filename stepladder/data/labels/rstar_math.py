"""rStar-Math's pairs, by one choice of candidates: rows of the policy (``RStarPairs``) and of its preference model (``StepPairs``).

Both compare the steps of a node that have a right leaf below them with those that have a wrong one, best with worst by value. Both require
that the better step has the better continuation. They differ where the released code of the paper does.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import attrgetter
from typing import Literal

from stepladder.data.labels.candidates import DECIMALS, JudgedTree, Ranked, Solution, edit_distance, find_solutions, judge_trees
from stepladder.data.labels.pairing import (
    NO_SOURCES,
    Offers,
    PairSources,
    among_extremes,
    capped,
    comparable_margins,
    comparable_nodes,
    evidence_pairs,
    extremes,
    solution_margins,
    solution_offer,
    step_offer,
    wide_enough,
)
from stepladder.data.labels.selection import Selection
from stepladder.settings import Count, Natural, Share, check_bounds
from stepladder.tree_paths import path_to
from stepladder.types import PreferencePair, StopReason, TreeRecord

_FEW, _MANY = 2, 4
"""Members of a side; the larger number if the other side has only one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RStarPairs:
    """Best 2 steps against worst 2, with a margin, a better continuation and texts that differ; ends are paired as whole solutions.

    Candidates are all ordered pairs of children of one node in which the first has a right leaf at or below it and the second a wrong one.
    The best two of the first are set against the worst two of the second, four where the other side has one child. A pair is kept if its
    margin is large enough and above zero, and their texts differ enough. Also, the best right solution through the chosen step must have a
    higher mean value than the worst wrong one through the rejected step. Steps that end a solution are not paired. Instead the two right
    solutions of a tree with the highest mean values are paired with the two wrong ones with the lowest, as whole solutions. Solutions
    without a value are left out.

    Dropped by reason: ``final step``, ``failed step``, ``no value``, ``same tokens``, ``not among best and worst``, ``below margin``,
    ``no better continuation``, ``too alike``, ``over problem cap``.

    Source: Guan et al. 2025, "rStar-Math", section 3.3, and its released code, whose margin of 0.5 is of values in [-1, 1].
    """

    type: Literal["rstar-math"] = "rstar-math"
    """Name of the rule."""
    min_margin: Share = 0.25
    """Smallest difference of values, for whole solutions of mean values, in [0, 1]; it must also be above zero."""
    min_edit_distance: Natural = 20
    """Fewest characters in which the two texts must differ, >= 0."""
    pairs_per_problem: Count = 8
    """Most pairs of one problem, >= 1; larger margins go first. The paper has no cap."""

    def __post_init__(self) -> None:
        check_bounds(self, where="labels.pairs")

    def select(self, records: Sequence[TreeRecord], sources: PairSources = NO_SOURCES) -> Selection[PreferencePair]:
        """Return the pairs of some trees with outcomes."""
        dropped: Counter[str] = Counter()
        offers: Offers = []
        considered = 0
        for tree in judge_trees(records, earlier_scores=sources.earlier_scores):
            right, wrong = (find_solutions(tree, right=side, dropped=Counter()) for side in (True, False))
            best, worst = _whole_continuations(right, wrong)
            for children in tree.children:
                pairs = evidence_pairs(tree, children, rejected_must_fail=False)
                considered += len(pairs)
                offers += self._step_offers(tree, pairs, best, worst, dropped)
            considered += len(right) * len(wrong)
            offers += self._solution_offers(right, wrong, dropped)
        return capped(offers, considered, dropped, self.pairs_per_problem)

    def _step_offers(
        self, tree: JudgedTree, pairs: list[tuple[int, int]], best: dict[int, float], worst: dict[int, float], dropped: Counter[str]
    ) -> Offers:
        inner = [pair for pair in pairs if not any(_is_final(tree, node) for node in pair)]
        dropped["final step"] += len(pairs) - len(inner)
        high, low = _few_or_many(tree, (first for first, _ in inner), (second for _, second in inner))
        margins = among_extremes(comparable_margins(tree, inner, dropped), high, low, dropped)
        wide = wide_enough(margins, self.min_margin, dropped)
        better = [pair for pair in wide if best.get(pair[1], -math.inf) > worst.get(pair[2], math.inf)]
        dropped["no better continuation"] += len(wide) - len(better)
        texts = tree.record.texts
        apart = [pair for pair in better if self._differ(texts[pair[1]], texts[pair[2]])]
        dropped["too alike"] += len(better) - len(apart)
        return [step_offer(tree, *pair) for pair in apart]

    def _solution_offers(self, right: list[Solution], wrong: list[Solution], dropped: Counter[str]) -> Offers:
        margins = solution_margins(right, wrong, few=_FEW)
        dropped["not among best and worst"] += len(right) * len(wrong) - len(margins)
        wide = wide_enough(margins, self.min_margin, dropped)
        apart = [(chosen, rejected) for _, chosen, rejected in wide if self._differ(chosen.tokens.text, rejected.tokens.text)]
        dropped["too alike"] += len(wide) - len(apart)
        return [solution_offer(chosen, rejected) for chosen, rejected in apart]

    def _differ(self, first: str, second: str) -> bool:
        return edit_distance(first, second, limit=self.min_edit_distance) >= self.min_edit_distance


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPairs:
    """The pairs of rStar-Math's process preference model.

    At every node, the steps with a right leaf below (the two with the highest values) are paired with those with a wrong leaf below (the
    two with the lowest values; four if the other side has only one). A pair counts if its margin is wide enough and the best right solution
    through the one has a higher mean value, from the step on, than the worst wrong one through the other. Steps that end a solution are not
    compared with their siblings. Whole solutions are: the two right ones of highest mean value against the two wrong ones of lowest.

    Dropped by reason: ``below margin``, ``weaker continuation``, ``same tokens``.

    Source: Guan et al. 2025, "rStar-Math", section 3.3 and appendix A. Their values lie in [-1, 1] and the margin is 0.5. We leave out the
        filter by edit distance: equal samples are one node already. ``RStarPairs``, for the policy, has that filter and compares
        continuations by the means of whole solutions.
    """

    type: Literal["step-pairs"] = "step-pairs"
    """Name of the target."""
    min_margin: Share = 0.25
    """Smallest difference of values, for whole solutions of mean values, in [0, 1]; it must also be above zero."""

    def __post_init__(self) -> None:
        check_bounds(self, where="prm.target")

    def select(self, records: Sequence[TreeRecord]) -> Selection[PreferencePair]:
        """Return the pairs of some trees with outcomes."""
        rows: list[PreferencePair] = []
        dropped: Counter[str] = Counter()
        for tree in judge_trees(records):
            best, worst = _later_continuations(tree)
            for children in tree.children:
                rows += self._of_steps(tree, [child for child in children if tree.children[child]], best, worst, dropped)
            rows += self._of_solutions(tree, dropped)
        return Selection(rows=rows, considered=len(rows) + sum(dropped.values()), dropped_by_reason=dict(+dropped))

    def _of_steps(
        self, tree: JudgedTree, children: list[int], best: dict[int, float], worst: dict[int, float], dropped: Counter[str]
    ) -> list[PreferencePair]:
        right, wrong = tree.evidence.right, tree.evidence.wrong
        high, low = _few_or_many(tree, (child for child in children if right[child]), (child for child in children if wrong[child]))
        margins = [
            (round(tree.value(chosen) - tree.value(rejected), DECIMALS), chosen, rejected)
            for chosen, rejected in product(high, low)
            if chosen != rejected
        ]
        wide = wide_enough(margins, self.min_margin, dropped)
        better = [pair for pair in wide if best.get(pair[1], -math.inf) > worst.get(pair[2], math.inf)]
        dropped["weaker continuation"] += len(wide) - len(better)
        return [_bare(step_offer(tree, *pair)) for pair in better]

    def _of_solutions(self, tree: JudgedTree, dropped: Counter[str]) -> list[PreferencePair]:
        right, wrong = (_with_tokens(find_solutions(tree, right=side, dropped=Counter())) for side in (True, False))
        margins = solution_margins(right, wrong, few=_FEW, rank=attrgetter("mean"))
        rows = [_bare(solution_offer(chosen, rejected)) for _, chosen, rejected in wide_enough(margins, self.min_margin, dropped)]
        different = [row for row in rows if row.chosen_ids != row.rejected_ids]
        dropped["same tokens"] += len(rows) - len(different)
        return different


def _few_or_many(tree: JudgedTree, better: Iterable[int], worse: Iterable[int]) -> tuple[list[int], list[int]]:
    """Return the two best of some nodes and the two worst of others, or four if the other side has one."""
    better, worse = comparable_nodes(tree, better), comparable_nodes(tree, worse)
    best, worst = (_MANY if len(other) == 1 else _FEW for other in (worse, better))
    return extremes(tree, better, worse, best=best, worst=worst)


def _is_final(tree: JudgedTree, node: int) -> bool:
    """Say whether a step ended its solution by itself or was cut. A failed step has no tokens and counts as failed."""
    return tree.record.stop_reasons[node] != StopReason.STEP and bool(tree.record.token_ids[node])


def _whole_continuations(right: list[Solution], wrong: list[Solution]) -> tuple[dict[int, float], dict[int, float]]:
    """Return, by node, the highest mean value of a right solution through it and the lowest of a wrong one."""
    best: dict[int, float] = {}
    worst: dict[int, float] = {}
    for solution in right:
        for node in solution.path:
            best[node] = max(best.get(node, solution.mean), solution.mean)
    for solution in wrong:
        for node in solution.path:
            worst[node] = min(worst.get(node, solution.mean), solution.mean)
    return best, worst


def _later_continuations(tree: JudgedTree) -> tuple[dict[int, float], dict[int, float]]:
    """Return the same with the means taken from the node's own step on."""
    best: dict[int, float] = {}
    worst: dict[int, float] = {}
    for leaf, outcome in enumerate(tree.record.outcomes):
        path = path_to(tree.record, leaf) if outcome is not None else []
        for place, node in enumerate(path):
            known = [value for later in path[place:] if (value := tree.values[later]) is not None]
            if not known:
                continue
            mean = round(sum(known) / len(known), DECIMALS)
            if outcome == 1.0:
                best[node] = max(best.get(node, mean), mean)
            else:
                worst[node] = min(worst.get(node, mean), mean)
    return best, worst


def _with_tokens(solutions: list[Solution]) -> list[Solution]:
    """Leave out solutions whose last step failed."""
    return [one for one in solutions if one.tree.record.token_ids[one.path[-1]]]


def _bare(offer: Ranked[PreferencePair]) -> PreferencePair:
    """Return a pair without the data that only a policy learns from."""
    return replace(offer.row, chosen_logps=[], rejected_logps=[], agreement=None, uncertainty=None)
