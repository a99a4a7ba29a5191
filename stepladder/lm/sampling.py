"""Sampling of next tokens from counter-based random numbers.

The random number that decides a token is a pure function of (request seed, sample, position), never of a generator's state. So a sample
does not depend on the rest of the batch, on the order of arrival, or on how often a batch was reshaped.

Axes: R rows (sequences), V vocabulary.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_LEAST_LEFT = 1e-4
"""Share of a token's probability that must be left for it to be drawn again."""
_MAX_ELEMENTS = 1 << 25
"""Number of logits turned into probabilities at once; it bounds the double-precision temporaries to a few hundred MB."""


def _mix(state: UInt64[np.ndarray, "*s"]) -> UInt64[np.ndarray, "*s"]:
    """Return 64 well-mixed bits per counter.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64's finaliser, variant 13).
    """
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def stream_keys(seed: int, num_samples: int) -> UInt64[np.ndarray, "num_samples"]:
    """Return one key per sample of a request; samples with different keys have independent streams.

    Args:
        seed: The request's seed, in [0, 2**64).
        num_samples: How many keys, >= 0; key i depends on (seed, i) alone.
    """
    base = _mix(np.array([seed], dtype=np.uint64) + _GAMMA)
    samples = np.arange(1, num_samples + 1, dtype=np.uint64)
    return _mix(base ^ _mix(samples * _GAMMA))


def uniforms(keys: UInt64[np.ndarray, "R"], positions: Int[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
    """Return one uniform number in [0, 1), a multiple of 2**-53, per stream and position.

    Args:
        keys: From ``stream_keys``.
        positions: Index of the token within its sample, >= 0.
    """
    state = keys + (positions.astype(np.uint64) + np.uint64(1)) * _GAMMA
    return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class TakenMass(NamedTuple):
    """Probability that is taken off some next tokens, because sequences that begin with them are known: n entries of any rows."""

    rows: Int[np.ndarray, "n"]
    """Row, ascending."""
    tokens: Int[np.ndarray, "n"]
    """Token; several entries of a row may name one."""
    masses: Float[np.ndarray, "n"]
    """Probability of the known continuation from here on, >= 0."""

    def of_rows(self, begin: int, end: int) -> "TakenMass":
        """Return the entries of a range of rows, counted from its first one."""
        chosen = slice(*np.searchsorted(self.rows, [begin, end]))
        return TakenMass(self.rows[chosen] - begin, self.tokens[chosen], self.masses[chosen])


class SampledTokens(NamedTuple):
    """A token per row."""

    tokens: Int[np.ndarray, "R"]
    """Token ids."""
    logps: Float[np.ndarray, "R"]
    """log pi(token) at temperature 1 without ``bias``, in nats."""
    sampling_logps: Float[np.ndarray, "R"] | None
    """Log-probability of each token under the distribution that was sampled, before anything was taken off; None unless something was."""


def sample_tokens(
    logits: Float[torch.Tensor, "R V"],
    *,
    temperatures: Float[np.ndarray, "R"],
    uniform: Float[np.ndarray, "R"],
    bias: Float[torch.Tensor, "V"] | None = None,
    taken: TakenMass | None = None,
) -> SampledTokens:
    """Return a sampled token per row and its log-probability under the model.

    The token is the first whose cumulative probability exceeds ``uniform``, so it always has probability above zero.

    Args:
        logits: Next-token logits in any floating type; the softmax is taken in float32 and accumulated in float64.
        temperatures: Per row, >= 0; 0 takes the most probable token (the lowest id among equals) and ignores ``uniform``.
        uniform: Per row, in [0, 1).
        bias: Added to the logits before a token is chosen, 0 or -inf. It does not enter the log-probabilities.
        taken: Probability that is taken off before a token is chosen. It does not enter the log-probabilities either. A token of which
            less than a ten-thousandth is left counts as used up, and a row in which nothing is left is sampled as if nothing were taken.
    """
    rows_at_once = max(1, _MAX_ELEMENTS // logits.shape[1])
    parts = []
    for begin in range(0, len(logits), rows_at_once):
        chunk = slice(begin, begin + rows_at_once)
        of_chunk = None if taken is None else taken.of_rows(begin, begin + rows_at_once)
        parts.append(_sample_rows(logits[chunk], temperatures[chunk], uniform[chunk], bias, of_chunk))
    tokens, logps, sampled = (torch.cat([part[i] for part in parts]).cpu().numpy() for i in range(3))
    return SampledTokens(tokens, logps, None if taken is None else sampled)


def _sample_rows(
    logits: torch.Tensor, temperatures: np.ndarray, uniform: np.ndarray, bias: torch.Tensor | None, taken: TakenMass | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = logits.float()
    logps = logits.log_softmax(-1)
    choosable = logits if bias is None else logits + bias
    if not temperatures.any():
        tokens = choosable.argmax(-1)
        return tokens, logps.gather(1, tokens[:, None])[:, 0], torch.zeros_like(tokens)
    probs = _probabilities(logps, choosable, temperatures, plain=bias is None)
    tokens = _invert_cdf(probs if taken is None else _without(probs, taken), uniform)
    greedy = temperatures == 0
    if greedy.any():
        tokens = torch.where(torch.from_numpy(greedy).to(tokens.device), choosable.argmax(-1), tokens)
    place = tokens[:, None]
    return tokens, logps.gather(1, place)[:, 0], probs.gather(1, place)[:, 0].log()


def _without(probs: torch.Tensor, taken: TakenMass) -> torch.Tensor:
    """Return probabilities, not normalised, less the mass that is taken off them."""
    if not len(taken.rows):
        return probs
    rows, tokens = torch.from_numpy(taken.rows).to(probs.device), torch.from_numpy(taken.tokens).to(probs.device)
    left = probs.double()
    left.index_put_((rows, tokens), -torch.from_numpy(taken.masses).to(probs.device, torch.float64), accumulate=True)
    # What the arithmetic of two forward passes leaves of a used-up token is not mass.
    left = torch.where(left > _LEAST_LEFT * probs, left, 0.0)
    return torch.where(left.sum(-1, keepdim=True) > 0, left, probs.double())


def _probabilities(logps: torch.Tensor, choosable: torch.Tensor, temperatures: np.ndarray, *, plain: bool) -> torch.Tensor:
    if plain and (temperatures == 1).all():
        return logps.exp()
    divisors = torch.from_numpy(np.where(temperatures > 0, temperatures, 1.0).astype(np.float32)).to(choosable.device)
    return (choosable / divisors[:, None]).softmax(-1)


def _invert_cdf(probs: torch.Tensor, uniform: np.ndarray) -> torch.Tensor:
    cdf = probs.cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1:]
    # Rounding could lift u * total up to total, past the last token. Staying below it picks a token with probability above zero.
    threshold = torch.minimum(torch.from_numpy(uniform).to(cdf.device)[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # A row of NaN has no such token. The clamp keeps its index valid, and the NaN log-probability shows the fault.
    return torch.searchsorted(cdf, threshold, right=True)[:, 0].clamp_(max=probs.shape[1] - 1)
