"""Training on trees gives the log-probabilities, losses and gradients of separate sequences: families, shapes, adapters, accumulation."""

import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from stepladder.errors import BackendError, DataFormatError
from stepladder.lm import tree_attention as attention
from stepladder.lm.completions import IGNORE, collate_completions, collate_packed_completions, completion_logps
from stepladder.lm.packing import pack_rows
from stepladder.lm.references import add_reference
from stepladder.lm.settings import LoraSettings, TrainSettings
from stepladder.lm.tree_attention import check_tree_attention
from stepladder.policy.fine_tuning import (
    PreferenceRow,
    collate_packed_preferences,
    collate_packed_weighted,
    collate_preferences,
    collate_weighted,
    completion_rows,
    preference_rows,
    soft_rows,
    train_preference,
    train_sft,
)
from stepladder.policy.objectives import CompletionObjective, PreferenceObjective, WeightedCompletionObjective
from stepladder.policy.preference_settings import DPO
from stepladder.types import PreferencePair, Provenance, SoftTarget, Trace
from tests.families import FAMILIES, VOCABULARY, family_model
from tests.models import save_tiny_policy, tiny_tokenizer

HASH = "renderer-a"
PROVENANCE = Provenance(round=1, policy_version=0, scorer_version=None, seed=0, config_hash="0" * 16, renderer_hash=HASH)
SETTINGS = TrainSettings(learning_rate=3e-3, epochs=3.0, batch_size=64, device="cpu")
COLLATES: dict[str, Any] = {"collate": collate_preferences, "collate_packed": collate_packed_preferences}

# depth of the tree, children of every node on the main line, tokens of a step
SHAPES = {"deep": (9, 2, (1, 4)), "wide": (2, 6, (1, 3)), "ragged": (4, 3, (1, 9)), "single path": (5, 1, (2, 3))}


def tree_pairs(shape: str, seed: int, num_problems: int) -> list[PreferencePair]:
    """Return the pairs of siblings of random trees: at every depth of a main line its child against the others."""
    depth, branching, lengths = SHAPES[shape]
    rng = np.random.default_rng(seed)
    pairs = []
    for problem in range(num_problems):
        prefix = rng.integers(3, VOCABULARY, 4).tolist()
        for level in range(1, depth + 1):
            steps = [rng.integers(3, VOCABULARY, int(rng.integers(*lengths))).tolist() for _ in range(max(branching, 2))]
            others = steps[1:] if branching > 1 else steps[1:2]
            pairs += [pair(prefix, steps[0], other, problem=f"p{problem}", depth=level) for other in others]
            prefix = prefix + steps[0]
    return pairs


def pair(prompt_ids: list[int], chosen_ids: list[int], rejected_ids: list[int], *, problem: str = "p", depth: int = 1) -> PreferencePair:
    """Return a pair of sibling steps."""
    ids = {"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids}
    text = {"prompt": "", "chosen": "", "rejected": "", "chosen_value": 0.9, "rejected_value": 0.1}
    return PreferencePair(problem_id=problem, depth=depth, provenance=PROVENANCE, **ids, **text)


def rows_of(pairs: list[PreferencePair]) -> list[PreferenceRow]:
    """Return training rows with made-up references, in the order in which packing keeps them."""
    rows = preference_rows(pairs, vocabulary=VOCABULARY, dropped={})
    rng = np.random.default_rng(len(rows))
    rows = [replace(row, ref_chosen_logp=-5 * rng.random(), ref_rejected_logp=-5 * rng.random()) for row in rows]
    return [row for tree in pack_rows(rows, row_tokens=10_000) for row in tree.rows]


def slow_logps(model: nn.Module, row: PreferenceRow) -> list[torch.Tensor]:
    """Return the log-probability of every token of both completions, one whole sequence at a time."""
    found = []
    for side in (row.chosen, row.rejected):
        table = model(torch.tensor([[*side.prompt_ids, *side.completion_ids]])).logits[0].log_softmax(-1)
        start = len(side.prompt_ids) - 1
        found.append(torch.stack([table[start + i, token] for i, token in enumerate(side.completion_ids)]))
    return found


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of every trained parameter, and forget it in the model."""
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Check every parameter's gradient to 1e-5 of its own size.

    A bias that softmax cancels has a true gradient of zero; there the size of the largest gradient is the measure.
    """
    assert found.keys() == expected.keys()
    largest = max(float(value.norm()) for value in expected.values())
    for name, value in expected.items():
        error = float((found[name] - value).norm())
        assert error <= 1e-5 * max(float(value.norm()), 1e-3 * largest), f"{name}: {error} of {float(value.norm())}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_logps_and_gradients_are_those_of_separate_sequences(family: str, shape: str) -> None:
    """Every completion token's log-probability, and every parameter's gradient of a random sum of them, to 1e-5 in float32."""
    model = family_model(family)
    rows = rows_of(tree_pairs(shape, seed=1, num_problems=2))
    batch = collate_packed_preferences(pack_rows(rows, row_tokens=40), width=60)
    logps = completion_logps(model, batch)
    slow = [slow_logps(model, row) for row in rows]
    expected = [sides[0] for sides in slow] + [sides[1] for sides in slow]
    for found, exact in zip(logps, expected, strict=True):
        torch.testing.assert_close(found[: len(exact)], exact, rtol=1e-5, atol=1e-6)
        assert not found[len(exact) :].any()
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(0))
    packed = gradients(model, (weights * logps).sum())
    separate = gradients(model, sum((w[: len(exact)] * exact).sum() for w, exact in zip(weights, expected, strict=True)))  # pyright: ignore
    assert_same_gradients(packed, separate)


@pytest.mark.parametrize("variant", ["lora", "checkpointing", "accumulation"])
@pytest.mark.parametrize("sft_weight", [0.0, 0.5])
def test_preference_gradients_are_those_of_separate_sequences(variant: str, sft_weight: float) -> None:
    """Loss and gradient of an update equal the unpacked ones with adapters, with recomputed activations, and split into passes."""
    model: nn.Module = family_model("qwen2")
    if variant == "lora":
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))  # pyright: ignore
    if variant == "checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})  # pyright: ignore[reportCallIssue]
        model.train()
    rows = rows_of(tree_pairs("ragged", seed=2, num_problems=3))
    objective = PreferenceObjective(settings=DPO(beta=0.3, label_smoothing=0.1, sft_weight=sft_weight))
    whole = collate_preferences(rows)
    counts = objective.counts(whole)
    size = 5 if variant == "accumulation" else len(rows)
    parts = [collate_packed_preferences(pack_rows(rows[i : i + size], row_tokens=60)) for i in range(0, len(rows), size)]
    assert torch.equal(sum(objective.counts(part) for part in parts), counts)  # pyright: ignore
    loss = sum(objective.loss(model, part, counts) for part in parts)
    expected = objective.loss(model, whole, counts)
    assert isinstance(loss, torch.Tensor) and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


def test_solutions_are_packed_with_the_same_loss_and_gradient() -> None:
    """Traces of one problem, one a prefix of another and one twice, give the unpacked token mean; 30 shared tokens are forwarded once."""
    model = family_model("llama")
    shared = list(range(3, 18)) * 2
    completions = [[*shared, 5], [*shared, 6, 7], [*shared, 6, 7], shared]
    fields = {"problem_id": "p", "prompt": "", "completion": "", "mean_value": 1.0, "provenance": PROVENANCE}
    rows = completion_rows([Trace(prompt_ids=[3, 4], completion_ids=ids, **fields) for ids in completions], vocabulary=VOCABULARY)
    trees = pack_rows(rows, row_tokens=100)
    assert [tree.num_tokens for tree in trees] == [2 + 30 + 1]
    packed, plain, objective = collate_packed_completions(trees), collate_completions(rows), CompletionObjective()
    counts = objective.counts(plain)
    assert counts.tolist() == objective.counts(packed).tolist() == [31 + 32 + 32 + 30]
    losses = [objective.loss(model, batch, counts) for batch in (packed, plain)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    assert_same_gradients(gradients(model, losses[0]), gradients(model, losses[1]))


def test_weighted_steps_are_packed_with_the_same_loss_and_gradient() -> None:
    """Three steps after one prefix, of weights .5, .3 and .2, and a trace of weight 1: by hand, plain and packed alike."""
    model = family_model("llama")
    weights, steps = [0.5, 0.3, 0.2], [[5, 6], [7], [5, 8, 9]]
    fields = {"problem_id": "p", "prompt": "", "completion": "", "provenance": PROVENANCE}
    targets = [
        SoftTarget(prompt_ids=[3, 4, 10], completion_ids=ids, weight=weight, **fields) for ids, weight in zip(steps, weights, strict=True)
    ]
    trace = Trace(prompt_ids=[3, 4], completion_ids=[10, 7], mean_value=1.0, **fields)
    rows = completion_rows([trace], vocabulary=VOCABULARY) + soft_rows(targets, vocabulary=VOCABULARY)
    trees = pack_rows(rows, row_tokens=100)
    assert [tree.num_tokens for tree in trees] == [3 + 2]
    packed, plain, objective = collate_packed_weighted(trees), collate_weighted(rows), WeightedCompletionObjective()
    counts = objective.counts(plain)
    assert counts.item() == objective.counts(packed).item() == pytest.approx(2 + 0.5 * 2 + 0.3 * 1 + 0.2 * 3)
    losses = [objective.loss(model, batch, counts) for batch in (packed, plain)]
    sums = [completion_logps(model, collate_completions([row])).sum().item() for row in rows]
    by_hand = -(sums[0] + 0.5 * sums[1] + 0.3 * sums[2] + 0.2 * sums[3]) / counts.item()
    assert losses[0].item() == pytest.approx(by_hand, rel=1e-5)
    assert losses[1].item() == pytest.approx(by_hand, rel=1e-5)
    assert_same_gradients(gradients(model, losses[0]), gradients(model, losses[1]))


def test_one_hot_targets_are_traces() -> None:
    """A target with all of its weight on one step has the loss of that step as a trace."""
    model = family_model("llama")
    row = SoftTarget(problem_id="p", prompt_ids=[3, 4], completion_ids=[5, 6], weight=1.0, prompt="", completion="", provenance=PROVENANCE)
    (soft,) = soft_rows([row], vocabulary=VOCABULARY)
    weighted, plain = WeightedCompletionObjective(), CompletionObjective()
    batches = collate_weighted([soft]), collate_completions([soft])
    losses = [
        objective.loss(model, batch, objective.counts(batch)).item() for objective, batch in zip((weighted, plain), batches, strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    with pytest.raises(DataFormatError, match=r"soft target 0 \(problem 'p'\): the weight must be in \(0, 1\]: got 0.0"):
        soft_rows([replace(row, weight=0.0)], vocabulary=VOCABULARY)


def test_the_policy_learns_the_distribution(tmp_path: Path) -> None:
    """After training on weights of 3/4 and 1/4 alone, the two steps have these probabilities."""
    start = save_tiny_policy(tmp_path / "start")
    fields = {"problem_id": "p", "prompt": "", "completion": "", "provenance": PROVENANCE}
    targets = [
        SoftTarget(prompt_ids=[5, 6, 7], completion_ids=[token], weight=weight, **fields) for token, weight in ((8, 0.75), (9, 0.25))
    ]
    settings = replace(SETTINGS, learning_rate=1e-2, updates=60)
    report = train_sft(start, [], tmp_path / "out", settings, renderer_hash=HASH, soft_targets=targets)
    assert report.updates == 60
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        probabilities = model(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    assert probabilities[8].item() == pytest.approx(0.75, abs=0.03)
    assert probabilities[9].item() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("wrong", ["mask", "positions", "parents"])
def test_a_wrong_layout_is_noticed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain causal attention, positions by column, and reading at the token before in the row each change the log-probabilities."""
    model, rows = family_model("qwen2"), rows_of(tree_pairs("ragged", seed=3, num_problems=3))
    batch = collate_packed_preferences(pack_rows(rows, row_tokens=1000))
    right = completion_logps(model, batch)
    if wrong == "mask":
        batch["inputs"]["ends"] = torch.full_like(batch["inputs"]["ends"], batch["inputs"]["ends"].shape[1])
    elif wrong == "positions":
        batch["inputs"]["position_ids"] = torch.arange(batch["inputs"]["ends"].shape[1]).expand_as(batch["inputs"]["ends"])
    else:
        batch["sources"] = (batch["sources"][:, :1] + torch.arange(batch["sources"].shape[1])).clamp(max=int(batch["sources"].max()))
    changed = (completion_logps(model, batch) - right).abs()
    assert changed[batch["targets"] != IGNORE].max() > 0.1


@torch.no_grad()
def test_references_are_computed_on_trees() -> None:
    """Packed references equal the unpacked ones, come back in the order of the rows, and forward every shared token once."""
    model, pairs = family_model("llama"), tree_pairs("deep", seed=4, num_problems=3)
    rows = preference_rows(pairs[::-1], vocabulary=VOCABULARY, dropped={})
    forwarded = []
    handle = model.register_forward_pre_hook(lambda _, __, kwargs: forwarded.append(kwargs["input_ids"].numel()), with_kwargs=True)
    packed = add_reference(model, rows, SETTINGS, **COLLATES)
    handle.remove()
    assert sum(forwarded) < 0.4 * sum(row.num_tokens for row in rows)
    plain = add_reference(model, rows, replace(SETTINGS, packed=False), **COLLATES)
    for found, expected in zip(packed, plain, strict=True):
        assert (found.chosen, found.rejected) == (expected.chosen, expected.rejected)
        assert found.ref_chosen_logp == pytest.approx(expected.ref_chosen_logp, rel=1e-5)
        assert found.ref_rejected_logp == pytest.approx(expected.ref_rejected_logp, rel=1e-5)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy."""
    return save_tiny_policy(tmp_path_factory.mktemp("start"), hidden=32, layers=1, max_positions=128)


@pytest.mark.parametrize("lora", [None, LoraSettings(r=2, alpha=4)], ids=["full", "lora"])
def test_training_on_trees_is_training_on_paths(start: Path, tmp_path: Path, lora: LoraSettings | None) -> None:
    """With all 26 pairs in every update both ways take the same steps, and the trees forward a third of the tokens."""
    pairs = tree_pairs("deep", seed=5, num_problems=3)
    settings = replace(SETTINGS, lora=lora, micro_batch_size=7)
    reports = {
        packed: train_preference(start, pairs, tmp_path / str(packed), replace(settings, packed=packed), renderer_hash=HASH)
        for packed in (True, False)
    }
    assert (reports[True].layout, reports[False].layout) == ("trees", "paths")
    assert reports[True].updates == reports[False].updates == 3 and reports[True].rows == reports[False].rows == 26
    assert reports[True].tokens < 0.4 * reports[False].tokens
    assert reports[True].first_loss == pytest.approx(math.log(2), abs=1e-6)
    assert reports[True].last_loss == pytest.approx(reports[False].last_loss, rel=1e-4)
    before, *after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (start, tmp_path / "True", tmp_path / "False"))
    for name, value in before.items():
        # Adam divides by the gradient's size, so rounding in a gradient near zero moves a weight by up to a learning rate's share.
        torch.testing.assert_close(after[0][name], after[1][name], rtol=0, atol=2e-4)
        moved = (after[1][name] - value).norm()
        assert (after[0][name] - after[1][name]).norm() <= 0.01 * moved


# ---- models that cannot ----


def test_models_that_cannot_take_trees_are_named() -> None:
    """Linear layers, missing position ids and sequences beyond the last position are refused."""
    model = family_model("llama")
    check_tree_attention(model, longest=256)
    with pytest.raises(BackendError, match="positions up to 256 for sequences of 257"):
        check_tree_attention(model, longest=257)
    model = family_model("qwen2")
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(BackendError, match="linear_attention layers"):
        check_tree_attention(model, longest=5)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(BackendError, match=r"no position ids.*packed = false"):
        check_tree_attention(bloom, longest=5)


def test_training_falls_back_to_paths(tmp_path: Path) -> None:
    """A model without position ids is trained as without packing, to the same bytes, and the report says why."""
    BloomForCausalLM(BloomConfig(vocab_size=80, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "start")
    tiny_tokenizer().save_pretrained(tmp_path / "start")
    fields = {"prompt": "", "completion": "", "mean_value": 1.0, "provenance": PROVENANCE}
    traces = [Trace(problem_id="p", prompt_ids=[3, 4], completion_ids=[5 + i] * 9, **fields) for i in range(4)]
    reports = []
    for packed in (True, False):
        out = tmp_path / str(packed)
        reports.append(train_sft(tmp_path / "start", traces, out, replace(SETTINGS, packed=packed, epochs=1.0), renderer_hash=HASH))
    assert reports[0].layout.startswith("paths: BloomForCausalLM: training on trees needs causal attention")
    assert reports[1].layout == "paths"
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("True", "False")]
    assert weights[0] == weights[1]


def use_flex_attention(patch: pytest.MonkeyPatch, model: Any, *, compiled: bool) -> None:
    """Let a model run trees with FlexAttention on this machine's CPU, which torch compiles for the forward pass only."""
    patch.setattr(attention, "can_flex", lambda _: True)
    patch.setitem(attention.compiled_layers, model, {layer: layer._call_impl for layer in model.model.layers})
    if not compiled:
        patch.setattr("transformers.integrations.flex_attention.WrappedFlexAttention.__call__", lambda _: flex_attention)
        patch.setattr("transformers.integrations.flex_attention.WrappedFlexAttention.__init__", lambda *_: None)
        # The uncompiled operator has a backward pass on a CPU as well; only a check of the front door says that it has none.
        patch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)


@pytest.mark.parametrize("family", FAMILIES)
def test_flex_attention_has_the_gradients_of_sdpa(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With FlexAttention, models get a block mask, and log-probabilities and every gradient are those of the dense mask.

    So they are with the dense mask that a GPU uses before its layers are compiled.
    """
    model, rows = family_model(family), rows_of(tree_pairs("ragged", seed=6, num_problems=3))
    batch, narrow = (collate_packed_preferences(pack_rows(rows, row_tokens=1000), width=width) for width in (attention.ONE_ROW, 0))
    assert len(batch["inputs"]["ends"]) == 1 < len(narrow["inputs"]["ends"])
    assert not attention.can_flex(model)
    expected = completion_logps(model, batch)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    dense = gradients(model, (weights * expected).sum())
    use_flex_attention(monkeypatch, model, compiled=False)
    with attention.tree_attention(model), warnings.catch_warnings():
        # Tracing an operator warns about torch's own code.
        warnings.simplefilter("ignore")
        assert model.config._attn_implementation == "stepladder_tree" and attention.takes_one_row(model)
        found = completion_logps(model, batch)
        flex = gradients(model, (weights * found).sum())
        torch.testing.assert_close(completion_logps(model, narrow), expected, rtol=1e-5, atol=1e-5)
    assert model.config._attn_implementation == "eager"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(flex, dense)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
@torch.no_grad()
def test_compiled_flex_attention_has_the_logps_of_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers compiles it, FlexAttention gives the log-probabilities of the dense mask over rows of several blocks."""
    model, rows = family_model("qwen3"), rows_of(tree_pairs("ragged", seed=6, num_problems=3))
    batch = collate_packed_preferences(pack_rows(rows, row_tokens=1000), width=attention.ONE_ROW)
    expected = completion_logps(model, batch)
    use_flex_attention(monkeypatch, model, compiled=True)
    with attention.tree_attention(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = completion_logps(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_flex_attention_is_kept_from_models_that_it_cannot_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it takes plain heads of 16 and more; dropout in attention and smaller heads keep sdpa, and so does a CPU."""
    model = family_model("qwen3")
    assert not attention.can_flex(model)
    for family in (Qwen2ForCausalLM, Qwen3ForCausalLM):
        monkeypatch.setattr(family, "device", torch.device("cuda"))
    assert attention.can_flex(model)
    assert not attention.can_flex(family_model("qwen2"))
    model.config.attention_dropout = 0.1
    assert not attention.can_flex(model)


# ---- TRL ----


@pytest.mark.slow
def test_preference_training_agrees_with_trl(tmp_path: Path) -> None:
    """On the same pairs TRL's DPOTrainer has our packed loss and gradient, once every step ends with the token that TRL appends."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    from stepladder.lm.loading import load_causal_lm, load_tokenizer

    model_dir, ref_dir = (save_tiny_policy(tmp_path / str(seed), hidden=32, layers=2, seed=seed) for seed in (0, 1))
    tokenizer = load_tokenizer(model_dir)
    rng = np.random.default_rng(0)
    text = lambda length: "".join(rng.choice(list("0123456789+-*="), length))  # noqa: E731
    prompts = ["1+1=2\n", "1+1=2\n3*", "1+1=2\n3*4=", "9-9"]
    texts = [{"prompt": prompt, "chosen": text(int(rng.integers(2, 8))), "rejected": text(int(rng.integers(2, 8)))} for prompt in prompts]
    encode = lambda text: [int(i) for i in tokenizer.encode(text, add_special_tokens=False)]  # noqa: E731
    eos = [int(tokenizer.eos_token_id)]  # pyright: ignore[reportArgumentType]
    pairs = [pair(encode(row["prompt"]), encode(row["chosen"]) + eos, encode(row["rejected"]) + eos) for row in texts]

    settings = DPOConfig(
        output_dir=str(tmp_path / "dpo"),
        per_device_train_batch_size=len(pairs),
        beta=0.3,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        disable_dropout=True,
        gradient_checkpointing=False,
    )
    model, reference = (load_causal_lm(path, device="cpu") for path in (model_dir, ref_dir))
    trainer = DPOTrainer(
        model=model, ref_model=reference, args=settings, train_dataset=Dataset.from_list(texts), processing_class=tokenizer
    )
    (batch,) = trainer.get_train_dataloader()
    theirs = trainer.compute_loss(model, batch)
    expected = gradients(model, theirs)

    rows = preference_rows(pairs, vocabulary=len(tokenizer), dropped={})
    rows = [row for tree in pack_rows(add_reference(reference, rows, SETTINGS, **COLLATES), row_tokens=1000) for row in tree.rows]
    ours_batch = collate_packed_preferences(pack_rows(rows, row_tokens=1000))
    objective = PreferenceObjective(settings=DPO(beta=0.3))
    ours = objective.loss(model, ours_batch, objective.counts(ours_batch))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same_gradients(gradients(model, ours), expected)
