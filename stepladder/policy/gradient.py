"""Training the policy by policy gradients: rows with an advantage for every sampled token, and the clipped losses on them.

The layers are those of ``fine_tuning.py``. Solutions of one problem are packed into trees: a token that several share is forwarded once,
and each of them has its own advantage, ratio and bound there. So loss and gradient are those of separate rows, clipped or not.

What is known of single tokens (advantages, log-probabilities) is stored for the learned ones, in their order, and laid out by the targets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepladder.errors import DataFormatError
from stepladder.lm.completions import (
    IGNORE,
    CompletionRow,
    collate_completions,
    collate_packed_completions,
    completion_logps,
)
from stepladder.lm.packing import PackedRow
from stepladder.lm.references import add_reference, learned_logps
from stepladder.lm.settings import TrainSettings
from stepladder.lm.training import Batch, ProgressCallback, TrainReport, identity_of, run_training
from stepladder.lm.training_rows import check_provenance, fit_context, vocabulary_size
from stepladder.policy.fine_tuning import completion_row, load_policy, saver
from stepladder.policy.gradient_losses import clipped_losses, reference_divergences, sequence_log_ratios, truncated_weights
from stepladder.policy.gradient_settings import GRPO, DrGRPO, GradientLoss
from stepladder.types import AdvantageRow


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientRow:
    """A completion with what the loss knows of its learned tokens; entry i of every tuple belongs to learned token i."""

    completion: CompletionRow
    """The solution, or the step after its prefix."""
    advantages: tuple[float, ...]
    """Advantages."""
    sampler_logps: tuple[float, ...]
    """Log-probabilities under the policy that sampled, in nats."""
    old_logps: tuple[float, ...]
    """The same under the policy that ratios compare with: the sampler, or the policy before the training."""
    ref_logps: tuple[float, ...] = ()
    """The same under the reference model; empty if the loss needs none."""

    @property
    def group(self) -> str:
        """Problem of the completion."""
        return self.completion.group

    @property
    def sequences(self) -> tuple[list[int], ...]:
        """The forwarded tokens."""
        return self.completion.sequences

    @property
    def length(self) -> int:
        """Positions forwarded."""
        return self.completion.length

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded."""
        return self.completion.num_tokens

    def with_reference(self, logps: Sequence[Sequence[float]]) -> Self:
        """Return the row with the reference's log-probabilities of its learned tokens."""
        return replace(self, ref_logps=tuple(logps[0]))


@dataclass(frozen=True, kw_only=True)
class GradientObjective:
    """Clipped policy-gradient loss on completions with advantages."""

    settings: GradientLoss = field(default_factory=GRPO)
    """The loss with its settings."""

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of learned tokens and of completions."""
        learned = batch["targets"] != IGNORE
        return torch.stack([learned.sum(), learned.new_tensor(len(learned), dtype=torch.long)])

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the mean loss of the update."""
        learned = batch["targets"] != IGNORE
        losses = torch.where(learned, self._token_losses(completion_logps(model, batch), batch, learned), 0.0)
        num_tokens, num_rows = counts.float()
        match self.settings.mean:
            case "tokens":
                return losses.sum() / num_tokens
            case "sequences":
                return (losses.sum(-1) / learned.sum(-1).clamp(min=1)).sum() / num_rows
            case "constant":
                assert isinstance(self.settings, DrGRPO), "it has the constant"
                return losses.sum() / (num_rows * self.settings.length)

    def _token_losses(self, logps: Tensor, batch: Batch, learned: Tensor) -> Tensor:
        settings, old = self.settings, batch["old_logps"]
        losses = clipped_losses(
            sequence_log_ratios(logps, old, learned) if settings.by_sequence else logps - old,
            batch["advantages"],
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip or None,
        )
        if settings.truncation:
            losses = losses * truncated_weights(old, batch["sampler_logps"], truncation=settings.truncation)
        if settings.kl_weight:
            losses = losses + settings.kl_weight * reference_divergences(logps, batch["ref_logps"])
        return losses


def train_gradient(
    model_dir: str | Path,
    rows: Sequence[AdvantageRow],
    out_dir: str | Path,
    settings: TrainSettings,
    *,
    renderer_hash: str,
    objective: GradientObjective | None = None,
    reference: str | Path | None = None,
    trust_remote_code: bool = False,
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train a policy on advantages and save it to ``out_dir`` as a Hugging Face directory.

    The ratios of the loss compare with the log-probabilities that the sampling policy stored at temperature 1. With
    ``objective.settings.truncation`` they compare with the start model, run once over the rows, and the stored ones give the weights.

    Args:
        model_dir: Start model, a directory or hub id.
        rows: Solutions or steps with advantages.
        out_dir: Directory of the trained model, written completely or not at all; replaced if it exists.
        settings: Training settings; ``batch_size`` counts rows.
        renderer_hash: Hash that every row must carry.
        objective: The loss; None is GRPO with its defaults.
        reference: Reference model, a directory or hub id, if the loss has a ``kl_weight``; None is the start model.
        trust_remote_code: Run code that ships with a hub model.
        on_progress: Called after every update.

    Returns:
        The result of the training.

    Raises:
        BackendError: If the loss stops being finite.
        CheckpointError: If a model cannot be read or written, or ``<out_dir>.work`` belongs to another training.
        ConfigError: If the device does not exist.
        DataFormatError: If there are no rows, one comes from another renderer or vocabulary, one has an empty prompt or completion, or not
            one advantage and one log-probability per token, or all are longer than the model's context.
    """
    objective = objective or GradientObjective()
    check_provenance((row.provenance for row in rows), renderer_hash=renderer_hash, what="rows with advantages")
    model = load_policy(model_dir, settings, trust_remote_code)
    save = saver(model_dir, trust_remote_code)
    dropped: dict[str, int] = {}
    made = fit_context(gradient_rows(rows, vocabulary=vocabulary_size(model)), model, dropped, what="rows with advantages")
    identity = identity_of(settings, task="gradient", start=str(model_dir), rows=made, objective=objective, reference=str(reference))
    other = None if reference is None else lambda: load_policy(reference, settings, trust_remote_code)
    return run_training(
        model,
        with_models(model, made, settings, loss=objective.settings, reference=other),
        collate=collate_gradient,
        collate_packed=collate_packed_gradient,
        objective=objective,
        settings=settings,
        out_dir=Path(out_dir),
        identity=identity,
        save=save,
        on_progress=on_progress,
        dropped=dropped,
    )


def gradient_rows(rows: Sequence[AdvantageRow], *, vocabulary: int) -> list[GradientRow]:
    """Return one training row per record.

    Raises:
        DataFormatError: If a prompt or completion is empty, an id is outside the vocabulary, or there is not one advantage and one
            log-probability per token.
    """
    made = []
    for i, row in enumerate(rows):
        place = f"row with advantages {i} (problem {row.problem_id!r})"
        completion = completion_row(row, row.completion_ids, row.completion_given, vocabulary=vocabulary, place=place)
        if not len(row.advantages) == len(row.logps) == len(row.completion_ids):
            raise DataFormatError(
                f"{place}: every token must have an advantage and a log-probability: got {len(row.advantages)} and {len(row.logps)} for "
                f"{len(row.completion_ids)} tokens -- label the trees again"
            )
        learned = [token != IGNORE for token in completion.targets]
        logps = tuple(logp for logp, counts in zip(row.logps, learned, strict=True) if counts)
        advantages = tuple(value for value, counts in zip(row.advantages, learned, strict=True) if counts)
        made.append(GradientRow(completion=completion, advantages=advantages, sampler_logps=logps, old_logps=logps))
    return made


def with_models(
    model: PreTrainedModel,
    rows: Sequence[GradientRow],
    settings: TrainSettings,
    *,
    loss: GradientLoss,
    reference: Callable[[], PreTrainedModel] | None = None,
) -> list[GradientRow]:
    """Return the rows with the log-probabilities of other models that a loss needs, each run once over the packed rows.

    Args:
        model: The policy before the training.
        rows: The rows.
        settings: Training settings; the models run under them.
        loss: The loss.
        reference: Loads the reference model; None is ``model``.
    """

    def seen_by(other: PreTrainedModel) -> list[GradientRow]:
        return add_reference(other, rows, settings, collate=collate_gradient, collate_packed=collate_packed_gradient, read=learned_logps)

    made = list(rows)
    own = seen_by(model) if loss.truncation or (loss.kl_weight and reference is None) else []
    if loss.truncation:
        made = [replace(row, old_logps=each.ref_logps) for row, each in zip(made, own, strict=True)]
    if loss.kl_weight:
        seen = own if reference is None else seen_by(reference())
        made = [replace(row, ref_logps=each.ref_logps) for row, each in zip(made, seen, strict=True)]
    return made


def collate_gradient(rows: Sequence[GradientRow]) -> Batch:
    """Lay out rows one by one.

    Returns:
        The batch of ``collate_completions`` with ``advantages``, ``sampler_logps``, ``old_logps`` and ``ref_logps``, float32, shaped like
        ``targets``; 0 where nothing is learned, and where the loss needs no reference.
    """
    return _with_tokens(collate_completions([row.completion for row in rows]), rows)


def collate_packed_gradient(trees: Sequence[PackedRow[GradientRow]], *, width: int = 0) -> Batch:
    """Lay out trees of rows, with the additions of ``collate_gradient``."""
    completions = [PackedRow(rows=[row.completion for row in tree.rows], tree=tree.tree) for tree in trees]
    return _with_tokens(collate_packed_completions(completions, width=width), [row for tree in trees for row in tree.rows])


def _with_tokens(batch: Batch, rows: Sequence[GradientRow]) -> Batch:
    learned = batch["targets"] != IGNORE

    def laid_out(name: str) -> Tensor:
        table, values = torch.zeros(learned.shape), [value for row in rows for value in getattr(row, name)]
        # Only a loss without a reference has none.
        if values:
            table[learned] = torch.tensor(values)
        return table

    return {**batch, **{name: laid_out(name) for name in ("advantages", "sampler_logps", "old_logps", "ref_logps")}}
