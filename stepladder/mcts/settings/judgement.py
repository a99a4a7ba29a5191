"""Worth of nodes and paths, and when a search has found enough."""

from dataclasses import dataclass
from typing import ClassVar

from stepladder.mcts.qvalues import AGGREGATIONS
from stepladder.mcts.settings.setting_checks import check, check_choice, check_count, check_number

END_VALUES = ("outcome", "score")
ESTIMATES = ("step", "path")


@dataclass(frozen=True, kw_only=True, slots=True)
class Valuation:
    """Worth of a node and of a path from scores."""

    estimate: str = "step"
    """Worth of a node: the score of its ``step``, or that of its ``path`` by ``aggregation``."""
    aggregation: str = "last"
    """Score of a trajectory from its steps' scores: ``last``, ``min``, ``mean``, ``product``, ``geometric-mean`` or another of
    ``aggregate_scores``. Estimates are kept in single precision: with ``estimate`` = ``path``, products below 1e-38 are all alike."""
    ahead: float = 0.0
    """Weight of a path's last score h beside the aggregated score g of all of it, >= 0: a path scores (g + ahead * h) / (1 + ahead). With
    ``estimate`` = ``path``, best-first goes by A*'s g + ahead * h."""
    discount: float = 1.0
    """Factor per step on the way up, in (0, 1]."""
    end_value: str = "outcome"
    """Worth of an end in label mode: its ``outcome``, or its ``score`` as in solve mode, so that the verdicts are recorded and do not steer
    the search."""

    def __post_init__(self) -> None:
        check_choice("estimate", self.estimate, ESTIMATES)
        check_choice("aggregation", self.aggregation, AGGREGATIONS)
        check_number("ahead", self.ahead, ">= 0")
        check_number("discount", self.discount, "in (0, 1]")
        check_choice("end_value", self.end_value, END_VALUES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """A search ends once its answer has settled."""

    SWITCH: ClassVar[str] = "stop_agreement"
    OFF: ClassVar[None] = None

    stop_agreement: int
    """The search ends when this many of the last ``stop_window`` waves lead to one answer, >= 1; None never."""
    stop_window: int = 10
    """Waves that ``stop_agreement`` looks back on, >= 1."""

    def __post_init__(self) -> None:
        check_count("stop_agreement", self.stop_agreement)
        check_count("stop_window", self.stop_window)
        fits = self.stop_agreement <= self.stop_window
        check(fits, f"stop_agreement must be at most stop_window: got {self.stop_agreement} of {self.stop_window}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopping:
    """When a search ends before its budget does."""

    stop_value: float | None = None
    """The search ends when a solution with an answer reaches this score, in [0, 1]; None never."""
    agreement: Agreement | None = None
    """When an answer has settled; None never ends a search."""

    def __post_init__(self) -> None:
        check_number("stop_value", self.stop_value, "in [0, 1]", optional=True)
