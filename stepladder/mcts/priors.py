"""Prior probabilities of siblings, from how often each was sampled and how likely its tokens are."""

import math
from collections.abc import Sequence

import numpy as np

PRIORS = ("uniform", "ones", "frequency", "mean-logp", "sum-logp", "norm-logp", "exp-mean-logp", "exp-norm-logp")
LENGTH_POWER = 1.25
"""Power of a step's length in ``norm-logp``."""


def sibling_priors(
    counts: Sequence[int], mean_logps: Sequence[float], *, rule: str, lengths: Sequence[int] = (), temperature: float = 1.0
) -> list[float]:
    """Return the prior probability of each distinct sibling.

    Args:
        counts: Samples that were merged into each sibling, >= 1.
        mean_logps: Mean log-probability of each sibling's tokens, in nats, -inf for a failed one. Not read by ``uniform`` and
            ``frequency``.
        rule: ``uniform``; ``ones`` (1 for each, which does not sum to 1: exploration without priors); ``frequency`` (share of the samples);
            ``mean-logp`` (softmax of the mean log-probabilities over the siblings); ``sum-logp`` (the same of the sums: their shares of
            the policy's probability, for distinct siblings what ``frequency`` is for independent ones); ``norm-logp`` (the same of
            sum / L^1.25); ``exp-mean-logp`` and ``exp-norm-logp`` (the exponentials themselves, which do not sum to 1). Uniform when all
            log-probabilities are -inf.
        lengths: Tokens of each sibling; read by ``sum-logp`` and the two ``norm`` rules only.
        temperature: Divides the log-probabilities (``frequency``: the logarithms of the shares), > 0; 1 changes nothing.

    Source: mean-logp: Chen et al. 2024, "AlphaMath almost zero"; norm-logp: Xie et al. 2024, "Monte Carlo tree search boosts reasoning via
    iterative preference learning". Both use the bare exponentials; the softmax over the siblings is ours.
    """
    if rule == "frequency" and temperature == 1.0:
        total = sum(counts)
        return [count / total for count in counts]
    if rule == "ones":
        return [1.0] * len(counts)
    logps = _sibling_logps(counts, mean_logps, lengths, rule)
    top = max(logps)
    if top == -math.inf:
        return [1.0 / len(counts)] * len(counts)
    if rule.startswith("exp-"):
        return [math.exp(logp / temperature) for logp in logps]
    weights = [math.exp((logp - top) / temperature) for logp in logps]
    total = sum(weights)
    return [weight / total for weight in weights]


def _sibling_logps(counts: Sequence[int], mean_logps: Sequence[float], lengths: Sequence[int], rule: str) -> Sequence[float]:
    if rule == "uniform":
        return [0.0] * len(counts)
    if rule == "frequency":
        return [math.log(count) for count in counts]
    if rule == "sum-logp":
        return [logp * max(length, 1) for logp, length in zip(mean_logps, lengths, strict=True)]
    if rule in ("norm-logp", "exp-norm-logp"):
        # sum / L^1.25 = mean / L^0.25; a failed sibling has no tokens.
        return [logp / max(length, 1) ** (LENGTH_POWER - 1) for logp, length in zip(mean_logps, lengths, strict=True)]
    return mean_logps


def mix_root_noise(priors: Sequence[float], *, fraction: float, alpha: float, seed: int) -> list[float]:
    """Return priors mixed with Dirichlet noise: (1 - fraction) * P + fraction * Dir(alpha).

    Args:
        priors: Priors of the root's children.
        fraction: Share of the noise, in [0, 1].
        alpha: Concentration of the noise, > 0.
        seed: Seed of the noise.

    Source: Silver et al. 2017, "Mastering the game of Go without human knowledge", Methods.
    """
    noise = np.random.default_rng(seed).dirichlet([alpha] * len(priors)).tolist()
    return [(1 - fraction) * prior + fraction * extra for prior, extra in zip(priors, noise, strict=True)]
