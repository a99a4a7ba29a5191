"""Best-first and depth-first search: the best open leaf anywhere in the tree is expanded next.

Axes: b searches, W leaves per tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from stepladder.mcts.settings.growth import Widening
from stepladder.mcts.settings.setting_checks import check_choice, check_flag, check_number
from stepladder.mcts.strategies.strategy import NO_LEAF, TERMINAL_RULES, RunShape, SearchView, Selection, Strategy, reserve_waves, rows_of
from stepladder.mcts.tree import Tree


@dataclass(frozen=True, kw_only=True, slots=True)
class Frontier(Selection):
    """The best open leaf goes on: of all (``best-first``), or of the deepest (``depth-first``)."""

    TYPES: ClassVar[tuple[str, ...]] = ("best-first", "depth-first")
    WIDENS: ClassVar[tuple[str, ...]] = ("power",)

    type: str = "best-first"
    """Name of the rule."""
    min_value: float = 0.0
    """best-first, depth-first: leaves with a lower value are never expanded, >= 0."""
    stop_at_goal: bool = False
    """best-first, depth-first: the search ends when the best open leaf is worth no more than the best solution's path scores."""
    terminals: str = "skip"
    """As in a descent."""

    def __post_init__(self) -> None:
        Selection.__post_init__(self)
        check_choice("type", self.type, self.TYPES)
        check_number("min_value", self.min_value, ">= 0")
        check_flag("stop_at_goal", self.stop_at_goal)
        check_choice("terminals", self.terminals, TERMINAL_RULES)

    @property
    def type_name(self) -> str:
        """Which of the two it is."""
        return self.type

    @property
    def revisits_terminals(self) -> bool:
        """Whether a terminal may be selected again."""
        return self.terminals == "revisit"

    def strategy(self, run: RunShape) -> Strategy:
        """Return the strategy of a run."""
        return FrontierStrategy(self, run)


class FrontierStrategy(Strategy):
    """Ranks all open leaves of a tree anew for every wave."""

    def __init__(self, settings: Frontier, run: RunShape) -> None:
        """Select by some settings."""
        self._settings, self._widening = settings, run.widening

    def select(self, tree: Tree, searches: Sequence[SearchView], sizes: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b W"]:
        """Select the best open leaves."""
        deepest_first = self._settings.type == "depth-first"
        return select_frontier(
            tree,
            rows_of(searches),
            sizes,
            deepest_first=deepest_first,
            min_value=float(self._settings.min_value),
            widening=self._widening,
        )

    def has_reached_goal(self, tree: Tree, search: SearchView, leaves: list[int]) -> bool:
        """Say whether a solution scores at least what the best leaf is worth; an unscored leaf may be worth anything."""
        return self._settings.stop_at_goal and bool(np.float32(search.best_score) >= tree.raw_value[search.row, leaves[0]])


def select_frontier(
    tree: Tree,
    rows: Int[np.ndarray, "b"],
    num_leaves: Int[np.ndarray, "b"],
    *,
    deepest_first: bool,
    min_value: float,
    widening: Widening | None = None,
) -> Int[np.ndarray, "b W"]:
    """Select the best open leaves of the whole tree, wherever they are, and reserve them.

    Leaves are ranked by raw value, unscored ones last, then by index; with ``deepest_first`` by depth before anything else.

    Args:
        tree: The trees.
        rows: Rows.
        num_leaves: Requested leaves per row.
        deepest_first: Depth-first instead of best-first search.
        min_value: Leaves with a lower raw value are never selected; unscored ones pass.
        widening: When a node with children counts as a leaf again. Without any leaf, every node that may be sampled again is one.

    Returns:
        The leaves, best first, ``NO_LEAF`` after the last one of a row.

    Source: Yao et al. 2023, "Tree of thoughts" (depth-first with pruning); Hart et al. 1968, A*, with the estimate as the whole priority.
    """
    used = int(tree.num_nodes[rows].max())
    raw, index = tree.raw_value[rows, :used], np.arange(used)
    leaf = (tree.open_leaves[rows, :used] > 0) & (tree.children_index[rows, :used, 0] == Tree.UNVISITED)
    allowed = (index < tree.num_nodes[rows][:, None]) & ~(raw < min_value)
    leaf &= allowed
    if widening is not None:
        again = tree.growable[rows, :used] & allowed
        most = widening.widen_base * np.maximum(tree.visits[rows, :used], 1) ** widening.widen_power
        leaf |= again & (tree.samples[rows, :used] < most)
        leaf |= again & ~leaf.any(axis=-1, keepdims=True)
    depth = tree.depth[rows, :used] if deepest_first else np.zeros_like(leaf, np.int32)
    score = np.where(np.isnan(raw), -np.inf, raw)
    order: np.ndarray = np.lexsort((np.broadcast_to(index, raw.shape), -score, -depth, ~leaf), axis=-1)
    order = order[:, : max(int(num_leaves.max()), 1)]
    taken = np.take_along_axis(leaf, order, axis=-1) & (np.arange(order.shape[1]) < num_leaves[:, None])
    waves = np.where(taken, order, NO_LEAF)
    reserve_waves(tree, rows, waves)
    return waves
