"""Monitors by hand, and against enumeration and simulation."""

import math
import random
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from stepladder.data.metrics.answers import PoolSample, best_of_n, majority_vote
from stepladder.data.metrics.monitors import (
    AtK,
    ScoreHistogram,
    best_at_k,
    calibration_error,
    distinct_right,
    divergence_per_token,
    exploitation,
    exploration,
    figures_at_k,
    majority_at_k,
    score_histogram,
    surprisal_per_token,
    unsound_right,
)
from stepladder.errors import ShapeError


def sample(answer: str | None, score: float | None = None, *, solution: str | None = None, logp: float | None = None) -> PoolSample:
    """A sample of three tokens; answer ``a`` is right."""
    return PoolSample(num_tokens=3, answer_key=answer, score=score, correct=answer == "a", solution=solution, logp=logp)


# By score: right 0.9, wrong 0.7, right 0.5, wrong 0.1.
POOL = [sample("b", 0.7), sample("a", 0.9), sample("b", 0.1), sample("a", 0.5)]


def test_prm_at_k_by_hand() -> None:
    """At 1 half are right; at 2 the pairs with 0.9 (three) and 0.5 over 0.1 (one) of six; at 3 those with 0.9, three of four; at 4 one."""
    assert [best_at_k(POOL, k) for k in (1, 2, 3, 4)] == [0.5, 4 / 6, 3 / 4, 1.0]
    assert best_at_k([sample("a"), sample("b")], 1) is None


def test_majority_at_k_by_hand() -> None:
    """Ties go to the answer seen first, here b: at 2 one pair of a's alone wins, and one begins with a; at 3 the triples with two a's."""
    rng = np.random.default_rng(0)
    assert majority_at_k(POOL, 1, rng=rng) == 0.5
    # Pairs in order: ba bb ba ab aa ba: right are ab and aa.
    assert majority_at_k(POOL, 2, rng=rng) == 2 / 6
    # Triples: bab baa bba aba: right are baa and aba.
    assert majority_at_k(POOL, 3, rng=rng) == 2 / 4


@pytest.mark.parametrize("seed", range(10))
def test_at_k_agrees_with_all_subsets(seed: int) -> None:
    """On random pools with ties, unscored samples and missing answers: the mean of the rule over every subset."""
    rng = random.Random(seed)
    pool = [sample(rng.choice(["a", "b", None]), rng.choice([None, 0.1, 0.5, 0.9])) for _ in range(6)]
    for k in range(1, 7):
        subsets = [[pool[index] for index in chosen] for chosen in combinations(range(6), k)]
        chosen = [best_of_n(each) is True for each in subsets]
        found = best_at_k(pool, k)
        # A subset without a scored answer has no best one, and is not right.
        assert (found or 0.0) == pytest.approx(sum(chosen) / len(chosen))
        votes = [majority_vote(each) is True for each in subsets]
        assert majority_at_k(pool, k, rng=np.random.default_rng(0)) == pytest.approx(sum(votes) / len(votes))


def test_majority_at_k_of_many_samples_is_near_the_mean_over_subsets() -> None:
    """Of C(20, 5) = 15,504 subsets, 100 are drawn: three standard errors of a share are 0.15."""
    pool = [sample(answer) for answer in "ab" * 10]
    subsets = list(combinations(range(20), 5))
    exact = sum(majority_vote([pool[index] for index in chosen]) is True for chosen in subsets) / len(subsets)
    assert majority_at_k(pool, 5, rng=np.random.default_rng(0)) == pytest.approx(exact, abs=0.15)


def test_figures_at_k_by_hand() -> None:
    """Two problems of four samples, all of the second wrong: half of the figures of the first; k is 1, 2 and 4."""
    wrong = [sample("b", 0.2)] * 4
    assert figures_at_k([POOL, wrong]) == [
        AtK(k=1, passed=0.25, majority=0.25, prm=0.25),
        AtK(k=2, passed=(1 - 1 / 6) / 2, majority=1 / 6, prm=1 / 3),
        AtK(k=4, passed=0.5, majority=0.0, prm=0.5),
    ]
    assert [each.k for each in figures_at_k([POOL[:3]])] == [1, 2, 3]
    assert figures_at_k([]) == []


def test_a_k_that_is_impossible_is_an_error() -> None:
    """More samples than there are, or none."""
    for k in (0, 5):
        with pytest.raises(ShapeError, match="needs 1 <= k <= n"):
            best_at_k(POOL, k)


def test_distinct_right_by_hand() -> None:
    """Two different right solutions and none: one on average; without digests it is unknown."""
    first = [sample("a", solution="x"), sample("a", solution="x"), sample("a", solution="y"), sample("b", solution="z")]
    assert distinct_right([first, [sample("b", solution="x")]]) == 1.0
    assert distinct_right([POOL]) is None


def test_surprisal_by_hand() -> None:
    """Log-probabilities of -6 and -3 over six tokens: 1.5 nats a token; unknown where one is."""
    assert surprisal_per_token([[sample("a", logp=-6.0)], [sample("b", logp=-3.0)]]) == 1.5
    assert surprisal_per_token([[sample("a", logp=-6.0), sample("b")]]) is None
    assert surprisal_per_token([]) is None


def test_calibration_error_by_hand() -> None:
    """Bin 0.2 to 0.3: mean score 0.25, one of two right; bin 0.9 to 1: score 1.0, wrong: (2 * 0.25 + 1 * 1) / 3."""
    assert calibration_error([0.2, 0.3 - 1e-9, 1.0], [True, False, False]) == pytest.approx((2 * 0.25 + 1.0) / 3, abs=1e-6)
    assert calibration_error([1.0, 0.0], [True, False]) == 0.0
    assert calibration_error([], []) is None


def test_a_calibrated_scorer_has_little_error() -> None:
    """Outcomes drawn with the score as their probability: below 0.02 on 20,000 of them."""
    rng = random.Random(0)
    scores = [rng.random() for _ in range(20_000)]
    error = calibration_error(scores, [rng.random() < score for score in scores])
    assert error is not None and error < 0.02 and not math.isnan(error)


def test_score_histogram_by_hand() -> None:
    """The ends belong to the first and last bin, and so does what lies outside."""
    found = score_histogram([0.0, 0.05, 0.1, 0.95, 1.0, 1.7, -2.0], [True, False, True, True, True, True, False])
    assert found == ScoreHistogram(right=(1, 1, 0, 0, 0, 0, 0, 0, 0, 3), wrong=(2, 0, 0, 0, 0, 0, 0, 0, 0, 0))


def test_divergence_by_hand() -> None:
    """Samples of three tokens with log-probabilities of -6 and -3, and -9 and -3 under the start: 3 nats over six tokens."""
    pools = [[replace(sample("a", logp=-6.0), start_logp=-9.0)], [replace(sample("b", logp=-3.0), start_logp=-3.0)]]
    assert divergence_per_token(pools) == 0.5
    assert divergence_per_token([*pools, [sample("a", logp=-1.0)]]) is None
    assert divergence_per_token([]) is None


def test_right_solutions_with_false_equations_by_hand() -> None:
    """Of three right samples with equations one states a false one; wrong samples and those without equations do not count."""
    right, wrong = sample("a"), sample("b")
    pool = [replace(right, sound=True), replace(right, sound=False), replace(right, sound=True), right, replace(wrong, sound=False)]
    assert unsound_right([pool[:2], pool[2:]]) == pytest.approx(1 / 3)
    assert unsound_right([[right], [replace(wrong, sound=True)]]) is None


def test_exploration_and_exploitation_by_hand() -> None:
    """Two different right solutions, and one twice: half of the problems have two. The best two by score are half right, then all wrong."""
    first = [sample("a", solution="x"), sample("a", solution="y")]
    assert exploration([first, [sample("a", solution="x"), sample("a", solution="x")]], 2) == 0.5
    assert exploration([POOL], 1) is None
    assert exploitation([POOL, [sample("b", 0.9), sample("b", 0.8), sample("a", 0.1)]], 2) == 0.25
    assert exploitation([[sample("a")]], 2) is None
