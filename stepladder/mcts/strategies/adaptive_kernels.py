"""The compiled kernels of adaptive branching: beliefs about the scores below a choice, and draws from them.

The random numbers of a search are a stream of its own: number i follows from the search's seed and i alone. What is observed of a choice
are the raw values of nodes: of a new step those of the node's children, of a child those of itself and everything below it.

Axes: B rows of trees, b of them, K children of a node, G points of a grid.
"""

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from stepladder.mcts.compiled import compiled
from stepladder.mcts.tree import Nodes, Tree

MODELS = ("normal", "beta", "mixed")

# Compiled code compares numbers and reads constants of modules.
_NORMAL, _BETA, _MIXED = range(len(MODELS))
_ROOT, _UNVISITED = Tree.ROOT, Tree.UNVISITED
_GAMMA, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_PRIOR_KAPPA, _PRIOR_NU, _PRIOR_TAU2 = 1.0, 1.0, 0.1
_PRIOR_SUCCESSES = 0.5
_MIXED_MEAN, _MIXED_SPREAD = 0.5, 0.2
"""Prior of the common mean of children."""
_GRID_SIZE = 24
_SETTLED_SCORES, _SETTLED_SHARE, _SETTLED_UNIT = 4, 0.75, 100.0
"""A child is settled, and not drawn, once it has so many scores and such a share of them is equal to a hundredth."""


def _half_normal_grid(scale: float) -> Float[np.ndarray, "G"]:
    """Return points of equal prior weight for a half-normal standard deviation: the middles of its quantiles."""
    return np.array([scale * NormalDist().inv_cdf((1 + (i + 0.5) / _GRID_SIZE) / 2) for i in range(_GRID_SIZE)])


_SPREADS, _NOISES = _half_normal_grid(0.2), _half_normal_grid(0.3)


class ArmDraws(NamedTuple):
    """The random numbers of the searches of a run."""

    keys: UInt64[np.ndarray, "B"]
    """Seed of each row's stream."""
    counts: Int[np.ndarray, "B"]
    """Numbers of it that were drawn already."""


class Arm(NamedTuple):
    """What was observed of a choice."""

    number: float
    """Number of scores."""
    total: float
    """Their sum."""
    squares: float
    """Sum of their squares."""


@compiled
def _uniform(draws: ArmDraws, row: int) -> float:
    """Return the next uniform number in [0, 1) of a row: SplitMix64 of its key and their number."""
    draws.counts[row] += 1
    state = draws.keys[row] + np.uint64(draws.counts[row]) * _GAMMA
    state = (state ^ (state >> _30)) * _MIX_1
    state = (state ^ (state >> _27)) * _MIX_2
    return float((state ^ (state >> _31)) >> _11) * 2.0**-53


@compiled
def _standard_normal(draws: ArmDraws, row: int) -> float:
    """Return a standard normal number (Box and Muller 1958, the cosine of two)."""
    radius = math.sqrt(-2.0 * math.log(1.0 - _uniform(draws, row)))
    return radius * math.cos(2.0 * math.pi * _uniform(draws, row))


@compiled
def _standard_gamma(shape: float, draws: ArmDraws, row: int) -> float:
    """Return a gamma number of scale 1.

    Source: Marsaglia and Tsang 2000, "A simple method for generating gamma variables"; shapes below 1 by their last remark.
    """
    factor = 1.0
    if shape < 1.0:
        factor = (1.0 - _uniform(draws, row)) ** (1.0 / shape)
        shape += 1.0
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        x = _standard_normal(draws, row)
        v = (1.0 + c * x) ** 3
        if v > 0.0 and math.log(1.0 - _uniform(draws, row)) < 0.5 * x * x + d - d * v + d * math.log(v):
            return factor * d * v


@compiled
def draw_arm(arm: Arm, belief: int, draws: ArmDraws, row: int) -> float:
    """Draw the mean score of a choice from what is believed of it.

        normal: sigma^2 ~ Inv-Gamma(nu'/2, nu' tau'^2 / 2), mu ~ N(m', sigma^2 / kappa') with kappa' = kappa + n, nu' = nu + n,
        m' = (kappa m + sum y) / kappa', nu' tau'^2 = nu tau^2 + SS + n kappa (m - mean)^2 / kappa'; m = 0, kappa = nu = 1, tau^2 = 0.1
        beta: Beta(0.5 + sum y, 0.5 + n - sum y)

    Source: Inoue et al. 2025, "Wider or deeper? Scaling LLM inference-time compute with adaptive branching tree search", AB-MCTS-A;
    SakanaAI/treequest.
    """
    if belief == _BETA:
        wins = _standard_gamma(_PRIOR_SUCCESSES + arm.total, draws, row)
        losses = _standard_gamma(_PRIOR_SUCCESSES + max(arm.number - arm.total, 0.0), draws, row)
        return wins / (wins + losses)
    kappa, nu, mean, scatter = _PRIOR_KAPPA + arm.number, _PRIOR_NU + arm.number, 0.0, _PRIOR_NU * _PRIOR_TAU2
    if arm.number > 0:
        mean = arm.total / arm.number
        scatter += max(arm.squares - arm.total * mean, 0.0) + arm.number * _PRIOR_KAPPA * mean * mean / kappa
    variance = 0.5 * scatter / _standard_gamma(0.5 * nu, draws, row)
    return arm.total / kappa + math.sqrt(variance / kappa) * _standard_normal(draws, row)


@compiled
def draw_mixed(
    counts: Float[np.ndarray, "K"], totals: Float[np.ndarray, "K"], squares: Float[np.ndarray, "K"], draws: ArmDraws, row: int
) -> Float[np.ndarray, "K+1"]:
    """Draw the next score below each child of a node, and, last, that of a new child, from one belief about all of them.

        y_jk ~ N(alpha_j, sigma_y), alpha_j ~ N(mu, sigma_a), mu ~ N(0.5, 0.2), sigma_a ~ |N(0, 0.2)|, sigma_y ~ |N(0, 0.3)|

    The two standard deviations are drawn from a grid of 24 points each, with all else integrated out; then mu, the alphas and the scores
    follow exactly. Children without scores are drawn as new ones.

    Args:
        counts: Scores below each child.
        totals: Their sums.
        squares: Sums of their squares.
        draws: Random numbers.
        row: Row of the search.

    Source: as ``draw_arm``, AB-MCTS-M, which samples the same model by Markov chains.
    """
    weights, highest = np.empty((len(_SPREADS), len(_NOISES))), -np.inf
    for i in range(len(_SPREADS)):
        for j in range(len(_NOISES)):
            weights[i, j] = _log_evidence(counts, totals, squares, _SPREADS[i], _NOISES[j])
            highest = max(highest, weights[i, j])
    whole = 0.0
    for i in range(len(_SPREADS)):
        for j in range(len(_NOISES)):
            weights[i, j] = math.exp(weights[i, j] - highest)
            whole += weights[i, j]
    wanted, reached, at_spread, at_noise = _uniform(draws, row) * whole, 0.0, len(_SPREADS) - 1, len(_NOISES) - 1
    for i in range(len(_SPREADS)):
        for j in range(len(_NOISES)):
            before, reached = reached, reached + weights[i, j]
            if before <= wanted < reached:
                at_spread, at_noise = i, j
    spread, noise = _SPREADS[at_spread], _NOISES[at_noise]
    precision, mean = _common_mean(counts, totals, spread, noise)
    mu = mean + _standard_normal(draws, row) / math.sqrt(precision)
    found = np.empty(len(counts) + 1)
    for k in range(len(found)):
        count, total = (counts[k], totals[k]) if k < len(counts) else (0.0, 0.0)
        own = count / noise**2 + 1.0 / spread**2
        alpha = (total / noise**2 + mu / spread**2) / own + _standard_normal(draws, row) / math.sqrt(own)
        found[k] = alpha + noise * _standard_normal(draws, row)
    return found


@compiled
def _common_mean(counts: Float[np.ndarray, "K"], totals: Float[np.ndarray, "K"], spread: float, noise: float) -> Any:
    """Return precision and mean of mu given the two standard deviations."""
    precision, weighted = 1.0 / _MIXED_SPREAD**2, _MIXED_MEAN / _MIXED_SPREAD**2
    for k in range(len(counts)):
        if counts[k] > 0:
            weight = 1.0 / (spread**2 + noise**2 / counts[k])
            precision, weighted = precision + weight, weighted + weight * totals[k] / counts[k]
    return precision, weighted / precision


@compiled
def _log_evidence(
    counts: Float[np.ndarray, "K"], totals: Float[np.ndarray, "K"], squares: Float[np.ndarray, "K"], spread: float, noise: float
) -> float:
    """Return the logarithm of the likelihood of all scores given the two standard deviations, up to a constant."""
    precision, mean = _common_mean(counts, totals, spread, noise)
    found = -0.5 * math.log(precision) + 0.5 * precision * mean * mean
    for k in range(len(counts)):
        if counts[k] > 0:
            own = totals[k] / counts[k]
            variance = spread**2 + noise**2 / counts[k]
            scatter = max(squares[k] - totals[k] * own, 0.0)
            found -= (counts[k] - 1) * math.log(noise) + 0.5 * scatter / noise**2 + 0.5 * math.log(variance) + 0.5 * own * own / variance
    return found


@compiled
def descend_adaptively(tree: Tree, rows: Int[np.ndarray, "b"], belief: int, draws: ArmDraws) -> Int[np.ndarray, "b"]:
    """Return the node that each row's descent samples. Every node on the way must have an open node at or below it.

    A node without children is sampled. Elsewhere a new step is drawn against going on (``normal``, ``beta``), and if that wins, the
    children against each other; or all of them together (``mixed``). Ties go to the new step, then to the first child.
    """
    leaves = np.empty(len(rows), np.int64)
    for i in range(len(rows)):
        at = _ROOT
        while tree.children_index[rows[i], at, 0] != _UNVISITED:
            child = _choose(tree.nodes[rows[i]], int(tree.num_nodes[rows[i]]), tree.children_index[rows[i], at], at, belief, draws, rows[i])
            if child < 0:
                break
            at = child
        leaves[i] = at
    return leaves


@compiled
def _choose(nodes: Nodes, num_nodes: int, slots: Int[np.ndarray, "S"], at: int, belief: int, draws: ArmDraws, row: int) -> int:
    """Return the child to go on with, or -1 for a new step."""
    num_children, num_open = 0, 0
    while num_children < len(slots) and slots[num_children] != _UNVISITED:
        num_open += nodes[slots[num_children]].open_leaves
        num_children += 1
    if num_open == 0:
        return -1
    arms, settled = _arms(nodes, num_nodes, at, num_children)
    if belief == _MIXED:
        best = _best_together(nodes, slots[:num_children], at, arms, settled, draws, row)
    elif nodes[at].growable and _generates(arms, belief, draws, row):
        best = -1
    else:
        best = _best_child(nodes, slots[:num_children], arms, belief, draws, row)
    return slots[best] if best >= 0 else -1


@compiled
def _generates(arms: Float[np.ndarray, "K+1 3"], belief: int, draws: ArmDraws, row: int) -> bool:
    """Draw a new step against going on, whose scores are those below the children."""
    new = arms[-1]
    below = np.zeros(3)
    for k in range(len(arms) - 1):
        below += arms[k]
    below -= new
    generated = draw_arm(Arm(new[0], new[1], new[2]), belief, draws, row)
    return generated >= draw_arm(Arm(below[0], below[1], below[2]), belief, draws, row)


@compiled
def _best_child(
    nodes: Nodes, children: Int[np.ndarray, "K"], arms: Float[np.ndarray, "K+1 3"], belief: int, draws: ArmDraws, row: int
) -> int:
    """Draw the open children against each other and return the place of the best one."""
    best, highest = -1, -np.inf
    for k in range(len(children)):
        if nodes[children[k]].open_leaves > 0:
            drawn = draw_arm(Arm(arms[k, 0], arms[k, 1], arms[k, 2]), belief, draws, row)
            if best < 0 or drawn > highest:
                best, highest = k, drawn
    return best


@compiled
def _best_together(
    nodes: Nodes,
    children: Int[np.ndarray, "K"],
    at: int,
    arms: Float[np.ndarray, "K+1 3"],
    settled: np.ndarray,
    draws: ArmDraws,
    row: int,
) -> int:
    """Draw a new step and the children from one belief, and return the place of the best child, or -1 for the new step.

    Settled children are left out, unless nothing new can be sampled.
    """
    scores = draw_mixed(arms[:-1, 0].copy(), arms[:-1, 1].copy(), arms[:-1, 2].copy(), draws, row)
    generates = nodes[at].growable
    best, highest = -1, scores[-1] if generates else -np.inf
    for k in range(len(children)):
        if nodes[children[k]].open_leaves > 0 and not (settled[k] and generates) and scores[k] > highest:
            best, highest = k, scores[k]
    return best


@compiled
def _arms(nodes: Nodes, num_nodes: int, at: int, num_children: int) -> Any:
    """Return count, sum and squares of the scores below each child of a node and, last, of its children; and which ones are settled."""
    groups = np.full(num_nodes, -1)
    arms, settled = np.zeros((num_children + 1, 3)), np.zeros(num_children, np.bool_)
    for node in range(at + 1, num_nodes):
        parent = nodes[node].parent
        # Parents come before their children.
        groups[node] = nodes[node].slot if parent == at else groups[parent]
        score = float(nodes[node].raw_value)
        if groups[node] < 0 or math.isnan(score):
            continue
        arms[groups[node], 0] += 1
        arms[groups[node], 1] += score
        arms[groups[node], 2] += score * score
        if parent == at:
            arms[num_children, 0] += 1
            arms[num_children, 1] += score
            arms[num_children, 2] += score * score
    for k in range(num_children):
        if arms[k, 0] >= _SETTLED_SCORES:
            settled[k] = _most_equal(nodes, groups, k) >= _SETTLED_SHARE * arms[k, 0]
    return arms, settled


@compiled
def _most_equal(nodes: Nodes, groups: Int[np.ndarray, "n"], group: int) -> int:
    """Return the number of scores of a group that are most often equal, to a hundredth."""
    most = 0
    for i in range(len(groups)):
        if groups[i] != group or math.isnan(nodes[i].raw_value):
            continue
        equal = 0
        for j in range(len(groups)):
            if groups[j] == group and not math.isnan(nodes[j].raw_value):
                equal += round(nodes[j].raw_value * _SETTLED_UNIT) == round(nodes[i].raw_value * _SETTLED_UNIT)
        most = max(most, equal)
    return most
