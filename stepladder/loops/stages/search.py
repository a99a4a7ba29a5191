"""Search the training problems in label mode, shard by shard."""

import json
from dataclasses import asdict
from pathlib import Path

from stepladder.files import atomic_write_text
from stepladder.loops.assembly.problems import build_verifier, vote_keys
from stepladder.loops.assembly.search import build_method, search_budget, search_engine
from stepladder.loops.config.run import Config
from stepladder.loops.runs.token_use import TokenUse, unique_tokens, use_path
from stepladder.loops.runs.workers import Task, worker_models
from stepladder.loops.stages.context import BestModels, Models, RoundContext
from stepladder.loops.stages.engine_run import questions_of, run_engine
from stepladder.loops.stages.failures import write_failures
from stepladder.loops.stages.kinds import TREES
from stepladder.mcts.search_method import SearchMethod
from stepladder.types import Budget, Failures, LabelledProblem


def search(context: RoundContext, number: int, best: BestModels) -> None:
    """Search the shards of training problems whose trees are missing."""
    prm = best.prm if context.config.prm.enabled else None
    models, stage, missing = context.models(number, best.policy, prm), f"round {number}: search", context.missing(number, TREES)
    tasks = [
        Task.of(search_shard, config=context.config, models=models, problems=shard.problems, out=shard.out, stage=stage)
        for shard in missing
    ]
    with context.stage(number, "search") as event:
        context.work(tasks, {stage: sum(len(shard.problems) for shard in missing)})
        event.failures = context.check_samples(context.paths(number, TREES), stage)


def search_shard(*, config: Config, models: Models, problems: list[LabelledProblem], out: Path, stage: str) -> None:
    """Search a shard of training problems and write its trees."""
    method, budget = build_method(config.search), search_budget(config.search)
    write_labelled_trees(config, models, problems, method=method, budget=budget, out=out, stage=stage)


def write_labelled_trees(
    config: Config, models: Models, problems: list[LabelledProblem], *, method: SearchMethod, budget: Budget, out: Path, stage: str
) -> None:
    """Search problems with known answers, and write the graded trees and their token counts.

    Args:
        config: The configuration.
        models: The models.
        problems: The shard.
        method: How to search.
        budget: Caps per problem.
        out: Parquet file of the trees; the token counts are next to it.
        stage: Name under which progress is shown.
    """
    with build_verifier(config.problems, problems) as verifier:
        engine = search_engine(
            config,
            worker_models(),
            questions_of(problems),
            policy=models.policy,
            prm=models.prm,
            method=method,
            budget=budget,
            provenance=models.provenance,
            scores=config.search.scores,
            verifier=verifier,
            key_of=vote_keys(verifier),
        )
        results = run_engine(engine, problems, stage=stage)
    trees = [result.tree for result in results]
    use = TokenUse.of(engine.policy, engine.scorer, unique_tokens=sum(map(unique_tokens, trees)))
    # The shard comes last: a job is done when its shard is there.
    atomic_write_text(use_path(out), json.dumps(asdict(use)) + "\n")
    write_failures(out, Failures.sum(result.failures for result in results))
    TREES.write(out, trees)
