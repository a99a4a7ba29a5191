"""Every family gives the log-probabilities of a plain forward in caches, in decoding and under a head; what cannot be served is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    DeepseekV3Config,
    GPTNeoXConfig,
    GptOssConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    RecurrentGemmaConfig,
    T5Config,
)

from stepladder.errors import BackendError
from stepladder.lm.families import TESTED, unserved_parts
from stepladder.lm.flat import FlatModel
from stepladder.lm.loading import load_token_classifier
from stepladder.lm.prefix_cache import PathGroup, PrefixCache
from stepladder.policy.backends.transformers import TransformersPolicy
from stepladder.policy.prompts import StepFormat
from tests.backends import samples_of, step_request
from tests.families import COMMON, FAMILIES, VOCABULARY, WINDOW, family_model
from tests.models import tiny_tokenizer

PREFIX = tuple(range(3, 19))
BRANCHES = ((4, 5, 6), (4, 9, 11, 12, 13, 14, 15, 3, 3, 4), ())
WINDOWED = ["qwen2 with windows", "mistral", "ministral", "gemma 2", "gemma 3", "phi 3", "olmo 3"]


def cached_outputs(model: torch.nn.Module, num_outputs: int, **options: int) -> list[np.ndarray]:
    """Return the outputs of every token of each branch."""
    cache = PrefixCache(FlatModel(model), num_outputs=num_outputs, **options)  # pyright: ignore
    placed = cache.extend([PathGroup(prefix_ids=PREFIX, branches=BRANCHES)])[0]
    return [cache.outputs(placement.slots) for placement in placed]


@torch.no_grad()
@pytest.mark.parametrize("pass_tokens", [4096, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_branches_are_those_of_a_plain_forward(family: str, pass_tokens: int) -> None:
    """The logits of every token of every branch, also where a pass holds only a piece of a sequence."""
    model = family_model(family)
    for found, branch in zip(cached_outputs(model, VOCABULARY, pass_tokens=pass_tokens), BRANCHES, strict=True):
        np.testing.assert_allclose(found, model(torch.tensor([PREFIX + branch])).logits[0], atol=3e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_on_tokens_are_those_of_a_plain_forward(family: str, tmp_path: Path) -> None:
    """The same for a value head on a saved policy's body, also where transformers has no such model for the family."""
    policy = family_model(family)
    policy.save_pretrained(tmp_path)
    model = load_token_classifier(tmp_path, device="cpu", num_labels=1)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model.get_input_embeddings().weight, policy.get_input_embeddings().weight, rtol=0, atol=0)
    for found, branch in zip(cached_outputs(model, 1), BRANCHES, strict=True):
        np.testing.assert_allclose(found, model(torch.tensor([PREFIX + branch])).logits[0], atol=3e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_log_probabilities_are_those_of_a_plain_forward(family: str) -> None:
    """Several samples of prefixes of different lengths, step after step, with windows that end inside prefix and step."""
    tokenizer = tiny_tokenizer()
    model = family_model(family, vocab_size=len(tokenizer))
    policy = TransformersPolicy(model, tokenizer, StepFormat(step_end="\n"), max_batch=5)
    prefixes = [PREFIX, PREFIX[:2], PREFIX * 2]
    for turn in range(2):
        requests = [step_request(i, prefix, 3, seed=9 * turn + i, max_step_tokens=12) for i, prefix in enumerate(prefixes)]
        found = samples_of(policy, requests)
        for prefix, samples in zip(prefixes, found, strict=True):
            for sample in samples:
                ids = [token for step in sample for token in step.token_ids]
                table = model(torch.tensor([[*prefix, *ids]])).logits[0].log_softmax(-1)
                expected = [float(table[len(prefix) - 1 + i, token]) for i, token in enumerate(ids)]
                np.testing.assert_allclose([logp for step in sample for logp in step.logps], expected, atol=3e-5)
        prefixes = [(*prefix, *samples[1][0].token_ids) for prefix, samples in zip(prefixes, found, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("family", WINDOWED)
def test_the_windows_of_these_tests_matter(family: str) -> None:
    """A model that sees everything gives clearly other outputs, so the tests above would notice a window that is left out."""
    narrow, wide = (cached_outputs(family_model(family, sliding_window=size), VOCABULARY)[1] for size in (WINDOW, 200))
    np.testing.assert_allclose(narrow[:WINDOW], wide[:WINDOW], atol=3e-5)
    assert np.abs(narrow - wide).max() > 0.05


def test_a_scaling_that_changes_with_length_is_served_up_to_there() -> None:
    """Phi's long contexts are rotated otherwise from 128 tokens on, so longer sequences are not served; dynamic scaling alike."""
    assert FlatModel(family_model("phi 3 with a long context")).max_positions == 128
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert FlatModel(family_model("llama", rope_parameters=dynamic)).max_positions == COMMON["max_position_embeddings"]


def test_what_cannot_be_served_is_named() -> None:
    """Linear attention, shared keys and attention to later tokens: the part is named before anything is forwarded."""
    config = Qwen3NextConfig(
        **{**COMMON, "num_hidden_layers": 4}, num_experts=2, linear_num_value_heads=2, linear_num_key_heads=2, head_dim=16
    )
    with pytest.raises(BackendError, match=r"linear_attention layers.*use another model"):
        FlatModel(Qwen3NextForCausalLM(config))
    gemma = FAMILIES["gemma 3"]()
    gemma.num_kv_shared_layers, gemma.use_bidirectional_attention = 1, True
    assert unserved_parts(gemma) == ["layers that share keys and values", "attention to later tokens"]


def test_families_that_only_look_like_decoders_are_named() -> None:
    """Encoders, latent attention and sinks by their configurations; a decoder that only calls itself none is served."""
    assert unserved_parts(BertConfig()) == unserved_parts(T5Config()) == ["an encoder"]
    assert unserved_parts(BertConfig(is_decoder=True)) == unserved_parts(GPTNeoXConfig()) == []
    assert unserved_parts(RecurrentGemmaConfig()) == ["recurrent layers"]
    assert unserved_parts(DeepseekV3Config()) == ["latent attention"]
    assert unserved_parts(GptOssConfig()) == ["attention sinks"]


def test_the_tested_families_are_those_of_the_contract() -> None:
    """Others are looked at when a run begins, which loads their code."""
    assert {family().model_type for family in FAMILIES.values()} == TESTED
