"""Which rounds a round learns from, and what this choice does to a linear model that learns from its own samples."""

import numpy as np
import pytest

from stepladder.loops.config.search import AllRounds, RecentRounds, RecentVersions
from stepladder.loops.stages.train_policy import learned_rounds

ROWS, WEIGHTS, ROUNDS, REPEATS = 1000, 100, 10, 20


def test_the_rounds_by_hand() -> None:
    """In round 5: all of them, its own, the last three; a window is never longer than the run."""
    assert [*learned_rounds(AllRounds(), 5)] == [1, 2, 3, 4, 5]
    assert [*learned_rounds(AllRounds(type="replace"), 5)] == [5]
    assert [*learned_rounds(RecentRounds(window=3), 5)] == [3, 4, 5]
    assert [*learned_rounds(RecentRounds(window=3), 2)] == [1, 2]
    assert [*learned_rounds(RecentVersions(window=3), 5)] == [5]


def errors_of(data: AllRounds | RecentRounds) -> list[float]:
    """Return the squared error of the weights after every round, averaged over repeats.

    In the first round rows come from the truth, later from the model of the round before, always with noise of variance 1.
    """
    found = np.zeros(ROUNDS)
    for seed in range(REPEATS):
        rng = np.random.default_rng(seed)
        truth = rng.normal(size=WEIGHTS)
        model, products, moments = truth, {}, {}
        for number in range(1, ROUNDS + 1):
            inputs = rng.normal(size=(ROWS, WEIGHTS))
            outputs = inputs @ model + rng.normal(size=ROWS)
            products[number], moments[number] = inputs.T @ inputs, inputs.T @ outputs
            rounds = learned_rounds(data, number)
            model = np.linalg.solve(sum(products[each] for each in rounds), sum(moments[each] for each in rounds))
            found[number - 1] += ((model - truth) ** 2).sum() / REPEATS
    return found.tolist()


def test_replaced_data_collapses_and_accumulated_data_does_not() -> None:
    """After ten rounds the error is ten times the first, 1.11, with replaced rows, and 1.55 times it, 0.17, with all rows.

    The first error is d / (n - d - 1) = 0.111. Replacing adds it in every round; accumulating adds it divided by the square of the round.

    Source: Gerstgrasser et al. 2024, "Is model collapse inevitable? Breaking the curse of recursion by accumulating real and synthetic
    data", theorems 1 and 2.
    """
    first = WEIGHTS / (ROWS - WEIGHTS - 1)
    replaced, accumulated, window = (errors_of(data) for data in (AllRounds(type="replace"), AllRounds(), RecentRounds(window=3)))
    assert replaced[0] == accumulated[0] == pytest.approx(first, rel=0.1)
    assert replaced[-1] == pytest.approx(10 * first, rel=0.15)
    assert accumulated[-1] == pytest.approx(first * sum(1 / number**2 for number in range(1, 11)), rel=0.15)
    assert accumulated[-1] < window[-1] < replaced[-1]
