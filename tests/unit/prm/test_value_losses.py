"""Losses of the process reward model: hand-worked numbers, masks, and a library twin."""

import math

import pytest
import torch

from stepladder.prm.outputs import bin_centres
from stepladder.prm.value_losses import (
    bce_loss,
    categorical_loss,
    hl_gauss_targets,
    implicit_ce_loss,
    implicit_dpo_loss,
    mse_loss,
    pairwise_loss,
    two_hot_targets,
)

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


def slow_pairwise(outputs, targets) -> float:
    """Return the loss by two loops over the members of every group."""
    groups = []
    for row, wanted in zip(outputs.tolist(), targets.tolist(), strict=True):
        losses = [math.log1p(math.exp(b - a)) for a, y in zip(row, wanted, strict=True) for b, z in zip(row, wanted, strict=True) if y > z]
        groups += [sum(losses) / len(losses)] if losses else []
    return sum(groups) / len(groups)


def test_pairwise_loss_by_hand() -> None:
    """Margins ln 3 cost log(4/3); two right against one wrong weigh 1/2 each; equal targets and missing members do not count."""
    outputs, targets = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[1.0, 0.0]])
    assert pairwise_loss(outputs, targets).item() == pytest.approx(math.log(4 / 3))
    outputs = torch.tensor([[math.log(3), 0.0, 0.0], [5.0, 6.0, 7.0], [0.0, 9e9, math.log(3)]])
    targets = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, NAN, 0.0]])
    assert pairwise_loss(outputs, targets).item() == pytest.approx(((math.log(4 / 3) + math.log(2)) / 2 + math.log(4)) / 2)
    assert pairwise_loss(outputs[:1], targets[:1], 4).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 8)


@pytest.mark.parametrize("seed", range(4))
def test_pairwise_loss_equals_two_loops_and_only_the_order_of_targets_counts(seed) -> None:
    """Graded targets too; shifting all outputs of a group changes nothing."""
    rng = torch.Generator().manual_seed(seed)
    outputs, targets = torch.randn(5, 6, generator=rng), torch.randint(0, 3, (5, 6), generator=rng).double()
    assert pairwise_loss(outputs, targets).item() == pytest.approx(slow_pairwise(outputs, targets), rel=1e-5)
    shifted = outputs + torch.randn(5, 1, generator=rng)
    assert pairwise_loss(shifted, targets**2 / 4).item() == pytest.approx(slow_pairwise(outputs, targets), rel=1e-5)


def test_qwens_listwise_loss_and_the_rstar_weights_are_the_pairwise_loss() -> None:
    """Six samples, k = 2 right: -1 / (k (6 - k)) sum log sigmoid(r_i - r_j) over right i and wrong j."""
    rewards = torch.randn(6, generator=torch.Generator().manual_seed(0))
    right = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    expected = -sum(
        torch.nn.functional.logsigmoid(rewards[i] - rewards[j]) for i in range(6) for j in range(6) if right[i] and not right[j]
    ) / (2 * 4)
    torch.testing.assert_close(pairwise_loss(rewards[None], right[None]), expected)


def test_pairwise_gradients_of_missing_members_are_zero() -> None:
    """However extreme an absent member's output is, nothing becomes NaN."""
    outputs = torch.tensor([[0.0, 1e30, 1.0]], requires_grad=True)
    pairwise_loss(outputs, torch.tensor([[0.0, NAN, 1.0]])).backward()
    assert outputs.grad is not None
    assert outputs.grad[0, 1] == 0
    assert outputs.grad[0, 0] == pytest.approx(1 / (1 + math.e))
    assert outputs.grad.sum() == pytest.approx(0.0, abs=1e-7)


def test_two_hot_targets_have_the_target_as_their_mean() -> None:
    """With four bins (centres 1/8, 3/8, 5/8, 7/8) 0.5 is half and half, 7/16 is 3/4 and 1/4; 0 and 1 are the outermost centres."""
    made = two_hot_targets(torch.tensor([0.5, 7 / 16, 0.0, 1.0, NAN]), num_bins=4)
    torch.testing.assert_close(made[:4], torch.tensor([[0, 0.5, 0.5, 0], [0, 0.75, 0.25, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]))
    assert made[4].isnan().all()
    inner = torch.linspace(0.125, 0.875, 13)
    torch.testing.assert_close(two_hot_targets(inner, num_bins=4) @ torch.tensor(bin_centres(4)).float(), inner)


def test_hl_gauss_targets_are_the_normal_mass_of_every_bin() -> None:
    """With two bins and target 0.5 both halves are equal; in general the mass is a difference of error functions, normalised."""
    torch.testing.assert_close(hl_gauss_targets(torch.tensor([0.5]), num_bins=2), torch.tensor([[0.5, 0.5]]))
    target, bins, deviation = 0.3, 5, 0.75 / 5
    mass = [
        math.erf(((f + 1) / bins - target) / deviation / math.sqrt(2)) - math.erf((f / bins - target) / deviation / math.sqrt(2))
        for f in range(bins)
    ]
    expected = torch.tensor([part / sum(mass) for part in mass])
    torch.testing.assert_close(hl_gauss_targets(torch.tensor([target]), num_bins=bins)[0], expected)
    assert hl_gauss_targets(torch.tensor([NAN]), num_bins=4).isnan().all()
    fine = hl_gauss_targets(torch.tensor([0.25, 0.5]), num_bins=50) @ torch.tensor(bin_centres(50)).float()
    torch.testing.assert_close(fine, torch.tensor([0.25, 0.5]), atol=1e-6, rtol=0)


def test_categorical_loss_by_hand_and_at_its_least() -> None:
    """Equal logits over four bins cost log 4; the loss is least, the entropy, at the logs of the target; no target, no loss."""
    targets = torch.tensor([[0.5, 0.25, 0.25, 1e-9], [NAN] * 4])
    assert categorical_loss(torch.zeros(2, 4), targets).item() == pytest.approx(math.log(4))
    logits = torch.cat([targets[:1].log(), torch.full((1, 4), 1e30)]).requires_grad_()
    loss = categorical_loss(logits, targets)
    assert loss.item() == pytest.approx(1.5 * math.log(2))
    loss.backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(2, 4), atol=1e-7, rtol=0)


def test_implicit_losses_by_hand() -> None:
    """At beta 0.5 a log-ratio of 2 ln 3 is a reward of ln 3: probability 3/4 of being right, and of beating a reward of 0."""
    ratios = torch.tensor([2 * math.log(3), 0.0])
    assert implicit_ce_loss(ratios, torch.tensor([1.0, 0.0]), beta=0.5).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert implicit_dpo_loss(ratios[None], torch.tensor([[1.0, 0.0]]), beta=0.5).item() == pytest.approx(math.log(4 / 3))
