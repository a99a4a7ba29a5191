"""One round: search -> label -> train both models -> evaluate -> gate. Round 0 is the warm-up: train on solved problems, evaluate.

Each stage lists what it must write, leaves out what exists, and hands the rest to the workers.
"""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepladder.data.labels.rstar_math import StepPairs
from stepladder.files import atomic_write_text
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import RecentRounds
from stepladder.loops.config.training import RolloutTarget
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.launch import run_launched
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.workers import Task, WorkerPool
from stepladder.loops.stages import figures as evaluate
from stepladder.loops.stages import jobs
from stepladder.loops.stages.failures import check_stage, failure_figures
from stepladder.loops.stages.gate import GateDecision, fails, fall_back, gate_policy, gate_prm
from stepladder.loops.stages.labelling import LabelSources
from stepladder.types import LabelledProblem, Provenance, derive_seed

Summary = dict[str, Any]

_EVALUATIONS = (("held_out", "greedy"), ("held_out", "samples"), ("test", "greedy"), ("test", "samples"), ("test", "search"))
"""Split and kind of what is measured after each round: everything on test, what the gates need on held-out."""


_LABELLED = ("traces", "pairs", "graded", "values", "step-pairs")
"""Kinds of training rows that trees may give."""


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
            prm=None if prm_version is None else self.run.prm_source(prm_version, self.config),
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
    def stage(self, number: int, name: str) -> Iterator[dict[str, Any]]:
        """Log when a stage began, how long it took, and what is put into the dictionary that is yielded."""
        begin, facts = time.monotonic(), dict[str, Any]()
        self.run.log_event("stage_begin", round=number, stage=name)
        yield facts
        self.run.log_event("stage_end", round=number, stage=name, seconds=round(time.monotonic() - begin, 2), **facts)

    def failed_samples(self, shards: Sequence[Path], place: str) -> dict[str, Any]:
        """Show what failed in a stage and return it for the stage's event; raises as ``check_stage`` does."""
        failures = check_stage(shards, place)
        if not failures.num_failed:
            return {}
        self.display.say(f"{place}: {failures.num_failed} samples failed, the first with: {failures.first_message}")
        return {"failed_samples": failures.num_failed, "first_failure": failures.first_message}

    def work(self, tasks: list[Task], totals: Mapping[str, int | None]) -> list[Any]:
        """Run jobs in the workers under a progress display."""
        if not tasks:
            return []
        with self.display.stages(totals) as on_progress:
            return self.pool.run(tasks, on_progress=on_progress)

    def train(self, tasks: list[Task], totals: Mapping[str, int | None]) -> list[Any]:
        """Run trainings: in workers, or one after the other in processes of their own, to which the workers leave the machine."""
        if not self.config.training.launched:
            return self.work(tasks, totals)
        self.pool.rest()
        with self.display.stages(totals) as on_progress:
            return [run_launched(task, self.config.training, threads=self.config.run.threads, on_progress=on_progress) for task in tasks]


def run_round(context: RoundContext, number: int) -> dict[str, Any]:
    """Run what is missing of a round and return its figures, ``seconds`` excepted."""
    if number == 0:
        training = _warm_up(context)
        given = 0 if context.config.prm.enabled and context.config.prm.start == "fixed" else None
        return _judge(context, 0, best_policy=0, best_prm=given, training=training)
    before = context.run.row(number - 1)
    assert before is not None, "rounds run in order"
    best_policy, best_prm = before["best_policy"], before["best_prm"]
    search = _search(context, number, best_policy, best_prm)
    labels = _label(context, number, best_policy, best_prm)
    _label_imported(context, best_policy)
    training = {"policy": _train(context, number, best_policy)}
    rollouts = _roll_out(context, number)
    estimated_tokens = _estimate(context, number, best_policy)
    training["prm"] = _train_prm(context, number, best_policy, best_prm)
    search["rollout_tokens"] = (rollouts["generated_tokens"] if rollouts else 0) + estimated_tokens
    return _judge(context, number, best_policy=best_policy, best_prm=best_prm, training=training, search=search, labels=labels)


def _warm_up(context: RoundContext) -> dict[str, Any]:
    """Fine-tune the base model on solved problems; without any, the base model is policy version 0 as it stands."""
    solutions, out = context.config.warmup.solutions, context.run.policy(0)
    if solutions is None:
        return {}
    arguments = {"config": context.config, "solutions": Path(solutions), "out": out, "stage": "warm-up"}
    return {"policy": {"warmup": _trained(context, 0, "policy", [Task(function=jobs.warm_up, arguments=arguments)], {"warm-up": None})}}


def _search(context: RoundContext, number: int, policy_version: int, prm_version: int | None) -> dict[str, Any]:
    """Search the training problems, shard by shard."""
    models = context.models(number, policy_version, prm_version)
    _over_shards(context, number, jobs.search_shard, "trees", models, stage="search")
    return evaluate.search_figures(context.run.shards("trees", rounds=[number]))


def _roll_out(context: RoundContext, number: int) -> dict[str, Any] | None:
    """Sample solutions of the training problems with the round's new policy, for the PRM to learn from."""
    run, config = context.run, context.config
    if not (_trains_prm(config) and config.prm.rollouts and run.policy(number).exists()):
        return None
    _over_shards(context, number, jobs.roll_out_shard, "rollouts", context.models(number, number, None), stage="rollouts")
    tasks = [
        Task(
            function=jobs.label_rollouts,
            arguments={
                "config": config,
                "rollouts": run.shard(number, "rollouts", index),
                "values": run.shard(number, "rollout-values", index),
                "compared": run.shard(number, "rollout-step-pairs", index),
            },
        )
        for index in range(len(context.shards("train")))
        if not run.shard(number, "rollout-values", index).exists()
    ]
    context.work(tasks, {})
    return evaluate.search_figures(run.shards("rollouts", rounds=[number]))


def _estimate(context: RoundContext, number: int, policy_version: int) -> int:
    """Ask the newest policy from every prefix of the round's trees, or of its rollouts, how it may end; return the tokens that took."""
    run, config = context.run, context.config
    if not (_trains_prm(config) and isinstance(config.prm.target, RolloutTarget)):
        return 0
    kind = "rollouts" if run.shards("rollouts", rounds=[number]) else "trees"
    models = context.models(number, number if run.policy(number).exists() else policy_version, None)
    _over_shards(context, number, jobs.estimate_shard, "estimated-values", models, stage="estimates", source=("trees", kind))
    return sum(_read_json(path.with_suffix(".json"))["generated_tokens"] for path in run.shards("estimated-values", rounds=[number]))


def _trains_prm(config: Config) -> bool:
    return config.prm.enabled and config.prm.start != "fixed"


def _over_shards(
    context: RoundContext,
    number: int,
    function: Callable[..., None],
    kind: str,
    models: jobs.Models,
    *,
    stage: str,
    source: tuple[str, str] | None = None,
) -> None:
    """Run a job for every training shard whose file is missing.

    Args:
        context: The run.
        number: The round.
        function: The job.
        kind: What it writes.
        models: Its models.
        stage: Name of the work.
        source: Argument of the job, and the kind of shard of this round that it is given there.
    """
    label, tasks, total, outs = f"round {number}: {stage}", [], 0, []
    for index, problems in enumerate(context.shards("train")):
        out = context.run.shard(number, kind, index)
        outs.append(out)
        if not out.exists():
            arguments = {"config": context.config, "models": models, "problems": problems, "out": out, "stage": label}
            arguments |= {} if source is None else {source[0]: context.run.shard(number, source[1], index)}
            tasks.append(Task(function=function, arguments=arguments))
            total += len(problems)
    with context.stage(number, stage) as facts:
        context.work(tasks, {label: total})
        facts |= context.failed_samples(outs, label)


def _label(context: RoundContext, number: int, policy_version: int, prm_version: int | None) -> dict[str, Any]:
    """Turn the round's trees into training rows; return the counts, summed over shards."""
    path, run, config = context.run.round(number) / "labels.json", context.run, context.config
    if not path.exists():
        tasks = [
            Task(
                function=jobs.label_shard,
                arguments={
                    "config": config,
                    "sources": LabelSources(
                        trees=run.shard(number, "trees", index),
                        earlier=tuple(run.shard(earlier, "trees", index) for earlier in range(1, number)),
                        policy=run.policy_source(policy_version, config),
                        earlier_prm=earlier_prm(run, config, number, prm_version),
                    ),
                    "out": {kind: run.shard(number, kind, index) for kind in _LABELLED},
                },
            )
            for index in range(len(context.shards("train")))
        ]
        with context.stage(number, "label"):
            counts = context.work(tasks, {})
        atomic_write_text(path, json.dumps(_sum_counts(counts), indent=2) + "\n")
    return _read_json(path)


def _label_imported(context: RoundContext, policy_version: int) -> None:
    """Turn imported trees into training rows, which lie beside them, with the counts of each data set."""
    for folder in sorted({path.parent.parent for path in context.run.imported("trees")}):
        if (folder / "labels.json").exists():
            continue
        tasks = [
            Task(
                function=jobs.label_shard,
                arguments={
                    "config": context.config,
                    "sources": LabelSources(trees=trees, policy=context.run.policy_source(policy_version, context.config)),
                    "out": {kind: folder / kind / trees.name for kind in _LABELLED},
                },
            )
            for trees in sorted((folder / "trees").glob("shard-*.parquet"))
        ]
        counts = context.work(tasks, {})
        atomic_write_text(folder / "labels.json", json.dumps(_sum_counts(counts), indent=2) + "\n")


def earlier_prm(run: RunDir, config: Config, number: int, prm_version: int | None) -> str | None:
    """Return the best PRM before the one that guided a round's search; None without one, or where nothing asks for its opinion."""
    if not config.preference.reads_agreement:
        return None
    best = [row["best_prm"] for row in run.rows()[:number]]
    earlier = [version for version in best if version not in (None, prm_version)]
    return run.prm_source(earlier[-1], config) if earlier else None


def _sum_counts(shards: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        kind: {
            "kept": sum(shard[kind]["kept"] for shard in shards),
            "dropped_by_reason": dict(sum((Counter(shard[kind]["dropped_by_reason"]) for shard in shards), Counter())),
        }
        for kind in (shards[0] if shards else ())
    }


def _train(context: RoundContext, number: int, policy_version: int) -> Summary:
    """Train the policy on the data of the configured rounds; without any data it is left as it is."""
    config, run = context.config, context.run
    rounds = _data_rounds(config, number)
    rows = {kind: run.shards(kind, rounds=rounds) + run.imported(kind) for kind in jobs.policy_kinds(config)}
    if not jobs.has_rows([path for paths in rows.values() for path in paths]):
        return {}
    stage = f"round {number}: policy"
    arguments = {
        "config": config,
        "seed": derive_seed(config.run.seed, "train", number),
        "start": run.policy_source(policy_version if config.start_from == "best" else 0, config),
        "base": run.policy_source(0, config),
        "rows": rows,
        "out": run.policy(number),
        "stage": stage,
    }
    totals = {f"{stage} SFT": None, f"{stage} preferences": None}
    return _trained(context, number, "policy", [Task(function=jobs.train_policy, arguments=arguments)], totals)


def _train_prm(context: RoundContext, number: int, policy_version: int, prm_version: int | None) -> Summary:
    """Train the PRM on the value rows of the configured rounds, the rollouts' if there are any; without any data there is none."""
    config, run = context.config, context.run
    rounds = list(range(1, number + 1)) if config.prm.data == "accumulate" else [number]
    kind = learned_kind(config)
    values = run.shards(kind, rounds=rounds) + (run.imported("values") if kind.endswith("values") else [])
    if not _trains_prm(config) or not jobs.has_rows(values):
        return {}
    stage = f"round {number}: PRM"
    policy = run.policy_source(number if run.policy(number).exists() else policy_version, config)
    last = run.prm(prm_version) if config.prm.start == "last" and prm_version is not None else None
    tasks = []
    for member in range(config.prm.ensemble):
        out, begun, name = run.prm(number), last, f"member-{member:02d}"
        if config.prm.ensemble > 1:
            out, begun = out / name, None if last is None else last / name
        seed = derive_seed(config.run.seed, "train", number)
        start = config.prm.model or policy if begun is None else str(begun)
        arguments = {
            "config": config,
            "seed": derive_seed(seed, name) if member else seed,
            "start": start,
            "values": values,
            "out": out,
            "stage": stage,
            # Seen from the model, so that a run can be moved.
            "reference": os.path.relpath(start, out) if Path(start).resolve().is_relative_to(run.root.resolve()) else start,
        }
        tasks.append(Task(function=jobs.train_prm, arguments=arguments))
    return _trained(context, number, "prm", tasks, {stage: None})


def learned_kind(config: Config) -> str:
    """Return the kind of shard that the PRM learns from."""
    if isinstance(config.prm.target, RolloutTarget):
        return "estimated-values"
    kind = "step-pairs" if isinstance(config.prm.target, StepPairs) else "values"
    return f"rollout-{kind}" if config.prm.rollouts else kind


def _trained(context: RoundContext, number: int, name: str, tasks: list[Task], totals: Mapping[str, int | None]) -> Summary:
    """Run a training whose summary is missing, and keep it beside the model; of the models of an ensemble there is one summary."""
    folder = context.run.round(number) / "models"
    summary = folder / f"{name}.json"
    if not summary.exists() or not ((folder / name).exists() or "failed" in _read_json(summary)):
        # A model without its summary is trained again: it comes out the same, and the round's figures stay complete.
        shutil.rmtree(folder / name, ignore_errors=True)
        with context.stage(number, f"train {name}"):
            done = _ensemble_summary(context.train(tasks, totals))
        if "failed" in done:
            shutil.rmtree(folder / name, ignore_errors=True)
        atomic_write_text(summary, json.dumps(done, indent=2) + "\n")
        shutil.rmtree(folder / "sft", ignore_errors=True)
    return _read_json(summary)


def _ensemble_summary(members: list[Summary]) -> Summary:
    """Return the summary of one model, or of several: sums, means of the losses, and the members' own."""
    failed = next((member for member in members if "failed" in member), None)
    if failed is not None or len(members) == 1:
        return failed or members[0]
    sums = {name: sum(member[name] for member in members) for name in ("updates", "rows", "tokens")}
    means = {name: sum(member[name] for member in members) / len(members) for name in ("first_loss", "last_loss", "mean_loss")}
    dropped = sum((Counter(member["dropped_by_reason"]) for member in members), Counter())
    return {**sums, **means, "dropped_by_reason": dict(dropped), "layout": members[0]["layout"], "members": members}


def _data_rounds(config: Config, number: int) -> list[int]:
    """Rounds whose data a round trains on."""
    # On-policy rows of a round are already made from the trees of all rounds that count.
    data = config.labels.data
    first = max(1, number - data.window + 1) if isinstance(data, RecentRounds) else 1 if data.type == "accumulate" else number
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
    with context.stage(number, "evaluate") as facts:
        facts |= _evaluate(context, number, policy=candidate, prm=candidate_prm, best_prm=best_prm)
    figures = {split: evaluate.split_figures(run.round(number) / "evaluation" / split) for split in ("held_out", "test")}
    policy_gate = _policy_decision(context, number, candidate, best_policy, figures["held_out"])
    prm_gate = _prm_decision(context, candidate_prm, best_prm, figures["held_out"], failed=(training.get("prm") or {}).get("failed"))
    kept_prm, kept_reason = (
        (candidate_prm, "") if prm_gate.accepted else _kept_prm(context, number, candidate, best_prm, figures["held_out"])
    )
    return {
        "round": number,
        "accepted": policy_gate.accepted,
        "accepted_reason": policy_gate.reason,
        "prm_accepted": prm_gate.accepted,
        "prm_accepted_reason": prm_gate.reason + kept_reason,
        "best_policy": candidate if policy_gate.accepted else best_policy,
        "best_prm": kept_prm,
        "policy_version": candidate,
        "scorer_version": candidate_prm,
        **evaluate.headline(figures["test"]),
        "held_out": figures["held_out"],
        "test": figures["test"],
        "generated_tokens": evaluate.all_tokens(search, figures),
        "search": search,
        "labels": labels,
        "training": training,
        **failure_figures(run.round(number)),
    }


def _evaluate(context: RoundContext, number: int, *, policy: int, prm: int | None, best_prm: int | None) -> dict[str, Any]:
    """Run the evaluations that are missing (everything on test, what the gates need on held-out), and return what failed in them."""
    wanted = [(split, kind, kind, prm) for split, kind in _EVALUATIONS]
    if best_prm is not None and best_prm != prm:
        # The same seeds give the same samples, now scored by the PRM that the new one has to match.
        wanted.append(("held_out", "samples", "samples-best-prm", best_prm))
    return _work_evaluations(context, number, policy, wanted)


def _work_evaluations(context: RoundContext, number: int, policy: int, wanted: list[tuple[str, str, str, int | None]]) -> dict[str, Any]:
    """Run what is missing of some evaluations, each a split, a kind, the name of its folder, and the PRM that scores.

    Returns what failed in them, for the stage's event.
    """
    tasks, totals, outs = [], {}, []
    for split, kind, folder, scorer in wanted:
        for index, problems in enumerate(context.shards(split)):
            out = context.run.round(number) / "evaluation" / split / folder / f"shard-{index:04d}.json"
            outs.append(out)
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
    return context.failed_samples(outs, f"round {number}: evaluate")


def _policy_decision(context: RoundContext, number: int, candidate: int, best: int, held_out: dict[str, Any]) -> GateDecision:
    if number == 0:
        return GateDecision(accepted=True, reason="the starting policy")
    if candidate == best:
        return GateDecision(accepted=False, reason="no training data, the policy is unchanged")
    before = context.run.row(best)
    assert before is not None, "the best policy's round is finished"
    return gate_policy(held_out["pass_at_1"], before["held_out"]["pass_at_1"], max_drop=context.config.gate.max_drop)


def _prm_decision(
    context: RoundContext, candidate: int | None, best: int | None, held_out: dict[str, Any], *, failed: str | None
) -> GateDecision:
    if failed is not None:
        return GateDecision(accepted=False, reason=f"training failed: {failed}")
    if context.config.prm.start == "fixed":
        return GateDecision(accepted=False, reason="the PRM is given")
    if candidate is None or candidate == best:
        return GateDecision(accepted=False, reason="no PRM was trained")
    return gate_prm(held_out["prm_within_problem_auc"], held_out["best_prm_within_problem_auc"], max_drop=context.config.gate.max_drop)


def _kept_prm(context: RoundContext, number: int, policy: int, best: int | None, held_out: dict[str, Any]) -> tuple[int | None, str]:
    """Return the PRM that guides the next search when the round brought none, and a clause that says so.

    It is the best one so far, unless that ranks no better than chance on the new policy's samples: then the best of those accepted before.
    """
    measured = held_out["best_prm_within_problem_auc"]
    auc = held_out["prm_within_problem_auc"] if measured is None else measured
    if not best or not fails(auc):
        return best, "" if not best else f"; the PRM of round {best} stays"
    accepted = [row["round"] for row in context.run.rows() if row["prm_accepted"] and row["round"] != best]
    with context.stage(number, "evaluate earlier PRMs") as facts:
        wanted = [("held_out", "samples", f"samples-prm-{earlier}", earlier) for earlier in accepted]
        facts |= _work_evaluations(context, number, policy, wanted)
    folder = context.run.round(number) / "evaluation" / "held_out"
    chosen = fall_back({earlier: evaluate.folder_auc(folder / f"samples-prm-{earlier}") for earlier in accepted})
    went = f"; the PRM of round {best} has {auc:.3f} on the new policy's solutions"
    return chosen, f"{went} and is given up" + (", the search goes on without one" if chosen is None else f" for that of round {chosen}")


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
