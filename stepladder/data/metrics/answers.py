"""The figures of an evaluation, as pure functions.

Lists run over problems, or over the samples of one problem in sampling order; each docstring says which. A figure that cannot be computed
is ``None``, never 0. A sample whose score is ``None`` was not scored, and every comparison of scores leaves it out.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from stepladder.errors import ShapeError

_Known = TypeVar("_Known")


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSample:
    """One sampled solution of a problem, graded."""

    num_tokens: int
    """Generated tokens, >= 0."""
    answer_key: str | None
    """Canonical form of its final answer; None if none could be read."""
    score: float | None
    """The PRM's score of the solution; None without one."""
    correct: bool
    """Whether its final answer is right."""
    solution: str | None = None
    """Digest of its text; None if unknown."""
    logp: float | None = None
    """Log-probability of its tokens under the policy at temperature 1, in nats; None if unknown."""
    credit: float | None = None
    """The verifier's number for it, in [0, 1]; None if it gave none."""
    start_logp: float | None = None
    """``logp`` under the policy that the run began with; None if unknown."""
    sound: bool | None = None
    """Whether all equations of plain numbers in it are true; None if it states none, or unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedComparison:
    """Two methods on the same problems."""

    difference: float
    """Accuracy of the second minus that of the first, in [-1, 1]."""
    interval: Interval
    """Bootstrap interval of the difference."""
    num_better: int
    """Problems that only the second solves."""
    num_worse: int
    """Problems that only the first solves."""
    p_value: float
    """p-value of the exact two-sided McNemar test of no difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """How much better one method is than another on the same problems."""

    difference: float
    """Mean of the second minus mean of the first, in [-1, 1]."""
    interval: Interval
    """Bootstrap interval of the difference."""


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the unbiased estimate of the probability that at least one of ``k`` samples is right.

        1 - C(n - c, k) / C(n, k)

    Args:
        num_samples: Samples drawn of one problem, n.
        num_correct: Number of right samples, c, in [0, n].
        k: In [1, n].

    Raises:
        ShapeError: If the counts are impossible.

    Source: Chen et al. 2021, "Evaluating large language models trained on code", equation 1.
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise ShapeError(f"pass_at_k: needs 0 <= c <= n and 1 <= k <= n: got n={num_samples}, c={num_correct}, k={k} -- draw more samples")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def first_within(pool: Sequence[PoolSample], max_tokens: int) -> list[PoolSample]:
    """Return the first samples of a problem that fit the budget together; possibly none."""
    kept: list[PoolSample] = []
    spent = 0
    for sample in pool:
        spent += sample.num_tokens
        if spent > max_tokens:
            break
        kept.append(sample)
    return kept


def known_within(course: Iterable[tuple[int, _Known]], max_tokens: int) -> _Known | None:
    """Return the last entry of a search's course within a token budget; None before its first entry.

    Args:
        course: (tokens generated so far, knowledge at that time), ascending.
        max_tokens: The budget, >= 0.
    """
    known = None
    for tokens, value in course:
        if tokens > max_tokens:
            break
        known = value
    return known


def majority_vote(samples: Sequence[PoolSample]) -> bool | None:
    """Say whether the most frequent answer is right. Ties go to the answer seen first. None if no answer can be read."""
    return _vote([(sample, 1.0) for sample in samples])


def weighted_vote(samples: Sequence[PoolSample]) -> bool | None:
    """Say whether the answer with the largest sum of scores is right. Unscored samples do not vote. None if no sample votes."""
    return _vote([(sample, sample.score) for sample in samples if sample.score is not None])


def best_of_n(samples: Sequence[PoolSample]) -> bool | None:
    """Say whether the sample with the highest score is right. Ties go to the first. None if no sample with an answer has a score.

    Samples without a readable answer do not compete, because nobody would submit one.
    """
    scored = [(sample.score, sample) for sample in samples if sample.score is not None and sample.answer_key is not None]
    return max(scored, key=lambda pair: pair[0])[1].correct if scored else None


def mean_credit(graded: Sequence[tuple[bool, float | None]]) -> float | None:
    """Return the mean of a verifier's numbers.

    Args:
        graded: Of every answer, whether it is right and the number. Without a number, as for a missing answer, it counts 1 or 0.

    Returns:
        The mean in [0, 1]; None if no answer has a number.
    """
    if all(credit is None for _, credit in graded):
        return None
    return float(np.mean([float(correct) if credit is None else credit for correct, credit in graded]))


def within_problem_auc(groups: Sequence[tuple[Sequence[float], Sequence[bool]]]) -> float | None:
    """Return how well scores tell right from wrong solutions of the same problem: the AUC within each problem, averaged over problems.

    Problems whose solutions are all right or all wrong carry no information and are left out. Unlike the pooled AUC, it gives no credit for
    knowing which problems are hard.

    Args:
        groups: Per problem, the scores of its solutions and whether each is right.

    Returns:
        The mean in [0, 1], 0.5 for chance; None if no problem has both kinds.
    """
    aucs = [auc for scores, correct in groups if (auc := pooled_auc(scores, correct)) is not None]
    return float(np.mean(aucs)) if aucs else None


def pooled_auc(scores: Sequence[float], correct: Sequence[bool]) -> float | None:
    """Return the probability that a right solution scores above a wrong one, ties counted half; None without both kinds.

    Source: Mann and Whitney 1947; computed from mid-ranks.

    Raises:
        ShapeError: If the lists differ in length or a score is not finite.
    """
    values, right = _paired(scores, correct)
    num_right = int(right.sum())
    num_wrong = len(right) - num_right
    if not num_right or not num_wrong:
        return None
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    # Mid-rank of a group of ties: the mean of the ranks that the group takes up.
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(mid_ranks[inverse][right].sum())
    return (rank_sum - num_right * (num_right + 1) / 2) / (num_right * num_wrong)


def brier(scores: Sequence[float], correct: Sequence[bool]) -> float | None:
    """Return the mean squared difference of score and outcome; lower is better. It is in [0, 1] for scores in [0, 1]; None without samples.

    Source: Brier 1950, in the two-class form.
    """
    values, right = _paired(scores, correct)
    return float(np.mean((values - right) ** 2)) if len(values) else None


def wilson_interval(num_successes: int, num_trials: int, *, z: float = 1.959963984540054) -> Interval:
    """Return the Wilson score interval of a proportion; the default ``z`` is for 95%.

    Without trials the interval is (0, 1).

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not 0 <= num_successes <= num_trials:
        raise ShapeError(f"wilson_interval: needs 0 <= successes <= trials: got {num_successes} of {num_trials}")
    if not num_trials:
        return Interval(0.0, 1.0)
    return _wilson(num_successes / num_trials, num_trials, z)


def clustered_interval(shares: Sequence[float], *, num_repeats: int, z: float = 1.959963984540054) -> Interval:
    """Return an interval of the mean share of right answers when every problem was tried several times.

    Tries of one problem are correlated, so problems x repeats is not the number of independent trials. Wilson's formula is used with the
    effective number:

        n_eff = p (1 - p) / (s^2 / n), at most n * num_repeats

    where p is the mean of the n shares and s^2 their variance (divided by n). If all shares are 0 or 1, as with one repeat or with repeats
    that all agree, then n_eff = n and the result is Wilson's interval of the problems. Unlike a bootstrap interval, it has a width even if
    all shares are equal.

    Args:
        shares: Per problem, the share of right tries, in [0, 1]. Without problems the interval is (0, 1).
        num_repeats: Tries per problem, >= 1.
        z: Normal quantile; the default is for 95%.

    Raises:
        ShapeError: If a share is outside [0, 1].

    Source: Wilson 1927, with the effective sample size of Kish 1965, "Survey sampling"; the problems are the clusters. Franco et al. 2019,
    "Comparative study of confidence intervals for proportions in complex sample surveys", compare it with others.
    """
    values = np.asarray(shares, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ShapeError(f"clustered_interval: shares must be in [0, 1]: got {values.min():.4g} to {values.max():.4g}")
    if not len(values):
        return Interval(0.0, 1.0)
    share, variance = float(values.mean()), float(values.var())
    # All answers are right, or all are wrong: the repeats add no information to the problems.
    if share in (0.0, 1.0):
        return _wilson(share, len(values), z)
    most = len(values) * num_repeats
    effective = most if variance == 0 else min(most, len(values) * share * (1 - share) / variance)
    return _wilson(share, effective, z)


def _wilson(share: float, num_trials: float, z: float) -> Interval:
    correction = z * z / num_trials
    centre = (share + correction / 2) / (1 + correction)
    half = z / (1 + correction) * math.sqrt(share * (1 - share) / num_trials + correction / (4 * num_trials))
    # At the ends the formula gives 0 and 1 only up to rounding.
    return Interval(0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half)


def mcnemar_p_value(num_better: int, num_worse: int) -> float:
    """Return the exact two-sided p-value of a paired comparison, from the problems that only one side solves; 1 without such problems.

    Source: McNemar 1947, with the binomial distribution instead of its normal approximation.
    """
    trials, tail = num_better + num_worse, min(num_better, num_worse)
    return min(1.0, 2 * sum(math.comb(trials, successes) for successes in range(tail + 1)) / 2**trials)


def sign_test_p_value(num_for: int, num_against: int) -> float:
    """Return the exact one-sided p-value of a paired test: how likely so many cases in favour, or more, are by chance; 1 without cases.

        sum over k >= n_for of C(n, k) / 2^n, with n = n_for + n_against

    Source: Arbuthnot's sign test; with problems that only one side solves, the one-sided form of McNemar's exact test.
    """
    trials = num_for + num_against
    return sum(math.comb(trials, successes) for successes in range(num_for, trials + 1)) / 2**trials


def paired_comparison(
    first: Sequence[bool], second: Sequence[bool], *, rng: np.random.Generator, num_resamples: int = 10_000, confidence: float = 0.95
) -> PairedComparison:
    """Compare two methods on the same problems: difference, percentile bootstrap interval, and McNemar's test.

    Args:
        first: Whether the first method solves each problem.
        second: The same for the second method, in the same order.
        rng: Source of the resampled problems.
        num_resamples: Bootstrap samples, >= 1.
        confidence: Coverage of the interval, in (0, 1).

    Raises:
        ShapeError: If the lists are empty or differ in length.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife". Problems are resampled with both their results.
    """
    if len(first) != len(second) or not first:
        raise ShapeError(f"paired_comparison: needs two lists of the same problems, at least one: got {len(first)} and {len(second)}")
    better = sum(not before and after for before, after in zip(first, second, strict=True))
    worse = sum(before and not after for before, after in zip(first, second, strict=True))
    kinds = np.array([1.0, -1.0, 0.0]), np.array([better, worse, len(first) - better - worse])
    return PairedComparison(
        difference=(better - worse) / len(first),
        interval=_bootstrap(*kinds, rng=rng, num_resamples=num_resamples, confidence=confidence),
        num_better=better,
        num_worse=worse,
        p_value=mcnemar_p_value(better, worse),
    )


def paired_difference(
    first: Sequence[float], second: Sequence[float], *, rng: np.random.Generator, num_resamples: int = 10_000, confidence: float = 0.95
) -> PairedDifference:
    """Compare two methods that tried the same problems several times: mean difference and percentile bootstrap interval.

    Args:
        first: Share of right answers of the first method on each problem, in [0, 1].
        second: The same of the second method, in the same order.
        rng: Source of the resampled problems.
        num_resamples: Bootstrap samples, >= 1.
        confidence: Coverage of the interval, in (0, 1).

    Raises:
        ShapeError: If the lists are empty or differ in length.

    Source: As ``paired_comparison``; a problem is resampled with all its tries.
    """
    if len(first) != len(second) or not first:
        raise ShapeError(f"paired_difference: needs two lists of the same problems, at least one: got {len(first)} and {len(second)}")
    values, counts = np.unique(np.subtract(second, first), return_counts=True)
    return PairedDifference(
        difference=float(values @ counts) / len(first),
        interval=_bootstrap(values, counts, rng=rng, num_resamples=num_resamples, confidence=confidence),
    )


def _bootstrap(values: np.ndarray, counts: np.ndarray, *, rng: np.random.Generator, num_resamples: int, confidence: float) -> Interval:
    """Return the percentile interval of a mean; ``counts`` problems have each of the ``values``.

    A resample matters only through how often it draws each value.
    """
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=num_resamples)
    low, high = np.quantile(drawn @ values / counts.sum(), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def answer_entropy(answer_keys: Sequence[str | None]) -> float:
    """Return the entropy, in nats, of the answers to one problem. Unreadable answers are left out; without answers the entropy is 0."""
    counts = np.array(list(Counter(key for key in answer_keys if key is not None).values()), dtype=float)
    shares = counts / counts.sum() if len(counts) else counts
    # Adding zero turns the -0.0 of a single answer into 0.0.
    return float(-(shares * np.log(shares)).sum()) + 0.0


def _vote(ballots: Sequence[tuple[PoolSample, float]]) -> bool | None:
    weights: dict[str, float] = {}
    correct: dict[str, bool] = {}
    for sample, weight in ballots:
        if sample.answer_key is not None:
            weights[sample.answer_key] = weights.get(sample.answer_key, 0.0) + weight
            correct.setdefault(sample.answer_key, sample.correct)
    return correct[max(weights, key=lambda key: weights[key])] if weights else None


def _paired(scores: Sequence[float], correct: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    values, right = np.asarray(scores, dtype=float), np.asarray(correct, dtype=bool)
    if values.shape != right.shape or not np.isfinite(values).all():
        raise ShapeError(
            f"scores: must be finite and as many as the outcomes: got {len(values)} scores and {len(right)} outcomes "
            "-- leave unscored samples out of both lists"
        )
    return values, right
