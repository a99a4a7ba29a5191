"""Resampling: a generation of particles draws the next one from itself, by weight and with replacement.

A particle is a node of the newest level; equal samples are one node and count as several particles. Those that ended stay in the draw as
they are, the others are extended, each drawn copy by samples of its own.

Axes: n distinct particles, P particles counted with their copies.
"""

import numpy as np
from jaxtyping import Float, Int

from stepladder.mcts.qvalues import NEUTRAL_VALUE

RESAMPLE_WEIGHTS = ("odds", "value")
_EPSILON = float(np.finfo(np.float64).eps)
"""Keeps the odds of a value of 0 or 1 finite."""


def particle_weights(
    values: Float[np.ndarray, "n"], copies: Int[np.ndarray, "n"], *, rule: str, temperature: float
) -> Float[np.ndarray, "n"]:
    """Return the probability with which each particle is drawn.

        odds: w_i ~ copies_i * (v_i / (1 - v_i))^(1 / T), the softmax over logit(v_i) / T
        value: w_i ~ copies_i * exp(v_i / T)

    Args:
        values: Scores in [0, 1]; NaN counts as 0.5.
        copies: How many particles each entry stands for, >= 1.
        rule: One of ``RESAMPLE_WEIGHTS``.
        temperature: T, > 0.

    Returns:
        Probabilities; they sum to 1.

    Source: odds: Puri et al. 2025, "A probabilistic inference approach to inference-time scaling of LLMs using particle-based Monte Carlo
    methods", and the released ``particle_gibbs.py``, a softmax over the scores' logits at temperature 1; value: Han et al. 2024, "Value
    augmented sampling for language model alignment and personalization", the policy tilted by exp(beta * value), beta = 1 / T.
    """
    known = np.where(np.isnan(values), NEUTRAL_VALUE, values)
    if rule == "odds":
        clipped = known.clip(_EPSILON, 1 - _EPSILON)
        known = np.log(clipped) - np.log1p(-clipped)
    weights = copies * np.exp((known - known.max()) / temperature)
    return weights / weights.sum()


def draw_copies(weights: Float[np.ndarray, "n"], uniforms: Float[np.ndarray, "P"]) -> Int[np.ndarray, "n"]:
    """Return how often each particle is drawn: multinomial resampling by inversion.

    A uniform number u draws the first particle whose cumulative weight exceeds u.

    Args:
        weights: Probabilities; they sum to 1.
        uniforms: One number in [0, 1) per draw.

    Source: Gordon et al. 1993, "Novel approach to nonlinear/non-Gaussian Bayesian state estimation"; Puri et al. 2025 draw so, too.
    """
    drawn = np.searchsorted(np.cumsum(weights), uniforms, side="right")
    # The cumulative sum may end just below 1.
    return np.bincount(drawn.clip(max=len(weights) - 1), minlength=len(weights))
