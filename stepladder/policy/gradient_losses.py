"""Losses of policy gradients: tensors of log-probabilities and advantages of tokens in, one loss per token out.

A token that the policy did not sample (prompt, observation, padding) is not learned; entries there mean nothing.

Axes: S solutions or steps, L tokens.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_MOST_NATS = 80.0
"""Largest log-ratio: beyond 88 its exponential is infinite in float32, and the gradient of a bounded loss NaN instead of 0."""


def clipped_losses(
    log_ratios: Float[Tensor, "S L"],
    advantages: Float[Tensor, "S L"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Float[Tensor, "S L"]:
    """Return the clipped loss of every token, which stops pushing once the policy has moved far enough.

        L = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A),   rho = exp(log_ratio)

    With ``dual_clip`` c, L <= -c A where A < 0: a token that has become much likelier has no gradient.

    Args:
        log_ratios: log pi(token) - log pi_old(token), in nats; those above 80 count as 80.
        advantages: A of every token.
        clip_low: How far rho may fall below 1, in (0, 1).
        clip_high: How far it may rise above 1, > 0. A larger value than ``clip_low`` lets unlikely tokens grow (DAPO's clip-higher).
        dual_clip: c, > 1 + clip_high; None has no such bound.

    Returns:
        One value per token; -A where the policies agree.

    Source: Schulman et al. 2017, "Proximal policy optimization algorithms", equation 7; Yu et al. 2025, "DAPO", section 3.1 (clip-higher);
        Ye et al. 2020, "Mastering complex control in MOBA games with deep reinforcement learning", equation 8 (dual clip).
    """
    ratios = log_ratios.clamp(max=_MOST_NATS).exp()
    gains = torch.minimum(ratios * advantages, ratios.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is not None:
        gains = torch.where(advantages < 0, torch.maximum(gains, dual_clip * advantages), gains)
    return -gains


def sequence_log_ratios(logps: Float[Tensor, "S L"], old_logps: Float[Tensor, "S L"], learned: Bool[Tensor, "S L"]) -> Float[Tensor, "S L"]:
    """Return log-ratios with the value of the whole sequence and the gradient of each token.

        log s_t = stop_gradient(mean_u (logp_u - old_u)) + logp_t - stop_gradient(logp_t)

    Args:
        logps: Log-probabilities under the policy.
        old_logps: The same under the policy before the update, without gradient.
        learned: Tokens that count.

    Returns:
        In every row one value, in nats. If all tokens of a row have one advantage, loss and gradient are those of one ratio per sequence.

    Source: Zheng et al. 2025, "Group sequence policy optimization", equations 7, 14 and 15 (GSPO-token, for advantages that differ within a
        sequence).
    """
    gaps = torch.where(learned, logps - old_logps, 0.0).sum(-1, keepdim=True) / learned.sum(-1, keepdim=True).clamp(min=1)
    return gaps.detach() + logps - logps.detach()


def reference_divergences(logps: Float[Tensor, "S L"], ref_logps: Float[Tensor, "S L"]) -> Float[Tensor, "S L"]:
    """Return an estimate of the divergence from the reference model at every token, which is never negative.

        k = exp(ref - logp) - (ref - logp) - 1

    Args:
        logps: Log-probabilities under the policy.
        ref_logps: The same under the reference model, without gradient.

    Returns:
        Values >= 0; 0 where the models agree.

    Source: Schulman 2020, "Approximating KL divergence" (k3); Shao et al. 2024, "DeepSeekMath", equation 4.
    """
    gaps = ref_logps - logps
    return gaps.exp() - gaps - 1


def truncated_weights(old_logps: Float[Tensor, "S L"], sampler_logps: Float[Tensor, "S L"], *, truncation: float) -> Float[Tensor, "S L"]:
    """Return the weight of every token that a policy other than the one before the update has sampled.

        w = min(exp(old - sampler), C)

    Args:
        old_logps: Log-probabilities under the policy before the update.
        sampler_logps: The same under the policy that sampled, as it stored them.
        truncation: C, > 0: the largest weight.

    Returns:
        Values in (0, C]; 1 where the two agree, if C >= 1.

    Source: Espeholt et al. 2018, "IMPALA" (truncated importance weights); Yao et al. 2025, "Your efficient RL framework secretly brings you
        off-policy RL training", for an engine that samples with other numerics.
    """
    return (old_logps - sampler_logps).exp().clamp(max=truncation)
