"""Answer rules: from the terminals of a tree to one final answer.

The rules read what the PRM said and how often an answer was reached, never a verdict: in label mode they give the answer that solve mode
would have given from the same tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stepladder.errors import ConfigError

ANSWER_RULES = ("best", "majority", "weighted-vote")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A terminal with a readable answer."""

    node: int
    """Index of the terminal."""
    answer: str
    """Its final answer."""
    score: float | None
    """Aggregated PRM score of its trajectory, in [0, 1]; None without one."""
    count: int = 1
    """How often the terminal was reached, >= 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What an answer rule chose."""

    answer: str | None = None
    """The answer; None without candidates."""
    node: int | None = None
    """The answer's best-scored supporter, the first of equals."""
    votes: dict[str, float]
    """Weight of every distinct answer, descending, first found first among equals."""


def choose_answer(candidates: Sequence[Candidate], *, rule: str) -> Choice:
    """Choose a final answer.

    ``best`` weighs an answer by its best-scored terminal, ``majority`` by how often it was reached, ``weighted-vote`` by the sum of the
    scores over how often it was reached. Candidates without a score weigh nothing in ``best`` and ``weighted-vote``; when no candidate has
    one, both rules are ``majority``. Ties go to the answer found first.

    Args:
        candidates: Terminals in the order in which they were found.
        rule: One of ``ANSWER_RULES``.

    Returns:
        The chosen answer with all weights; weights of ``best`` are in [0, 1].

    Raises:
        ConfigError: If the rule is unknown.

    Source: weighted-vote: Uesato et al. 2022, "Solving math word problems with process- and outcome-based feedback"; majority: Wang et al.
    2022, "Self-consistency improves chain of thought reasoning".

    """
    if rule not in ANSWER_RULES:
        raise ConfigError(f"choose_answer: rule must be one of {', '.join(ANSWER_RULES)}: got {rule!r}")
    if not candidates:
        return Choice(votes={})
    if all(candidate.score is None for candidate in candidates):
        rule = "majority"
    weights: dict[str, float] = {}
    for candidate in candidates:
        weight, score = weights.get(candidate.answer, 0.0), candidate.score or 0.0
        if rule == "best":
            weights[candidate.answer] = max(weight, score)
        else:
            weights[candidate.answer] = weight + (candidate.count if rule == "majority" else candidate.count * score)
    # sorted and max keep the first of equals, and dictionaries keep the order of first appearance.
    votes = dict(sorted(weights.items(), key=lambda item: -item[1]))
    answer = next(iter(votes))
    supporters = (candidate for candidate in candidates if candidate.answer == answer)
    best = max(supporters, key=lambda candidate: -1.0 if candidate.score is None else candidate.score)
    return Choice(answer=answer, node=best.node, votes=votes)
