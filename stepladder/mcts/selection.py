"""Selection: from statistics to the leaves of the next wave.

Axes: b trees, K child slots, W leaves per tree. A score function maps trees and nodes to one score per child slot; ``select_descent``
follows the best open slot from the root down, W times per tree, with virtual loss between. Ties go to the first slot. ``select_beam`` and
``select_root`` are the selection rules of step-level beam search and of plain sampling.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from stepladder.mcts.qvalues import apply_virtual_loss, complete_qvalues, mix_critic, normalise_by_parent_and_siblings
from stepladder.mcts.tree import Tree, reserve

NO_LEAF = -1
"""Fills the places of a wave for which a tree has no leaf."""
PRIORS = ("uniform", "ones", "frequency", "mean-logp", "norm-logp", "exp-mean-logp", "exp-norm-logp")
NORMALISATIONS = ("none", "siblings")
LENGTH_POWER = 1.25
"""Power of a step's length in ``norm-logp``."""


class EdgeStats(NamedTuple):
    """What selection knows about the children of one node per tree."""

    rows: Int[np.ndarray, "b"]
    """Row of each tree."""
    nodes: Int[np.ndarray, "b"]
    """The nodes themselves."""
    children: Int[np.ndarray, "b K"]
    """Node in each slot, ``Tree.UNVISITED`` in empty ones, whose other entries mean nothing."""
    qvalues: Float[np.ndarray, "b K"]
    """reward + discount * value of the child; NaN without a return."""
    raw_values: Float[np.ndarray, "b K"]
    """The child's own estimate; NaN when unscored."""
    prior: Float[np.ndarray, "b K"]
    """Prior probabilities."""
    visits: Int[np.ndarray, "b K"]
    """Finished visits."""
    in_flight: Int[np.ndarray, "b K"]
    """Virtual visits."""
    is_open: Bool[np.ndarray, "b K"]
    """Slots with a node at or below which selection may still end."""
    parent_value: Float[np.ndarray, "b"]
    """Value of the node itself; NaN without a return."""
    parent_raw_value: Float[np.ndarray, "b"]
    """The node's own estimate; NaN when unscored."""
    parent_visits: Int[np.ndarray, "b"]
    """Finished and virtual visits of the node itself."""


Scores = Callable[[EdgeStats], Float[np.ndarray, "b K"]]


def edge_stats(tree: Tree, rows: Int[np.ndarray, "b"], nodes: Int[np.ndarray, "b"], *, discount: float = 1.0) -> EdgeStats:
    """Gather the statistics of all edges of one node per row."""
    num_nodes = tree.parent.shape[1]
    # One flat index instead of (row, node) pairs: NumPy gathers several times faster by it.
    offsets = rows * num_nodes
    at = offsets + nodes
    children = tree.children_index.reshape(-1, tree.children_index.shape[2]).take(at, axis=0)
    # Empty slots read the root, whatever it holds: their scores are masked.
    flat = offsets[:, None] + np.maximum(children, Tree.ROOT)
    values = tree.value.take(flat)
    return EdgeStats(
        rows=rows,
        nodes=nodes,
        children=children,
        qvalues=tree.reward.take(flat) + (values if discount == 1.0 else np.float32(discount) * values),
        raw_values=tree.raw_value.take(flat),
        prior=tree.prior.take(flat),
        visits=tree.visits.take(flat),
        in_flight=tree.in_flight.take(flat),
        is_open=(children != Tree.UNVISITED) & (tree.open_leaves.take(flat) > 0),
        parent_value=tree.value.take(at),
        parent_raw_value=tree.raw_value.take(at),
        parent_visits=tree.visits.take(at) + tree.in_flight.take(at),
    )


def puct_scores(
    qvalues: Float[np.ndarray, "b K"], prior: Float[np.ndarray, "b K"], visits: Int[np.ndarray, "b K"], *, c: float
) -> Float[np.ndarray, "b K"]:
    """Return the PUCT score of every child slot.

        score_k = Q_k + c * P_k * sqrt(sum_j n_j) / (1 + n_k)

    Args:
        qvalues: Completed edge values.
        prior: Prior probabilities; each row sums to 1, empty slots hold 0.
        visits: Visit counts, virtual ones included, >= 0; empty slots hold 0.
        c: Exploration constant, >= 0.

    Returns:
        One score per slot; the bare edge value where no slot was visited.

    Source: Silver et al. 2017, "Mastering the game of Go without human knowledge", Methods. We add no noise at the root.
    """
    return qvalues + c * prior * np.sqrt(visits.sum(axis=-1, keepdims=True, dtype=np.float64)) / (1 + visits)


def puct_mctx_scores(
    qvalues: Float[np.ndarray, "b K"],
    prior: Float[np.ndarray, "b K"],
    visits: Int[np.ndarray, "b K"],
    *,
    parent_visits: Int[np.ndarray, "b"],
    c_init: float,
    c_base: float,
) -> Float[np.ndarray, "b K"]:
    """Return the PUCT score of every child slot in MuZero's form.

        score_k = Q_k + P_k * sqrt(N) / (1 + n_k) * (c_init + ln((N + c_base + 1) / c_base))

    Args:
        qvalues: Edge values, completed or normalised.
        prior: Prior probabilities.
        visits: Visit counts n_k, virtual ones included.
        parent_visits: Visit counts N of the nodes themselves, virtual ones included.
        c_init: c_1, exploration at few visits.
        c_base: c_2, visits at which exploration has grown by ln 2.

    Source: Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned model", Appendix B, as mctx has it:
    N counts the node's own evaluation and the logarithm has the + 1. Ties go to the first slot instead of a random one. With the sum of the
    children's visits for N this is the paper's own form (``puct-muzero``).
    """
    total = parent_visits.astype(np.float64)[:, None]
    rate = c_init + np.log((total + c_base + 1) / c_base)
    return qvalues + prior * np.sqrt(total) * rate / (1 + visits)


def uct_scores(
    qvalues: Float[np.ndarray, "b K"], visits: Int[np.ndarray, "b K"], *, parent_visits: Int[np.ndarray, "b"], c: float
) -> Float[np.ndarray, "b K"]:
    """Return the UCT score of every child slot.

        score_k = Q_k + c * sqrt(ln N / n_k),   Q_k where n_k = 0

    Args:
        qvalues: Completed edge values; the rule for unvisited slots decides what stands there.
        visits: Visit counts n_k, virtual ones included.
        parent_visits: Visit counts N of the nodes themselves, virtual ones included; 0 counts as 1.
        c: Exploration constant, >= 0.

    Source: Kocsis & Szepesvari 2006, "Bandit based Monte-Carlo planning", in the form of rStar-Math (Guan et al. 2025), whose bonus is 0 at
    an unvisited child.
    """
    logs = np.log(np.maximum(parent_visits, 1).astype(np.float64))[:, None]
    return qvalues + c * np.sqrt(np.where(visits > 0, logs / np.maximum(visits, 1), 0.0))


def tree_scores(
    *, selection: str, c: float, c_base: float, unvisited: str, normalise: str, unvisited_bonus: float = 0.0, critic_mix: float = 0.0
) -> Scores:
    """Return the score function that a method's axes describe: complete or normalise, apply virtual loss, add exploration.

    Args:
        selection: ``puct``, ``puct-mctx``, ``puct-muzero`` or ``uct``.
        c: Exploration constant.
        c_base: Second constant of ``puct-mctx``.
        unvisited: Completion rule, see ``complete_qvalues``; not used when values are normalised.
        normalise: ``none`` or ``siblings`` (``normalise_by_parent_and_siblings``).
        unvisited_bonus: Added to the completed value of unvisited slots.
        critic_mix: Share of the children's own estimates in their values, see ``mix_critic``.

    """

    def scores(stats: EdgeStats) -> Float[np.ndarray, "b K"]:
        empty = stats.children == Tree.UNVISITED
        visits, prior = np.where(empty, 0, stats.visits), np.where(empty, 0.0, stats.prior)
        if normalise == "siblings":
            qvalues = normalise_by_parent_and_siblings(stats.qvalues, visits > 0, parent_value=stats.parent_value)
        else:
            qvalues = complete_qvalues(
                stats.qvalues,
                visits,
                parent_value=stats.parent_value,
                raw_values=stats.raw_values,
                rule=unvisited,
                bonus=unvisited_bonus,
            )
        if critic_mix:
            qvalues = mix_critic(qvalues, stats.raw_values, share=critic_mix)
        if stats.in_flight.any():
            in_flight = np.where(empty, 0, stats.in_flight)
            qvalues, visits = apply_virtual_loss(qvalues, visits, in_flight), visits + in_flight
        if selection == "puct":
            return puct_scores(qvalues, prior, visits, c=c)
        if selection == "puct-mctx":
            return puct_mctx_scores(qvalues, prior, visits, parent_visits=stats.parent_visits, c_init=c, c_base=c_base)
        if selection == "puct-muzero":
            return puct_mctx_scores(qvalues, prior, visits, parent_visits=visits.sum(axis=-1), c_init=c, c_base=c_base)
        return uct_scores(qvalues, visits, parent_visits=stats.parent_visits, c=c)

    return scores


def select_descent(
    tree: Tree,
    rows: Int[np.ndarray, "b"],
    num_leaves: Int[np.ndarray, "b"],
    *,
    scores: Scores,
    discount: float = 1.0,
    starts: Int[np.ndarray, "b"] | None = None,
) -> Int[np.ndarray, "b W"]:
    """Select up to ``num_leaves`` leaves per row, one descent after another, and reserve them in the tree.

    A descent begins at the root, or at the row's node in ``starts``, follows the best-scored slot among those with an open leaf below and
    ends in a node without children. Leaves in flight are not open, so no leaf to be expanded is selected twice; a row that runs out of open
    leaves gets fewer.

    Returns:
        The leaves in order of selection, ``NO_LEAF`` behind the last one of a row.
    """
    waves = np.full((len(rows), max(int(num_leaves.max(initial=0)), 1)), NO_LEAF, np.int64)
    starts = np.full(len(rows), Tree.ROOT) if starts is None else starts
    for place in range(waves.shape[1]):
        chosen = np.flatnonzero((num_leaves > place) & (tree.open_leaves[rows, starts] > 0))
        if not chosen.size:
            break
        waves[chosen, place] = leaves = _descend(tree, rows[chosen], starts[chosen], scores, discount)
        reserve(tree, rows[chosen], leaves)
    return waves


def _descend(tree: Tree, rows: Int[np.ndarray, "b"], starts: Int[np.ndarray, "b"], scores: Scores, discount: float) -> Int[np.ndarray, "b"]:
    leaves = starts.astype(np.int64)
    moving = np.arange(len(rows))
    first_child = tree.children_index[:, :, 0]
    while True:
        moving = moving[first_child[rows[moving], leaves[moving]] != Tree.UNVISITED]
        if not moving.size:
            return leaves
        stats = edge_stats(tree, rows[moving], leaves[moving], discount=discount)
        slots = np.where(stats.is_open, scores(stats), -np.inf).argmax(axis=-1)
        leaves[moving] = stats.children[np.arange(len(slots)), slots]


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
