import math

import numpy as np
import pytest
import torch

from stepladder.lm import sampling
from stepladder.lm.sampling import TakenMass, sample_tokens, stream_keys, uniforms


def _splitmix(state: int) -> int:
    """SplitMix64's finaliser with Python integers."""
    mask = (1 << 64) - 1
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
    return state ^ (state >> 31)


def test_uniforms_are_splitmix64_of_key_plus_counter():
    """Position p of a stream is the p-th output of SplitMix64 seeded with the stream's key; seed 0 gives the published first outputs."""
    got = uniforms(np.array([0, 0], dtype=np.uint64), np.array([0, 1]))
    expected = [(0xE220A8397B1DCDAF >> 11) * 2.0**-53, (0x6E789E6AA1B965F4 >> 11) * 2.0**-53]
    np.testing.assert_array_equal(got, expected)


def test_stream_keys_equal_the_integer_twin():
    """Key i is mix(mix(seed + gamma) ^ mix((i + 1) * gamma)) modulo 2**64."""
    gamma, mask, seed = 0x9E3779B97F4A7C15, (1 << 64) - 1, 2**63 - 1
    base = _splitmix((seed + gamma) & mask)
    expected = [_splitmix(base ^ _splitmix((i + 1) * gamma & mask)) for i in range(3)]
    assert stream_keys(seed, 3).tolist() == expected
    assert stream_keys(seed, 0).tolist() == []


def test_uniforms_look_uniform_and_independent_across_samples_and_positions():
    """Means, variances and correlations of neighbouring streams and positions stay within five standard errors."""
    keys = np.concatenate([stream_keys(seed, 4) for seed in range(500)])
    table = np.stack([uniforms(keys, np.full(len(keys), position)) for position in range(8)], axis=1)
    count = table.size
    assert abs(table.mean() - 0.5) < 5 * math.sqrt(1 / 12 / count)
    assert abs(table.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / count)
    centred = table - 0.5
    for left, right in ((centred[:, :-1], centred[:, 1:]), (centred[:-1], centred[1:])):
        assert abs((left * right).mean()) < 5 / 12 / math.sqrt(left.size)


def test_sample_tokens_inverts_the_cumulative_distribution():
    """With probabilities .1 .2 .3 .4 the thresholds .1 .3 .6 separate the tokens, a threshold itself belonging to the next token."""
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log().expand(6, 4)
    uniform = np.array([0.0, 0.0999, 0.1001, 0.2999, 0.5999, 0.9999])
    tokens, logps, _ = sample_tokens(logits, temperatures=np.ones(6), uniform=uniform)
    assert tokens.tolist() == [0, 0, 1, 1, 2, 3]
    np.testing.assert_allclose(logps, np.log([0.1, 0.1, 0.2, 0.2, 0.3, 0.4]), rtol=1e-6)


def test_temperature_sharpens_the_draw_but_not_the_log_probability():
    """At temperature 1/2 probabilities .25 .75 become .1 .9; the log-probability stays that of temperature 1."""
    logits = torch.tensor([[0.25, 0.75]]).log().repeat(2, 1)
    tokens, logps, _ = sample_tokens(logits, temperatures=np.array([0.5, 0.5]), uniform=np.array([0.0999, 0.1001]))
    assert tokens.tolist() == [0, 1]
    np.testing.assert_allclose(logps, np.log([0.25, 0.75]), rtol=1e-6)


def test_greedy_rows_take_the_lowest_of_equal_maxima_beside_sampled_rows():
    """Temperature 0 ignores the random number, also in a batch with other temperatures."""
    logits = torch.tensor([[0.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    tokens, _, _ = sample_tokens(logits, temperatures=np.array([0.0, 1.0]), uniform=np.array([0.999, 0.999]))
    assert tokens.tolist() == [1, 2]


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-53])
def test_tokens_without_probability_are_never_drawn(uniform):
    """Neither a biased id, nor an id with logit -inf at the beginning or the end, is drawn at any random number."""
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, 0.0, -torch.inf]])
    bias = torch.tensor([0.0, 0.0, -torch.inf, 0.0, 0.0])
    tokens, logps, _ = sample_tokens(logits, temperatures=np.ones(1), uniform=np.array([uniform]), bias=bias)
    assert tokens[0] == (1 if uniform < 0.5 else 3)
    assert logps[0] == pytest.approx(-math.log(2 + math.e))


def test_rows_are_sampled_alike_whole_and_in_chunks(monkeypatch):
    """Splitting a large batch changes nothing."""
    logits = torch.randn(10, 7, generator=torch.Generator().manual_seed(0))
    arguments = {"temperatures": np.linspace(0, 2, 10), "uniform": np.linspace(0, 0.99, 10)}
    whole = sample_tokens(logits, **arguments)
    monkeypatch.setattr(sampling, "_MAX_ELEMENTS", 21)
    chunked = sample_tokens(logits, **arguments)
    np.testing.assert_array_equal(whole[0], chunked[0])
    np.testing.assert_array_equal(whole[1], chunked[1])


def test_low_precision_logits_are_normalised_in_float32():
    """Log-probabilities of bfloat16 logits are those of the same numbers in float32."""
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    _, logps, _ = sample_tokens(logits, temperatures=np.zeros(1), uniform=np.zeros(1))
    assert logps[0] == pytest.approx(-math.log(1 + math.exp(-1) + math.exp(-2)), abs=1e-6)


def test_taken_mass_is_off_the_draw_and_not_off_the_log_probabilities():
    """Of .1 .2 .3 .4, all of the second and half of the last are taken: .1 0 .3 .2 are left, and a draw of .5 of that is the third.

    A first row without anything taken is drawn as ever; in a third, where everything is taken, it does not count.
    """
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().repeat(3, 1)
    taken = TakenMass(np.array([1, 1, 1, 2, 2, 2, 2]), np.array([1, 3, 3, 0, 1, 2, 3]), np.array([0.2, 0.1, 0.1, 0.1, 0.2, 0.3, 0.4]))
    for uniform, expected in ((0.05, [0, 0, 0]), (0.17, [1, 2, 1]), (0.6, [3, 2, 3]), (0.7, [3, 3, 3])):
        tokens, logps, sampling_logps = sample_tokens(logits, temperatures=np.ones(3), uniform=np.full(3, uniform), taken=taken)
        assert tokens.tolist() == expected
        np.testing.assert_allclose(logps, np.log(np.array([0.1, 0.2, 0.3, 0.4])[expected]), rtol=1e-5)
        np.testing.assert_allclose(sampling_logps, logps, rtol=1e-5)
    tempered = sample_tokens(logits, temperatures=np.full(3, 0.5), uniform=np.full(3, 0.99), taken=taken)
    np.testing.assert_allclose(tempered.sampling_logps, np.log(0.16 / 0.3), rtol=1e-5)
    assert sample_tokens(logits, temperatures=np.ones(3), uniform=np.full(3, 0.5)).sampling_logps is None


def test_taken_mass_follows_its_row_through_chunks(monkeypatch):
    """However many rows are sampled at once, each loses its own mass."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(9, 5)))
    probs = logits.softmax(-1).numpy()
    rows = np.array([0, 0, 3, 4, 8])
    tokens = np.array([1, 2, 0, 4, 3])
    arguments = {"temperatures": np.ones(9), "uniform": rng.random(9), "taken": TakenMass(rows, tokens, probs[rows, tokens])}
    whole = sample_tokens(logits, **arguments)
    monkeypatch.setattr(sampling, "_MAX_ELEMENTS", 10)
    chunked = sample_tokens(logits, **arguments)
    assert whole.tokens.tolist() == chunked.tokens.tolist() and whole.tokens[8] != 3 and whole.tokens[0] not in (1, 2)
