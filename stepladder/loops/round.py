"""One round: search -> label -> train both models -> evaluate -> gate. Round 0 is the warm-up: train on solved problems, evaluate.

Each stage lists what it must write, leaves out what exists, and hands the rest to the workers.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepladder.files import atomic_write_text
from stepladder.loops import evaluate, jobs
from stepladder.loops.config import Config
from stepladder.loops.gate import GateDecision, gate_policy, gate_prm
from stepladder.loops.launch import run_launched
from stepladder.loops.progress import ProgressDisplay
from stepladder.loops.rundir import RunDir
from stepladder.loops.workers import Task, WorkerPool
from stepladder.types import LabelledProblem, Provenance, derive_seed

Summary = dict[str, Any]

_EVALUATIONS = (("held_out", "greedy"), ("held_out", "samples"), ("test", "greedy"), ("test", "samples"), ("test", "search"))
"""Split and kind of what is measured after each round: everything on test, what the gates need on held-out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundContext:
    """What every round of a run shares."""

    config: Config
    """The resolved configuration."""
    run: RunDir
    """Where everything is written."""
    problems: dict[str, list[LabelledProblem]]
    """The splits ``train``, ``held_out`` and ``test``."""
    pool: WorkerPool
    """Where jobs run."""
    display: ProgressDisplay
    """Where progress is shown."""

    def models(self, number: int, policy_version: int, prm_version: int | None) -> jobs.Models:
        """Return the models of a job with their provenance."""
        return jobs.Models(
            policy=self.run.policy_source(policy_version, self.config),
            prm=None if prm_version is None else str(self.run.prm(prm_version)),
            provenance=Provenance(
                round=number,
                policy_version=policy_version,
                scorer_version=prm_version,
                seed=self.config.run.seed,
                config_hash=self.config.hash(),
                renderer_hash="",
            ),
        )

    def shards(self, split: str) -> list[list[LabelledProblem]]:
        """Return a split cut into shards, in file order."""
        problems, size = self.problems[split], self.config.run.shard_size
        return [problems[begin : begin + size] for begin in range(0, len(problems), size)]

    @contextmanager
    def stage(self, number: int, name: str) -> Iterator[None]:
        """Log when a stage began and how long it took."""
        begin = time.monotonic()
        self.run.log_event("stage_begin", round=number, stage=name)
        yield
        self.run.log_event("stage_end", round=number, stage=name, seconds=round(time.monotonic() - begin, 2))

    def work(self, tasks: list[Task], totals: Mapping[str, int | None]) -> list[Any]:
        """Run jobs in the workers under a progress display."""
        if not tasks:
            return []
        with self.display.stages(totals) as on_progress:
            return self.pool.run(tasks, on_progress=on_progress)

    def train(self, task: Task, totals: Mapping[str, int | None]) -> Any:
        """Run a training: in a worker, or in processes of its own, to which the workers leave the machine."""
        if not self.config.training.launched:
            return self.work([task], totals)[0]
        self.pool.rest()
        with self.display.stages(totals) as on_progress:
            return run_launched(task, self.config.training, threads=self.config.run.threads, on_progress=on_progress)


def run_round(context: RoundContext, number: int) -> dict[str, Any]:
    """Run what is missing of a round and return its figures, ``seconds`` excepted."""
    if number == 0:
        training = _warm_up(context)
        return _judge(context, 0, best_policy=0, best_prm=None, training=training)
    before = context.run.row(number - 1)
    assert before is not None, "rounds run in order"
    best_policy, best_prm = before["best_policy"], before["best_prm"]
    search = _search(context, number, best_policy, best_prm)
    labels = _label(context, number)
    training = {"policy": _train(context, number, best_policy)}
    rollouts = _roll_out(context, number)
    training["prm"] = _train_prm(context, number, best_policy, best_prm)
    search["rollout_tokens"] = rollouts["generated_tokens"] if rollouts else 0
    return _judge(context, number, best_policy=best_policy, best_prm=best_prm, training=training, search=search, labels=labels)


def _warm_up(context: RoundContext) -> dict[str, Any]:
    """Fine-tune the base model on solved problems; without any, the base model is policy version 0 as it stands."""
    solutions, out = context.config.warmup.solutions, context.run.policy(0)
    if solutions is None:
        return {}
    arguments = {"config": context.config, "solutions": Path(solutions), "out": out, "stage": "warm-up"}
    return {"policy": {"warmup": _trained(context, 0, "policy", Task(function=jobs.warm_up, arguments=arguments), {"warm-up": None})}}


def _search(context: RoundContext, number: int, policy_version: int, prm_version: int | None) -> dict[str, Any]:
    """Search the training problems, shard by shard."""
    models = context.models(number, policy_version, prm_version)
    _over_shards(context, number, jobs.search_shard, "trees", models, stage="search")
    return evaluate.search_figures(context.run.shards("trees", rounds=[number]))


def _roll_out(context: RoundContext, number: int) -> dict[str, Any] | None:
    """Sample solutions of the training problems with the round's new policy, for the PRM to learn from."""
    run, config = context.run, context.config
    if not (config.prm.enabled and config.prm.rollouts and run.policy(number).exists()):
        return None
    _over_shards(context, number, jobs.roll_out_shard, "rollouts", context.models(number, number, None), stage="rollouts")
    tasks = [
        Task(
            function=jobs.label_rollouts,
            arguments={
                "config": config,
                "rollouts": run.shard(number, "rollouts", index),
                "values": run.shard(number, "rollout-values", index),
            },
        )
        for index in range(len(context.shards("train")))
        if not run.shard(number, "rollout-values", index).exists()
    ]
    context.work(tasks, {})
    return evaluate.search_figures(run.shards("rollouts", rounds=[number]))


def _over_shards(context: RoundContext, number: int, function: Callable[..., None], kind: str, models: jobs.Models, *, stage: str) -> None:
    """Run a job for every training shard whose file is missing."""
    label, tasks, total = f"round {number}: {stage}", [], 0
    for index, problems in enumerate(context.shards("train")):
        out = context.run.shard(number, kind, index)
        if not out.exists():
            arguments = {"config": context.config, "models": models, "problems": problems, "out": out, "stage": label}
            tasks.append(Task(function=function, arguments=arguments))
            total += len(problems)
    with context.stage(number, stage):
        context.work(tasks, {label: total})


def _label(context: RoundContext, number: int) -> dict[str, Any]:
    """Turn the round's trees into training rows; return the counts, summed over shards."""
    path, run = context.run.round(number) / "labels.json", context.run
    if not path.exists():
        tasks = [
            Task(
                function=jobs.label_shard,
                arguments={
                    "config": context.config,
                    "trees": run.shard(number, "trees", index),
                    "traces": run.shard(number, "traces", index),
                    "pairs": run.shard(number, "pairs", index),
                    "values": run.shard(number, "values", index),
                },
            )
            for index in range(len(context.shards("train")))
        ]
        with context.stage(number, "label"):
            counts = context.work(tasks, {})
        atomic_write_text(path, json.dumps(_sum_counts(counts), indent=2) + "\n")
    return _read_json(path)


def _sum_counts(shards: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        kind: {
            "kept": sum(shard[kind]["kept"] for shard in shards),
            "dropped_by_reason": dict(sum((Counter(shard[kind]["dropped_by_reason"]) for shard in shards), Counter())),
        }
        for kind in ("traces", "pairs", "values")
    }


def _train(context: RoundContext, number: int, policy_version: int) -> Summary:
    """Train the policy on the data of the configured rounds; without any data it is left as it is."""
    config, run = context.config, context.run
    rounds = _data_rounds(config, number)
    traces, pairs = (run.shards(kind, rounds=rounds) for kind in ("traces", "pairs"))
    if not jobs.has_rows(traces + pairs):
        return {}
    stage = f"round {number}: policy"
    arguments = {
        "config": config,
        "seed": derive_seed(config.run.seed, "train", number),
        "start": run.policy_source(policy_version if config.start_from == "best" else 0, config),
        "traces": traces,
        "pairs": pairs,
        "out": run.policy(number),
        "stage": stage,
    }
    totals = {f"{stage} SFT": None, f"{stage} preferences": None}
    return _trained(context, number, "policy", Task(function=jobs.train_policy, arguments=arguments), totals)


def _train_prm(context: RoundContext, number: int, policy_version: int, prm_version: int | None) -> Summary:
    """Train the PRM on the value rows of the configured rounds, the rollouts' if there are any; without any data there is none."""
    config, run = context.config, context.run
    rounds = list(range(1, number + 1)) if config.prm.data == "accumulate" else [number]
    values = run.shards("rollout-values" if config.prm.rollouts else "values", rounds=rounds)
    if not config.prm.enabled or not jobs.has_rows(values):
        return {}
    stage = f"round {number}: PRM"
    policy = run.policy_source(number if run.policy(number).exists() else policy_version, config)
    arguments = {
        "config": config,
        "seed": derive_seed(config.run.seed, "train", number),
        "start": str(run.prm(prm_version)) if config.prm.start == "last" and prm_version is not None else config.prm.model or policy,
        "values": values,
        "out": run.prm(number),
        "stage": stage,
    }
    return _trained(context, number, "prm", Task(function=jobs.train_prm, arguments=arguments), {stage: None})


def _trained(context: RoundContext, number: int, name: str, task: Task, totals: Mapping[str, int | None]) -> Summary:
    """Run a training whose model is missing, and keep its summary beside the model."""
    folder = context.run.round(number) / "models"
    summary = folder / f"{name}.json"
    if not (folder / name).exists() or not summary.exists():
        # A model without its summary is trained again: it comes out the same, and the round's figures stay complete.
        shutil.rmtree(folder / name, ignore_errors=True)
        with context.stage(number, f"train {name}"):
            done = context.train(task, totals)
        atomic_write_text(summary, json.dumps(done, indent=2) + "\n")
        shutil.rmtree(folder / "sft", ignore_errors=True)
    return _read_json(summary)


def _data_rounds(config: Config, number: int) -> list[int]:
    """Rounds whose data a round trains on."""
    first = {"accumulate": 1, "replace": number, "window": max(1, number - config.labels.window + 1)}[config.labels.data]
    return list(range(first, number + 1))


def _judge(
    context: RoundContext,
    number: int,
    *,
    best_policy: int,
    best_prm: int | None,
    training: dict[str, Any],
    search: dict[str, Any] | None = None,
    labels: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate the round's candidates, decide on held-out problems which models are best now, and return the round's figures."""
    run = context.run
    candidate = number if run.policy(number).exists() or number == 0 else best_policy
    candidate_prm = number if run.prm(number).exists() else best_prm
    with context.stage(number, "evaluate"):
        _evaluate(context, number, policy=candidate, prm=candidate_prm, best_prm=best_prm)
    figures = {split: evaluate.split_figures(run.round(number) / "evaluation" / split) for split in ("held_out", "test")}
    policy_gate = _policy_decision(context, number, candidate, best_policy, figures["held_out"])
    prm_gate = _prm_decision(context, number, candidate_prm, best_prm, figures["held_out"])
    return {
        "round": number,
        "accepted": policy_gate.accepted,
        "accepted_reason": policy_gate.reason,
        "prm_accepted": prm_gate.accepted,
        "prm_accepted_reason": prm_gate.reason,
        "best_policy": candidate if policy_gate.accepted else best_policy,
        "best_prm": candidate_prm if prm_gate.accepted else best_prm,
        "policy_version": candidate,
        "scorer_version": candidate_prm,
        **evaluate.headline(figures["test"]),
        "held_out": figures["held_out"],
        "test": figures["test"],
        "generated_tokens": evaluate.all_tokens(search, figures),
        "search": search,
        "labels": labels,
        "training": training,
    }


def _evaluate(context: RoundContext, number: int, *, policy: int, prm: int | None, best_prm: int | None) -> None:
    """Run the evaluations that are missing: everything on test, what the gates need on held-out."""
    wanted = [(split, kind, kind, prm) for split, kind in _EVALUATIONS]
    if best_prm is not None and best_prm != prm:
        # The same seeds give the same samples, now scored by the PRM that the new one has to match.
        wanted.append(("held_out", "samples", "samples-best-prm", best_prm))
    tasks, totals = [], {}
    for split, kind, folder, scorer in wanted:
        for index, problems in enumerate(context.shards(split)):
            out = context.run.round(number) / "evaluation" / split / folder / f"shard-{index:04d}.json"
            if out.exists():
                continue
            stage = f"round {number}: {split} {folder}"
            totals[stage] = totals.get(stage, 0) + len(problems)
            arguments = {
                "config": context.config,
                "models": context.models(number, policy, scorer),
                "problems": problems,
                "kind": kind,
                "out": out,
                "stage": stage,
            }
            tasks.append(Task(function=jobs.evaluate_shard, arguments=arguments))
    context.work(tasks, totals)


def _policy_decision(context: RoundContext, number: int, candidate: int, best: int, held_out: dict[str, Any]) -> GateDecision:
    if number == 0:
        return GateDecision(accepted=True, reason="the starting policy")
    if candidate == best:
        return GateDecision(accepted=False, reason="no training data, the policy is unchanged")
    before = context.run.row(best)
    assert before is not None, "the best policy's round is finished"
    return gate_policy(held_out["pass_at_1"], before["held_out"]["pass_at_1"], max_drop=context.config.gate.max_drop)


def _prm_decision(context: RoundContext, number: int, candidate: int | None, best: int | None, held_out: dict[str, Any]) -> GateDecision:
    if candidate is None or candidate == best:
        return GateDecision(accepted=False, reason="no PRM was trained")
    return gate_prm(held_out["prm_within_problem_auc"], held_out["best_prm_within_problem_auc"], max_drop=context.config.gate.max_drop)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
