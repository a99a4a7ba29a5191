"""Losses of the policy, as pure functions over log-probabilities.

``token_logps`` and ``gathered_logps`` turn logits into log-probabilities; every loss below takes one number per sequence and knows nothing
of models, padding or packing. A mean runs over an explicit count, so that an update split into several forward passes has exactly the
gradient of one undivided pass: pass the count of the whole update each time and add the results up.

Axes: B sequences or pairs, T positions, V vocabulary. Log-probabilities are in nats.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

IGNORE = -100
"""Target of a position whose prediction is not learned: prompt and padding."""


def token_logps(logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return the log-probability of every target token.

        logp[b, t] = log softmax(logits[b, t])[targets[b, t]]

    Args:
        logits: Unnormalised, any floating type; the softmax is taken in float32.
        targets: ``targets[b, t]`` is the token that ``logits[b, t]`` predicts (already shifted), or ``IGNORE``.

    Returns:
        Values <= 0; exactly 0, without gradient, where the target is ``IGNORE``.
    """
    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return -flat.view(targets.shape)


def gathered_logps(logits: Float[Tensor, "P V"], sources: Int[Tensor, "S L"], targets: Int[Tensor, "S L"]) -> Float[Tensor, "S L"]:
    """Return the log-probability of target tokens that are predicted at any positions, several at one position where a tree branches.

        logp[s, l] = log softmax(logits[sources[s, l]])[targets[s, l]]

    Args:
        logits: Unnormalised, any floating type, one line per position; the softmax is taken in float32.
        sources: The position that predicts each target.
        targets: The token predicted there, or ``IGNORE``.

    Returns:
        Values <= 0; exactly 0, without gradient, where the target is ``IGNORE``.
    """
    chosen = logits[sources, targets.clamp(min=0)].float()
    return torch.where(targets == IGNORE, 0.0, chosen - logits.float().logsumexp(-1)[sources])


def sft_loss(logps: Float[Tensor, " B"], num_tokens: Float[Tensor, ""] | float | int) -> Float[Tensor, ""]:
    """Return the mean negative log-likelihood of a completion token.

        L = -sum_b logp_b / num_tokens

    Args:
        logps: Log-probability of each completion.
        num_tokens: Completion tokens that the mean runs over, > 0: those of all sequences of the update, so that long completions
            weigh by their length.

    Returns:
        A scalar >= 0, in nats per token.
    """
    return -logps.sum() / num_tokens


def dpo_loss(
    chosen_logps: Float[Tensor, " B"],
    rejected_logps: Float[Tensor, " B"],
    *,
    ref_chosen_logps: Float[Tensor, " B"],
    ref_rejected_logps: Float[Tensor, " B"],
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    num_pairs: Float[Tensor, ""] | float | int | None = None,
) -> Float[Tensor, ""]:
    """Return the mean preference loss of direct preference optimisation.

        m_b = (chosen_b - ref_chosen_b) - (rejected_b - ref_rejected_b)
        L = -sum_b [(1 - eps) log sigmoid(beta m_b) + eps log sigmoid(-beta m_b)] / num_pairs

    Only the difference enters, so tokens that both completions begin with cancel: summing from the first differing token gives the same
    loss and gradient.

    Args:
        chosen_logps: Log-probability of each preferred completion under the model in training.
        rejected_logps: Log-probability of each other completion.
        ref_chosen_logps: The same under the reference model, without gradient.
        ref_rejected_logps: The same under the reference model, without gradient.
        beta: Strength of the pull to the reference, > 0.
        label_smoothing: eps, the assumed share of flipped pairs, in [0, 0.5); 0 is plain DPO, above it conservative DPO.
        num_pairs: Pairs that the mean runs over; None is the B given.

    Returns:
        A scalar > 0; log 2 where model and reference agree.

    Source: Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", equation 7; the
        smoothing is Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO".
    """
    margins = (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)
    losses = -(1 - label_smoothing) * F.logsigmoid(beta * margins) - label_smoothing * F.logsigmoid(-beta * margins)
    return losses.sum() / (len(losses) if num_pairs is None else num_pairs)


def preference_loss(
    chosen_logps: Float[Tensor, " B"],
    rejected_logps: Float[Tensor, " B"],
    *,
    ref_chosen_logps: Float[Tensor, " B"],
    ref_rejected_logps: Float[Tensor, " B"],
    full_chosen_logps: Float[Tensor, " B"],
    num_tokens: Float[Tensor, ""] | float | int,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
    num_pairs: Float[Tensor, ""] | float | int | None = None,
) -> Float[Tensor, ""]:
    """Return the preference loss with a likelihood term on the chosen completions, which keeps them from becoming less likely.

        L = dpo_loss + sft_weight * sft_loss(full_chosen_logps, num_tokens)

    Args:
        chosen_logps: Log-probability of each preferred completion from the first differing token on.
        rejected_logps: Log-probability of each other completion from the first differing token on.
        ref_chosen_logps: The same under the reference model.
        ref_rejected_logps: The same under the reference model.
        full_chosen_logps: Log-probability of each preferred completion, shared tokens included.
        num_tokens: Tokens of the preferred completions that the likelihood mean runs over, > 0.
        beta: As for ``dpo_loss``.
        label_smoothing: As for ``dpo_loss``.
        sft_weight: Weight of the likelihood term, >= 0; 0 is ``dpo_loss``.
        num_pairs: As for ``dpo_loss``.

    Returns:
        A scalar > 0.

    Source: Pang et al. 2024, "Iterative Reasoning Preference Optimization", equation 1. They divide by the length of each sequence; we
        take the mean over all tokens of the update, as ``sft_loss`` does.
    """
    preference = dpo_loss(
        chosen_logps,
        rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
        beta=beta,
        label_smoothing=label_smoothing,
        num_pairs=num_pairs,
    )
    return preference + sft_weight * sft_loss(full_chosen_logps, num_tokens)
