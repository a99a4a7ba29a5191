"""Answer rules: from the terminals of a tree to one final answer.

The rules read what the PRM said and how often an answer was reached, never a verdict: in label mode they give the answer that solve mode
would have given from the same tree.
"""

from dataclasses import dataclass

from stepladder.errors import ConfigError

ANSWER_RULES = ("best", "majority", "weighted-vote", "path-vote")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What an answer rule chose."""

    answer: str | None
    """The answer; None without candidates."""
    node: int | None
    """The answer's best-scored supporter, the first of equals; None without candidates."""
    votes: dict[str, float]
    """Weight of every distinct answer, descending, first found first among equals."""


@dataclass(slots=True)
class _Support:
    """What speaks for one answer."""

    node: int
    """Best-scored terminal."""
    best: float
    """Its score, -1 without one."""
    count: float = 0.0
    """How often the answer was reached, or the prior mass of its paths."""
    total: float = 0.0
    """Sum of the scores over these."""


class AnswerTally:
    """The terminals found so far, by answer, under one rule.

    ``best`` weighs an answer by its best-scored terminal, ``majority`` by how often it was reached, ``weighted-vote`` by the sum of the
    scores over how often it was reached. ``path-vote`` puts the prior mass of the terminal's path, the product of the priors along it, in
    the place of how often it was reached: a tree merges equal samples and expands rare steps as often as common ones; the mass undoes
    both, so that the vote estimates the weighted vote of the policy's own samples. A terminal without a score weighs nothing but in
    ``majority``; when none has one, each rule weighs answers by how often, or with what mass, they were reached. Ties go to the first one.

    Example: terminals 1: "7" scored 0.5, 2: "8" scored 0.7, 3: "7" scored 0.4 give "8" under ``best`` and "7" (terminal 1) otherwise.

    Source: weighted-vote: Uesato et al. 2022, "Solving math word problems with process- and outcome-based feedback"; majority: Wang et
    al. 2022, "Self-consistency improves chain of thought reasoning"; path-vote is ours.
    """

    def __init__(self, rule: str) -> None:
        """Begin without terminals.

        Raises:
            ConfigError: If the rule is unknown.
        """
        if rule not in ANSWER_RULES:
            raise ConfigError(f"answer rule must be one of {', '.join(ANSWER_RULES)}: got {rule!r}")
        self._rule = rule
        self._scored = False
        self._supports: dict[str, _Support] = {}

    def add(self, node: int, answer: str, score: float | None, *, count: float = 1.0) -> None:
        """Count a terminal, or one that is known already once more.

        Args:
            node: Index of the terminal.
            answer: Its final answer.
            score: Aggregated PRM score of its trajectory, in [0, 1]; None without one.
            count: How often it was reached, >= 1, or for ``path-vote`` the prior mass of its path, in [0, 1].

        """
        support = self._supports.get(answer)
        if support is None:
            support = self._supports[answer] = _Support(node, -1.0)
        support.count += count
        if score is not None:
            self._scored = True
            support.total += count * score
            if score > support.best:
                support.node, support.best = node, score

    def leader(self) -> str | None:
        """Return the answer of greatest weight, or None without terminals."""
        # max keeps the first of equals, and dictionaries keep the order of first appearance.
        return max(self._supports, key=self._weight, default=None)

    def choice(self) -> Choice:
        """Return the leader with all weights; those of ``best`` are in [0, 1]."""
        answer = self.leader()
        weights = {each: self._weight(each) for each in self._supports}
        votes = dict(sorted(weights.items(), key=lambda item: -item[1]))
        return Choice(answer=answer, node=None if answer is None else self._supports[answer].node, votes=votes)

    def _weight(self, answer: str) -> float:
        support = self._supports[answer]
        if self._rule == "majority" or not self._scored:
            return float(support.count)
        return max(support.best, 0.0) if self._rule == "best" else support.total
