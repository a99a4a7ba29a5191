"""Combined scores: ensembles, bounds for training, and mixtures with a verifier or with checks of a step.

Pure functions over arrays in which NaN is "not scored", and three ``StepScorer``s that apply them in a search.

Axes: M models of an ensemble, F bins of a categorical head, *s any shape.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from stepladder.errors import BackendError, ConfigError
from stepladder.interfaces import ScoreRequest, ScoreResult, StepScorer

Ensemble = Literal["mean", "min", "mean-variance"]
ENSEMBLES: tuple[Ensemble, ...] = ("mean", "min", "mean-variance")
Bound = Literal["clip", "par"]
BOUNDS: tuple[Bound, ...] = ("clip", "par")


def ensemble_scores(scores: Float[np.ndarray, "M *s"], *, rule: Ensemble = "mean", penalty: float = 0.5) -> Float[np.ndarray, "*s"]:
    """Combine the scores of several models into one.

        mean: mu;   min: the worst case;   mean-variance: max(0, mu - penalty * sigma^2), sigma^2 over the M models

    Args:
        scores: In [0, 1]; NaN if a model has no score.
        rule: One of ``ENSEMBLES``.
        penalty: Weight of the variance, >= 0.

    Returns:
        In [0, 1]; NaN wherever a model did not score: the others alone would be less careful than all of them.

    Raises:
        ConfigError: If the rule is unknown, or the penalty is below 0.

    Source: Coste et al. 2023, "Reward model ensembles help mitigate overoptimization" (worst-case and uncertainty-weighted optimisation).
    """
    if rule not in ENSEMBLES or not penalty >= 0:
        raise ConfigError(f"ensemble: rule must be one of {', '.join(ENSEMBLES)}, penalty >= 0: got {rule!r} with {penalty}")
    if rule == "min":
        return scores.min(axis=0)
    mean = scores.mean(axis=0)
    return mean if rule == "mean" else np.maximum(0.0, mean - penalty * scores.var(axis=0))


def ensemble_score(scores: Sequence[float | None], *, rule: Ensemble = "mean", penalty: float = 0.5) -> float | None:
    """Combine several models' scores of one step; None if a model has no score. Otherwise as ``ensemble_scores``."""
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None
    return float(ensemble_scores(np.asarray(known, dtype=np.float64)[:, None], rule=rule, penalty=penalty)[0])


def bin_entropy_penalty(probabilities: Float[np.ndarray, "*s F"]) -> Float[np.ndarray, "*s"]:
    """Return the uncertainty of a categorical head: the entropy of its bins over log F, in [0, 1], to subtract with a weight.

    Args:
        probabilities: Bin probabilities; each row sums to 1. One bin is never unsure.
    """
    if probabilities.shape[-1] == 1:
        return np.zeros(probabilities.shape[:-1])
    logs = np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
    return -(probabilities * logs).sum(-1) / np.log(probabilities.shape[-1])


def clip_bound(scores: Float[np.ndarray, "*s"], *, bound: float) -> Float[np.ndarray, "*s"]:
    """Return min(r - bound, 0): a step gets no reward above the bound, and a penalty below it.

    Source: Gao et al. 2024, "On designing effective RL reward at training time for LLM reasoning" (the clip mechanism).
    """
    return np.minimum(scores - bound, 0.0)


def delta_bound(scores: Float[np.ndarray, "K"]) -> Float[np.ndarray, "K"]:
    """Return r_k - r_{k+1} along a solution; the last step keeps its score. The rewards from any step on sum to its score.

    More steps can then not earn more. Source: Gao et al. 2024 (the delta mechanism).
    """
    return scores - np.append(scores[1:], 0.0) if len(scores) else scores


def par_bound(scores: Float[np.ndarray, "*s"], *, reference: float) -> Float[np.ndarray, "*s"]:
    """Return sigmoid(r - reference), in (0, 1).

    Source: Fu et al. 2025, "Reward shaping to mitigate reward hacking in RLHF" (preference as reward, with one reference).
    """
    return np.exp(-np.logaddexp(0.0, reference - scores))


def mix_with_verdict(score: float, correct: bool, *, alpha: float = 0.5) -> float:
    """Return a reward in which no wrong solution outranks a right one.

        sigmoid(alpha * r) + (v - 1),   v = 1 for a right solution, 0 for a wrong one

    Args:
        score: Reward r of the model, any real number.
        correct: The verifier's verdict.
        alpha: Scale of the model's reward, > 0.

    Returns:
        In (0, 1) for a right solution, in (-1, 0) for a wrong one.

    Source: Yang et al. 2024, "Qwen2.5-Math technical report: toward mathematical expert model via self-improvement", section 3.3.
    """
    return float(np.exp(-np.logaddexp(0.0, -alpha * score))) + (float(correct) - 1.0)


class EnsembleScorer:
    """A ``StepScorer`` that combines the scores of several."""

    def __init__(self, scorers: Sequence[StepScorer], *, rule: Ensemble = "mean", penalty: float = 0.5) -> None:
        """Combine scorers; they may be of any kind, as long as each has the contract.

        Raises:
            ConfigError: If there are no scorers, the rule is unknown, or the penalty is below 0.
        """
        if not scorers:
            raise ConfigError("ensemble: needs at least one scorer: got none")
        ensemble_scores(np.zeros((1, 1)), rule=rule, penalty=penalty)
        self._scorers, self._penalty = list(scorers), penalty
        self._rule: Ensemble = rule
        self._arrived: dict[int, list[ScoreResult | None]] = {}

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        """Queue requests with every scorer."""
        for scorer in self._scorers:
            scorer.submit(requests)
        self._arrived |= {request.ticket: [None] * len(self._scorers) for request in requests}

    def collect(self) -> list[ScoreResult]:
        """Return results that every scorer has finished, at least one; empty only when nothing is in flight."""
        done: list[ScoreResult] = []
        while self._arrived and not done:
            news = 0
            for number, scorer in enumerate(self._scorers):
                # One that has given all of its results is not waited for.
                results = scorer.collect() if any(given[number] is None for given in self._arrived.values()) else []
                news += len(results)
                for result in results:
                    self._arrived[result.ticket][number] = result
            if not news:
                raise BackendError(f"ensemble: every request must be answered by every scorer: {len(self._arrived)} are not -- check them")
            for ticket in [ticket for ticket, given in self._arrived.items() if None not in given]:
                done.append(self._combined(ticket, [result for result in self._arrived.pop(ticket) if result is not None]))
        return done

    def _combined(self, ticket: int, results: Sequence[ScoreResult]) -> ScoreResult:
        return ScoreResult(
            ticket=ticket,
            scores=tuple(
                tuple(self._one([result.scores[b][i] for result in results]) for i in range(len(branch)))
                for b, branch in enumerate(results[0].scores)
            ),
        )

    def _one(self, scores: Sequence[float | None]) -> float | None:
        return ensemble_score(scores, rule=self._rule, penalty=self._penalty)


class BoundedScorer:
    """A ``StepScorer`` with bounded scores, so that extreme scores help neither a search nor training on its values."""

    def __init__(self, scorer: StepScorer, *, rule: Bound, at: float) -> None:
        """Wrap a scorer.

        Args:
            scorer: The scorer.
            rule: ``clip``: min(r, at), which is ``clip_bound`` plus the bound, so that scores stay in [0, 1]. ``par``: ``par_bound``.
            at: The bound, or the reference, in [0, 1].

        Raises:
            ConfigError: If the rule is unknown or ``at`` is out of range.
        """
        if rule not in BOUNDS or not 0.0 <= at <= 1.0:
            raise ConfigError(f"bound: rule must be one of {', '.join(BOUNDS)}, at in [0, 1]: got {rule!r} at {at}")
        self._scorer, self._rule, self._at = scorer, rule, at

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        """Queue requests."""
        self._scorer.submit(requests)

    def collect(self) -> list[ScoreResult]:
        """Return the scorer's results with bounded scores."""
        return [
            ScoreResult(ticket=result.ticket, scores=tuple(tuple(map(self._bounded, branch)) for branch in result.scores))
            for result in self._scorer.collect()
        ]

    def _bounded(self, score: float | None) -> float | None:
        if score is None:
            return None
        value = np.array([score])
        return float((clip_bound(value, bound=self._at) + self._at if self._rule == "clip" else par_bound(value, reference=self._at))[0])


StepCheck = Callable[[Sequence[ScoreRequest]], Sequence[Sequence[Sequence[bool | None]]]]
"""Says for every request, branch and step whether the step passes; None if there is nothing to check."""


class CheckedScorer:
    """A ``StepScorer`` that caps the score of a step which fails a check of its own, such as its arithmetic or its code."""

    def __init__(self, scorer: StepScorer, check: StepCheck, *, cap: float = 0.0) -> None:
        """Wrap a scorer.

        Args:
            scorer: The scorer.
            check: The check. It gets all requests with new results in one call.
            cap: Highest score of a step that fails, in [0, 1].

        Raises:
            ConfigError: If the cap is out of range.
        """
        if not 0.0 <= cap <= 1.0:
            raise ConfigError(f"checks: cap must be in [0, 1]: got {cap}")
        self._scorer, self._check, self._cap = scorer, check, cap
        self._requests: dict[int, ScoreRequest] = {}

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        """Queue requests."""
        self._requests |= {request.ticket: request for request in requests}
        self._scorer.submit(requests)

    def collect(self) -> list[ScoreResult]:
        """Return the scorer's results with capped scores for failing steps."""
        results = self._scorer.collect()
        verdicts = self._check([self._requests.pop(result.ticket) for result in results])
        return [self._capped(result, held) for result, held in zip(results, verdicts, strict=True)]

    def _capped(self, result: ScoreResult, verdicts: Sequence[Sequence[bool | None]]) -> ScoreResult:
        scores = tuple(
            tuple(
                min(score, self._cap) if score is not None and holds is False else score for score, holds in zip(given, branch, strict=True)
            )
            for given, branch in zip(result.scores, verdicts, strict=True)
        )
        return ScoreResult(ticket=result.ticket, scores=scores)
