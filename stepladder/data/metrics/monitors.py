"""Figures that show early what goes wrong in a run: coverage and votes at every k, diversity, calibration, over-optimisation.

All of them are computed from the graded samples of an evaluation. Lists run over the samples of one problem, or over problems.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from stepladder.data.metrics.answers import PoolSample, majority_vote, pass_at_k
from stepladder.errors import ShapeError

NUM_BINS = 10
"""Bins of histograms and of the calibration error, over [0, 1]."""
_MOST_SUBSETS = 100
"""Above so many subsets of samples, this many are drawn at random."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AtK:
    """Shares of problems that are solved with k samples, in [0, 1]; each is unbiased, whatever the number of samples drawn."""

    k: int
    """Samples."""
    passed: float
    """One of them is right."""
    majority: float
    """Their most frequent answer is right."""
    prm: float | None
    """The one with the highest score is right; None without scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreHistogram:
    """Counts of solutions by score, in ten equal bins from 0 to 1; scores outside are in the first or last."""

    right: tuple[int, ...]
    """Right solutions."""
    wrong: tuple[int, ...]
    """Wrong ones."""


def best_at_k(samples: Sequence[PoolSample], k: int) -> float | None:
    """Return the unbiased estimate of the chance that the sample with the highest score among k is right; None without scores.

        sum over right samples i of C(n_i, k - 1) / C(n, k), with n_i the samples ranked below i

    Equal scores are ranked in the order of drawing, the first one highest, as ``best_of_n`` chooses. Samples without a score or an answer
    rank below all others and are never right.

    Args:
        samples: All samples of a problem, n of them.
        k: In [1, n].

    Raises:
        ShapeError: If k is impossible.

    Source: the subset argument of Chen et al. 2021, "Evaluating large language models trained on code", for a maximum.
    """
    _check_k(len(samples), k)
    if all(sample.score is None for sample in samples):
        return None
    scores = [-math.inf if sample.score is None or sample.answer_key is None else sample.score for sample in samples]
    order = sorted(range(len(samples)), key=lambda index: (scores[index], -index))
    right = [samples[index].correct and scores[index] > -math.inf for index in order]
    won = sum(math.comb(below, k - 1) for below, wins in enumerate(right) if wins)
    return won / math.comb(len(samples), k)


def majority_at_k(samples: Sequence[PoolSample], k: int, *, rng: np.random.Generator) -> float:
    """Return the unbiased estimate of the chance that the majority of k samples is right: the mean over subsets.

    Args:
        samples: All samples of a problem, n of them.
        k: In [1, n].
        rng: Draws subsets if there are more than 100.

    Raises:
        ShapeError: If k is impossible.
    """
    _check_k(len(samples), k)
    verdicts = [majority_vote([samples[index] for index in chosen]) is True for chosen in _subsets(len(samples), k, rng)]
    return sum(verdicts) / len(verdicts)


def figures_at_k(pools: Sequence[Sequence[PoolSample]]) -> list[AtK]:
    """Return the shares of solved problems at k = 1, 2, 4 ... up to the number of samples that every problem has, and at that number."""
    most = min(map(len, pools), default=0)
    ks = sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | ({most} if most else set()))
    # Subsets only serve an average; their seed is fixed so that the same rows give the same figures.
    rng = np.random.default_rng(0)
    return [
        AtK(
            k=k,
            passed=float(np.mean([pass_at_k(len(pool), sum(sample.correct for sample in pool), k) for pool in pools])),
            majority=float(np.mean([majority_at_k(pool, k, rng=rng) for pool in pools])),
            prm=_mean([best_at_k(pool, k) for pool in pools]),
        )
        for k in ks
    ]


def distinct_right(pools: Sequence[Sequence[PoolSample]]) -> float | None:
    """Return the mean number of different right solutions of a problem; None if solutions have no digests."""
    if any(sample.solution is None for pool in pools for sample in pool):
        return None
    return float(np.mean([len({sample.solution for sample in pool if sample.correct}) for pool in pools]))


def surprisal_per_token(pools: Sequence[Sequence[PoolSample]]) -> float | None:
    """Return the mean of -log p of the sampled tokens, in nats; at temperature 1 it estimates the policy's entropy. None if unknown."""
    samples = [sample for pool in pools for sample in pool]
    tokens = sum(sample.num_tokens for sample in samples)
    if not tokens or any(sample.logp is None for sample in samples):
        return None
    return -sum(sample.logp for sample in samples if sample.logp is not None) / tokens


def divergence_per_token(pools: Sequence[Sequence[PoolSample]]) -> float | None:
    """Return the divergence of the policy from the one that the run began with, in nats a token; None if it is unknown.

        KL(policy || start) = mean over samples of the policy of log p - log p_start, here over all tokens

    The samples must be drawn at temperature 1. The estimate is unbiased, and so may be a little below 0.
    """
    samples = [sample for pool in pools for sample in pool]
    tokens = sum(sample.num_tokens for sample in samples)
    gaps = [sample.logp - sample.start_logp for sample in samples if sample.logp is not None and sample.start_logp is not None]
    return sum(gaps) / tokens if tokens and len(gaps) == len(samples) else None


def exploration(pools: Sequence[Sequence[PoolSample]], few: int) -> float | None:
    """Return the share of problems that have ``few`` different right solutions, in [0, 1]; None if solutions have no digests.

    Source: Zeng et al. 2024, "B-STaR: monitoring and balancing exploration and exploitation in self-taught reasoners": pass@k-S.
    """
    if not pools or any(sample.solution is None for pool in pools for sample in pool):
        return None
    return float(np.mean([len({sample.solution for sample in pool if sample.correct}) >= few for pool in pools]))


def exploitation(pools: Sequence[Sequence[PoolSample]], few: int) -> float | None:
    """Return the share of right ones among the ``few`` samples of a problem that the PRM likes best, in [0, 1]; None without scores.

    Problems with fewer scored samples count with those that they have. Of equal scores the first drawn goes first.

    Source: As for ``exploration``: reward@k-S, the quality of what a reward selects.
    """
    shares = []
    for pool in pools:
        scored = sorted((each for each in pool if each.score is not None), key=lambda each: -(each.score or 0.0))[:few]
        if scored:
            shares.append(sum(each.correct for each in scored) / len(scored))
    return float(np.mean(shares)) if shares else None


def unsound_right(pools: Sequence[Sequence[PoolSample]]) -> float | None:
    """Return the share of right solutions with a false equation, in [0, 1], among those that state equations; None without any."""
    sound = [sample.sound for pool in pools for sample in pool if sample.correct and sample.sound is not None]
    return sound.count(False) / len(sound) if sound else None


def calibration_error(scores: Sequence[float], correct: Sequence[bool]) -> float | None:
    """Return the expected calibration error of scores in [0, 1]; None without samples.

        sum over bins of n_b / n * |mean outcome - mean score|

    Source: Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning", with ten equal bins.
    """
    if not scores:
        return None
    values, right, bins = np.asarray(scores, dtype=float), np.asarray(correct, dtype=float), _bins(scores)
    gaps = [abs(right[bins == each].mean() - values[bins == each].mean()) * (bins == each).sum() for each in np.unique(bins)]
    return float(sum(gaps) / len(values))


def score_histogram(scores: Sequence[float], correct: Sequence[bool]) -> ScoreHistogram:
    """Return how many right and wrong solutions have which scores."""
    bins, right = _bins(scores), np.asarray(correct, dtype=bool)
    counts = [np.bincount(bins[right == side], minlength=NUM_BINS).tolist() for side in (True, False)]
    return ScoreHistogram(right=tuple(counts[0]), wrong=tuple(counts[1]))


def _bins(scores: Sequence[float]) -> np.ndarray:
    return np.clip((np.asarray(scores, dtype=float) * NUM_BINS).astype(int), 0, NUM_BINS - 1)


def _subsets(total: int, k: int, rng: np.random.Generator) -> Iterator[Sequence[int]]:
    if math.comb(total, k) <= _MOST_SUBSETS:
        yield from combinations(range(total), k)
    else:
        for _ in range(_MOST_SUBSETS):
            yield sorted(rng.choice(total, size=k, replace=False).tolist())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _check_k(total: int, k: int) -> None:
    if not 1 <= k <= total:
        raise ShapeError(f"at k: needs 1 <= k <= n: got k={k} of n={total} samples -- draw more samples")
