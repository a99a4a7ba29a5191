"""Metrics of process reward models: the protocols of public benchmarks and calibration, as pure functions of scores.

A figure that cannot be computed is None, never 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepladder.data.metrics.answers import pooled_auc
from stepladder.errors import ShapeError

NO_ERROR = -1
"""Index that means that all steps of a solution are right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstErrorFigures:
    """ProcessBench."""

    wrong_accuracy: float | None
    """Share of the wrong solutions whose first wrong step was found; None without wrong solutions."""
    right_accuracy: float | None
    """Share of the right solutions in which no error was reported; None without right solutions."""
    f1: float | None
    """Harmonic mean of both; None unless both are known."""
    num_wrong: int
    """Solutions with a wrong step."""
    num_right: int
    """Solutions without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankFigures:
    """RewardMATH."""

    accuracy: float
    """Share of the problems whose right solution scores strictly above every wrong one."""
    mrr: float
    """Mean reciprocal rank of the right solution; a tie counts as a loss."""
    num_problems: int
    """Problems."""
    num_wrong: tuple[int, int]
    """Smallest and largest number of wrong solutions of a problem."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BestOfN:
    """Result of choosing the best-scored of n samples."""

    n: int
    """Samples to choose from."""
    kl: float
    """KL distance of the chosen samples' distribution from the sampler's, log n - (n - 1) / n, in nats."""
    accuracy: float
    """Expected share of right choices: the gold curve."""
    score: float
    """Expected score of the choice: the proxy's curve."""
    num_problems: int
    """Problems with at least n scored samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityBin:
    """Steps whose scores lie in one bin."""

    low: float
    """Lower end. The bin holds scores from here up to ``high``; only the last bin includes its ``high``."""
    high: float
    """Upper end."""
    count: int
    """Steps in it."""
    mean_score: float | None
    """None in an empty bin."""
    mean_label: float | None
    """None in an empty bin."""


def predicted_first_error(scores: Sequence[float | None], *, threshold: float = 0.5) -> int:
    """Return the index of the first step that scores below the threshold, or ``NO_ERROR``. Steps without a score are skipped."""
    return next((i for i, score in enumerate(scores) if score is not None and score < threshold), NO_ERROR)


def first_error_figures(predicted: Sequence[int], actual: Sequence[int]) -> FirstErrorFigures:
    """Return the ProcessBench figures of predictions.

    Args:
        predicted: Index of the first wrong step of each solution, ``NO_ERROR`` for none.
        actual: The same, as labelled.

    Raises:
        ShapeError: If the lists differ in length.

    Source: Zheng et al. 2024, "ProcessBench: identifying process errors in mathematical reasoning", section 4.
    """
    if len(predicted) != len(actual):
        raise ShapeError(f"first_error_figures: needs one prediction per solution: got {len(predicted)} for {len(actual)}")
    wrong = [guess == truth for guess, truth in zip(predicted, actual, strict=True) if truth != NO_ERROR]
    right = [guess == truth for guess, truth in zip(predicted, actual, strict=True) if truth == NO_ERROR]
    on_wrong, on_right = (sum(hits) / len(hits) if hits else None for hits in (wrong, right))
    f1 = None
    if on_wrong is not None and on_right is not None:
        f1 = 2 * on_wrong * on_right / (on_wrong + on_right) if on_wrong + on_right else 0.0
    return FirstErrorFigures(wrong_accuracy=on_wrong, right_accuracy=on_right, f1=f1, num_wrong=len(wrong), num_right=len(right))


def best_threshold(scores: Sequence[Sequence[float | None]], actual: Sequence[int]) -> float:
    """Return the threshold with the highest F1 on some solutions, for use on others. Among equals it is the smallest.

    Candidates lie half way between neighbouring distinct scores, and outside both ends of [0, 1]. The result is 0.5 if F1 cannot be
    computed.
    """
    values = np.unique([score for steps in scores for score in steps if score is not None])
    # No threshold between two neighbouring scores changes a prediction, so these candidates are complete.
    candidates = [0.0, *((values[1:] + values[:-1]) / 2).tolist(), math.nextafter(1.0, 2.0)]
    f1s = [first_error_figures([predicted_first_error(steps, threshold=each) for steps in scores], actual).f1 for each in candidates]
    known = [(-f1, threshold) for f1, threshold in zip(f1s, candidates, strict=True) if f1 is not None]
    return min(known)[1] if known else 0.5


def rank_figures(groups: Sequence[tuple[float | None, Sequence[float | None]]]) -> RankFigures | None:
    """Return the RewardMATH figures: the rank of the right solution of each problem among wrong ones.

    Args:
        groups: Per problem, the score of its right solution and the scores of its wrong ones, at least one. A right solution without a
            score ranks last. A scored right solution beats a wrong one without a score.

    Returns:
        None without problems.

    Source: Kim et al. 2024, "Evaluating robustness of reward models for mathematical reasoning": 1 right against 9 wrong.
    """
    if not groups:
        return None
    ranks = [1 + (len(wrong) if right is None else sum(score is not None and score >= right for score in wrong)) for right, wrong in groups]
    sizes = [len(wrong) for _, wrong in groups]
    return RankFigures(
        accuracy=sum(rank == 1 for rank in ranks) / len(ranks),
        mrr=sum(1 / rank for rank in ranks) / len(ranks),
        num_problems=len(ranks),
        num_wrong=(min(sizes), max(sizes)),
    )


def best_of_n_curve(groups: Sequence[tuple[Sequence[float], Sequence[bool]]]) -> list[BestOfN]:
    """Return the results of choosing by score for n = 1, 2, 4, ..., and for the largest n that every problem has.

    The mean is exact, over all subsets of n samples of a problem, and ties are broken evenly. Let N be the number of samples, N_< the
    number that score below s, and N_= the number that score s. The samples with score s are the best of a subset with probability

        (C(N_< + N_=, n) - C(N_<, n)) / C(N, n)

    If accuracy stops rising while the scores of the choices still rise, the score is over-optimised.

    Args:
        groups: Per problem, the scores of its samples and whether each is right.

    Returns:
        One point per n; empty without problems.

    Source: Gao et al. 2023, "Scaling laws for reward model overoptimization" (unbiased estimator and KL).
    """
    sizes = [len(scores) for scores, _ in groups]
    least = min(sizes, default=0)
    counts = sorted({2**i for i in range(least.bit_length()) if 2**i <= least} | ({least} if least else set()))
    curve = []
    for n in counts:
        chosen = [_expected_choice(scores, right, n) for scores, right in groups]
        curve.append(
            BestOfN(
                n=n,
                kl=math.log(n) - (n - 1) / n,
                accuracy=math.fsum(right for right, _ in chosen) / len(chosen),
                score=math.fsum(score for _, score in chosen) / len(chosen),
                num_problems=len(chosen),
            )
        )
    return curve


def _expected_choice(scores: Sequence[float], right: Sequence[bool], n: int) -> tuple[float, float]:
    """Return the expected (outcome, score) of the best-scored of n samples."""
    values, outcomes = np.asarray(scores, dtype=float), np.asarray(right, dtype=float)
    total, below, accuracy, score = math.comb(len(values), n), 0, 0.0, 0.0
    for value in np.unique(values):
        equal = values == value
        weight = (math.comb(below + int(equal.sum()), n) - math.comb(below, n)) / total
        accuracy += weight * float(outcomes[equal].mean())
        score += weight * float(value)
        below += int(equal.sum())
    return accuracy, score


def reliability(scores: Sequence[float], labels: Sequence[float], *, num_bins: int = 10) -> list[ReliabilityBin]:
    """Return the mean score and mean label of the steps in equal bins of [0, 1]. On the diagonal, scores are probabilities.

    Raises:
        ShapeError: If the lists differ in length.
    """
    if len(scores) != len(labels):
        raise ShapeError(f"reliability: needs one label per score: got {len(labels)} for {len(scores)}")
    values, targets = np.asarray(scores, dtype=float), np.asarray(labels, dtype=float)
    places = np.minimum((values * num_bins).astype(int), num_bins - 1)
    bins = []
    for place in range(num_bins):
        inside = places == place
        known = bool(inside.any())
        bins.append(
            ReliabilityBin(
                low=place / num_bins,
                high=(place + 1) / num_bins,
                count=int(inside.sum()),
                mean_score=float(values[inside].mean()) if known else None,
                mean_label=float(targets[inside].mean()) if known else None,
            )
        )
    return bins


def calibration_error(bins: Sequence[ReliabilityBin]) -> float | None:
    """Return the mean distance of mean score and mean label over the bins, weighted by their steps; None without steps.

    Source: Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning".
    """
    total = sum(each.count for each in bins)
    if not total:
        return None
    gaps = [
        each.count * abs(each.mean_score - each.mean_label) for each in bins if each.mean_score is not None and each.mean_label is not None
    ]
    return math.fsum(gaps) / total


def auc_by_depth(steps: Sequence[tuple[int, float, float]]) -> dict[int, tuple[float | None, int]]:
    """Return depth -> (AUC of good against bad steps, steps), depths ascending.

    Args:
        steps: (depth, score, label) of each step. A label of exactly 0.5 is undecided, and its step is left out.
    """
    figures: dict[int, tuple[float | None, int]] = {}
    for depth in sorted({depth for depth, _, _ in steps}):
        here = [(score, label > 0.5) for at, score, label in steps if at == depth and label != 0.5]
        figures[depth] = (pooled_auc([score for score, _ in here], [good for _, good in here]), len(here))
    return figures
