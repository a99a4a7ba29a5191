"""Policy gradients: the losses by hand and as TRL computes them, on chains and on trees, whose shared tokens are forwarded once."""

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from stepladder.errors import ConfigError, DataFormatError
from stepladder.lm.completions import collate_completions, completion_logps
from stepladder.lm.packing import pack_rows
from stepladder.lm.settings import TrainSettings
from stepladder.policy.gradient import (
    GradientObjective,
    GradientRow,
    collate_gradient,
    collate_packed_gradient,
    gradient_rows,
    train_gradient,
    with_models,
)
from stepladder.policy.gradient_losses import clipped_losses, reference_divergences, sequence_log_ratios, truncated_weights
from stepladder.policy.gradient_settings import DAPO, GRADIENT_LOSSES, GRPO, GSPO, DrGRPO, GradientLoss
from stepladder.types import AdvantageRow, Provenance
from tests.families import VOCABULARY, family_model
from tests.models import save_tiny_policy
from tests.unit.policy.test_packed import assert_same_gradients, gradients

HASH = "renderer-a"
PROVENANCE = Provenance(round=1, policy_version=0, scorer_version=None, seed=0, config_hash="0" * 16, renderer_hash=HASH)
SETTINGS = TrainSettings(learning_rate=1e-2, epochs=6.0, batch_size=8, device="cpu")


def test_clipped_losses_by_hand() -> None:
    """Ratios of 1, 1.25, 2 and 0.5 with advantages of 2 and -2, bounds 0.8 and 1.28: inside -rho A, outside the worse of the two."""
    log_ratios = torch.tensor([[1.0, 1.25, 2.0, 0.5]]).log()
    up = clipped_losses(log_ratios, torch.full((1, 4), 2.0), clip_high=0.28)
    down = clipped_losses(log_ratios, torch.full((1, 4), -2.0), clip_high=0.28)
    assert up.tolist()[0] == pytest.approx([-2.0, -2.5, -2.56, -1.0])
    assert down.tolist()[0] == pytest.approx([2.0, 2.5, 4.0, 1.6])
    bounded = clipped_losses(log_ratios, torch.full((1, 4), -2.0), clip_high=0.28, dual_clip=1.5)
    assert bounded.tolist()[0] == pytest.approx([2.0, 2.5, 3.0, 1.6])


def test_only_moves_beyond_the_bounds_have_no_gradient() -> None:
    """A token that has grown enough is not pushed up, one that has fallen enough is not pushed down; the way back is open."""
    log_ratios = torch.tensor([[2.0, 0.5, 2.0, 0.5]]).log().requires_grad_()
    clipped_losses(log_ratios, torch.tensor([[1.0, 1.0, -1.0, -1.0]])).sum().backward()
    assert log_ratios.grad is not None and log_ratios.grad.tolist()[0] == pytest.approx([0.0, -0.5, 2.0, 0.0])


def test_a_token_of_next_to_no_probability_before_has_no_gradient() -> None:
    """A log-ratio of 9,999: clipped at 1.2 for A = 1, at 3 |A| for A = -1 with the dual clip, 0 for A = 0; none of them pushes."""
    log_ratios = torch.full((1, 3), 9999.0, requires_grad=True)
    losses = clipped_losses(log_ratios, torch.tensor([[1.0, -1.0, 0.0]]), dual_clip=3.0)
    losses.sum().backward()
    assert losses.tolist() == [[pytest.approx(-1.2), 3.0, 0.0]]
    assert log_ratios.grad is not None and log_ratios.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_divergence_and_weights_by_hand() -> None:
    """exp(d) - d - 1 at d = log 2 and 0; weights of 1/2, 1 and, cut at 2, of 4."""
    found = reference_divergences(torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0 + math.log(2), -1.0]]))
    assert found.tolist()[0] == pytest.approx([2 - math.log(2) - 1, 0.0])
    weights = truncated_weights(
        torch.tensor([[-2.0, -2.0, -2.0]]), torch.tensor([[-2.0, -2.0, -2.0]]) + torch.tensor([2.0, 1.0, 0.25]).log(), truncation=2.0
    )
    assert weights.tolist()[0] == pytest.approx([0.5, 1.0, 2.0])


def test_sequence_ratios_by_hand() -> None:
    """Two learned tokens with ratios of 2 and 8 make one ratio of 4; each token has the gradient of its own advantage."""
    logps = torch.tensor([[math.log(0.5), math.log(0.8), 0.0]], requires_grad=True)
    old = torch.tensor([[math.log(0.25), math.log(0.1), 0.0]])
    ratios = sequence_log_ratios(logps, old, torch.tensor([[True, True, False]]))
    assert ratios[0, :2].exp().tolist() == pytest.approx([4.0, 4.0])
    (ratios.exp() * torch.tensor([[1.0, -3.0, 0.0]])).sum().backward()
    assert logps.grad is not None and logps.grad[0, :2].tolist() == pytest.approx([4.0, -12.0])


def test_impossible_settings_are_refused() -> None:
    """A dual clip below the upper bound would undo it."""
    with pytest.raises(ConfigError, match=r"gradient training: dual_clip must be above 1 \+ clip_high = 1.28: got 1.2 -- raise it"):
        DAPO(dual_clip=1.2)
    with pytest.raises(ConfigError, match=r"gradient training: clip_low must be in \(0, 1\): got 0"):
        GRPO(clip_low=0.0)


# Solutions of two problems as trees: those of a problem share prefixes, one is a prefix of another, one comes twice.
TREE = [[5, 6, 7, 8], [5, 6, 7, 9, 10], [5, 6, 11], [12], [5, 6, 7], [12]]


def tree_rows(model: nn.Module, seed: int = 0, *, spread: float = 0.6, chains: bool = False, given: bool = False) -> list[GradientRow]:
    """Return solutions whose sampler's log-probabilities lie up to ``spread`` beside the model's, so that ratios cross both bounds."""
    rng = np.random.default_rng(seed)
    records = []
    for problem in range(2):
        for ids in TREE:
            mine = rng.integers(3, VOCABULARY, len(ids) + 1).tolist() if chains else ids
            advantages = [float(rng.normal())] * len(mine) if chains else rng.normal(size=len(mine)).tolist()
            marks = [1 <= place < 3 for place in range(len(mine))] if given and len(mine) > 3 else []
            records.append(record([3 + problem, 4], mine, advantages, [0.0] * len(mine), problem=f"p{problem}", given=marks))
    rows = gradient_rows(records, vocabulary=VOCABULARY)
    made = []
    with torch.no_grad():
        for row in rows:
            batch = collate_completions([row.completion])
            own = completion_logps(model, batch)[batch["targets"] >= 0].tolist()
            beside = tuple(logp + spread * float(rng.uniform(-1, 1)) for logp in own)
            ref = tuple(logp + spread * float(rng.uniform(-1, 1)) for logp in own)
            made.append(replace(row, sampler_logps=beside, old_logps=beside, ref_logps=ref))
    return [row for tree in pack_rows(made, row_tokens=10_000) for row in tree.rows]


def record(
    prompt: list[int], ids: list[int], advantages: list[float], logps: list[float], *, problem: str = "p", given: list[bool] | None = None
) -> AdvantageRow:
    """Return a stored row."""
    return AdvantageRow(
        problem_id=problem,
        prompt_ids=prompt,
        completion_ids=ids,
        advantages=advantages,
        logps=logps,
        prompt="",
        completion="",
        provenance=PROVENANCE,
        completion_given=given or [],
    )


LOSSES: dict[str, GradientLoss] = {
    "grpo": GRPO(kl_weight=0.1),
    "dapo": DAPO(dual_clip=1.5),
    "dr-grpo": DrGRPO(length=7),
    "gspo": GSPO(clip_low=0.1, clip_high=0.2),
    "stale": GRPO(truncation=1.2),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("given", [False, True])
def test_trees_give_the_loss_and_gradient_of_separate_rows(name: str, given: bool) -> None:
    """Packed, split into passes, or one by one: the same update to 1e-5, with ratios beyond both bounds; shared tokens run once."""
    model, objective = family_model("llama"), GradientObjective(settings=LOSSES[name])
    rows = tree_rows(model, given=given)
    if name == "stale":
        rows = [replace(row, old_logps=tuple(logp + 0.2 for logp in row.old_logps)) for row in rows]
    trees = pack_rows(rows, row_tokens=10_000)
    # The prompt and the tokens 5 6 7 9: the last token of a solution predicts nothing.
    assert [tree.num_tokens for tree in trees] == [2 + 4, 2 + 4]
    assert sum(row.num_tokens for row in rows) == 2 * (5 + 6 + 4 + 2 + 4 + 2)
    plain, packed = collate_gradient(rows), collate_packed_gradient(trees)
    counts = objective.counts(plain)
    assert counts.tolist() == objective.counts(packed).tolist() == [sum(map(len, (row.advantages for row in rows))), 12]
    parts = [collate_packed_gradient(pack_rows(rows[begin : begin + 5], row_tokens=7)) for begin in range(0, 12, 5)]
    expected = objective.loss(model, plain, counts)
    for batches in ([packed], parts):
        loss = torch.stack([objective.loss(model, batch, counts) for batch in batches]).sum()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert_same_gradients(gradients(model, loss), gradients(model, objective.loss(model, plain, counts)))
    # The bounds matter here.
    wide = {"clip_low": 0.99, "clip_high": 50.0, "dual_clip": 0.0}
    assert objective.loss(model, plain, counts).item() != pytest.approx(
        GradientObjective(settings=replace(LOSSES[name], **wide)).loss(model, plain, counts).item(), rel=1e-3
    )


def test_a_tree_of_two_by_two_by_hand() -> None:
    """Four solutions share their beginnings: without clipping, a shared token has the sum of its solutions' advantages."""
    model = family_model("llama")
    ids = [[5, 6], [5, 7], [8, 6], [8, 7]]
    advantages = [1.0, -0.5, 0.25, -2.0]
    rows = gradient_rows([record([3, 4], each, [a] * 2, [0.0] * 2) for each, a in zip(ids, advantages, strict=True)], vocabulary=VOCABULARY)
    batch = collate_gradient(rows)
    logps = completion_logps(model, batch).detach()
    rows = [replace(row, old_logps=tuple(line.tolist())) for row, line in zip(rows, logps, strict=True)]
    packed = collate_packed_gradient(pack_rows(rows, row_tokens=100))
    objective = GradientObjective(settings=DAPO())
    found = gradients(model, objective.loss(model, packed, objective.counts(packed)))
    tokens = completion_logps(model, collate_gradient(rows))
    # Token 5 is that of rows 0 and 1, token 8 that of rows 2 and 3; eight tokens in all.
    by_hand = -(0.5 * tokens[0, 0] - 1.75 * tokens[2, 0] + (torch.tensor(advantages) * tokens[:, 1]).sum()) / 8
    assert_same_gradients(found, gradients(model, by_hand))


def trl_loss(model: nn.Module, rows: list[GradientRow], *, loss_type: str, **settings: Any) -> torch.Tensor:
    """Return what TRL's own loss code makes of chains: the model's log-probabilities and the advantage of each chain."""
    trl = pytest.importorskip("trl")
    batch = collate_gradient(rows)
    logps, mask = completion_logps(model, batch), (batch["targets"] >= 0).long()
    zeros = torch.zeros(logps.shape)
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x)
    beta, correction = settings.pop("beta", 0.0), settings.pop("correction", False)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=accelerator,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=settings.pop("delta", None), steps_per_generation=1),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=settings.pop("level", "token"),
        beta=beta,
        loss_type=loss_type,
        use_vllm=correction,
        vllm_importance_sampling_correction=correction,
        max_completion_length=settings.pop("length", 1),
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics={"eval": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, zeros, None),
        **settings,
    )
    inputs = {
        "prompt_ids": torch.zeros(len(rows), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(rows), 1, dtype=torch.long),
        "completion_ids": batch["targets"].clamp(min=0),
        "completion_mask": mask,
        "advantages": torch.tensor([row.advantages[0] for row in rows]),
        "old_per_token_logps": batch["old_logps"],
        "ref_per_token_logps": batch["ref_logps"],
        "importance_sampling_ratio": (batch["old_logps"] - batch["sampler_logps"]).exp().clamp(max=1.2),
        "num_items_in_batch": mask.sum(),
    }
    return trl.GRPOTrainer._compute_loss(trainer, model, inputs)


TRL: dict[str, tuple[GradientLoss, dict[str, Any]]] = {
    "grpo": (GRPO(kl_weight=0.0), {"loss_type": "grpo"}),
    "grpo with a reference": (GRPO(), {"loss_type": "grpo", "beta": 0.04}),
    "bnpo": (DAPO(clip_high=0.2), {"loss_type": "bnpo"}),
    "dapo, clip-higher": (DAPO(), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dr-grpo": (DrGRPO(length=9), {"loss_type": "dr_grpo", "length": 9}),
    "dual clip": (DAPO(clip_high=0.2, dual_clip=1.3), {"loss_type": "bnpo", "delta": 1.3}),
    "gspo": (GSPO(clip_low=0.05, clip_high=0.1), {"loss_type": "grpo", "level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.1}),
    "stale policy": (GRPO(truncation=1.2), {"loss_type": "grpo", "beta": 0.04, "correction": True}),
}


@pytest.mark.parametrize("name", TRL)
@pytest.mark.parametrize("seed", range(2))
def test_loss_and_gradient_on_chains_are_trls(name: str, seed: int) -> None:
    """On packed chains of a policy that has moved since sampling, loss and every parameter's gradient equal those of GRPOTrainer."""
    loss, settings = TRL[name]
    model, objective = family_model("qwen2"), GradientObjective(settings=loss)
    rows = tree_rows(model, seed, chains=True)
    if loss.truncation:
        rows = [replace(row, sampler_logps=tuple(logp - 0.3 + 0.1 * (i % 5) for i, logp in enumerate(row.old_logps))) for row in rows]
    packed = collate_packed_gradient(pack_rows(rows, row_tokens=10_000))
    found = objective.loss(model, packed, objective.counts(packed))
    oracle = trl_loss(model, rows, **{"epsilon_low": 0.2, "epsilon_high": 0.2, **settings})
    assert found.item() == pytest.approx(oracle.item(), rel=1e-5)
    assert_same_gradients(
        gradients(model, found), gradients(model, trl_loss(model, rows, **{"epsilon_low": 0.2, "epsilon_high": 0.2, **settings}))
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with random weights."""
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def logps_of(directory: Path, rows: list[AdvantageRow]) -> list[float]:
    """Return the log-probability of every completion under a saved model."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    made = gradient_rows(rows, vocabulary=model.config.vocab_size)
    with torch.no_grad():
        return completion_logps(model, collate_gradient(made)).sum(-1).tolist()


@pytest.mark.parametrize("name", GRADIENT_LOSSES)
def test_training_raises_what_has_advantages(start: Path, tmp_path: Path, name: str) -> None:
    """Of two solutions of each problem the better one becomes likelier and the worse one less likely, within the bounds of the loss."""
    rows = [record([4, 5 + i], [10 + side, 12], [1.0 - 2 * side] * 2, [0.0] * 2, problem=f"p{i}") for i in range(4) for side in (0, 1)]
    model = AutoModelForCausalLM.from_pretrained(start).eval()
    with torch.no_grad():
        tokens = completion_logps(model, collate_gradient(gradient_rows(rows, vocabulary=model.config.vocab_size)))
    rows = [replace(row, logps=line.tolist()) for row, line in zip(rows, tokens, strict=True)]
    before = logps_of(start, rows)
    settings = replace(SETTINGS, learning_rate=1e-3, epochs=2.0)
    report = train_gradient(
        start, rows, tmp_path / "out", settings, renderer_hash=HASH, objective=GradientObjective(settings=GRADIENT_LOSSES[name]())
    )
    gains = [after - logp for after, logp in zip(logps_of(tmp_path / "out", rows), before, strict=True)]
    assert report.rows == 8 and report.layout == "trees"
    assert all(gain > 0 for gain in gains[::2]) and all(gain < 0 for gain in gains[1::2])
    # The policies agree at first: the ratio is 1, and the advantages of each problem cancel.
    assert report.first_loss == pytest.approx(0.0, abs=1e-6)


def test_other_models_are_run_once_over_the_rows(start: Path) -> None:
    """With a truncation ratios compare with the model before the training, and a reference gives the divergence; unpacked alike."""
    model, other = family_model("llama"), family_model("qwen2")
    rows = tree_rows(model, spread=0.5, given=True)
    exact = {kind: [torch.tensor(tuple(self)) for self in own_logps(each, rows)] for kind, each in (("own", model), ("other", other))}
    for packed in (True, False):
        settings = replace(SETTINGS, packed=packed)
        seen = with_models(model, rows, settings, loss=GRPO(truncation=2.0), reference=lambda: other)
        for row, mine, own, theirs in zip(rows, seen, exact["own"], exact["other"], strict=True):
            torch.testing.assert_close(torch.tensor(mine.old_logps), own, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(torch.tensor(mine.ref_logps), theirs, rtol=1e-4, atol=1e-5)
            assert mine.sampler_logps == row.sampler_logps
        assert with_models(model, rows, settings, loss=DAPO()) == rows


def own_logps(model: nn.Module, rows: list[GradientRow]) -> list[list[float]]:
    """Return the log-probabilities of the learned tokens of every row, one sequence at a time."""
    found = []
    with torch.no_grad():
        for row in rows:
            batch = collate_completions([row.completion])
            found.append(completion_logps(model, batch)[batch["targets"] >= 0].tolist())
    return found


def test_bad_rows_are_refused(start: Path, tmp_path: Path) -> None:
    """A row without a log-probability for every token names its place."""
    bad = record([4, 5], [10, 11], [1.0, 1.0], [-1.0], problem="p7")
    with pytest.raises(DataFormatError, match=r"row with advantages 0 \(problem 'p7'\): every token must have an advantage and a log-prob"):
        train_gradient(start, [bad], tmp_path / "out", SETTINGS, renderer_hash=HASH)
    with pytest.raises(DataFormatError, match=r"rows with advantages: training needs at least one row: got none"):
        train_gradient(start, [], tmp_path / "out", SETTINGS, renderer_hash=HASH)
