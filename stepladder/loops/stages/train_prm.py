"""Train the process reward model, or several that guide the search together."""

import math
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from stepladder.errors import BackendError, DataFormatError
from stepladder.files import read_json
from stepladder.loops.assembly.policies import build_renderer, step_format
from stepladder.loops.assembly.scorers import prm_source
from stepladder.loops.assembly.training import new_prm_spec, train_settings
from stepladder.loops.config.run import Config
from stepladder.loops.config.training import ImplicitLoss, PRMConfig, VerdictLoss
from stepladder.loops.runs.results import FailedTraining, PolicyTraining, TrainingSummary
from stepladder.loops.runs.trained_models import check_trained
from stepladder.loops.runs.workers import Task, worker_models
from stepladder.loops.stages.context import BestModels, RoundContext
from stepladder.loops.stages.kinds import (
    REFINEMENTS,
    ROLLOUTS,
    STEP_PAIRS,
    VALUES,
    RowKind,
    compares_steps,
    has_rows,
    trains_two_heads,
)
from stepladder.loops.stages.prm_rows import prm_shards
from stepladder.loops.stages.refine import refinement_examples
from stepladder.loops.stages.solved_examples import example_values
from stepladder.loops.stages.trainings import TrainingProgress, finished_training, replayed, summary_of
from stepladder.types import PreferencePair, ValueRow, derive_seed

if TYPE_CHECKING:
    from stepladder.lm.settings import TrainSettings
    from stepladder.prm.specs import PRMSpec

PRMOutcome = TrainingSummary | FailedTraining
_RowT = TypeVar("_RowT", ValueRow, PreferencePair)


def train_prm(context: RoundContext, number: int, best: BestModels, policy_version: int) -> PRMOutcome | None:
    """Train the PRM of a policy on the rows of the configured rounds, the rollouts' if there are any; None without any rows."""
    rows = prm_shards(context, number)
    if not context.config.prm.trains or not has_rows(rows):
        return None
    out, stage = context.run.prm(number), f"round {number}: PRM"
    if trains_two_heads(context.config):
        return _jointly_trained(context, number, out)
    tasks = {model: _task(context, number, best, policy_version, rows, model) for model in _model_paths(context.config, out)}

    def train() -> PRMOutcome:
        with context.stage(number, "train prm"):
            return _together(context.train(list(tasks.values()), {stage: None}))

    trained = finished_training(out.with_suffix(".json"), list(tasks), train=train, read=_outcome)
    if isinstance(trained, FailedTraining):
        shutil.rmtree(out, ignore_errors=True)
    return trained


def _jointly_trained(context: RoundContext, number: int, out: Path) -> TrainingSummary | None:
    """Take the head of the round's two-head model as the round's PRM; None if the round trained no policy."""
    from stepladder.prm.probes import copy_head

    policy = context.run.policy(number)
    if not policy.exists():
        return None

    def take() -> TrainingSummary:
        check_trained(policy)
        copy_head(policy, out, body=os.path.relpath(policy, out))
        summary = policy.with_suffix(".json")
        training = PolicyTraining.from_dict(read_json(summary, what="the summary of a training", remedy="remove the file"), summary)
        assert training.sft is not None, "the SFT stage trains both heads"
        return training.sft

    return finished_training(out.with_suffix(".json"), [out], train=take, read=TrainingSummary.from_dict)


def _model_paths(config: Config, out: Path) -> list[Path]:
    """Return the directory of the PRM, or those of an ensemble's members."""
    return [out] if config.prm.ensemble == 1 else [out / f"member-{member:02d}" for member in range(config.prm.ensemble)]


def _task(context: RoundContext, number: int, best: BestModels, policy_version: int, rows: list[Path], out: Path) -> Task[PRMOutcome]:
    """Return the training of one PRM."""
    config, run = context.config, context.run
    start = _start(context, number, best, policy_version, out)
    seed = derive_seed(config.run.seed, "train", number)
    return Task.of(
        train_prm_model,
        config=config,
        start=start,
        rows=rows,
        out=out,
        head_from=_earlier(context, number, best, out) if config.prm.body == "policy" else None,
        # The first of an ensemble learns as a PRM alone would.
        seed=seed if out.name in ("prm", "member-00") else derive_seed(seed, out.name),
        stage=f"round {number}: PRM",
        # Seen from the model, so that a run can be moved.
        reference=os.path.relpath(start, out) if Path(start).resolve().is_relative_to(run.root.resolve()) else start,
        refined=_refined(context, number),
    )


def _refined(context: RoundContext, number: int) -> "Refined | None":
    """Return what the judge that refines solutions learns of that; None where nothing is refined."""
    if context.config.search.refinement is None:
        return None
    run = context.run
    return Refined(run.shards(ROLLOUTS.name, rounds=[number]), run.kept_shards(REFINEMENTS.name, range(1, number)))


def _start(context: RoundContext, number: int, best: BestModels, policy_version: int, out: Path) -> str:
    """Return the model that one PRM is trained from: an earlier PRM, the given one, or a policy, which gets a new head."""
    section, run = context.config.prm, context.run
    if section.body == "own" and (earlier := _earlier(context, number, best, out)) is not None:
        return earlier
    policy = 0 if section.start == "base" else policy_version
    return section.model or run.policy_source(policy, context.run_config)


def _earlier(context: RoundContext, number: int, best: BestModels, out: Path) -> str | None:
    """Return the earlier PRM that one PRM continues; None if it begins anew."""
    run = context.run
    version = {"best": best.prm, "last": run.newest(run.prm, number)}.get(context.config.prm.start)
    if version is None:
        return None
    return str(Path(run.prm_source(version, context.run_config)) / out.relative_to(run.prm(number)))


class Refined(NamedTuple):
    """What a judge learns to refine from."""

    samples: list[Path]
    """Shards of graded samples."""
    refinements: list[Path]
    """Shards of its refinements in earlier rounds that it accepted."""


def train_prm_model(
    *,
    config: Config,
    start: str,
    rows: list[Path],
    out: Path,
    seed: int,
    stage: str,
    reference: str,
    head_from: str | None = None,
    refined: Refined | None = None,
) -> PRMOutcome:
    """Train a PRM on value rows or step pairs.

    A training that cannot succeed (nothing to compare, a loss that is not finite) does not fail the run: earlier PRMs stay.

    Args:
        config: The configuration.
        start: The model to train, or the policy that gets a new head.
        rows: Shards of ``prm_kind``.
        out: Directory of the PRM.
        seed: Seed of the training, and of the problems that a member of an ensemble draws.
        stage: Name under which progress is shown.
        reference: Reference model of an implicit PRM, or the body of a probe, as its spec will name it.
        head_from: Directory of the probe whose head is trained on; None begins with a new one.
        refined: What a judge learns to refine from; None where nothing is refined.
    """
    from stepladder.lm.training_rows import Replay
    from stepladder.prm.implicit import train_implicit_on_pairs, train_implicit_on_tokens
    from stepladder.prm.value_training import train_value

    worker_models().release()
    section = config.prm
    settings = train_settings(section.train, seed=seed, config=config)
    if isinstance(section.loss, VerdictLoss):
        return _train_judge(config, section.loss, start=start, rows=rows, out=out, settings=settings, stage=stage, refined=refined)
    renderer, trust = build_renderer(config, start), config.policy.trust_remote_code
    renderer_hash = renderer.hash
    values = [] if compares_steps(config) else balanced(_read(config, VALUES, rows, seed=seed), right_share=section.right_share)
    replay = None
    if section.replay:
        assert config.warmup.solutions is not None, "checked before the run"
        replay = Replay(rows=example_values(config, renderer, Path(config.warmup.solutions)), share=section.replay)
    pairs = _read(config, STEP_PAIRS, rows, seed=seed) if compares_steps(config) else []
    spec = new_prm_spec(section.loss, target=section.target.type)
    common: dict[str, Any] = {
        "renderer_hash": renderer_hash,
        "trust_remote_code": trust,
        "on_progress": TrainingProgress(stage),
    }
    try:
        if isinstance(section.loss, ImplicitLoss) and compares_steps(config):
            report = train_implicit_on_pairs(start, pairs, out, settings, spec=replace(spec, reference=reference), **common)
        elif isinstance(section.loss, ImplicitLoss):
            common["loss"] = section.loss.type
            mixed = values if replay is None else values + replayed(replay, num_rows=len(values), seed=seed)
            report = train_implicit_on_tokens(start, mixed, out, settings, spec=replace(spec, reference=reference), **common)
        else:
            # A start model has its own spec; the configuration sets that of a new head.
            common |= {
                "loss": section.loss.type,
                "supervise": section.supervise,
                "head_from": head_from,
                "replay": None if pairs else replay,
            }
            own = None if section.model is not None else _new_spec(section, reference)
            report = train_value(start, pairs or values, out, settings, spec=own, **common)
    except (BackendError, DataFormatError) as error:
        return FailedTraining(failed=str(error))
    # With its format a model can be scored with and evaluated outside the run.
    step_format(config).save(out)
    return summary_of(report)


def _train_judge(
    config: Config,
    rule: VerdictLoss,
    *,
    start: str,
    rows: list[Path],
    out: Path,
    settings: "TrainSettings",
    stage: str,
    refined: Refined | None,
) -> PRMOutcome:
    """Train a judge on verdicts that agree with the targets of steps; otherwise as ``train_prm_model``."""
    from stepladder.loops.assembly.judges import JudgeStart, graded_row, train_judge

    spec = prm_source(config, start).resolve()
    values = _read(config, VALUES, rows, seed=settings.seed)
    more = []
    if refined is not None:
        more = [*refinement_examples(config, ROLLOUTS.read(refined.samples), start), *REFINEMENTS.read(refined.refinements)]
    try:
        report = train_judge(
            JudgeStart(start, spec, config.policy.trust_remote_code),
            [step for row in values for step in graded_row(row, step_end=config.format.step_end)],
            out,
            settings,
            rule=rule,
            models=worker_models(),
            more=more,
            on_progress=TrainingProgress(stage),
        )
    except (BackendError, DataFormatError) as error:
        return FailedTraining(failed=str(error))
    # It writes solutions like the policy from which it started.
    step_format(config).save(out)
    return summary_of(report)


def _new_spec(section: PRMConfig, body: str) -> "PRMSpec":
    """Return the spec of a new head: on a body of its own, or on that of the policy with this name."""
    if section.body == "own":
        return new_prm_spec(section.loss, target=section.target.type)
    return new_prm_spec(section.loss, target=section.target.type, body=body, read=section.read or "before-end")


def _read(config: Config, kind: RowKind[_RowT], shards: list[Path], *, seed: int) -> list[_RowT]:
    """Read rows; those of a member of an ensemble are of problems drawn with replacement."""
    rows = kind.read(shards)
    return resample_problems(rows, seed=seed) if config.prm.ensemble > 1 and config.prm.bootstrap else rows


def resample_problems(rows: list[_RowT], *, seed: int) -> list[_RowT]:
    """Draw as many problems as there are, with replacement, and return their rows; the rows of a problem drawn twice appear twice."""
    problems = sorted({row.problem_id for row in rows})
    drawn = np.random.default_rng(derive_seed(seed, "bootstrap")).integers(0, len(problems), len(problems)) if problems else []
    counts = Counter(problems[number] for number in drawn)
    return [row for row in rows for _ in range(counts[row.problem_id])]


def balanced(rows: list[ValueRow], *, right_share: float) -> list[ValueRow]:
    """Repeat right solutions, in turn, until they are a share of the rows; rows stay as they are if enough are right, or none.

    Args:
        rows: Solutions whose last target is their outcome.
        right_share: Least share of right ones, in [0, 1).
    """
    right = [row for row in rows if row.targets[-1] == 1.0]
    wanted = math.ceil(right_share / (1 - right_share) * (len(rows) - len(right)) - 1e-9)
    missing = max(0, wanted - len(right)) if right else 0
    return [*rows, *(right[index % len(right)] for index in range(missing))]


def _together(members: list[PRMOutcome]) -> PRMOutcome:
    """Return the outcome of one model, or of several, which fail together."""
    summaries = []
    for member in members:
        if isinstance(member, FailedTraining):
            return member
        summaries.append(member)
    return TrainingSummary.of_ensemble(summaries)


def _outcome(plain: object, place: Path) -> PRMOutcome:
    failed = isinstance(plain, dict) and "failed" in plain
    return FailedTraining.from_dict(plain, place) if failed else TrainingSummary.from_dict(plain, place)
