"""Training the policy: what is learned from, what a batch looks like, and that both trainings do what they are for."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from stepladder.errors import ConfigError, DataFormatError
from stepladder.lm.completions import IGNORE, CompletionRow, collate_completions
from stepladder.lm.loading import load_tokenizer
from stepladder.lm.packing import pack_rows
from stepladder.lm.references import add_reference
from stepladder.lm.settings import LoraSettings, TrainSettings
from stepladder.policy.fine_tuning import (
    SAMPLER,
    collate_packed_preferences,
    collate_preferences,
    completion_rows,
    preference_rows,
    train_preference,
    train_sft,
)
from stepladder.policy.objectives import CompletionObjective, PreferenceObjective, UnpairedObjective
from stepladder.policy.preference_settings import DPO, OREAL, PREFERENCE_LOSSES, PairLoss
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.policy.unpaired import collate_packed_unpaired, collate_unpaired, train_unpaired, unpaired_rows
from stepladder.types import GradedRow, PreferencePair, Provenance, Trace
from tests.models import save_tiny_policy, tiny_policy

HASH = "renderer-a"
PROVENANCE = Provenance(round=1, policy_version=0, scorer_version=None, seed=0, config_hash="0" * 16, renderer_hash=HASH)
SETTINGS = TrainSettings(learning_rate=3e-3, epochs=8.0, batch_size=8, device="cpu")
COLLATES: dict[str, Any] = {"collate": collate_preferences, "collate_packed": collate_packed_preferences}


def trace(prompt_ids: list[int], completion_ids: list[int], provenance: Provenance = PROVENANCE) -> Trace:
    """Return a trace of token ids."""
    text = {"problem_id": "p1", "prompt": "", "completion": "", "mean_value": 1.0}
    return Trace(prompt_ids=prompt_ids, completion_ids=completion_ids, provenance=provenance, **text)


def pair(prompt_ids: list[int], chosen_ids: list[int], rejected_ids: list[int], provenance: Provenance = PROVENANCE) -> PreferencePair:
    """Return a pair of sibling steps."""
    ids = {"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids}
    text = {"problem_id": "p1", "prompt": "", "chosen": "", "rejected": "", "chosen_value": 0.9, "rejected_value": 0.1, "depth": 1}
    return PreferencePair(provenance=provenance, **ids, **text)


def random_pairs(num_pairs: int = 16, seed: int = 0) -> list[PreferencePair]:
    """Return pairs whose steps begin with two common tokens; the preferred one goes on with token 10, the other with token 11."""
    rng = np.random.default_rng(seed)
    draw = lambda low, high: rng.integers(12, 50, int(rng.integers(low, high))).tolist()  # noqa: E731
    pairs = []
    for _ in range(num_pairs):
        shared = draw(2, 3)
        pairs.append(pair(draw(2, 6), [*shared, 10, *draw(0, 4)], [*shared, 11, *draw(0, 4)]))
    return pairs


def log_likelihood(model: PreTrainedModel, prompt_ids: list[int], completion_ids: list[int]) -> torch.Tensor:
    """Return a completion's log-probability the slow way: one sequence, all logits, token by token."""
    logits = model(torch.tensor([[*prompt_ids, *completion_ids]])).logits[0]
    table = logits.log_softmax(-1)
    return sum(table[len(prompt_ids) - 1 + i, token] for i, token in enumerate(completion_ids))  # pyright: ignore


def margin(directory: Path, pairs: list[PreferencePair]) -> float:
    """Return the mean log-likelihood by which a saved model prefers the chosen steps."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.no_grad():
        gaps = [
            log_likelihood(model, row.prompt_ids, row.chosen_ids) - log_likelihood(model, row.prompt_ids, row.rejected_ids) for row in pairs
        ]
    return float(torch.stack(gaps).mean())


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy."""
    return save_tiny_policy(tmp_path_factory.mktemp("start"), hidden=32, layers=1, max_positions=64)


# ---- rows and batches ----


def test_completions_are_laid_out_for_the_last_logits() -> None:
    """Inputs lose the last token; targets start where the shortest prompt's completion does, and are the ids as given, nothing appended."""
    rows = completion_rows([trace([5, 6], [7, 8, 9]), trace([5, 6, 4, 4], [3])], vocabulary=10)
    batch = collate_completions(rows)
    assert batch["inputs"]["input_ids"].tolist() == [[5, 6, 7, 8], [5, 6, 4, 4]]
    assert batch["targets"].tolist() == [[7, 8, 9], [IGNORE, IGNORE, 3]]


def test_pairs_are_laid_out_as_two_halves() -> None:
    """Preferred completions come first; the contrast begins at the first differing token; references follow the same order."""
    (row,) = preference_rows([pair([5, 6], [7, 8, 9], [7, 4])], vocabulary=10, dropped={})
    other = replace(row, num_shared=0, ref_chosen_logp=-3.0, ref_rejected_logp=-4.0)
    batch = collate_preferences([replace(row, ref_chosen_logp=-1.0, ref_rejected_logp=-2.0), other])
    assert batch["inputs"]["input_ids"].tolist() == [[5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 0], [5, 6, 7, 0]]
    assert batch["targets"].tolist() == [[7, 8, 9], [7, 8, 9], [7, 4, IGNORE], [7, 4, IGNORE]]
    assert batch["contrast"].tolist() == [[False, True, True], [True, True, True], [False, True, False], [True, True, False]]
    assert batch["ref_logps"].tolist() == [-1.0, -3.0, -2.0, -4.0]
    assert PreferenceObjective().counts(batch).tolist() == [2, 6]


def test_equal_steps_are_dropped_and_counted() -> None:
    """A pair of equal steps teaches nothing; a step that continues the other one does."""
    dropped: dict[str, int] = {}
    rows = preference_rows([pair([5], [7, 8], [7, 8]), pair([5], [7], [7, 8]), pair([5], [7, 8], [7])], vocabulary=10, dropped=dropped)
    assert dropped == {"equal steps": 1}
    assert [row.num_shared for row in rows] == [1, 1]


def test_padding_and_neighbours_do_not_change_a_row() -> None:
    """A row's loss in a padded batch is the slow one-sequence likelihood, and a longer neighbour does not matter."""
    model, _ = tiny_policy(hidden=32, layers=2)
    rows = [CompletionRow(prompt_ids=[5, 6, 7], completion_ids=[8, 9]), CompletionRow(prompt_ids=[4], completion_ids=[9] * 12)]
    objective = CompletionObjective()
    batch = collate_completions(rows)
    assert objective.counts(batch).tolist() == [14]
    loss = objective.loss(model, batch, objective.counts(batch))
    expected = -sum(log_likelihood(model, row.prompt_ids, row.completion_ids) for row in rows) / 14
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("sft_weight", [0.0, 0.5])
def test_preference_loss_and_gradient_equal_the_slow_ones(sft_weight: float) -> None:
    """Batched, padded, from the first differing token: loss and gradient are those of whole steps, one sequence at a time."""
    model, _ = tiny_policy(hidden=32, layers=1)
    reference, _ = tiny_policy(hidden=32, layers=1, seed=1)
    pairs = [*random_pairs(3), pair([5], [7], [7, 8]), pair([5, 9, 9], [7, 8, 8, 8], [7])]
    rows = add_reference(reference, preference_rows(pairs, vocabulary=100, dropped={}), replace(SETTINGS, micro_batch_size=2), **COLLATES)
    objective = PreferenceObjective(settings=DPO(beta=0.3, label_smoothing=0.1, sft_weight=sft_weight))
    batch = collate_preferences(rows)
    objective.loss(model, batch, objective.counts(batch)).backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()

    total, likelihood = torch.zeros(()), torch.zeros(())
    for row in pairs:
        ratios = []
        for ids in (row.chosen_ids, row.rejected_ids):
            with torch.no_grad():
                ref = log_likelihood(reference, row.prompt_ids, ids)
            ratios.append(log_likelihood(model, row.prompt_ids, ids) - ref)
        gap = 0.3 * (ratios[0] - ratios[1])
        total = total - (0.9 * torch.sigmoid(gap).log() + 0.1 * torch.sigmoid(-gap).log()) / len(pairs)
        likelihood = likelihood - log_likelihood(model, row.prompt_ids, row.chosen_ids)
    slow = total + sft_weight * likelihood / sum(len(row.chosen_ids) for row in pairs)
    slow.backward()
    torch.testing.assert_close(objective.loss(model, batch, objective.counts(batch)), slow)
    for name, value in model.named_parameters():
        torch.testing.assert_close(gradients[name], value.grad, rtol=1e-4, atol=1e-6)


# ---- training ----


def test_sft_teaches_the_completions(start: Path, tmp_path: Path) -> None:
    """A model trained on a copying task predicts every completion token nearly surely."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(20, 40, 3).tolist() for _ in range(8)]
    traces = [trace(prompt, [4, *prompt, 2]) for prompt in prompts]
    report = train_sft(start, traces, tmp_path / "out", replace(SETTINGS, epochs=60.0, learning_rate=1e-2), renderer_hash=HASH)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        losses = [-float(log_likelihood(model, row.prompt_ids, row.completion_ids)) / 5 for row in traces]
    assert report.first_loss > 3.0
    assert report.last_loss < 0.05
    assert max(losses) < 0.1


@pytest.mark.parametrize("lora", [None, LoraSettings(r=4, alpha=8)], ids=["full", "lora"])
def test_preference_training_prefers_the_chosen(start: Path, tmp_path: Path, lora: LoraSettings | None) -> None:
    """It starts at log 2 (the reference is the start model), ends lower, and prefers chosen steps more, on unseen pairs too."""
    settings = replace(SETTINGS, lora=lora, learning_rate=1e-2 if lora else 3e-3)
    report = train_preference(
        start, random_pairs(), tmp_path / "out", settings, renderer_hash=HASH, objective=PreferenceObjective(settings=DPO(beta=0.5))
    )
    assert report.first_loss == pytest.approx(math.log(2), abs=1e-5)
    assert report.last_loss < 0.3
    for pairs, gain in ((random_pairs(), 2.0), (random_pairs(seed=1), 0.5)):
        assert margin(tmp_path / "out", pairs) > margin(start, pairs) + gain
    ranked = [margin(tmp_path / "out", [each]) > 0 for each in random_pairs()]
    assert report.ranking_accuracy == sum(ranked) / 16 > sum(margin(start, [each]) > 0 for each in random_pairs()) / 16


def test_a_barely_trained_policy_ranks_as_its_start_does(start: Path, tmp_path: Path) -> None:
    """With next to no learning rate the ranking accuracy is the start model's: it is measured, not assumed; many pairs are thinned out."""
    pairs = random_pairs(300, seed=3)
    settings = replace(SETTINGS, learning_rate=1e-9, max_updates=1)
    report = train_preference(start, pairs, tmp_path / "out", settings, renderer_hash=HASH)
    assert report.ranking_accuracy == sum(margin(start, [each]) > 0 for each in pairs[::2]) / 150
    assert 0.2 < report.ranking_accuracy < 0.8


def test_the_likelihood_term_keeps_chosen_steps_likely(start: Path, tmp_path: Path) -> None:
    """With ``sft_weight`` the chosen steps end more likely than without."""
    pairs = random_pairs()
    found = {}
    for weight in (0.0, 1.0):
        out = tmp_path / str(weight)
        train_preference(
            start, pairs, out, SETTINGS, renderer_hash=HASH, objective=PreferenceObjective(settings=DPO(beta=0.5, sft_weight=weight))
        )
        model = AutoModelForCausalLM.from_pretrained(out).eval()
        with torch.no_grad():
            found[weight] = sum(float(log_likelihood(model, row.prompt_ids, row.chosen_ids)) for row in pairs)
    assert found[1.0] > found[0.0] + 10


def test_preferences_continue_from_sft(start: Path, tmp_path: Path) -> None:
    """The directory that SFT wrote is a start model, and its own reference, for preference training."""
    pairs = random_pairs()
    train_sft(start, [trace(row.prompt_ids, row.chosen_ids) for row in pairs], tmp_path / "sft", SETTINGS, renderer_hash=HASH)
    report = train_preference(tmp_path / "sft", pairs, tmp_path / "out", replace(SETTINGS, epochs=2.0), renderer_hash=HASH)
    assert report.first_loss == pytest.approx(math.log(2), abs=1e-5)
    assert margin(tmp_path / "out", pairs) > margin(tmp_path / "sft", pairs) > margin(start, pairs)


@torch.no_grad()
def test_references_do_not_depend_on_batching() -> None:
    """Reference log-probabilities come back in row order, equal for any batch size to rounding."""
    model, _ = tiny_policy(hidden=32, layers=1)
    rows = preference_rows(random_pairs(7), vocabulary=100, dropped={})
    for size in (1, 3):
        batched = add_reference(model, rows, replace(SETTINGS, batch_size=size), **COLLATES)
        for row, source in zip(batched, rows, strict=True):
            assert row.chosen == source.chosen
            exact = log_likelihood(model, [*row.chosen.prompt_ids, *row.chosen.completion_ids[:2]], row.chosen.completion_ids[2:])
            assert row.ref_chosen_logp == pytest.approx(float(exact), abs=1e-4)


def test_the_renderer_of_a_trained_policy_is_the_start_models(start: Path, tmp_path: Path) -> None:
    """Saving model, tokenizer and step format does not change the renderer's hash: rows of every round can be trained on together."""
    begin = tmp_path / "begin"
    shutil.copytree(start, begin)
    StepFormat(step_end=";", answer_pattern="=(.)").save(begin)
    train_sft(begin, [trace([5], [6])], tmp_path / "out", replace(SETTINGS, max_updates=1), renderer_hash=HASH)
    hashes = [PromptRenderer(load_tokenizer(path), StepFormat.load(path)).hash for path in (begin, tmp_path / "out")]
    assert hashes[0] == hashes[1]


# ---- bad input ----


def test_rows_beyond_the_context_are_dropped_and_counted(start: Path, tmp_path: Path) -> None:
    """The context is 64: a row of 65 tokens forwards 64 positions and stays, one of 66 is counted."""
    traces = [trace([5] * 10, [6] * 55), trace([5] * 10, [6] * 56), trace([5], [6])]
    report = train_sft(start, traces, tmp_path / "out", replace(SETTINGS, max_updates=1), renderer_hash=HASH)
    assert (report.rows, report.dropped_by_reason) == (2, {"longer than the context": 1})
    pairs = [pair([5] * 10, [6], [7] * 60), pair([5], [6], [6]), pair([5], [6], [7])]
    report = train_preference(start, pairs, tmp_path / "out", replace(SETTINGS, max_updates=1), renderer_hash=HASH)
    assert (report.rows, report.dropped_by_reason) == (1, {"equal steps": 1, "longer than the context": 1})


def test_bad_rows_are_refused(start: Path, tmp_path: Path) -> None:
    """Nothing to train on, a foreign renderer, an empty part and a foreign vocabulary each name what is wrong; nothing is written."""
    foreign = replace(PROVENANCE, renderer_hash="renderer-b")
    sft_cases = [
        ([], "at least one row"),
        ([trace([5], [6]), trace([5], [6], foreign)], "'renderer-a'.*'renderer-b'"),
        ([trace([], [6])], "trace 0.*prompt"),
        ([trace([5], [6]), trace([5], [])], "trace 1.*completion"),
        ([trace([5], [10_000])], "trace 0.*10000"),
        ([trace([5], [-1])], "trace 0.*-1"),
        ([trace([5] * 10, [6] * 100)], "1 longer than the context -- the model's context is"),
    ]
    for rows, message in sft_cases:
        with pytest.raises(DataFormatError, match=message):
            train_sft(start, rows, tmp_path / "out", SETTINGS, renderer_hash=HASH)
    pair_cases = [
        ([], "at least one row"),
        ([pair([5], [6], [7], foreign)], "'renderer-a'.*'renderer-b'"),
        ([pair([5], [6], [])], "pair 0.*completion"),
        ([pair([5], [6], [6])], "1 equal steps -- search more problems"),
    ]
    for rows, message in pair_cases:
        with pytest.raises(DataFormatError, match=message):
            train_preference(start, rows, tmp_path / "out", SETTINGS, renderer_hash=HASH)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("loss", "bad"),
    [
        *((name, {"beta": 0.0}) for name in PREFERENCE_LOSSES),
        ("dpo", {"label_smoothing": 0.5}),
        ("dpo", {"label_smoothing": "often"}),
        ("simpo", {"target_margin": -1.0}),
        ("cpl", {"bias": 0.0}),
        ("orpo", {"sft_weight": -0.1}),
        ("inpo", {"reference_share": 1.1}),
        ("kto", {"good_weight": -1.0}),
        ("oreal", {"bad_weight": -1.0}),
    ],
)
def test_impossible_loss_settings_are_refused(loss: str, bad: dict[str, Any]) -> None:
    """The message names the setting, and what it must be."""
    with pytest.raises(ConfigError, match=f"preference training: {next(iter(bad))} must be "):
        PREFERENCE_LOSSES[loss](**bad)


def sampled(row: PreferencePair) -> PreferencePair:
    """Return the pair as a policy sampled it that gave every token the probability 1/50."""
    logps = [[-math.log(50)] * len(ids) for ids in (row.chosen_ids, row.rejected_ids)]
    return replace(row, chosen_logps=logps[0], rejected_logps=logps[1])


@pytest.mark.parametrize("loss", [loss().type for loss in get_args(PairLoss)])
def test_every_loss_prefers_the_chosen(start: Path, tmp_path: Path, loss: str) -> None:
    """Training with any loss raises the margin of the chosen steps, packed, from the first differing token, references where needed."""
    beta = {"ipo": 0.2, "inpo": 0.2, "refuel": 0.2, "simpo": 2.0, "orpo": 1.0}.get(loss, 0.5)
    pairs = [sampled(replace(row, problem_id=f"p{i // 4}")) for i, row in enumerate(random_pairs())]
    objective = PreferenceObjective(settings=PREFERENCE_LOSSES[loss](beta=beta))
    report = train_preference(start, pairs, tmp_path / "out", SETTINGS, renderer_hash=HASH, objective=objective)
    assert report.layout == "trees"
    assert report.last_loss < report.first_loss
    assert margin(tmp_path / "out", pairs) > margin(start, pairs) + 1.0


def test_labels_smoothed_by_visits(start: Path, tmp_path: Path) -> None:
    """Visits of 3 to 1 are a smoothing of a quarter; pairs without visits are refused."""
    rows = preference_rows([replace(random_pairs(1)[0], chosen_visits=3, rejected_visits=1)], vocabulary=100, dropped={})
    batch, model = collate_preferences(rows), tiny_policy(hidden=32, layers=1)[0]
    losses = [
        PreferenceObjective(settings=DPO(beta=0.5, label_smoothing=smoothing)).loss(model, batch, torch.tensor([1, 3]))
        for smoothing in ("visits", 0.25, 0.0)
    ]
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[0] != losses[2]
    objective = PreferenceObjective(settings=DPO(label_smoothing="visits"))
    with pytest.raises(DataFormatError, match="the visits of every pair: 16 have none"):
        train_preference(start, random_pairs(), tmp_path / "out", SETTINGS, renderer_hash=HASH, objective=objective)


def test_smoothing_by_agreement_and_uncertainty() -> None:
    """Agreement of 0.75 and an uncertainty of half a bit are a smoothing of a quarter; a pair without an agreement counts as it stands."""
    known = replace(random_pairs(1)[0], agreement=0.75, uncertainty=0.5)
    model = tiny_policy(hidden=32, layers=1)[0]
    losses = {}
    for name, row in (("known", known), ("unknown", replace(known, agreement=None))):
        batch = collate_preferences(preference_rows([row], vocabulary=100, dropped={}))
        for smoothing in ("agreement", "uncertainty", 0.25, 0.0):
            objective = PreferenceObjective(settings=DPO(beta=0.5, label_smoothing=smoothing))
            losses[name, smoothing] = objective.loss(model, batch, torch.tensor([1, 3])).item()
    assert losses["known", "agreement"] == losses["known", "uncertainty"] == pytest.approx(losses["known", 0.25])
    assert losses["unknown", "agreement"] == losses["unknown", 0.0] != losses["unknown", 0.25]


# ---- references ----


def test_the_samplers_log_probabilities_count_from_the_first_differing_token() -> None:
    """Steps 7 8 9 and 7 4 share a token: the sampler's sums leave it out; a pair without stored numbers has none."""
    row = replace(pair([5, 6], [7, 8, 9], [7, 4]), chosen_logps=[-1.0, -2.0, -4.0], rejected_logps=[-1.0, -8.0])
    (known,) = preference_rows([row], vocabulary=10, dropped={})
    assert known.sampler_logps == (-6.0, -8.0)
    batch = collate_preferences([known, replace(known, sampler_logps=(-1.0, -2.0))])
    assert batch["sampler_logps"].tolist() == [-6.0, -1.0, -8.0, -2.0]
    assert preference_rows([pair([5, 6], [7, 8], [7, 4])], vocabulary=10, dropped={})[0].sampler_logps is None


def test_another_reference_is_that_models_log_probabilities(start: Path, tmp_path: Path) -> None:
    """With a named reference the first loss is that of the start model against it, computed by hand; with the start model's it is log 2."""
    other = save_tiny_policy(tmp_path / "other", hidden=32, layers=1, seed=5, max_positions=64)
    pairs, once = random_pairs(), replace(SETTINGS, max_updates=1, batch_size=16)
    report = train_preference(start, pairs, tmp_path / "out", once, renderer_hash=HASH, reference=other)
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (start, other)]
    with torch.no_grad():
        gaps = [
            [log_likelihood(m, row.prompt_ids, row.chosen_ids) - log_likelihood(m, row.prompt_ids, row.rejected_ids) for row in pairs]
            for m in models
        ]
    slow = [-math.log(1 / (1 + math.exp(-0.1 * float(ours - ref)))) for ours, ref in zip(*gaps, strict=True)]
    assert report.first_loss == pytest.approx(sum(slow) / 16, rel=1e-5)


def test_off_policy_training_takes_the_stored_log_probabilities(start: Path, tmp_path: Path) -> None:
    """Pairs that store what the start model says are trained as with the start model as reference; without them they are refused."""
    model, pairs = AutoModelForCausalLM.from_pretrained(start).eval(), []
    with torch.no_grad():
        for row in random_pairs():
            logps = [
                [float(log_likelihood(model, [*row.prompt_ids, *side[:i]], [token])) for i, token in enumerate(side)]
                for side in (row.chosen_ids, row.rejected_ids)
            ]
            pairs.append(replace(row, chosen_logps=logps[0], rejected_logps=logps[1]))
    settings = replace(SETTINGS, epochs=2.0)
    reports = [
        train_preference(start, pairs, tmp_path / str(reference), settings, renderer_hash=HASH, reference=reference)
        for reference in (SAMPLER, None)
    ]
    assert reports[0].last_loss == pytest.approx(reports[1].last_loss, rel=1e-4)
    with pytest.raises(DataFormatError, match="the sampler's log-probabilities of every pair: 16 have none"):
        train_preference(start, random_pairs(), tmp_path / "out", SETTINGS, renderer_hash=HASH, reference=SAMPLER)


# ---- completions without a partner ----


def graded(prompt_ids: list[int], completion_ids: list[int], *, good: bool, problem_id: str = "p1", value: float = 0.5) -> GradedRow:
    """Return a graded completion."""
    return GradedRow(
        problem_id=problem_id,
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        good=good,
        value=float(good),
        prompt_value=value,
        prompt="",
        completion="",
        logps=[-1.0] * len(completion_ids),
        provenance=PROVENANCE,
    )


def graded_pairs(pairs: list[PreferencePair]) -> list[GradedRow]:
    """Return both sides of pairs, one by one."""
    return [
        graded(row.prompt_ids, ids, good=good, problem_id=row.problem_id)
        for row in pairs
        for ids, good in ((row.chosen_ids, True), (row.rejected_ids, False))
    ]


def test_unpaired_rows_are_laid_out_as_completions_then_mismatched() -> None:
    """Every completion stands behind the prompt of another problem too; references follow the same order."""
    rows = unpaired_rows(
        [graded([5, 6], [7, 8], good=True, problem_id="a", value=0.25), graded([4], [9], good=False, problem_id="b", value=0.75)],
        vocabulary=10,
        mismatched=True,
    )
    batch = collate_unpaired([row.with_reference([-1.0 - i, -3.0 - i]) for i, row in enumerate(rows)])
    assert batch["inputs"]["input_ids"].tolist() == [[5, 6, 7], [4, 0, 0], [5, 6, 0], [4, 7, 0]]
    assert batch["targets"].tolist() == [[IGNORE, 7, 8], [9, IGNORE, IGNORE], [IGNORE, 9, IGNORE], [7, 8, IGNORE]]
    assert batch["ref_logps"].tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert (batch["good"].tolist(), batch["prompt_values"].tolist()) == ([True, False], [0.25, 0.75])
    assert UnpairedObjective().counts(batch).tolist() == [2]


@pytest.mark.parametrize("sizes", [(1,), (2, 1), (3, 1, 2), (1, 1, 1, 1), (4, 4)])
def test_mismatched_completions_are_of_other_problems(sizes: tuple[int, ...]) -> None:
    """Each completion is used once, never behind its own prompt where there are two rows, and across problems where that is possible."""
    records = [graded([5], [6, problem], good=True, problem_id=str(problem)) for problem, size in enumerate(sizes) for _ in range(size)]
    rows = unpaired_rows(records, vocabulary=100, mismatched=True)
    used = sorted(row.mismatched.completion_ids for row in rows if row.mismatched)
    assert used == sorted(record.completion_ids for record in records)
    if 2 * max(sizes) <= sum(sizes):
        assert all(row.mismatched and row.mismatched.completion_ids != row.completion.completion_ids for row in rows)


@pytest.mark.parametrize("loss", ["kto", "oreal"])
@pytest.mark.parametrize("variant", ["plain", "lora"])
def test_unpaired_losses_and_gradients_on_trees_equal_the_slow_ones(loss: str, variant: str) -> None:
    """Packed, the loss and gradient are those of whole sequences one by one, references from another model on trees included."""
    # In double precision: how a processor rounds float32 is not what is tested.
    model: torch.nn.Module = tiny_policy(hidden=32, layers=1)[0].double()
    reference = tiny_policy(hidden=32, layers=1, seed=1)[0].double()
    if variant == "lora":
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))  # pyright: ignore
    records = graded_pairs([replace(row, problem_id=f"p{i // 2}") for i, row in enumerate(random_pairs(6))])
    objective = UnpairedObjective(settings=PREFERENCE_LOSSES[loss](beta=0.3, good_weight=1.2, bad_weight=0.7))
    rows = unpaired_rows(records, vocabulary=100, mismatched=objective.needs_mismatched)
    collates = {"collate": collate_unpaired, "collate_packed": collate_packed_unpaired}
    rows = add_reference(reference, rows, replace(SETTINGS, micro_batch_size=5), **collates)
    batch = collate_packed_unpaired(pack_rows(rows, row_tokens=60))
    found = objective.loss(model, batch, objective.counts(batch))
    found.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()

    def ratio(row: CompletionRow) -> torch.Tensor:
        with torch.no_grad():
            ref = log_likelihood(reference, row.prompt_ids, row.completion_ids)
        return log_likelihood(model, row.prompt_ids, row.completion_ids) - ref  # pyright: ignore[reportArgumentType]

    total = torch.zeros(())
    if loss == "kto":
        point = torch.stack([ratio(row.mismatched) for row in rows if row.mismatched]).mean().clamp(min=0).detach()
    for row in rows:
        r, weight = ratio(row.completion), 1.2 if row.good else 0.7
        if loss == "kto":
            total = total + weight * torch.sigmoid((-0.3 if row.good else 0.3) * (r - point))
        else:
            own = log_likelihood(model, row.completion.prompt_ids, row.completion.completion_ids)  # pyright: ignore
            total = total + (-weight * own if row.good else weight * 0.5 * r) + 0.15 * r**2
    slow = total / len(rows)
    slow.backward()
    torch.testing.assert_close(found.double(), slow, rtol=1.3e-6, atol=1e-5)
    for name, value in model.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(gradients[name], value.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["kto", "oreal"])
def test_unpaired_training_prefers_the_good(start: Path, tmp_path: Path, loss: str) -> None:
    """Training on graded completions raises the margin of the good ones, on trees."""
    pairs = [replace(row, problem_id=f"p{i // 4}") for i, row in enumerate(random_pairs())]
    objective = UnpairedObjective(settings=PREFERENCE_LOSSES[loss](beta=0.5))
    report = train_unpaired(start, graded_pairs(pairs), tmp_path / "out", SETTINGS, renderer_hash=HASH, objective=objective)
    assert (report.layout, report.rows) == ("trees", 32)
    assert report.last_loss < report.first_loss
    assert margin(tmp_path / "out", pairs) > margin(start, pairs) + 1.0


def test_bad_graded_rows_are_refused(start: Path, tmp_path: Path) -> None:
    """Nothing to train on, a foreign renderer, an empty completion and a reference that is not known each name what is wrong."""
    row, kto = graded([5], [6], good=True), UnpairedObjective()
    cases = [
        ([], {}, "at least one row"),
        ([replace(row, provenance=replace(PROVENANCE, renderer_hash="renderer-b"))], {}, "'renderer-a'.*'renderer-b'"),
        ([row, replace(row, completion_ids=[])], {}, "graded row 1.*completion"),
        ([row], {"reference": SAMPLER, "objective": kto}, "1 have none"),
        ([replace(row, logps=[])], {"reference": SAMPLER, "objective": UnpairedObjective(settings=OREAL())}, "1 have none"),
    ]
    for rows, options, message in cases:
        with pytest.raises(DataFormatError, match=message):
            train_unpaired(start, rows, tmp_path / "out", SETTINGS, renderer_hash=HASH, **options)
    assert not list(tmp_path.iterdir())
