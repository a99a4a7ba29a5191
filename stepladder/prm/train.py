"""Training the process reward model: value regression at the tokens of every step that has a target.

``value_rows`` makes rows from stored records, ``collate_values`` lays them out, ``ValueObjective`` turns outputs and targets into a loss of
``losses.py``. By default the paths of a problem are merged into trees (``collate_packed_values``): one forward pass scores every step of a
tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepladder.errors import ConfigError, DataFormatError
from stepladder.lm.loading import load_tokenizer
from stepladder.lm.packing import PackedRow, lay_out
from stepladder.lm.rows import check_ids, check_provenance, fit_context, pad
from stepladder.lm.training import (
    Batch,
    ProgressCallback,
    TrainReport,
    TrainSettings,
    identity_of,
    load_options,
    quiet,
    run_training,
    save_model,
)
from stepladder.lm.tree_attention import run_rows, tree_inputs
from stepladder.prm.losses import bce_loss, mse_loss
from stepladder.prm.model import initialise_prm, transform_logits
from stepladder.prm.specs import Transform
from stepladder.types import ValueRow

NO_TARGET = float("nan")

Loss = Literal["bce", "mse"]

Supervise = Literal["step-end", "every-token"]
"""Which tokens of a step learn its target: the last one, where scores are read, or all of them (Cobbe et al. 2021, section 4.2)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetRow:
    """A path of tokens with targets at some of them."""

    ids: list[int]
    """Prompt and steps, up to the last step with a target."""
    positions: list[int]
    """Indices into ``ids`` of the tokens that learn a target, ascending; not empty."""
    targets: list[float]
    """Their targets, in [0, 1]."""
    group: str = ""
    """Problem of the row."""

    @property
    def sequences(self) -> tuple[list[int], ...]:
        """What is forwarded."""
        return (self.ids,)

    @property
    def length(self) -> int:
        """Positions forwarded."""
        return len(self.ids)

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded."""
        return len(self.ids)


def train_value(
    init_dir: str | Path,
    rows: Sequence[ValueRow],
    out_dir: str | Path,
    settings: TrainSettings,
    *,
    renderer_hash: str,
    loss: Loss = "bce",
    supervise: Supervise = "step-end",
    trust_remote_code: bool = False,
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train a process reward model and save it, with its ``PRMSpec`` and tokenizer, as a Hugging Face directory.

    Args:
        init_dir: Policy (which gets a new value head) or earlier process reward model.
        rows: Paths with targets; one without any target is dropped and counted, and tokens after the last target are not forwarded.
        out_dir: Where the trained model goes, whole or not at all; replaced if it exists.
        settings: How to train; ``batch_size`` counts paths.
        renderer_hash: Hash that every row must carry.
        loss: ``bce`` on soft targets, or ``mse`` between value and target. The mean runs over the targets of an update.
        supervise: Which tokens of a step learn its target.
        trust_remote_code: Run code that ships with a hub model.
        on_progress: Called after every update.

    Returns:
        What the training came to.

    Raises:
        BackendError: If the loss stops being finite.
        CheckpointError: If a model cannot be read or written, or ``<out_dir>.work`` belongs to another training.
        ConfigError: If the device cannot be had, or ``bce`` is asked of a model whose scores are not a sigmoid of its outputs.
        DataFormatError: If there are no rows, one comes from another renderer or vocabulary or breaks its format, or none is left after
            dropping.
    """
    check_provenance((row.provenance for row in rows), renderer_hash=renderer_hash, what="value rows")
    with quiet():
        model, spec = initialise_prm(
            init_dir,
            renderer_hash=renderer_hash,
            seed=settings.seed,
            **load_options(settings),
            trust_remote_code=trust_remote_code,
        )
    objective = ValueObjective(loss_name=loss, transform=spec.transform)
    dropped: dict[str, int] = {}
    targets = target_rows(rows, vocabulary=model.get_input_embeddings().num_embeddings, supervise=supervise, dropped=dropped)  # pyright: ignore
    targets = fit_context(targets, model, dropped, what="value rows")
    tokenizer = load_tokenizer(init_dir, trust_remote_code=trust_remote_code)

    def save(trained: PreTrainedModel, directory: Path) -> None:
        save_model(trained, directory, source=init_dir, tokenizer=tokenizer, trust_remote_code=trust_remote_code)
        spec.save(directory)

    return run_training(
        model,
        targets,
        collate=collate_values,
        collate_packed=collate_packed_values,
        objective=objective,
        settings=settings,
        out_dir=Path(out_dir),
        identity=identity_of(settings, task="value", start=str(init_dir), rows=targets, objective=objective),
        save=save,
        on_progress=on_progress,
        dropped=dropped,
    )


def target_rows(
    rows: Sequence[ValueRow], *, vocabulary: int, dropped: dict[str, int], supervise: Supervise = "step-end"
) -> list[TargetRow]:
    """Return one row per path that has a target; the others are counted in ``dropped``.

    Raises:
        DataFormatError: If a prompt is empty, steps and targets differ in number, a step with a target has no tokens, a target is outside
            [0, 1], or an id is outside the vocabulary.
    """
    kept = []
    for i, row in enumerate(rows):
        place = f"value row {i} (problem {row.problem_id!r})"
        _check(row, place)
        ids = [*row.prompt_ids, *(token for step in row.step_ids for token in step)]
        check_ids(ids, vocabulary=vocabulary, place=place)
        ends = list(accumulate((len(step) for step in row.step_ids), initial=len(row.prompt_ids)))
        scored = [
            (position, target)
            for begin, end, target in zip(ends, ends[1:], row.targets, strict=False)
            if target is not None
            for position in range(begin if supervise == "every-token" else end - 1, end)
        ]
        if not scored:
            dropped["no target"] = dropped.get("no target", 0) + 1
            continue
        positions, targets = zip(*scored, strict=True)
        kept.append(TargetRow(ids=ids[: positions[-1] + 1], positions=list(positions), targets=list(targets), group=row.problem_id))
    return kept


def collate_values(rows: Sequence[TargetRow]) -> Batch:
    """Lay rows out one below the other.

    Returns:
        ``inputs``: the model's arguments. ``targets``, float32 ``[B, T]``: the target where a token learns one, NaN elsewhere.
    """
    input_ids = pad([row.ids for row in rows], value=0)
    targets = torch.full(input_ids.shape, NO_TARGET)
    for i, row in enumerate(rows):
        targets[i, row.positions] = torch.tensor(row.targets)
    return {"inputs": {"input_ids": input_ids}, "targets": targets}


def collate_packed_values(trees: Sequence[PackedRow[TargetRow]], *, width: int = 0) -> Batch:
    """Lay trees of paths out.

    Returns:
        ``inputs``: arguments of ``run_rows``. ``targets``, float32 ``[M]``: every target. ``sources``, ``[M]``: where its step ends, as an
        index into the tokens of all rows; steps of equal tokens after equal tokens end at the same one.
    """
    layout = lay_out([tree.tree for tree in trees], width=width)
    sources, targets = [], []
    for tree, offset in zip(trees, layout.offsets, strict=True):
        for row, path in zip(tree.rows, tree.tree.paths, strict=True):
            sources.append(path[row.positions] + offset)
            targets += row.targets
    return {"inputs": tree_inputs(layout), "targets": torch.tensor(targets), "sources": torch.from_numpy(np.concatenate(sources))}


def step_outputs(model: nn.Module, batch: Batch) -> Float[Tensor, "*shape"]:
    """Return the raw outputs of a batch, packed or not, in the shape of its targets, float32."""
    outputs = run_rows(model, batch["inputs"])[..., 0].float()
    return outputs.flatten()[batch["sources"]] if "sources" in batch else outputs


@dataclass(frozen=True, kw_only=True)
class ValueObjective:
    """Mean loss over the targets."""

    loss_name: Loss = "bce"
    """``bce`` or ``mse``."""
    transform: Transform = "sigmoid"
    """From output to value."""

    def __post_init__(self) -> None:
        if self.loss_name not in ("bce", "mse"):
            raise ConfigError(f"PRM training: loss must be 'bce' or 'mse': got {self.loss_name!r}")
        if self.loss_name == "bce" and self.transform != "sigmoid":
            raise ConfigError(f"PRM training: loss 'bce' needs scores that are a sigmoid: the model's are {self.transform!r} -- use 'mse'")

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of targets."""
        return (~batch["targets"].isnan()).sum()[None]

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the mean over the targets."""
        logits = step_outputs(model, batch)
        num_targets = counts[0].float()
        if self.loss_name == "bce":
            return bce_loss(logits, batch["targets"], num_targets)
        return mse_loss(transform_logits(logits, self.transform), batch["targets"], num_targets)


def _check(row: ValueRow, place: str) -> None:
    if not row.prompt_ids:
        raise DataFormatError(f"{place}: the prompt must have at least one token: got none -- drop the row")
    if len(row.step_ids) != len(row.targets):
        raise DataFormatError(f"{place}: every step needs a target or None: got {len(row.step_ids)} steps and {len(row.targets)} targets")
    for number, (step, target) in enumerate(zip(row.step_ids, row.targets, strict=True), start=1):
        if target is None:
            continue
        if not step:
            raise DataFormatError(f"{place}: step {number} must have tokens where it has a target: got none -- set its target to None")
        if not 0.0 <= target <= 1.0:
            raise DataFormatError(f"{place}: the target of step {number} must be in [0, 1]: got {target!r}")
