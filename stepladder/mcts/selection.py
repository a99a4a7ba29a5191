"""Selection by other rules than descent (see ``descent``): beams, the best leaf anywhere, the root; and the priors among siblings.

Axes: b trees, W leaves per tree, G groups of a beam.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from stepladder.mcts.descent import NO_LEAF
from stepladder.mcts.tree import Tree, reserve

PRIORS = ("uniform", "ones", "frequency", "mean-logp", "norm-logp", "exp-mean-logp", "exp-norm-logp")
LENGTH_POWER = 1.25
"""Power of a step's length in ``norm-logp``."""


def select_beam(
    tree: Tree, rows: Int[np.ndarray, "b"], num_leaves: Int[np.ndarray, "b"], *, widths: Int[np.ndarray, "b G"]
) -> tuple[Int[np.ndarray, "b W"], Int[np.ndarray, "b G"]]:
    """Select the best nodes of the deepest level as the next beams, and reserve those to be expanded.

    The children of the root are dealt out to G groups by their slots, and every node belongs to the group of the child above it. Of each
    group the best nodes of the level, as many as its width, are kept: those that ended leave the beam, which is narrower from then on, and
    the others are expanded. Nodes are ranked by raw value, unscored ones last, then by prior, then by index.

    Args:
        tree: The trees.
        rows: Rows.
        num_leaves: Expansions that the budget allows, at least 1 per row.
        widths: Beams still running per row and group.

    Returns:
        The leaves to expand, best first, with ``NO_LEAF`` in the places of those that ended; and the new widths.

    Source: Chen et al. 2024, "AlphaMath almost zero", step-level beam search SBS(B1, B2); groups: Beeching et al. 2024, "Scaling test-time
    compute with open models" (diverse verifier tree search), where every group is as wide as one beam.
    """
    num_nodes = tree.num_nodes[rows]
    used, num_groups = int(num_nodes.max()), widths.shape[1]
    depth, index = tree.depth[rows, :used], np.arange(used)
    candidate = (depth == tree.depth[rows, num_nodes - 1][:, None]) & (index < num_nodes[:, None])
    raw, prior = tree.raw_value[rows, :used], tree.prior[rows, :used]
    score = np.where(np.isnan(raw), -1.0, raw)
    order: np.ndarray = np.lexsort((np.broadcast_to(index, raw.shape), -prior, -score, ~candidate), axis=-1)
    candidate = np.take_along_axis(candidate, order, axis=-1)
    most = int(candidate.sum(axis=-1).max())
    order, candidate = order[:, :most], candidate[:, :most]
    group = _groups(tree, rows, order, num_groups)
    ended = np.take_along_axis(tree.terminal[rows, :used] | tree.truncated[rows, :used], order, axis=-1)
    kept, widths = np.zeros_like(candidate), widths.copy()
    for number in range(num_groups):
        member = candidate & (group == number)
        member &= np.cumsum(member, axis=-1) <= widths[:, number, None]
        kept |= member
        widths[:, number] -= (member & ended).sum(axis=-1)
    expand = kept & ~ended
    expand &= np.cumsum(expand, axis=-1) <= num_leaves[:, None]
    # The kept ones first, in their order.
    first = np.argsort(~kept, axis=-1, kind="stable")[:, : max(int(kept.sum(axis=-1).max()), 1)]
    waves = np.take_along_axis(np.where(expand, order, NO_LEAF), first, axis=-1)
    reserve_waves(tree, rows, waves)
    return waves, widths


def _groups(tree: Tree, rows: Int[np.ndarray, "b"], nodes: Int[np.ndarray, "b n"], num_groups: int) -> Int[np.ndarray, "b n"]:
    """Return the group of each node, from the slot of the root's child above it; the root itself is in group 0."""
    if num_groups == 1:
        return np.zeros_like(nodes)
    column = rows[:, None]
    while (above := tree.depth[column, nodes] > 1).any():
        nodes = np.where(above, tree.parent[column, nodes], nodes)
    return np.maximum(tree.slot[column, nodes], 0) % num_groups


def select_frontier(
    tree: Tree, rows: Int[np.ndarray, "b"], num_leaves: Int[np.ndarray, "b"], *, deepest_first: bool, min_value: float
) -> Int[np.ndarray, "b W"]:
    """Select the best open leaves of the whole tree, wherever they are, and reserve them.

    Leaves are ranked by raw value, unscored ones last, then by index; with ``deepest_first`` by depth before anything else.

    Args:
        tree: The trees.
        rows: Rows.
        num_leaves: Leaves wanted per row.
        deepest_first: Depth-first instead of best-first search.
        min_value: Leaves with a lower raw value are never selected; unscored ones pass.

    Returns:
        The leaves, best first, ``NO_LEAF`` behind the last one of a row.

    Source: Yao et al. 2023, "Tree of thoughts" (depth-first with pruning); Hart et al. 1968, A*, with the estimate as the whole priority.
    """
    used = int(tree.num_nodes[rows].max())
    raw, index = tree.raw_value[rows, :used], np.arange(used)
    leaf = (tree.open_leaves[rows, :used] > 0) & (tree.children_index[rows, :used, 0] == Tree.UNVISITED)
    leaf &= (index < tree.num_nodes[rows][:, None]) & ~(raw < min_value)
    depth = tree.depth[rows, :used] if deepest_first else np.zeros_like(leaf, np.int32)
    score = np.where(np.isnan(raw), -np.inf, raw)
    order: np.ndarray = np.lexsort((np.broadcast_to(index, raw.shape), -score, -depth, ~leaf), axis=-1)
    order = order[:, : max(int(num_leaves.max()), 1)]
    taken = np.take_along_axis(leaf, order, axis=-1) & (np.arange(order.shape[1]) < num_leaves[:, None])
    waves = np.where(taken, order, NO_LEAF)
    reserve_waves(tree, rows, waves)
    return waves


def reserve_waves(tree: Tree, rows: Int[np.ndarray, "b"], waves: Int[np.ndarray, "b W"]) -> None:
    """Reserve the leaves of waves that were selected otherwise than by a descent."""
    for place in range(waves.shape[1]):
        chosen = np.flatnonzero(waves[:, place] != NO_LEAF)
        reserve(tree, rows[chosen], waves[chosen, place])


def select_root(rows: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b 1"]:
    """Select the root of every row: plain sampling draws whole solutions from it, as many per wave as the budget allows."""
    return np.full((len(rows), 1), Tree.ROOT, np.int64)


def sibling_priors(
    counts: Sequence[int], mean_logps: Sequence[float], *, rule: str, lengths: Sequence[int] = (), temperature: float = 1.0
) -> list[float]:
    """Return the prior probability of each distinct sibling.

    Args:
        counts: Samples that were merged into each sibling, >= 1.
        mean_logps: Mean log-probability of each sibling's tokens, in nats, -inf for a failed one. Not read by ``uniform`` and
            ``frequency``.
        rule: ``uniform``; ``ones`` (1 for each, which does not sum to 1: exploration without priors); ``frequency`` (share of the samples);
            ``mean-logp`` (softmax of the mean log-probabilities over the siblings); ``norm-logp`` (the same of sum / L^1.25);
            ``exp-mean-logp`` and ``exp-norm-logp`` (the exponentials themselves, which do not sum to 1). Uniform when all
            log-probabilities are -inf.
        lengths: Tokens of each sibling; read by the two ``norm`` rules only.
        temperature: Divides the log-probabilities (``frequency``: the logarithms of the shares), > 0; 1 changes nothing.

    Source: mean-logp: Chen et al. 2024, "AlphaMath almost zero"; norm-logp: Xie et al. 2024, "Monte Carlo tree search boosts reasoning via
    iterative preference learning". Both use the bare exponentials; the softmax over the siblings is ours.
    """
    if rule == "frequency" and temperature == 1.0:
        total = sum(counts)
        return [count / total for count in counts]
    if rule == "ones":
        return [1.0] * len(counts)
    logps = _sibling_logps(counts, mean_logps, lengths, rule)
    top = max(logps)
    if top == -math.inf:
        return [1.0 / len(counts)] * len(counts)
    if rule.startswith("exp-"):
        return [math.exp(logp / temperature) for logp in logps]
    weights = [math.exp((logp - top) / temperature) for logp in logps]
    total = sum(weights)
    return [weight / total for weight in weights]


def _sibling_logps(counts: Sequence[int], mean_logps: Sequence[float], lengths: Sequence[int], rule: str) -> Sequence[float]:
    if rule == "uniform":
        return [0.0] * len(counts)
    if rule == "frequency":
        return [math.log(count) for count in counts]
    if rule in ("norm-logp", "exp-norm-logp"):
        # sum / L^1.25 = mean / L^0.25; a failed sibling has no tokens.
        return [logp / max(length, 1) ** (LENGTH_POWER - 1) for logp, length in zip(mean_logps, lengths, strict=True)]
    return mean_logps


def mix_root_noise(priors: Sequence[float], *, fraction: float, alpha: float, seed: int) -> list[float]:
    """Return priors mixed with Dirichlet noise: (1 - fraction) * P + fraction * Dir(alpha).

    Args:
        priors: Priors of the root's children.
        fraction: Share of the noise, in [0, 1].
        alpha: Concentration of the noise, > 0.
        seed: Seed of the noise.

    Source: Silver et al. 2017, "Mastering the game of Go without human knowledge", Methods.
    """
    noise = np.random.default_rng(seed).dirichlet([alpha] * len(priors)).tolist()
    return [(1 - fraction) * prior + fraction * extra for prior, extra in zip(priors, noise, strict=True)]
