"""Training a process reward model of any family on written solutions with labelled steps.

The layout that scores a solution also trains on it, and the spec is saved with the model, so training and serving cannot differ. Losses on
single steps take one row a solution; losses on comparisons take groups of steps that continue the same beginning.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepladder.errors import CheckpointError, DataFormatError, check
from stepladder.lm.loading import load_causal_lm, load_tokenizer, quiet
from stepladder.lm.settings import TrainSettings
from stepladder.lm.training import ProgressCallback, TrainReport, identity_of, load_options, run_training
from stepladder.lm.training_rows import fit_context, vocabulary_size
from stepladder.prm.checkpoints import has_head, load_reward_model, vocabulary_ids
from stepladder.prm.layout import SolutionLayout
from stepladder.prm.new_models import new_head_model, save_prm
from stepladder.prm.objective import COMPARING, Loss, StepObjective, check_loss
from stepladder.prm.reader import Solution
from stepladder.prm.specs import SPEC_FILE, PRMSpec
from stepladder.prm.target_rows import (
    Compare,
    GroupRow,
    Groups,
    Member,
    TargetRow,
    add_member,
    check_path_ids,
    collate_groups,
    collate_packed_groups,
    collate_packed_values,
    collate_values,
    count_dropped,
    finish_groups,
)

Scope = Literal["full", "head"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledSolution:
    """A solution with judged steps."""

    solution: Solution
    """The solution."""
    labels: tuple[float | None, ...]
    """Per step, its target in [0, 1]; None if the step is context only."""
    problem_id: str = ""
    """Key of its problem; solutions of one problem have the same question as well."""


def train_stepwise(
    init: str | Path,
    solutions: Sequence[LabelledSolution],
    out_dir: str | Path,
    settings: TrainSettings,
    *,
    spec: PRMSpec,
    loss: Loss = "bce",
    scope: Scope = "full",
    head_first: float = 0.0,
    regression_weight: float = 1.0,
    trust_remote_code: bool = False,
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train a process reward model and save it, with spec and tokenizer, as a Hugging Face directory.

    Args:
        init: Policy, whose body gets a new head if the spec needs one, or a process reward model of the spec, whose head is kept.
        solutions: Labelled solutions; one without any label, or too long for the context, is dropped and counted.
        out_dir: Directory of the trained model, written completely or not at all; replaced if it exists.
        settings: Training settings; ``batch_size`` counts solutions, or groups of compared steps.
        spec: Input and outputs of the model.
        loss: ``bce`` on soft or hard labels, ``mse`` on scores, ``hl-gauss`` and ``two-hot`` on the bins of a value head, ``pairwise``
            between labelled steps after the same beginning, ``pairwise+mse`` both at once, ``listwise`` between all labels of a problem.
        scope: ``full`` trains every weight (or adapters if the settings have them), ``head`` only the head.
        head_first: Passes over the data with the head alone before everything is trained, >= 0.
        regression_weight: Weight of the ``mse`` part relative to ``pairwise``, > 0.
        trust_remote_code: Run code that ships with a hub model.
        on_progress: Called after every update.

    Returns:
        What the training (its last stage) came to.

    Raises:
        BackendError: If the loss stops being finite.
        CheckpointError: If a model cannot be read or written or does not fit the spec.
        ConfigError: If spec, loss and settings do not fit each other.
        DataFormatError: If labels are all equal, none is left, or a solution does not fit the spec; or the model was trained under another
            spec.
    """
    _check_choices(spec, settings, loss=loss, scope=scope, head_first=head_first)
    _check_same_spec(init, spec)
    if head_first:
        return _two_stages(
            init,
            solutions,
            Path(out_dir),
            settings,
            head_first,
            spec=spec,
            loss=loss,
            regression_weight=regression_weight,
            trust_remote_code=trust_remote_code,
            on_progress=on_progress,
        )
    tokenizer = load_tokenizer(init, trust_remote_code=trust_remote_code)
    layout = SolutionLayout(tokenizer, spec)
    dropped: dict[str, int] = {}
    rows: list[Any] = (
        group_solutions(solutions, layout, dropped=dropped, compare="problem" if loss == "listwise" else "siblings")
        if loss in COMPARING
        else step_rows(solutions, layout, dropped=dropped)
    )
    with quiet():
        model = initialise_reader(init, spec, tokenizer, settings=settings, trust_remote_code=trust_remote_code)
    rows = fit_context(rows, model, dropped, what="labelled solutions")
    check_path_ids(rows, vocabulary=vocabulary_size(model), what="labelled solution")
    _freeze_body(model, scope)
    columns = vocabulary_ids(tokenizer, spec) if spec.family == "vocabulary" else None
    objective = StepObjective(loss_name=loss, spec=spec, columns=columns, regression_weight=regression_weight)
    return run_training(
        model,
        rows,
        collate=collate_groups if loss in COMPARING else collate_values,
        collate_packed=collate_packed_groups if loss in COMPARING else collate_packed_values,
        objective=objective,
        settings=settings,
        out_dir=Path(out_dir),
        identity=identity_of(settings, task="stepwise", start=str(init), rows=rows, objective=objective, scope=scope),
        save=partial(save_prm, spec=spec, source=init, tokenizer=tokenizer, trust_remote_code=trust_remote_code),
        on_progress=on_progress,
        dropped=dropped,
    )


def _two_stages(
    init: str | Path, solutions: Sequence[LabelledSolution], out_dir: Path, settings: TrainSettings, epochs: float, **options: Any
) -> TrainReport:
    """Train the head, then everything from there."""
    first = out_dir.with_name(f"{out_dir.name}.head")
    alone = replace(settings, epochs=epochs, lora=None)
    train_stepwise(init, solutions, first, alone, scope="head", **options)
    report = train_stepwise(first, solutions, out_dir, settings, **options)
    # Other processes of the same training may be faster.
    shutil.rmtree(first, ignore_errors=True)
    return report


def step_rows(solutions: Sequence[LabelledSolution], layout: SolutionLayout, *, dropped: dict[str, int]) -> list[TargetRow]:
    """Return one row per solution with a label; what is left out is counted in ``dropped``.

    Raises:
        DataFormatError: If labels do not match steps or are out of range, all labels are equal, or a solution does not fit the spec.
    """
    rows, seen = [], set[float]()
    for labelled in solutions:
        _check_labels(labelled)
        solution = labelled.solution
        laid = layout.lay_out(solution.question, solution.steps, place=solution.place)
        pairs = [(read, label) for read, label in zip(laid.reads, labelled.labels, strict=True) if read is not None and label is not None]
        count_dropped(dropped, "label on a step without tokens", sum(label is not None for label in labelled.labels) - len(pairs))
        if not pairs:
            count_dropped(dropped, "no label", 1)
            continue
        positions, targets = [read for read, _ in pairs], [label for _, label in pairs]
        seen.update(targets)
        ids = list(laid.token_ids[: positions[-1] + 1])
        rows.append(TargetRow(ids=ids, positions=positions, targets=targets, group=f"{labelled.problem_id}\x1f{solution.question}"))
    if len(seen) < 2:
        raise DataFormatError(
            f"labelled solutions: labels must differ: got {', '.join(map(str, seen)) or 'none'} only -- give good and bad steps, or check "
            "what a neutral rating means"
        )
    return rows


def group_solutions(
    solutions: Sequence[LabelledSolution], layout: SolutionLayout, *, dropped: dict[str, int], compare: Compare = "siblings"
) -> list[GroupRow]:
    """Return one row per beginning (or per problem) with labels that differ; what is left out is counted in ``dropped``.

    Raises:
        DataFormatError: If labels do not match steps or are out of range, nothing can be compared, or a solution does not fit the spec.
    """
    groups: Groups = {}
    for labelled in solutions:
        _check_labels(labelled)
        solution = labelled.solution
        for depth, label in enumerate(labelled.labels):
            if label is not None:
                steps = solution.steps[: depth + 1]
                key = (labelled.problem_id, solution.question, steps[:-1] if compare == "siblings" else ())
                add_member(groups, key, steps, Member(label=label, path=partial(_path, layout, solution, steps)), dropped)
    return finish_groups(groups, dropped, what="labelled solutions", problem_of=lambda key: "\x1f".join(key[:2]))


def _path(layout: SolutionLayout, solution: Solution, steps: tuple[str, ...]) -> list[int] | None:
    laid = layout.lay_out(solution.question, steps, place=solution.place)
    return None if laid.reads[-1] is None else list(laid.token_ids)


def initialise_reader(
    init: str | Path, spec: PRMSpec, tokenizer: PreTrainedTokenizerBase, *, settings: TrainSettings, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return a model to train under a spec: with its own head if it has one, else with a new head drawn from the seed.

    Raises:
        CheckpointError: If the model cannot be read or has a head of another width.
        ConfigError: If device or dtype is not available.
    """
    options = {**load_options(settings), "trust_remote_code": trust_remote_code}
    if spec.family == "vocabulary":
        return load_causal_lm(init, **options)
    if has_head(init):
        return load_reward_model(init, spec, **options)
    return new_head_model(init, num_outputs=spec.num_outputs, seed=settings.seed, **options)


def _freeze_body(model: PreTrainedModel, scope: Scope) -> None:
    if scope == "full":
        return
    head = next((name for name in ("score", "classifier", "lm_head") if hasattr(model, name)), None)
    if head is None or (head == "lm_head" and model.config.tie_word_embeddings):
        raise CheckpointError("PRM training: a head trained alone must have own weights: it shares the embeddings' -- train all")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(f"{head}."))


def _check_choices(spec: PRMSpec, settings: TrainSettings, *, loss: str, scope: str, head_first: float) -> None:
    check_loss(loss, spec)
    remedy, whole = "-- change one of them", scope == "full"
    check(scope in ("full", "head"), f"PRM training: scope must be 'full' or 'head': got {scope!r} {remedy}")
    with_head = f"PRM training: adapters cannot be trained with the head alone: got lora with scope 'head' {remedy}"
    check(whole or settings.lora is None, with_head)
    first = f"PRM training: head_first must be >= 0, and 0 where only the head is trained: got {head_first} {remedy}"
    check(head_first == 0 or (head_first > 0 and whole), first)


def _check_same_spec(init: str | Path, spec: PRMSpec) -> None:
    if (Path(init) / SPEC_FILE).is_file() and (found := PRMSpec.load(init)) != spec:
        raise DataFormatError(
            f"{init}: a PRM must be trained on under its own spec: it has {found!r} -- leave --spec out, or start from a policy"
        )


def _check_labels(labelled: LabelledSolution) -> None:
    place, labels = labelled.solution.place, labelled.labels
    if len(labels) != len(labelled.solution.steps):
        raise DataFormatError(f"{place}: every step must have a label or none: got {len(labels)} for {len(labelled.solution.steps)} steps")
    for number, label in enumerate(labels, 1):
        if label is not None and not 0.0 <= label <= 1.0:
            raise DataFormatError(f"{place}: the label of step {number} must be in [0, 1]: got {label!r} -- correct the row")
