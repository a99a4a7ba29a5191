"""Backup: returns travel from a leaf to the root.

One call updates at most one path per tree, all trees at once; the paths of a wave are backed up one after another in the wave's order.
"""

import numpy as np
from jaxtyping import Float, Int

from stepladder.mcts.tree import Tree

BACKUP_RULES = ("mean", "child-mean")


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
        discount: Per step, in (0, 1]; -1 for games of two players.

    Source: mean: Coulom 2006, "Efficient selectivity and backup operators in Monte-Carlo tree search"; child-mean: Zhang et al. 2024,
    "ReST-MCTS*", Algorithm 2.
    """
    returns, opened = returns.astype(np.float32), opened.astype(np.int32)
    num_nodes = tree.parent.shape[1]
    flat = {name: getattr(tree, name).reshape(-1) for name in ("visits", "open_leaves", "returns", "value", "reward", "parent")}
    while rows.size:
        # One flat index instead of (row, node) pairs: NumPy gathers several times faster by it.
        at = rows * num_nodes + nodes
        flat["visits"][at] += 1
        flat["open_leaves"][at] += opened
        _add_returns(flat["returns"], flat["value"], at, returns)
        if rule == "child-mean":
            _take_child_means(tree, rows, nodes, discount)
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


def _take_child_means(tree: Tree, rows: Int[np.ndarray, "b"], nodes: Int[np.ndarray, "b"], discount: float) -> None:
    children = tree.children_index[rows, nodes]
    column = rows[:, None]
    values = tree.reward[column, children] + np.float32(discount) * tree.value[column, children]
    weights = np.where((children != Tree.UNVISITED) & ~np.isnan(values), tree.visits[column, children], 0)
    totals = weights.sum(axis=-1)
    means = (np.where(weights > 0, values, 0).astype(np.float64) * weights).sum(axis=-1) / np.maximum(totals, 1)
    has = totals > 0
    tree.value[rows[has], nodes[has]] = means[has].astype(np.float32)
