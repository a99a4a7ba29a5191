"""A run notices that what it reads has changed."""

import os
import shutil

import pytest

from stepladder.errors import CheckpointError
from stepladder.loops.config.load import load_config
from stepladder.loops.runs.directory import RunDir, check_run, open_run
from stepladder.loops.runs.inputs import InputGuard, input_digests


@pytest.fixture
def config(tmp_path):
    """A configuration of two problem files, a model directory and a hub id."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"id": "1", "question": "1+1?", "answer": "2"}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(1000))
    settings = [f"problems.{split}={tmp_path / f'{split}.jsonl'}" for split in ("train", "test")]
    return load_config(None, [*settings, f"policy.model={tmp_path / 'model'}", "prm.model=someone/prm"])


def test_only_what_lies_here_has_a_digest(config):
    """A hub id is the hub's business."""
    assert sorted(input_digests(config)) == ["policy.model", "problems.test", "problems.train"]


def test_a_run_refuses_to_go_on_with_other_problems_or_weights(config, tmp_path):
    """One answer, or one byte of the weights; restored, the run goes on."""
    run = tmp_path / "run"
    open_run(run, config)
    check_run(run, config)
    for name, setting in (("train.jsonl", "problems.train"), ("model/model.safetensors", "policy.model")):
        path = tmp_path / name
        before = path.read_bytes()
        path.write_bytes(before[:-3] + b"\x07" + before[-2:])
        with pytest.raises(CheckpointError, match=f"{setting} must stay what it was when the run began: .* has changed -- restore it"):
            check_run(run, config)
        path.write_bytes(before)
        check_run(run, config)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"problems.test .*: it is gone"):
        check_run(run, config)


def test_a_run_that_is_killed_while_it_begins_can_be_started_again(config, tmp_path, monkeypatch):
    """Whatever it wrote first, it left no directory that is taken for something else."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("stepladder.loops.runs.directory.write_run_json", _killed)
        open_run(tmp_path / "run", config)
    (tmp_path / "run" / ".run.json.machine.7.tmp").write_text("{")
    assert open_run(tmp_path / "run", config).rows() == []


def _killed(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("change", ["shard gone", "folder gone", "data set gone", "other rows", "shard more"])
def test_imported_rows_stay_what_they_were(config, tmp_path, change):
    """A run that lost some would learn from the others; rows that a run makes of imported trees are none of them."""
    run = tmp_path / "run"
    pairs = run / "imported" / "mine" / "pairs"
    pairs.mkdir(parents=True)
    for number in range(2):
        (pairs / f"shard-000{number}.parquet").write_bytes(bytes([number]))
    open_run(run, config)
    guard = InputGuard(config, RunDir(root=run).inputs(), place=run)
    (pairs.parent / "traces").mkdir()
    (pairs.parent / "traces" / "shard-0000.parquet").write_bytes(b"2")
    guard.check()
    check_run(run, config)
    if change == "shard gone":
        (pairs / "shard-0001.parquet").unlink()
    elif change.endswith("gone"):
        shutil.rmtree(pairs if change == "folder gone" else pairs.parent)
    else:
        (pairs / ("shard-0001.parquet" if change == "other rows" else "shard-0002.parquet")).write_bytes(b"3")
    said = r"imported/mine/pairs must stay what it was when the run began: .* -- restore it, or start another run"
    for check in (guard.check, lambda: check_run(run, config)):
        with pytest.raises(CheckpointError, match=said):
            check()


def test_a_guard_reads_again_only_what_was_written(config, tmp_path, monkeypatch):
    """Between stages an unchanged model costs no reading; a file written with the same bytes is fine, other bytes are not."""
    guard = InputGuard(config, input_digests(config), place=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("stepladder.digests.digest_of", None)
        guard.check()
    path = tmp_path / "train.jsonl"
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))
    guard.check()
    path.write_text('{"id": "1", "question": "1+1?", "answer": "3"}\n')
    with pytest.raises(CheckpointError, match=r"problems.train .* has changed"):
        guard.check()
