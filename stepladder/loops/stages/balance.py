"""The balance rule: probe training problems at several temperatures and choose the settings with the best balance score."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import with_config

from stepladder.data.labels.traces import solution_reward
from stepladder.data.metrics.balance import ProbeSample, best_balance
from stepladder.files import atomic_write_text, read_json
from stepladder.interfaces import Verifier
from stepladder.loops.assembly.search import sampling_budget
from stepladder.loops.config.run import Config
from stepladder.loops.runs.json_records import CLOSED, record_of
from stepladder.loops.runs.workers import Task
from stepladder.loops.stages.context import BestModels, Models, RoundContext
from stepladder.loops.stages.engine_run import open_shard, run_engine
from stepladder.loops.stages.failures import write_failures
from stepladder.loops.stages.graded_rows import draws_of, text_digest
from stepladder.mcts.methods import resolve_method
from stepladder.types import Failures, LabelledProblem, SearchResult

_WHAT, _REMEDY = "the samples of a probe", "remove the file and run evolve again"


class Probed(NamedTuple):
    """The result of a probe."""

    settings: dict[str, Any]
    """The chosen settings, by name."""
    evidence: list[dict[str, float]]
    """The best threshold of every temperature, with its score."""
    tokens: int
    """Generated tokens."""


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class _Shard:
    tokens: int
    problems: list[list[ProbeSample]]


def balanced_settings(context: RoundContext, number: int, best: BestModels) -> Probed:
    """Sample the probe problems with the best policy at every temperature, and choose; shards that exist are not sampled again.

    Args:
        context: The run, with the settings of the round so far.
        number: The round.
        best: The best models before it.

    Raises:
        BackendError: If every sample failed.
    """
    rule = context.run_config.rules.balance
    assert rule is not None, "a configured rule"
    probe, size, folder = context.problems["train"][: rule.problems], context.config.run.shard_size, context.run.round(number) / "probe"
    shards = [probe[begin : begin + size] for begin in range(0, len(probe), size)]
    models, stage = context.models(number, best.policy, best.prm), f"round {number}: probe"
    outs: dict[float, list[Path]] = {
        temperature: [folder / f"temperature-{temperature:g}" / f"shard-{index:04d}.json" for index, _ in enumerate(shards)]
        for temperature in rule.temperatures.values
    }
    jobs = [(temperature, *job) for temperature, paths in outs.items() for job in zip(shards, paths, strict=True)]
    missing = [job for job in jobs if not job[2].exists()]
    tasks = [
        Task.of(
            probe_shard,
            config=context.config,
            models=models,
            problems=problems,
            temperature=temperature,
            num_samples=rule.samples,
            out=out,
            stage=stage,
        )
        for temperature, problems, out in missing
    ]
    with context.stage(number, "probe") as event:
        context.work(tasks, {stage: sum(len(problems) for _, problems, _ in missing)})
        event.failures = context.check_samples([out for _, _, out in jobs], stage)
    read = {temperature: [_read(path) for path in paths] for temperature, paths in outs.items()}
    samples = {temperature: [problem for shard in parts for problem in shard.problems] for temperature, parts in read.items()}
    chosen, by_temperature = best_balance(samples, rule.thresholds.values, target=rule.target)
    return Probed(
        settings={"search.options.temperature": chosen.temperature, "labels.min_trace_reward": chosen.threshold},
        evidence=[each._asdict() for each in by_temperature.values()],
        tokens=sum(shard.tokens for parts in read.values() for shard in parts),
    )


def probe_shard(
    *, config: Config, models: Models, problems: list[LabelledProblem], temperature: float, num_samples: int, out: Path, stage: str
) -> None:
    """Sample full solutions of a shard of problems at a temperature, grade them, and write their rewards."""
    method = resolve_method("best-of-n", temperature=temperature)
    budget = sampling_budget(config.search, method, num_samples=num_samples)
    opened = open_shard(config, models, problems, method=method, budget=budget, out=out, scores=config.search.scores)
    with opened as (engine, verifier, _):
        results = run_engine(engine, problems, stage=stage)
        rows = [_samples(result, verifier) for result in results]
        write_failures(out, Failures.sum(result.failures for result in results))
        tokens = sum(result.tree.generated_tokens for result in results)
        atomic_write_text(out, json.dumps({"tokens": tokens, "problems": [[asdict(each) for each in row] for row in rows]}) + "\n")


def _samples(result: SearchResult, verifier: Verifier) -> list[ProbeSample]:
    tree, draws = result.tree, draws_of(result.tree)
    verdicts = verifier.grade([(result.problem_id, tree.answers[path[-1]]) for path in draws])
    return [
        ProbeSample(
            text=text_digest("".join(tree.texts[node] for node in path)),
            reward=solution_reward([tree.scores[node] for node in path], right=verdict.correct),
            correct=verdict.correct,
        )
        for path, verdict in zip(draws, verdicts, strict=True)
    ]


def _read(path: Path) -> _Shard:
    return record_of(_Shard, read_json(path, what=_WHAT, remedy=_REMEDY), place=path, what=_WHAT, remedy=_REMEDY)
