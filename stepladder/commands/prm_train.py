"""``stepladder prm train``: train a process reward model on labelled solutions, or on searched trees, and report its quality."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from stepladder.commands.prm_scoring import score_solutions
from stepladder.data.datasets.labelled_solutions import StepwiseSolution, load_stepwise
from stepladder.data.datasets.problems import check_source
from stepladder.data.labels.rstar_math import StepPairs
from stepladder.data.labels.selection import Selection
from stepladder.data.labels.value_rows import value_rows
from stepladder.data.labels.values import ValueTarget
from stepladder.data.metrics import answers as metrics
from stepladder.data.store import read_trees
from stepladder.errors import ConfigError, DataFormatError
from stepladder.files import atomic_write_text
from stepladder.hold_out import hold_out, share_of
from stepladder.interfaces import collect_all
from stepladder.lm.loaded_models import LoadedModels
from stepladder.loops.assembly.policies import step_format
from stepladder.loops.assembly.training import new_prm_spec
from stepladder.loops.config.training import BinLoss, ImplicitLoss, VerdictLoss, prm_loss
from stepladder.loops.runs.directory import load_run
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.stages.trainings import TrainingProgress
from stepladder.prm.requests import path_requests
from stepladder.prm.sources import PRMSource
from stepladder.prm.specs import SPEC_FILE, PRMSpec, resolve_spec
from stepladder.types import TreeRecord

if TYPE_CHECKING:
    from stepladder.lm.settings import TrainSettings
    from stepladder.lm.training import TrainReport
    from stepladder.policy.prompts import PromptRenderer
    from stepladder.prm.implicit import GradedSolution
    from stepladder.prm.text_training import LabelledSolution

ProgressCallback = Callable[[int, int, float, int], None]
"""As in ``lm.trainer``, which imports torch."""
REPORT_FILE = "stepladder_prm_training.json"
"""File of a trained model's directory with the report of its training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """Settings of a training."""

    init: str
    """Policy or process reward model to start from: directory or hub id."""
    output: Path
    """Directory of the trained model."""
    spec: str | None = None
    """Name of a spec or a ``.json`` file; None takes the start model's own."""
    loss: str = "bce"
    """Name of the loss."""
    scope: str = "full"
    """``full``, ``head``, or ``lora``. From trees, ``head`` trains a head that reads the start policy's own body, which stays as it is."""
    head_first: float = 0.0
    """Passes with the head alone before everything is trained."""
    neutral: str = "good"
    """Meaning of a PRM800K rating of 0."""
    held_out: float = 0.1
    """Share of the problems that is not trained on and measured instead, in [0, 1)."""
    trust_remote_code: bool = False
    """Run code that ships with a hub model."""
    target: str = "monte-carlo"
    """Target of a step of a tree: a ``ValueTarget``, or ``step-pairs``."""
    supervise: str = "step-end"
    """Tokens of a step of a tree that learn its target: ``step-end`` or ``every-token``."""
    verdicts: VerdictLoss = VerdictLoss()  # noqa: RUF009 - frozen
    """Verdicts on labelled steps that a judge learns, with the loss ``verdicts``."""


def train_files(files: Sequence[Path], job: TrainingJob, training: dict[str, Any]) -> str:
    """Train on files of labelled solutions and return the lines to print; the same facts are in the model's directory as JSON.

    Problems are kept whole: a problem is either trained on or held out, even if its solutions are in several files.

    Args:
        files: Files in a form that ``load_stepwise`` reads.
        job: Settings of the training.
        training: Fields of ``TrainSettings``.

    Raises:
        ConfigError: If the choices do not fit each other.
        DataFormatError: If a file is malformed, or its labels do not fit.
        CheckpointError: If a model cannot be read or written.
    """
    if (job.target, job.supervise) != ("monte-carlo", "step-end"):
        raise ConfigError("prm train: files contain the labels of their steps: got --target or --supervise -- give them with --trees")
    for path in files:
        check_source(path)
    spec, settings = training_spec(job), _settings(job, training)
    dropped: Counter[str] = Counter()
    solutions: list[StepwiseSolution] = []
    for path in files:
        file = load_stepwise(path, neutral=job.neutral, split=spec.split)
        solutions += file.solutions
        dropped.update(file.dropped_by_reason)
    kept, held_out = split_by_problem(solutions, held_out=job.held_out, seed=settings.seed, what="labelled solutions")
    with _progress() as on_progress:
        report = _train(kept, job, settings, spec=spec, on_progress=on_progress)
    dropped.update(report.dropped_by_reason)
    figures = held_out_figures(held_out, job, settings.device) if held_out else None
    counts = {"solutions": len(kept), "held_out_solutions": len(held_out)}
    return _write_report(job, counts, dropped=dropped, report=report, figures=figures)


@contextmanager
def _progress() -> Iterator[ProgressCallback]:
    """Show the progress of a training, and yield the callback that the trainer calls after its updates."""
    with ProgressDisplay().stages({"PRM": None}) as tell:
        yield TrainingProgress("PRM", tell)


def _write_report(
    job: TrainingJob,
    counts: dict[str, int],
    *,
    dropped: Counter[str],
    report: "TrainReport",
    figures: dict[str, Any] | None,
) -> str:
    """Write a report into the model's directory and return it as text.

    Args:
        job: Settings of the training.
        counts: Counts of trained and held-out rows, by name and in this order.
        dropped: Rows left out, by reason.
        report: The trainer's report.
        figures: Figures of the model on the held-out rows; None if nothing was held out.
    """
    facts = {
        **counts,
        "dropped_by_reason": dict(sorted(dropped.items())),
        "training": asdict(replace(report, dropped_by_reason={})),
        "held_out": figures,
    }
    atomic_write_text(job.output / REPORT_FILE, json.dumps(facts, indent=2) + "\n")
    return _summary(job, next(iter(counts)), facts)


def train_trees(sources: Sequence[Path], job: TrainingJob, training: dict[str, Any]) -> str:
    """Train on the tokens of searched trees and return the lines to print; otherwise as ``train_files``.

    Args:
        sources: Shards of trees, directories of shards, or runs or rounds, with all their training trees.
        job: Settings of the training; the start model has the policy's tokenizer and step format.
        training: Fields of ``TrainSettings``.

    Raises:
        ConfigError: If the choices do not fit each other.
        DataFormatError: If there are no trees, they come from another prompt format or tokenizer, or nothing can be learned from them.
        CheckpointError: If a model cannot be read or written, or has no step format.
    """
    settings = _settings(job, training)
    spec = _tree_spec(job)
    shards = [shard for source in sources for shard in _tree_shards(source)]
    records = [record for shard in shards for record in read_trees(shard)]
    kept, held_out = split_by_problem(records, held_out=job.held_out, seed=settings.seed, what="trees")
    selection = _selection(kept, job)
    renderer = _tree_renderer(job, shards[0])
    with _progress() as on_progress:
        report = _train_on_trees(selection.rows, job, settings, spec=spec, renderer_hash=renderer.hash, on_progress=on_progress)
    renderer.step_format.save(job.output)
    dropped = Counter(selection.dropped_by_reason) + Counter(report.dropped_by_reason)
    figures = _tree_figures(held_out, job, settings.device, renderer_hash=renderer.hash) if held_out else None
    counts = {"trees": len(kept), "held_out_trees": len(held_out)}
    return _write_report(job, counts, dropped=dropped, report=report, figures=figures)


def _train_on_trees(
    rows: Sequence[Any],
    job: TrainingJob,
    settings: "TrainSettings",
    *,
    spec: PRMSpec,
    renderer_hash: str,
    on_progress: ProgressCallback,
) -> "TrainReport":
    """Train on rows made from trees: solutions with an outcome, or steps with a value."""
    if spec.family == "implicit":
        from stepladder.prm.implicit import train_implicit_on_pairs, train_implicit_on_tokens

        common: dict[str, Any] = {
            "spec": spec,
            "renderer_hash": renderer_hash,
            "trust_remote_code": job.trust_remote_code,
            "on_progress": on_progress,
        }
        if job.target == "step-pairs":
            return train_implicit_on_pairs(job.init, rows, job.output, settings, **common)
        # The trainer names the losses in its message.
        return train_implicit_on_tokens(job.init, rows, job.output, settings, loss=job.loss, **common)  # pyright: ignore[reportArgumentType]
    from stepladder.prm.value_training import train_value

    return train_value(
        job.init,
        rows,
        job.output,
        settings,
        # A start PRM contains its spec.
        spec=None if (Path(job.init) / SPEC_FILE).is_file() else spec,
        supervise=job.supervise,  # pyright: ignore[reportArgumentType] - checked with the spec
        renderer_hash=renderer_hash,
        loss=job.loss,  # pyright: ignore[reportArgumentType] - the trainer names the losses in its message
        trust_remote_code=job.trust_remote_code,
        on_progress=on_progress,
    )


def _tree_spec(job: TrainingJob) -> PRMSpec:
    from stepladder.prm.target_rows import Supervise

    if job.scope not in ("full", "head", "lora") or job.head_first:
        raise ConfigError(f"prm train --trees: trains all, a head, or adapters: got --scope {job.scope} --head-first {job.head_first}")
    if job.target not in (*ValueTarget, "step-pairs"):
        raise ConfigError(
            f"--target: must be one of {', '.join(ValueTarget)}, step-pairs: got {job.target!r} -- evolve estimates the others"
        )
    if job.supervise not in get_args(Supervise):
        raise ConfigError(f"--supervise: must be {' or '.join(get_args(Supervise))}: got {job.supervise!r}")
    if job.loss == "verdicts":
        raise ConfigError("prm train --trees: judges read text: got --loss verdicts -- give files of labelled steps, or use evolve")
    # Trees hold what the policy sampled, so a head trained alone reads the policy's own body.
    loss, is_probe = prm_loss(job.loss), job.scope == "head"
    if is_probe and (isinstance(loss, ImplicitLoss) or (Path(job.init) / SPEC_FILE).is_file()):
        raise ConfigError(
            f"prm train --trees --scope head: trains a value head on a policy: got --loss {job.loss} --init {job.init} -- use a loss on "
            "values, and a policy to start from"
        )
    default = new_prm_spec(loss, target=job.target, body=_reference(job) if is_probe else None)
    if default.family == "implicit":
        default = replace(default, reference=_reference(job))
    spec = default if job.spec is None else resolve_spec(job.init, job.spec)
    if spec.prompt != "tokens":
        raise ConfigError(
            f"prm train --trees: trees hold the policy's own tokens: got a spec with the prompt {spec.prompt!r} -- leave --spec out"
        )
    return spec


def _tree_shards(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    shards = sorted(source.glob("shard-*.parquet")) or sorted(source.rglob("trees/shard-*.parquet"))
    if not shards:
        raise DataFormatError(f"{source}: must be a shard of trees, or a directory with some: found none -- give RUN/rounds/001/trees")
    return shards


def _selection(records: Sequence[TreeRecord], job: TrainingJob) -> Selection[Any]:
    """Return the rows from trees for a model of the job."""
    if job.target == "step-pairs":
        return StepPairs().select(records)
    return value_rows(records, target=job.target)


def _tree_renderer(job: TrainingJob, shard: Path) -> "PromptRenderer":
    """Return the renderer of the start model, with its own step format, or with that of the run that contains the trees."""
    from stepladder.lm.loading import has_format, load_tokenizer
    from stepladder.policy.prompts import PromptRenderer, StepFormat

    run = next((folder for folder in shard.resolve().parents if (folder / "run.json").is_file()), None)
    chosen = step_format(load_run(run).config()) if run is not None and not has_format(job.init) else StepFormat.load(job.init)
    return PromptRenderer(load_tokenizer(job.init, trust_remote_code=job.trust_remote_code), chosen)


def _tree_figures(records: Sequence[TreeRecord], job: TrainingJob, device: str, *, renderer_hash: str) -> dict[str, Any]:
    """Return figures of the trained model on the steps of unseen trees, by their mean outcomes."""
    rows = value_rows(records).rows
    source = PRMSource(model=str(job.output), device=device, trust_remote_code=job.trust_remote_code)
    from stepladder.loops.assembly.prms import open_token_scorer

    requests = [request for row in rows for request in path_requests(row)]
    prompts = {tuple(row.prompt_ids) for row in rows}
    with LoadedModels() as models:
        scorer = open_token_scorer(source, models, renderer_hash=renderer_hash, prompts=prompts)
        results = collect_all(scorer, [replace(request, ticket=ticket) for ticket, request in enumerate(requests)])
    scores = iter([score for result in results for score in result.scores[0]])
    return _step_figures([(tuple(islice(scores, len(row.targets))), row.targets) for row in rows])


def _settings(job: TrainingJob, training: dict[str, Any]) -> "TrainSettings":
    from stepladder.lm.settings import LoraSettings, TrainSettings

    if not 0 <= job.held_out < 1:
        raise ConfigError(f"--held-out: must be in [0, 1): got {job.held_out}")
    return TrainSettings(**training, lora=LoraSettings() if job.scope == "lora" else None)


def _train(
    solutions: Sequence[StepwiseSolution], job: TrainingJob, settings: "TrainSettings", *, spec: PRMSpec, on_progress: ProgressCallback
) -> "TrainReport":
    """Train on written solutions: with an outcome, or with labelled steps."""
    if spec.family == "judge":
        return _train_judge(solutions, job, settings, spec=spec, on_progress=on_progress)
    if spec.family == "implicit":
        if job.scope == "head" or job.head_first:
            raise ConfigError("prm train: an implicit model has no head of its own to train alone -- use --scope full or lora")
        from stepladder.prm.implicit import train_implicit

        return train_implicit(
            job.init,
            [_graded_solution(solution) for solution in solutions],
            job.output,
            settings,
            spec=spec,
            loss=job.loss,  # pyright: ignore[reportArgumentType] - the trainer names the losses in its message
            trust_remote_code=job.trust_remote_code,
            on_progress=on_progress,
        )
    from stepladder.prm.text_training import train_stepwise

    return train_stepwise(
        job.init,
        [_labelled_solution(solution, job.loss) for solution in solutions],
        job.output,
        settings,
        spec=spec,
        loss=job.loss,  # pyright: ignore[reportArgumentType] - the trainer names the losses in its message
        scope="head" if job.scope == "head" else "full",
        head_first=job.head_first,
        trust_remote_code=job.trust_remote_code,
        on_progress=on_progress,
    )


def _train_judge(
    solutions: Sequence[StepwiseSolution], job: TrainingJob, settings: "TrainSettings", *, spec: PRMSpec, on_progress: ProgressCallback
) -> "TrainReport":
    """Train a judge on verdicts that agree with the labels of steps."""
    from stepladder.loops.assembly.judges import JudgeStart, graded_steps, train_judge
    from stepladder.prm.reader import Solution

    steps = [
        graded
        for each in solutions
        for graded in graded_steps(each.problem_id, Solution(question=each.question, steps=each.steps, place=each.place), each.labels)
    ]
    with LoadedModels() as models:
        return train_judge(
            JudgeStart(job.init, spec, job.trust_remote_code),
            steps,
            job.output,
            settings,
            rule=job.verdicts,
            models=models,
            on_progress=on_progress,
        )


def training_spec(job: TrainingJob) -> PRMSpec:
    """Return the spec of a job. A categorical loss sets the bins of a value head.

    Raises:
        ConfigError: If the spec cannot be trained on files.
    """
    if job.scope not in ("full", "head", "lora"):
        raise ConfigError(f"--scope: must be full, head or lora: got {job.scope!r}")
    spec = resolve_spec(job.init, job.spec)
    if (spec.family == "judge") != (job.loss == "verdicts"):
        raise ConfigError(f"prm train: a judge learns verdicts, and nothing else does: got --loss {job.loss} for a spec of {spec.family!r}")
    if spec.family == "judge" and (job.scope == "head" or job.head_first):
        raise ConfigError("prm train: a judge has no head of its own to train alone -- use --scope full or lora")
    if spec.prompt == "tokens":
        raise ConfigError("prm train: the start model reads the policy's own tokens, which files do not hold -- give --spec, or use evolve")
    if spec.family == "implicit" and spec.reference is None:
        return replace(spec, reference=_reference(job))
    if job.loss in ("hl-gauss", "two-hot") and spec.family == "value-head" and spec.bins == 1:
        return replace(spec, bins=BinLoss().bins, transform="identity")
    return spec


def _reference(job: TrainingJob) -> str:
    """Return the start model's path relative to the trained model, for the spec in its directory, which names the reference."""
    return os.path.relpath(job.init, job.output) if Path(job.init).is_dir() else job.init


KeyedT = TypeVar("KeyedT", StepwiseSolution, TreeRecord)


def split_by_problem(items: Sequence[KeyedT], *, held_out: float, seed: int, what: str) -> tuple[list[KeyedT], list[KeyedT]]:
    """Return (items to train on, items to hold out), in order. The seed chooses the held-out problems, which are kept whole.

    Raises:
        DataFormatError: If a side that must hold something is empty.
    """
    keys = {each.problem_id for each in items}
    if len(keys) < (2 if held_out else 1):
        raise DataFormatError(
            f"{what}: both sides of a split need a problem: got {len(keys)} with {held_out:g} of them to hold out "
            "-- give more problems, or --held-out 0"
        )
    aside = hold_out([[key] for key in keys], count=share_of(len(keys), held_out), seed=seed) if held_out else set()
    kept = [each for each in items if each.problem_id not in aside]
    rest = [each for each in items if each.problem_id in aside]
    return kept, rest


def held_out_figures(solutions: Sequence[StepwiseSolution], job: TrainingJob, device: str) -> dict[str, Any]:
    """Return figures of the trained model on the labelled steps of unseen problems, over the steps that it could score."""
    source = PRMSource(model=str(job.output), device=device, trust_remote_code=job.trust_remote_code)
    from stepladder.loops.assembly.prms import open_solution_scorer

    with LoadedModels() as models:
        scores = score_solutions(open_solution_scorer(source, models), solutions)
    return _step_figures([(steps, solution.labels) for solution, steps in zip(solutions, scores, strict=True)])


def _step_figures(judged: Sequence[tuple[Sequence[float | None], Sequence[float | None]]]) -> dict[str, Any]:
    """Return the figures of (scores, labels) of solutions."""
    pairs = [
        (score, label)
        for scores, labels in judged
        for score, label in zip(scores, labels, strict=True)
        if score is not None and label is not None
    ]
    given = [score for score, _ in pairs]
    # A soft label of exactly one half is undecided.
    sided = [(score, label > 0.5) for score, label in pairs if label != 0.5]
    return {
        "steps": len(pairs),
        "auc": metrics.pooled_auc([score for score, _ in sided], [good for _, good in sided]),
        "mean_squared_error": sum((score - label) ** 2 for score, label in pairs) / len(pairs) if pairs else None,
        "mean_score": sum(given) / len(given) if given else None,
    }


def _graded_solution(solution: StepwiseSolution) -> "GradedSolution":
    from stepladder.prm.implicit import GradedSolution
    from stepladder.prm.reader import Solution

    outcome = None if solution.correct is None else float(solution.correct)
    return GradedSolution(
        solution=Solution(question=solution.question, steps=solution.steps, place=solution.place),
        problem_id=solution.problem_id,
        outcome=outcome,
    )


def _labelled_solution(solution: StepwiseSolution, loss: str) -> "LabelledSolution":
    from stepladder.prm.reader import Solution
    from stepladder.prm.text_training import LabelledSolution

    return LabelledSolution(
        solution=Solution(question=solution.question, steps=solution.steps, place=solution.place),
        labels=_outcome_labels(solution) if loss == "listwise" else solution.labels,
        problem_id=solution.problem_id,
    )


def _outcome_labels(solution: StepwiseSolution) -> tuple[float | None, ...]:
    """Return the solution's verdict as the label of its last step, which a comparison of whole solutions reads."""
    if not solution.steps or solution.correct is None:
        return (None,) * len(solution.steps)
    return (*(None,) * (len(solution.steps) - 1), float(solution.correct))


def _summary(job: TrainingJob, what: str, facts: dict[str, Any]) -> str:
    """Return the facts of a training as the lines to print."""
    training, held_out, dropped = facts["training"], facts["held_out"], facts["dropped_by_reason"]
    lines = [
        f"{job.output}: {training['updates']} updates on {training['rows']} rows of {facts[what]} {what}, "
        f"loss {training['first_loss']:.4f} -> {training['last_loss']:.4f} in {training['seconds']:.0f} s",
        f"dropped: {', '.join(f'{count} {reason}' for reason, count in dropped.items()) or 'nothing'}",
    ]
    if held_out is not None:
        auc = "none (one class)" if held_out["auc"] is None else f"{held_out['auc']:.3f}"
        error = held_out["mean_squared_error"]
        shown = "none" if error is None else f"{error:.4f}"
        lines.append(f"held out: {held_out['steps']} steps of {facts[f'held_out_{what}']} {what}, AUC {auc}, squared error {shown}")
    return "\n".join(lines)
