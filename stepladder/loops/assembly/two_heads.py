"""Training a two-head model: a language model and a value head on its hidden states, by one loss.

    L = -(1/n) sum over completion tokens of log pi  +  weight * (1/m) sum over targets of the value loss

Both parts read one forward pass. With packed rows, a solution and the targets of its steps are one path of their problem's tree.

Source: Chen et al. 2024, "AlphaMath almost zero", equation 4. There the value loss is the squared error of values in [-1, 1], four times
that of the same values in [0, 1]; here any loss on single values in [0, 1].

Axes: B rows, T columns, S completions of at most L tokens, C columns with logits, M targets, F outputs of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepladder.lm.completions import IGNORE, CompletionRow, completion_logps, read_columns
from stepladder.lm.flat import body_of
from stepladder.lm.loading import load_tokenizer
from stepladder.lm.packing import PackedRow, lay_out
from stepladder.lm.settings import TrainSettings
from stepladder.lm.trainer import Batch, ProgressCallback
from stepladder.lm.training import TrainReport, identity_of, run_training, save_model
from stepladder.lm.training_rows import check_provenance, fit_context, pad, vocabulary_size
from stepladder.lm.tree_attention import core_model, tree_inputs
from stepladder.policy.fine_tuning import completion_rows, load_policy
from stepladder.policy.preference_losses import sft_loss
from stepladder.prm.objective import StepObjective
from stepladder.prm.probes import continue_head, new_head, save_head
from stepladder.prm.sources import VALUE_HEAD_FOLDER, has_value_head
from stepladder.prm.specs import PRMSpec
from stepladder.prm.target_rows import TargetRow, target_rows
from stepladder.types import Trace, ValueRow

HEAD_NAME = "value_head"
"""Name of the head among the modules of a model in training."""

JointRow = CompletionRow | TargetRow
_Read = tuple[JointRow, Int[np.ndarray, "_"]]
"""A row, and the index of each of its tokens among the tokens of all rows of the batch."""


class _ReadHead(nn.Module):
    """A value head that keeps what it said of the last pass."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head
        self.outputs = torch.zeros(0)

    def read(self, _module: nn.Module, _arguments: Any, output: Any) -> None:
        """Read the hidden states that a body returns."""
        self.outputs = self.head(output[0].to(self.head.weight.dtype)).float()


@dataclass(frozen=True, kw_only=True)
class JointObjective:
    """Likelihood of completions plus a weighted loss on values."""

    values: StepObjective
    """The loss on the values; its counts are those of targets."""
    weight: float = 0.1
    """Weight of the value loss, > 0."""

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of completion tokens and of targets."""
        targets = batch["targets"]
        return torch.stack([(targets != IGNORE).sum(), targets.new_tensor(len(batch["values"]))])

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the loss of the update."""
        # The smallest counts are 1: a part without rows adds 0.
        counts = counts.clamp(min=1)
        likelihood = sft_loss(completion_logps(model, batch).sum(-1), counts[0].float())
        outputs = getattr(core_model(model), HEAD_NAME).outputs.flatten(0, 1)[batch["value_sources"]]
        return likelihood + self.weight * self.values.loss_of(outputs, {"targets": batch["values"]}, counts[1:])


def train_two_heads(
    model_dir: str | Path,
    traces: Sequence[Trace],
    values: Sequence[ValueRow],
    out_dir: str | Path,
    settings: TrainSettings,
    *,
    renderer_hash: str,
    spec: PRMSpec,
    objective: JointObjective,
    trust_remote_code: bool = False,
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train a policy on solutions and its value head on the targets of steps, and save them as one directory.

    A start model with a head of the same shape goes on with it; another gets a new one.

    Args:
        model_dir: The policy to train, a directory or hub id.
        traces: Solutions to imitate, at least one.
        values: Paths with targets; one without any is dropped and counted.
        out_dir: Directory of the trained model, written completely or not at all; replaced if it exists.
        settings: Training settings; ``batch_size`` counts solutions and paths.
        renderer_hash: Hash that every row must carry.
        spec: How the head is read; a ``probe`` whose body is "..".
        objective: The loss.
        trust_remote_code: Run code that ships with a hub model.
        on_progress: Called after every update.

    Raises:
        BackendError: If the loss stops being finite, or the model has no body of its own to read.
        CheckpointError: If a model cannot be read or written, or ``<out_dir>.work`` belongs to another training.
        DataFormatError: If there are no traces, or a row comes from another renderer or vocabulary or breaks its format.
    """
    check_provenance((row.provenance for row in (*traces, *values)), renderer_hash=renderer_hash, what="traces and value rows")
    model, dropped = load_policy(model_dir, settings, trust_remote_code), dict[str, int]()
    vocabulary, lag = vocabulary_size(model), int(spec.read == "before-end")
    made = [*completion_rows(traces, vocabulary=vocabulary), *target_rows(values, vocabulary=vocabulary, dropped=dropped, lag=lag)]
    rows: list[JointRow] = fit_context(made, model, dropped, what="traces and value rows")
    _add_head(model, model_dir, spec, seed=settings.seed)
    tokenizer = load_tokenizer(model_dir, trust_remote_code=trust_remote_code)

    def save(trained: PreTrainedModel, directory: Path) -> None:
        _save(trained, directory, spec, source=model_dir, tokenizer=tokenizer, trust_remote_code=trust_remote_code)

    return run_training(
        model,
        rows,
        collate=collate_joint,
        collate_packed=collate_packed_joint,
        objective=objective,
        settings=settings,
        out_dir=Path(out_dir),
        identity=identity_of(settings, task="two heads", start=str(model_dir), rows=rows, objective=objective),
        save=save,
        on_progress=on_progress,
        dropped=dropped,
    )


def _add_head(model: PreTrainedModel, source: str | Path, spec: PRMSpec, *, seed: int) -> None:
    """Give a model its head, which reads the hidden states of every pass."""
    head = new_head(model.config.get_text_config().hidden_size, num_outputs=spec.num_outputs, seed=seed)
    earlier = Path(source) / VALUE_HEAD_FOLDER
    if has_value_head(str(source)) and PRMSpec.load(earlier).num_outputs == spec.num_outputs:
        continue_head(head, earlier)
    reading = _ReadHead(head.to(model.device))
    model.add_module(HEAD_NAME, reading)
    # The head is looked up in every pass, because wrappers of the model may replace it.
    body_of(model).register_forward_hook(lambda *parts: getattr(model, HEAD_NAME).read(*parts))


def _save(
    model: PreTrainedModel,
    directory: Path,
    spec: PRMSpec,
    *,
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    trust_remote_code: bool,
) -> None:
    """Write the language model as any other, and the head into a folder of its own."""
    head = getattr(model, HEAD_NAME).head
    delattr(model, HEAD_NAME)
    save_model(model, directory, source=source, tokenizer=tokenizer, trust_remote_code=trust_remote_code)
    save_head(head, directory / VALUE_HEAD_FOLDER, spec=spec, tokenizer=tokenizer, source=source, dtype=torch.float32)


def collate_joint(rows: Sequence[JointRow]) -> Batch:
    """Lay out one row per sequence, padded on the right.

    Returns:
        ``inputs``: the model's arguments. ``targets``, int64 ``[S, L]``, ``columns`` ``[C]`` and ``sources`` ``[S, L]``: as in
        ``collate_packed_completions``. ``values``, float32 ``[M]``: every target, and ``value_sources``, ``[M]``: the token that learns it,
        as an index into the tokens of all rows.
    """
    input_ids = pad([row.sequences[0] for row in rows], value=0)
    width = input_ids.shape[1]
    read = [(row, number * width + np.arange(row.length)) for number, row in enumerate(rows)]
    return {"inputs": {"input_ids": input_ids}, **_read_parts(read, width)}


def collate_packed_joint(trees: Sequence[PackedRow[JointRow]], *, width: int = 0) -> Batch:
    """Lay out trees of rows. The batch has the parts of ``collate_joint``, for the arguments of ``run_rows``."""
    layout = lay_out([tree.tree for tree in trees], width=width)
    read = [
        (row, path + offset)
        for tree, offset in zip(trees, layout.offsets, strict=True)
        for row, path in zip(tree.rows, tree.tree.paths, strict=True)
    ]
    return {"inputs": tree_inputs(layout), **_read_parts(read, layout.ends.shape[1])}


def _read_parts(read: Sequence[_Read], width: int) -> Batch:
    completions = [(row, places) for row, places in read if isinstance(row, CompletionRow)]
    targeted = [(row, places) for row, places in read if isinstance(row, TargetRow)]
    # The last token of the prompt predicts the first of the completion.
    learned = [places[len(row.prompt_ids) - 1 :] for row, places in completions] or [np.zeros(1, dtype=np.int64)]
    value_sources = [places[row.positions] for row, places in targeted] or [np.zeros(0, dtype=np.int64)]
    return {
        "targets": pad([row.targets for row, _ in completions] or [[IGNORE]], value=IGNORE),
        **read_columns(np.concatenate(learned), np.array([len(each) for each in learned]), width),
        "values": torch.tensor([target for row, _ in targeted for target in row.targets], dtype=torch.float32),
        "value_sources": torch.from_numpy(np.concatenate(value_sources)),
    }
