"""Operations of a round: parameters from the weights' headers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stepladder.errors import CheckpointError
from stepladder.loops.runs.flops import count_parameters


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
