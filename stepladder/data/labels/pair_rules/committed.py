"""Pairs along the path that a search visited most."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stepladder.data.labels.candidates import judge_trees
from stepladder.data.labels.pairing import NO_SOURCES, Offers, PairSources, capped, comparable_margins, step_offer, wide_enough
from stepladder.data.labels.selection import Selection
from stepladder.settings import Count, Share, check_bounds
from stepladder.types import PreferencePair, TreeRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class CommittedPairs:
    """The best against the worst child at every node of the path that the search visited most.

    Candidates are the nodes of that path with two or more children that have a value. Visits come with every pair: with
    ``label_smoothing = "visits"`` they set how far to trust it.

    Dropped by reason: ``wrong end``, ``same tokens``, ``below margin``, ``over problem cap``.

    Source: Xie et al. 2024, "Monte Carlo Tree Search Boosts Reasoning via Iterative Preference Learning", section 2.2. Their search
        commits one step at a time; the most visited child, ties to the first, stands for the committed one.
    """

    type: Literal["mcts-dpo"] = "mcts-dpo"
    """Name of the rule."""
    min_margin: Share = 0.0
    """Smallest value difference of the two steps, in [0, 1]; it must also be above zero."""
    pairs_per_problem: Count = 8
    """Most pairs of one problem, >= 1; larger margins go first."""

    right_end: bool = False
    """Take only problems whose path ends right, as the released code does."""

    def __post_init__(self) -> None:
        check_bounds(self, where="labels.pairs")

    def select(self, records: Sequence[TreeRecord], sources: PairSources = NO_SOURCES) -> Selection[PreferencePair]:
        """Return the pairs of some trees, graded or not."""
        dropped: Counter[str] = Counter()
        offers: Offers = []
        considered = 0
        for tree in judge_trees(records, earlier_scores=sources.earlier_scores):
            node, found = 0, list[tuple[int, int]]()
            while tree.children[node]:
                known = [child for child in tree.children[node] if tree.comparable(child)]
                known.sort(key=lambda child: -tree.value(child))
                if len(known) > 1:
                    found.append((known[0], known[-1]))
                node = max(tree.children[node], key=lambda child: tree.record.visits[child])
            considered += len(found)
            if self.right_end and tree.record.outcomes[node] != 1.0:
                dropped["wrong end"] += len(found)
                continue
            margins = comparable_margins(tree, found, dropped)
            offers += [step_offer(tree, *pair) for pair in wide_enough(margins, self.min_margin, dropped)]
        return capped(offers, considered, dropped, self.pairs_per_problem)
