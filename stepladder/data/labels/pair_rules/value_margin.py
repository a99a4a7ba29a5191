"""Pairs of siblings with very different values, whatever the outcomes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stepladder.data.labels.candidates import judge_trees
from stepladder.data.labels.pairing import NO_SOURCES, Offers, PairSources, capped, comparable_margins, step_offer, wide_enough, widest
from stepladder.data.labels.selection import Selection
from stepladder.settings import Count, Share, check_bounds
from stepladder.types import PreferencePair, TreeRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueMarginPairs:
    """Siblings with very different values, whatever the outcomes below them.

    Candidates are all pairs of children of one node.

    Dropped by reason: ``no value``, ``failed step``, ``same tokens``, ``below margin``, ``over node cap``, ``over problem cap``.

    Source: ours; Agent Q without its critic.
    """

    type: Literal["value-margin"] = "value-margin"
    """Name of the rule."""
    min_margin: Share = 0.2
    """Smallest value difference of the two steps, in [0, 1]; it must also be above zero."""
    pairs_per_node: Count = 2
    """Most pairs of one node, >= 1; larger margins go first."""
    pairs_per_problem: Count = 8
    """Most pairs of one problem, >= 1."""

    def __post_init__(self) -> None:
        check_bounds(self, where="labels.pairs")

    def select(self, records: Sequence[TreeRecord], sources: PairSources = NO_SOURCES) -> Selection[PreferencePair]:
        """Return the pairs of some trees, graded or not."""
        return _select(self, records, sources, critic_weight=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentQPairs:
    """Siblings with a very different mix of value and score, whatever the outcomes below them.

        Q = (1 - w) value + w score

    Candidates are all pairs of children of one node that have both.

    Dropped by reason: ``no value``, ``failed step``, ``same tokens``, ``below margin``, ``over node cap``, ``over problem cap``.

    Source: Putta et al. 2024, "Agent Q: Advanced Reasoning and Learning for Autonomous AI Agents", the mixed Q and algorithm 1, with
        w = 0.5; their critic is the policy, which ranks the actions.
    """

    type: Literal["agent-q"] = "agent-q"
    """Name of the rule."""
    min_margin: Share = 0.2
    """Smallest difference of Q, in [0, 1]; it must also be above zero."""
    pairs_per_node: Count = 2
    """Most pairs of one node, >= 1; larger margins go first."""
    pairs_per_problem: Count = 8
    """Most pairs of one problem, >= 1."""
    critic_weight: Share = 0.5
    """w: share of the process reward model's score of the step in Q, in [0, 1]."""

    def __post_init__(self) -> None:
        check_bounds(self, where="labels.pairs")

    def select(self, records: Sequence[TreeRecord], sources: PairSources = NO_SOURCES) -> Selection[PreferencePair]:
        """Return the pairs of some trees, graded or not."""
        return _select(self, records, sources, critic_weight=self.critic_weight)


def _select(
    rule: ValueMarginPairs | AgentQPairs, records: Sequence[TreeRecord], sources: PairSources, *, critic_weight: float
) -> Selection[PreferencePair]:
    dropped: Counter[str] = Counter()
    offers: Offers = []
    considered = 0
    for tree in judge_trees(records, critic_weight=critic_weight, earlier_scores=sources.earlier_scores):
        for children in tree.children:
            pairs = [(first, second) for i, first in enumerate(children) for second in children[i + 1 :]]
            considered += len(pairs)
            margins = comparable_margins(tree, pairs, dropped)
            ordered = [(margin, first, second) if margin > 0 else (-margin, second, first) for margin, first, second in margins]
            wide = wide_enough(ordered, rule.min_margin, dropped)
            offers += [step_offer(tree, *pair) for pair in widest(wide, rule.pairs_per_node, dropped)]
    return capped(offers, considered, dropped, rule.pairs_per_problem)
