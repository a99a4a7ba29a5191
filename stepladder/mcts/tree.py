"""The search tree of many problems at once, as arrays.

Axes: B problems (rows), N nodes, K child slots. All statistics stand on nodes; those of the edge (node, slot) are read from the child that
the slot points to, so nothing is stored twice. Nodes are numbered in the order in which they were added and never renumbered, so parents
come before their children. The steps themselves (tokens, text, score) stand beside the arrays, in one ``StepTable`` per row.

Memory: ``Tree.bytes_per_node`` = 46 + 4 K bytes per node for the arrays (62 at K = 4); the steps cost what their tokens cost. ``grow``
doubles the arrays when a row is full, so a search that stops early never holds the nodes that its budget would have allowed.
"""

from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from stepladder.errors import ShapeError
from stepladder.types import Step, StopReason


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """Search trees of B problems.

    Visit-count identity: an inner node's visits are those of its children plus the simulations that ended in the node itself, and the
    root's are all simulations. How many end in a node follows from the method's evaluation rule (see ``SearchMethod.evaluation``).
    """

    ROOT: ClassVar[int] = 0
    """Index of the root in every row."""
    NO_PARENT: ClassVar[int] = -1
    """Parent of the root."""
    UNVISITED: ClassVar[int] = -1
    """Entry of a child slot without a node."""
    NO_SLOT: ClassVar[int] = -1
    """Slot of a node that its parent does not point to: the root's, and all of a sampled tree, which is never descended."""

    num_nodes: Int32[np.ndarray, "B"]
    """Nodes in use, the root included."""
    parent: Int32[np.ndarray, "B N"]
    """Index of the parent."""
    slot: Int32[np.ndarray, "B N"]
    """Child slot of the node at its parent."""
    depth: Int32[np.ndarray, "B N"]
    """Steps from the root."""
    children_index: Int32[np.ndarray, "B N K"]
    """Node in each child slot; slots are filled from the first on."""
    prior: Float32[np.ndarray, "B N"]
    """Prior probability of the edge into the node among its siblings."""
    reward: Float32[np.ndarray, "B N"]
    """Reward of the edge into the node; 0 for outcome-only tasks."""
    raw_value: Float32[np.ndarray, "B N"]
    """The scorer's or verifier's estimate at the node; NaN while unscored."""
    value: Float32[np.ndarray, "B N"]
    """Backed-up return; NaN while no return came by."""
    visits: Int32[np.ndarray, "B N"]
    """Simulations that passed through the node or created it."""
    returns: Int32[np.ndarray, "B N"]
    """Visits that brought a return: a visit below which nothing is scored yet brings none."""
    in_flight: Int32[np.ndarray, "B N"]
    """Selected leaves at or below the node whose results are not in yet (virtual visits)."""
    open_leaves: Int32[np.ndarray, "B N"]
    """Leaves at or below the node that selection may still end in; leaves in flight are not among them."""
    terminal: Bool[np.ndarray, "B N"]
    """The solution ended here by itself."""
    truncated: Bool[np.ndarray, "B N"]
    """A limit or a failure cut the solution here."""

    @property
    def bytes_per_node(self) -> int:
        """Bytes that one node takes in all the arrays together."""
        arrays = (getattr(self, f.name) for f in fields(self) if f.name != "num_nodes")
        return sum(array.itemsize * (array.shape[2] if array.ndim == 3 else 1) for array in arrays)


_EMPTY = {"parent": Tree.NO_PARENT, "slot": Tree.NO_SLOT, "children_index": Tree.UNVISITED, "raw_value": np.nan, "value": np.nan}
"""What an unused node holds where that is not zero."""


def allocate(num_trees: int, *, num_nodes: int, num_slots: int) -> Tree:
    """Return trees that hold nothing but their roots, with room for ``num_nodes`` nodes of ``num_slots`` children each.

    Raises:
        ShapeError: If an extent is below 1.
    """
    for name, extent in (("num_trees", num_trees), ("num_nodes", num_nodes), ("num_slots", num_slots)):
        if extent < 1:
            raise ShapeError(f"allocate: {name} must be at least 1: got {extent}")
    arrays: dict[str, Any] = {"num_nodes": np.zeros(num_trees, np.int32)}
    for name, dtype in _DTYPES.items():
        shape = (num_trees, num_nodes, num_slots) if name == "children_index" else (num_trees, num_nodes)
        arrays[name] = np.full(shape, _EMPTY.get(name, 0), dtype)
    tree = Tree(**arrays)
    reset_rows(tree, np.arange(num_trees))
    return tree


_DTYPES = {
    **dict.fromkeys(("parent", "slot", "depth", "children_index", "visits", "returns", "in_flight", "open_leaves"), np.int32),
    **dict.fromkeys(("prior", "reward", "raw_value", "value"), np.float32),
    **dict.fromkeys(("terminal", "truncated"), np.bool_),
}


def grow(tree: Tree, *, num_nodes: int, num_slots: int) -> Tree:
    """Return the same trees with room for at least so many nodes and slots; each extent at least doubles where it grows."""
    num_trees, old_nodes, old_slots = tree.children_index.shape
    new_nodes = old_nodes if num_nodes <= old_nodes else max(num_nodes, 2 * old_nodes)
    new_slots = old_slots if num_slots <= old_slots else max(num_slots, 2 * old_slots)
    if (new_nodes, new_slots) == (old_nodes, old_slots):
        return tree
    grown = allocate(num_trees, num_nodes=new_nodes, num_slots=new_slots)
    grown.num_nodes[:] = tree.num_nodes
    grown.children_index[:, :old_nodes, :old_slots] = tree.children_index
    for name in _DTYPES:
        if name != "children_index":
            getattr(grown, name)[:, :old_nodes] = getattr(tree, name)
    return grown


def reset_rows(tree: Tree, rows: Int[np.ndarray, "b"]) -> None:
    """Empty some rows, in place: each holds an unvisited, open, unscored root and nothing else."""
    for name in _DTYPES:
        getattr(tree, name)[rows] = _EMPTY.get(name, 0)
    tree.num_nodes[rows] = 1
    tree.prior[rows, Tree.ROOT] = 1.0
    tree.open_leaves[rows, Tree.ROOT] = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class NewNodes:
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
    raw_values: Float32[np.ndarray, "M"]
    """Estimate at the node; NaN when unscored."""
    visited: Bool[np.ndarray, "M"]
    """Whether the node starts with one visit, worth its raw value where it has one."""
    selectable: Bool[np.ndarray, "M"]
    """Whether selection may end in the node."""
    terminal: Bool[np.ndarray, "M"]
    """The solution ended here by itself."""
    truncated: Bool[np.ndarray, "M"]
    """A limit or a failure cut the solution here."""
    rewards: Float32[np.ndarray, "M"] | None = None
    """Rewards of the edges; None is 0 everywhere."""


def add_nodes(tree: Tree, new: NewNodes) -> Int[np.ndarray, "M"]:
    """Add nodes, in place, and return their indices: each row's next ones, in the order given.

    The caller accounts for the new leaves at their ancestors (``backup_paths``) and sees to the room (``grow``).

    Raises:
        ShapeError: If a row has no room left for its nodes or a slot lies outside the slots.
    """
    rows, capacity = new.rows, tree.parent.shape[1]
    nodes = tree.num_nodes[rows] + _rank_within_row(rows)
    if nodes.size and (nodes.max() >= capacity or new.slots.max() >= tree.children_index.shape[2]):
        raise ShapeError(
            f"add_nodes: no room: got node {nodes.max()} and slot {new.slots.max()} in {tree.children_index.shape} -- grow the tree"
        )
    linked = new.slots != Tree.NO_SLOT
    tree.children_index[rows[linked], new.parents[linked], new.slots[linked]] = nodes[linked]
    tree.parent[rows, nodes] = new.parents
    tree.slot[rows, nodes] = new.slots
    tree.depth[rows, nodes] = new.depths
    tree.prior[rows, nodes] = new.priors
    tree.raw_value[rows, nodes] = new.raw_values
    if new.rewards is not None:
        tree.reward[rows, nodes] = new.rewards
    tree.value[rows, nodes] = np.where(new.visited, new.raw_values, np.float32(np.nan))
    tree.visits[rows, nodes] = new.visited
    tree.returns[rows, nodes] = new.visited & ~np.isnan(new.raw_values)
    tree.open_leaves[rows, nodes] = new.selectable
    tree.terminal[rows, nodes] = new.terminal
    tree.truncated[rows, nodes] = new.truncated
    tree.num_nodes[:] += np.bincount(rows, minlength=len(tree.num_nodes)).astype(np.int32)
    return nodes


def _rank_within_row(rows: Int[np.ndarray, "M"]) -> Int[np.ndarray, "M"]:
    """Return how many earlier entries name the same row."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if len(rows) else np.zeros(0, np.int64)
    ranks = np.empty(len(rows), np.int64)
    ranks[order] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    return ranks


def reserve(tree: Tree, rows: Int[np.ndarray, "b"], leaves: Int[np.ndarray, "b"]) -> None:
    """Mark one leaf per row as in flight, in place: a virtual visit on its path, and no second selection of a leaf to be expanded.

    A terminal or truncated leaf stays open: nothing is asked for it, and whether it may be visited again is the method's rule.
    """
    closes = ~(tree.terminal[rows, leaves] | tree.truncated[rows, leaves])
    in_flight, open_leaves, parent = (array.reshape(-1) for array in (tree.in_flight, tree.open_leaves, tree.parent))
    while rows.size:
        at = rows * tree.parent.shape[1] + leaves
        in_flight[at] += 1
        open_leaves[at] -= closes
        leaves = parent.take(at)
        on = leaves != Tree.NO_PARENT
        if not on.all():
            rows, leaves, closes = rows[on], leaves[on], closes[on]


def land_rows(tree: Tree, rows: Int[np.ndarray, "b"]) -> None:
    """Take back every virtual visit of some rows, in place, once all results of their wave are in."""
    tree.in_flight[rows] = 0


@dataclass(slots=True)
class StepTable:
    """The steps of one row: entry i of every list belongs to node i; the root's are empty."""

    parents: list[int] = field(default_factory=lambda: [Tree.NO_PARENT])
    """Parent index."""
    depths: list[int] = field(default_factory=lambda: [0])
    """Steps from the root."""
    steps: list[Step] = field(default_factory=lambda: [Step(token_ids=(), logps=(), text="", stop_reason=StopReason.STEP)])
    """The step into the node."""
    stop_reasons: list[StopReason] = field(default_factory=lambda: [StopReason.STEP])
    """The step's stop reason, DEPTH where the depth limit cut the solution."""
    scores: list[float | None] = field(default_factory=lambda: [None])
    """PRM score of the step."""
    answers: list[str | None] = field(default_factory=lambda: [None])
    """Final answer of a terminal."""
    outcomes: list[float | None] = field(default_factory=lambda: [None])
    """Verdict on an ended node in label mode."""

    def path(self, node: int) -> list[int]:
        """Return the nodes from the first step to ``node``, the root left out."""
        path = []
        while node != Tree.ROOT:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def path_ids(self, node: int) -> tuple[int, ...]:
        """Return the tokens of all steps from the root to ``node``."""
        return tuple(chain.from_iterable([self.steps[on_path].token_ids for on_path in self.path(node)]))

    def path_text(self, node: int) -> str:
        """Return the solution so far as text."""
        return "".join([self.steps[on_path].text for on_path in self.path(node)])
