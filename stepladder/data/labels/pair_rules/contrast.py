"""Pairs of the most similar siblings with different outcomes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stepladder.data.labels.candidates import JudgedTree, Ranked, edit_distance, judge_trees
from stepladder.data.labels.pairing import (
    NO_SOURCES,
    Offers,
    PairSources,
    capped,
    comparable_margins,
    evidence_pairs,
    step_offer,
    wide_enough,
)
from stepladder.data.labels.selection import Selection
from stepladder.settings import Count, Share, check_bounds
from stepladder.types import PreferencePair, TreeRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastPairs:
    """For every failing step, the most similar sibling that succeeds, so that a pair differs mainly in what matters.

    Candidates are those of ``evidence``. Similarity is the edit distance of the tokens. Within a cap, the most similar pairs go first.

    Dropped by reason: ``no value``, ``failed step``, ``same tokens``, ``below margin``, ``a sibling is more alike``, ``over node cap``,
    ``over problem cap``.

    Source: Cheng et al. 2024, "SPaR: Self-Play with Tree-Search Refinement to Improve Instruction-Following in Large Language Models",
        whose pairs are a response and its refinement, found by a search over refinements; ours are siblings.
    """

    type: Literal["minimal-contrast"] = "minimal-contrast"
    """Name of the rule."""
    min_margin: Share = 0.2
    """Smallest value difference of the two steps, in [0, 1]; it must also be above zero."""
    pairs_per_node: Count = 2
    """Most pairs of one node, >= 1."""
    pairs_per_problem: Count = 8
    """Most pairs of one problem, >= 1."""
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
                wide = wide_enough(comparable_margins(tree, pairs, dropped), self.min_margin, dropped)
                nearest = _nearest(tree, wide)
                dropped["a sibling is more alike"] += len(wide) - len(nearest)
                dropped["over node cap"] += max(0, len(nearest) - self.pairs_per_node)
                for distance, negative, first, second in nearest[: self.pairs_per_node]:
                    offers.append(Ranked(rank=(-distance, -negative), row=step_offer(tree, -negative, first, second).row))
        return capped(offers, considered, dropped, self.pairs_per_problem)


def _nearest(tree: JudgedTree, pairs: list[tuple[float, int, int]]) -> list[tuple[int, float, int, int]]:
    """Return (distance, -margin, chosen, rejected) for the most similar partner of every rejected step, most similar first."""
    ids = tree.record.token_ids
    nearest: dict[int, tuple[int, float, int, int]] = {}
    for margin, first, second in pairs:
        entry = (edit_distance(ids[first], ids[second]), -margin, first, second)
        nearest[second] = min(entry, nearest.get(second, entry))
    return sorted(nearest.values())
