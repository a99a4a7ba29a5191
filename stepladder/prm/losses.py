"""Losses of the process reward model, as pure functions over the raw outputs at step ends.

A position without a target holds NaN and adds neither loss nor gradient. A mean runs over an explicit count, so that an update split
into several forward passes has exactly the gradient of one undivided pass.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def bce_loss(
    logits: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"], num_targets: Float[Tensor, ""] | float | int | None = None
) -> Float[Tensor, ""]:
    """Return the mean binary cross-entropy against soft targets.

        L = -sum_i [y_i log sigmoid(z_i) + (1 - y_i) log sigmoid(-z_i)] / num_targets

    It is least where sigmoid(z) is the mean target, which makes it proper for Monte Carlo estimates.

    Args:
        logits: Raw outputs z.
        targets: y in [0, 1], NaN where there is none.
        num_targets: Targets that the mean runs over, > 0; None counts those given.

    Returns:
        A scalar >= the mean entropy of the targets.
    """
    present = ~targets.isnan()
    logits, targets = _present_only(logits, present), _present_only(targets, present)
    return _masked_mean(F.binary_cross_entropy_with_logits(logits, targets, reduction="none"), present, num_targets)


def mse_loss(
    values: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"], num_targets: Float[Tensor, ""] | float | int | None = None
) -> Float[Tensor, ""]:
    """Return the mean squared error of values.

        L = sum_i (v_i - y_i)^2 / num_targets

    Args:
        values: Outputs v after the model's transform, on the scale of the targets.
        targets: y, NaN where there is none.
        num_targets: Targets that the mean runs over, > 0; None counts those given.

    Returns:
        A scalar >= 0.
    """
    present = ~targets.isnan()
    values, targets = _present_only(values, present), _present_only(targets, present)
    return _masked_mean((values - targets).square(), present, num_targets)


def _present_only(tensor: Tensor, present: Tensor) -> Tensor:
    # Masked before the loss, not after it: a loss that overflows at a masked position would make 0 * inf = NaN.
    return torch.where(present, tensor.float(), 0.0)


def _masked_mean(losses: Tensor, present: Tensor, num_targets: Tensor | float | int | None) -> Tensor:
    return (losses * present).sum() / (present.sum() if num_targets is None else num_targets)
