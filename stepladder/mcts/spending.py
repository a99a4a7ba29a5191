"""Spending of one problem's search, and the rest of its budget."""

import time

from stepladder.errors import ConfigError
from stepladder.mcts.search_method import SearchMethod
from stepladder.mcts.settings.growth import Steps
from stepladder.types import Budget, StopReason

_HEADROOM = 2.0
"""Tokens that a sample is allowed, over the mean of those before it, where a cap on tokens is exact."""


class Spending:
    """The counters of a search, and its caps."""

    __slots__ = (
        "_begin",
        "_draws_solutions",
        "_is_greedy",
        "_samples_per_leaf",
        "_wave",
        "budget",
        "generated_tokens",
        "num_rolled_out",
        "num_samples",
        "num_simulations",
        "policy_calls",
        "scored_tokens",
    )

    def __init__(self, budget: Budget, method: SearchMethod) -> None:
        """Begin with nothing spent; the clock starts now."""
        self.budget = budget
        self.num_simulations = 0
        self.generated_tokens = 0
        self.scored_tokens = 0
        self.policy_calls = 0
        self.num_samples = 0
        """Samples of expansions."""
        self.num_rolled_out = 0
        """Samples of rollouts."""
        self._begin = time.monotonic()
        self._wave = method.selection.wave
        self._is_greedy = method.sampling.temperature == 0
        self._draws_solutions = method.samples_solutions
        one_sample = self._is_greedy or method.selection.shares_samples
        self._samples_per_leaf = method.growth.num_children if isinstance(method.growth, Steps) and not one_sample else 1

    def stop_reason(self, *, goes_on: bool = False) -> StopReason | None:
        """Return the cap that is reached, or None. A simulation that ``goes_on`` has been counted, and may come to its end."""
        budget = self.budget
        if budget.max_calls is not None and self.policy_calls >= budget.max_calls:
            return StopReason.CALLS
        if budget.max_seconds is not None and self.num_simulations and time.monotonic() - self._begin >= budget.max_seconds:
            return StopReason.SECONDS
        if self.num_simulations >= budget.num_simulations and not goes_on:
            return StopReason.SIMULATIONS
        if budget.max_tokens is not None and self.generated_tokens >= budget.max_tokens:
            return StopReason.TOKENS
        return StopReason.TOKENS if self.has_cut_samples() else None

    def has_cut_samples(self) -> bool:
        """Whether an exact cap on tokens leaves less than a mean sample takes, so that it may have cut the last ones."""
        left = self._tokens_left()
        return left is not None and self.num_samples > 0 and left < self.generated_tokens / self.num_samples

    def wave_size(self) -> int:
        """Return how many leaves (sampling methods: draws) the next wave may have, at least 1."""
        if self._draws_solutions and self._is_greedy:
            return 1
        budget = self.budget
        size = min(self._wave, budget.num_simulations - self.num_simulations)
        if budget.max_calls is not None and not self._draws_solutions:
            size = min(size, budget.max_calls - self.policy_calls)
        left = self._tokens_left()
        if left is not None:
            # Of solutions nothing is known at first. A tree keeps its root's samples, since it never asks for others.
            usual = self._usual_tokens() or (budget.max_depth * budget.max_step_tokens if self._draws_solutions else 1)
            size = min(size, int(left / (self._samples_per_leaf * usual)))
        elif budget.max_tokens is not None and self.generated_tokens:
            # The mean tokens of the samples so far are the best estimate for the next sample.
            tokens_per_leaf = self._samples_per_leaf * self.generated_tokens / self.num_samples
            size = min(size, int((budget.max_tokens - self.generated_tokens) / tokens_per_leaf))
        return max(size, 1)

    def share(self, samples: list[int]) -> tuple[int | None, list[int]]:
        """Divide the tokens that are left evenly among the leaves of a wave, if the cap is exact.

        Args:
            samples: Samples wanted after each leaf of the wave; 0 asks for nothing.

        Returns:
            Tokens for each leaf that asks, at least one per sample; None without an exact cap. And the samples: fewer where the usual ones
            would not fit.
        """
        left, num_asking = self._tokens_left(), sum(number > 0 for number in samples)
        if left is None or not num_asking:
            return None, samples
        share = left // num_asking
        most = max(int(share / (self._usual_tokens() or 1)), 1)
        return share, [min(number, most) for number in samples]

    def _tokens_left(self) -> int | None:
        """Return the tokens that may still be generated; None without an exact cap."""
        if not self.budget.exact_tokens or self.budget.max_tokens is None:
            return None
        return self.budget.max_tokens - self.generated_tokens

    def _usual_tokens(self) -> float:
        """Return how many tokens a sample should be allowed, so that few are cut: twice the mean, rollouts included; 0 before the first."""
        return max(_HEADROOM * self.generated_tokens / self.num_samples, 1.0) if self.num_samples else 0.0


def check_budget(budget: Budget) -> None:
    """Check that every cap is possible.

    Raises:
        ConfigError: If one is not.
    """
    seconds = budget.max_seconds
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0):
        raise ConfigError(f"search: max_seconds must be a number > 0: got {seconds!r}")
    for name in ("num_simulations", "max_tokens", "max_calls", "max_depth", "max_step_tokens"):
        value = getattr(budget, name)
        if value is None and name in ("max_tokens", "max_calls"):
            continue
        check_cap(name, value)


def check_cap(name: str, value: object) -> None:
    """Check that a cap is a whole number of at least 1.

    Raises:
        ConfigError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"search: {name} must be a whole number >= 1: got {value!r}")
