"""Log-probabilities of completion tokens from logits: hand-worked numbers."""

import math

import pytest
import torch

from stepladder.lm.completions import IGNORE, gathered_logps, token_logps


def test_token_logps_are_the_softmax_of_the_target() -> None:
    """With logits (0, log 3) the second token has probability 3/4; ignored positions give exactly 0."""
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)], [5.0, 5.0]]])
    logps = token_logps(logits, torch.tensor([[1, 0, IGNORE]]))
    torch.testing.assert_close(logps, torch.tensor([[math.log(0.75), math.log(0.25), 0.0]]))
    torch.testing.assert_close(logps.sum(-1), torch.tensor([math.log(3 / 16)]))


def test_gathered_logps_are_read_where_they_are_told() -> None:
    """Two targets are read at one position, where a tree branches, and their gradients add up; ignored ones give exactly 0."""
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 5.0]], requires_grad=True)
    logps = gathered_logps(logits, torch.tensor([[0, 0], [1, 0]]), torch.tensor([[0, 1], [1, IGNORE]]))
    torch.testing.assert_close(logps.detach(), torch.tensor([[math.log(0.25), math.log(0.75)], [math.log(0.5), 0.0]]))
    logps.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, -0.5], [-0.5, 0.5]]))


def test_ignored_positions_have_no_gradient() -> None:
    """The logits of prompt and padding receive a gradient of exactly zero, even where they are extreme."""
    logits = torch.tensor([[[0.0, 1.0], [1e30, -1e30]]], requires_grad=True)
    token_logps(logits, torch.tensor([[0, IGNORE]])).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 1].tolist() == [0.0, 0.0]
    assert logits.grad[0, 0].abs().sum() > 0


def test_token_logps_of_low_precision_logits_are_taken_in_float32() -> None:
    """Probabilities of bfloat16 logits are exact for the rounded logits; bfloat16 arithmetic would give 0.69140625 for log 2."""
    logps = token_logps(torch.zeros(1, 1, 2, dtype=torch.bfloat16), torch.tensor([[1]]))
    assert logps.dtype == torch.float32
    assert logps.item() == pytest.approx(-math.log(2), abs=1e-7)
