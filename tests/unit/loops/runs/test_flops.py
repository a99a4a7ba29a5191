"""Operations of a round: parameters from the weights' headers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stepladder.errors import CheckpointError
from stepladder.lm.flops import ModelFlops
from stepladder.loops.runs.flops import SearchFlops, count_parameters


def test_parameters_are_counted_over_all_files(tmp_path: Path) -> None:
    """2 x 3 and 4 in one file, a scalar in another: eleven; without files, or without a directory, they are unknown."""
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4)}, tmp_path / "model-1.safetensors", metadata={"format": "pt"})
    save_file({"c": torch.zeros(())}, tmp_path / "model-2.safetensors")
    assert count_parameters(tmp_path) == 11
    assert count_parameters(tmp_path / "none") is None
    assert count_parameters(Path("owner/model")) is None


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    """A header that is cut off names the model."""
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(CheckpointError, match="a model with readable weights"):
        count_parameters(tmp_path)


def test_operations_of_a_search_by_hand():
    """A policy of 10 weights and 6 in its head forwards 100 tokens and samples 40; a PRM of 5 weights reads 30."""
    policy, prm = ModelFlops(body=10, head=6, attention=1), ModelFlops(body=5, head=6, attention=1)
    both = SearchFlops(policy=policy, prm=prm)
    assert both.of(forwarded=100, sampled=40, prm_forwarded=30) == 2 * 10 * 100 + 2 * 6 * 40 + 2 * 5 * 30
    alone = SearchFlops(policy=policy, prm=None)
    assert alone.of(forwarded=100, sampled=40, prm_forwarded=0) == 2 * 10 * 100 + 2 * 6 * 40
    # A PRM that reads tokens, but whose size is not known, and a backend that does not count.
    assert alone.of(forwarded=100, sampled=40, prm_forwarded=30) is None
    assert both.of(forwarded=None, sampled=40, prm_forwarded=30) is None
    assert both.of(forwarded=100, sampled=40, prm_forwarded=None) is None
    assert SearchFlops(policy=None, prm=prm).of(forwarded=100, sampled=40, prm_forwarded=30) is None
