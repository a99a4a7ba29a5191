"""Rollouts for the PRM to learn from: full solutions of the policy, or estimates from every prefix of a tree."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import with_config

from stepladder.data.labels.rollouts import Estimate, Prefix, estimate_prefixes, first_error_values, rollout_values
from stepladder.data.labels.value_rows import value_rows
from stepladder.files import atomic_write_text, read_json
from stepladder.loops.assembly.policies import build_policy, build_renderer, end_observations, keep_observations
from stepladder.loops.assembly.problems import OpenVerifier, build_verifier
from stepladder.loops.assembly.search import sampling_budget, step_limit
from stepladder.loops.config.run import Config
from stepladder.loops.config.training import RolloutTarget
from stepladder.loops.runs.json_records import CLOSED, record_of
from stepladder.loops.runs.workers import Progress, Task, report_progress, worker_models
from stepladder.loops.stages.context import Models, RoundContext
from stepladder.loops.stages.failures import write_failures
from stepladder.loops.stages.kinds import (
    ESTIMATED_VALUES,
    ROLLOUT_STEP_PAIRS,
    ROLLOUT_VALUES,
    ROLLOUTS,
    TREES,
    estimates_values,
)
from stepladder.loops.stages.search import write_labelled_trees
from stepladder.loops.stages.tree_rows import step_pair_rows, tree_value_rows
from stepladder.mcts.methods import resolve_method
from stepladder.types import Failures, LabelledProblem, derive_seed


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class _Cost:
    generated_tokens: int


def roll_out(context: RoundContext, number: int, policy_version: int) -> None:
    """Sample solutions of the training problems with a policy, and make rows for the PRM of them; nothing without ``prm.rollouts``."""
    run, config = context.run, context.config
    if not (config.prm.trains and config.prm.rollouts):
        return
    stage = f"round {number}: rollouts"
    with context.stage(number, "rollouts") as event:
        if config.prm.samples_first:
            context.finish_ahead({stage: None})
        missing = sum(len(shard.problems) for shard in context.missing(number, ROLLOUTS))
        context.work(rollout_tasks(context, number, policy_version), {stage: missing})
        event.failures = context.check_samples(context.paths(number, ROLLOUTS), stage)
    unlabelled = [
        Task.of(
            label_rollouts,
            config=config,
            rollouts=run.shard(number, ROLLOUTS.name, shard.number),
            values=shard.out,
            compared=run.shard(number, ROLLOUT_STEP_PAIRS.name, shard.number),
        )
        for shard in context.missing(number, ROLLOUT_VALUES)
    ]
    context.work(unlabelled, {})


def rollout_tasks(context: RoundContext, number: int, policy_version: int) -> list[Task[None]]:
    """Return the missing tasks that sample with a policy."""
    models, stage = context.models(number, policy_version, None), f"round {number}: rollouts"
    return [
        Task.of(roll_out_shard, config=context.config, models=models, problems=shard.problems, out=shard.out, stage=stage)
        for shard in context.missing(number, ROLLOUTS)
    ]


def roll_out_shard(*, config: Config, models: Models, problems: list[LabelledProblem], out: Path, stage: str) -> None:
    """Sample full solutions of a shard of training problems, grade them, and write them as trees."""
    method = resolve_method("majority", temperature=config.prm.rollout_temperature)
    budget = sampling_budget(config.search, method, num_samples=config.prm.rollouts)
    write_labelled_trees(config, models, problems, method=method, budget=budget, out=out, stage=stage)


def label_rollouts(*, config: Config, rollouts: Path, values: Path, compared: Path) -> None:
    """Turn a shard of rollouts into the rows that the PRM learns from."""
    records = ROLLOUTS.read([rollouts])
    if (pairs := step_pair_rows(config, records)) is not None:
        ROLLOUT_STEP_PAIRS.write(compared, pairs)
    # Last, since the job is done when they are there.
    ROLLOUT_VALUES.write(values, tree_value_rows(config, records).rows)


def estimate(context: RoundContext, number: int, policy_version: int) -> int:
    """Roll out every prefix of the round's trees, or of its rollouts, with a policy or its prover; return the tokens used."""
    run, config = context.run, context.config
    target = config.prm.target
    if not (estimates_values(config) and isinstance(target, RolloutTarget)):
        return 0
    kind = ROLLOUTS if run.shards(ROLLOUTS.name, rounds=[number]) else TREES
    models = context.models(number, target.version(policy_version), None)
    stage, missing = f"round {number}: estimates", context.missing(number, ESTIMATED_VALUES)
    tasks = [
        Task.of(
            estimate_shard,
            config=config,
            models=models,
            problems=shard.problems,
            trees=run.shard(number, kind.name, shard.number),
            out=shard.out,
            stage=stage,
        )
        for shard in missing
    ]
    with context.stage(number, "estimates") as event:
        context.work(tasks, {stage: sum(len(shard.problems) for shard in missing)})
        event.failures = context.check_samples(context.paths(number, ESTIMATED_VALUES), stage)
    return sum(_estimate_tokens(path) for path in run.shards(ESTIMATED_VALUES.name, rounds=[number]))


def _estimate_tokens(shard: Path) -> int:
    path, what, remedy = shard.with_suffix(".json"), "the cost of estimates", f"remove it and {shard.name}, and run evolve again"
    return record_of(_Cost, read_json(path, what=what, remedy=remedy), place=path, what=what, remedy=remedy).generated_tokens


def estimate_shard(*, config: Config, models: Models, problems: list[LabelledProblem], trees: Path, out: Path, stage: str) -> None:
    """Roll out the prefixes of a shard of trees with the policy; write value rows, and the token counts as JSON."""
    records, target = TREES.read([trees]), config.prm.target
    assert isinstance(target, RolloutTarget), "only these targets are estimated"
    with build_verifier(config.problems, problems) as verifier:
        ask = _Estimator(config, models, verifier, num_rollouts=target.prefix_rollouts, out=out)
        if target.type == "first-error":
            given = first_error_values(records, ask)
        else:
            given = rollout_values(records, ask, hard=target.type == "rollouts-hard")
    write_failures(out, Failures.sum(ask.failures))
    atomic_write_text(out.with_suffix(".json"), json.dumps({"generated_tokens": ask.tokens}) + "\n")
    ESTIMATED_VALUES.write(out, value_rows(records, given=given, drop_one_sided=config.prm.mixed_only).rows)
    end_observations(ask.policy)
    report_progress(Progress(stage=stage, items=len(problems), tokens=ask.tokens))


class _Estimator:
    """Asks the policy how prefixes may end, and counts the tokens."""

    def __init__(self, config: Config, models: Models, verifier: OpenVerifier, *, num_rollouts: int, out: Path) -> None:
        self.tokens, self.failures, self._num_rollouts = 0, list[Failures](), num_rollouts
        self._config, self._round, self._verifier = config, models.provenance.round, verifier
        self._renderer = build_renderer(config, models.policy)
        self.policy = build_policy(config, worker_models(), models.policy)
        keep_observations(self.policy, out)

    def __call__(self, prefixes: Sequence[Prefix]) -> list[Estimate]:
        config = self._config
        estimates = estimate_prefixes(
            self.policy,
            self._renderer,
            self._verifier,
            prefixes,
            num_rollouts=self._num_rollouts,
            seed=derive_seed(config.run.seed, "estimates", self._round),
            max_steps=config.search.max_depth,
            max_step_tokens=step_limit(config.search, resolve_method("majority")),
        )
        self.tokens += sum(estimate.tokens for estimate in estimates)
        self.failures += [estimate.failures for estimate in estimates]
        return estimates
