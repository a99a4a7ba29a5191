"""Pairs of siblings with outcomes as evidence on both sides."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stepladder.data.labels.candidates import judge_trees
from stepladder.data.labels.pairing import (
    NO_SOURCES,
    Offers,
    PairSources,
    among_extremes,
    capped,
    comparable_margins,
    evidence_pairs,
    extremes,
    step_offer,
    wide_enough,
    widest,
)
from stepladder.data.labels.selection import Selection
from stepladder.settings import Count, Share, check_bounds
from stepladder.types import PreferencePair, TreeRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidencePairs:
    """Sibling steps with a clear difference, with outcomes as evidence on both sides.

    Candidates are all ordered pairs of children of one node in which the first has a right leaf at or below it and the second a wrong one
    (and no right one, if ``rejected_must_fail``). The chosen ones come from the children with the highest values among the first, the
    rejected ones from those with the lowest among the second. Within a cap, larger margins go first.

    Dropped by reason: ``no value``, ``failed step``, ``same tokens``, ``not among best and worst``, ``below margin``, ``over node cap``,
    ``over problem cap``.

    Source: Guan et al. 2025, "rStar-Math", section 3.3 and appendix: evidence on both sides, best 2 against worst 2 by value. We use the
        nodes' own values for the margin, keep several pairs per node under a cap, and by default require that the rejected step fails;
        ``rstar-math`` does neither.
    """

    type: Literal["evidence"] = "evidence"
    """Name of the rule."""
    min_margin: Share = 0.2
    """Smallest value difference of the two steps, in [0, 1]; it must also be above zero."""
    pairs_per_node: Count = 2
    """Most pairs of one node, >= 1."""
    pairs_per_problem: Count = 8
    """Most pairs of one problem, >= 1."""
    best_and_worst: Count = 2
    """Children of each side that may take part, >= 1."""
    rejected_must_fail: bool = True
    """Whether a rejected step must have nothing right at or below it."""

    def __post_init__(self) -> None:
        check_bounds(self, where="labels.pairs")

    def select(self, records: Sequence[TreeRecord], sources: PairSources = NO_SOURCES) -> Selection[PreferencePair]:
        """Return the pairs of some trees with outcomes."""
        dropped: Counter[str] = Counter()
        offers: Offers = []
        considered = 0
        for tree in judge_trees(records, earlier_scores=sources.earlier_scores):
            for children in tree.children:
                pairs = evidence_pairs(tree, children, rejected_must_fail=self.rejected_must_fail)
                considered += len(pairs)
                high, low = extremes(tree, *_sides(pairs), best=self.best_and_worst, worst=self.best_and_worst)
                margins = among_extremes(comparable_margins(tree, pairs, dropped), high, low, dropped)
                wide = wide_enough(margins, self.min_margin, dropped)
                offers += [step_offer(tree, *pair) for pair in widest(wide, self.pairs_per_node, dropped)]
        return capped(offers, considered, dropped, self.pairs_per_problem)


def _sides(pairs: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [first for first, _ in pairs], [second for _, second in pairs]
