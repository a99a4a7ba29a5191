"""Backup: returns travel from a leaf to the root.

The paths of a call go up one after another, in the order given: within a tree, the order of the wave.
"""

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from stepladder.mcts.compiled import compiled
from stepladder.mcts.tree import Nodes, Tree

BACKUP_RULES = ("mean", "child-mean", "uniform-child-mean", "max", "min")

# Compiled code compares numbers and reads constants of modules.
_MEAN, _CHILD_MEAN, _UNIFORM_CHILD_MEAN, _MAX, _MIN = range(len(BACKUP_RULES))
_NO_PARENT, _UNVISITED = Tree.NO_PARENT, Tree.UNVISITED


def backup_paths(
    tree: Tree,
    rows: Int[np.ndarray, "P"],
    nodes: Int[np.ndarray, "P"],
    returns: Float[np.ndarray, "P"],
    *,
    opened: Int[np.ndarray, "P"],
    rule: str = "mean",
    discount: float = 1.0,
) -> None:
    """Add one visit to every node from ``nodes`` to the roots, in place, with the return relative to each node.

    The return at a parent is the edge's reward plus ``discount`` times the return at the child. A NaN return (nothing is scored below)
    counts as a visit and leaves the values alone.

    Args:
        tree: The trees.
        rows: Row of each path.
        nodes: Start node of each path.
        returns: Return at the start; NaN without one.
        opened: Change of the number of open leaves on the path.
        rule: ``mean``: the value is the mean of all returns. ``child-mean``: the value of a node with valued children is their
            visit-weighted mean, sum_c n_c Q_c / sum_c n_c, which forgets the node's own estimate; without any, the mean of its returns.
            ``uniform-child-mean``: the same with equal weights. ``max``: the same with the best Q_c alone. ``min``: the mean of all
            returns, in which the return at a node is the smaller of the return from below and the node's own estimate, so that a path is
            worth its weakest step.
        discount: Per step, in (0, 1]; -1 for games of two players.

    Source: mean: Coulom 2006, "Efficient selectivity and backup operators in Monte-Carlo tree search"; child-mean: Zhang et al. 2024,
    "ReST-MCTS*", Algorithm 2; uniform-child-mean: He et al. 2025, "Random policy valuation is enough for LLM reasoning with verifiable
    rewards"; min: Cheng et al. 2025, "Stop summation: min-form credit assignment is all process reward model needs for reasoning", in the
    limit of temperature 0.
    """
    _walk_up(tree, rows, nodes, returns.astype(np.float32), opened.astype(np.int32), BACKUP_RULES.index(rule), float(discount))


@compiled
def _walk_up(
    tree: Tree,
    rows: Int[np.ndarray, "P"],
    starts: Int[np.ndarray, "P"],
    returns: Float32[np.ndarray, "P"],
    opened: Int32[np.ndarray, "P"],
    rule: int,
    discount: float,
) -> None:
    for i in range(len(rows)):
        nodes, at, amount = tree.nodes[rows[i]], starts[i], returns[i]
        while at != _NO_PARENT:
            node = nodes[at]
            node.visits += 1
            node.open_leaves += opened[i]
            if rule == _MIN and node.raw_value < amount:
                amount = node.raw_value
            if not np.isnan(amount):
                node.returns += 1
                # A running mean keeps the value inside the range of the returns, which a sum of them would not.
                node.value = amount if node.returns == 1 else node.value + (amount - node.value) / np.float32(node.returns)
            if rule in (_CHILD_MEAN, _UNIFORM_CHILD_MEAN, _MAX):
                node.value = _value_of_children(nodes, tree.children_index[rows[i], at], node.value, rule, discount)
            amount = node.reward + np.float32(discount) * amount
            at = node.parent


@compiled
def _value_of_children(nodes: Nodes, children: Int[np.ndarray, "K"], own: float, rule: int, discount: float) -> float:
    """Return a node's value from its children with a value; its own value without such children."""
    best, total, weights = -np.inf, 0.0, 0
    for child in children:
        if child == _UNVISITED:
            break
        visits, qvalue = nodes[child].visits, nodes[child].reward + np.float32(discount) * nodes[child].value
        if visits > 0 and not np.isnan(qvalue):
            weight = visits if rule == _CHILD_MEAN else 1
            best, total, weights = max(best, qvalue), total + qvalue * weight, weights + weight
    if weights == 0:
        return own
    return best if rule == _MAX else total / weights
