"""Run directories written by hand, as a run writes them: plausible figures, small trees, no model."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepladder.data.metrics.answers import Interval, PairedComparison
from stepladder.data.store import write_trees
from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import RunDir, open_run
from stepladder.loops.runs.evaluation_rows import SolvedRow, write_rows
from stepladder.loops.runs.results import LabelCounts, PolicyTraining, RoundRow, RoundTraining, RowCounts, SearchFigures, TrainingSummary
from stepladder.loops.runs.split_figures import (
    SAMPLING_METHODS,
    Accuracy,
    AnswerMethod,
    EqualTokenFigures,
    EvaluationTokens,
    PoolFigures,
    SamplingFigures,
    SplitFigures,
)
from stepladder.types import Provenance, TreeRecord

HOSTILE = '4 1 7 2 : a c <script>alert("x")</script> </textarea> & <!-- \u2028 f é 問題'
"""A question that breaks a page which trusts it."""


_BELOW = " is below the best model's 64.0 %"


def config(**sections: Any) -> Config:
    """Return a configuration that names no existing file."""
    base = {
        "problems": {"train": "train.jsonl", "test": "test.jsonl", "rule": "exact"},
        "policy": {"model": "models/base"},
        "run": {"seed": 7},
    }
    return Config.model_validate({**base, **sections})


def provenance(number: int, *, policy: int, scorer: int | None) -> Provenance:
    """Return where a hand-made tree says it comes from."""
    return Provenance(round=number, policy_version=policy, scorer_version=scorer, seed=7, config_hash="0" * 16, renderer_hash="0" * 16)


def tree(
    problem_id: str,
    *,
    question: str = "4 1 7 2 : a c f",
    answer: str = "2714",
    origin: Provenance,
    depth: int = 3,
    children: int = 3,
    labelled: bool = False,
    right: bool = True,
) -> TreeRecord:
    """Return a tree of a made-up search: the first child is expanded most, one leaf in three gives ``answer``."""
    rng = random.Random(problem_id)
    parents, depths, texts = [-1], [0], [""]
    frontier = [0]
    while frontier:
        node = frontier.pop(0)
        for slot in range(children if node == 0 or rng.random() < 0.75 else 1):
            parents.append(node)
            depths.append(depths[node] + 1)
            texts.append(
                f"{'acf'[depths[node] % 3]} = {rng.choice(['reverse', 'rotate', 'swap', 'increment'])} -> {rng.randrange(1000, 9999)}\n"
            )
            if depths[-1] < depth and (slot < 2 or rng.random() < 0.3):
                frontier.append(len(parents) - 1)
    size = len(parents)
    leaves = sorted(set(range(size)) - set(parents))
    given = {leaf: answer if index % 3 == 0 else f"{1000 + index}" for index, leaf in enumerate(leaves)}
    scores: list[float | None] = [None] + [
        round(rng.uniform(0.05, 0.97), 3) if origin.scorer_version is not None else None for _ in range(size - 1)
    ]
    visits = [1] * size
    for node in range(size - 1, 0, -1):
        visits[parents[node]] += visits[node]
    return TreeRecord(
        problem_id=problem_id,
        question=question,
        prompt_ids=[1, 2, 3],
        method="mcts",
        parents=parents,
        depths=depths,
        token_ids=[[]] + [[5, 6, 7]] * (size - 1),
        logps=[[]] + [[-0.1, -0.2, -0.3]] * (size - 1),
        texts=texts,
        priors=[1.0] + [round(1 / children, 3)] * (size - 1),
        scores=scores,
        visits=visits,
        values=[round(rng.uniform(0.2, 0.9), 3) for _ in range(size)],
        stop_reasons=["end" if node in given else "step" for node in range(size)],
        answers=[given.get(node) for node in range(size)],
        outcomes=[float(right and given[node] == answer) if labelled and node in given else None for node in range(size)],
        generated_tokens=3 * (size - 1),
        policy_calls=size // 2,
        scored_tokens=3 * (size - 1) if origin.scorer_version is not None else 0,
        num_simulations=size // 2,
        provenance=origin,
    )


def split(*, policy: float, search: float, majority: float, best_of_n: float | None, vote: float | None, auc: float | None) -> SplitFigures:
    """Return a split's figures; without a PRM, methods that need its scores were not measured."""
    values = {
        AnswerMethod.SEARCH: search,
        AnswerMethod.MAJORITY: majority,
        AnswerMethod.BEST_OF_N: best_of_n,
        AnswerMethod.WEIGHTED_VOTE: vote,
    }
    shapes = {
        AnswerMethod.SEARCH: (0.0, 0.2, 0.5, 0.8, 1.0),
        AnswerMethod.MAJORITY: (0.7, 0.7, 0.7, 0.9, 1.0),
        AnswerMethod.BEST_OF_N: (0.9, 0.95, 1.1, 1.2, 1.0),
        AnswerMethod.WEIGHTED_VOTE: (0.7, 0.75, 0.8, 0.9, 1.0),
    }
    paired = PairedComparison(difference=0.1, interval=Interval(0.05, 0.15), num_better=40, num_worse=10, p_value=0.001)
    return SplitFigures(
        problems=300,
        tokens=EvaluationTokens(greedy=300 * 28, samples=300 * 16 * 28, search=300 * 112),
        pass_at_1=accuracy(policy),
        pool=PoolFigures(
            num_samples=16,
            sampled_pass_at_1=policy,
            pass_at_k=0.9,
            answer_entropy=1.1,
            prm_within_problem_auc=auc,
            prm_pooled_auc=None if auc is None else auc + 0.05,
            prm_brier=None if auc is None else 0.17,
        ),
        search=EqualTokenFigures(
            accuracy=accuracy(search),
            tokens_per_problem=112.0,
            sampling_tokens_per_problem=108.0,
            sampling={
                method: None if (value := values[method]) is None else SamplingFigures(accuracy=accuracy(value), search_against=paired)
                for method in SAMPLING_METHODS
            },
            curves={
                method: tuple((tokens, value * factor) for tokens, factor in zip((7, 14, 28, 56, 112), shapes[method], strict=True))
                for method, value in values.items()
                if value is not None
            },
        ),
    )


def unmeasured() -> SplitFigures:
    """Return the figures of a split that was not evaluated."""
    return SplitFigures(problems=0, tokens=EvaluationTokens(greedy=0, samples=0, search=0))


def accuracy(value: float) -> Accuracy:
    """Return an accuracy with a made-up interval of plausible width."""
    return Accuracy(value=value, interval=Interval(max(value - 0.05, 0.0), min(value + 0.05, 1.0)))


SUMMARY = TrainingSummary(updates=90, rows=610, tokens=20_000, first_loss=1.234, last_loss=0.321, mean_loss=0.5, layout="trees")
SEARCH = SearchFigures(
    problems=400,
    solved=339,
    nodes=21_000,
    generated_tokens=96_000,
    policy_calls=5_000,
    scored_tokens=90_000,
    failed_steps=0,
    unique_share=0.71,
)


def row(
    number: int,
    *,
    policy: float,
    search: float,
    majority: float,
    best_of_n: float | None = None,
    vote: float | None = None,
    auc: float | None = None,
    accepted: bool = True,
    best_policy: int | None = None,
    pairs: int = 1204,
) -> RoundRow:
    """Return a round's figures, as a finished round leaves them."""
    test = split(policy=policy, search=search, majority=majority, best_of_n=best_of_n, vote=vote, auc=auc)
    labels = LabelCounts(
        traces=RowCounts(kept=610, dropped_by_reason={"no right solution": 61}),
        pairs=RowCounts(kept=pairs, dropped_by_reason={"margin": 812, "both sides right": 40}),
        values=RowCounts(kept=3100),
    )
    later = RoundTraining(policy=PolicyTraining(sft=SUMMARY, preference=SUMMARY), prm=SUMMARY)
    return RoundRow(
        round=number,
        accepted=accepted,
        accepted_reason=f"held-out pass@1 {100 * policy:.1f} %{'' if accepted else _BELOW}",
        prm_accepted=auc is not None,
        prm_accepted_reason="no PRM was trained" if auc is None else f"held-out within-problem AUC {auc:.3f}",
        best_policy=number if best_policy is None else best_policy,
        best_prm=None if auc is None else number,
        policy_version=number,
        scorer_version=None if auc is None else number,
        held_out=test,
        test=test,
        generated_tokens=2_104_000 if number else 176_000,
        search=SEARCH if number else None,
        labels=labels if number else None,
        training=later if number else RoundTraining(policy=PolicyTraining(warmup=SUMMARY)),
        seconds=63.4 + number,
    )


def full_rows() -> list[RoundRow]:
    """Return three rounds after the warm-up: two better ones, and a rejected one."""
    return [
        row(0, policy=0.167, search=0.21, majority=0.19),
        row(1, policy=0.45, search=0.66, majority=0.48, best_of_n=0.50, vote=0.57, auc=0.771),
        row(2, policy=0.64, search=0.81, majority=0.66, best_of_n=0.61, vote=0.74, auc=0.784),
        row(3, policy=0.60, search=0.79, majority=0.65, best_of_n=0.55, vote=0.73, auc=0.779, accepted=False, best_policy=2),
    ]


def write_run(root: Path, rows: Sequence[RoundRow], *, question: str = HOSTILE, settings: Config | None = None) -> RunDir:
    """Write a run directory: run.json, rounds with evaluations and trees, events."""
    run = open_run(root, settings or config())
    run.log_event("start", rounds=3, workers=2)
    for entry in rows:
        number = entry.round
        for stage, seconds in (("search", 21.5), ("label", 0.8), ("train", 24.0), ("evaluate", 17.3))[0 if number else 2 :]:
            run.log_event("stage_begin", round=number, stage=stage)
            run.log_event("stage_end", round=number, stage=stage, seconds=seconds + number)
        _write_evaluation(run, entry, question)
        if number:
            origin = provenance(number, policy=number - 1, scorer=None if number == 1 else number - 1)
            trees = [tree(f"train-{index}", origin=origin, labelled=True, right=index != 0) for index in range(4)]
            write_trees(run.shard(number, "trees", 0), trees)
        run.finish_round(entry)
    return run


def _write_evaluation(run: RunDir, entry: RoundRow, question: str) -> None:
    folder, origin = (
        run.round(entry.round) / "evaluation" / "test",
        provenance(entry.round, policy=entry.policy_version, scorer=entry.scorer_version),
    )
    ids = [f"test-{index}" for index in range(8)]
    trees = [tree(name, question=question if index == 0 else f"{index} 1 7 2 : a c f", origin=origin) for index, name in enumerate(ids)]
    # Of eight problems: 0-1 both right, 2-3 search alone, 4-5 policy alone, 6-7 none.
    right = [(True, True)] * 2 + [(True, False)] * 2 + [(False, True)] * 2 + [(False, False)] * 2
    searched = [
        SolvedRow(problem_id=name, answer="2714" if ok else "1001", correct=ok, tokens=112, anytime=(), right_answers=("2714",))
        for name, (ok, _) in zip(ids, right, strict=True)
    ]
    greedy = [
        SolvedRow(problem_id=name, answer="2714" if ok else "1002", correct=ok, tokens=28, text=f"round {entry.round}\n= {question}")
        for name, (_, ok) in zip(ids, right, strict=True)
    ]
    write_rows(folder / "search" / "shard-0000.json", searched)
    write_rows(folder / "greedy" / "shard-0000.json", greedy)
    write_trees(folder / "search" / "shard-0000.parquet", trees)
