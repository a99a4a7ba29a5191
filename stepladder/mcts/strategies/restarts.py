"""Sampling with restarts: solutions are drawn from the most promising node that any draw has come through.

Axes: b searches, B rows of trees, N nodes, n nodes of the largest of some trees, W leaves per tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from stepladder.mcts.settings.growth import Sampling, Solutions, Steps
from stepladder.mcts.settings.setting_checks import check, check_choice, check_count, check_number
from stepladder.mcts.strategies.strategy import RunShape, SearchView, Selection, Strategy, rows_of
from stepladder.mcts.tree import Tree


@dataclass(frozen=True, kw_only=True, slots=True)
class Restarts(Selection):
    """Solutions are drawn from the root first, then from the node of best score, ``wave`` per request."""

    TYPES: ClassVar[tuple[str, ...]] = ("restart",)
    DRAWS_SOLUTIONS: ClassVar[bool] = True

    type: str = "restart"
    """Name of the rule."""
    root_draws: int = 1
    """restart: draws from the root before any other, >= 1."""
    restart_power: float = 1.0
    """restart: the score of a node counts divided by (1 + draws from it) to this power, >= 0."""

    def __post_init__(self) -> None:
        Selection.__post_init__(self)
        check_choice("type", self.type, self.TYPES)
        check_count("root_draws", self.root_draws)
        check_number("restart_power", self.restart_power, ">= 0")

    def check_with(self, growth: Steps | Solutions, sampling: Sampling) -> None:
        """Check that draws can differ."""
        check(sampling.temperature > 0, "restart needs draws that can differ: got temperature 0 -- raise it")

    def strategy(self, run: RunShape) -> Strategy:
        """Return the strategy of a run."""
        return RestartStrategy(self, run)


class RestartStrategy(Strategy):
    """Ranks all nodes of a tree anew for every request; nothing has to be reserved, since a wave is one node."""

    def __init__(self, settings: Restarts, run: RunShape) -> None:
        """Select by some settings."""
        self._settings = settings
        self._draws = np.zeros((run.num_rows, 1), np.int64)
        """Draws that began at each node, [B, N]."""

    def begin(self, search: SearchView) -> None:
        """Forget the draws of the search that had the row before."""
        self._draws[search.row] = 0

    def select(self, tree: Tree, searches: Sequence[SearchView], sizes: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b W"]:
        """Select one node of every search; ``sizes`` are its draws."""
        rows, missing = rows_of(searches), tree.nodes.shape[1] - self._draws.shape[1]
        if missing > 0:
            self._draws = np.pad(self._draws, ((0, 0), (0, missing)))
        used = int(tree.num_nodes[rows].max())
        draws = self._draws[rows, :used]
        ranks = restart_ranks(
            tree.raw_value[rows, :used].astype(np.float64),
            tree.depth[rows, :used],
            tree.growable[rows, :used] & (np.arange(used) < tree.num_nodes[rows][:, None]),
            draws,
            power=float(self._settings.restart_power),
        )
        chosen = np.where(draws[:, Tree.ROOT] < self._settings.root_draws, Tree.ROOT, ranks.argmax(axis=1))
        self._draws[rows, chosen] += sizes
        return chosen[:, None]


def restart_ranks(
    scores: Float[np.ndarray, "b n"],
    depths: Int[np.ndarray, "b n"],
    goes_on: Bool[np.ndarray, "b n"],
    draws: Int[np.ndarray, "b n"],
    *,
    power: float,
) -> Float[np.ndarray, "b n"]:
    """Return the rank of every node as a place to begin: score / (1 + draws from there)^power, higher is better.

    The root has no score; it is worth the mean of its children.

    Args:
        scores: Score of each node, in [0, 1]; NaN is never begun from, other than at the root.
        depths: Depth of each node.
        goes_on: Whether the solution can go on after it.
        draws: Draws that began there.
        power: Exponent, >= 0.

    Returns:
        The ranks, -inf where nothing may begin.

    Source: ours; Ecoffet et al. 2021, "First return, then explore" (restarts from promising states, weighted down by their use).
    """
    first = (depths == 1) & ~np.isnan(scores)
    at_root = np.where(first, scores, 0.0).sum(axis=1) / np.maximum(first.sum(axis=1), 1)
    worths = scores.copy()
    worths[:, Tree.ROOT] = at_root
    return np.where(goes_on & ~np.isnan(worths), worths / (1.0 + draws) ** power, -np.inf)
