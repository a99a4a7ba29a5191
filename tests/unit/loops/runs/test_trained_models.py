"""A trained model that has changed since is refused by whatever of the run uses it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from stepladder.data.store import write_table
from stepladder.errors import CheckpointError
from stepladder.loops.config.training import WarmupConfig
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.results import LabelCounts, RowCounts
from stepladder.loops.runs.trained_models import check_trained, digest_file, seal_model
from tests.report_run import SEARCH, config, row


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory in the place of a round's policy, sealed."""
    folder = tmp_path / "rounds/001/models/policy"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(5000))
    seal_model(folder)
    return folder


def test_one_changed_bit_is_noticed(model: Path, tmp_path: Path) -> None:
    """The sentence names the model and the round to remove; restored, the model is used again."""
    run = RunDir(root=tmp_path)
    assert run.policy_source(1, config()) == str(model)
    weights = model / "model.safetensors"
    weights.write_bytes(bytes(4000) + b"\x01" + bytes(999))
    said = f"^{model}: must be what the run trained: .* -- restore it, or remove {tmp_path}/rounds/001 and later rounds"
    with pytest.raises(CheckpointError, match=said):
        run.policy_source(1, config())
    weights.write_bytes(bytes(5000))
    assert run.policy_source(1, config()) == str(model)


@pytest.mark.parametrize("change", ["new file", "missing file", "other digest", "foreign digest"])
def test_any_other_change_is_noticed(model: Path, change: str) -> None:
    """Files that came or went, and a digest that is not this model's."""
    if change == "new file":
        (model / "adapter_config.json").write_text("{}")
    elif change == "missing file":
        (model / "config.json").unlink()
    else:
        digest_file(model).write_bytes(b"0" * 32 if change == "other digest" else b"\xff\x00")
    with pytest.raises(CheckpointError, match=f"^{model}"):
        check_trained(model)


@pytest.mark.parametrize("digest", ["kept", "gone"])
def test_a_removed_model_is_not_replaced_by_the_base_model(model: Path, tmp_path: Path, digest: str) -> None:
    """Whoever frees space is told; round 0 trained nothing, and its version is the base model."""
    shutil.rmtree(model)
    if digest == "gone":
        digest_file(model).unlink()
    run = RunDir(root=tmp_path)
    with pytest.raises(CheckpointError, match=f"^{model}: must be what the run trained: there is no such directory -- restore it"):
        run.policy_source(1, config())
    assert config().warmup.solutions is None and run.policy_source(0, config()) == config().policy.model
    warmed_up = config().model_copy(update={"warmup": WarmupConfig(solutions="solved.jsonl")})
    with pytest.raises(CheckpointError, match=f"^{run.policy(0)}: must be what the run trained"):
        run.policy_source(0, warmed_up)


def test_a_removed_model_is_still_the_newest(model: Path, tmp_path: Path) -> None:
    """A round that starts from the last model does not start from an older one instead."""
    run = RunDir(root=tmp_path)
    run.policy(0).mkdir(parents=True)
    shutil.rmtree(model)
    assert run.newest(run.policy, 2) == 1


@pytest.fixture
def rounds(tmp_path: Path) -> RunDir:
    """A run whose first round is finished: two shards of three pairs each, traces and revisions in one folder, and trees."""
    run = RunDir(root=tmp_path)
    counts = {kind: RowCounts(kept=kept) for kind, kept in {"traces": 3, "revisions": 1, "pairs": 6, "values": 0}.items()}
    for number in range(2):
        for kind, rows in {"traces": 2, "pairs": 3, "values": 0, "trees": 4}.items():
            write_table(run.shard(1, kind, number), pa.table({"row": list(range(rows))}))
    figures = row(1, policy=0.5, search=0.5, majority=0.5)
    finished = replace(figures, labels=LabelCounts(**counts), search=replace(SEARCH, trees=8))
    (run.round(1) / "round.json").write_text(json.dumps(finished.to_dict()))
    return run


def test_a_lost_shard_of_a_finished_round_is_noticed(rounds: RunDir) -> None:
    """Rows of a round that lacks one are not taken for all of its rows; a kind that the round does not have is none."""
    paths = [rounds.shard(1, "pairs", number) for number in range(2)]
    assert rounds.kept_shards("pairs", [1, 2]) == paths and rounds.kept_shards("graded", [1]) == []
    paths[1].unlink()
    said = f"^{paths[1]}: must be there: round 1 wrote it and is finished -- restore it, or remove {rounds.round(1)} and later rounds"
    with pytest.raises(CheckpointError, match=said):
        rounds.kept_shards("pairs", [1])
    # An unfinished round makes it again.
    (rounds.round(1) / "round.json").unlink()
    assert rounds.kept_shards("pairs", [1]) == paths[:1]


@pytest.mark.parametrize(("kind", "number"), [("traces", 4), ("pairs", 6), ("trees", 8)])
def test_a_lost_folder_of_a_finished_round_is_noticed(kind: str, number: int, rounds: RunDir) -> None:
    """Its figures say how many rows there were; values, of which there were none, are not missed."""
    assert len(rounds.kept_shards(kind, [1])) == 2
    for folder in (kind, "values"):
        shutil.rmtree(rounds.round(1) / folder)
    said = f"^{rounds.round(1) / kind}: must hold the {number} rows that round 1 wrote: got 0 -- restore it, or remove"
    with pytest.raises(CheckpointError, match=said):
        rounds.kept_shards(kind, [1])
    assert rounds.kept_shards("values", [1]) == []


def test_an_emptied_shard_of_a_finished_round_is_noticed(rounds: RunDir) -> None:
    """A shard without rows is a whole file, and a round may write one; this one did not."""
    write_table(rounds.shard(1, "pairs", 0), pa.table({"row": pa.array([], pa.int64())}))
    with pytest.raises(CheckpointError, match=r"pairs: must hold the 6 rows that round 1 wrote: got 3 -- restore it"):
        rounds.kept_shards("pairs", [1])


def test_what_was_not_written_is_read_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is read in full once per process, until something is written into it."""
    check_trained(model)
    monkeypatch.setattr("stepladder.digests.digest_of", None)
    check_trained(model)
    os.utime(model / "config.json", ns=(1, 1))
    with pytest.raises(TypeError):
        _reread(model)


def _reread(model: Path) -> None:
    from stepladder.digests import current_digest

    current_digest(model)


def test_models_of_earlier_versions_are_taken_as_they_are(model: Path) -> None:
    """Their runs have no digests."""
    digest_file(model).unlink()
    (model / "config.json").write_text("[]")
    check_trained(model)
