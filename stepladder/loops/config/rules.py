"""Section ``rules``: rules that compute settings between rounds, or end a run; see docs/rounds.md."""

from dataclasses import dataclass
from typing import Literal

from stepladder.errors import check
from stepladder.loops.config.section import Section
from stepladder.settings import Count, NonNegative, Positive, check_bounds

HeldOutFigure = Literal["pass_at_1", "sampled_pass_at_1", "pass_at_k", "prm_within_problem_auc", "reliability"]
"""A figure of a round on held-out problems; ``reliability`` is that of a policy that may abstain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Numbers at equal distances."""

    low: float
    """The first."""
    high: float
    """The last, at most."""
    step: Positive
    """Distance, > 0."""

    def __post_init__(self) -> None:
        check_bounds(self, where="a grid")
        check(self.low <= self.high, f"a grid's low must be at most its high: got {self.low!r} > {self.high!r}")

    @property
    def values(self) -> list[float]:
        """The numbers, rounded to nine decimals, so that they are written as they are meant."""
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        return [round(self.low + index * self.step, 9) for index in range(count)]


@dataclass(frozen=True, kw_only=True, slots=True)
class BalanceRule:
    """Choose the sampling temperature and the reward threshold of every round by the balance score on a probe set (B-STaR).

    It sets ``search.options.temperature`` and ``labels.min_trace_reward``.
    """

    temperatures: Grid = Grid(low=0.5, high=1.2, step=0.05)
    """Temperatures to try."""
    thresholds: Grid = Grid(low=-1.0, high=1.0, step=0.01)
    """Thresholds to try. The reward of a solution is 1 if it is right, plus a fifth of its smallest PRM score."""
    target: Count = 8
    """Right solutions of a problem that are enough, >= 1."""
    problems: Count = 1000
    """Training problems to probe, >= 1; the first ones."""
    samples: Count = 64
    """Solutions per problem and temperature, >= 1."""

    def __post_init__(self) -> None:
        check_bounds(self, where="rules.balance")
        check(self.temperatures.low > 0, f"temperatures must be > 0: got {self.temperatures.low!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HillClimbRule:
    """Change one number as long as a figure of the finished rounds rises; step back and halve the step where it does not."""

    setting: str
    """Name of the setting, such as ``search.options.c_puct``."""
    start: int | float
    """Value in round 1."""
    step: int | float
    """First change; may be negative. With two whole numbers, all values are whole."""
    figure: HeldOutFigure = "pass_at_1"
    """Held-out figure that should rise."""
    least_gain: NonNegative = 0.003
    """A rise of less than this is none, >= 0."""
    low: float | None = None
    """Smallest value; None is no bound."""
    high: float | None = None
    """Largest value; None is no bound."""

    def __post_init__(self) -> None:
        check_bounds(self, where="rules.hill_climb")
        check(self.step, f"step must not be 0: got {self.step!r}")
        low, high = -float("inf") if self.low is None else self.low, float("inf") if self.high is None else self.high
        check(low <= self.start <= high, f"start must be from low to high: got {self.start!r}, {self.low!r} and {self.high!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStopRule:
    """End the run when rounds no longer help."""

    patience: Count = 2
    """Rounds that may pass without a gain, >= 1."""
    least_gain: NonNegative = 0.0
    """The held-out pass@1 of the best policy must rise by more than this within ``patience`` rounds, in [0, 1]."""

    def __post_init__(self) -> None:
        check_bounds(self, where="rules.early_stop")


class RulesConfig(Section):
    """Rules between rounds; none is used unless it is set."""

    balance: BalanceRule | None = None
    """Temperature and reward threshold by the balance score (B-STaR)."""
    hill_climb: HillClimbRule | None = None
    """One number by hill-climbing."""
    early_stop: EarlyStopRule | None = None
    """End the run early."""
