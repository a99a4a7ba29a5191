"""Results of an evaluation on one split, in the form of a round's figures.

Records here are nested; their stored form is flat, each key with the name of its method. A figure that was not measured is None.
"""

from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from pydantic import with_config

from stepladder.data.metrics.answers import Interval, PairedComparison
from stepladder.data.metrics.monitors import AtK, ScoreHistogram
from stepladder.loops.runs.json_records import CLOSED


class AnswerMethod(StrEnum):
    """A way to answer a problem that evaluations compare."""

    POLICY = "policy"
    """One greedy solution of the policy."""
    SEARCH = "search"
    """The configured search."""
    MAJORITY = "majority"
    """The most frequent answer of independent samples."""
    BEST_OF_N = "best_of_n"
    """The answer of the sample with the highest score."""
    WEIGHTED_VOTE = "weighted_vote"
    """The answer with the largest sum of scores."""


SAMPLING_METHODS = (AnswerMethod.MAJORITY, AnswerMethod.BEST_OF_N, AnswerMethod.WEIGHTED_VOTE)
"""Methods that choose among independent samples, in the order of their figures."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """A measured share of right answers."""

    value: float
    """In [0, 1]."""
    interval: Interval
    """Its 95% interval."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationTokens:
    """Tokens that the evaluations of a split generated."""

    greedy: int
    """By greedy solutions."""
    samples: int
    """By independent samples."""
    search: int
    """By the search."""

    @property
    def together(self) -> int:
        """All of them."""
        return self.greedy + self.samples + self.search


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class PoolFigures:
    """How diverse independent samples are, and how well the PRM ranks them."""

    num_samples: int | None = None
    """Samples of the problem that has fewest."""
    sampled_pass_at_1: float | None = None
    """Mean share of right samples, in [0, 1]."""
    pass_at_k: float | None = None
    """Share of problems that ``num_samples`` samples solve, in [0, 1]."""
    answer_entropy: float | None = None
    """Mean entropy of the answers to a problem, in nats."""
    prm_within_problem_auc: float | None = None
    """How well scores rank the samples of one problem, in [0, 1]; 0.5 is chance."""
    prm_pooled_auc: float | None = None
    """How well scores rank the samples of all problems, in [0, 1]."""
    prm_brier: float | None = None
    """Mean squared difference of score and outcome, in [0, 1]."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorFigures:
    """Figures of the independent samples that show early what goes wrong; formulas are in ``stepladder.data.metrics.monitors``."""

    at_k: tuple[AtK, ...]
    """pass@k, majority@k and PRM@k by k."""
    distinct_right: float | None
    """Mean number of different right solutions of a problem."""
    surprisal_per_token: float | None
    """Mean of -log p of the sampled tokens, in nats; at temperature 1 it estimates the policy's entropy."""
    prm_calibration_error: float | None
    """Mean distance of score and share of right solutions, by bins of scores, in [0, 1]."""
    prm_scores: ScoreHistogram | None
    """Right and wrong solutions by score."""
    top_score: float | None
    """Mean score of the sample of each problem that the PRM likes best."""
    top_right: float | None
    """Share of right ones among these, in [0, 1]."""
    exploration: float | None = None
    """Share of problems with a quarter as many different right solutions as samples, in [0, 1]; None in runs of earlier versions."""
    exploitation: float | None = None
    """Share of right ones among the quarter of the samples of a problem that the PRM likes best, in [0, 1]; None without a PRM."""
    start_divergence: float | None = None
    """KL divergence from the policy that the run began with, in nats a token; None unless ``evaluate.divergence`` measures it."""
    unsound_right: float | None = None
    """Share of right solutions with a false equation of plain numbers, in [0, 1], among those with equations; None without any."""

    @property
    def reward_gap(self) -> float | None:
        """How much more the PRM promises than the verifier grants; None without a PRM."""
        return None if self.top_score is None or self.top_right is None else self.top_score - self.top_right


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingFigures:
    """A sampling method at the tokens that the search spent on the same problem."""

    accuracy: Accuracy
    """Its accuracy."""
    search_against: PairedComparison
    """The search compared with it, problem by problem."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class EqualTokenFigures:
    """The search, compared with sampling methods that get the samples that fit its tokens."""

    accuracy: Accuracy
    """Accuracy of the search."""
    tokens_per_problem: float
    """Mean tokens that the search generated."""
    sampling_tokens_per_problem: float
    """Mean tokens of the samples that fit these, of one sample at least."""
    sampling: dict[AnswerMethod, SamplingFigures | None]
    """The sampling methods; None for a method that needs scores if there are none."""
    curves: dict[AnswerMethod, tuple[tuple[int, float], ...]]
    """(generated tokens per problem, accuracy) of the search and of each sampling method that was measured."""
    short_pools: int | None = None
    """Problems on which the search spent more than all samples and another one of their mean length; None in runs of earlier versions."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON: one level, each name with its method."""
        plain: dict[str, Any] = {
            **accuracy_keys("search_accuracy", self.accuracy),
            "search_tokens_per_problem": self.tokens_per_problem,
            "sampling_tokens_per_problem": self.sampling_tokens_per_problem,
            "short_pools": self.short_pools,
        }
        for method, figures in self.sampling.items():
            plain |= accuracy_keys(f"{method}_accuracy", None if figures is None else figures.accuracy)
            plain[f"search_against_{method}"] = None if figures is None else asdict(figures.search_against)
        return {**plain, "curves": {str(method): curve for method, curve in self.curves.items()}}


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class LevelFigures:
    """Results on the problems of one level. A share that was not measured is None."""

    problems: int
    """Problems of the level."""
    pass_at_1: float | None = None
    """Share that one greedy solution solves, in [0, 1]."""
    sampled_pass_at_1: float | None = None
    """Mean share of right samples, in [0, 1]."""
    pass_at_k: float | None = None
    """Share that the pool of samples solves, in [0, 1]."""
    search: float | None = None
    """Share that the search answers rightly, in [0, 1]."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class CreditFigures:
    """Means of the verifier's numbers, in [0, 1], where it gives partial credit. An answer that is right or wrong alone counts 1 or 0."""

    policy: float | None = None
    """Of one greedy solution; None if it was not measured."""
    samples: float | None = None
    """Of independent samples, averaged by problem."""
    search: float | None = None
    """Of the search's answers."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class AbstentionFigures:
    """How reliable greedy solutions are whose answer may be that the policy does not know."""

    share: float
    """Share of problems on which it abstains, in [0, 1]."""
    precision: float | None
    """Share of right ones among its other answers, in [0, 1]; None if it always abstains."""

    @property
    def reliability(self) -> float:
        """Precision and willingness to answer in one figure, in [0, 1].

            0.8 * precision + 0.2 * (1 - share)

        Source: Zhao et al. 2024, "Automatic curriculum expert iteration" (Auto-CEI), and its released code. A policy that always abstains
            has precision 0 here.
        """
        return 0.8 * (self.precision or 0.0) + 0.2 * (1 - self.share)


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class SplitFigures:
    """Results on one split."""

    problems: int
    """Problems with a greedy solution."""
    tokens: EvaluationTokens
    """Tokens that measuring took."""
    pass_at_1: Accuracy | None = None
    """Accuracy of one greedy solution."""
    pool: PoolFigures = field(default_factory=PoolFigures)
    """The independent samples."""
    best_prm_within_problem_auc: float | None = None
    """``prm_within_problem_auc`` of the best PRM so far on the same samples; None if it is the one measured, or there is none."""
    search: EqualTokenFigures | None = None
    """The search; None on a split that is not searched."""
    levels: dict[str, LevelFigures] = field(default_factory=dict)
    """Figures by level, in the order of the levels; empty for problems without."""
    monitors: MonitorFigures | None = None
    """Further figures of the independent samples; None without samples, and in runs of earlier versions."""
    credit: CreditFigures | None = None
    """Partial credit; None if the verifier gives none."""
    abstention: AbstentionFigures | None = None
    """Abstentions; None if no answer is one."""

    def accuracy(self, method: AnswerMethod) -> Accuracy | None:
        """Return the accuracy of a method, or None if it was not measured."""
        if method is AnswerMethod.POLICY:
            return self.pass_at_1
        if self.search is None or method is AnswerMethod.SEARCH:
            return None if self.search is None else self.search.accuracy
        figures = self.search.sampling.get(method)
        return None if figures is None else figures.accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return {
            "problems": self.problems,
            "tokens": asdict(self.tokens),
            **accuracy_keys("pass_at_1", self.pass_at_1),
            **asdict(self.pool),
            "best_prm_within_problem_auc": self.best_prm_within_problem_auc,
            **({} if self.search is None else self.search.to_dict()),
            **({"levels": {level: asdict(figures) for level, figures in self.levels.items()}} if self.levels else {}),
            **({} if self.credit is None else {"credit": asdict(self.credit)}),
            **({} if self.abstention is None else {"abstention": asdict(self.abstention)}),
            **({} if self.monitors is None else {"monitors": asdict(self.monitors) | {"reward_gap": self.monitors.reward_gap}}),
        }


def value_of(accuracy: Accuracy | None) -> float | None:
    """Return the share, or None if nothing was measured."""
    return None if accuracy is None else accuracy.value


def accuracy_keys(name: str, accuracy: Accuracy | None) -> dict[str, Any]:
    """Return the two keys of an accuracy in the stored form."""
    return {name: value_of(accuracy), f"{name}_interval": None if accuracy is None else list(accuracy.interval)}


def nested_split(plain: dict[str, Any]) -> dict[str, Any]:
    """Return the stored form of a split, which is flat, as nested containers that have the fields of ``SplitFigures``."""
    pool = {each.name: plain.pop(each.name) for each in fields(PoolFigures) if each.name in plain}
    pass_at_1 = _taken_accuracy(plain, "pass_at_1")
    search = _taken_search(plain) if "search_accuracy" in plain else None
    if isinstance(plain.get("monitors"), dict):
        plain["monitors"] = {name: value for name, value in plain["monitors"].items() if name != "reward_gap"}
    return {**plain, "pass_at_1": pass_at_1, "pool": pool, "search": search}


def _taken_search(plain: dict[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {"accuracy": _taken_accuracy(plain, "search_accuracy"), "sampling": {}}
    for method in SAMPLING_METHODS:
        accuracy, against = _taken_accuracy(plain, f"{method}_accuracy"), plain.pop(f"search_against_{method}", None)
        figures["sampling"][method] = None if accuracy is None else {"accuracy": accuracy, "search_against": against}
    stored = {
        "search_tokens_per_problem": "tokens_per_problem",
        "sampling_tokens_per_problem": "sampling_tokens_per_problem",
        "short_pools": "short_pools",
        "curves": "curves",
    }
    return figures | {field: plain.pop(key) for key, field in stored.items() if key in plain}


def _taken_accuracy(plain: dict[str, Any], name: str) -> dict[str, Any] | None:
    value, interval = plain.pop(name, None), plain.pop(f"{name}_interval", None)
    return None if value is None else {"value": value, "interval": interval}
