"""Training a process reward model of any family on written solutions with labelled steps.

The layout that scores a solution also trains on it, and the spec is saved with the model, so training and serving cannot differ. Losses on
single steps take rows of ``train.py``; losses on comparisons take groups of steps that continue the same beginning.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.lm.loading import load_causal_lm, load_tokenizer
from stepladder.lm.rows import check_ids, fit_context, pad
from stepladder.lm.training import (
    Batch,
    ProgressCallback,
    TrainReport,
    TrainSettings,
    identity_of,
    quiet,
    run_training,
    save_model,
    training_dtype,
)
from stepladder.prm.layout import SolutionLayout, token_id
from stepladder.prm.loading import has_head, load_reward_model
from stepladder.prm.losses import bce_loss, categorical_loss, hl_gauss_targets, mse_loss, pairwise_loss, two_hot_targets
from stepladder.prm.model import new_head_model, transform_logits
from stepladder.prm.reader import Solution
from stepladder.prm.specs import SPEC_FILE, PRMSpec
from stepladder.prm.train import TargetRow, collate_values

Loss = Literal["bce", "mse", "hl-gauss", "two-hot", "pairwise", "pairwise+mse"]
Scope = Literal["full", "head"]
LOSSES: tuple[Loss, ...] = ("bce", "mse", "hl-gauss", "two-hot", "pairwise", "pairwise+mse")
_CATEGORICAL = ("hl-gauss", "two-hot")
_COMPARING = ("pairwise", "pairwise+mse")
_NO_TARGET = float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledSolution:
    """A solution whose steps are judged."""

    solution: Solution
    """The solution."""
    labels: tuple[float | None, ...]
    """Per step, its target in [0, 1]; None where the step is context only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRow:
    """Steps that continue the same beginning, each as a path of its own."""

    paths: list[list[int]]
    """Tokens of every member up to where it is read; two or more."""
    targets: list[float]
    """Target of every member, in [0, 1]; not all equal."""

    @property
    def length(self) -> int:
        """Positions of the longest member."""
        return max(map(len, self.paths))

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded."""
        return sum(map(len, self.paths))


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
        init: Policy, whose body gets a new head where the spec needs one, or a process reward model of the spec, whose head is kept.
        solutions: Labelled solutions; one without any label, or too long for the context, is dropped and counted.
        out_dir: Where the trained model goes, whole or not at all; replaced if it exists.
        settings: How to train; ``batch_size`` counts solutions, or groups of compared steps.
        spec: How the model reads solutions and what its outputs are.
        loss: ``bce`` on soft or hard labels, ``mse`` on scores, ``hl-gauss`` and ``two-hot`` on the bins of a value head, ``pairwise``
            between labelled steps after the same beginning, ``pairwise+mse`` both at once.
        scope: ``full`` trains every weight (or adapters, as the settings say), ``head`` the head alone.
        head_first: Passes over the data with the head alone before everything is trained, >= 0.
        regression_weight: Weight of the ``mse`` part beside ``pairwise``, > 0.
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
    make = group_rows if loss in _COMPARING else step_rows
    rows: list[Any] = make(solutions, layout, dropped=dropped)
    with quiet():
        model = initialise_reader(init, spec, tokenizer, settings=settings, trust_remote_code=trust_remote_code)
    rows = fit_context(rows, model, dropped, what="labelled solutions")
    _check_ids(rows, model)
    _freeze_body(model, scope)
    columns = _columns(spec, tokenizer)
    objective = StepwiseObjective(loss_name=loss, spec=spec, columns=columns, regression_weight=regression_weight)

    def save(trained: PreTrainedModel, directory: Path) -> None:
        save_model(trained, directory, source=init, tokenizer=tokenizer, trust_remote_code=trust_remote_code)
        spec.save(directory)

    return run_training(
        model,
        rows,
        collate=collate_groups if loss in _COMPARING else collate_values,
        objective=objective,
        settings=settings,
        out_dir=Path(out_dir),
        identity=identity_of(settings, task="stepwise", start=str(init), rows=rows, objective=objective, scope=scope),
        save=save,
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
        _count(dropped, "label on a step without tokens", sum(label is not None for label in labelled.labels) - len(pairs))
        if not pairs:
            _count(dropped, "no label", 1)
            continue
        positions, targets = [read for read, _ in pairs], [label for _, label in pairs]
        seen.update(targets)
        rows.append(TargetRow(ids=list(laid.token_ids[: positions[-1] + 1]), positions=positions, targets=targets))
    if len(seen) < 2:
        raise DataFormatError(
            f"labelled solutions: labels must differ: got {', '.join(map(str, seen)) or 'none'} only -- give good and bad steps, or check "
            "what a neutral rating means"
        )
    return rows


def group_rows(solutions: Sequence[LabelledSolution], layout: SolutionLayout, *, dropped: dict[str, int]) -> list[GroupRow]:
    """Return one row per beginning after which labelled steps differ; what is left out is counted in ``dropped``.

    Raises:
        DataFormatError: If labels do not match steps or are out of range, nothing can be compared, or a solution does not fit the spec.
    """
    groups: dict[tuple[str, tuple[str, ...]], dict[str, tuple[float, str]]] = {}
    for labelled in solutions:
        _check_labels(labelled)
        solution = labelled.solution
        for depth, label in enumerate(labelled.labels):
            if label is not None:
                members = groups.setdefault((solution.question, solution.steps[:depth]), {})
                if (known := members.get(solution.steps[depth])) is None:
                    members[solution.steps[depth]] = (label, solution.place)
                else:
                    _count(dropped, "repeated step" if known[0] == label else "repeated step with another label", 1)
    rows = []
    for (question, prefix), members in groups.items():
        if len({label for label, _ in members.values()}) < 2:
            _count(dropped, "beginning without steps to compare", 1)
            continue
        laid = [(layout.lay_out(question, (*prefix, step), place=place), label) for step, (label, place) in members.items()]
        readable = [(each, label) for each, label in laid if each.reads[-1] is not None]
        _count(dropped, "label on a step without tokens", len(laid) - len(readable))
        if len({label for _, label in readable}) < 2:
            _count(dropped, "beginning without steps to compare", 1)
            continue
        rows.append(GroupRow(paths=[list(each.token_ids) for each, _ in readable], targets=[label for _, label in readable]))
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise DataFormatError(
            f"labelled solutions: a comparing loss needs steps with different labels after the same beginning: got none ({reasons}) "
            "-- use alternatives of steps, a tree of solutions, or the loss 'bce'"
        )
    return rows


def collate_groups(rows: Sequence[GroupRow]) -> Batch:
    """Lay the members of all groups out one below the other.

    Returns:
        ``inputs``: the model's arguments. ``members`` [B, G]: the row of every member, ``ends`` [B, G]: its last position, ``targets``
        [B, G], float32: NaN where a group has no such member.
    """
    paths = [path for row in rows for path in row.paths]
    width = max(len(row.paths) for row in rows)
    members = torch.zeros(len(rows), width, dtype=torch.long)
    ends, targets = torch.zeros_like(members), torch.full((len(rows), width), _NO_TARGET)
    at = 0
    for i, row in enumerate(rows):
        count = len(row.paths)
        members[i, :count] = torch.arange(at, at + count)
        ends[i, :count] = torch.tensor([len(path) - 1 for path in row.paths])
        targets[i, :count] = torch.tensor(row.targets)
        at += count
    return {"inputs": {"input_ids": pad(paths, value=0)}, "members": members, "ends": ends, "targets": targets}


@dataclass(frozen=True, kw_only=True)
class StepwiseObjective:
    """Mean loss over the labelled steps, or over the groups of compared steps."""

    loss_name: Loss
    """One of ``LOSSES``."""
    spec: PRMSpec
    """What the outputs are."""
    columns: tuple[int, ...] | None = None
    """Logits of a language model that are the outputs; None takes all."""
    regression_weight: float = 1.0
    """Weight of the regression beside the comparison."""

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of targets and of groups that can be compared."""
        targets = batch["targets"]
        known = ~targets.isnan()
        differ = torch.where(known, targets, -torch.inf).amax(-1) > torch.where(known, targets, torch.inf).amin(-1)
        return torch.stack([known.sum(), differ.sum()])

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the mean."""
        outputs = model(**batch["inputs"], use_cache=False).logits
        outputs = (outputs if self.columns is None else outputs[..., list(self.columns)]).float()
        targets, num_targets = batch["targets"], counts[0].float()
        if self.loss_name in _CATEGORICAL:
            make = hl_gauss_targets if self.loss_name == "hl-gauss" else two_hot_targets
            return categorical_loss(outputs, make(targets, num_bins=self.spec.bins), num_targets)
        if self.loss_name in _COMPARING:
            outputs = outputs[batch["members"], batch["ends"]]
        values = outputs[..., 0] if outputs.shape[-1] == 1 else outputs[..., 1] - outputs[..., 0]
        if self.loss_name == "bce":
            return bce_loss(values, targets, num_targets)
        if self.loss_name == "mse":
            return mse_loss(transform_logits(values, self.spec.transform), targets, num_targets)
        compared = pairwise_loss(values, targets, counts[1].float())
        if self.loss_name == "pairwise":
            return compared
        return compared + self.regression_weight * mse_loss(transform_logits(values, self.spec.transform), targets, num_targets)


def initialise_reader(
    init: str | Path, spec: PRMSpec, tokenizer: PreTrainedTokenizerBase, *, settings: TrainSettings, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return a model to train under a spec: with its own head where it has one, else with a new one drawn from the seed.

    Raises:
        CheckpointError: If the model cannot be read or has a head of another width.
        ConfigError: If device or dtype cannot be had.
    """
    options: dict[str, Any] = {"device": settings.device, "dtype": training_dtype(settings), "trust_remote_code": trust_remote_code}
    if spec.family == "vocabulary":
        return load_causal_lm(init, **options)
    if has_head(init):
        return load_reward_model(init, spec, tokenizer, **options)
    return new_head_model(init, num_outputs=spec.num_outputs, seed=settings.seed, **options)


def _columns(spec: PRMSpec, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...] | None:
    if spec.family != "vocabulary":
        return None
    assert spec.good is not None and spec.bad is not None, "a vocabulary spec has both"
    return token_id(tokenizer, spec.bad, spec.bad_id), token_id(tokenizer, spec.good, spec.good_id)


def _freeze_body(model: PreTrainedModel, scope: Scope) -> None:
    if scope == "full":
        return
    head = next((name for name in ("score", "classifier", "lm_head") if hasattr(model, name)), None)
    if head is None or (head == "lm_head" and model.config.tie_word_embeddings):
        raise CheckpointError("PRM training: a head trained alone must have own weights: it shares the embeddings' -- train all")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(f"{head}."))


def _check_choices(spec: PRMSpec, settings: TrainSettings, *, loss: str, scope: str, head_first: float) -> None:
    rules = {
        f"loss must be one of {', '.join(LOSSES)}: got {loss!r}": loss in LOSSES,
        f"scope must be 'full' or 'head': got {scope!r}": scope in ("full", "head"),
        f"the family must be trained on labelled steps: got {spec.family!r}": spec.family in ("value-head", "two-class", "vocabulary"),
        f"loss {loss!r} and bins must go together: got bins={spec.bins}": (spec.bins > 1) == (loss in _CATEGORICAL),
        f"loss {loss!r} needs scores that are a sigmoid: the spec's are {spec.transform!r}": loss != "bce" or spec.transform == "sigmoid",
        "adapters cannot be trained with the head alone: got lora with scope 'head'": scope == "full" or settings.lora is None,
        f"head_first must be >= 0, and 0 where only the head is trained: got {head_first}": head_first == 0
        or (head_first > 0 and scope == "full"),
    }
    for message, holds in rules.items():
        if not holds:
            raise ConfigError(f"PRM training: {message} -- change one of them")


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


def _check_ids(rows: Sequence[Any], model: PreTrainedModel) -> None:
    vocabulary: int = model.get_input_embeddings().num_embeddings  # type: ignore[assignment]
    for number, row in enumerate(rows):
        for path in row.paths if isinstance(row, GroupRow) else [row.ids]:
            check_ids(path, vocabulary=vocabulary, place=f"labelled solution {number}")


def _count(dropped: dict[str, int], reason: str, count: int) -> None:
    if count:
        dropped[reason] = dropped.get(reason, 0) + count
