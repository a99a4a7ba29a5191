"""Replacements for missing edge values, and trajectory scores for answer rules."""

import math
from collections.abc import Callable, Sequence

from stepladder.errors import ConfigError

UNVISITED_RULES = ("inf", "zero", "parent", "raw")
AGGREGATIONS = ("last", "min", "mean", "product", "geometric-mean", "max", "min-form", "log-sigmoid")
MIN_FORM_TEMPERATURE = 0.1
NEUTRAL_VALUE = 0.5
"""Value if nothing is known: the middle of the value range [0, 1]."""


def aggregate_scores(scores: Sequence[float | None], *, rule: str) -> float | None:
    """Return one score for a trajectory from the scores of its steps, in order.

    Steps without a score are left out; a trajectory without any scored step has none. ``last`` takes the last scored step.
    ``min-form`` is the mean with almost all weight on the worst steps,

        sum_i w_i r_i,  w = softmax(-r / T),  T = 0.1

    and ``log-sigmoid`` adds up log sigmoid(r_i - r_ref) with r_ref = 0.5, given as its exponential, which has the same order.

    Args:
        scores: Step scores in [0, 1]; None if not scored.
        rule: One of ``AGGREGATIONS``.

    Returns:
        A score in [0, 1], or None.

    Raises:
        ConfigError: If the rule is unknown.

    Source: Lightman et al. 2023, "Let's verify step by step" (product and minimum); Snell et al. 2024 (last); Cheng et al. 2025, "Stop
    summation: min-form credit assignment is all process reward model needs for reasoning" (min-form, there on returns in training).
    """
    known = [score for score in scores if score is not None]
    if rule not in AGGREGATIONS:
        raise ConfigError(f"aggregate_scores: rule must be one of {', '.join(AGGREGATIONS)}: got {rule!r}")
    return _AGGREGATES[rule](known) if known else None


def _geometric_mean(scores: Sequence[float]) -> float:
    return 0.0 if min(scores) <= 0.0 else math.exp(math.fsum(map(math.log, scores)) / len(scores))


def _min_form(scores: Sequence[float]) -> float:
    weights = [math.exp((min(scores) - score) / MIN_FORM_TEMPERATURE) for score in scores]
    return math.fsum(weight * score for weight, score in zip(weights, scores, strict=True)) / math.fsum(weights)


def _log_sigmoid(scores: Sequence[float]) -> float:
    return math.exp(-math.fsum(math.log1p(math.exp(NEUTRAL_VALUE - score)) for score in scores))


def _last(scores: Sequence[float]) -> float:
    return scores[-1]


def _mean(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores)


_AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": _last,
    "min": min,
    "mean": _mean,
    "product": math.prod,
    "geometric-mean": _geometric_mean,
    "max": max,
    "min-form": _min_form,
    "log-sigmoid": _log_sigmoid,
}
