"""Sequential halving: how a Gumbel search spreads its simulations over the children of the root. The scores are in ``descent_kernels``.

Source: Danihelka et al. 2022, "Policy improvement by planning with Gumbel". The schedules are those of mctx.
"""

import math

import numpy as np
from jaxtyping import Int

from stepladder.errors import ConfigError

_MAX_SCHEDULE = 4096
"""Simulations that a schedule is made for at most: a search without a cap still has to halve some time."""


def considered_visits(num_considered: int, num_simulations: int) -> list[int]:
    """Return, for each simulation at a root, how many visits a child must have to be a candidate.

    Sequential halving in terms of visits: rounds of equally many visits to each candidate, half as many candidates in each next round, at
    least two.

    Example: 4 candidates, 8 simulations: ``[0, 0, 0, 0, 1, 1, 2, 2]``: all four once, then the better two twice.

    Raises:
        ConfigError: If a count is below 1.

    Source: Karnin et al. 2013, "Almost optimal exploration in multi-armed bandits", in the schedule of mctx.
    """
    if num_considered < 1 or num_simulations < 1:
        raise ConfigError(f"considered_visits: counts must be at least 1: got {num_considered} candidates, {num_simulations} simulations")
    if num_considered == 1:
        return list(range(num_simulations))
    num_rounds = math.ceil(math.log2(num_considered))
    schedule: list[int] = []
    visits, candidates = 0, num_considered
    while len(schedule) < num_simulations:
        for _ in range(max(1, num_simulations // (num_rounds * candidates))):
            schedule += [visits] * candidates
            visits += 1
        candidates = max(2, candidates // 2)
    return schedule[:num_simulations]


def schedule_length(num_simulations: int) -> int:
    """Return the number of simulations that a schedule covers, in [1, 4096]. Its last entry counts for all later ones."""
    return min(max(num_simulations, 1), _MAX_SCHEDULE)


def halving_schedules(num_slots: int, num_simulations: int, *, max_considered: int) -> Int[np.ndarray, "K S"]:
    """Return ``considered_visits`` of roots with 1 to ``num_slots`` children.

    Args:
        num_slots: Child slots of the root.
        num_simulations: Simulations below the root; more than 4096 count as 4096, less than 1 as 1.
        max_considered: Children considered at first, >= 1.

    """
    num_simulations = schedule_length(num_simulations)
    return np.array([considered_visits(min(m, max_considered), num_simulations) for m in range(1, num_slots + 1)])
