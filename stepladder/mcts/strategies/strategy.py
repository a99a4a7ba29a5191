"""A selection rule has two parts: a ``Selection`` holds its settings, a ``Strategy`` selects for all problems of a run.

Axes: b searches, B rows of trees, W leaves per tree.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from stepladder.mcts.expansion import Expansion
from stepladder.mcts.settings.growth import Sampling, Solutions, Steps, Widening
from stepladder.mcts.settings.setting_checks import check, check_count
from stepladder.mcts.tree import StepTable, Tree, reserve
from stepladder.types import Budget

NO_LEAF = -1
"""Fills the places of a wave for which a tree has no leaf."""
TERMINAL_RULES = ("skip", "revisit", "once")
"""Treatment of terminals by rules that can revisit them."""


class SearchView(Protocol):
    """The part of a problem's search that a strategy may read."""

    row: int
    """Row of its tree."""
    budget: Budget
    """Its caps."""
    table: StepTable
    """Its steps."""
    wave: list[Expansion]
    """The expansions of its wave."""
    seed_of: Callable[..., int]
    """Derives a seed from its purpose."""
    goes_on: bool
    """Whether its next wave belongs to the simulation of the last one. A strategy may set it when a wave has ended."""

    @property
    def num_simulations(self) -> int:
        """Simulations so far."""
        ...

    @property
    def best_score(self) -> float:
        """Best score of a solution with an answer, -1 without one."""
        ...


class RunShape(NamedTuple):
    """The part of a run that a strategy needs."""

    num_rows: int
    """Trees at once (B)."""
    num_slots: int
    """Child slots (K)."""
    discount: float
    """Factor per step, in (0, 1]."""
    widening: Widening | None = None
    """When a node is sampled again; None is once."""


class Strategy:
    """Selects the waves of a run's searches. It keeps the state of a search by the row of its tree.

    Subclasses must select. Everything else has a default that suits a rule without state.
    """

    def begin(self, search: SearchView) -> None:
        """Begin a search in a row that may have held another search."""

    def select(self, tree: Tree, searches: Sequence[SearchView], sizes: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b W"]:
        """Select the next wave of every search and reserve it in the tree (``reserve_waves``).

        Args:
            tree: The trees.
            searches: Searches without a wave in flight.
            sizes: Leaves that each wave may have at most, >= 1.

        Returns:
            The leaves in settling order, then ``NO_LEAF``. A search with an empty wave is over.
        """
        raise NotImplementedError

    def samples_after(self, search: SearchView, leaves: list[int], numbers: list[int]) -> list[int]:
        """Return how many samples each leaf of a wave gets.

        Args:
            search: The search.
            leaves: The wave.
            numbers: Samples of each leaf under the method's ``growth``; 0 if its solution has ended.

        """
        return numbers

    def has_reached_goal(self, tree: Tree, search: SearchView, leaves: list[int]) -> bool:
        """Say whether a search is over because its selected wave cannot beat the best solution found."""
        return False

    def end_waves(self, tree: Tree, searches: Sequence[SearchView]) -> None:
        """Record waves whose nodes are now in the tree and backed up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Settings of a selection rule."""

    TYPES: ClassVar[tuple[str, ...]] = ()
    """Names of the rule as the setting ``selection`` has them."""
    DRAWS_SOLUTIONS: ClassVar[bool] = False
    """Whether a node is expanded by solutions from there on, not by single steps."""
    DRAWS_INDEPENDENTLY: ClassVar[bool] = False
    """Whether these solutions are whole, and none depends on another. Then a part of them is what a smaller budget would have drawn."""
    WAVE_IS_WIDTH: ClassVar[bool] = False
    """Whether ``wave`` decides what is searched, and not only how much of it is in flight."""
    WIDENS: ClassVar[tuple[str, ...]] = ()
    """Values of ``widen``, other than ``once``, that the rule takes."""

    wave: int = 1
    """Leaves per tree in flight at once (W), >= 1. For ``beam`` the width of the beam, for ``resample`` the number of particles, for
    ``sample`` and ``restart`` the draws per request. In a configuration ``auto`` is the fewest with which the trees fill a batch."""

    def __post_init__(self) -> None:
        check_count("wave", self.wave)

    @classmethod
    def of_type(cls, type_name: str, take: Callable[..., Any]) -> "Selection":
        """Make the record from settings by name.

        Args:
            type_name: One of ``TYPES``.
            take: Makes a record of a class, ``take(cls, **fixed)``, from those settings that it has fields for.

        """
        return take(cls, type=type_name)

    @property
    def type_name(self) -> str:
        """Name of the rule."""
        return self.TYPES[0]

    @property
    def revisits_terminals(self) -> bool:
        """Whether a terminal may be selected again."""
        return False

    @property
    def backs_up_ends(self) -> bool:
        """Whether an end with an answer is backed up when it is new."""
        return False

    @property
    def shares_samples(self) -> bool:
        """Whether the leaves of a wave share its samples, one each, instead of having ``num_children`` each."""
        return False

    def samples_at_root(self, num_children: int) -> int:
        """Return the default number of samples of the root's expansion."""
        return num_children

    def check_with(self, growth: Steps | Solutions, sampling: Sampling) -> None:
        """Check the rule's requirements on other settings.

        Raises:
            ConfigError: If they do not go together.
        """

    def strategy(self, run: RunShape) -> Strategy:
        """Return the strategy of a run."""
        raise NotImplementedError


def check_ends(terminals: str, growth: Steps | Solutions) -> None:
    """Check that ends which are backed up when they are new are not part of another return already.

    Raises:
        ConfigError: If they are.
    """
    fits = terminals != "once" or (isinstance(growth, Steps) and growth.evaluation == "leaf")
    check(fits, "terminals = 'once' needs evaluation 'leaf': the others back new ends up already -- set evaluation = 'leaf'")


def rows_of(searches: Sequence[SearchView]) -> Int[np.ndarray, "b"]:
    """Return the rows of searches."""
    return np.array([search.row for search in searches])


def reserve_waves(tree: Tree, rows: Int[np.ndarray, "b"], waves: Int[np.ndarray, "b W"]) -> None:
    """Reserve the leaves of waves that were selected otherwise than by a descent."""
    for place in range(waves.shape[1]):
        chosen = np.flatnonzero(waves[:, place] != NO_LEAF)
        reserve(tree, rows[chosen], waves[chosen, place])
