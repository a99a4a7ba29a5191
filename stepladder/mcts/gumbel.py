"""Gumbel search: the root spreads its simulations by sequential halving, every other node follows its improved policy.

Axes: b trees, K child slots. Empty slots have prior 0 and no visits and are never the best. Logits are logarithms of priors; the same
constant on all of a row changes nothing.

Source: Danihelka et al. 2022, "Policy improvement by planning with Gumbel". The forms, constants and tie rules are those of mctx, whose
golden trees are reproduced node for node in the tests.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Int

from stepladder.errors import ConfigError
from stepladder.mcts.qvalues import NEUTRAL_VALUE
from stepladder.mcts.selection import EdgeStats, Scores
from stepladder.mcts.tree import Tree

_MAX_SCHEDULE = 4096
"""Simulations that a schedule is made for at most: a search without a cap still has to halve some time."""
_LOWEST = -1e9
"""Floor of a score, so that a sole candidate with prior 0 is still taken."""
_NOT_CONSIDERED = -1e12
"""Below every candidate, yet above a closed slot: where all candidates are closed, the search goes on among the others."""


def considered_visits(num_considered: int, num_simulations: int) -> list[int]:
    """Return, for each simulation at a root, how many visits a child must have to be a candidate.

    Sequential halving in terms of visits: rounds of equally many visits to each candidate, half as many candidates in each next round, at
    least two.

    Example: 4 candidates, 8 simulations: ``[0, 0, 0, 0, 1, 1, 2, 2]``: all four once, then the better two twice.

    Raises:
        ConfigError: If a count is below 1.

    Source: Karnin et al. 2013, "Almost optimal exploration in multi-armed bandits", in the schedule of mctx.
    """
    if num_considered < 1 or num_simulations < 1:
        raise ConfigError(f"considered_visits: counts must be at least 1: got {num_considered} candidates, {num_simulations} simulations")
    if num_considered == 1:
        return list(range(num_simulations))
    num_rounds = math.ceil(math.log2(num_considered))
    schedule: list[int] = []
    visits, candidates = 0, num_considered
    while len(schedule) < num_simulations:
        for _ in range(max(1, num_simulations // (num_rounds * candidates))):
            schedule += [visits] * candidates
            visits += 1
        candidates = max(2, candidates // 2)
    return schedule[:num_simulations]


def mixed_values(
    qvalues: Float[np.ndarray, "b K"],
    prior: Float[np.ndarray, "b K"],
    visited: Bool[np.ndarray, "b K"],
    visits: Int[np.ndarray, "b K"],
    *,
    raw_value: Float[np.ndarray, "b"],
) -> Float[np.ndarray, "b"]:
    """Return the value that stands for every unvisited child of a node.

        v = (raw + n * sum_{visited} P_k Q_k / sum_{visited} P_k) / (1 + n),   n = sum_k n_k

    Args:
        qvalues: Edge values; read where visited.
        prior: Prior probabilities.
        visited: Slots with a value.
        visits: Visit counts.
        raw_value: The nodes' own estimates.

    Source: Appendix D of the paper.
    """
    weights = np.where(visited, np.maximum(prior, np.finfo(np.float32).tiny), 0.0)
    total = weights.sum(axis=-1)
    mean = (weights * np.where(visited, qvalues, 0.0)).sum(axis=-1) / np.where(total > 0, total, 1.0)
    num_visits = visits.sum(axis=-1)
    return (raw_value + num_visits * mean) / (1 + num_visits)


def scaled_qvalues(
    qvalues: Float[np.ndarray, "b K"],
    filled: Bool[np.ndarray, "b K"],
    visits: Int[np.ndarray, "b K"],
    *,
    value_scale: float,
    maxvisit_init: float,
    rescale: bool,
    epsilon: float = 1e-8,
) -> Float[np.ndarray, "b K"]:
    """Return completed edge values on the scale of logits: (maxvisit_init + max_k n_k) * value_scale * Q_k.

    Args:
        qvalues: Completed edge values.
        filled: Slots with a child; the others do not take part in rescaling.
        visits: Visit counts.
        value_scale: Weight of values against logits, >= 0.
        maxvisit_init: Visits that count before any was made, >= 0.
        rescale: Whether values are first rescaled to [0, 1] between the least and the greatest of the row.
        epsilon: Smallest range to divide by.

    """
    if rescale:
        low = np.where(filled, qvalues, np.inf).min(axis=-1, keepdims=True)
        high = np.where(filled, qvalues, -np.inf).max(axis=-1, keepdims=True)
        qvalues = (qvalues - low) / np.maximum(high - low, epsilon)
    return (maxvisit_init + visits.max(axis=-1, keepdims=True)) * value_scale * qvalues


def halving_scores(
    noise: Float[np.ndarray, "b K"],
    logits: Float[np.ndarray, "b K"],
    values: Float[np.ndarray, "b K"],
    visits: Int[np.ndarray, "b K"],
    *,
    considered: Int[np.ndarray, "b"],
) -> Float[np.ndarray, "b K"]:
    """Return the root's scores: noise + logit + value where a child has the considered number of visits, far less elsewhere.

    Args:
        noise: Gumbel noise, drawn once per search; zeros make the search deterministic.
        logits: Logarithms of the priors, -inf for an empty slot.
        values: ``scaled_qvalues``.
        visits: Visit counts.
        considered: Entry of ``considered_visits`` for the sum of the visits.

    """
    logits = logits - logits.max(axis=-1, keepdims=True)
    scores = np.maximum(_LOWEST, noise + logits + values)
    return np.where(visits == considered[:, None], scores, scores + _NOT_CONSIDERED)


def improved_policy_scores(
    logits: Float[np.ndarray, "b K"], values: Float[np.ndarray, "b K"], visits: Int[np.ndarray, "b K"]
) -> Float[np.ndarray, "b K"]:
    """Return the scores below the root: softmax(logits + values)_k - n_k / (1 + sum_j n_j), so that visits follow the improved policy."""
    improved = logits + values
    weights = np.exp(improved - improved.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) - visits / (1 + visits.sum(axis=-1, keepdims=True))


def gumbel_scores(
    *,
    noise: Float[np.ndarray, "B K"],
    num_simulations: int,
    max_considered: int,
    value_scale: float,
    maxvisit_init: float,
    rescale: bool,
) -> Scores:
    """Return the score function of a Gumbel search: ``halving_scores`` at the root, ``improved_policy_scores`` below.

    Leaves in flight count as visits and leave the values alone.

    Args:
        noise: Gumbel noise of the root's slots by row; read at every call, so that rows can be given to other problems.
        num_simulations: Simulations below the root that the schedule is made for; more than 4096 count as 4096.
        max_considered: Children of the root considered at first, >= 1.
        value_scale: See ``scaled_qvalues``.
        maxvisit_init: See ``scaled_qvalues``.
        rescale: See ``scaled_qvalues``.

    """
    num_simulations = min(max(num_simulations, 1), _MAX_SCHEDULE)
    schedules = np.array([considered_visits(min(m, max_considered), num_simulations) for m in range(1, noise.shape[1] + 1)])

    def scores(stats: EdgeStats) -> Float[np.ndarray, "b K"]:
        filled = stats.children != Tree.UNVISITED
        visits = np.where(filled, stats.visits + stats.in_flight, 0)
        with np.errstate(divide="ignore"):
            logits = np.log(np.where(filled, stats.prior, 0.0))
        known = filled & (stats.visits > 0) & ~np.isnan(stats.qvalues)
        raw_value = np.where(np.isnan(stats.parent_raw_value), stats.parent_value, stats.parent_raw_value)
        raw_value = np.where(np.isnan(raw_value), NEUTRAL_VALUE, raw_value).astype(np.float64)
        mixed = mixed_values(stats.qvalues, stats.prior, known, np.where(known, stats.visits, 0), raw_value=raw_value)
        values = scaled_qvalues(
            np.where(known, stats.qvalues, mixed[:, None]),
            filled,
            visits,
            value_scale=value_scale,
            maxvisit_init=maxvisit_init,
            rescale=rescale,
        )
        at_root = stats.nodes == Tree.ROOT
        if not at_root.any():
            return improved_policy_scores(logits, values, visits)
        step = visits.sum(axis=-1).clip(max=num_simulations - 1)
        halving = halving_scores(
            noise[stats.rows, : visits.shape[1]], logits, values, visits, considered=schedules[filled.sum(axis=-1) - 1, step]
        )
        return np.where(at_root[:, None], halving, improved_policy_scores(logits, values, visits))

    return scores
