"""Plain sampling: whole solutions, drawn from the root.

Axes: b searches, W leaves per tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from stepladder.mcts.settings.growth import Sampling, Solutions, Steps
from stepladder.mcts.settings.setting_checks import check, check_choice
from stepladder.mcts.strategies.strategy import RunShape, SearchView, Selection, Strategy
from stepladder.mcts.tree import Tree


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples(Selection):
    """Independent solutions are drawn from the root, ``wave`` per request."""

    TYPES: ClassVar[tuple[str, ...]] = ("sample",)
    DRAWS_SOLUTIONS: ClassVar[bool] = True
    DRAWS_INDEPENDENTLY: ClassVar[bool] = True

    type: str = "sample"
    """Name of the rule."""

    def __post_init__(self) -> None:
        Selection.__post_init__(self)
        check_choice("type", self.type, self.TYPES)

    def check_with(self, growth: Steps | Solutions, sampling: Sampling) -> None:
        """Check that draws are whole: nothing continues one that stopped."""
        steps = growth.draw_steps if isinstance(growth, Solutions) else None
        check(steps is None, f"draw_steps needs selection = 'restart', which continues draws that stop: got {steps!r} with 'sample'")

    def strategy(self, run: RunShape) -> Strategy:
        """Return the strategy of a run."""
        return SampleStrategy()


class SampleStrategy(Strategy):
    """Selects the root again and again; nothing has to be reserved, since it is never descended from."""

    def select(self, tree: Tree, searches: Sequence[SearchView], sizes: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b W"]:
        """Select the root of every search; ``sizes`` are draws here."""
        return np.full((len(searches), 1), Tree.ROOT, np.int64)
