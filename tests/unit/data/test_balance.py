"""The balance score by hand."""

import pytest

from stepladder.data.metrics.balance import Balance, ProbeSample, balance_score, best_balance
from stepladder.errors import ShapeError


def sample(text: str, reward: float) -> ProbeSample:
    """A sample that is right from a reward of 1 on."""
    return ProbeSample(text=text, reward=reward, correct=reward >= 1)


PROBLEM = [sample("a", 1.1), sample("a", 1.1), sample("b", 1.05), sample("c", 0.15), sample("d", 0.02)]


@pytest.mark.parametrize(
    ("threshold", "target", "expected"),
    [
        (-1.0, 8, 2 / 8 * 2 / 4),  # Four distinct ones, two of them right.
        (0.1, 8, 2 / 8 * 2 / 3),  # d goes.
        (0.2, 8, 2 / 8),  # Only the right ones stay.
        (0.2, 2, 1.0),  # Two are enough.
        (0.2, 1, 1.0),  # More than enough is no better.
        (1.05, 2, 0.5),  # The threshold itself is not above it.
        (1.2, 2, 0.0),  # Nothing is selected.
    ],
)
def test_balance_score_by_hand(threshold: float, target: int, expected: float) -> None:
    """min(n'/n*, 1) n'/n over distinct solutions above the threshold."""
    assert balance_score(PROBLEM, threshold, target=target) == pytest.approx(expected)


def test_best_balance_takes_the_best_mean_of_all_problems() -> None:
    """At 0.5 the problems score 1/2 and 0, at 1.0 both score 1/2; of equal thresholds the higher one, of equal temperatures the lower."""
    cold = [[sample("a", 1.0)], [sample("b", 0.1)]]
    warm = [[sample("a", 1.0)], [sample("b", 1.0), sample("c", 0.1)]]
    best, by_temperature = best_balance({1.0: warm, 0.5: cold, 1.1: warm}, [0.0, 0.2, 0.4], target=2)
    assert best == Balance(1.0, 0.4, 0.5)
    assert by_temperature == {0.5: Balance(0.5, 0.4, 0.25), 1.0: Balance(1.0, 0.4, 0.5), 1.1: Balance(1.1, 0.4, 0.5)}


def test_nothing_to_choose_from_is_an_error() -> None:
    """No temperatures, no thresholds or no problems."""
    for probe, thresholds in (({}, [0.0]), ({1.0: [PROBLEM]}, []), ({1.0: []}, [0.0])):
        with pytest.raises(ShapeError, match="needs samples and thresholds"):
            best_balance(probe, thresholds, target=1)
