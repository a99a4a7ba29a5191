"""Losses of the policy: hand-worked numbers, TRL as an outside oracle, and the relations between losses."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from stepladder.policy.losses import IGNORE, dpo_loss, preference_loss, sft_loss, token_logps

LOG2 = math.log(2)


def random_logps(seed: int, num_pairs: int = 5) -> dict[str, torch.Tensor]:
    """Return log-probabilities of pairs under a model and its reference."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: -10 * torch.rand(num_pairs, generator=generator, dtype=torch.float64)  # noqa: E731
    return {name: draw() for name in ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")}


def test_token_logps_are_the_softmax_of_the_target() -> None:
    """With logits (0, log 3) the second token has probability 3/4; ignored positions give exactly 0."""
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)], [5.0, 5.0]]])
    logps = token_logps(logits, torch.tensor([[1, 0, IGNORE]]))
    torch.testing.assert_close(logps, torch.tensor([[math.log(0.75), math.log(0.25), 0.0]]))
    torch.testing.assert_close(logps.sum(-1), torch.tensor([math.log(3 / 16)]))


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
    assert logps.item() == pytest.approx(-LOG2, abs=1e-7)


def test_sft_loss_is_the_mean_over_tokens() -> None:
    """Log-probabilities -3 (over 2 tokens) and -1 (over 6) make a mean of 4 / 8, not the mean of the sequences' means."""
    assert sft_loss(torch.tensor([-3.0, -1.0]), 8).item() == pytest.approx(0.5)


def test_dpo_loss_by_hand() -> None:
    """Margin (-1 - -2) - (-3 - -2) = 2 at beta 0.5 gives -log sigmoid(1); with 20% smoothing 0.8 of it and 0.2 of -log sigmoid(-1)."""
    logps = dict(
        chosen_logps=torch.tensor([-1.0]),
        rejected_logps=torch.tensor([-3.0]),
        ref_chosen_logps=torch.tensor([-2.0]),
        ref_rejected_logps=torch.tensor([-2.0]),
    )
    right, flipped = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert dpo_loss(**logps, beta=0.5).item() == pytest.approx(right)
    assert dpo_loss(**logps, beta=0.5, label_smoothing=0.2).item() == pytest.approx(0.8 * right + 0.2 * flipped)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_dpo_loss_is_log_2_at_the_reference(label_smoothing: float) -> None:
    """Where model and reference agree the loss is log 2, whatever the log-probabilities are."""
    logps = torch.tensor([-4.0, 0.0])
    others = torch.tensor([-1.0, -7.0])
    loss = dpo_loss(logps, others, ref_chosen_logps=logps, ref_rejected_logps=others, label_smoothing=label_smoothing)
    assert loss.item() == pytest.approx(LOG2)


def test_dpo_gradient_by_hand_and_direction() -> None:
    """At the reference the gradient is -beta / 2 on the chosen and beta / 2 on the rejected: descent raises the one, lowers the other."""
    chosen, rejected = torch.tensor([-1.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    dpo_loss(chosen, rejected, ref_chosen_logps=torch.tensor([-1.0]), ref_rejected_logps=torch.tensor([-2.0]), beta=0.4).backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.2)
    assert rejected.grad.item() == pytest.approx(0.2)


def test_label_smoothing_turns_the_gradient_of_a_sure_pair() -> None:
    """Conservative DPO is least at beta * margin = log((1 - eps) / eps); beyond that point descent pulls the pair together again."""
    eps, beta = 0.1, 1.0
    best = math.log((1 - eps) / eps)
    for offset, sign in ((-0.5, -1), (0.5, 1)):
        chosen = torch.tensor([best + offset], requires_grad=True)
        zero = torch.zeros(1)
        dpo_loss(chosen, zero, ref_chosen_logps=zero, ref_rejected_logps=zero, beta=beta, label_smoothing=eps).backward()
        assert chosen.grad is not None
        assert math.copysign(1, chosen.grad.item()) == sign


@pytest.mark.parametrize("seed", range(3))
def test_shared_leading_tokens_cancel(seed: int) -> None:
    """Adding the same log-probability to both sides of a pair, under model and reference each, changes neither loss nor gradient."""
    logps, shared = random_logps(seed), random_logps(seed + 100)
    with_shared = {
        "chosen_logps": logps["chosen_logps"] + shared["chosen_logps"],
        "rejected_logps": logps["rejected_logps"] + shared["chosen_logps"],
        "ref_chosen_logps": logps["ref_chosen_logps"] + shared["ref_chosen_logps"],
        "ref_rejected_logps": logps["ref_rejected_logps"] + shared["ref_chosen_logps"],
    }
    results = []
    for case in (logps, with_shared):
        leaves = {name: value.clone().requires_grad_() for name, value in case.items()}
        loss = dpo_loss(**leaves, beta=0.3, label_smoothing=0.1)
        loss.backward()
        results.append((loss.detach(), leaves["chosen_logps"].grad, leaves["rejected_logps"].grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("split", [1, 2, 4])
def test_an_update_may_be_split(split: int) -> None:
    """Parts of an update, each divided by the counts of the whole, add up to the undivided loss."""
    logps = random_logps(0)
    full, common = logps["chosen_logps"] * 1.5, dict(beta=0.2, label_smoothing=0.1, sft_weight=0.7, num_tokens=23.0, num_pairs=5.0)
    whole = preference_loss(**logps, full_chosen_logps=full, **common)
    parts = [
        preference_loss(**{name: value[part] for name, value in logps.items()}, full_chosen_logps=full[part], **common)
        for part in (slice(0, split), slice(split, 5))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_preference_loss_reduces_to_dpo() -> None:
    """Without a likelihood term it is plain DPO; with one it adds exactly the weighted token mean."""
    logps = random_logps(1)
    plain = dpo_loss(**logps, beta=0.2)
    full = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0], dtype=torch.float64)
    torch.testing.assert_close(preference_loss(**logps, full_chosen_logps=full, num_tokens=30, beta=0.2), plain)
    torch.testing.assert_close(preference_loss(**logps, full_chosen_logps=full, num_tokens=30, beta=0.2, sft_weight=2.0), plain + 1.0)


def trl_loss(
    token_logps_2B_T: torch.Tensor,
    mask: torch.Tensor,
    ref: torch.Tensor,
    *,
    loss_types: list[str],
    loss_weights: list[float],
    **settings: float,
) -> float:
    """Return what TRL's own loss code makes of the log-probabilities of B preferred and B other completions."""
    trl = pytest.importorskip("trl")
    num_sequences, length = mask.shape
    zeros = torch.zeros(num_sequences, length)
    outputs = SimpleNamespace(log_probs=token_logps_2B_T, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=accelerator,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=loss_types,
        loss_weights=loss_weights,
        use_weighting=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        **settings,
    )
    ref_chosen, ref_rejected = ref.chunk(2)
    prompt = torch.zeros(num_sequences, 1, dtype=torch.long)
    inputs = {
        "input_ids": torch.zeros(num_sequences, length + 1, dtype=torch.long),
        "completion_mask": torch.cat([prompt, mask.long()], dim=1),
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    return trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False).item()


@pytest.mark.parametrize("seed", range(3))
def test_losses_agree_with_trl(seed: int) -> None:
    """DPO, and DPO with the likelihood term, equal TRL's on the same log-probabilities of completions of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(7) < torch.tensor([7, 3, 5, 1, 6, 2])[:, None]
    logps = -3 * torch.rand(6, 7, generator=generator) * mask
    ref = -10 * torch.rand(6, generator=generator)
    sums, refs = logps.sum(1).chunk(2), ref.chunk(2)
    arguments = dict(ref_chosen_logps=refs[0], ref_rejected_logps=refs[1], beta=0.3)
    oracle = trl_loss(logps, mask, ref, loss_types=["sigmoid"], loss_weights=[1.0], beta=0.3, label_smoothing=0.0)
    assert dpo_loss(*sums, **arguments).item() == pytest.approx(oracle, rel=1e-6)
    oracle = trl_loss(logps, mask, ref, loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.5], beta=0.3, label_smoothing=0.0)
    combined = preference_loss(*sums, **arguments, full_chosen_logps=sums[0], num_tokens=mask[:3].sum().item(), sft_weight=0.5)
    assert combined.item() == pytest.approx(oracle, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_smoothed_loss_agrees_with_trl(seed: int) -> None:
    """On a single pair TRL's ``aot`` loss, which sorts over pairs, is conservative DPO."""
    generator = torch.Generator().manual_seed(seed)
    logps, ref = -3 * torch.rand(2, 4, generator=generator), -6 * torch.rand(2, generator=generator)
    oracle = trl_loss(logps, torch.ones(2, 4).bool(), ref, loss_types=["aot"], loss_weights=[1.0], beta=0.5, label_smoothing=0.15)
    sums = logps.sum(1)
    loss = dpo_loss(sums[:1], sums[1:], ref_chosen_logps=ref[:1], ref_rejected_logps=ref[1:], beta=0.5, label_smoothing=0.15)
    assert loss.item() == pytest.approx(oracle, rel=1e-6)
