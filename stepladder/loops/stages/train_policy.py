"""Train the policy: on solved problems in the warm-up, then in every round on right solutions, on preferences and on advantages."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from stepladder.data.datasets.problems import load_seed_solutions
from stepladder.data.labels.solution_traces import trace_from_solution
from stepladder.loops.assembly.policies import build_renderer, step_format
from stepladder.loops.assembly.training import build_gradient_objective, build_preference_objective, new_prm_spec, train_settings
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import AllRounds, RecentRounds, RecentVersions
from stepladder.loops.runs.results import PolicyTraining, TrainingSummary
from stepladder.loops.runs.trained_models import check_trained, digest_file
from stepladder.loops.runs.workers import Task, worker_models
from stepladder.loops.stages.context import RoundContext
from stepladder.loops.stages.kinds import (
    ADVANTAGES,
    GRADED,
    PAIRS,
    SOFT_TARGETS,
    TRACES,
    VALUES,
    RowKind,
    gradient_kind,
    has_rows,
    preference_kind,
    soft_kind,
    trace_kind,
    trains_two_heads,
)
from stepladder.loops.stages.prm_rows import prm_shards
from stepladder.loops.stages.trainings import TrainingProgress, finished_training, replayed, summary_of
from stepladder.policy.prompts import PromptRenderer
from stepladder.prm.sources import VALUE_HEAD_FOLDER
from stepladder.types import Provenance, Trace, derive_seed

if TYPE_CHECKING:
    from stepladder.lm.training_rows import Replay


def warm_up(context: RoundContext) -> PolicyTraining:
    """Fine-tune the base model on solved problems. Without any, the unchanged base model is policy version 0."""
    solutions, out = context.config.warmup.solutions, context.run.policy(0)
    if solutions is None:
        return PolicyTraining()
    task = Task.of(warm_up_policy, config=context.config, solutions=Path(solutions), out=out, stage="warm-up")

    def train() -> TrainingSummary:
        with context.stage(0, "train policy"):
            return context.train([task], {"warm-up": None})[0]

    return PolicyTraining(warmup=finished_training(out.with_suffix(".json"), [out], train=train, read=TrainingSummary.from_dict))


def warm_up_policy(*, config: Config, solutions: Path, out: Path, stage: str) -> TrainingSummary:
    """Fine-tune the base policy on solved problems."""
    from stepladder.policy.fine_tuning import train_sft

    renderer = build_renderer(config, config.policy.model)
    report = train_sft(
        config.policy.model,
        _solved_examples(config, renderer, solutions),
        out,
        train_settings(config.warmup.train, seed=config.run.seed, config=config),
        renderer_hash=renderer.hash,
        trust_remote_code=config.policy.trust_remote_code,
        on_progress=TrainingProgress(stage),
    )
    step_format(config).save(out)
    return summary_of(report)


def _solved_examples(config: Config, renderer: PromptRenderer, solutions: Path) -> list[Trace]:
    provenance = Provenance(
        round=0, policy_version=0, scorer_version=None, seed=config.run.seed, config_hash=config.hash(), renderer_hash=renderer.hash
    )
    return [trace_from_solution(solution, renderer=renderer, provenance=provenance) for solution in load_seed_solutions(solutions)]


def learns_policy(context: RoundContext, number: int) -> bool:
    """Say whether a round has rows for the policy to learn from."""
    return has_rows(policy_shards(context, number))


def policy_shards(context: RoundContext, number: int) -> list[Path]:
    """Return all shards that a round's policy learns from, of its own, earlier rounds' and imported ones.

    Raises:
        CheckpointError: If a shard of an earlier round is gone.
    """
    config = context.config
    kinds = (trace_kind(config), soft_kind(config), preference_kind(config), gradient_kind(config))
    return [path for kind in kinds for path in _shards(context, number, kind)]


class _Stage(NamedTuple):
    """One of the trainings of a round's policy."""

    name: Literal["sft", "preference", "gradient"]
    """Its name, that of its section."""
    shown: str
    """Its name in the progress display."""
    task: Callable[..., Task[TrainingSummary]]
    """Makes its task, given ``start``, ``out`` and ``stage``."""


def train_policy(context: RoundContext, number: int, best_policy: int) -> PolicyTraining:
    """Train the policy on the data of the configured rounds; without any data it is left as it is."""
    stages = _stages(context, number)
    if not stages:
        return PolicyTraining()
    out, shown = context.run.policy(number), f"round {number}: policy"

    def train_stage(stage: _Stage, start: str, place: Path) -> TrainingSummary:
        title = f"{shown} {stage.shown}"
        return context.train([stage.task(start=start, out=place, stage=title)], {title: None})[0]

    def train() -> PolicyTraining:
        begun, done = _start(context, number, best_policy), dict[str, TrainingSummary]()
        with context.stage(number, "train policy"):
            for stage in stages[:-1]:
                # Between two trainings the model has a place of its own, with a summary of its own: a stop loses neither.
                between = out.with_name(stage.name)
                once = partial(train_stage, stage, begun, between)
                done[stage.name] = finished_training(between.with_suffix(".json"), [between], train=once, read=TrainingSummary.from_dict)
                check_trained(between)
                begun = str(between)
            done[stages[-1].name] = train_stage(stages[-1], begun, out)
        return PolicyTraining(**done)

    trained = finished_training(out.with_suffix(".json"), [out], train=train, read=PolicyTraining.from_dict)
    for stage in stages[:-1]:
        between = out.with_name(stage.name)
        shutil.rmtree(between, ignore_errors=True)
        between.with_suffix(".json").unlink(missing_ok=True)
        digest_file(between).unlink(missing_ok=True)
    return trained


def _stages(context: RoundContext, number: int) -> list[_Stage]:
    """Return the trainings of a round that have rows, in their order."""
    config, seed = context.config, derive_seed(context.config.run.seed, "train", number)
    base = context.run.policy_source(0, context.run_config)
    traces, soft_targets = _shards(context, number, trace_kind(config)), _shards(context, number, soft_kind(config))
    preferences, advantages = _shards(context, number, preference_kind(config)), _shards(context, number, gradient_kind(config))
    imitate = partial(Task.of, train_on_solutions, config=config, traces=traces, soft_targets=soft_targets, seed=seed)
    if trains_two_heads(config):
        imitate = partial(Task.of, train_both_heads, config=config, traces=traces, values=prm_shards(context, number), seed=seed)
    prefer = partial(Task.of, train_on_preferences, config=config, base=base, rows=preferences, seed=seed)
    climb = partial(Task.of, train_on_advantages, config=config, base=base, rows=advantages, seed=seed)
    found = [
        (has_rows(traces) or has_rows(soft_targets), _Stage("sft", "SFT", imitate)),
        (has_rows(preferences), _Stage("preference", "preferences", prefer)),
        (has_rows(advantages), _Stage("gradient", "gradient", climb)),
    ]
    return [stage for learns, stage in found if learns]


def _start(context: RoundContext, number: int, best_policy: int) -> str:
    """Return the policy that a round trains."""
    config, run = context.config, context.run
    if config.start_model is not None:
        return config.start_model
    versions = {"best": best_policy, "base": 0, "last": run.newest(run.policy, number) or 0}
    return run.policy_source(versions[config.start_from], context.run_config)


def _shards(context: RoundContext, number: int, kind: RowKind | None) -> list[Path]:
    """Return the shards of a kind that a round trains on, of its own and imported ones; none for no kind."""
    if kind is None:
        return []
    rounds = [each for each in learned_rounds(context.config.labels.data, number) if each == number or _counts(context, each)]
    return context.run.kept_shards(kind.name, rounds) + context.run.imported(kind.name)


def learned_rounds(data: AllRounds | RecentRounds | RecentVersions, number: int) -> range:
    """Return the rounds whose rows a round learns from, its own last."""
    if isinstance(data, RecentRounds):
        return range(max(1, number - data.window + 1), number + 1)
    # On-policy rows of a round are already made from the trees of all rounds that count.
    return range(1 if data.type == "accumulate" else number, number + 1)


def _counts(context: RoundContext, number: int) -> bool:
    """Say whether the policy may learn from the rows of an earlier round."""
    row = context.run.row(number)
    return context.config.labels.from_refused or row is None or row.accepted


def train_on_solutions(
    *, config: Config, start: str, traces: list[Path], out: Path, seed: int, stage: str, soft_targets: Sequence[Path] = ()
) -> TrainingSummary:
    """Fine-tune a policy on right solutions.

    Args:
        config: The configuration.
        start: The policy to train.
        traces: Shards of traces.
        out: Directory of the trained policy.
        seed: Seed of the training.
        stage: Name under which progress is shown.
        soft_targets: Shards of weighted steps.
    """
    from stepladder.policy.fine_tuning import train_sft

    worker_models().release()
    renderer = build_renderer(config, start)
    report = train_sft(
        start,
        TRACES.read(traces),
        out,
        train_settings(config.sft, seed=seed, config=config),
        renderer_hash=renderer.hash,
        soft_targets=SOFT_TARGETS.read(soft_targets),
        replay=_replay(config, renderer),
        trust_remote_code=config.policy.trust_remote_code,
        on_progress=TrainingProgress(stage),
    )
    step_format(config).save(out)
    return summary_of(report)


def train_both_heads(
    *, config: Config, start: str, traces: list[Path], values: list[Path], out: Path, seed: int, stage: str
) -> TrainingSummary:
    """Fine-tune a policy on right solutions and its value head on the values of the trees, by one loss.

    Args:
        config: The configuration.
        start: The policy to train; a head that it has is trained on.
        traces: Shards of traces.
        values: Shards of value rows.
        out: Directory of the two-head model.
        seed: Seed of the training.
        stage: Name under which progress is shown.
    """
    from stepladder.loops.assembly.two_heads import JointObjective, train_two_heads
    from stepladder.prm.objective import StepObjective

    worker_models().release()
    section, renderer = config.prm, build_renderer(config, start)
    spec = replace(
        new_prm_spec(section.loss, target=section.target.type, body="..", read=section.read or "before-end"), renderer_hash=renderer.hash
    )
    rows, replay = TRACES.read(traces), _replay(config, renderer)
    report = train_two_heads(
        start,
        rows if replay is None else rows + replayed(replay, num_rows=len(rows), seed=seed),
        VALUES.read(values),
        out,
        train_settings(config.sft, seed=seed, config=config),
        renderer_hash=renderer.hash,
        spec=spec,
        objective=JointObjective(
            values=StepObjective(loss_name=section.loss.type, spec=spec),  # pyright: ignore[reportArgumentType] - checked with the settings
            weight=section.joint_weight,
        ),
        trust_remote_code=config.policy.trust_remote_code,
        on_progress=TrainingProgress(stage),
    )
    for place in (out, out / VALUE_HEAD_FOLDER):
        step_format(config).save(place)
    return summary_of(report)


def _replay(config: Config, renderer: PromptRenderer) -> "Replay[Trace] | None":
    """Return the solved examples to mix in; None without any."""
    from stepladder.lm.training_rows import Replay

    if not config.labels.replay:
        return None
    assert config.warmup.solutions is not None, "checked before the run"
    return Replay(rows=_solved_examples(config, renderer, Path(config.warmup.solutions)), share=config.labels.replay)


def train_on_preferences(*, config: Config, start: str, base: str, rows: list[Path], out: Path, seed: int, stage: str) -> TrainingSummary:
    """Train a policy on pairs, or on graded rows if the loss takes no pairs.

    Args:
        config: The configuration.
        start: The policy to train.
        base: The policy of round 0.
        rows: Shards of ``preference_kind``.
        out: Directory of the trained policy.
        seed: Seed of the training.
        stage: Name under which progress is shown.
    """
    from stepladder.policy.fine_tuning import SAMPLER, train_preference
    from stepladder.policy.unpaired import train_unpaired

    worker_models().release()
    section = config.preference
    renderer_hash, trust = build_renderer(config, start).hash, config.policy.trust_remote_code
    settings, objective = train_settings(section, seed=seed, config=config), build_preference_objective(section)
    reference = {"start": None, "base": base, "sampler": SAMPLER}[section.reference]
    if section.unpaired:
        report = train_unpaired(
            start,
            GRADED.read(rows),
            out,
            settings,
            renderer_hash=renderer_hash,
            trust_remote_code=trust,
            on_progress=TrainingProgress(stage),
            objective=objective,
            reference=reference,
        )
    else:
        report = train_preference(
            start,
            PAIRS.read(rows),
            out,
            settings,
            renderer_hash=renderer_hash,
            trust_remote_code=trust,
            on_progress=TrainingProgress(stage),
            objective=objective,
            reference=reference,
        )
    step_format(config).save(out)
    return summary_of(report)


def train_on_advantages(*, config: Config, start: str, base: str, rows: list[Path], out: Path, seed: int, stage: str) -> TrainingSummary:
    """Train a policy by policy gradients.

    Args:
        config: The configuration.
        start: The policy to train.
        base: The policy of round 0.
        rows: Shards of rows with advantages.
        out: Directory of the trained policy.
        seed: Seed of the training.
        stage: Name under which progress is shown.
    """
    from stepladder.policy.gradient import train_gradient

    worker_models().release()
    section = config.gradient
    report = train_gradient(
        start,
        ADVANTAGES.read(rows),
        out,
        train_settings(section, seed=seed, config=config),
        renderer_hash=build_renderer(config, start).hash,
        objective=build_gradient_objective(section),
        reference={"start": None, "base": base}[section.reference],
        trust_remote_code=config.policy.trust_remote_code,
        on_progress=TrainingProgress(stage),
    )
    step_format(config).save(out)
    return summary_of(report)
