"""Answer rules: from the terminals of a tree to one final answer.

The rules use PRM scores and counts of answers, never a verdict: in label mode they give the answer that solve mode
would have given from the same tree.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stepladder.errors import ConfigError
from stepladder.mcts.tree import Tree

ANSWER_RULES = ("best", "majority", "weighted-vote", "path-vote", "robust-path", "value-path")
PATH_RULES = ("robust-path", "value-path")
"""Rules that follow one path through the tree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The choice of an answer rule."""

    answer: str | None
    """The answer; None without candidates."""
    node: int | None
    """The answer's best-scored supporter, the first of equals, under ``robust-path`` the end of the path; None without candidates."""
    votes: dict[str, float]
    """Weight of every distinct answer, descending, first found first among equals. Of texts with one key, the supporter's stands here."""


@dataclass(slots=True)
class _Support:
    """The evidence for one answer."""

    answer: str
    """Text of the answer at the best-scored terminal."""
    node: int
    """Best-scored terminal, the first of equals."""
    best: float
    """Its score, -1 without one."""
    count: float = 0.0
    """How often the answer was reached, or the prior mass of its paths."""
    total: float = 0.0
    """Sum of the scores over these."""


def own_key(answer: str) -> str:
    """Return the answer itself: without a grading rule, only equal texts are one answer."""
    return answer


class AnswerTally:
    """The terminals found so far, by answer, under one rule. Texts with one key, as ``1/2`` and ``0.5``, are one answer.

    ``best`` weighs an answer by its best-scored terminal, ``majority`` by its count, and ``weighted-vote`` by the sum of its scores, each
    as often as it was reached. ``path-vote`` replaces the count of a terminal by the prior mass of its path, the product of the priors
    along it. A tree merges equal samples and expands rare steps as often as common ones. The mass undoes both, so that the vote estimates
    the weighted vote of the policy's own samples. A terminal without a score weighs nothing but in ``majority``; if none has one, each rule
    weighs answers by their counts, or by their mass. Ties go to the first answer. ``robust-path`` takes the answer at the end of one path:
    from the root on to the most visited child, of equals the one of higher value, of equals the first, among the children that lead to an
    answer at all; that answer weighs 1, the others 0. ``value-path`` does the same by value alone.

    Example: terminals 1: "7" scored 0.5, 2: "8" scored 0.7, 3: "7" scored 0.4 give "8" under ``best`` and "7" (terminal 1) otherwise.

    Source: weighted-vote: Uesato et al. 2022, "Solving math word problems with process- and outcome-based feedback"; majority: Wang et
    al. 2022, "Self-consistency improves chain of thought reasoning"; robust-path: the robust child of Chaslot et al. 2008, "Progressive
    strategies for Monte-Carlo tree search", at every node; path-vote is ours.
    """

    def __init__(self, rule: str, key_of: Callable[[str], str] = own_key) -> None:
        """Begin without terminals.

        Args:
            rule: One of ``ANSWER_RULES``.
            key_of: Canonical form of an answer: answers with the same key are counted together.

        Raises:
            ConfigError: If the rule is unknown.
        """
        if rule not in ANSWER_RULES:
            raise ConfigError(f"answer rule must be one of {', '.join(ANSWER_RULES)}: got {rule!r}")
        self._rule, self._key_of = rule, key_of
        self._scored = False
        self._supports: dict[str, _Support] = {}
        """By key, as is the leader."""
        self._leader: str | None = None
        self._is_contested = False
        """Whether the leader may have changed since the last request for it."""
        self._answers: dict[int, str] = {}
        """Answer of each terminal; ``robust-path`` and ``value-path`` only, as are the next two."""
        self._leading: dict[int, list[int]] = {}
        """Children of each node that lead to an answer."""
        self._path_end: int | None = None

    def add(self, node: int, answer: str, score: float | None, *, count: float = 1.0, path: Sequence[int] = ()) -> None:
        """Count a terminal. A known terminal counts again.

        Args:
            node: Index of the terminal.
            answer: Its final answer.
            score: Aggregated PRM score of its trajectory, in [0, 1]; None without one.
            count: How often it was reached, >= 1, or for ``path-vote`` the prior mass of its path, in [0, 1].
            path: The nodes from the first step to the terminal; read by ``robust-path`` and ``value-path`` only.

        """
        if self._rule in PATH_RULES:
            self._answers[node] = answer
            for parent, child in pairwise([Tree.ROOT, *path]):
                children = self._leading.setdefault(parent, [])
                if child not in children:
                    children.append(child)
        key = self._key_of(answer)
        support = self._supports.get(key)
        if support is None:
            support = self._supports[key] = _Support(answer, node, -1.0)
        support.count += count
        if score is not None:
            self._is_contested |= not self._scored
            self._scored = True
            support.total += count * score
            if score > support.best:
                support.answer, support.node, support.best = answer, node, score
        # Weights never fall while all of them come from scores or all from counts: only an answer that catches up can take the lead.
        if self._leader is None or (key != self._leader and self._weight(key) >= self._weight(self._leader)):
            self._is_contested = True

    def follow(self, visits: Sequence[int], values: Sequence[float]) -> None:
        """Find the robust path through a tree; the other rules need no tree and do nothing.

        Args:
            visits: Of each node.
            values: Of each node, NaN without a return.

        """
        at, by_visits = Tree.ROOT, self._rule == "robust-path"
        while at in self._leading:
            known = [(node, -math.inf if math.isnan(values[node]) else values[node]) for node in sorted(self._leading[at])]
            at, _ = max(known, key=lambda item: (visits[item[0]] if by_visits else 0, item[1]))
        self._path_end = None if at == Tree.ROOT else at
        self._is_contested = True

    def leader(self) -> str | None:
        """Return the answer of greatest weight, as its supporter writes it, or None without terminals."""
        if self._is_contested:
            # max keeps the first of equals, and dictionaries keep the order of first appearance.
            self._leader, self._is_contested = max(self._supports, key=self._weight, default=None), False
        if self._leader is None:
            return None
        return self._supports[self._leader].answer if self._path_end is None else self._answers[self._path_end]

    def choice(self) -> Choice:
        """Return the leader with all weights; those of ``best`` are in [0, 1]."""
        answer = self.leader()
        if answer is None or self._leader is None:
            return Choice(answer=None, node=None, votes={})
        texts = {key: support.answer for key, support in self._supports.items()} | {self._leader: answer}
        weights = {texts[key]: self._weight(key) for key in self._supports}
        votes = dict(sorted(weights.items(), key=lambda item: -item[1]))
        node = self._supports[self._leader].node if self._path_end is None else self._path_end
        return Choice(answer=answer, node=node, votes=votes)

    def _weight(self, key: str) -> float:
        support = self._supports[key]
        if self._path_end is not None:
            return float(self._key_of(self._answers[self._path_end]) == key)
        if self._rule == "majority" or not self._scored:
            return float(support.count)
        return max(support.best, 0.0) if self._rule == "best" else support.total
