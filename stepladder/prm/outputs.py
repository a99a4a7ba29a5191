"""From the outputs of a model to scores, in float64: a gap of 40 between two logits stays a score above zero.

Axes: F outputs of a token.
"""

import numpy as np
from jaxtyping import Float

from stepladder.prm.specs import PRMSpec, Transform


def transform_outputs(outputs: Float[np.ndarray, "*s"], transform: Transform) -> Float[np.ndarray, "*s"]:
    """Return scores in [0, 1] of raw outputs, in float64; NaN stays NaN.

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


def scores_of(outputs: Float[np.ndarray, "*s F"], spec: PRMSpec) -> Float[np.ndarray, "*s"]:
    """Return scores in [0, 1] of the outputs at the tokens where steps are read; NaN where an output is not a number.

    Args:
        outputs: ``spec.num_outputs`` numbers per token; of two, the second stands for a good step.
        spec: How they are read.
    """
    outputs = outputs.astype(np.float64)
    if spec.bins > 1:
        weights = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        return (weights @ bin_centres(spec.bins)) / weights.sum(axis=-1)
    return transform_outputs(outputs[..., 0] if outputs.shape[-1] == 1 else outputs[..., 1] - outputs[..., 0], spec.transform)


def bin_centres(num_bins: int) -> Float[np.ndarray, "F"]:
    """Return the centres of equal bins that cover [0, 1]."""
    return (np.arange(num_bins) + 0.5) / num_bins
