"""The loss from a model's outputs at the read tokens of steps. It is the same for rows of the policy's tokens and of written text."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepladder.errors import check
from stepladder.lm.training import Batch
from stepladder.lm.tree_attention import run_rows
from stepladder.prm.new_models import transform_logits
from stepladder.prm.specs import PRMSpec
from stepladder.prm.value_losses import bce_loss, categorical_loss, hl_gauss_targets, mse_loss, pairwise_loss, two_hot_targets

Loss = Literal["bce", "mse", "hl-gauss", "two-hot", "pairwise", "pairwise+mse", "listwise"]
LOSSES: tuple[Loss, ...] = ("bce", "mse", "hl-gauss", "two-hot", "pairwise", "pairwise+mse", "listwise")
CATEGORICAL = ("hl-gauss", "two-hot")
"""Losses on the bins of a value head."""
COMPARING = ("pairwise", "pairwise+mse", "listwise")
"""Losses on groups: steps after the same beginning, or (``listwise``) everything of one problem."""


def check_loss(loss: str, spec: PRMSpec) -> None:
    """Refuse a loss that the outputs of a spec cannot be trained with.

    Raises:
        ConfigError: If they do not go together, or the loss is unknown.
    """
    remedy, trained = "-- change one of them", ("value-head", "two-class", "vocabulary", "probe")
    check(loss in LOSSES, f"PRM training: loss must be one of {', '.join(LOSSES)}: got {loss!r} {remedy}")
    check(spec.family in trained, f"PRM training: the family must be trained on labelled steps: got {spec.family!r} {remedy}")
    goes_with_bins = (spec.bins > 1) == (loss in CATEGORICAL)
    check(goes_with_bins, f"PRM training: loss {loss!r} and bins must go together: got bins={spec.bins} {remedy}")
    is_sigmoid = loss != "bce" or spec.transform == "sigmoid"
    check(is_sigmoid, f"PRM training: loss {loss!r} needs scores that are a sigmoid: the model's are {spec.transform!r} {remedy}")


def step_outputs(model: nn.Module, batch: Batch, columns: tuple[int, ...] | None = None) -> Float[Tensor, "*shape F"]:
    """Return the raw outputs of a batch, packed or not, in the shape of its targets and one more axis, float32."""
    outputs = run_rows(model, batch["inputs"])
    outputs = (outputs if columns is None else outputs[..., list(columns)]).float()
    return outputs.flatten(0, 1)[batch["sources"]] if "sources" in batch else outputs


@dataclass(frozen=True, kw_only=True)
class StepObjective:
    """Mean loss over the targets, or over the compared groups."""

    loss_name: Loss = "bce"
    """One of ``LOSSES``."""
    spec: PRMSpec = field(default_factory=PRMSpec)
    """What the outputs are."""
    columns: tuple[int, ...] | None = None
    """Logits of a language model that are the outputs; None takes all."""
    regression_weight: float = 1.0
    """Weight of the regression, added to the comparison."""

    def __post_init__(self) -> None:
        check_loss(self.loss_name, self.spec)

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of targets and of groups that can be compared."""
        num_targets = (~batch["targets"].isnan()).sum()
        groups = batch["pairs"].any((1, 2)).sum() if "pairs" in batch else torch.zeros_like(num_targets)
        return torch.stack([num_targets, groups])

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the mean."""
        return self.loss_of(step_outputs(model, batch, self.columns), batch, counts)

    def loss_of(self, outputs: Float[Tensor, "*shape F"], batch: Batch, counts: Tensor) -> Tensor:
        """Return the share of a batch whose outputs are known."""
        targets, num_targets = batch["targets"], counts[0].float()
        if self.loss_name in CATEGORICAL:
            make = hl_gauss_targets if self.loss_name == "hl-gauss" else two_hot_targets
            return categorical_loss(outputs, make(targets, num_bins=self.spec.bins), num_targets)
        values = outputs[..., 0] if outputs.shape[-1] == 1 else outputs[..., 1] - outputs[..., 0]
        if self.loss_name == "bce":
            return bce_loss(values, targets, num_targets)
        if self.loss_name == "mse":
            return mse_loss(transform_logits(values, self.spec.transform), targets, num_targets)
        compared = pairwise_loss(values, targets, counts[1].float(), pairs=batch["pairs"])
        if self.loss_name != "pairwise+mse":
            return compared
        return compared + self.regression_weight * mse_loss(transform_logits(values, self.spec.transform), targets, num_targets)
