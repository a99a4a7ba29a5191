"""The search tree of many problems at once, as arrays.

Axes: B problems (rows), N nodes, K child slots. Nodes hold all statistics; those of the edge (node, slot) are read from the child that
the slot points to, so nothing is stored twice. Nodes are numbered in the order in which they were added and never renumbered, so parents
come before their children. The steps themselves (tokens, text, score) stand beside the arrays, in one ``StepTable`` per row.

Memory: ``Tree.bytes_per_node`` = 52 + 4 K bytes per node for the arrays (68 at K = 4); the steps cost what their tokens cost. ``grow``
doubles the arrays when a row is full, so a search that stops early never holds the nodes that its budget would have allowed.
"""

from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from stepladder.errors import ShapeError
from stepladder.mcts.compiled import compiled
from stepladder.types import Step, StopReason

NODE = np.dtype(
    [
        ("parent", np.int32),
        ("slot", np.int32),
        ("depth", np.int32),
        ("prior", np.float32),
        ("reward", np.float32),
        ("raw_value", np.float32),
        ("value", np.float32),
        ("visits", np.int32),
        ("returns", np.int32),
        ("in_flight", np.int32),
        ("open_leaves", np.int32),
        ("samples", np.int32),
        ("terminal", np.bool_),
        ("truncated", np.bool_),
        ("growable", np.bool_),
    ],
    align=True,
)
"""The data of one node, adjacent in memory, because a walk through a tree reads most of it; see ``Tree`` for the fields."""

Nodes = Any
"""An array of ``NODE``: type checkers do not know the fields of its elements."""


class Tree(NamedTuple):
    """Search trees of B problems.

    Visit-count identity: an inner node's visits are those of its children plus the simulations that ended in the node itself. The root's
    visits are all simulations. How many end in a node follows from the method's evaluation rule (see ``SearchMethod.evaluation``).
    """

    ROOT = 0
    """Index of the root in every row."""
    NO_PARENT = -1
    """Parent of the root."""
    UNVISITED = -1
    """Entry of a child slot without a node."""
    NO_SLOT = -1
    """Slot of a node that its parent does not point to: the root's, and all of a sampled tree, which is never descended."""

    num_nodes: Int32[np.ndarray, "B"]
    """Nodes in use, the root included."""
    children_index: Int32[np.ndarray, "B N K"]
    """Node in each child slot; slots are filled from the first on."""
    nodes: Nodes
    """Everything else, [B, N] of ``NODE``. The properties are views of its fields."""

    @property
    def parent(self) -> Int32[np.ndarray, "B N"]:
        """Index of the parent."""
        return self.nodes["parent"]

    @property
    def slot(self) -> Int32[np.ndarray, "B N"]:
        """Child slot of the node at its parent."""
        return self.nodes["slot"]

    @property
    def depth(self) -> Int32[np.ndarray, "B N"]:
        """Steps from the root."""
        return self.nodes["depth"]

    @property
    def prior(self) -> Float32[np.ndarray, "B N"]:
        """Prior probability of the edge into the node among its siblings."""
        return self.nodes["prior"]

    @property
    def reward(self) -> Float32[np.ndarray, "B N"]:
        """Reward of the edge into the node; 0 for outcome-only tasks."""
        return self.nodes["reward"]

    @property
    def raw_value(self) -> Float32[np.ndarray, "B N"]:
        """The scorer's or verifier's estimate at the node; NaN while unscored."""
        return self.nodes["raw_value"]

    @property
    def value(self) -> Float32[np.ndarray, "B N"]:
        """Backed-up return; NaN without any return."""
        return self.nodes["value"]

    @property
    def visits(self) -> Int32[np.ndarray, "B N"]:
        """Simulations that passed through the node or created it."""
        return self.nodes["visits"]

    @property
    def returns(self) -> Int32[np.ndarray, "B N"]:
        """Visits that brought a return: a visit below which nothing is scored yet brings none."""
        return self.nodes["returns"]

    @property
    def in_flight(self) -> Int32[np.ndarray, "B N"]:
        """Selected leaves at or below the node whose results are not complete yet (virtual visits)."""
        return self.nodes["in_flight"]

    @property
    def open_leaves(self) -> Int32[np.ndarray, "B N"]:
        """Nodes at or below the node that selection may still end in; those in flight are not among them.

        They are leaves, and if nodes can be sampled again, inner nodes, too (``growable``).
        """
        return self.nodes["open_leaves"]

    @property
    def samples(self) -> Int32[np.ndarray, "B N"]:
        """Samples drawn after the node so far, repeated ones included."""
        return self.nodes["samples"]

    @property
    def growable(self) -> Bool[np.ndarray, "B N"]:
        """Whether the node may be selected to be sampled, for the first time or again; not while it is in flight."""
        return self.nodes["growable"]

    @property
    def terminal(self) -> Bool[np.ndarray, "B N"]:
        """Whether the solution ended here by itself."""
        return self.nodes["terminal"]

    @property
    def truncated(self) -> Bool[np.ndarray, "B N"]:
        """Whether a limit or a failure cut the solution here."""
        return self.nodes["truncated"]

    @property
    def bytes_per_node(self) -> int:
        """Bytes that one node takes in all the arrays together."""
        return self.nodes.itemsize + self.children_index.itemsize * self.children_index.shape[2]


# Compiled code reads constants of modules, not of classes.
_NO_PARENT, _NO_SLOT = Tree.NO_PARENT, Tree.NO_SLOT


def _unused_node() -> np.ndarray:
    node = np.zeros((), NODE)
    node["parent"], node["slot"], node["raw_value"], node["value"] = Tree.NO_PARENT, Tree.NO_SLOT, np.nan, np.nan
    return node


def allocate(num_trees: int, *, num_nodes: int, num_slots: int) -> Tree:
    """Return trees with only their roots, with room for ``num_nodes`` nodes of ``num_slots`` children each.

    Raises:
        ShapeError: If an extent is below 1.
    """
    for name, extent in (("num_trees", num_trees), ("num_nodes", num_nodes), ("num_slots", num_slots)):
        if extent < 1:
            raise ShapeError(f"allocate: {name} must be at least 1: got {extent}")
    tree = Tree(
        num_nodes=np.empty(num_trees, np.int32),
        children_index=np.empty((num_trees, num_nodes, num_slots), np.int32),
        nodes=np.empty((num_trees, num_nodes), NODE),
    )
    reset_rows(tree, np.arange(num_trees))
    return tree


def grow(tree: Tree, *, num_nodes: int, num_slots: int) -> Tree:
    """Return the same trees with room for at least so many nodes and slots. An extent that grows at least doubles."""
    num_trees, old_nodes, old_slots = tree.children_index.shape
    new_nodes = old_nodes if num_nodes <= old_nodes else max(num_nodes, 2 * old_nodes)
    new_slots = old_slots if num_slots <= old_slots else max(num_slots, 2 * old_slots)
    if (new_nodes, new_slots) == (old_nodes, old_slots):
        return tree
    grown = allocate(num_trees, num_nodes=new_nodes, num_slots=new_slots)
    grown.num_nodes[:] = tree.num_nodes
    grown.children_index[:, :old_nodes, :old_slots] = tree.children_index
    grown.nodes[:, :old_nodes] = tree.nodes
    return grown


def reset_rows(tree: Tree, rows: Int[np.ndarray, "b"]) -> None:
    """Empty some rows, in place: each then has only an unvisited, open, unscored root."""
    tree.num_nodes[rows] = 1
    tree.children_index[rows] = Tree.UNVISITED
    tree.nodes[rows] = _unused_node()
    tree.prior[rows, Tree.ROOT] = 1.0
    tree.open_leaves[rows, Tree.ROOT] = 1
    tree.growable[rows, Tree.ROOT] = True


class NewNodes(NamedTuple):
    """M nodes to add, of any rows; within a row in the order of their indices."""

    rows: Int[np.ndarray, "M"]
    """Row of each node."""
    parents: Int[np.ndarray, "M"]
    """Parent's index; an earlier node of the same batch may be a parent."""
    slots: Int[np.ndarray, "M"]
    """The parent's next free slot, or ``Tree.NO_SLOT``."""
    depths: Int[np.ndarray, "M"]
    """Steps from the root."""
    priors: Float32[np.ndarray, "M"]
    """Prior probability among the siblings."""
    rewards: Float32[np.ndarray, "M"]
    """Rewards of the edges."""
    raw_values: Float32[np.ndarray, "M"]
    """Estimate at the node; NaN when unscored."""
    visited: Bool[np.ndarray, "M"]
    """Whether the node starts with one visit, worth its raw value if it has one."""
    selectable: Bool[np.ndarray, "M"]
    """Whether selection may end in the node."""
    terminal: Bool[np.ndarray, "M"]
    """The solution ended here by itself."""
    truncated: Bool[np.ndarray, "M"]
    """A limit or a failure cut the solution here."""


def add_nodes(tree: Tree, new: NewNodes) -> Int[np.ndarray, "M"]:
    """Add nodes, in place, and return their indices: the next ones of each row, in the given order.

    The caller accounts for the new leaves at their ancestors (``backup_paths``) and sees to the room (``grow``).

    Raises:
        ShapeError: If a row has no room left for its nodes or a slot lies outside the slots.
    """
    _, capacity, num_slots = tree.children_index.shape
    needed = int((tree.num_nodes + np.bincount(new.rows, minlength=len(tree.num_nodes))).max())
    last_slot = int(new.slots.max(initial=Tree.NO_SLOT))
    if needed > capacity or last_slot >= num_slots:
        raise ShapeError(
            f"add_nodes: no room: got {needed} nodes and slot {last_slot} in {tree.children_index.shape} -- grow the tree before adding"
        )
    return _write_nodes(tree, new)


@compiled
def _write_nodes(tree: Tree, new: NewNodes) -> Int[np.ndarray, "M"]:
    indices = np.empty(len(new.rows), np.int64)
    for i in range(len(new.rows)):
        row, parent, slot = new.rows[i], new.parents[i], new.slots[i]
        indices[i] = tree.num_nodes[row]
        tree.num_nodes[row] += 1
        if slot != _NO_SLOT:
            tree.children_index[row, parent, slot] = indices[i]
        node = tree.nodes[row, indices[i]]
        node.parent, node.slot, node.depth = parent, slot, new.depths[i]
        node.prior, node.reward, node.raw_value = new.priors[i], new.rewards[i], new.raw_values[i]
        if new.visited[i]:
            node.visits, node.returns, node.value = 1, not np.isnan(new.raw_values[i]), new.raw_values[i]
        node.open_leaves, node.terminal, node.truncated = new.selectable[i], new.terminal[i], new.truncated[i]
        node.growable = not (new.terminal[i] or new.truncated[i])
    return indices


@compiled
def reserve(tree: Tree, rows: Int[np.ndarray, "b"], leaves: Int[np.ndarray, "b"]) -> None:
    """Mark leaves as in flight, in place: a virtual visit on the path, and no second selection of a node to be sampled.

    A terminal or truncated leaf stays open. It needs no request, and the method decides whether it may be visited again.
    """
    for i in range(len(rows)):
        nodes, at = tree.nodes[rows[i]], leaves[i]
        closes, nodes[at].growable = nodes[at].growable, False
        while at != _NO_PARENT:
            nodes[at].in_flight += 1
            nodes[at].open_leaves -= closes
            at = nodes[at].parent


@compiled
def add_open(tree: Tree, rows: Int[np.ndarray, "b"], nodes: Int[np.ndarray, "b"], opened: Int[np.ndarray, "b"]) -> None:
    """Add to the numbers of open leaves on the paths from nodes to the roots, in place, without a visit."""
    for i in range(len(rows)):
        at = nodes[i]
        while at != _NO_PARENT:
            tree.nodes[rows[i], at].open_leaves += opened[i]
            at = tree.nodes[rows[i], at].parent


@compiled
def land(tree: Tree, rows: Int[np.ndarray, "b"], leaves: Int[np.ndarray, "b"]) -> None:
    """Remove the virtual visits of complete waves, in place.

    The paths of a row's leaves in flight land together, so that none of their nodes has virtual visits left.
    """
    for i in range(len(rows)):
        nodes, at = tree.nodes[rows[i]], leaves[i]
        while at != _NO_PARENT:
            nodes[at].in_flight = 0
            at = nodes[at].parent


@dataclass(slots=True)
class StepTable:
    """The steps of one row: entry i of every list belongs to node i, and the root's are empty. Rare data is stored by node."""

    parents: list[int] = field(default_factory=lambda: [Tree.NO_PARENT])
    """Parent index."""
    depths: list[int] = field(default_factory=lambda: [0])
    """Steps from the root."""
    steps: list[Step] = field(default_factory=lambda: [Step(token_ids=(), logps=(), text="", stop_reason=StopReason.STEP)])
    """The step into the node."""
    stop_reasons: list[StopReason] = field(default_factory=lambda: [StopReason.STEP])
    """The step's stop reason; DEPTH if the depth limit cut the solution."""
    scores: list[float | None] = field(default_factory=lambda: [None])
    """PRM score of the step."""
    answers: dict[int, str] = field(default_factory=dict)
    """Final answers of the terminals in which one could be read."""
    outcomes: dict[int, float] = field(default_factory=dict)
    """Verdicts on ended nodes, label mode only."""
    has_observations: bool = False
    """Whether any step is followed by one."""
    has_actions: bool = False
    """Whether any step is of a kind."""

    def path(self, node: int) -> list[int]:
        """Return the nodes from the first step to ``node``, without the root."""
        path = []
        while node != Tree.ROOT:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def path_ids(self, node: int) -> tuple[int, ...]:
        """Return the tokens of all steps from the root to ``node``, and of the observations after them."""
        steps, parents, ids = self.steps, self.parents, []
        while node != Tree.ROOT:
            if steps[node].given_ids:
                ids.append(steps[node].given_ids)
            ids.append(steps[node].token_ids)
            node = parents[node]
        ids.reverse()
        return tuple(chain.from_iterable(ids))

    def observations(self, node: int) -> tuple[tuple[int, int], ...]:
        """Return the ranges of ``path_ids`` that are observations, as (begin, end)."""
        if not self.has_observations:
            return ()
        found, end = [], 0
        for on_path in self.path(node):
            step = self.steps[on_path]
            begin = end + len(step.token_ids)
            end = begin + len(step.given_ids)
            if end > begin:
                found.append((begin, end))
        return tuple(found)

    def path_text(self, node: int) -> str:
        """Return what the policy wrote so far as text, without observations: an answer is read from nothing else."""
        return "".join([self.steps[on_path].text for on_path in self.path(node)])
