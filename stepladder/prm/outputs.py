"""From the outputs of a model to scores, in float64: a gap of 40 between two logits stays a score above zero.

Axes: F outputs of a token.
"""

import numpy as np
from jaxtyping import Float

from stepladder.errors import ConfigError
from stepladder.prm.compose import bin_entropy_penalty
from stepladder.prm.specs import PRMSpec, Transform


def transform_outputs(outputs: Float[np.ndarray, "*s"], transform: Transform) -> Float[np.ndarray, "*s"]:
    """Convert raw outputs to scores in [0, 1], in float64; NaN stays NaN.

    Args:
        outputs: Outputs of the head, any real number.
        transform: ``sigmoid``, ``tanh01`` or ``identity``, as ``PRMSpec`` defines them.
    """
    outputs = outputs.astype(np.float64)
    if transform == "identity":
        return np.clip(outputs, 0.0, 1.0)
    # (tanh(x) + 1) / 2 = sigmoid(2 x). In this form nothing overflows and a small score keeps its digits.
    with np.errstate(invalid="ignore"):
        return np.exp(-np.logaddexp(0.0, -outputs if transform == "sigmoid" else -2.0 * outputs))


def scores_of(outputs: Float[np.ndarray, "*s F"], spec: PRMSpec, *, entropy_penalty: float = 0.0) -> Float[np.ndarray, "*s"]:
    """Convert the outputs at the read tokens of steps to scores in [0, 1]; NaN if an output is not a number.

    Args:
        outputs: ``spec.num_outputs`` numbers per token: those of several heads, or of two classes, of which the second means a good step.
        spec: How they are read.
        entropy_penalty: Penalty of a head of bins at maximum entropy, >= 0; it falls to 0 at zero entropy. Scores stay at least 0.

    Source: the penalty is that of an ensemble's variance (Coste et al. 2023), taken from one categorical head.
    """
    outputs = outputs.astype(np.float64)
    if spec.bins > 1:
        weights = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        probabilities = weights / weights.sum(axis=-1, keepdims=True)
        means = probabilities @ bin_centres(spec.bins)
        return means if not entropy_penalty else np.maximum(0.0, means - entropy_penalty * bin_entropy_penalty(probabilities))
    if spec.heads > 1:
        return transform_outputs(outputs, spec.transform).mean(axis=-1)
    if spec.transform == "difference":
        good = transform_outputs(outputs[..., 1] - outputs[..., 0], "sigmoid")
        return (good - (1 - good) + 1) / 2
    return transform_outputs(outputs[..., 0] if outputs.shape[-1] == 1 else outputs[..., 1] - outputs[..., 0], spec.transform)


def bin_centres(num_bins: int) -> Float[np.ndarray, "F"]:
    """Return the centres of equal bins that cover [0, 1]."""
    return (np.arange(num_bins) + 0.5) / num_bins


def check_entropy_penalty(penalty: float, spec: PRMSpec) -> None:
    """Refuse a penalty on the entropy of bins that a model does not have.

    Raises:
        ConfigError: If the penalty is below 0, or above it for a model without bins.
    """
    if penalty < 0 or (penalty and spec.bins == 1):
        raise ConfigError(
            f"entropy_penalty: needs a head of bins, as the losses hl-gauss and two-hot train it, and must be >= 0: got {penalty} for a "
            f"{spec.family} model with {spec.bins} -- set it to 0"
        )
