"""The shared trainer: schedule, accumulation, determinism, resuming, whole-or-nothing output, adapters, silence."""

import hashlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stepladder.errors import BackendError, CheckpointError, ConfigError, DataFormatError
from stepladder.lm import training
from stepladder.lm.adapters import quantization
from stepladder.lm.loading import load_causal_lm
from stepladder.lm.memory import memory_remedy
from stepladder.lm.schedule import Pool, batch_schedule
from stepladder.lm.settings import LoraSettings, TrainSettings
from stepladder.lm.training import split_held_out
from stepladder.lm.training_rows import Replay, pad
from stepladder.lm.tree_attention import logits_at
from stepladder.policy.fine_tuning import completion_rows, train_sft
from stepladder.types import Provenance, Trace
from tests.models import save_tiny_policy

REPO = Path(__file__).parents[3]
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


@pytest.mark.parametrize("num_rows", [1, 3, 40, 500])
def test_updates_are_equal_whatever_the_rows(num_rows: int) -> None:
    """``updates`` shortens many rows and repeats few; every row comes as often as any other, but for one."""
    schedule = batch_schedule([1] * num_rows, epochs=2.0, batch_size=4, num_updates=30, seed=0)
    assert schedule.updates == 30
    seen = [row for batch in schedule.micro_batches for row in batch]
    assert len(seen) == 30 * min(4, num_rows)
    counts = [seen.count(row) for row in range(num_rows)]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("grouped", [False, True])
def test_every_pass_takes_other_rows_of_a_pool(grouped: bool) -> None:
    """Six rows, two of them in one group, and a pool of four: passes of 6 + 2 rows. Three passes take each of the six three times.

    Of the pool they take 3 * 2: all four rows in the first two passes, and two of them again in the third.
    """
    groups = [[0, 1], *([row] for row in range(2, 10))] if grouped else None
    schedule = batch_schedule(
        [1] * 10, epochs=3.0, batch_size=8, seed=0, groups=groups, group_by_length=False, pool=Pool(first=6, per_pass=2)
    )
    assert schedule.updates == 3
    passes = np.concatenate(schedule.micro_batches).reshape(3, 8).tolist()
    for rows in passes:
        assert sorted(rows)[:6] == list(range(6))
        if grouped:
            assert abs(rows.index(0) - rows.index(1)) == 1
    drawn = [[row for row in rows if row >= 6] for rows in passes]
    assert sorted(drawn[0] + drawn[1]) == [6, 7, 8, 9]
    assert len(set(drawn[2])) == 2


def test_an_empty_share_of_a_pool_changes_nothing_but_the_draw() -> None:
    """No row of the pool comes, and the others come once in every pass; a share of a quarter of four rows is one of them."""
    schedule = batch_schedule([1] * 10, epochs=2.0, batch_size=3, seed=0, pool=Pool(first=6, per_pass=0))
    assert np.bincount(np.concatenate(schedule.micro_batches)).tolist() == [2] * 6
    assert [Replay(rows=[0], share=share).per_pass(3) for share in (0.0, 0.25, 0.5)] == [0, 1, 3]


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
        {"updates": 0},
        {"updates": 3, "max_updates": 4},
        {"batch_size": 0},
        {"micro_batch_size": 0},
        {"warmup_ratio": 1.5},
        {"weight_decay": -1.0},
        {"max_grad_norm": 0.0},
        {"checkpoint_every": -1},
        {"keep_checkpoints": 0},
        {"held_out": 1.0, "checkpoint_every": 1},
        {"held_out": 0.1},
        {"report_to": ("slack",)},
        {"epochs": math.inf},
        {"schedule": "cosin"},
        {"seed": -1},
    ],
)
def test_impossible_settings_are_refused(bad: dict) -> None:
    """The message names the setting, and what it must be."""
    with pytest.raises(ConfigError, match=f"training: {next(iter(bad))} must be "):
        TrainSettings(**bad)


@pytest.mark.parametrize("bad", [{"r": 0}, {"alpha": 0}, {"dropout": 1.0}])
def test_impossible_adapters_are_refused(bad: dict) -> None:
    """The message names the setting, and what it must be."""
    with pytest.raises(ConfigError, match=f"lora: {next(iter(bad))} must be "):
        LoraSettings(**bad)


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


def test_replayed_rows_are_others_in_every_pass(start: Path, tmp_path: Path) -> None:
    """Four traces and as many of eight others a pass: two passes of 8 rows in updates of 4 learn from all twelve, and from 8 without."""
    traces = random_traces()
    replay = Replay(rows=traces[4:], share=0.5)
    mixed = train_sft(start, traces[:4], tmp_path / "mixed", SETTINGS, renderer_hash=HASH, replay=replay)
    fixed = train_sft(start, traces[:8], tmp_path / "fixed", SETTINGS, renderer_hash=HASH)
    assert (mixed.updates, mixed.rows) == (4, 12)
    assert (fixed.updates, fixed.rows) == (4, 8)
    foreign = replace(traces[5], provenance=replace(PROVENANCE, renderer_hash="renderer-b"))
    with pytest.raises(DataFormatError, match="replayed solutions: every row must come from renderer"):
        train_sft(start, traces[:4], tmp_path / "x", SETTINGS, renderer_hash=HASH, replay=Replay(rows=[foreign], share=0.5))


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


@pytest.mark.parametrize("checkpoint_every", [0, 4])
def test_losses_read_every_few_updates_change_reports_alone(
    start: Path, tmp_path: Path, checkpoint_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the first update, every third, the last and those with a checkpoint are read, each as the mean since the one before."""
    settings = replace(SETTINGS, epochs=8 / 3, checkpoint_every=checkpoint_every)
    found = {}
    for name, every in (("each", 1), ("third", 3)):
        monkeypatch.setitem(training.UPDATES_PER_READING, "cpu", every)
        calls: list[tuple[int, int, float, int]] = []
        report = train_sft(
            start, random_traces(), tmp_path / name, settings, renderer_hash=HASH, on_progress=lambda *call, calls=calls: calls.append(call)
        )
        found[name] = report, calls
    (each, updates), (third, readings) = found["each"], found["third"]
    losses = [loss for _, _, loss, _ in updates]
    ends = [1, 3, *([4] if checkpoint_every else []), 6, 8]
    assert [(step, tokens) for step, _, _, tokens in readings] == [(end, updates[end - 1][3]) for end in ends]
    means = [sum(losses[begin:end]) / (end - begin) for begin, end in pairwise([0, *ends])]
    assert [loss for _, _, loss, _ in readings] == pytest.approx(means)
    assert third.mean_loss == pytest.approx(each.mean_loss)
    assert (third.first_loss, third.last_loss) == (each.first_loss, pytest.approx(means[-1]))
    assert [end for end, _, _ in third.curve] == ends
    assert [loss for _, loss, _ in third.curve] == pytest.approx(means, abs=1e-6)
    assert weights_digest(tmp_path / "third") == weights_digest(tmp_path / "each")


def test_a_curve_has_means_over_updates_in_at_most_40_groups() -> None:
    """By hand: readings that end in the same group of updates share a point, weighted by updates; what is not finite is left out."""
    log = training.UpdateLog
    logs = [log(1, 1, 3.0, 1.0), log(5, 4, 0.5, None), log(10, 5, 2.0, math.inf)]
    assert training.training_curve(logs) == ((1, 3.0, 1.0), (5, 0.5, None), (10, 2.0, None))
    long = [log(step, 5, float(step), 1.0) for step in range(5, 401, 5)]
    curve = training.training_curve(long)
    assert [point[0] for point in curve] == list(range(10, 401, 10))
    assert curve[0] == (10, 7.5, 1.0)
    uneven = [log(1, 1, 6.0, 2.0), log(5, 4, 1.0, 4.0), log(80, 75, 0.0, 1.0)]
    assert training.training_curve(uneven) == ((1, 6.0, 2.0), (5, 1.0, 4.0), (80, 0.0, 1.0))
    shared = [log(1, 1, 6.0, 2.0), log(3, 2, 3.0, 5.0), log(120, 117, 0.0, 1.0)]
    assert training.training_curve(shared) == ((3, 4.0, 4.0), (120, 0.0, 1.0))
    assert training.training_curve([]) == ()


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
        "import sys; from pathlib import Path; from tests.unit.lm.test_training import *\n"
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
    forwarded: list[int] = []

    def killed_at_5(step: int, total: int, loss: float, tokens: int) -> None:
        steps.append(step)
        forwarded.append(tokens)
        if len(steps) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sft(start, traces, tmp_path / "out", settings, renderer_hash=HASH, on_progress=killed_at_5)
    assert not (tmp_path / "out").exists()
    resumed = train_sft(start, traces, tmp_path / "out", settings, renderer_hash=HASH, on_progress=killed_at_5)
    assert steps == [1, 2, 3, 4, 5, 5, 6]
    # The tokens of the call that continues: those before it took it no time.
    assert forwarded[5:] == [forwarded[4] - forwarded[3], whole.tokens - forwarded[3]]
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


@pytest.mark.parametrize("place", ["file", "file/out"])
def test_a_place_that_no_directory_can_be_at_is_refused_before_training(start: Path, tmp_path: Path, place: str) -> None:
    """A file where the model, or a directory above it, is to be: the message names it, and no update is made."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"out_dir must be a directory or not exist: got the file .*file -- "):
        train_sft(start, random_traces(), tmp_path / place, SETTINGS, renderer_hash=HASH, on_progress=lambda *_: pytest.fail("an update"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


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


def test_logits_of_some_columns_are_those_among_all(start: Path) -> None:
    """Skipping the prompt's logits gives the same numbers as computing all of them."""
    model = AutoModelForCausalLM.from_pretrained(start)
    inputs = {"input_ids": torch.arange(4, 16).view(2, 6)}
    torch.testing.assert_close(logits_at(model, inputs, 2), model(**inputs).logits[:, -2:])
    torch.testing.assert_close(logits_at(model, inputs, torch.tensor([1, 4])), model(**inputs).logits[:, [1, 4]])


def test_a_training_killed_outright_ends_with_the_undisturbed_bytes(start: Path, tmp_path: Path) -> None:
    """``kill -9`` in the middle of the second pass, after update 5 of 9 and a checkpoint at 4: the next call ends with the same bytes."""
    settings = replace(SETTINGS, epochs=3.0, checkpoint_every=2, held_out=0.2, keep_checkpoints=1)
    code = (
        "import os, signal, sys; from pathlib import Path; from dataclasses import replace; from tests.unit.lm.test_training import *\n"
        "settings = replace(SETTINGS, epochs=3.0, checkpoint_every=2, held_out=0.2, keep_checkpoints=1)\n"
        "kill = lambda step, *_: os.kill(os.getpid(), signal.SIGKILL) if step == 5 else None\n"
        "train_sft(Path(sys.argv[1]), random_traces(14), Path(sys.argv[2]), settings, renderer_hash=HASH, on_progress=kill)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", code, str(start), str(tmp_path / "out")], check=False, cwd=REPO, env=environment)
    assert done.returncode == -9
    left = sorted(path.name for path in (tmp_path / "out.work").iterdir())
    steps: list[int] = []
    resumed = train_sft(
        start, random_traces(14), tmp_path / "out", settings, renderer_hash=HASH, on_progress=lambda step, *_: steps.append(step)
    )
    whole = train_sft(start, random_traces(14), tmp_path / "whole", settings, renderer_hash=HASH)
    assert "checkpoint-4" in left and steps == [5, 6, 7, 8, 9]
    assert weights_digest(tmp_path / "out") == weights_digest(tmp_path / "whole")
    assert replace(resumed, seconds=0.0) == replace(whole, seconds=0.0)


# ---- held-out rows, checkpoints, trackers, memory ----


@pytest.mark.parametrize("lora", [None, LoraSettings(r=2, alpha=4)], ids=["full", "lora"])
def test_the_best_weights_on_held_out_rows_are_kept(start: Path, tmp_path: Path, lora: LoraSettings | None) -> None:
    """Trained far too fast, the loss on held-out rows is lowest early; those weights are saved, and their loss is what is reported."""
    settings = replace(SETTINGS, learning_rate=0.05, epochs=6.0, checkpoint_every=3, held_out=0.25, schedule="constant", lora=lora)
    traces = random_traces(16)
    report = train_sft(start, traces, tmp_path / "best", settings, renderer_hash=HASH)
    assert report.rows == 12 and report.updates == 18
    assert report.best_update is not None and report.best_update < 18 and report.best_update % 3 == 0
    stopped = replace(settings, max_updates=report.best_update)
    train_sft(start, traces, tmp_path / "stopped", stopped, renderer_hash=HASH)
    assert weights_digest(tmp_path / "best") == weights_digest(tmp_path / "stopped")
    _, aside = split_held_out(completion_rows(traces, vocabulary=60), share=0.25, seed=settings.seed)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "best")
    nll = tokens = 0.0
    for row in aside:
        with torch.no_grad():
            logps = model(torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[0].log_softmax(-1)
        nll -= sum(float(logps[len(row.prompt_ids) - 1 + i, token]) for i, token in enumerate(row.completion_ids))
        tokens += len(row.completion_ids)
    assert len(aside) == 4 and report.held_out_loss == pytest.approx(nll / tokens, rel=1e-5)


def test_problems_are_held_out_whole() -> None:
    """Rows of a problem are all on one side, a row without a problem is one of its own, and at least one problem is on each."""
    rows = completion_rows([trace([4], [5 + i], problem_id=f"p{i // 3}") for i in range(12)], vocabulary=60)
    kept, aside = split_held_out(rows, share=0.3, seed=0)
    assert {row.group for row in kept}.isdisjoint({row.group for row in aside}) and len(kept) == 9 and len(aside) == 3
    assert kept + aside != rows and sorted(map(str, kept + aside)) == sorted(map(str, rows))
    assert [len(part) for part in split_held_out(rows, share=0.001, seed=0)] == [9, 3]
    assert [len(part) for part in split_held_out(rows, share=0.999, seed=0)] == [3, 9]
    assert [len(part) for part in split_held_out([replace(row, group="") for row in rows], share=0.5, seed=0)] == [6, 6]
    assert split_held_out(rows, share=0.0, seed=0) == (rows, [])
    with pytest.raises(DataFormatError, match="at least two problems: got 1"):
        split_held_out(rows[:3], share=0.3, seed=0)


def test_only_the_newest_and_the_best_checkpoints_stay(start: Path, tmp_path: Path) -> None:
    """With checkpoints at every update the last three stay while training goes on, and the best one where rows are held out."""
    seen: list[set[str]] = []

    def look(step: int, *_: object) -> None:
        seen.append({path.name for path in (tmp_path / "out.work").glob("checkpoint-*")})

    settings = replace(SETTINGS, checkpoint_every=1, keep_checkpoints=3)
    train_sft(start, random_traces(), tmp_path / "out", settings, renderer_hash=HASH, on_progress=look)
    assert seen[-1] == {"checkpoint-3", "checkpoint-4", "checkpoint-5"}
    fast = replace(settings, keep_checkpoints=1, held_out=0.25, learning_rate=0.1, schedule="constant", warmup_ratio=0.0)
    report = train_sft(start, random_traces(), tmp_path / "out", fast, renderer_hash=HASH, on_progress=look)
    assert seen[-1] == {f"checkpoint-{report.best_update}", f"checkpoint-{report.updates - 1}"}


@pytest.mark.parametrize("packed", [True, False])
def test_the_learning_rate_falls_linearly_by_default(start: Path, tmp_path: Path, packed: bool) -> None:
    """TensorBoard is told a rise over one of ten updates and a straight fall to 0, and its files outlive the work directory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = replace(SETTINGS, max_updates=10, epochs=9.0, warmup_ratio=0.1, report_to=("tensorboard",), packed=packed)
    report = train_sft(start, random_traces(), tmp_path / "out", settings, renderer_hash=HASH)
    events = EventAccumulator(str(tmp_path / "out.logs")).Reload()
    rates = [event.value for event in events.Scalars("train/learning_rate")]
    assert rates == pytest.approx([0.0, *(1e-3 * (10 - step) / 9 for step in range(1, 10))], abs=1e-9)
    assert events.Scalars("train/loss")[-1].value == pytest.approx(report.last_loss)


@pytest.mark.parametrize("tracker", ["wandb", "trackio", "mlflow"])
def test_a_missing_tracker_is_named_before_training(start: Path, tmp_path: Path, tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install, and nothing is written."""
    monkeypatch.setattr("stepladder.lm.trackers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"'{tracker}'.* -- pip install {tracker}"):
        train_sft(start, random_traces(), tmp_path / "out", replace(SETTINGS, report_to=(tracker,)), renderer_hash=HASH)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        (SETTINGS, "set micro_batch_size to 2: now 4 rows"),
        (replace(SETTINGS, micro_batch_size=2), "set micro_batch_size to 1: now 2 rows"),
        (replace(SETTINGS, micro_batch_size=1), "set gradient_checkpointing = true"),
        (replace(SETTINGS, micro_batch_size=1, gradient_checkpointing=True), "set bf16 = true"),
        (replace(SETTINGS, micro_batch_size=1, gradient_checkpointing=True, bf16=True), "train adapters only"),
    ],
)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "cpu"])
def test_a_lack_of_memory_names_the_setting_to_change(
    start: Path, tmp_path: Path, settings: TrainSettings, remedy: str, error: Exception | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever allocator gives up inside the model, the error says in which update and what to set; other errors stay as they are."""
    raised = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried") if error == "cpu" else error

    def fail(*_: object, **__: object) -> None:
        raise raised  # pyright: ignore[reportGeneralTypeIssues]

    layer = "transformers.models.qwen2.modeling_qwen2.Qwen2MLP.forward"
    monkeypatch.setattr(layer, fail)
    with pytest.raises(BackendError, match=f"out of memory in update 1 of .* -- {remedy}"):
        train_sft(start, random_traces(), tmp_path / "out", settings, renderer_hash=HASH)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(layer, lambda *_, **__: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        train_sft(start, random_traces(), tmp_path / "out", settings, renderer_hash=HASH)


def test_the_rows_of_a_pass_are_those_of_a_process() -> None:
    """Of 64 rows, four processes forward 16 each, so 8 is what to set next; of 3 rows, each forwards one."""
    assert "set micro_batch_size to 8: now 16 rows" in memory_remedy(TrainSettings(batch_size=64), num_processes=4)
    assert "gradient_checkpointing" in memory_remedy(TrainSettings(batch_size=3), num_processes=4)


def test_weights_in_four_bits_need_bitsandbytes(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the message says what to install; with it, the weights are asked for in NF4 with quantised scales."""
    settings = replace(SETTINGS, lora=LoraSettings(r=2, four_bit=True))
    monkeypatch.setattr("stepladder.lm.adapters.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        train_sft(start, random_traces(), tmp_path / "out", settings, renderer_hash=HASH)
    monkeypatch.setattr("stepladder.lm.adapters.find_spec", lambda name: name)
    asked = quantization(settings.lora)
    assert asked is not None and (asked.load_in_4bit, asked.bnb_4bit_quant_type, asked.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert quantization(LoraSettings()) is None and quantization(None) is None


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_adapters_on_four_bit_weights_are_merged_into_what_they_were_trained_on(start: Path, tmp_path: Path) -> None:
    """The output is a plain float32 directory; its weights are the rounded ones plus a change of low rank, and the loss has fallen."""
    settings = replace(SETTINGS, lora=LoraSettings(r=2, alpha=8, four_bit=True), learning_rate=1e-2, epochs=6.0)
    report = train_sft(start, random_traces(), tmp_path / "out", settings, renderer_hash=HASH)
    assert report.last_loss < report.first_loss
    before, after = (load_file(path / "model.safetensors") for path in (start, tmp_path / "out"))
    assert before.keys() == after.keys() and not json.loads((tmp_path / "out" / "config.json").read_text()).get("quantization_config")
    rounded = load_causal_lm(start, device="cpu", quantization=quantization(settings.lora)).dequantize().state_dict()  # pyright: ignore
    name = "model.layers.0.self_attn.q_proj.weight"
    assert 0 < float((rounded[name].float() - before[name]).norm()) < 0.2 * float(before[name].norm())
    assert np.linalg.matrix_rank((after[name] - rounded[name].float()).numpy(), tol=1e-3) == 2
