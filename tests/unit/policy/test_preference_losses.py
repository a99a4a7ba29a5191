"""Losses of the policy: hand-worked numbers, TRL as an outside oracle, and the relations between losses."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from stepladder.policy.preference_losses import (
    agreement_smoothing,
    apo_zero_losses,
    cpl_losses,
    dpo_losses,
    inpo_losses,
    ipo_losses,
    kto_losses,
    kto_reference_point,
    log_ratio_margins,
    oreal_losses,
    orpo_losses,
    preference_loss,
    refuel_losses,
    sft_loss,
    simpo_losses,
    sppo_losses,
    uncertainty_smoothing,
    visit_smoothing,
)

LOG2 = math.log(2)


def random_logps(seed: int, num_pairs: int = 5) -> dict[str, torch.Tensor]:
    """Return log-probabilities of pairs under a model and its reference."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: -10 * torch.rand(num_pairs, generator=generator, dtype=torch.float64)  # noqa: E731
    return {name: draw() for name in ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")}


def dpo_loss(*args: torch.Tensor, **settings) -> torch.Tensor:
    """Return the mean over pairs."""
    return dpo_losses(*args, **settings).mean()


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
    losses, full = random_logps(0)["chosen_logps"] ** 2, random_logps(1)["chosen_logps"]
    common = dict(sft_weight=0.7, num_tokens=23.0, num_pairs=5.0)
    whole = preference_loss(losses, full_chosen_logps=full, **common)
    parts = [preference_loss(losses[part], full_chosen_logps=full[part], **common) for part in (slice(0, split), slice(split, 5))]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_preference_loss_adds_a_token_mean() -> None:
    """Without a likelihood term it is the mean over pairs; 15 nats over 30 tokens at weight 2 add 1."""
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    full = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0])
    assert preference_loss(losses, full_chosen_logps=full, num_tokens=30, num_pairs=5).item() == pytest.approx(3.0)
    assert preference_loss(losses, full_chosen_logps=full, num_tokens=30, num_pairs=5, sft_weight=2.0).item() == pytest.approx(4.0)


PAIR = dict(
    chosen_logps=torch.tensor([-1.0]),
    rejected_logps=torch.tensor([-3.0]),
    ref_chosen_logps=torch.tensor([-2.0]),
    ref_rejected_logps=torch.tensor([-2.5]),
)
"""Log-ratios 1 and -0.5, margin 1.5."""


def test_losses_by_hand() -> None:
    """On log-ratios 1 and -0.5, margin 1.5, values 0.6 apart; and on mean log-probabilities log(3/4) and log(1/2)."""
    apart = torch.tensor([0.6])
    assert log_ratio_margins(**PAIR).item() == pytest.approx(1.5)
    assert ipo_losses(**PAIR, beta=0.5).item() == pytest.approx(0.5**2)
    # Chosen - rejected is 2, of the reference 0.5, of the sampler 1: h = 2 - 0.25 * 0.5 - 0.75 * 1 = 1.125, aimed at 1.
    sampler = dict(sampler_chosen_logps=torch.tensor([-1.5]), sampler_rejected_logps=torch.tensor([-2.5]))
    assert inpo_losses(**PAIR, **sampler, beta=0.5, reference_share=0.25).item() == pytest.approx(0.125**2)
    # p = 0.8, so the log-ratios aim at 0.3 / 0.5 = 0.6 and -0.6.
    assert sppo_losses(**PAIR, value_margins=apart, beta=0.5).item() == pytest.approx(0.4**2 + 0.1**2)
    assert refuel_losses(**PAIR, value_margins=apart, beta=0.5).item() == pytest.approx(0.15**2)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert apo_zero_losses(**PAIR, beta=2.0).item() == pytest.approx(1 - sigmoid(2) + sigmoid(-1))
    means = torch.tensor([math.log(3 / 4)]), torch.tensor([math.log(1 / 2)])
    assert simpo_losses(*means, beta=2.0, target_margin=0.5).item() == pytest.approx(-math.log(sigmoid(2 * math.log(1.5) - 0.5)))
    # Odds of 3 against odds of 1.
    assert orpo_losses(*means, beta=0.2).item() == pytest.approx(-0.2 * math.log(3 / 4))
    chosen, rejected = PAIR["chosen_logps"], PAIR["rejected_logps"]
    assert cpl_losses(chosen, rejected, beta=0.5, bias=0.5).item() == pytest.approx(-math.log(sigmoid(0.5 * (-1 + 1.5))))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.0, 1 / 3, 1.0])
def test_inpo_is_ipo_where_reference_and_sampler_agree(seed: int, share: float) -> None:
    """With one policy for both, and with all weight on one of them, the loss is that of IPO to that policy."""
    logps, other = random_logps(seed), random_logps(seed + 50)
    same = dict(sampler_chosen_logps=logps["ref_chosen_logps"], sampler_rejected_logps=logps["ref_rejected_logps"])
    torch.testing.assert_close(inpo_losses(**logps, **same, beta=0.2, reference_share=share), ipo_losses(**logps, beta=0.2))
    apart = dict(sampler_chosen_logps=other["ref_chosen_logps"], sampler_rejected_logps=other["ref_rejected_logps"])
    torch.testing.assert_close(inpo_losses(**logps, **apart, beta=0.2, reference_share=1.0), ipo_losses(**logps, beta=0.2))


def test_smoothings_by_hand() -> None:
    """Visits of 30 to 10 are a quarter, equal or turned ones a half; agreement of 0.9 is 0.1, unknown 0; one bit is a half."""
    visits = visit_smoothing(torch.tensor([30.0, 5.0, 4.0, 1.0]), torch.tensor([10.0, 5.0, 0.0, 9.0]))
    assert visits.tolist() == [0.25, 0.5, 0.0, 0.5]
    assert agreement_smoothing(torch.tensor([1.0, 0.9, 0.25, math.nan])).tolist() == pytest.approx([0.0, 0.1, 0.75, 0.0])
    assert uncertainty_smoothing(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0.0, 0.25, 0.5]


def test_cream_is_dpo_in_both_directions() -> None:
    """With agreement C the loss is C times that of the pair and 1 - C times that of the pair turned round."""
    turned = {
        "chosen_logps": PAIR["rejected_logps"],
        "rejected_logps": PAIR["chosen_logps"],
        "ref_chosen_logps": PAIR["ref_rejected_logps"],
        "ref_rejected_logps": PAIR["ref_chosen_logps"],
    }
    loss = dpo_losses(**PAIR, beta=0.3, label_smoothing=agreement_smoothing(torch.tensor([0.7])))
    torch.testing.assert_close(loss, 0.7 * dpo_losses(**PAIR, beta=0.3) + 0.3 * dpo_losses(**turned, beta=0.3))


def test_smoothing_may_differ_from_pair_to_pair() -> None:
    """Each pair has the loss that it has alone with its own smoothing."""
    whole = dpo_losses(**{name: value.repeat(2) for name, value in PAIR.items()}, label_smoothing=torch.tensor([0.0, 0.3]))
    for loss, smoothing in zip(whole, (0.0, 0.3), strict=True):
        assert loss.item() == pytest.approx(dpo_losses(**PAIR, label_smoothing=smoothing).item())


def test_odds_of_a_sure_completion_are_finite() -> None:
    """A completion of probability 1 in float32 gives a finite loss and gradient."""
    means = torch.tensor([0.0], requires_grad=True)
    loss = orpo_losses(means, torch.tensor([-1.0]))
    loss.sum().backward()
    assert means.grad is not None and loss.isfinite().all() and means.grad.isfinite().all()


@pytest.mark.parametrize("seed", range(3))
def test_regressions_rest_where_they_aim(seed: int) -> None:
    """IPO is least at a margin of 1 / (2 beta), REFUEL at the value difference over beta, SPPO at half of it on each side."""
    logps = random_logps(seed)
    ratios = {"ref_chosen_logps": logps["ref_chosen_logps"], "ref_rejected_logps": logps["ref_rejected_logps"]}
    aims = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def at(margin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ratios["ref_chosen_logps"] + margin / 2, ratios["ref_rejected_logps"] - margin / 2

    assert ipo_losses(*at(torch.full_like(aims, 1 / 0.4)), **ratios, beta=0.2).abs().max() < 1e-12
    assert refuel_losses(*at(aims / 0.2), **ratios, value_margins=aims, beta=0.2).abs().max() < 1e-12
    assert sppo_losses(*at(aims / 0.2), **ratios, value_margins=aims, beta=0.2).abs().max() < 1e-12


GRADED = dict(logps=torch.tensor([-1.0, -3.0]), ref_logps=torch.tensor([-2.0, -2.5]), good=torch.tensor([True, False]))
"""A good completion with a log-ratio of 1, a bad one with -0.5."""


def test_kto_by_hand() -> None:
    """Behind the reference point of 0.25 the good one has 0.75 to its name and the bad one -0.75; the weights are 1.5 and 2."""
    point = kto_reference_point(torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.5]))
    assert point.item() == 0.25
    losses = kto_losses(**GRADED, reference_point=point, beta=2.0, good_weight=1.5, bad_weight=2.0)
    assert losses.tolist() == pytest.approx([1.5 / (1 + math.exp(1.5)), 2 / (1 + math.exp(1.5))])


def test_kto_reference_point_is_never_negative_and_has_no_gradient() -> None:
    """An estimate below 0 is 0, which no divergence can be; the estimate is a constant of the loss."""
    assert kto_reference_point(torch.tensor([-3.0]), torch.tensor([-1.0])).item() == 0.0
    logps = torch.tensor([-1.0], requires_grad=True)
    assert not kto_reference_point(logps, torch.tensor([-2.0])).requires_grad


def test_kto_at_a_reference_point_of_0_is_apo_zero() -> None:
    """The loss of a pair under APO-zero is that of its two sides under KTO with the reference point at 0."""
    apart = kto_losses(**GRADED, reference_point=0.0, beta=0.7)
    assert apo_zero_losses(**PAIR, beta=0.7).item() == pytest.approx(apart.sum().item())


def test_oreal_by_hand() -> None:
    """Imitation costs 1 nat and the pull 0.2 / 2; the bad one, a quarter of the samples right, 2 * 0.75 * -0.5 and 0.2 / 2 * 0.25."""
    losses = oreal_losses(**GRADED, prompt_values=torch.tensor([0.5, 0.25]), beta=0.2, bad_weight=2.0)
    assert losses.tolist() == pytest.approx([1.0 + 0.1, -0.75 + 0.025])


def test_oreal_gradients_at_the_reference_are_those_of_the_reshaped_rewards() -> None:
    """There the gradient is -1 on right ones and 1 - p on wrong ones: rewards of 1 and of -(1 - p). It is 0 at -(1 - p) / beta."""
    logps = torch.tensor([-2.0, -3.0, -4.0], requires_grad=True)
    good, values = torch.tensor([True, False, False]), torch.tensor([0.5, 0.25, 1.0])
    oreal_losses(logps, logps.detach(), good, prompt_values=values, beta=0.1).sum().backward()
    assert logps.grad is not None and logps.grad.tolist() == pytest.approx([-1.0, 0.75, 0.0])
    lowest = torch.tensor([-3.0 - 0.75 / 0.1], requires_grad=True)
    oreal_losses(lowest, torch.tensor([-3.0]), good[1:2], prompt_values=values[1:2], beta=0.1).sum().backward()
    assert lowest.grad is not None and lowest.grad.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_kto_agrees_with_trl(seed: int, shift: float) -> None:
    """On the same log-probabilities, mismatched ones included, the mean is that of TRL's KTOTrainer, with its reference point or at 0."""
    trl = pytest.importorskip("trl")
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(6) < torch.tensor([6, 3, 5, 1, 2])[:, None]
    logps, mismatched = (-3 * torch.rand(5, 6, generator=generator) * mask for _ in range(2))
    ref, ref_mismatched = -8 * torch.rand(5, generator=generator), mismatched.sum(1) + shift * torch.rand(5, generator=generator)
    good = torch.tensor([True, False, False, True, True])
    zeros = torch.zeros(5, 6)
    accelerator = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=accelerator,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=0.3,
        desirable_weight=1.2,
        undesirable_weight=0.7,
        _compute_kl_logps=lambda *_: mismatched.sum(1),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    inputs = {
        "input_ids": torch.zeros(5, 7, dtype=torch.long),
        "completion_mask": torch.cat([torch.zeros(5, 1), mask], dim=1).long(),
        "label": good,
        "ref_logps": ref,
        "ref_KL_logps": ref_mismatched,
    }
    outputs = SimpleNamespace(log_probs=logps, entropy=zeros, mean_logits=zeros)
    oracle = trl.KTOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)
    point = kto_reference_point(mismatched.sum(1), ref_mismatched)
    assert (point > 0) == (shift < 0)
    losses = kto_losses(logps.sum(1), ref, good, reference_point=point, beta=0.3, good_weight=1.2, bad_weight=0.7)
    torch.testing.assert_close(losses.mean(), oracle)


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
    losses = dpo_losses(*sums, **arguments)
    combined = preference_loss(losses, full_chosen_logps=sums[0], num_tokens=mask[:3].sum().item(), num_pairs=3, sft_weight=0.5)
    assert combined.item() == pytest.approx(oracle, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_other_losses_agree_with_trl(seed: int) -> None:
    """APO-zero, SPPO at a value margin of 1, and, on completions of one token, IPO equal TRL's."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(7) < torch.tensor([7, 3, 5, 1, 6, 2])[:, None]
    logps, ref = -3 * torch.rand(6, 7, generator=generator) * mask, -10 * torch.rand(6, generator=generator)
    sums, refs = logps.sum(1).chunk(2), ref.chunk(2)
    arguments = dict(ref_chosen_logps=refs[0], ref_rejected_logps=refs[1], beta=0.3)
    oracle = lambda name, *case: trl_loss(*case, loss_types=[name], loss_weights=[1.0], beta=0.3, label_smoothing=0.0)  # noqa: E731
    found = apo_zero_losses(*sums, **arguments).mean().item()
    assert found == pytest.approx(oracle("apo_zero", logps, mask, ref), rel=1e-6)
    found = sppo_losses(*sums, **arguments, value_margins=torch.ones(3)).mean().item()
    assert found == pytest.approx(oracle("sppo_hard", logps, mask, ref), rel=1e-6)
    single = mask & (torch.arange(7) == 0)
    found = ipo_losses(*logps[:, 0].chunk(2), **arguments).mean().item()
    assert found == pytest.approx(oracle("ipo", logps * single, single, ref), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_losses_without_reference_agree_with_trl(seed: int) -> None:
    """SimPO and CPL's unbiased form equal the losses of TRL's CPOTrainer, ORPO that of its ORPOTrainer."""
    cpo = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    orpo = pytest.importorskip("trl.experimental.orpo").ORPOTrainer
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = (-3 * torch.rand(4, generator=generator) for _ in range(2))
    settings = SimpleNamespace(
        alpha=0.0, accelerator=SimpleNamespace(device="cpu"), beta=2.0, simpo_gamma=0.7, label_smoothing=0.0, loss_type="simpo"
    )
    torch.testing.assert_close(simpo_losses(chosen, rejected, beta=2.0, target_margin=0.7), cpo.cpo_loss(settings, chosen, rejected)[0])
    settings.loss_type = "sigmoid"
    torch.testing.assert_close(cpl_losses(chosen, rejected, beta=2.0), cpo.cpo_loss(settings, chosen, rejected)[0])
    torch.testing.assert_close(orpo_losses(chosen, rejected, beta=2.0), -orpo.odds_ratio_loss(settings, chosen, rejected)[0])


@pytest.mark.parametrize("seed", range(3))
def test_smoothed_loss_agrees_with_trl(seed: int) -> None:
    """On a single pair TRL's ``aot`` loss, which sorts over pairs, is conservative DPO."""
    generator = torch.Generator().manual_seed(seed)
    logps, ref = -3 * torch.rand(2, 4, generator=generator), -6 * torch.rand(2, generator=generator)
    oracle = trl_loss(logps, torch.ones(2, 4).bool(), ref, loss_types=["aot"], loss_weights=[1.0], beta=0.5, label_smoothing=0.15)
    sums = logps.sum(1)
    loss = dpo_loss(sums[:1], sums[1:], ref_chosen_logps=ref[:1], ref_rejected_logps=ref[1:], beta=0.5, label_smoothing=0.15)
    assert loss.item() == pytest.approx(oracle, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_turned_pairs_agree_with_trl(seed: int) -> None:
    """TRL's ``robust`` loss takes the loss of the turned pair off; a smoothing of 1 is that loss."""
    generator = torch.Generator().manual_seed(seed)
    logps, ref, eps = -3 * torch.rand(6, 4, generator=generator), -6 * torch.rand(6, generator=generator), 0.2
    oracle = trl_loss(logps, torch.ones(6, 4).bool(), ref, loss_types=["robust"], loss_weights=[1.0], beta=0.5, label_smoothing=eps)
    sums, refs = logps.sum(1).chunk(2), ref.chunk(2)
    straight, turned = (
        dpo_loss(*sums, ref_chosen_logps=refs[0], ref_rejected_logps=refs[1], beta=0.5, label_smoothing=smoothing)
        for smoothing in (0.0, 1.0)
    )
    assert (((1 - eps) * straight - eps * turned) / (1 - 2 * eps)).item() == pytest.approx(oracle, rel=1e-5)
