"""The counting of matrix products: every matrix once, every token of a pass, and the passes that decode apart from the others."""

import pytest
import torch

from benchmarks import products
from benchmarks.products import Passes, Products
from stepladder.policy.backends.transformers import TransformersPolicy
from stepladder.policy.prompts import StepFormat
from tests.backends import step_request
from tests.models import tiny_policy


def test_products_of_a_search_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of ten tokens takes a second per matrix: two layers have seven each, and the output layer is one.

    100 unique tokens are ten passes through the layers, and 40 sampled ones four through the output layer.
    """
    model, _ = tiny_policy(arch="llama", layers=2)
    monkeypatch.setattr(products, "_pass_seconds", lambda weights, batch: len(weights) * batch / 10)
    counted = Products(model)
    for batch in (10, 20):
        assert counted.seconds(unique=100, sampled=40, batch=batch) == 10 * 2 * 7 + 4


def test_products_use_the_weights_of_the_model() -> None:
    """The time of a pass is positive, and the matrices are those of the layers, without embeddings."""
    model, _ = tiny_policy(arch="llama", layers=1)
    counted = Products(model)
    assert {id(weight) for weight in counted.body} == {id(value) for value in model.model.layers.parameters() if value.ndim == 2}
    assert counted.seconds(unique=4, sampled=2, batch=2) > 0


def test_passes_count_tokens_of_prefixes_and_of_decoding() -> None:
    """Three samples of four tokens: all but a prompt's last token go in as a prefix, and this token and the sampled ones are decoded.

    The last token of a sample is not forwarded, so the batches are 1, 3, 3 and 3.
    """
    model, tokenizer = tiny_policy()
    digit = torch.tensor(tokenizer.encode("1", add_special_tokens=False))
    model.lm_head.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output).index_fill_(-1, digit, 50.0))
    policy = TransformersPolicy(model, tokenizer, StepFormat(answer_pattern="(never)"))
    passes = Passes(policy)
    policy.submit([step_request(prefix_ids=(5, 6, 7, 8, 9), num_samples=3, max_step_tokens=4)])
    assert len(policy.collect()) == 1
    assert passes.prefixes == [4]
    assert passes.decoding == [1, 3, 3, 3]
    assert passes.mean_batch == 2.5 and passes.tokens == policy.forwarded_tokens
    assert 0 < passes.attention.seconds < passes.all.seconds
