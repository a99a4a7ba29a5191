"""Backup: returns travel from a leaf to the root.

One call updates at most one path per tree, all trees at once; the paths of a wave are backed up one after another in the wave's order.
"""

import numpy as np
from jaxtyping import Float, Int

from stepladder.mcts.tree import Tree

BACKUP_RULES = ("mean", "child-mean", "uniform-child-mean", "max", "min")

_OF_CHILDREN = ("child-mean", "uniform-child-mean", "max")


def backup_paths(
    tree: Tree,
    rows: Int[np.ndarray, "b"],
    nodes: Int[np.ndarray, "b"],
    returns: Float[np.ndarray, "b"],
    *,
    opened: Int[np.ndarray, "b"],
    rule: str = "mean",
    discount: float = 1.0,
) -> None:
    """Add one visit to every node from ``nodes`` to the roots, in place, with the return as seen from each of them.

    The return at a parent is the edge's reward plus ``discount`` times the return at the child. A NaN return (nothing is scored below)
    counts as a visit and leaves the values alone.

    Args:
        tree: The trees.
        rows: Rows, all different.
        nodes: Where each path starts.
        returns: Return at the start, NaN when there is none.
        opened: Change of the number of open leaves on the path.
        rule: ``mean``: the value is the mean of all returns. ``child-mean``: the value of a node with valued children is their
            visit-weighted mean, sum_c n_c Q_c / sum_c n_c, which forgets the node's own estimate; without any, the mean of its returns.
            ``uniform-child-mean``: the same with equal weights. ``max``: the same with the best Q_c alone. ``min``: the mean of all
            returns, where the return at a node is the lesser of the return from below and the node's own estimate, so that a path is
            worth its weakest step.
        discount: Per step, in (0, 1]; -1 for games of two players.

    Source: mean: Coulom 2006, "Efficient selectivity and backup operators in Monte-Carlo tree search"; child-mean: Zhang et al. 2024,
    "ReST-MCTS*", Algorithm 2; uniform-child-mean: He et al. 2025, "Random policy valuation is enough for LLM reasoning with verifiable
    rewards"; min: Cheng et al. 2025, "Stop summation: min-form credit assignment is all process reward model needs for reasoning", in the
    limit of temperature 0.
    """
    returns, opened = returns.astype(np.float32), opened.astype(np.int32)
    num_nodes = tree.parent.shape[1]
    flat = {
        name: getattr(tree, name).reshape(-1) for name in ("visits", "open_leaves", "returns", "value", "raw_value", "reward", "parent")
    }
    while rows.size:
        # One flat index instead of (row, node) pairs: NumPy gathers several times faster by it.
        at = rows * num_nodes + nodes
        flat["visits"][at] += 1
        flat["open_leaves"][at] += opened
        if rule == "min":
            returns = np.where(np.isnan(returns), returns, np.fmin(returns, flat["raw_value"].take(at)))
        _add_returns(flat["returns"], flat["value"], at, returns)
        if rule in _OF_CHILDREN:
            _take_from_children(tree, rows, nodes, rule, discount)
        returns = flat["reward"].take(at) + (returns if discount == 1.0 else np.float32(discount) * returns)
        nodes = flat["parent"].take(at)
        on = nodes != Tree.NO_PARENT
        if not on.all():
            rows, nodes, returns, opened = rows[on], nodes[on], returns[on], opened[on]


def _add_returns(
    num_returns: Int[np.ndarray, "n"], value: Float[np.ndarray, "n"], at: Int[np.ndarray, "b"], returns: Float[np.ndarray, "b"]
) -> None:
    known = ~np.isnan(returns)
    if not known.all():
        at, returns = at[known], returns[known]
    count = num_returns.take(at) + 1
    old = value.take(at)
    # The first return replaces NaN; a running mean keeps the value inside the range of the returns, which a sum of them would not.
    step = (returns - old) / count.astype(np.float32)
    value[at] = np.where(count == 1, returns, old + step)
    num_returns[at] = count


def _take_from_children(tree: Tree, rows: Int[np.ndarray, "b"], nodes: Int[np.ndarray, "b"], rule: str, discount: float) -> None:
    children = tree.children_index[rows, nodes]
    column = rows[:, None]
    qvalues = tree.reward[column, children] + np.float32(discount) * tree.value[column, children]
    counted = (children != Tree.UNVISITED) & ~np.isnan(qvalues) & (tree.visits[column, children] > 0)
    if rule == "max":
        values = np.where(counted, qvalues, -np.inf).max(axis=-1)
    else:
        weights = np.where(counted, tree.visits[column, children] if rule == "child-mean" else 1, 0)
        totals = (np.where(counted, qvalues, 0).astype(np.float64) * weights).sum(axis=-1)
        values = totals / np.maximum(weights.sum(axis=-1), 1)
    has = counted.any(axis=-1)
    tree.value[rows[has], nodes[has]] = values[has].astype(np.float32)
