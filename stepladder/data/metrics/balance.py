"""The balance of exploration and exploitation of sampled solutions, and the settings with the best balance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stepladder.errors import ShapeError


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSample:
    """One sampled solution of a problem."""

    text: str
    """The solution, or a digest of it; equal ones count once."""
    reward: float
    """1 if it is right, plus a fifth of its smallest PRM score."""
    correct: bool
    """Whether its answer is right."""


class Balance(NamedTuple):
    """The best settings of a probe."""

    temperature: float
    """Its temperature."""
    threshold: float
    """Solutions with a larger reward are selected."""
    score: float
    """Mean balance score over the problems, in [0, 1]."""


def balance_score(samples: Sequence[ProbeSample], threshold: float, *, target: int) -> float:
    """Return the balance score of a problem.

        min(n' / n*, 1) * n' / n

    with n the distinct solutions whose reward is above the threshold, n' the right ones of them, and n* the ``target``. It is 0 if none is.
    The first factor is exploration: enough right solutions. The second is exploitation: few wrong ones.

    Args:
        samples: Solutions of the problem.
        threshold: Solutions with a larger reward are selected.
        target: Right solutions that are enough, >= 1.

    Source: Zeng et al. 2024, "B-STaR: Monitoring and Balancing Exploration and Exploitation in Self-Taught Reasoners". The code takes 8 for
        n*, the paper 6.
    """
    selected = {sample.text: sample.correct for sample in samples if sample.reward > threshold}
    right = sum(selected.values())
    return min(right / target, 1.0) * right / len(selected) if selected else 0.0


def best_balance(
    probe: Mapping[float, Sequence[Sequence[ProbeSample]]], thresholds: Sequence[float], *, target: int
) -> tuple[Balance, dict[float, Balance]]:
    """Return the temperature and threshold with the highest mean balance score, and the best threshold of every temperature.

    Of equal scores, the lower temperature and then the higher threshold is taken: it lets no more wrong solutions through.

    Args:
        probe: By temperature, the samples of every problem, the same problems for all.
        thresholds: Thresholds to try, at least one.
        target: As for ``balance_score``.

    Raises:
        ShapeError: If there is nothing to choose from.
    """
    if not probe or not thresholds or not all(probe.values()):
        raise ShapeError(f"best_balance: needs samples and thresholds: got {len(probe)} temperatures and {len(thresholds)} thresholds")
    best = {temperature: _best_threshold(temperature, problems, thresholds, target) for temperature, problems in sorted(probe.items())}
    return max(best.values(), key=lambda each: (each.score, -each.temperature)), best


def _best_threshold(temperature: float, problems: Sequence[Sequence[ProbeSample]], thresholds: Sequence[float], target: int) -> Balance:
    scored = []
    for threshold in thresholds:
        score = sum(balance_score(samples, threshold, target=target) for samples in problems) / len(problems)
        scored.append(Balance(temperature, threshold, score))
    return max(scored, key=lambda each: (each.score, each.threshold))
