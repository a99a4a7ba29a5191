"""Measure a round's models on held-out and test problems, in solve mode; answers are graded afterwards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stepladder.loops.assembly.search import build_method, step_limit
from stepladder.loops.config.run import Config
from stepladder.loops.runs.evaluation_rows import check_problems, read_pools, read_solved, write_rows
from stepladder.loops.runs.workers import Task, worker_models
from stepladder.loops.stages.context import Models, RoundContext
from stepladder.loops.stages.divergence import with_start_logps
from stepladder.loops.stages.engine_run import open_shard, run_engine
from stepladder.loops.stages.failures import write_failures
from stepladder.loops.stages.graded_rows import pool_row, solved_row
from stepladder.loops.stages.kinds import TREES
from stepladder.mcts.methods import resolve_method
from stepladder.mcts.search_method import SearchMethod
from stepladder.types import Budget, Failures, LabelledProblem

EvaluationKind = Literal["greedy", "samples", "search"]
"""One greedy solution, independent full solutions with scores, or the configured search."""

_SPLITS: tuple[tuple[str, EvaluationKind], ...] = (
    ("held_out", "greedy"),
    ("held_out", "samples"),
    ("test", "greedy"),
    ("test", "samples"),
    ("test", "search"),
)
"""Measurements after each round: all of them on test, and those for the gates on held-out."""


class Evaluation(NamedTuple):
    """Something to measure."""

    split: str
    """Whose problems."""
    kind: EvaluationKind
    """How they are solved."""
    folder: str
    """Folder of the rows, below the split."""
    prm: int | None
    """Version of the PRM that scores."""


def evaluate(context: RoundContext, number: int, *, policy: int, prm: int | None, best_prm: int | None) -> None:
    """Run the evaluations of a round that are missing.

    Args:
        context: The run.
        number: The round.
        policy: Version of the policy to measure.
        prm: Version of the PRM to measure.
        best_prm: Version of the best PRM so far, which the new one has to match.
    """
    wanted = [Evaluation(split, kind, kind, prm) for split, kind in _SPLITS]
    if best_prm is not None and best_prm != prm:
        # The same seeds give the same samples, now scored by the PRM that the new one has to match.
        wanted.append(Evaluation("held_out", "samples", "samples-best-prm", best_prm))
    with context.stage(number, "evaluate") as event:
        event.failures = run_evaluations(context, number, policy, wanted)


def run_evaluations(context: RoundContext, number: int, policy: int, wanted: Sequence[Evaluation]) -> Failures:
    """Run the missing parts of some evaluations; return their failed samples.

    Raises:
        CheckpointError: If a part that is there lacks a problem, or is something else.
        BackendError: If every sample failed.
    """
    tasks, totals, outs = [], {}, []
    for split, kind, folder, scorer in wanted:
        stage = f"round {number}: {split} {folder}"
        for index, problems in enumerate(context.shards(split)):
            out = context.run.evaluation(number, split) / folder / f"shard-{index:04d}.json"
            outs.append(out)
            if out.exists():
                rows = read_pools(out) if kind == "samples" else read_solved(out)
                check_problems(out, rows, [labelled.problem.id for labelled in problems])
                continue
            totals[stage] = totals.get(stage, 0) + len(problems)
            models = context.models(number, policy, scorer)
            measured = folder == "samples" and number > 0 and context.config.evaluate.divergence
            start = context.run.policy_source(0, context.run_config) if measured else None
            shared: dict[str, Any] = {"config": context.evaluation_config, "models": models, "problems": problems}
            tasks.append(Task.of(evaluate_shard, **shared, kind=kind, out=out, stage=stage, start=start))
    context.work(tasks, totals)
    return context.check_samples(outs, f"round {number}: evaluate")


def evaluate_shard(
    *,
    config: Config,
    models: Models,
    problems: list[LabelledProblem],
    kind: EvaluationKind,
    out: Path,
    stage: str,
    start: str | None = None,
) -> None:
    """Run one kind of evaluation, then grade it from outside and write its rows, and the trees of a search.

    Args:
        config: The configuration.
        models: The models.
        problems: The shard.
        kind: How problems are solved.
        out: File of the rows.
        stage: Name under which progress is shown.
        start: Policy that gives samples another log-probability; None gives them none.
    """
    method, budget = _method_and_budget(config, kind)
    opened = open_shard(config, models, problems, method=method, budget=budget, out=out, scores=config.evaluate.scores)
    with opened as (engine, verifier, _):
        results = run_engine(engine, problems, stage=stage)
        if kind == "samples":
            rows = [pool_row(result, verifier, config) for result in results]
            rows = rows if start is None else with_start_logps(config, worker_models(), start, results, rows)
        else:
            rows = [solved_row(result, verifier, with_course=kind == "search") for result in results]
        if kind == "search":
            TREES.write(out.with_suffix(".parquet"), [result.tree for result in results])
        write_failures(out, Failures.sum(result.failures for result in results))
        write_rows(out, rows)


def _method_and_budget(config: Config, kind: EvaluationKind) -> tuple[SearchMethod, Budget]:
    section, limits = config.evaluate, config.search
    if kind == "samples":
        method = resolve_method("best-of-n", temperature=section.temperature)
        caps: dict[str, Any] = {"num_simulations": section.samples}
    else:
        method = resolve_method("greedy") if kind == "greedy" else build_method(config, section)
        caps = {"num_simulations": section.simulations, "max_tokens": section.max_tokens}
    return method, Budget(**caps, max_depth=limits.max_depth, max_step_tokens=step_limit(limits, method))
