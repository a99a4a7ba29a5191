"""The figures of a search and of an evaluation, computed from the trees and the graded rows that the workers wrote.

Sampling methods are compared with the search problem by problem: from one pool of independent samples each method gets the first ones
whose tokens fit what the search spent on that problem (one at least).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from stepladder.data.metrics import answers as metrics
from stepladder.data.metrics import monitors
from stepladder.data.metrics.answers import PoolSample
from stepladder.data.store import read_trees
from stepladder.loops.runs.evaluation_rows import PoolRow, SolvedRow, all_pools, all_solved
from stepladder.loops.runs.results import LevelCount, SearchFigures
from stepladder.loops.runs.split_figures import (
    SAMPLING_METHODS,
    AbstentionFigures,
    Accuracy,
    AnswerMethod,
    CreditFigures,
    EqualTokenFigures,
    EvaluationTokens,
    LevelFigures,
    MonitorFigures,
    PoolFigures,
    SamplingFigures,
    SplitFigures,
)
from stepladder.loops.runs.token_use import TokenUse, unique_share, use_path
from stepladder.types import LabelledProblem

_NUM_BUDGETS = 10

ValueT = TypeVar("ValueT")

_Rule = Callable[[Sequence[PoolSample]], bool | None]
_SAMPLING_RULES: dict[AnswerMethod, _Rule] = {
    AnswerMethod.MAJORITY: metrics.majority_vote,
    AnswerMethod.BEST_OF_N: metrics.best_of_n,
    AnswerMethod.WEIGHTED_VOTE: metrics.weighted_vote,
}


def levels_of(problems: Sequence[LabelledProblem]) -> dict[str, str]:
    """Return the level of every problem that has one, by its id."""
    return {labelled.problem.id: labelled.level for labelled in problems if labelled.level is not None}


def search_figures(
    shards: Sequence[Path], levels: Mapping[str, str] | None = None, *, sampled_before: Sequence[Path] = (), continued: bool = False
) -> SearchFigures:
    """Return the counts of a training search: problems, solved, tokens, nodes, failed steps, and the savings of the caches.

    Args:
        shards: Files of trees.
        levels: Level of every problem by its id; None has no levels.
        sampled_before: Graded samples from before the search; they count for the problems and the solved ones alone.
        continued: Whether the trees began with these samples. Then ``unique_share`` counts their tokens among the sampled ones.
    """
    trees = [tree for path in shards for tree in read_trees(path)]
    before = [tree for path in sampled_before for tree in read_trees(path)]
    tried, searched = [*trees, *before], {tree.problem_id for tree in trees}
    in_trees = sum(tree.generated_tokens for tree in before if tree.problem_id in searched) if continued else 0
    solved = {tree.problem_id for tree in tried if 1.0 in tree.outcomes}
    uses = [use_path(shard) for shard in shards]
    return SearchFigures(
        problems=len({tree.problem_id for tree in tried}),
        solved=len(solved),
        trees=len(trees),
        nodes=sum(len(tree.parents) for tree in trees),
        generated_tokens=sum(tree.generated_tokens for tree in trees),
        policy_calls=sum(tree.policy_calls for tree in trees),
        scored_tokens=sum(tree.scored_tokens for tree in trees),
        failed_steps=sum(tree.stop_reasons.count("error") for tree in trees),
        token_use=TokenUse.sum([TokenUse.load(path) for path in uses]) if all(path.exists() for path in uses) else None,
        unique_share=unique_share(trees, sampled_before=in_trees),
        levels={
            level: LevelCount(problems=len(each), solved=sum(each))
            for level, each in _by_level({tree.problem_id: tree.problem_id in solved for tree in tried}, levels or {}).items()
        },
    )


def _by_level(values: Mapping[str, ValueT], levels: Mapping[str, str]) -> dict[str, list[ValueT]]:
    """Return the values of problems by level. Levels that are all numbers are in their order, others in that of the alphabet."""
    found: dict[str, list[ValueT]] = {}
    for problem_id, value in values.items():
        if problem_id in levels:
            found.setdefault(levels[problem_id], []).append(value)
    return {level: found[level] for level in sorted(found, key=_level_order)}


def _level_order(level: str) -> tuple[float, str]:
    try:
        return float(level), level
    except ValueError:
        return math.inf, level


def split_figures(folder: Path, levels: Mapping[str, str] | None = None, *, abstention: str | None = None) -> SplitFigures:
    """Return the figures of one split from its evaluation folder. A figure without an evaluation is None.

    Args:
        folder: The folder.
        levels: Level of every problem by its id; None has no levels.
        abstention: The answer that says that the policy does not know; None if no answer does.

    Raises:
        CheckpointError: If a file is not one that an evaluation wrote.
    """
    greedy, search, samples = all_solved(folder / "greedy"), all_solved(folder / "search"), all_pools(folder / "samples")
    return SplitFigures(
        problems=len(greedy),
        tokens=EvaluationTokens(greedy=_tokens(greedy), samples=sum(row.tokens for row in samples), search=_tokens(search)),
        pass_at_1=_accuracy([row.correct for row in greedy]) if greedy else None,
        pool=_pool_figures(samples) if samples else PoolFigures(),
        best_prm_within_problem_auc=folder_auc(folder / "samples-best-prm"),
        search=_equal_token_figures(search, samples) if search else None,
        levels=_level_figures(greedy, search, samples, levels or {}),
        monitors=_monitors(samples) if samples else None,
        credit=_credit(greedy, search, samples),
        abstention=_abstentions(greedy, abstention) if greedy and abstention is not None else None,
    )


def _abstentions(rows: Sequence[SolvedRow], answer: str) -> AbstentionFigures:
    answered = [row.correct for row in rows if row.answer != answer]
    return AbstentionFigures(share=1 - len(answered) / len(rows), precision=sum(answered) / len(answered) if answered else None)


def _credit(greedy: Sequence[SolvedRow], search: Sequence[SolvedRow], samples: Sequence[PoolRow]) -> CreditFigures | None:
    policy, searched = (metrics.mean_credit([(row.correct, row.credit) for row in rows]) for rows in (greedy, search))
    by_problem = [[(sample.correct, sample.credit) for sample in row.samples] for row in samples]
    # A problem whose samples have no answer at all counts 0.
    means = [metrics.mean_credit(graded) for graded in by_problem]
    sampled = None if all(mean is None for mean in means) else float(np.mean([mean or 0.0 for mean in means]))
    found = CreditFigures(policy=policy, samples=sampled, search=searched)
    return None if found == CreditFigures() else found


def _level_figures(
    greedy: Sequence[SolvedRow], search: Sequence[SolvedRow], samples: Sequence[PoolRow], levels: Mapping[str, str]
) -> dict[str, LevelFigures]:
    solved = [_by_level({row.problem_id: float(row.correct) for row in rows}, levels) for rows in (greedy, search)]
    shares = _by_level({row.problem_id: sum(sample.correct for sample in row.samples) / len(row.samples) for row in samples}, levels)
    return {
        level: LevelFigures(
            problems=len(right),
            pass_at_1=_mean(right),
            search=_mean(solved[1].get(level)),
            sampled_pass_at_1=_mean(shares.get(level)),
            pass_at_k=_mean([float(share > 0) for share in shares.get(level, [])]),
        )
        for level, right in solved[0].items()
    }


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


def folder_auc(folder: Path) -> float | None:
    """Return the quality with which the scores in a folder of samples rank the solutions of a problem; None if nothing can be ranked."""
    return _within_problem_auc(all_pools(folder))


def problem_aucs(folder: Path) -> dict[str, float]:
    """Return by problem how well the scores in a folder of samples rank its solutions, in [0, 1]; only problems that can be ranked."""
    found = {row.problem_id: metrics.pooled_auc(*_scores(row.samples)) for row in all_pools(folder)}
    return {problem: auc for problem, auc in found.items() if auc is not None}


def _tokens(rows: Sequence[SolvedRow]) -> int:
    return sum(row.tokens for row in rows)


def _accuracy(verdicts: Sequence[bool]) -> Accuracy:
    right = sum(verdicts)
    return Accuracy(value=right / len(verdicts), interval=metrics.wilson_interval(right, len(verdicts)))


def _pool_figures(rows: Sequence[PoolRow]) -> PoolFigures:
    """Figures of the whole pool: how diverse it is, and how well the PRM ranks it."""
    num_samples = min(len(row.samples) for row in rows)
    counts = [(len(row.samples), sum(sample.correct for sample in row.samples)) for row in rows]
    scored = [sample for row in rows for sample in row.samples if sample.score is not None]
    scores, correct = _scores(scored)
    return PoolFigures(
        num_samples=num_samples,
        sampled_pass_at_1=float(np.mean([right / total for total, right in counts])),
        pass_at_k=float(np.mean([metrics.pass_at_k(total, right, num_samples) for total, right in counts])),
        answer_entropy=float(np.mean([metrics.answer_entropy([sample.answer_key for sample in row.samples]) for row in rows])),
        prm_within_problem_auc=_within_problem_auc(rows),
        prm_pooled_auc=metrics.pooled_auc(scores, correct) if scored else None,
        prm_brier=metrics.brier(scores, correct) if scored else None,
    )


def _monitors(rows: Sequence[PoolRow]) -> MonitorFigures:
    """Figures of the whole pool that show early what goes wrong."""
    pools = [row.samples for row in rows]
    scores, correct = _scores([sample for pool in pools for sample in pool])
    top = [max(scored, key=_score) for pool in pools if (scored := [each for each in pool if each.score is not None])]
    few = max(1, min(map(len, pools)) // 4)
    return MonitorFigures(
        at_k=tuple(monitors.figures_at_k(pools)),
        distinct_right=monitors.distinct_right(pools),
        surprisal_per_token=monitors.surprisal_per_token(pools),
        prm_calibration_error=monitors.calibration_error(scores, correct),
        prm_scores=monitors.score_histogram(scores, correct) if scores else None,
        top_score=float(np.mean([_score(sample) for sample in top])) if top else None,
        top_right=float(np.mean([sample.correct for sample in top])) if top else None,
        exploration=monitors.exploration(pools, few),
        exploitation=monitors.exploitation(pools, few),
        start_divergence=monitors.divergence_per_token(pools),
        unsound_right=monitors.unsound_right(pools),
    )


def _score(sample: PoolSample) -> float:
    assert sample.score is not None, "only scored samples are compared"
    return sample.score


def _scores(samples: Sequence[PoolSample]) -> tuple[list[float], list[bool]]:
    """Return scores and verdicts of the samples that have a score."""
    pairs = [(sample.score, sample.correct) for sample in samples if sample.score is not None]
    return [score for score, _ in pairs], [correct for _, correct in pairs]


def _within_problem_auc(rows: Sequence[PoolRow]) -> float | None:
    return metrics.within_problem_auc([_scores(row.samples) for row in rows])


def _within(pool: Sequence[PoolSample], budget: int) -> Sequence[PoolSample]:
    """First samples whose tokens fit the budget, at least one, because every method must make one request."""
    return metrics.first_within(pool, budget) or pool[:1]


def _usable_methods(samples: Sequence[PoolRow]) -> list[AnswerMethod]:
    """Return the sampling methods that need no scores, and the others if there are scores."""
    is_scored = any(sample.score is not None for row in samples for sample in row.samples)
    return [method for method in SAMPLING_METHODS if is_scored or method is AnswerMethod.MAJORITY]


def _equal_token_figures(search: Sequence[SolvedRow], samples: Sequence[PoolRow]) -> EqualTokenFigures:
    """Accuracy of the search, and of each sampling method with the samples that fit the search's tokens on the same problem."""
    pools, correct = {row.problem_id: row.samples for row in samples}, [row.correct for row in search]
    within = [_within(pools[row.problem_id], row.tokens) for row in search]
    sampling: dict[AnswerMethod, SamplingFigures | None] = dict.fromkeys(SAMPLING_METHODS)
    for method in _usable_methods(samples):
        verdicts = [_SAMPLING_RULES[method](chosen) is True for chosen in within]
        # The generator resamples problems for an interval only; its seed is fixed so that the same rows give the same figures.
        paired = metrics.paired_comparison(verdicts, correct, rng=np.random.default_rng(0))
        sampling[method] = SamplingFigures(accuracy=_accuracy(verdicts), search_against=paired)
    return EqualTokenFigures(
        accuracy=_accuracy(correct),
        tokens_per_problem=_tokens(search) / len(search),
        sampling_tokens_per_problem=sum(sample.num_tokens for chosen in within for sample in chosen) / len(search),
        sampling=sampling,
        curves=_curves(search, samples),
        short_pools=sum(_is_short(pools[row.problem_id], row.tokens) for row in search),
    )


def _is_short(pool: Sequence[PoolSample], budget: int) -> bool:
    """Say whether a budget pays for all samples and for another one of their mean length."""
    tokens = sum(sample.num_tokens for sample in pool)
    return tokens + tokens / len(pool) <= budget


def _curves(search: Sequence[SolvedRow], samples: Sequence[PoolRow]) -> dict[AnswerMethod, tuple[tuple[int, float], ...]]:
    """Accuracy against generated tokens per problem, as (tokens, accuracy), of the search and of each sampling method.

    The sampling curves extend to the end of the shortest pool, or of the search if that is longer. Before its first sample a method has no
    answer.
    """
    most = max(*(row.tokens for row in search), min(row.tokens for row in samples), 1)
    budgets = [int(budget) for budget in np.unique(np.geomspace(max(most / 32, 1), most, _NUM_BUDGETS).astype(int))]
    curves = {AnswerMethod.SEARCH: tuple((budget, float(np.mean([_known(row, budget) for row in search]))) for budget in budgets)}
    for method in _usable_methods(samples):
        rule = _SAMPLING_RULES[method]
        shares = [float(np.mean([rule(metrics.first_within(row.samples, budget)) is True for row in samples])) for budget in budgets]
        curves[method] = tuple(zip(budgets, shares, strict=True))
    return curves


def _known(row: SolvedRow, budget: int) -> bool:
    """Whether the search's answer was right when it had spent the budget. Before the first wave it has no answer."""
    return metrics.known_within(row.anytime or (), budget) is True
