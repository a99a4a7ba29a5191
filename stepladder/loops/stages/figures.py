"""The figures of an evaluation, computed from the graded rows that the workers wrote.

Rows, one per problem:

    greedy    {problem_id, answer, correct, tokens}
    search    {problem_id, answer, correct, tokens, anytime: [[tokens, correct], ...]}
    samples   {problem_id, samples: [{num_tokens, answer_key, score, correct}, ...]}

Sampling methods are compared with the search at the same generated tokens, problem by problem: from one pool of independent samples each
method gets the first ones whose tokens fit what the search spent on that problem (one at least).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stepladder.data.metrics import answers as metrics
from stepladder.data.store import read_trees
from stepladder.errors import CheckpointError
from stepladder.loops.runs.token_use import TokenUse, use_path

Row = dict[str, Any]
_NUM_BUDGETS = 10


def search_figures(shards: Sequence[Path]) -> dict[str, Any]:
    """Return what the training search came to: problems, solved, tokens, nodes, failed steps, and how much the caches saved."""
    trees = [tree for path in shards for tree in read_trees(path)]
    return {
        "problems": len(trees),
        "solved": sum(1.0 in tree.outcomes for tree in trees),
        "nodes": sum(len(tree.parents) for tree in trees),
        "generated_tokens": sum(tree.generated_tokens for tree in trees),
        "policy_calls": sum(tree.policy_calls for tree in trees),
        "scored_tokens": sum(tree.scored_tokens for tree in trees),
        "failed_steps": sum(tree.stop_reasons.count("error") for tree in trees),
        **_token_use(shards),
    }


def _token_use(shards: Sequence[Path]) -> dict[str, Any]:
    paths = [use_path(shard) for shard in shards]
    if not all(path.exists() for path in paths):
        return {}
    return TokenUse.sum([TokenUse(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]).figures()


def split_figures(folder: Path) -> dict[str, Any]:
    """Return the figures of one split from its evaluation folder; a figure whose evaluation was not run is None."""
    greedy, samples, search = (read_rows(folder / kind) for kind in ("greedy", "samples", "search"))
    figures: dict[str, Any] = {
        "problems": len(greedy),
        "tokens": {"greedy": _tokens(greedy), "samples": _pool_tokens(samples), "search": _tokens(search)},
    }
    figures |= _greedy_figures(greedy) | _sample_figures(samples)
    figures["best_prm_within_problem_auc"] = folder_auc(folder / "samples-best-prm")
    if search:
        figures |= _equal_token_figures(search, samples) | {"curves": _curves(search, samples)}
    return figures


def folder_auc(folder: Path) -> float | None:
    """Return how well the scores in a folder of samples rank the solutions of a problem; None where nothing can be ranked."""
    return _within_problem_auc(read_rows(folder))


def headline(test: dict[str, Any]) -> dict[str, Any]:
    """Return the test figures that stand at the top of a round's row."""
    return {
        "policy_pass_at_1": test["pass_at_1"],
        "policy_pass_at_1_interval": test["pass_at_1_interval"],
        "search_accuracy": test["search_accuracy"],
        "search_accuracy_interval": test["search_accuracy_interval"],
        "majority_accuracy": test["majority_accuracy"],
        "best_of_n_accuracy": test["best_of_n_accuracy"],
        "weighted_vote_accuracy": test["weighted_vote_accuracy"],
        "pass_at_k": test["pass_at_k"],
        "tokens_per_problem": test["search_tokens_per_problem"],
        "prm_within_problem_auc": test["prm_within_problem_auc"],
    }


def all_tokens(search: dict[str, Any] | None, figures: dict[str, dict[str, Any]]) -> int:
    """Return all tokens a round generated, in search, rollouts and evaluation."""
    evaluation = sum(sum(split["tokens"].values()) for split in figures.values())
    return evaluation + (search["generated_tokens"] + search["rollout_tokens"] if search else 0)


def read_rows(folder: Path) -> list[Row]:
    """Return the graded rows of one evaluation folder, in the order of its shards.

    Raises:
        CheckpointError: If a file is not one that an evaluation wrote.
    """
    rows: list[Row] = []
    for path in sorted(folder.glob("shard-*.json")):
        try:
            rows += json.loads(path.read_text(encoding="utf-8"))["rows"]
        except (json.JSONDecodeError, KeyError) as error:
            raise CheckpointError(f"{path}: not a stepladder evaluation: {error!r} -- remove the file and run evolve again") from None
    return rows


def _tokens(rows: list[Row]) -> int:
    return sum(row["tokens"] for row in rows)


def _pool_tokens(rows: list[Row]) -> int:
    return sum(sample["num_tokens"] for row in rows for sample in row["samples"])


def _greedy_figures(rows: list[Row]) -> dict[str, Any]:
    correct = sum(row["correct"] for row in rows)
    return {
        "pass_at_1": correct / len(rows) if rows else None,
        "pass_at_1_interval": list(metrics.wilson_interval(correct, len(rows))) if rows else None,
    }


def _sample_figures(rows: list[Row]) -> dict[str, Any]:
    """Figures of the whole pool: how diverse it is, and how well the PRM ranks it."""
    names = (
        "num_samples",
        "sampled_pass_at_1",
        "pass_at_k",
        "answer_entropy",
        "prm_within_problem_auc",
        "prm_pooled_auc",
        "prm_brier",
    )
    if not rows:
        return dict.fromkeys(names)
    num_samples = min(len(row["samples"]) for row in rows)
    counts = [(len(row["samples"]), sum(sample["correct"] for sample in row["samples"])) for row in rows]
    return {
        "num_samples": num_samples,
        "sampled_pass_at_1": float(np.mean([right / total for total, right in counts])),
        "pass_at_k": float(np.mean([metrics.pass_at_k(total, right, num_samples) for total, right in counts])),
        "answer_entropy": float(np.mean([metrics.answer_entropy([sample["answer_key"] for sample in row["samples"]]) for row in rows])),
        "prm_within_problem_auc": _within_problem_auc(rows),
        **_pooled(rows),
    }


def _scored(row: Row) -> tuple[list[float], list[bool]]:
    pairs = [(sample["score"], sample["correct"]) for sample in row["samples"] if sample["score"] is not None]
    return [score for score, _ in pairs], [correct for _, correct in pairs]


def _within_problem_auc(rows: list[Row]) -> float | None:
    return metrics.within_problem_auc([_scored(row) for row in rows])


def _pooled(rows: list[Row]) -> dict[str, float | None]:
    scores, correct = [], []
    for row in rows:
        row_scores, row_correct = _scored(row)
        scores += row_scores
        correct += row_correct
    if not scores:
        return {"prm_pooled_auc": None, "prm_brier": None}
    return {"prm_pooled_auc": metrics.pooled_auc(scores, correct), "prm_brier": metrics.brier(scores, correct)}


def _pools(rows: list[Row]) -> dict[str, list[metrics.PoolSample]]:
    return {row["problem_id"]: [metrics.PoolSample(**sample) for sample in row["samples"]] for row in rows}


def _within(pool: list[metrics.PoolSample], budget: int) -> list[metrics.PoolSample]:
    """First samples whose tokens fit the budget, one at least: a method that may ask has to ask once."""
    return metrics.first_within(pool, budget) or pool[:1]


_SAMPLING_RULES: dict[str, Callable[[Sequence[metrics.PoolSample]], bool | None]] = {
    "majority": metrics.majority_vote,
    "best_of_n": metrics.best_of_n,
    "weighted_vote": metrics.weighted_vote,
}


def _usable_rules(pools: dict[str, list[metrics.PoolSample]]) -> list[str]:
    """Rules that need no scores, and the others where there are some."""
    scored = any(sample.score is not None for pool in pools.values() for sample in pool)
    return [name for name in _SAMPLING_RULES if scored or name == "majority"]


def _equal_token_figures(search: list[Row], samples: list[Row]) -> dict[str, Any]:
    """Accuracy of the search, and of each sampling rule at the tokens that the search spent on the same problem."""
    pools, correct = _pools(samples), sum(row["correct"] for row in search)
    within = [_within(pools[row["problem_id"]], row["tokens"]) for row in search]
    figures: dict[str, Any] = {
        "search_accuracy": correct / len(search),
        "search_accuracy_interval": list(metrics.wilson_interval(correct, len(search))),
        "search_tokens_per_problem": _tokens(search) / len(search),
        "sampling_tokens_per_problem": sum(sample.num_tokens for chosen in within for sample in chosen) / len(search),
    }
    usable = _usable_rules(pools)
    for name, rule in _SAMPLING_RULES.items():
        names = (f"{name}_accuracy", f"{name}_accuracy_interval", f"search_against_{name}")
        verdicts = [rule(chosen) is True for chosen in within]
        figures |= dict(zip(names, _compared(verdicts, search), strict=True)) if name in usable else dict.fromkeys(names)
    return figures


def _compared(verdicts: list[bool], search: list[Row]) -> tuple[float, list[float], dict[str, Any]]:
    """Return accuracy, its interval, and how much better the search is on the same problems."""
    right = sum(verdicts)
    # The generator resamples problems for an interval only; its seed is fixed so that the same rows give the same figures.
    paired = metrics.paired_comparison(verdicts, [bool(row["correct"]) for row in search], rng=np.random.default_rng(0))
    return right / len(verdicts), list(metrics.wilson_interval(right, len(verdicts))), asdict(paired)


def _curves(search: list[Row], samples: list[Row]) -> dict[str, list[list[float]]]:
    """Accuracy against generated tokens per problem: [tokens, accuracy] points of the search and of each sampling rule.

    The sampling curves go on to the end of the shortest pool, or of the search where that is longer.
    """
    pools = _pools(samples)
    most = max(*(row["tokens"] for row in search), min(sum(sample.num_tokens for sample in pool) for pool in pools.values()), 1)
    budgets = [int(budget) for budget in np.unique(np.geomspace(max(most / 32, 1), most, _NUM_BUDGETS).astype(int))]
    curves = {"search": [[budget, float(np.mean([_anytime(row, budget) for row in search]))] for budget in budgets]}
    for name in _usable_rules(pools):
        rule = _SAMPLING_RULES[name]
        curves[name] = [[budget, float(np.mean([rule(_within(pool, budget)) is True for pool in pools.values()]))] for budget in budgets]
    return curves


def _anytime(row: Row, budget: int) -> bool:
    """Whether the search's answer was right when it had spent the budget; before the first wave there is none."""
    return metrics.known_within(row["anytime"], budget) is True
