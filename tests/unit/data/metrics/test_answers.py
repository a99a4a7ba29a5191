"""The figures of an evaluation, by hand-worked numbers and by exhaustive twins."""

import itertools
import math
import random

import numpy as np
import pytest

from stepladder.data.metrics.answers import (
    PoolSample,
    answer_entropy,
    best_of_n,
    brier,
    clustered_interval,
    first_within,
    known_within,
    majority_vote,
    mcnemar_p_value,
    paired_comparison,
    paired_difference,
    pass_at_k,
    pooled_auc,
    weighted_vote,
    wilson_interval,
    within_problem_auc,
)
from stepladder.errors import ShapeError


def sample(answer: str | None, *, score: float | None = None, correct: bool = False, tokens: int = 10) -> PoolSample:
    return PoolSample(num_tokens=tokens, answer_key=answer, score=score, correct=correct)


@pytest.mark.parametrize(("n", "c"), [(5, 0), (5, 1), (5, 3), (5, 5), (6, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n, c):
    """Counting all subsets of k samples gives the same number, for every k."""
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(range(n), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(min(subset) < c for subset in subsets) / len(subsets))


def test_pass_at_k_by_hand():
    """Of 4 samples 1 is right: 2 drawn hold it in 3 of 6 cases. Large counts stay exact."""
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(1000, 1, 500) == 0.5
    for bad in [(4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)]:
        with pytest.raises(ShapeError, match="pass_at_k"):
            pass_at_k(*bad)


def test_first_within_stops_at_the_budget():
    """10 + 10 fit 25, the third does not, and a later smaller one is not pulled forward."""
    pool = [sample("a"), sample("b"), sample("c"), sample("d", tokens=1)]
    assert first_within(pool, 25) == pool[:2]
    assert first_within(pool, 20) == pool[:2]
    assert first_within(pool, 9) == []
    assert first_within(pool, 31) == pool


def test_votes_by_hand():
    """Answer x has two voters of weight .2 and .3, y one of .6: majority says x, the weighted vote y, and the best single one is y's."""
    pool = [sample("x", score=0.2, correct=True), sample("y", score=0.6), sample("x", score=0.3, correct=True), sample(None, score=0.9)]
    assert majority_vote(pool) is True
    assert weighted_vote(pool) is False
    assert best_of_n(pool) is False


def test_votes_tie_to_the_first_seen_and_ignore_what_is_missing():
    """Ties go to the earlier answer; unreadable answers and unscored samples do not take part; without any part there is no verdict."""
    tie = [sample("x", score=0.5, correct=True), sample("y", score=0.5)]
    assert [rule(tie) for rule in (majority_vote, weighted_vote, best_of_n)] == [True] * 3
    assert [rule(tie[::-1]) for rule in (majority_vote, weighted_vote, best_of_n)] == [False] * 3
    assert weighted_vote([sample("x"), sample("y", score=0.0, correct=True)]) is True
    unreadable = [sample(None, score=0.9, correct=False)]
    assert [rule(unreadable) for rule in (majority_vote, weighted_vote, best_of_n)] == [None] * 3
    assert weighted_vote([sample("x")]) is None


@pytest.mark.parametrize("seed", range(5))
def test_auc_agrees_with_counting_pairs(seed):
    """Every right-wrong pair counts 1, 0.5 on a tie, or 0; so does the rank formula."""
    rng = random.Random(seed)
    scores = [rng.randrange(4) / 4 for _ in range(12)]
    correct = [True, False, *(rng.random() < 0.5 for _ in range(10))]
    pairs = [
        (a > b) + (a == b) / 2
        for a, right in zip(scores, correct, strict=True)
        if right
        for b, other in zip(scores, correct, strict=True)
        if not other
    ]
    assert pooled_auc(scores, correct) == pytest.approx(sum(pairs) / len(pairs))


def test_within_problem_auc_sees_through_problem_difficulty():
    """Scores that only know which problem is easy have a high pooled AUC and are at chance within each problem."""
    easy, hard = ([0.9] * 4, [True, True, True, False]), ([0.1] * 4, [True, False, False, False])
    assert pooled_auc(easy[0] + hard[0], easy[1] + hard[1]) == 0.75
    assert within_problem_auc([easy, hard]) == 0.5


def test_within_problem_auc_by_hand():
    """One problem ranked fully right, one with one of two pairs right; a problem of one kind says nothing; without any there is none."""
    groups = [([0.9, 0.1], [True, False]), ([0.5, 0.4, 0.6], [True, False, False]), ([0.3, 0.2], [True, True])]
    assert within_problem_auc(groups) == 0.75
    assert within_problem_auc(groups[2:]) is None
    assert within_problem_auc([]) is None
    assert pooled_auc([], []) is None


def test_scores_must_be_finite_and_paired():
    """A missing score is left out by the caller, never passed as NaN."""
    for measure in (pooled_auc, brier):
        with pytest.raises(ShapeError, match="scores: must be finite"):
            measure([0.5, float("nan")], [True, False])
        with pytest.raises(ShapeError, match="got 1 scores and 2 outcomes"):
            measure([0.5], [True, False])


def test_brier_by_hand():
    """(.2^2 + .6^2) / 2; always one half costs a quarter."""
    assert brier([0.8, 0.6], [True, False]) == pytest.approx(0.2)
    assert brier([0.5, 0.5], [True, False]) == 0.25
    assert brier([], []) is None


def test_wilson_interval_solves_its_equation():
    """Both ends are the proportions p with |share - p| = z sqrt(p (1 - p) / n), the definition; the known case 8 of 10 is met."""
    z = 1.959963984540054
    for successes, trials in [(8, 10), (1, 3), (50, 1000)]:
        for end in wilson_interval(successes, trials):
            assert abs(successes / trials - end) == pytest.approx(z * math.sqrt(end * (1 - end) / trials))
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_wilson_interval_at_its_ends():
    """No success has low end 0, all have high end 1, no trials know nothing."""
    assert wilson_interval(0, 10).low == 0.0
    assert wilson_interval(10, 10).high == 1.0
    assert wilson_interval(0, 10).high == pytest.approx(1 - wilson_interval(10, 10).low)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ShapeError, match="got 3 of 2"):
        wilson_interval(3, 2)


@pytest.mark.parametrize("shares", [[1.0] * 8 + [0.0] * 2, [0.0] * 3, [1.0] * 5])
def test_clustered_interval_of_zeros_and_ones_is_wilsons(shares):
    """One try per problem, or tries that all agree: each problem counts once, however often it was tried."""
    wilson = wilson_interval(int(sum(shares)), len(shares))
    for num_repeats in (1, 4):
        assert clustered_interval(shares, num_repeats=num_repeats) == pytest.approx(wilson)


def test_clustered_interval_by_hand():
    """Six problems, two tries: p = 1/2, s^2 = (4 * 1/4) / 6 = 1/6, so n_eff = 6 * 1/4 * 6 = 9, between 6 problems and 12 tries."""
    z = 1.959963984540054
    half = z / (1 + z**2 / 9) * math.sqrt(0.25 / 9 + z**2 / (4 * 81))
    assert clustered_interval([1, 1, 0.5, 0.5, 0, 0], num_repeats=2) == pytest.approx((0.5 - half, 0.5 + half))
    # Tries that differ in the same way everywhere: no more is known than 8 independent ones would tell.
    assert clustered_interval([0.5] * 4, num_repeats=2) == pytest.approx(wilson_interval(4, 8))
    assert clustered_interval([], num_repeats=3) == (0.0, 1.0)
    with pytest.raises(ShapeError, match=r"shares must be in \[0, 1\]: got 0.5 to 1.5"):
        clustered_interval([0.5, 1.5], num_repeats=2)


def test_clustered_interval_covers_what_it_says():
    """Problems of random difficulty, three tries each: 95 of 100 intervals hold the mean; Wilson's of all tries hold far fewer."""
    rng, inside, naive = np.random.default_rng(3), 0, 0
    for _ in range(2000):
        difficulties = rng.choice([0.05, 0.95], size=40)
        tries = rng.random((40, 3)) < difficulties[:, None]
        low, high = clustered_interval(list(tries.mean(axis=1)), num_repeats=3)
        inside += low <= 0.5 <= high
        low, high = wilson_interval(int(tries.sum()), 120)
        naive += low <= 0.5 <= high
    assert 0.935 < inside / 2000 < 0.97
    assert naive / 2000 < 0.80


def test_mcnemar_by_hand():
    """5 against 0: two tails of 1/32. 1 against 1 is no evidence; neither is nothing."""
    assert mcnemar_p_value(5, 0) == 2 / 32
    assert mcnemar_p_value(0, 5) == 2 / 32
    assert mcnemar_p_value(6, 2) == pytest.approx(2 * (1 + 8 + 28) / 256)
    assert mcnemar_p_value(1, 1) == 1.0
    assert mcnemar_p_value(0, 0) == 1.0


def test_paired_comparison_counts_and_covers():
    """30 problems gained and 10 lost of 100: difference .2, and the interval is near the normal one of the paired differences."""
    first = [False] * 30 + [True] * 10 + [True] * 60
    second = [True] * 30 + [False] * 10 + [True] * 60
    result = paired_comparison(first, second, rng=np.random.default_rng(0))
    assert (result.num_better, result.num_worse, result.difference) == (30, 10, 0.2)
    assert result.p_value == mcnemar_p_value(30, 10)
    spread = 1.96 * math.sqrt((0.4 - 0.2**2) / 100)
    assert result.interval == pytest.approx((0.2 - spread, 0.2 + spread), abs=0.015)
    assert paired_comparison(first, second, rng=np.random.default_rng(0)) == result


def test_paired_comparison_of_equals_is_zero():
    """The same results differ by nothing, with certainty; empty or unequal lists are refused."""
    result = paired_comparison([True, False], [True, False], rng=np.random.default_rng(1))
    assert (result.difference, result.interval, result.p_value) == (0.0, (0.0, 0.0), 1.0)
    for first, second in [([], []), ([True], [])]:
        with pytest.raises(ShapeError, match="paired_comparison"):
            paired_comparison(first, second, rng=np.random.default_rng(1))


def test_paired_difference_by_hand():
    """Shares of several tries: mean of the differences; the interval of zeros and ones is that of ``paired_comparison``."""
    result = paired_difference([0.0, 0.5, 1.0], [0.5, 1.0, 1.0], rng=np.random.default_rng(0))
    assert result.difference == pytest.approx(1 / 3)
    assert result.interval == pytest.approx((0.0, 0.5))
    always = paired_difference([0.25] * 5, [0.75] * 5, rng=np.random.default_rng(0))
    assert (always.difference, always.interval) == (0.5, (0.5, 0.5))
    first, second = [0.0] * 30 + [1.0] * 70, [1.0] * 30 + [0.0] * 10 + [1.0] * 60
    spread = 1.96 * math.sqrt((0.4 - 0.2**2) / 100)
    assert paired_difference(first, second, rng=np.random.default_rng(0)).interval == pytest.approx((0.2 - spread, 0.2 + spread), abs=0.015)
    with pytest.raises(ShapeError, match="paired_difference"):
        paired_difference([1.0], [], rng=np.random.default_rng(0))


def test_known_within_is_the_last_entry_that_fits():
    """Nothing is known before the first entry; an entry counts from the token at which it was reached."""
    course = [(10, "a"), (20, None), (30, "b")]
    assert [known_within(course, tokens) for tokens in (9, 10, 19, 20, 30, 99)] == [None, "a", "a", None, "b", "b"]


def test_answer_entropy_by_hand():
    """Two different right solutions; two answers half and half have log 2 nats, one has none, unreadable ones do not count."""
    assert answer_entropy(["x", "y", None, "y", "x"]) == pytest.approx(math.log(2))
    assert answer_entropy(["x", "x"]) == 0.0
    assert math.copysign(1, answer_entropy(["x"])) == 1.0
    assert answer_entropy([None]) == 0.0
    assert answer_entropy([]) == 0.0
