"""How the tokens of a round are shared among its problems.

A rule is a frozen dataclass: its ``type`` is its name in a configuration (``search.allocation``), its fields are its settings. It decides
in passes. Before each pass, ``next_pass`` sees what every problem is known by and what the finished passes found. It returns the budgets
of the trees that the pass searches, one tree a problem; nothing ends the search. It sees finished passes only, never times, so that the
same run makes the same decisions with any number of workers. To add a rule, write it here and add it to ``Allocation``.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Gt, Le

from stepladder.errors import check
from stepladder.settings import Count, Natural, Share, check_bounds
from stepladder.types import Budget, derive_seed

_WHERE = "search.allocation"
UNKNOWN_RATE = 0.5
"""Pass rate of a problem that no round has searched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemState:
    """What an allocation knows of a problem."""

    problem_id: str
    """Its key."""
    pass_rate: float | None = None
    """Share of right ends in the last round that searched it, in [0, 1]; None before the first."""
    solved_before: bool = False
    """Whether an earlier round found a right solution."""
    trees: int = 0
    """Trees of this round so far."""
    tokens: int = 0
    """Tokens of these trees."""
    sampled_tokens: int = 0
    """Tokens of the graded samples with which the round began."""
    solved: bool = False
    """Whether this round has found a right solution."""

    @property
    def rate(self) -> float:
        """The pass rate, or what stands for an unknown one."""
        return UNKNOWN_RATE if self.pass_rate is None else self.pass_rate


Budgets = dict[str, Budget]
"""Caps of the next tree of each searched problem."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Uniform:
    """The same for every problem."""

    type: Literal["uniform"] = "uniform"
    """Name of the rule."""
    trees_per_problem: Count = 1
    """Trees of every problem, >= 1, with different seeds."""

    def __post_init__(self) -> None:
        check_bounds(self, where=_WHERE)

    def check_with(self, base: Budget) -> None:
        """Accept any caps."""

    def next_pass(self, states: Sequence[ProblemState], *, base: Budget, seed: int) -> Budgets:
        """Return the budgets of the next pass."""
        return {state.problem_id: base for state in states if state.trees < self.trees_per_problem}


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsolvedFirst:
    """More trees for the problems without a right solution, until a pool of tokens is spent.

    Every pass gives each problem that the round has not solved one more tree, with another seed. A problem leaves as soon as it is solved.
    When the rest of the pool is too small for all of them, at the mean cost of a tree so far, those with the fewest tokens go first;
    a larger tree costs as much more as it is larger. Every unsolved problem gets a first tree; where graded samples left less than the caps
    of all, they share it evenly.

    Source: Guan et al. 2025, "rStar-Math", section 4.1: more and larger searches for the problems that have no right solution yet. The pool
        is ours.
    """

    type: Literal["unsolved-first"] = "unsolved-first"
    """Name of the rule."""
    trees_per_problem: Count = 4
    """Trees of a problem at most, >= 1."""
    growth: Count = 1
    """Factor of the simulations and tokens of each further tree of a problem, >= 1."""
    pool_tokens: Natural = 0
    """Generated tokens of the round per problem, >= 0, which all problems share; 0 is no cap. Needs ``search.max_tokens``."""
    skip_solved: bool = False
    """Leave out the problems that an earlier round has solved."""

    def __post_init__(self) -> None:
        check_bounds(self, where=_WHERE)

    def check_with(self, base: Budget) -> None:
        """Check that the pool is large enough for a tree of every problem.

        Raises:
            ConfigError: If it is not.
        """
        fits = not self.pool_tokens or (base.max_tokens is not None and base.max_tokens <= self.pool_tokens)
        check(fits, f"{_WHERE}.pool_tokens: needs search.max_tokens of at most {self.pool_tokens}: got {base.max_tokens} -- set it")

    def next_pass(self, states: Sequence[ProblemState], *, base: Budget, seed: int) -> Budgets:
        """Return the budgets of the next pass."""
        waiting = [state for state in states if self._waits(state)]
        if not self.pool_tokens or not waiting:
            return {state.problem_id: scaled(base, self.growth**state.trees) for state in waiting}
        left = self.pool_tokens * len(states) - sum(state.tokens + state.sampled_tokens for state in states)
        if not any(state.trees for state in states):
            share = min(base.max_tokens or 0, left // len(waiting))
            return {state.problem_id: replace(base, max_tokens=share) for state in waiting} if share > 0 else {}
        return {state.problem_id: scaled(base, self.growth**state.trees) for state in self._within(left, waiting, states)}

    def _waits(self, state: ProblemState) -> bool:
        return not state.solved and state.trees < self.trees_per_problem and not (self.skip_solved and state.solved_before)

    def _within(self, left: int, waiting: list[ProblemState], states: Sequence[ProblemState]) -> list[ProblemState]:
        """Return the problems whose next trees will take at most the tokens that are left; sizes are in first trees."""
        spent = sum(self.growth**number for state in states for number in range(state.trees))
        cost = max(1.0, sum(state.tokens for state in states) / spent)
        chosen, size = set[str](), 0
        for state in sorted(waiting, key=lambda state: state.tokens):
            size += self.growth**state.trees
            if size > left / cost:
                break
            chosen.add(state.problem_id)
        return [state for state in waiting if state.problem_id in chosen]


@dataclass(frozen=True, kw_only=True, slots=True)
class Knapsack:
    """Simulations where they are most likely to teach something, at the same total.

    A problem of pass rate p is worth, with N simulations,

        (1 - p^N - (1 - p)^N) p (1 - p)^2

    the chance of both right and wrong ends times what a right one is expected to teach. The sum over the problems is as large as it can be
    with ``search.simulations`` per problem on average and at most ``most`` for each. What is left goes to the problems that were never
    solved. Tokens are capped in proportion. A problem of unknown pass rate counts as one of 1/2.

    Source: Li et al. 2025, "Knapsack RL: Unlocking Exploration of LLMs via Optimizing Budget Allocation". There N is a number of samples;
        in a tree search we count simulations.
    """

    type: Literal["knapsack"] = "knapsack"
    """Name of the rule."""
    least: Count = 2
    """Simulations of every problem, >= 1."""
    most: Count = 128
    """Simulations of one problem at most, >= least."""

    def __post_init__(self) -> None:
        check_bounds(self, where=_WHERE)
        check(self.least <= self.most, f"{_WHERE}: least must be at most most: got {self.least} and {self.most}")

    def check_with(self, base: Budget) -> None:
        """Check that the mean lies between the bounds.

        Raises:
            ConfigError: If it does not.
        """
        fits = self.least <= base.num_simulations <= self.most
        check(fits, f"{_WHERE}: least and most must enclose search.simulations: got {self.least}, {self.most} and {base.num_simulations}")

    def next_pass(self, states: Sequence[ProblemState], *, base: Budget, seed: int) -> Budgets:
        """Return the budgets of the only pass."""
        if any(state.trees for state in states):
            return {}
        total = base.num_simulations * len(states)
        counts = knapsack_counts([state.rate for state in states], total=total, least=self.least, most=self.most)
        return {
            state.problem_id: scaled(base, count / base.num_simulations, num_simulations=count)
            for state, count in zip(states, counts, strict=True)
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptCurriculum:
    """The problems of middling difficulty alone: those whose pass rate is nearest to ``aim``.

    Equal distances are drawn at random, by a seed of the run and the round. Problems of unknown pass rate count as ``aim``, so that every
    problem is tried.

    Source: Gao et al. 2025, "Prompt Curriculum Learning for Efficient LLM Post-Training": k m candidates, of which the m nearest to 1/2 are
        kept, k = 4. Their value model predicts the pass rate; we take the last measured one.
    """

    type: Literal["prompt-curriculum"] = "prompt-curriculum"
    """Name of the rule."""
    share: Annotated[float, Gt(0), Le(1)] = 0.25
    """Share of the problems that a round searches, in (0, 1], rounded up."""
    aim: Share = 0.5
    """The best pass rate, in [0, 1]."""

    def __post_init__(self) -> None:
        check_bounds(self, where=_WHERE)

    def check_with(self, base: Budget) -> None:
        """Accept any caps."""

    def next_pass(self, states: Sequence[ProblemState], *, base: Budget, seed: int) -> Budgets:
        """Return the budgets of the only pass."""
        if any(state.trees for state in states):
            return {}
        ranked = sorted(states, key=lambda state: (self._distance(state), derive_seed(seed, "curriculum", state.problem_id)))
        chosen = {state.problem_id for state in ranked[: math.ceil(self.share * len(states) - 1e-9)]}
        return {state.problem_id: base for state in states if state.problem_id in chosen}

    def _distance(self, state: ProblemState) -> float:
        return 0.0 if state.pass_rate is None else abs(state.pass_rate - self.aim)


@dataclass(frozen=True, kw_only=True, slots=True)
class ByPassRate:
    """A number of trees for every range of pass rates; 0 filters problems out.

    The ranges divide [0, 1] equally: with five, a problem of rate 0.2 is in the first and one of 0.21 in the second. A problem of unknown
    pass rate gets one tree. One that is filtered out keeps its rate, and stays out.

    Source: Lyu et al. 2025, "Exploring the Limit of Outcome Reward for Learning Mathematical Reasoning" (OREAL), the released sampler: six,
        four, four and two copies of the problems of the first four fifths. With 0 for the ends: the query filter of Yang et al. 2024,
        "Qwen2.5-Math".
    """

    type: Literal["by-pass-rate"] = "by-pass-rate"
    """Name of the rule."""
    trees: tuple[Natural, ...] = (6, 4, 4, 2, 1)
    """Trees of a problem, >= 0, by its pass rate in equal ranges from 0 to 1; at least one number above 0."""

    def __post_init__(self) -> None:
        fits = any(self.trees) and all(isinstance(count, int) and count >= 0 for count in self.trees)
        check(fits, f"{_WHERE}: trees must be whole numbers >= 0, one of them above 0: got {list(self.trees)}")

    def check_with(self, base: Budget) -> None:
        """Accept any caps."""

    def next_pass(self, states: Sequence[ProblemState], *, base: Budget, seed: int) -> Budgets:
        """Return the budgets of the next pass."""
        return {state.problem_id: base for state in states if state.trees < self._wanted(state)}

    def _wanted(self, state: ProblemState) -> int:
        if state.pass_rate is None:
            return 1
        return self.trees[max(0, math.ceil(state.pass_rate * len(self.trees) - 1e-9) - 1)]


Allocation = Uniform | UnsolvedFirst | Knapsack | PromptCurriculum | ByPassRate
"""Any rule."""


def knapsack_value(rate: float, count: int) -> float:
    """Return what a number of tries at a problem is worth; see ``Knapsack``.

    Args:
        rate: Chance that a try is right, in [0, 1].
        count: Tries, >= 1.
    """
    return (1.0 - rate**count - (1.0 - rate) ** count) * rate * (1.0 - rate) ** 2


def knapsack_counts(rates: Sequence[float], *, total: int, least: int, most: int) -> list[int]:
    """Return the tries of every problem, so that the sum of their ``knapsack_value`` is largest.

    Each further try at a problem is worth less than the one before, so giving tries one by one to whoever gains most is exact. Ties go to
    the earlier problem. Tries that can gain nothing go to the problems of rate 0, evenly, and then to the others.

    Args:
        rates: Chance of each problem that a try is right, in [0, 1].
        total: Tries of all problems together, from ``least`` to ``most`` times their number.
        least: Tries of each problem at least, >= 1.
        most: Tries of each problem at most, >= least.
    """
    counts = [least] * len(rates)
    left = total - sum(counts)
    heap = [(-_gain(rate, least), index) for index, rate in enumerate(rates) if most > least]
    heapq.heapify(heap)
    while left > 0 and heap and heap[0][0] < 0:
        _, index = heapq.heappop(heap)
        counts[index] += 1
        left -= 1
        if counts[index] < most:
            heapq.heappush(heap, (-_gain(rates[index], counts[index]), index))
    for group in ([rate == 0 for rate in rates], [rate != 0 for rate in rates]):
        left = _spread(counts, [index for index, chosen in enumerate(group) if chosen], left, most=most)
    return counts


def _gain(rate: float, count: int) -> float:
    return knapsack_value(rate, count + 1) - knapsack_value(rate, count)


def _spread(counts: list[int], places: Sequence[int], left: int, *, most: int) -> int:
    """Add what is left to some counts one by one, in turn, and return what does not fit."""
    while left > 0 and (open_places := [place for place in places if counts[place] < most]):
        for place in open_places[:left]:
            counts[place] += 1
        left -= min(left, len(open_places))
    return left


def scaled(base: Budget, factor: float, *, num_simulations: int | None = None) -> Budget:
    """Return caps whose simulations, tokens and calls are multiplied and rounded, at least 1 each.

    Args:
        base: The caps.
        factor: The factor, > 0.
        num_simulations: Simulations instead of the multiplied ones.
    """

    def times(cap: int | None) -> int | None:
        return None if cap is None else max(1, round(cap * factor))

    simulations = max(1, round(base.num_simulations * factor)) if num_simulations is None else num_simulations
    return replace(base, num_simulations=simulations, max_tokens=times(base.max_tokens), max_calls=times(base.max_calls))
