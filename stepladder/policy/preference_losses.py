"""Losses of the policy, as pure functions of log-probabilities.

Every loss takes one number per sequence and knows nothing about models, padding or packing. A mean divides by an explicit count. If you
split an update into several forward passes, pass the count of the whole update each time and add the results. The gradient is then exactly
that of one undivided pass.

Axes: B sequences or pairs, M mismatched sequences. Log-probabilities are in nats.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def sft_loss(logps: Float[Tensor, " B"], num_tokens: Float[Tensor, ""] | float | int) -> Float[Tensor, ""]:
    """Return the mean negative log-likelihood of a completion token.

        L = -sum_b logp_b / num_tokens

    Args:
        logps: Log-probability of each completion.
        num_tokens: Completion tokens of all sequences of the update, > 0, over which the mean runs. Long completions weigh by their length.

    Returns:
        A scalar >= 0, in nats per token.
    """
    return -logps.sum() / num_tokens


def log_ratio_margins(
    chosen_logps: Float[Tensor, " B"],
    rejected_logps: Float[Tensor, " B"],
    *,
    ref_chosen_logps: Float[Tensor, " B"],
    ref_rejected_logps: Float[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """Return how much more strongly the model prefers the chosen completions than the reference does, in nats.

    m = (chosen - ref_chosen) - (rejected - ref_rejected)
    """
    return (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)


def dpo_losses(
    chosen_logps: Float[Tensor, " B"],
    rejected_logps: Float[Tensor, " B"],
    *,
    ref_chosen_logps: Float[Tensor, " B"],
    ref_rejected_logps: Float[Tensor, " B"],
    beta: float = 0.1,
    label_smoothing: Float[Tensor, " B"] | float = 0.0,
) -> Float[Tensor, " B"]:
    """Return the loss of direct preference optimisation; with smoothed labels it is conservative DPO.

        m = (chosen - ref_chosen) - (rejected - ref_rejected)
        L = -(1 - eps) log sigmoid(beta m) - eps log sigmoid(-beta m)

    Only the difference counts, so tokens that both completions begin with cancel. Sums from the first differing token on give the same loss
    and gradient.

    Args:
        chosen_logps: Log-probability of each preferred completion under the model in training.
        rejected_logps: Log-probability of each other completion.
        ref_chosen_logps: The same under the reference model, without gradient.
        ref_rejected_logps: The same under the reference model, without gradient.
        beta: Strength of the pull to the reference, > 0.
        label_smoothing: eps, the assumed probability that a pair is flipped, in [0, 1], for each pair or for all; 0 is plain DPO.
            ``visit_smoothing``, ``agreement_smoothing`` and ``uncertainty_smoothing`` estimate it from the data.

    Returns:
        Values > 0; log 2 if model and reference agree.

    Source: Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", equation 7; the
        smoothing is Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO".
    """
    margins = log_ratio_margins(chosen_logps, rejected_logps, ref_chosen_logps=ref_chosen_logps, ref_rejected_logps=ref_rejected_logps)
    return -(1 - label_smoothing) * F.logsigmoid(beta * margins) - label_smoothing * F.logsigmoid(-beta * margins)


def visit_smoothing(chosen_visits: Float[Tensor, " B"], rejected_visits: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return the probability that each pair is flipped, from the visits of its two steps.

        eps = min(1/2, 1 / (1 + N_chosen / N_rejected))

    Args:
        chosen_visits: Simulations through the preferred step, >= 0.
        rejected_visits: Simulations through the other step, >= 0. At most one of the two may be 0.

    Returns:
        Values in [0, 0.5]: 0.5 if the rejected step has as many visits or more. The value approaches 0 as the search prefers the chosen
        step more.

    Source: Xie et al. 2024, "Monte Carlo Tree Search Boosts Reasoning via Iterative Preference Learning", section 2.2.
    """
    return (rejected_visits / (chosen_visits + rejected_visits)).clamp(max=0.5)


def agreement_smoothing(agreement: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return the weight of the flipped pair if two scorers rank its siblings with agreement C.

        eps = 1 - C, so that L = C L_dpo(chosen, rejected) + (1 - C) L_dpo(rejected, chosen)

    Args:
        agreement: C, in [0, 1]. If it is unknown (NaN), the pair is not smoothed.

    Returns:
        Values in [0, 1]; above 0.5 the pair is flipped.

    Source: Wang et al. 2024, "CREAM: Consistency Regularized Self-Rewarding Language Models", the regularised loss.
    """
    return (1 - agreement).nan_to_num(0.0)


def uncertainty_smoothing(uncertainty: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return the weight of the flipped pair if its order is uncertain by H bits.

        alpha = H / 2

    Args:
        uncertainty: H, in [0, 1].

    Returns:
        Values in [0, 0.5]. A certain pair is not smoothed; an open pair teaches no preference.

    Source: Wang et al. 2025, "Self-Evolutionary Large Language Models through Uncertainty-Enhanced Preference Optimization", equations 12
        to 14: their loss with this weight. They print alpha = 1 / (1 + P) with sampling weights P that add up to 1. That is above 1/2, so
        it would flip every pair. We take a weight that falls from 1/2 to 0 as the certainty 1 - H rises; they derive P from this certainty.
    """
    return uncertainty / 2


def ipo_losses(
    chosen_logps: Float[Tensor, " B"],
    rejected_logps: Float[Tensor, " B"],
    *,
    ref_chosen_logps: Float[Tensor, " B"],
    ref_rejected_logps: Float[Tensor, " B"],
    beta: float = 0.1,
) -> Float[Tensor, " B"]:
    """Return the loss of identity preference optimisation, which stops at a target margin.

        L = (m - 1 / (2 beta))^2,   m = (chosen - ref_chosen) - (rejected - ref_rejected)

    Args:
        chosen_logps: As for ``dpo_losses``.
        rejected_logps: As for ``dpo_losses``.
        ref_chosen_logps: As for ``dpo_losses``.
        ref_rejected_logps: As for ``dpo_losses``.
        beta: The paper's tau, > 0; the target margin is 1 / (2 beta) nats.

    Returns:
        Values >= 0.

    Source: Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences", equation 17. Sums of
        log-probabilities as printed there; TRL divides both sides by their numbers of tokens.
    """
    margins = log_ratio_margins(chosen_logps, rejected_logps, ref_chosen_logps=ref_chosen_logps, ref_rejected_logps=ref_rejected_logps)
    return (margins - 1 / (2 * beta)) ** 2


def inpo_losses(
    chosen_logps: Float[Tensor, " B"],
    rejected_logps: Float[Tensor, " B"],
    *,
    ref_chosen_logps: Float[Tensor, " B"],
    ref_rejected_logps: Float[Tensor, " B"],
    sampler_chosen_logps: Float[Tensor, " B"],
    sampler_rejected_logps: Float[Tensor, " B"],
    beta: float = 0.1,
    reference_share: float = 1 / 3,
) -> Float[Tensor, " B"]:
    """Return the loss of iterative Nash policy optimisation, which stays close to the reference and to the sampling policy.

        h = (chosen - rejected) - s (ref_chosen - ref_rejected) - (1 - s) (sampler_chosen - sampler_rejected)
        L = (h - 1 / (2 beta))^2

    If reference and sampler are the same policy, this is IPO.

    Args:
        chosen_logps: As for ``dpo_losses``.
        rejected_logps: As for ``dpo_losses``.
        ref_chosen_logps: As for ``dpo_losses``; the reference is one policy for all rounds.
        ref_rejected_logps: As for ``dpo_losses``.
        sampler_chosen_logps: The same under the policy that sampled the pairs, as stored with them.
        sampler_rejected_logps: The same under the policy that sampled the pairs.
        beta: The paper's eta, > 0.
        reference_share: s, the paper's tau / eta, in [0, 1]; 0 forgets the reference.

    Returns:
        Values >= 0.

    Source: Zhang et al. 2024, "Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning", equation
        8 with h of section 3.2.
    """
    # This is IPO with a reference that mixes both policies, weighted in log-probabilities.
    mixed_chosen, mixed_rejected = (
        reference_share * ref + (1 - reference_share) * sampler
        for ref, sampler in ((ref_chosen_logps, sampler_chosen_logps), (ref_rejected_logps, sampler_rejected_logps))
    )
    return ipo_losses(chosen_logps, rejected_logps, ref_chosen_logps=mixed_chosen, ref_rejected_logps=mixed_rejected, beta=beta)


def sppo_losses(
    chosen_logps: Float[Tensor, " B"],
    rejected_logps: Float[Tensor, " B"],
    *,
    ref_chosen_logps: Float[Tensor, " B"],
    ref_rejected_logps: Float[Tensor, " B"],
    value_margins: Float[Tensor, " B"],
    beta: float = 0.1,
) -> Float[Tensor, " B"]:
    """Return the loss of self-play preference optimisation, with win probabilities from the values of the two steps.

        p = (1 + V_chosen - V_rejected) / 2
        L = (chosen - ref_chosen - (p - 1/2) / beta)^2 + (rejected - ref_rejected + (p - 1/2) / beta)^2

    p is the probability that a solution through the chosen step beats one through the other. Both are drawn independently with success
    probabilities V, and a tie counts half.

    Args:
        chosen_logps: As for ``dpo_losses``.
        rejected_logps: As for ``dpo_losses``.
        ref_chosen_logps: As for ``dpo_losses``.
        ref_rejected_logps: As for ``dpo_losses``.
        value_margins: V_chosen - V_rejected, in [-1, 1].
        beta: The inverse of the paper's eta, > 0.

    Returns:
        Values >= 0.

    Source: Wu et al. 2024, "Self-Play Preference Optimization for Language Model Alignment", equation 4.7. They estimate p with a
        preference model; a margin of 1 is TRL's ``sppo_hard``.
    """
    shift = value_margins / (2 * beta)
    return (chosen_logps - ref_chosen_logps - shift) ** 2 + (rejected_logps - ref_rejected_logps + shift) ** 2


def refuel_losses(
    chosen_logps: Float[Tensor, " B"],
    rejected_logps: Float[Tensor, " B"],
    *,
    ref_chosen_logps: Float[Tensor, " B"],
    ref_rejected_logps: Float[Tensor, " B"],
    value_margins: Float[Tensor, " B"],
    beta: float = 0.1,
) -> Float[Tensor, " B"]:
    """Return the loss that regresses the log-ratio difference on the value difference, so that the size of the difference is learned.

        L = (beta m - (V_chosen - V_rejected))^2,   m = (chosen - ref_chosen) - (rejected - ref_rejected)

    Args:
        chosen_logps: As for ``dpo_losses``.
        rejected_logps: As for ``dpo_losses``.
        ref_chosen_logps: As for ``dpo_losses``.
        ref_rejected_logps: As for ``dpo_losses``.
        value_margins: V_chosen - V_rejected, in [-1, 1].
        beta: The inverse of the paper's eta, > 0.

    Returns:
        Values >= 0; 0 if the log-ratios match the values.

    Source: Gao et al. 2024, "Regressing the Relative Future: Efficient Policy Optimization for Multi-turn RLHF".
    """
    margins = log_ratio_margins(chosen_logps, rejected_logps, ref_chosen_logps=ref_chosen_logps, ref_rejected_logps=ref_rejected_logps)
    return (beta * margins - value_margins) ** 2


def apo_zero_losses(
    chosen_logps: Float[Tensor, " B"],
    rejected_logps: Float[Tensor, " B"],
    *,
    ref_chosen_logps: Float[Tensor, " B"],
    ref_rejected_logps: Float[Tensor, " B"],
    beta: float = 0.1,
) -> Float[Tensor, " B"]:
    """Return the anchored loss, which raises every chosen and lowers every rejected completion relative to the reference.

        L = 1 - sigmoid(beta (chosen - ref_chosen)) + sigmoid(beta (rejected - ref_rejected))

    Each side counts separately: this is the loss of KTO with its reference point at 0.

    Args:
        chosen_logps: As for ``dpo_losses``.
        rejected_logps: As for ``dpo_losses``.
        ref_chosen_logps: As for ``dpo_losses``.
        ref_rejected_logps: As for ``dpo_losses``.
        beta: Strength of the pull to the reference, > 0.

    Returns:
        Values in (0, 2); 1 if model and reference agree.

    Source: D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions", equation 7; Ethayarajh et al. 2024,
        "KTO: Model Alignment as Prospect Theoretic Optimization", equation 7.
    """
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def simpo_losses(
    chosen_means: Float[Tensor, " B"], rejected_means: Float[Tensor, " B"], *, beta: float = 2.0, target_margin: float = 0.0
) -> Float[Tensor, " B"]:
    """Return the preference loss on mean log-probabilities, without a reference.

        L = -log sigmoid(beta (chosen - rejected) - gamma)

    Args:
        chosen_means: Mean log-probability of the tokens of each preferred completion, including those that it shares with the other.
        rejected_means: The same for the other completion.
        beta: Scale of the difference, > 0.
        target_margin: gamma, the target difference, >= 0.

    Returns:
        Values > 0.

    Source: Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", equation 6.
    """
    return -F.logsigmoid(beta * (chosen_means - rejected_means) - target_margin)


def orpo_losses(chosen_means: Float[Tensor, " B"], rejected_means: Float[Tensor, " B"], *, beta: float = 0.1) -> Float[Tensor, " B"]:
    """Return the odds-ratio loss, without a reference. The paper adds the likelihood term with weight 1.

        odds(l) = exp(l) / (1 - exp(l))
        L = -beta log sigmoid(log odds(chosen) - log odds(rejected))

    Args:
        chosen_means: As for ``simpo_losses``, < 0.
        rejected_means: As for ``simpo_losses``, < 0.
        beta: The paper's lambda, > 0.

    Returns:
        Values > 0.

    Source: Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", equations 4 and 7.
    """
    return -beta * F.logsigmoid(_log_odds(chosen_means) - _log_odds(rejected_means))


def _log_odds(logps: Tensor) -> Tensor:
    # A completion with probability 1 has infinite odds. The next float below it is the highest certainty that float32 can express.
    logps = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    return logps - torch.log(-torch.expm1(logps))


def cpl_losses(
    chosen_logps: Float[Tensor, " B"], rejected_logps: Float[Tensor, " B"], *, beta: float = 0.1, bias: float = 1.0
) -> Float[Tensor, " B"]:
    """Return the loss of contrastive preference learning, without a reference. Log-probabilities represent advantages.

        L = -log sigmoid(beta (chosen - lambda rejected))

    Args:
        chosen_logps: As for ``dpo_losses``.
        rejected_logps: As for ``dpo_losses``.
        beta: The paper's alpha, > 0.
        bias: lambda, in (0, 1]. Below 1, unlikely steps in the data are preferred to steps outside it.

    Returns:
        Values > 0.

    Source: Hejna et al. 2023, "Contrastive Preference Learning: Learning from Human Feedback without RL", equations 5 and 6.
    """
    return -F.logsigmoid(beta * (chosen_logps - bias * rejected_logps))


def preference_loss(
    pair_losses: Float[Tensor, " B"],
    *,
    full_chosen_logps: Float[Tensor, " B"],
    num_tokens: Float[Tensor, ""] | float | int,
    num_pairs: Float[Tensor, ""] | float | int,
    sft_weight: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the mean loss of the pairs plus a likelihood term, which keeps the chosen completions from becoming less likely.

        L = sum_b pair_losses_b / num_pairs + sft_weight * sft_loss(full_chosen_logps, num_tokens)

    Args:
        pair_losses: Loss of each pair.
        full_chosen_logps: Log-probability of each preferred completion, including shared tokens.
        num_tokens: Tokens of the preferred completions over which the likelihood mean runs, > 0.
        num_pairs: Pairs over which the mean runs, > 0.
        sft_weight: Weight of the likelihood term, >= 0.

    Returns:
        A scalar.

    Source: Pang et al. 2024, "Iterative Reasoning Preference Optimization", equation 1 (DPO with this term, also called RPO). They divide
        by the length of each sequence; we take the mean over all tokens of the update, as ``sft_loss`` does.
    """
    return pair_losses.sum() / num_pairs + sft_weight * sft_loss(full_chosen_logps, num_tokens)


def kto_reference_point(mismatched_logps: Float[Tensor, " M"], ref_mismatched_logps: Float[Tensor, " M"]) -> Float[Tensor, ""]:
    """Estimate how far the model has moved from the reference, from completions after prompts of other problems.

        z = max(0, mean_j (logp_j - ref_logp_j))

    Args:
        mismatched_logps: Log-probability of completions of other prompts.
        ref_mismatched_logps: The same under the reference model.

    Returns:
        A scalar >= 0, in nats, without gradient; 0 if the two models agree.

    Source: Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", section 4.1.
    """
    return (mismatched_logps - ref_mismatched_logps).mean().clamp(min=0).detach()


def kto_losses(
    logps: Float[Tensor, " B"],
    ref_logps: Float[Tensor, " B"],
    good: Bool[Tensor, " B"],
    *,
    reference_point: Float[Tensor, ""] | float,
    beta: float = 0.1,
    good_weight: float = 1.0,
    bad_weight: float = 1.0,
) -> Float[Tensor, " B"]:
    """Return the loss of Kahneman-Tversky optimisation, which learns from completions that are good or bad by themselves.

        L = lambda_good sigmoid(-beta (r - z)) if good, else lambda_bad sigmoid(-beta (z - r)),   r = logp - ref_logp

    Args:
        logps: Log-probability of each completion.
        ref_logps: The same under the reference model, without gradient.
        good: The verdicts.
        reference_point: z, from ``kto_reference_point``, >= 0.
        beta: Strength of the pull to the reference, > 0.
        good_weight: lambda_good, >= 0. The paper keeps lambda_good n_good / (lambda_bad n_bad) in [1, 4/3].
        bad_weight: lambda_bad, >= 0.

    Returns:
        Values in [0, max(weights)]; half the weight if r is at the reference point.

    Source: Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", section 4.1.
    """
    gains = beta * (logps - ref_logps - reference_point)
    return torch.where(good, good_weight * torch.sigmoid(-gains), bad_weight * torch.sigmoid(gains))


def oreal_losses(
    logps: Float[Tensor, " B"],
    ref_logps: Float[Tensor, " B"],
    good: Bool[Tensor, " B"],
    *,
    prompt_values: Float[Tensor, " B"],
    beta: float = 0.1,
    good_weight: float = 1.0,
    bad_weight: float = 1.0,
) -> Float[Tensor, " B"]:
    """Return the loss that imitates right completions and moves away from wrong ones. The rarer right ones are, the stronger the move.

        L = -lambda_good logp              + beta/2 r^2   if good
        L =  lambda_bad (1 - p) r          + beta/2 r^2   if bad,   r = logp - ref_logp

    Args:
        logps: Log-probability of each completion.
        ref_logps: The same under the policy before the update, without gradient.
        good: The verdicts.
        prompt_values: p, the share of right completions of each prompt, in [0, 1].
        beta: Strength of the pull to the policy before the update, > 0. It bounds the loss of a wrong completion, whose minimum is at
            r = -lambda_bad (1 - p) / beta.
        good_weight: Weight of right completions, >= 0.
        bad_weight: The paper's eta, >= 0.

    Returns:
        One value each.

    Source: Lyu et al. 2025, "Exploring the Limit of Outcome Reward for Learning Mathematical Reasoning" (OREAL), equation 11 with the
        reshaped reward 1 - p of section 2.3. We omit the token weights of their reward model. We replace their KL term with half the
        squared log-ratio, which equals it to second order (Schulman 2020, "Approximating KL divergence").
    """
    ratios = logps - ref_logps
    return torch.where(good, -good_weight * logps, bad_weight * (1 - prompt_values) * ratios) + beta / 2 * ratios**2
