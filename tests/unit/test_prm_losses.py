"""Losses of the process reward model: hand-worked numbers, masks, and a library twin."""

import math

import pytest
import torch

from stepladder.prm.losses import bce_loss, mse_loss

NAN = float("nan")


def test_bce_loss_by_hand() -> None:
    """At logit 0 every target costs log 2; at log 3 (probability 3/4) target 0.25 costs -(0.25 log 0.75 + 0.75 log 0.25)."""
    assert bce_loss(torch.zeros(2), torch.tensor([0.0, 0.7])).item() == pytest.approx(math.log(2))
    expected = -(0.25 * math.log(0.75) + 0.75 * math.log(0.25))
    assert bce_loss(torch.tensor([math.log(3)]), torch.tensor([0.25])).item() == pytest.approx(expected)


def test_bce_gradient_is_probability_minus_target() -> None:
    """The gradient of one logit is sigmoid(z) - y, so that it vanishes at a soft target, not at 0 or 1."""
    logits = torch.tensor([0.0, math.log(3), 2.0], requires_grad=True)
    bce_loss(logits, torch.tensor([1.0, 0.75, NAN]), 1.0).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([-0.5, 0.0, 0.0]))


def test_mse_loss_by_hand() -> None:
    """Errors 0.5 and -0.1 make (0.25 + 0.01) / 2."""
    assert mse_loss(torch.tensor([1.0, 0.2]), torch.tensor([0.5, 0.3])).item() == pytest.approx(0.13)


@pytest.mark.parametrize("loss", [bce_loss, mse_loss])
def test_positions_without_target_do_not_count(loss) -> None:
    """Loss and gradient are those of the targets alone, however extreme the outputs beside them are."""
    outputs = torch.tensor([[0.3, 1e20, -0.4], [-1e20, 0.1, 0.0]], requires_grad=True)
    targets = torch.tensor([[0.0, NAN, 1.0], [NAN, 0.5, NAN]])
    present = ~targets.isnan()
    value = loss(outputs, targets)
    value.backward()
    alone = outputs.detach()[present].requires_grad_()
    expected = loss(alone, targets[present])
    expected.backward()
    torch.testing.assert_close(value, expected)
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad[present], alone.grad)
    assert outputs.grad[~present].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("loss", [bce_loss, mse_loss])
def test_an_update_may_be_split(loss) -> None:
    """Parts of an update, each divided by the targets of the whole, add up to the undivided loss."""
    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(6, generator=generator), torch.rand(6, generator=generator)
    targets[2] = NAN
    torch.testing.assert_close(loss(outputs[:4], targets[:4], 5.0) + loss(outputs[4:], targets[4:], 5.0), loss(outputs, targets))


def test_bce_agrees_with_the_library_on_hard_targets() -> None:
    """On targets 0 and 1 it is the usual binary cross-entropy of the probabilities."""
    logits, targets = torch.linspace(-3, 3, 7), torch.tensor([0.0, 1, 0, 1, 1, 0, 1])
    expected = torch.nn.functional.binary_cross_entropy(torch.sigmoid(logits), targets)
    torch.testing.assert_close(bce_loss(logits, targets), expected)


def test_the_best_constant_is_the_mean_target() -> None:
    """Both losses are least, over constants, at the mean of the targets: what a Monte Carlo estimate needs."""
    targets = torch.tensor([0.0, 0.0, 1.0, 0.2])
    grid = torch.linspace(0.01, 0.99, 99)
    squared = torch.stack([mse_loss(value.expand(4), targets) for value in grid])
    entropy = torch.stack([bce_loss(torch.logit(value).expand(4), targets) for value in grid])
    assert grid[squared.argmin()].item() == pytest.approx(0.3, abs=1e-6)
    assert grid[entropy.argmin()].item() == pytest.approx(0.3, abs=1e-6)
