"""Edge values as selection reads them, and trajectory scores as answer rules read them.

Axes: b trees, K child slots. An edge without a return has the value NaN until one of the functions here completes it.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from stepladder.errors import ConfigError

UNVISITED_RULES = ("inf", "zero", "parent", "raw")
AGGREGATIONS = ("last", "min", "mean", "product", "geometric-mean", "max", "min-form", "log-sigmoid")
MIN_FORM_TEMPERATURE = 0.1
NEUTRAL_VALUE = 0.5
"""Stands in where nothing at all is known: the middle of the value range [0, 1]."""


def complete_qvalues(
    qvalues: Float[np.ndarray, "b K"],
    visits: Int[np.ndarray, "b K"],
    *,
    parent_value: Float[np.ndarray, "b"],
    raw_values: Float[np.ndarray, "b K"],
    rule: str,
    bonus: float = 0.0,
) -> Float[np.ndarray, "b K"]:
    """Return edge values without NaN.

    A visited slot that brought no return yet takes its parent's value. An unvisited slot takes what the rule says: ``inf`` (every child
    once, before any twice), ``zero``, ``parent`` (the parent's value) or ``raw`` (the child's own estimate, the parent's value when it has
    none). A parent without a value counts as 0.5.

    Args:
        qvalues: Edge values, NaN without a return.
        visits: Visit counts, >= 0.
        parent_value: Values of the parents, NaN without a return.
        raw_values: Estimates of the children, NaN when unscored.
        rule: One of ``UNVISITED_RULES``.
        bonus: Added to the value of unvisited slots, >= 0.

    """
    fallback = np.where(np.isnan(parent_value), NEUTRAL_VALUE, parent_value)[:, None]
    if rule == "raw":
        unvisited = np.where(np.isnan(raw_values), fallback, raw_values)
    else:
        unvisited = {"inf": np.inf, "zero": 0.0, "parent": fallback}[rule]
    completed = np.where(np.isnan(qvalues), fallback, qvalues)
    return np.where(visits > 0, completed, unvisited + bonus)


def mix_critic(qvalues: Float[np.ndarray, "b K"], raw_values: Float[np.ndarray, "b K"], *, share: float) -> Float[np.ndarray, "b K"]:
    """Return (1 - share) * Q + share * raw: the tree's value of an edge mixed with a critic's own estimate of the child.

    Where the critic is silent (NaN) the edge value stands alone.

    Args:
        qvalues: Completed edge values.
        raw_values: Estimates of the children, NaN when unscored.
        share: Of the estimates, in [0, 1].

    Source: Putta et al. 2024, "Agent Q: Advanced reasoning and learning for autonomous AI agents", whose values mix what the tree says with
    what a critic says; there the critic ranks the siblings, here it scores each of them.
    """
    return np.where(np.isnan(raw_values), qvalues, (1 - share) * qvalues + share * raw_values)


def apply_virtual_loss(
    qvalues: Float[np.ndarray, "b K"], visits: Int[np.ndarray, "b K"], in_flight: Int[np.ndarray, "b K"]
) -> Float[np.ndarray, "b K"]:
    """Return edge values that count every simulation in flight as a lost one, worth 0.

        Q'_k = Q_k * max(n_k, 1) / (max(n_k, 1) + f_k)

    Values are in [0, 1], so 0 is the worst return there is; infinite values stay infinite.

    Source: Chaslot et al. 2008, "Parallel Monte-Carlo Tree Search".
    """
    weight = np.maximum(visits, 1)
    return qvalues * (weight / (weight + in_flight))


def normalise_by_parent_and_siblings(
    qvalues: Float[np.ndarray, "b K"],
    visited: Bool[np.ndarray, "b K"],
    *,
    parent_value: Float[np.ndarray, "b"],
    epsilon: float = 1e-8,
) -> Float[np.ndarray, "b K"]:
    """Return edge values rescaled to [0, 1] between the least and the greatest of the parent's value and the visited siblings'.

    Unvisited slots, slots that brought no return, and rows in which nothing has a value become 0.

    Args:
        qvalues: Edge values; ignored where not visited.
        visited: Slots whose value counts.
        parent_value: Values of the parents; NaN does not take part.
        epsilon: Smallest range to divide by.

    Source: Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned model", Appendix B (equation 5),
    with the parent's value among the bounds.
    """
    known = np.where(visited, qvalues, np.nan)
    low = np.fmin(np.fmin.reduce(known, axis=-1), parent_value)
    high = np.fmax(np.fmax.reduce(known, axis=-1), parent_value)
    scale = np.maximum(high - low, epsilon)
    return np.where(np.isnan(known), 0.0, (known - low[:, None]) / scale[:, None])


def aggregate_scores(scores: Sequence[float | None], *, rule: str) -> float | None:
    """Return one score for a trajectory from the scores of its steps, in order.

    Steps without a score are left out; a trajectory without any scored step has none. ``last`` takes the last scored step.
    ``min-form`` is the mean under weights that stand almost wholly on the worst steps,

        sum_i w_i r_i,  w = softmax(-r / T),  T = 0.1

    and ``log-sigmoid`` adds up log sigmoid(r_i - r_ref) with r_ref = 0.5, given as its exponential, which has the same order.

    Args:
        scores: Step scores in [0, 1], None where not scored.
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


_AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "mean": lambda scores: math.fsum(scores) / len(scores),
    "product": math.prod,
    "geometric-mean": _geometric_mean,
    "max": max,
    "min-form": _min_form,
    "log-sigmoid": _log_sigmoid,
}
