"""Certainty of the order of a preference pair: agreement of two scorers, and the uncertainty that the graded leaves leave."""

import math
from collections.abc import Sequence
from itertools import combinations


def ranking_agreement(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    """Return the agreement of two scorers on the order of siblings, in [0, 1]: (tau + 1) / 2 with Kendall's tau.

        C = (pairs in the same order + half of the pairs that one of them ties) / pairs

    Siblings without a score from either are left out. None if fewer than two are left.

    Source: Wang et al. 2024, "CREAM: Consistency Regularized Self-Rewarding Language Models", the consistency rate; their code breaks ties
        by place.
    """
    known = [(left, right) for left, right in zip(first, second, strict=True) if left is not None and right is not None]
    signs = [(a - c) * (b - d) for (a, b), (c, d) in combinations(known, 2)]
    return sum(0.5 if sign == 0 else float(sign > 0) for sign in signs) / len(signs) if signs else None


def order_uncertainty(chosen: tuple[int, int], rejected: tuple[int, int]) -> float:
    """Return the uncertainty about the better of two continuations, given the graded leaves, in bits.

        H(p) = -p log2 p - (1 - p) log2 (1 - p),   p = P(V_chosen > V_rejected)

    V is the probability of a right end, with a uniform prior: after r right and w wrong leaves it is Beta(1 + r, 1 + w). Whether one V
    is larger is known once both are, so H is also the information that V has on the order of the pair.

    Args:
        chosen: Right and wrong leaves at and below the preferred one.
        rejected: The same for the other one.

    Returns:
        0 (sure) to 1 (open, as it is without any graded leaf).

    Source: Wang et al. 2025, "Self-Evolutionary Large Language Models through Uncertainty-Enhanced Preference Optimization", section
        "Reliable Preference Learning": information gain of an estimator, whose posterior they sample by dropout; ours is exact and needs
        no estimator.
    """
    probability = _beats(*chosen, *rejected)
    return sum(-p * math.log2(p) for p in (probability, 1 - probability) if p > 0)


def _beats(right: int, wrong: int, other_right: int, other_wrong: int) -> float:
    """Return P(X > Y) for X ~ Beta(1 + right, 1 + wrong) and Y ~ Beta(1 + other_right, 1 + other_wrong), a finite sum."""
    a, b, c, d = 1 + right, 1 + wrong, 1 + other_right, 1 + other_wrong
    terms = (_log_beta(c + i, b + d) - math.log(b + i) - _log_beta(1 + i, b) - _log_beta(c, d) for i in range(a))
    return min(1.0, sum(math.exp(term) for term in terms))


def _log_beta(a: int, b: int) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
