"""Figures about process reward models: by hand, and against slow enumerations."""

import math
from itertools import combinations

import numpy as np
import pytest

from stepladder.data.metrics.step_scores import (
    auc_by_depth,
    best_of_n_curve,
    best_threshold,
    calibration_error,
    first_error_figures,
    predicted_first_error,
    rank_figures,
    reliability,
)
from stepladder.errors import ShapeError


def test_first_error_figures_by_hand():
    """Two of four wrong solutions and one of two right ones are hit: F1 is 2 * 0.5 * 0.5 / 1; an error found elsewhere is no hit."""
    figures = first_error_figures([2, 0, 1, -1, -1, 3], [2, 0, 2, 1, -1, -1])
    assert (figures.wrong_accuracy, figures.right_accuracy, figures.f1) == (0.5, 0.5, 0.5)
    assert (figures.num_wrong, figures.num_right) == (4, 2)
    assert first_error_figures([0], [-1]).f1 is None
    assert first_error_figures([0, -1], [-1, 0]).f1 == 0.0
    with pytest.raises(ShapeError):
        first_error_figures([0], [])


def test_the_first_step_below_the_threshold_is_the_prediction():
    """A score on the threshold is good; steps without a score are passed."""
    assert predicted_first_error([0.9, 0.5, None, 0.4, 0.1]) == 3
    assert predicted_first_error([0.9, 0.5], threshold=0.6) == 1
    assert predicted_first_error([None]) == predicted_first_error([]) == -1


def test_the_best_threshold_is_no_worse_than_any_other():
    """On random scores, every threshold of a fine grid has at most the F1 of the one that was found."""
    rng = np.random.default_rng(0)
    scores = [rng.random(4).round(2).tolist() for _ in range(30)]
    actual = [int(rng.integers(-1, 4)) for _ in scores]

    def f1(threshold):
        return first_error_figures([predicted_first_error(steps, threshold=threshold) for steps in scores], actual).f1

    found = best_threshold(scores, actual)
    assert f1(found) == max(f1(threshold) for threshold in np.linspace(0, 1.01, 500))
    assert best_threshold([[0.3]], [-1]) == 0.5


def test_ranks_count_ties_and_missing_scores_against_the_right_solution():
    """Ranks 1, 2 (a tie) and 3 (no score among two): accuracy 1/3, MRR (1 + 1/2 + 1/3) / 3."""
    figures = rank_figures([(0.9, [0.1, None]), (0.5, [0.5, 0.2]), (None, [0.1, 0.2])])
    assert figures is not None
    assert figures.accuracy == pytest.approx(1 / 3)
    assert figures.mrr == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert (figures.num_problems, figures.num_wrong) == (3, (2, 2))
    assert rank_figures([]) is None


@pytest.mark.parametrize("seed", range(4))
def test_best_of_n_is_the_mean_over_all_subsets(seed):
    """Every subset is drawn and its best-scored samples averaged; rounded scores make ties."""
    rng = np.random.default_rng(seed)
    groups = [(rng.random(size).round(1).tolist(), (rng.random(size) < 0.5).tolist()) for size in (6, 7, 6)]
    curve = best_of_n_curve(groups)
    assert [point.n for point in curve] == [1, 2, 4, 6]
    for point in curve:
        accuracies, scores = [], []
        for values, right in groups:
            picks = [_best(values, right, subset) for subset in combinations(range(len(values)), point.n)]
            accuracies.append(np.mean([pick[0] for pick in picks]))
            scores.append(np.mean([pick[1] for pick in picks]))
        assert point.accuracy == pytest.approx(np.mean(accuracies))
        assert point.score == pytest.approx(np.mean(scores))
        assert point.kl == pytest.approx(math.log(point.n) - (point.n - 1) / point.n)


def _best(values, right, subset):
    top = max(values[i] for i in subset)
    # Of the samples that tie, each is chosen equally often.
    return np.mean([right[i] for i in subset if values[i] == top]), top


def test_an_over_optimised_score_shows_as_a_falling_gold_curve():
    """A score that is highest on a wrong sample: accuracy falls to zero while the proxy rises."""
    curve = best_of_n_curve([([0.1, 0.5, 0.9, 0.2], [False, True, False, True])])
    assert [point.accuracy for point in curve] == pytest.approx([0.5, 0.5, 0.0])
    assert [point.score for point in curve] == sorted(point.score for point in curve)
    assert best_of_n_curve([]) == []


def test_reliability_and_calibration_error_by_hand():
    """Scores 0.1 and 0.3 with labels 0 and 1 in the lower half, 1.0 with label 1 in the upper: gaps 0.3 and 0, error 0.2."""
    bins = reliability([0.1, 0.3, 1.0], [0.0, 1.0, 1.0], num_bins=2)
    assert [(each.count, each.mean_score, each.mean_label) for each in bins] == [(2, pytest.approx(0.2), 0.5), (1, 1.0, 1.0)]
    assert calibration_error(bins) == pytest.approx(0.2)
    empty = reliability([], [])
    assert (len(empty), empty[0].mean_score, calibration_error(empty)) == (10, None, None)


def test_auc_by_depth_keeps_depths_apart():
    """At depth 1 good steps score above bad ones, at depth 2 below; a depth of one class has none; 0.5 says neither."""
    steps = [(1, 0.9, 1.0), (1, 0.1, 0.0), (1, 0.0, 0.5), (2, 0.1, 1.0), (2, 0.9, 0.0), (3, 0.5, 1.0)]
    assert auc_by_depth(steps) == {1: (1.0, 2), 2: (0.0, 2), 3: (None, 1)}
