"""Adaptive branching (AB-MCTS): at every node Thompson sampling weighs a new step against going on below.

Axes: b searches, B rows of trees, W leaves per tree. The scores are in ``adaptive_kernels``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from stepladder.mcts.settings.growth import Sampling, Solutions, Steps
from stepladder.mcts.settings.setting_checks import check, check_choice
from stepladder.mcts.strategies.adaptive_kernels import MODELS, ArmDraws, descend_adaptively
from stepladder.mcts.strategies.strategy import NO_LEAF, RunShape, SearchView, Selection, Strategy, rows_of
from stepladder.mcts.tree import Tree, reserve


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptive(Selection):
    """Descends by draws from what is believed of each choice, sampling a new step being one of them."""

    TYPES: ClassVar[tuple[str, ...]] = ("ab-mcts",)
    WIDENS: ClassVar[tuple[str, ...]] = ("gen",)

    type: str = "ab-mcts"
    """Name of the rule."""
    belief: str = "normal"
    """Model of the scores below a choice. ``normal``: normal with unknown mean and variance (normal-inverse-chi-squared; m = 0, kappa = 1,
    nu = 1, tau^2 = 0.1), each choice by itself (AB-MCTS-A). ``beta``: the same with Beta(0.5, 0.5) for scores as shares of successes.
    ``mixed``: all children of a node together, their means spread around a common one (AB-MCTS-M)."""

    def __post_init__(self) -> None:
        Selection.__post_init__(self)
        check_choice("type", self.type, self.TYPES)
        check_choice("belief", self.belief, MODELS)

    def check_with(self, growth: Steps | Solutions, sampling: Sampling) -> None:
        """Check that a node can be sampled again."""
        widens = isinstance(growth, Steps) and growth.widening is not None and growth.widening.widen == "gen"
        check(widens, "ab-mcts samples nodes again -- set widen = 'gen'")

    def strategy(self, run: RunShape) -> Strategy:
        """Return the strategy of a run."""
        return AdaptiveStrategy(self, run)


class AdaptiveStrategy(Strategy):
    """Descends one leaf after another; the wave learns nothing before it is complete."""

    def __init__(self, settings: Adaptive, run: RunShape) -> None:
        """Begin without any search."""
        self._belief = MODELS.index(settings.belief)
        self._draws = ArmDraws(keys=np.zeros(run.num_rows, np.uint64), counts=np.zeros(run.num_rows, np.int64))

    def begin(self, search: SearchView) -> None:
        """Begin the search's own stream of random numbers."""
        self._draws.keys[search.row], self._draws.counts[search.row] = search.seed_of("ab-mcts"), 0

    def select(self, tree: Tree, searches: Sequence[SearchView], sizes: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b W"]:
        """Descend from the roots, and reserve the nodes that are to be sampled."""
        rows = rows_of(searches)
        waves = np.full((len(rows), max(int(sizes.max(initial=0)), 1)), NO_LEAF, np.int64)
        for place in range(waves.shape[1]):
            chosen = np.flatnonzero((sizes > place) & (tree.open_leaves[rows, Tree.ROOT] > 0))
            if not chosen.size:
                break
            waves[chosen, place] = leaves = descend_adaptively(tree, rows[chosen], self._belief, self._draws)
            reserve(tree, rows[chosen], leaves)
        return waves
