"""Beam search: the best nodes of the deepest level continue.

Axes: b searches, B rows of trees, n nodes, G groups of a beam, W leaves per tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int

from stepladder.mcts.settings.setting_checks import check, check_choice, check_count, check_flag
from stepladder.mcts.strategies.strategy import NO_LEAF, RunShape, SearchView, Selection, Strategy, reserve_waves, rows_of
from stepladder.mcts.tree import Tree


@dataclass(frozen=True, kw_only=True, slots=True)
class Beam(Selection):
    """The best ``wave`` nodes of the deepest level go on; one that ends leaves the beam."""

    TYPES: ClassVar[tuple[str, ...]] = ("beam",)
    WAVE_IS_WIDTH: ClassVar[bool] = True

    type: str = "beam"
    """Name of the rule."""
    groups: int = 1
    """Subtrees, divided among the children of the root, that a beam keeps apart, >= 1: each goes on with wave / groups nodes of its own. A
    divisor of wave."""
    share: bool = False
    """A beam's leaves share ``wave`` samples, as many as it has beams running, evenly and at most num_children each, instead of having
    num_children each. Nothing is sampled to be pruned, and a beam that ends leaves its share to the others."""

    def __post_init__(self) -> None:
        Selection.__post_init__(self)
        check_choice("type", self.type, self.TYPES)
        check_count("groups", self.groups)
        check_flag("share", self.share)
        check(self.wave % self.groups == 0, f"groups must divide the wave of a beam: got groups {self.groups}, wave {self.wave}")

    @property
    def shares_samples(self) -> bool:
        """Whether the leaves of a wave share its samples."""
        return self.share

    def samples_at_root(self, num_children: int) -> int:
        """Return as many samples as all beams have together."""
        return self.wave * num_children

    def strategy(self, run: RunShape) -> Strategy:
        """Return the strategy of a run."""
        return BeamStrategy(self, run)


class BeamStrategy(Strategy):
    """Keeps the width that each group of a search's beam still has."""

    def __init__(self, settings: Beam, run: RunShape) -> None:
        """Begin without any search."""
        self._settings = settings
        self._widths = np.zeros((run.num_rows, settings.groups), np.int64)

    def begin(self, search: SearchView) -> None:
        """Begin with the full width."""
        self._widths[search.row] = self._settings.wave // self._settings.groups

    def select(self, tree: Tree, searches: Sequence[SearchView], sizes: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b W"]:
        """Select the next beams; those that ended leave their places."""
        rows = rows_of(searches)
        waves, self._widths[rows] = select_beam(tree, rows, sizes, widths=self._widths[rows])
        return waves

    def samples_after(self, search: SearchView, leaves: list[int], numbers: list[int]) -> list[int]:
        """Divide the samples among the running beams, if the beam shares."""
        if not self._settings.share or leaves == [Tree.ROOT]:
            return numbers
        share, rest = divmod(int(self._widths[search.row].sum()), len(leaves))
        # The first beams are the best; they take the remainder.
        return [min(number, share + (place < rest)) for place, number in enumerate(numbers)]


def select_beam(
    tree: Tree, rows: Int[np.ndarray, "b"], num_leaves: Int[np.ndarray, "b"], *, widths: Int[np.ndarray, "b G"]
) -> tuple[Int[np.ndarray, "b W"], Int[np.ndarray, "b G"]]:
    """Select the best nodes of the deepest level as the next beams, and reserve those to be expanded.

    The children of the root are dealt out to G groups by their slots, and every node belongs to the group of the child above it. Each group
    keeps the best nodes of the level, as many as its width. Ended nodes leave the beam, which is narrower from then on, and the others are
    expanded. Nodes are ranked by raw value, unscored ones last, then by prior, then by index.

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
    # Nodes are numbered as they are added, so the newest one is of the deepest level.
    deepest = tree.depth[rows, num_nodes - 1][:, None]
    candidate = (depth == deepest) & (index < num_nodes[:, None])
    raw, prior = tree.raw_value[rows, :used], tree.prior[rows, :used]
    # Below every score, which is in [0, 1].
    score = np.where(np.isnan(raw), -1.0, raw)
    # The last key counts first: candidates before others, then score, prior, index.
    order: np.ndarray = np.lexsort((np.broadcast_to(index, raw.shape), -prior, -score, ~candidate), axis=-1)
    candidate = np.take_along_axis(candidate, order, axis=-1)
    # From here on column i is the node of rank i; no row has more than ``most`` candidates.
    most = int(candidate.sum(axis=-1).max())
    order, candidate = order[:, :most], candidate[:, :most]
    ended = np.take_along_axis(tree.terminal[rows, :used] | tree.truncated[rows, :used], order, axis=-1)
    kept, widths = _best_of_groups(candidate, _groups(tree, rows, order, num_groups), ended, widths)
    expand = kept & ~ended
    # The budget cuts the worst ones off.
    expand &= np.cumsum(expand, axis=-1) <= num_leaves[:, None]
    # The kept ones first, in their order.
    first = np.argsort(~kept, axis=-1, kind="stable")[:, : max(int(kept.sum(axis=-1).max()), 1)]
    waves = np.take_along_axis(np.where(expand, order, NO_LEAF), first, axis=-1)
    reserve_waves(tree, rows, waves)
    return waves, widths


def _best_of_groups(
    candidate: Bool[np.ndarray, "b n"], group: Int[np.ndarray, "b n"], ended: Bool[np.ndarray, "b n"], widths: Int[np.ndarray, "b G"]
) -> tuple[Bool[np.ndarray, "b n"], Int[np.ndarray, "b G"]]:
    """Return which of the ranked nodes are kept, the first ones of each group, and the widths minus the ended nodes."""
    kept, widths = np.zeros_like(candidate), widths.copy()
    for number in range(widths.shape[1]):
        member = candidate & (group == number)
        # A running count is the rank within the group.
        member &= np.cumsum(member, axis=-1) <= widths[:, number, None]
        kept |= member
        widths[:, number] -= (member & ended).sum(axis=-1)
    return kept, widths


def _groups(tree: Tree, rows: Int[np.ndarray, "b"], nodes: Int[np.ndarray, "b n"], num_groups: int) -> Int[np.ndarray, "b n"]:
    """Return the group of each node: the slot of its ancestor among the root's children; the root is in group 0."""
    if num_groups == 1:
        return np.zeros_like(nodes)
    column = rows[:, None]
    # Go up one level at a time, until all are at depth 1.
    while (above := tree.depth[column, nodes] > 1).any():
        nodes = np.where(above, tree.parent[column, nodes], nodes)
    return np.maximum(tree.slot[column, nodes], 0) % num_groups
