"""``stepladder prm train``: from files of labelled solutions to a process reward model that says how good it is."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stepladder.data import metrics
from stepladder.data.stepwise import StepwiseSolution, load_stepwise
from stepladder.errors import ConfigError, DataFormatError
from stepladder.files import atomic_write_text
from stepladder.loops.prm_scoring import PRMSource, open_scorer, score_solutions
from stepladder.loops.progress import ProgressDisplay
from stepladder.loops.workers import Progress
from stepladder.prm.specs import PRMSpec, resolve_spec
from stepladder.types import derive_seed

REPORT_FILE = "stepladder_prm_training.json"
"""Where a trained model's directory keeps what its training came to."""
_BINS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """What to train on, from where, and how."""

    init: str
    """Policy or process reward model to start from: directory or hub id."""
    output: Path
    """Directory of the trained model."""
    spec: str | None = None
    """Name of a spec or a ``.json`` file; None takes the start model's own."""
    loss: str = "bce"
    """Name of the loss."""
    scope: str = "full"
    """``full``, ``head``, or ``lora``."""
    head_first: float = 0.0
    """Passes with the head alone before everything is trained."""
    neutral: str = "good"
    """What a PRM800K rating of 0 means."""
    held_out: float = 0.1
    """Share of the problems that is not trained on and measured instead, in [0, 1)."""
    trust_remote_code: bool = False
    """Run code that ships with a hub model."""


def train_files(files: Sequence[Path], job: TrainingJob, training: dict[str, Any]) -> str:
    """Train on files of labelled solutions and return the lines to print; the same facts are in the model's directory as JSON.

    Args:
        files: Files in a form that ``load_stepwise`` reads.
        job: What to do.
        training: Fields of ``TrainSettings``.

    Problems are kept whole: a problem is either trained on or held out, whatever file its solutions stand in.

    Raises:
        ConfigError: If the choices do not fit each other.
        DataFormatError: If a file is malformed, or its labels do not fit.
        CheckpointError: If a model cannot be read or written.
    """
    from stepladder.lm.training import LoraSettings, TrainSettings
    from stepladder.prm.stepwise import train_stepwise

    if not 0 <= job.held_out < 1:
        raise ConfigError(f"--held-out: must be in [0, 1): got {job.held_out}")
    spec = training_spec(job)
    settings = TrainSettings(**training, lora=LoraSettings() if job.scope == "lora" else None)
    dropped: Counter[str] = Counter()
    solutions: list[StepwiseSolution] = []
    for path in files:
        file = load_stepwise(path, neutral=job.neutral, split=spec.split)
        solutions += file.solutions
        dropped.update(file.dropped_by_reason)
    kept, held_out = split_by_problem(solutions, held_out=job.held_out, seed=settings.seed)
    with ProgressDisplay().stages({"PRM": None}) as tell:
        report = train_stepwise(
            job.init,
            [_labelled(solution) for solution in kept],
            job.output,
            settings,
            spec=spec,
            loss=job.loss,  # pyright: ignore[reportArgumentType] - the trainer names the losses in its message
            scope="head" if job.scope == "head" else "full",
            head_first=job.head_first,
            trust_remote_code=job.trust_remote_code,
            on_progress=lambda done, total, loss, tokens: tell(Progress(stage="PRM", items=1, total=total)),
        )
    dropped.update(report.dropped_by_reason)
    figures = held_out_figures(held_out, job, settings.device) if held_out else None
    facts = {
        "solutions": len(kept),
        "held_out_solutions": len(held_out),
        "dropped_by_reason": dict(sorted(dropped.items())),
        "training": asdict(replace(report, dropped_by_reason={})),
        "held_out": figures,
    }
    atomic_write_text(job.output / REPORT_FILE, json.dumps(facts, indent=2) + "\n")
    return _told(job, facts)


def training_spec(job: TrainingJob) -> PRMSpec:
    """Return the spec that a job trains under; a categorical loss gives a value head its bins.

    Raises:
        ConfigError: If the spec cannot be trained on files.
    """
    if job.scope not in ("full", "head", "lora"):
        raise ConfigError(f"--scope: must be full, head or lora: got {job.scope!r}")
    spec = resolve_spec(job.init, job.spec)
    if spec.prompt == "tokens":
        raise ConfigError("prm train: the start model reads the policy's own tokens, which files do not hold -- give --spec, or use evolve")
    if job.loss in ("hl-gauss", "two-hot") and spec.family == "value-head" and spec.bins == 1:
        return replace(spec, bins=_BINS, transform="identity")
    return spec


def split_by_problem(
    solutions: Sequence[StepwiseSolution], *, held_out: float, seed: int
) -> tuple[list[StepwiseSolution], list[StepwiseSolution]]:
    """Return (solutions to train on, solutions to hold out), in order; a problem's side depends on its key and the seed alone.

    Raises:
        DataFormatError: If a side that must hold something is empty.
    """
    limit = held_out * 2.0**63
    aside = {key for key in {each.problem_id for each in solutions} if derive_seed(seed, "held out", key) < limit}
    kept = [each for each in solutions if each.problem_id not in aside]
    rest = [each for each in solutions if each.problem_id in aside]
    if not kept or (held_out and not rest):
        raise DataFormatError(
            f"labelled solutions: both sides of a split need a problem: got {len(kept)} solutions to train on and {len(rest)} held out "
            "-- give more problems, another --seed, or --held-out 0"
        )
    return kept, rest


def held_out_figures(solutions: Sequence[StepwiseSolution], job: TrainingJob, device: str) -> dict[str, Any]:
    """Return how well the trained model tells the good steps of unseen problems: figures over labelled steps that it could score."""
    scorer = open_scorer(PRMSource(model=str(job.output), device=device, trust_remote_code=job.trust_remote_code))
    scores = score_solutions(scorer, solutions)
    pairs = [
        (score, label)
        for solution, steps in zip(solutions, scores, strict=True)
        for score, label in zip(steps, solution.labels, strict=True)
        if score is not None and label is not None
    ]
    given = [score for score, _ in pairs]
    # A soft label of exactly one half says neither.
    sided = [(score, label > 0.5) for score, label in pairs if label != 0.5]
    return {
        "steps": len(pairs),
        "auc": metrics.pooled_auc([score for score, _ in sided], [good for _, good in sided]),
        "mean_squared_error": sum((score - label) ** 2 for score, label in pairs) / len(pairs) if pairs else None,
        "mean_score": sum(given) / len(given) if given else None,
    }


def _labelled(solution: StepwiseSolution) -> Any:
    from stepladder.prm.reader import Solution
    from stepladder.prm.stepwise import LabelledSolution

    return LabelledSolution(
        solution=Solution(question=solution.question, steps=solution.steps, place=solution.place), labels=solution.labels
    )


def _told(job: TrainingJob, facts: dict[str, Any]) -> str:
    training, held_out, dropped = facts["training"], facts["held_out"], facts["dropped_by_reason"]
    lines = [
        f"{job.output}: {training['updates']} updates on {training['rows']} rows of {facts['solutions']} solutions, "
        f"loss {training['first_loss']:.4f} -> {training['last_loss']:.4f} in {training['seconds']:.0f} s",
        f"dropped: {', '.join(f'{count} {reason}' for reason, count in dropped.items()) or 'nothing'}",
    ]
    if held_out is not None:
        auc = "none (one class)" if held_out["auc"] is None else f"{held_out['auc']:.3f}"
        error = held_out["mean_squared_error"]
        shown = "none" if error is None else f"{error:.4f}"
        lines.append(f"held out: {held_out['steps']} steps of {facts['held_out_solutions']} solutions, AUC {auc}, squared error {shown}")
    return "\n".join(lines)
