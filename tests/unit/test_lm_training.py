"""The shared trainer: schedule, accumulation, determinism, resuming, whole-or-nothing output, adapters, silence."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stepladder.errors import BackendError, CheckpointError, ConfigError
from stepladder.lm.rows import pad
from stepladder.lm.schedule import batch_schedule
from stepladder.lm.training import LoraSettings, TrainSettings, last_logits
from stepladder.policy.train import train_sft
from stepladder.types import Provenance, Trace
from tests.models import save_tiny_policy

REPO = Path(__file__).parents[2]
HASH = "renderer-a"
SETTINGS = TrainSettings(learning_rate=1e-3, epochs=2.0, batch_size=4, device="cpu", seed=3)
PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="0" * 16, renderer_hash=HASH)


def trace(prompt_ids: list[int], completion_ids: list[int], **fields) -> Trace:
    """Return a trace of token ids."""
    filled = {"problem_id": "p", "prompt": "", "completion": "", "mean_value": 1.0, "provenance": PROVENANCE, **fields}
    return Trace(prompt_ids=prompt_ids, completion_ids=completion_ids, **filled)


def random_traces(num_rows: int = 12, seed: int = 0) -> list[Trace]:
    """Return traces of random ids and different lengths."""
    rng = np.random.default_rng(seed)
    draw = lambda low, high: rng.integers(4, 50, int(rng.integers(low, high))).tolist()  # noqa: E731
    return [trace(draw(2, 6), draw(2, 9), problem_id=f"p{i}") for i in range(num_rows)]


def weights_digest(directory: Path) -> str:
    """Return the hash of the saved weights, byte for byte."""
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy with a step format beside it."""
    directory = save_tiny_policy(tmp_path_factory.mktemp("start"), hidden=32, layers=1)
    (directory / "stepladder_format.json").write_text('{"any": "thing"}')
    return directory


# ---- schedule ----


def test_every_row_is_used_once_per_pass() -> None:
    """Where the batch size divides the rows, each pass is a permutation, cut into updates of the batch size."""
    schedule = batch_schedule([5] * 12, epochs=3.0, batch_size=4, seed=0)
    assert schedule.updates == 9 and schedule.passes_per_update == 1
    flat = np.concatenate(schedule.micro_batches)
    assert np.bincount(flat).tolist() == [3] * 12


def test_updates_all_have_the_same_size() -> None:
    """Ten rows in updates of four make 2 * 10 / 4 = 5 updates in two passes; with 9 rows the fifth is filled from a third pass."""
    for num_rows in (10, 9):
        schedule = batch_schedule(list(range(1, num_rows + 1)), epochs=2.0, batch_size=4, seed=0)
        assert [len(batch) for batch in schedule.micro_batches] == [4] * 5
        counts = np.bincount(np.concatenate(schedule.micro_batches), minlength=num_rows)
        assert counts.min() >= 2 and counts.sum() == 20


def test_few_rows_make_one_update_per_pass() -> None:
    """With fewer rows than the batch size an update is one pass, and no row is repeated within it."""
    schedule = batch_schedule([3, 1, 2], epochs=5.0, batch_size=64, seed=0)
    assert schedule.updates == 5
    assert all(sorted(batch) == [0, 1, 2] for batch in schedule.micro_batches)


@pytest.mark.parametrize(("epochs", "expected"), [(0.1, 1), (0.5, 5), (1.0, 10), (1.05, 11), (0.1 + 0.2, 3)])
def test_fractions_of_a_pass_round_up_to_whole_updates(epochs: float, expected: int) -> None:
    """Ten updates make a pass; floating-point dust in the product does not make another."""
    assert batch_schedule([1] * 40, epochs=epochs, batch_size=4, seed=0).updates == expected


def test_updates_are_capped() -> None:
    """``max_updates`` ends training early and never prolongs it."""
    assert batch_schedule([1] * 40, epochs=2.0, batch_size=4, max_updates=7, seed=0).updates == 7
    assert batch_schedule([1] * 40, epochs=2.0, batch_size=4, max_updates=70, seed=0).updates == 20


def test_grouping_saves_padding_and_keeps_rows() -> None:
    """Grouped updates hold the same rows per pass, and far fewer padded positions than random ones."""
    lengths = np.random.default_rng(0).integers(10, 100, 256).tolist()
    padded = {}
    for grouped in (False, True):
        batches = batch_schedule(lengths, epochs=1.0, batch_size=16, group_by_length=grouped, seed=0).micro_batches
        assert sorted(np.concatenate(batches).tolist()) == list(range(256))
        padded[grouped] = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches) / sum(lengths)
    assert padded[False] > 1.5
    assert padded[True] < 1.15


def test_schedule_depends_on_the_seed_only() -> None:
    """The same seed gives the same order, another seed another one, and a micro batch size does not move rows between updates."""
    lengths = list(range(1, 21))
    whole = batch_schedule(lengths, epochs=1.0, batch_size=5, seed=1)
    assert whole == batch_schedule(lengths, epochs=1.0, batch_size=5, seed=1)
    assert whole != batch_schedule(lengths, epochs=1.0, batch_size=5, seed=2)
    split = batch_schedule(lengths, epochs=1.0, batch_size=5, micro_batch_size=2, seed=1)
    assert split.passes_per_update == 3 and split.updates == whole.updates
    joined = [[row for batch in split.micro_batches[3 * i : 3 * i + 3] for row in batch] for i in range(4)]
    assert joined == whole.micro_batches


def test_pad_fills_on_the_right() -> None:
    """Sequences start in the first column; the rest holds the given value."""
    assert pad([[1, 2, 3], [4]], value=-1).tolist() == [[1, 2, 3], [4, -1, -1]]


# ---- settings ----


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rate": 0.0},
        {"epochs": 0.0},
        {"max_updates": 0},
        {"batch_size": 0},
        {"micro_batch_size": 0},
        {"warmup_ratio": 1.5},
        {"weight_decay": -1.0},
        {"max_grad_norm": 0.0},
        {"checkpoint_every": -1},
        {"lora": LoraSettings(r=0)},
        {"seed": -1},
    ],
)
def test_impossible_settings_are_refused(bad: dict) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigError, match=next(iter(bad))):
        TrainSettings(**bad)


def test_another_gpu_is_chosen_by_the_environment(start: Path, tmp_path: Path) -> None:
    """A device that cannot be had, or is not the first, is refused before anything is written."""
    with pytest.raises(ConfigError, match="device"):
        train_sft(start, random_traces(), tmp_path / "out", replace(SETTINGS, device="cuda:7"), renderer_hash=HASH)
    assert not list(tmp_path.iterdir())


# ---- what is written ----


def test_output_is_a_plain_model_directory(start: Path, tmp_path: Path) -> None:
    """Model, tokenizer and step format load again; configuration and weights' type are the start model's; no work directory is left."""
    report = train_sft(start, random_traces(), tmp_path / "out", SETTINGS, renderer_hash=HASH)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(start).get_vocab()
    assert (tmp_path / "out" / "stepladder_format.json").read_text() == '{"any": "thing"}'
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads((start / "config.json").read_text())
    assert model.dtype == torch.float32
    assert weights_digest(tmp_path / "out") != weights_digest(start)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert report.updates == 6 and report.rows == 12 and report.dropped_by_reason == {}


def test_an_existing_output_is_replaced(start: Path, tmp_path: Path) -> None:
    """Files of an older model in the same place do not survive."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale.bin").write_text("old")
    train_sft(start, random_traces(4), tmp_path / "out", replace(SETTINGS, max_updates=1), renderer_hash=HASH)
    assert not (tmp_path / "out" / "stale.bin").exists()


def test_a_training_of_one_update_changes_the_weights(start: Path, tmp_path: Path) -> None:
    """A warm-up share never makes the only update one at learning rate 0."""
    settings = replace(SETTINGS, max_updates=1, warmup_ratio=0.03)
    train_sft(start, random_traces(4), tmp_path / "out", settings, renderer_hash=HASH)
    before, after = (load_file(path / "model.safetensors") for path in (start, tmp_path / "out"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_low_precision_start_is_trained_in_float32_and_stored_as_it_was(start: Path, tmp_path: Path) -> None:
    """A bfloat16 directory gives a bfloat16 directory, and its training still moves the weights."""
    AutoModelForCausalLM.from_pretrained(start, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path / "half")
    train_sft(tmp_path / "half", random_traces(), tmp_path / "out", SETTINGS, renderer_hash=HASH)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    assert weights_digest(tmp_path / "out") != weights_digest(tmp_path / "half")


def test_a_failure_leaves_nothing_half_written(start: Path, tmp_path: Path) -> None:
    """An exception in the middle leaves neither an output nor, without checkpoints, a work directory."""

    def fail(step: int, *_: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sft(start, random_traces(), tmp_path / "out", SETTINGS, renderer_hash=HASH, on_progress=fail)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops_training(start: Path, tmp_path: Path) -> None:
    """Training that blows up is an error that names the update, not a broken model on disk."""
    model = AutoModelForCausalLM.from_pretrained(start)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path / "broken")
    with pytest.raises(BackendError, match="update 1 of 6"):
        train_sft(tmp_path / "broken", random_traces(), tmp_path / "out", SETTINGS, renderer_hash=HASH)
    assert not (tmp_path / "out").exists()


def test_progress_is_reported_and_nothing_is_printed(start: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Every update calls back with its number, the total, its loss and the tokens so far; standard output and error stay empty."""
    calls: list[tuple[int, int, float, int]] = []
    traces = random_traces()
    report = train_sft(start, traces, tmp_path / "out", SETTINGS, renderer_hash=HASH, on_progress=lambda *call: calls.append(call))
    assert [(step, total) for step, total, _, _ in calls] == [(i, 6) for i in range(1, 7)]
    losses = [loss for _, _, loss, _ in calls]
    assert (report.first_loss, report.last_loss, report.mean_loss) == (losses[0], losses[-1], pytest.approx(sum(losses) / 6))
    forwarded = sum(len(row.prompt_ids) + len(row.completion_ids) - 1 for row in traces)
    assert calls[-1][3] == report.tokens == 2 * forwarded
    assert capfd.readouterr() == ("", "")


# ---- determinism and resuming ----


def test_accumulated_passes_give_the_weights_of_one(start: Path, tmp_path: Path) -> None:
    """Splitting an update of unequal rows into forward passes of one row changes the weights by rounding only."""
    for name, micro in (("whole", None), ("split", 1)):
        train_sft(start, random_traces(), tmp_path / name, replace(SETTINGS, micro_batch_size=micro), renderer_hash=HASH)
    whole, split = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "split"))
    for name, value in whole.items():
        torch.testing.assert_close(value, split[name], rtol=1e-4, atol=2e-5)


def test_a_fresh_process_writes_the_same_bytes(start: Path, tmp_path: Path) -> None:
    """The same rows, settings and seed give byte-identical weights in another process; another seed does not."""
    code = (
        "import sys; from pathlib import Path; from tests.unit.test_lm_training import *\n"
        "train_sft(Path(sys.argv[1]), random_traces(), Path(sys.argv[2]), SETTINGS, renderer_hash=HASH)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(start), str(tmp_path / "other")], check=True, cwd=REPO, env=environment)
    train_sft(start, random_traces(), tmp_path / "here", SETTINGS, renderer_hash=HASH)
    train_sft(start, random_traces(), tmp_path / "seed", replace(SETTINGS, seed=4), renderer_hash=HASH)
    assert weights_digest(tmp_path / "here") == weights_digest(tmp_path / "other")
    assert weights_digest(tmp_path / "here") != weights_digest(tmp_path / "seed")


@pytest.mark.parametrize("lora", [None, LoraSettings(r=2, alpha=4, dropout=0.2)], ids=["full", "lora"])
def test_a_killed_training_continues_where_it_was(start: Path, tmp_path: Path, lora: LoraSettings | None) -> None:
    """Killed in update 5 with checkpoints every 2, the next call starts at update 5 and ends with the undisturbed bytes and report."""
    settings = replace(SETTINGS, checkpoint_every=2, micro_batch_size=2, lora=lora)
    traces = random_traces()
    whole = train_sft(start, traces, tmp_path / "whole", replace(settings, checkpoint_every=0), renderer_hash=HASH)
    steps: list[int] = []

    def killed_at_5(step: int, *_: object) -> None:
        steps.append(step)
        if len(steps) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sft(start, traces, tmp_path / "out", settings, renderer_hash=HASH, on_progress=killed_at_5)
    assert not (tmp_path / "out").exists()
    resumed = train_sft(start, traces, tmp_path / "out", settings, renderer_hash=HASH, on_progress=killed_at_5)
    assert steps == [1, 2, 3, 4, 5, 5, 6]
    assert weights_digest(tmp_path / "out") == weights_digest(tmp_path / "whole")
    assert replace(resumed, seconds=0.0) == replace(whole, seconds=0.0)
    assert not (tmp_path / "out.work").exists()


def test_a_checkpoint_cut_off_in_writing_is_not_used(start: Path, tmp_path: Path) -> None:
    """A newest checkpoint without its finishing mark is removed and the one before it is taken."""
    settings, traces = replace(SETTINGS, checkpoint_every=2), random_traces()
    steps: list[int] = []

    def stop(step: int, *_: object) -> None:
        steps.append(step)
        if steps == [1, 2, 3, 4, 5]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sft(start, traces, tmp_path / "out", settings, renderer_hash=HASH, on_progress=stop)
    newest = tmp_path / "out.work" / "checkpoint-4"
    (newest / "stepladder_checkpoint.json").unlink()
    (newest / "model.safetensors").write_bytes(b"cut")
    train_sft(start, traces, tmp_path / "out", settings, renderer_hash=HASH, on_progress=stop)
    assert steps == [1, 2, 3, 4, 5, 3, 4, 5, 6]


def test_checkpoints_of_another_training_are_refused(start: Path, tmp_path: Path) -> None:
    """Other rows or settings never continue from these weights; the message says what to delete."""
    settings = replace(SETTINGS, checkpoint_every=1)

    def stop(step: int, *_: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sft(start, random_traces(), tmp_path / "out", settings, renderer_hash=HASH, on_progress=stop)
    for traces, other in ((random_traces(seed=1), settings), (random_traces(), replace(settings, learning_rate=2e-3))):
        with pytest.raises(CheckpointError, match=r"delete .*out\.work"):
            train_sft(start, traces, tmp_path / "out", other, renderer_hash=HASH)


# ---- adapters, memory savers, precision ----


def test_adapters_are_merged(start: Path, tmp_path: Path) -> None:
    """The output of adapter training loads as a plain model of the same shape: body layers have moved, embeddings and head have not."""
    settings = replace(SETTINGS, lora=LoraSettings(r=2, alpha=8), learning_rate=1e-2)
    report = train_sft(start, random_traces(), tmp_path / "out", settings, renderer_hash=HASH)
    before = AutoModelForCausalLM.from_pretrained(start).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert before.keys() == after.keys()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert "model.layers.0.self_attn.q_proj.weight" in moved
    assert not moved & {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}
    for name in moved:
        assert np.linalg.matrix_rank((after[name] - before[name]).numpy(), tol=1e-5) <= 2
    assert report.last_loss < report.first_loss
    assert not list((tmp_path / "out").glob("adapter*"))


def test_gradient_checkpointing_changes_memory_only(start: Path, tmp_path: Path) -> None:
    """Recomputing activations gives the same bytes."""
    for name, switch in (("off", False), ("on", True)):
        train_sft(start, random_traces(), tmp_path / name, replace(SETTINGS, gradient_checkpointing=switch), renderer_hash=HASH)
    assert weights_digest(tmp_path / "on") == weights_digest(tmp_path / "off")


def test_autocast_training_keeps_float32_weights(start: Path, tmp_path: Path) -> None:
    """bfloat16 autocast follows the float32 losses within its precision and still stores float32."""
    full = train_sft(start, random_traces(), tmp_path / "full", SETTINGS, renderer_hash=HASH)
    half = train_sft(start, random_traces(), tmp_path / "half", replace(SETTINGS, bf16=True), renderer_hash=HASH)
    assert half.last_loss != full.last_loss
    assert half.last_loss == pytest.approx(full.last_loss, rel=0.02)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.float32


def test_last_logits_are_the_end_of_all_logits(start: Path) -> None:
    """Skipping the prompt's logits gives the same numbers as computing all of them."""
    model = AutoModelForCausalLM.from_pretrained(start)
    inputs = {"input_ids": torch.arange(4, 16).view(2, 6)}
    torch.testing.assert_close(last_logits(model, inputs, positions=2), model(**inputs).logits[:, -2:])
