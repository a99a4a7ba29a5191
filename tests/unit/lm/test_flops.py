"""Floating-point operations of a forward pass: counted by hand, and by torch."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stepladder.lm.flops import ModelFlops, flops_of, flops_of_files
from tests.families import family_model


def test_by_hand() -> None:
    """A body of 10 weights, a head of 6, 2 layers of 3 query values each; 5 tokens that see 15 pairs, 2 of them read."""
    flops = ModelFlops(body=10, head=6, attention=6)
    assert flops.forward(5, seen=15, read=2) == 2 * 10 * 5 + 2 * 6 * 2 + 4 * 6 * 15
    assert flops.forward(5) == 2 * 10 * 5 + 2 * 6 * 5
    assert flops.training(5, seen=15, read=2) == 3 * 484


@pytest.mark.parametrize("family", ["qwen2", "qwen2 moe", "qwen3 moe"])
def test_torch_counts_the_same(family: str) -> None:
    """On small models whose eager attention multiplies all pairs, 7 x 7 of them; a token meets two of four experts."""
    model = family_model(family)
    # Torch does not count the fused product of all experts.
    model.set_experts_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(3, 10)[None])
    assert counter.get_total_flops() == flops_of(model).forward(7, seen=49)


def test_a_configuration_is_enough(tmp_path: Path) -> None:
    """No weights are read: the directory has none. Tied embeddings are the head, and no part of the body."""
    for name in ("qwen2", "gemma 3", "qwen3 moe"):
        model = family_model(name)
        model.config.save_pretrained(tmp_path / name)
        assert flops_of_files(str(tmp_path / name)) == flops_of(model)


def test_experts_of_an_unknown_number_per_token() -> None:
    """Operations are unknown then, and not those of a model without experts."""
    model = family_model("qwen3 moe")
    shape = SimpleNamespace(hidden_size=32, num_attention_heads=4, num_hidden_layers=2)
    model.config = SimpleNamespace(get_text_config=lambda: shape)
    with pytest.raises(AttributeError, match="how many experts"):
        flops_of(model)
