"""Search the training problems in label mode, shard by shard, in as many passes as ``search.allocation`` wants.

A pass searches at most one tree per problem. Between two passes the main process reads what all shards found and decides who gets another
tree. So a decision depends on finished files alone, and a stopped stage continues with the pass it was in.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from stepladder.files import atomic_write_text
from stepladder.loops.assembly.policies import LiveWeights
from stepladder.loops.assembly.search import build_method, search_budget
from stepladder.loops.config.run import Config
from stepladder.loops.runs.token_use import TokenUse, unique_tokens, use_path
from stepladder.loops.runs.workers import Task
from stepladder.loops.stages.context import Models, RoundContext
from stepladder.loops.stages.engine_run import open_shard, run_engine
from stepladder.loops.stages.failures import read_failures, write_failures
from stepladder.loops.stages.first_samples import first_samples
from stepladder.loops.stages.kinds import ROLLOUTS, TREES
from stepladder.loops.stages.problem_states import problem_states
from stepladder.mcts.allocation import Budgets, Uniform
from stepladder.mcts.engine import BudgetRule
from stepladder.mcts.problem_search import Samples
from stepladder.mcts.search_method import SearchMethod
from stepladder.types import Budget, Failures, LabelledProblem, derive_seed


def search(context: RoundContext, number: int, models: Models) -> None:
    """Search the training problems whose trees are missing."""
    stage = _stage(number)
    with context.stage(number, "search") as event:
        context.finish_ahead({stage: None})
        if _is_one_pass(context):
            context.work(*_shown(_shard_tasks(context, number, models), stage))
        elif context.missing(number, TREES):
            _search_in_passes(context, number, models)
        event.failures = context.check_samples(context.paths(number, TREES), stage)
    shutil.rmtree(context.run.round(number) / _PASSES, ignore_errors=True)


_PASSES = "passes"
"""Folder of a round that holds the trees of finished passes until the last one is finished."""


def first_tasks(context: RoundContext, number: int, models: Models) -> list[Task[None]]:
    """Return the missing tasks of a search that wait for nothing: all of them, or those of its first pass."""
    if _is_one_pass(context):
        return _shard_tasks(context, number, models)
    if not context.missing(number, TREES):
        return []
    return _pass_tasks(context, number, models, _next_budgets(context, number, []), tree_number=0)


def _stage(number: int) -> str:
    return f"round {number}: search"


def _is_one_pass(context: RoundContext) -> bool:
    allocation = context.config.search.allocation
    return isinstance(allocation, Uniform) and allocation.trees_per_problem == 1


def _shown(tasks: list[Task[None]], stage: str) -> tuple[list[Task[None]], dict[str, int | None]]:
    """Return tasks, and the problems of all of them under the name of the stage."""
    return tasks, {stage: sum(len(task.arguments["problems"]) for task in tasks)}


def _shard_tasks(context: RoundContext, number: int, models: Models) -> list[Task[None]]:
    return [
        Task.of(
            search_shard,
            config=context.config,
            models=models,
            problems=shard.problems,
            out=shard.out,
            stage=_stage(number),
            tree_number=first_tree(context.config),
            sampled=_sampled(context, number, shard.number),
        )
        for shard in context.missing(number, TREES)
    ]


def _search_in_passes(context: RoundContext, number: int, models: Models) -> None:
    """Search pass after pass until the allocation has nothing left to give, and put the trees of all passes into the round's shards."""
    passes: list[list[Path]] = []
    while budgets := _next_budgets(context, number, passes):
        passes.append(_search_pass(context, number, models, budgets, tree_number=len(passes)))
    tasks = [
        Task.of(
            merge_passes,
            order=[labelled.problem.id for labelled in shard.problems],
            passes=[paths[shard.number] for paths in passes],
            out=shard.out,
        )
        for shard in context.missing(number, TREES)
    ]
    context.work(tasks, {})


def _search_pass(context: RoundContext, number: int, models: Models, budgets: Budgets, *, tree_number: int) -> list[Path]:
    """Search one tree of every problem with a budget; return the files of all shards, those without such a problem included."""
    stage = _pass_stage(number, tree_number)
    context.work(*_shown(_pass_tasks(context, number, models, budgets, tree_number=tree_number), stage))
    shards, paths = _budgeted(context, budgets), _pass_paths(context, number, tree_number)
    context.check_samples([path for path, problems in zip(paths, shards, strict=True) if problems], stage)
    return paths


def _pass_stage(number: int, tree_number: int) -> str:
    return f"{_stage(number)}, pass {tree_number + 1}"


def _budgeted(context: RoundContext, budgets: Budgets) -> list[list[LabelledProblem]]:
    """Return the problems of all shards that have a budget."""
    return [[labelled for labelled in problems if labelled.problem.id in budgets] for problems in context.shards("train")]


def _pass_paths(context: RoundContext, number: int, tree_number: int) -> list[Path]:
    return [context.run.shard(number, f"{_PASSES}/{tree_number:02d}", index) for index, _ in enumerate(context.shards("train"))]


def _pass_tasks(context: RoundContext, number: int, models: Models, budgets: Budgets, *, tree_number: int) -> list[Task[None]]:
    """Return the missing tasks of a pass."""
    tasks = []
    for index, (problems, path) in enumerate(zip(_budgeted(context, budgets), _pass_paths(context, number, tree_number), strict=True)):
        if path.exists():
            continue
        own = {labelled.problem.id: budgets[labelled.problem.id] for labelled in problems}
        tasks.append(
            Task.of(
                search_shard,
                config=context.config,
                models=models,
                problems=problems,
                out=path,
                stage=_pass_stage(number, tree_number),
                budgets=own,
                tree_number=tree_number + first_tree(context.config),
                sampled=None if tree_number else _sampled(context, number, index),
            )
        )
    return tasks


def first_tree(config: Config) -> int:
    """Return the number of a round's first tree: samples from before the search count as the first, and have its seeds."""
    return int(config.prm.samples_first)


def _sampled(context: RoundContext, number: int, shard: int) -> Path | None:
    """Return the file of the samples with which the first trees of a shard begin; None if they begin with the question."""
    return context.run.shard(number, ROLLOUTS.name, shard) if context.config.search.start == "first-samples" else None


def _next_budgets(context: RoundContext, number: int, passes: Sequence[Sequence[Path]]) -> Budgets:
    """Return the budgets of the next pass, given the files of the finished ones."""
    config = context.config
    return config.search.allocation.next_pass(
        problem_states(context, number, [path for paths in passes for path in paths]),
        base=search_budget(config.search),
        seed=derive_seed(config.run.seed, "allocation", number),
    )


def search_shard(
    *,
    config: Config,
    models: Models,
    problems: list[LabelledProblem],
    out: Path,
    stage: str,
    budgets: Budgets | None = None,
    tree_number: int = 0,
    sampled: Path | None = None,
) -> None:
    """Search a shard of training problems and write its trees.

    Args:
        config: The configuration.
        models: The models.
        problems: The problems of the shard; none gives an empty shard.
        out: Parquet file of the trees.
        stage: Name under which progress is shown.
        budgets: Caps by problem; None is the configured ones for all.
        tree_number: Trees of the same problems that the round has searched before.
        sampled: File of the graded samples that are the first draws of the trees; None draws anew.
    """
    if not problems:
        TREES.write(out, [])
        return
    budget = search_budget(config.search) if budgets is None else lambda problem: budgets[problem.id]
    method = build_method(config, config.search)
    write_labelled_trees(
        config,
        models,
        problems,
        method=method,
        budget=budget,
        out=out,
        stage=stage,
        tree_number=tree_number,
        samples=None if sampled is None else first_samples(ROLLOUTS.read([sampled])),
    )


def merge_passes(*, order: list[str], passes: list[Path], out: Path) -> None:
    """Put the trees of all passes over a shard into one file, problem by problem in the order of the passes.

    Args:
        order: The problems of the shard.
        passes: The shard's file of each pass.
        out: Parquet file of all trees; the token counts and failures are next to it.
    """
    place = {problem_id: number for number, problem_id in enumerate(order)}
    trees = sorted(TREES.read(passes), key=lambda tree: place[tree.problem_id])
    uses = [use_path(path) for path in passes if use_path(path).exists()]
    if uses:
        _write_use(out, TokenUse.sum([TokenUse.load(path) for path in uses]))
    write_failures(out, read_failures(passes))
    TREES.write(out, trees)


def write_labelled_trees(
    config: Config,
    models: Models,
    problems: list[LabelledProblem],
    *,
    method: SearchMethod,
    budget: Budget | BudgetRule,
    out: Path,
    stage: str,
    tree_number: int = 0,
    samples: Mapping[str, Samples] | None = None,
    live: LiveWeights | None = None,
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
        tree_number: Trees of the same problems that the round has searched before.
        samples: Solutions that were sampled before, by problem: the first draws of the trees.
        live: As for ``open_shard``.
    """
    scores = config.search.scores
    opened = open_shard(
        config,
        models,
        problems,
        method=method,
        budget=budget,
        out=out,
        scores=scores,
        labels=True,
        tree_number=tree_number,
        live=live,
    )
    with opened as (engine, *_):
        results = run_engine(engine, problems, stage=stage, first_samples=samples)
        trees = [result.tree for result in results]
        _write_use(out, TokenUse.of(engine.policy, engine.scorer, unique_tokens=sum(map(unique_tokens, trees))))
        write_failures(out, Failures.sum(result.failures for result in results))
        # The shard comes last: a job is done when its shard is there.
        TREES.write(out, trees)


def _write_use(out: Path, use: TokenUse) -> None:
    atomic_write_text(use_path(out), json.dumps(asdict(use)) + "\n")
