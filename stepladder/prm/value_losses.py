"""Losses of the process reward model, as pure functions over the raw outputs at step ends.

A position without a target holds NaN and adds neither loss nor gradient. A mean runs over an explicit count, so that an update split
into several forward passes has exactly the gradient of one undivided pass.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def bce_loss(
    logits: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"], num_targets: Float[Tensor, ""] | float | int | None = None
) -> Float[Tensor, ""]:
    """Return the mean binary cross-entropy against soft targets.

        L = -sum_i [y_i log sigmoid(z_i) + (1 - y_i) log sigmoid(-z_i)] / num_targets

    Its minimum is at the z for which sigmoid(z) is the mean target, so it is a proper loss for Monte Carlo estimates.

    Args:
        logits: Raw outputs z.
        targets: y in [0, 1]; NaN for no target.
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
        targets: y; NaN for no target.
        num_targets: Targets that the mean runs over, > 0; None counts those given.

    Returns:
        A scalar >= 0.
    """
    present = ~targets.isnan()
    values, targets = _present_only(values, present), _present_only(targets, present)
    return _masked_mean((values - targets).square(), present, num_targets)


def _present_only(tensor: Tensor, present: Tensor) -> Tensor:
    # Mask before the loss, not after it: a loss that overflows at a masked position would give 0 * inf = NaN.
    return torch.where(present, tensor.float(), 0.0)


def _masked_mean(losses: Tensor, present: Tensor, num_targets: Tensor | float | int | None) -> Tensor:
    return (losses * present).sum() / (present.sum() if num_targets is None else num_targets)


def pairwise_loss(
    outputs: Float[Tensor, "B G"],
    targets: Float[Tensor, "B G"],
    num_groups: Float[Tensor, ""] | float | int | None = None,
    *,
    pairs: Bool[Tensor, "B G G"] | None = None,
) -> Float[Tensor, ""]:
    """Return the Bradley-Terry loss over the ordered pairs of a group; every group has the same weight.

        L = -sum_b 1/|P_b| sum_{(i, j) in P_b} log sigmoid(x_bi - x_bj) / num_groups,   P_b = {(i, j): y_bi > y_bj}

    With targets 1 and 0, |P| is n+ * n-, the weight of rStar-Math. With all samples of a problem as the group it is Qwen2.5-Math's listwise
    loss, whose k * (n - k) is the same number. With two members it is the plain pairwise loss. A group of equal targets has no pairs and
    does not count.

    Args:
        outputs: Raw outputs x: one group per row, such as the siblings of a node or the samples of a problem.
        targets: y; only the order counts. NaN if the row has no such member.
        num_groups: Groups with pairs that the mean runs over, > 0; None counts those given.
        pairs: The compared pairs (i, j), i better than j; None compares all pairs that the targets order.

    Returns:
        A scalar >= 0; log 2 if all outputs are equal.

    Source: Bradley and Terry 1952; Guan et al. 2025, "rStar-Math", equation 3; Yang et al. 2024, "Qwen2.5-Math", section 3.
    """
    present = ~targets.isnan()
    outputs, targets = _present_only(outputs, present), _present_only(targets, present)
    ordered = targets[:, :, None] > targets[:, None, :] if pairs is None else pairs
    pairs = ordered & present[:, :, None] & present[:, None, :]
    losses = -F.logsigmoid(outputs[:, :, None] - outputs[:, None, :]) * pairs
    counts = pairs.sum((1, 2))
    groups = losses.sum((1, 2)) / counts.clamp(min=1)
    return groups.sum() / ((counts > 0).sum() if num_groups is None else num_groups)


def categorical_loss(
    logits: Float[Tensor, "*shape F"], targets: Float[Tensor, "*shape F"], num_targets: Float[Tensor, ""] | float | int | None = None
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy between bins and target distributions over them.

        L = -sum_i sum_f p_if log softmax(z_i)_f / num_targets

    Args:
        logits: Outputs z, one per bin.
        targets: Distributions p from ``hl_gauss_targets`` or ``two_hot_targets``; all NaN for no target.
        num_targets: Targets that the mean runs over, > 0; None counts those given.

    Returns:
        A scalar >= the mean entropy of the targets.

    Source: Farebrother et al. 2024, "Stop regressing: training value functions via classification for scalable deep RL".
    """
    present = ~targets.isnan().any(-1)
    logits, targets = _present_only(logits, present[..., None]), _present_only(targets, present[..., None])
    return _masked_mean(-(targets * F.log_softmax(logits, dim=-1)).sum(-1), present, num_targets)


def hl_gauss_targets(targets: Float[Tensor, "*shape"], *, num_bins: int, sigma: float = 0.75) -> Float[Tensor, "*shape F"]:
    """Return targets as normal distributions, cut into bins of [0, 1] and normalised.

        p_f = (Phi((u_{f+1} - y) / s) - Phi((u_f - y) / s)) / Z,   u_f = f / num_bins,  s = sigma / num_bins

    Args:
        targets: y in [0, 1]; NaN gives NaN throughout.
        num_bins: Bins, >= 2.
        sigma: Standard deviation in bin widths, > 0.

    Returns:
        Distributions: each sums to 1. At the ends of the range their mean is pulled inwards by the part that is cut off.

    Source: Imani and White 2018, "Improving regression performance with distributional losses"; 0.75 as in Farebrother et al. 2024.
    """
    edges = torch.linspace(0.0, 1.0, num_bins + 1, dtype=torch.float64, device=targets.device)
    below = torch.special.ndtr((edges - targets.double()[..., None]) * (num_bins / sigma))
    mass = below.diff(dim=-1)
    return (mass / mass.sum(-1, keepdim=True)).float()


def two_hot_targets(targets: Float[Tensor, "*shape"], *, num_bins: int) -> Float[Tensor, "*shape F"]:
    """Return targets as weights on the two nearest bin centres (f + 0.5) / num_bins, whose mean is the target.

    Args:
        targets: y in [0, 1]; NaN gives NaN throughout. A target outside the outermost centre is moved to that centre.
        num_bins: Bins, >= 2.

    Returns:
        Distributions: each sums to 1.

    Source: Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned model", Appendix F.
    """
    places = (targets * num_bins - 0.5).clamp(0.0, num_bins - 1.0)
    centres = torch.arange(num_bins, dtype=places.dtype, device=places.device)
    return (1.0 - (places[..., None] - centres).abs()).clamp(min=0.0)


def implicit_ce_loss(
    log_ratios: Float[Tensor, " B"],
    outcomes: Float[Tensor, " B"],
    *,
    beta: float,
    num_targets: Float[Tensor, ""] | float | int | None = None,
) -> Float[Tensor, ""]:
    """Return the cross-entropy of outcomes under an implicit reward.

        r = beta * sum_t (log pi(a_t) - log pi_ref(a_t)),   L = -sum_b [y_b log sigmoid(r_b) + (1 - y_b) log sigmoid(-r_b)] / num_targets

    Args:
        log_ratios: Log-ratio of each solution, summed over its tokens, in nats.
        outcomes: y in [0, 1]: whether the solution is right; NaN if unknown.
        beta: Factor, > 0.
        num_targets: Solutions that the mean runs over, > 0; None counts those with an outcome.

    Source: Yuan et al. 2024, "Free process rewards without process labels", equation 5.
    """
    return bce_loss(beta * log_ratios, outcomes, num_targets)


def implicit_dpo_loss(
    log_ratios: Float[Tensor, "B G"],
    outcomes: Float[Tensor, "B G"],
    *,
    beta: float,
    num_groups: Float[Tensor, ""] | float | int | None = None,
) -> Float[Tensor, ""]:
    """Return the preference loss of solutions of the same problem under an implicit reward.

        L = ``pairwise_loss`` of beta * log_ratios; with one right and one wrong solution it is the DPO loss.

    Args:
        log_ratios: Log-ratio of each solution, one problem per row, in nats.
        outcomes: Outcome of each solution; NaN if the row has no such solution.
        beta: Factor, > 0.
        num_groups: Problems with pairs that the mean runs over, > 0; None counts those given.

    Source: Rafailov et al. 2024, "From r to Q*: your language model is secretly a Q-function".
    """
    return pairwise_loss(beta * log_ratios, outcomes, num_groups)
