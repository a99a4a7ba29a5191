"""Shards: what is written is read back, byte for byte the same, whole or not at all."""

import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stepladder.data import store
from stepladder.errors import CheckpointError, DataFormatError
from stepladder.types import GradedRow, PreferencePair, Provenance, Trace, TreeRecord, ValueRow

PROVENANCE = Provenance(round=3, policy_version=2, scorer_version=1, seed=2**62, config_hash="c" * 16, renderer_hash="r" * 16)

TREE = TreeRecord(
    problem_id="ä/𝒳",
    question="Q\n\u2028\x00",
    prompt_ids=[1, 2],
    method="mcts",
    parents=[-1, 0, 0],
    depths=[0, 1, 1],
    token_ids=[[], [7, 8], []],
    logps=[[], [-0.1, -1e-300], []],
    texts=["", "step", ""],
    priors=[1.0, 0.1 + 0.2, 0.0],
    scores=[None, 0.25, None],
    visits=[2, 1, 0],
    values=[0.5, 1.0, None],
    stop_reasons=["step", "end", "error"],
    answers=[None, "1", None],
    outcomes=[None, 1.0, 0.0],
    generated_tokens=2,
    policy_calls=1,
    scored_tokens=2,
    num_simulations=2,
    given_ids=[[], [9], []],
    given_texts=["", "é", ""],
    provenance=PROVENANCE,
)
TRACE = Trace(
    problem_id="p",
    prompt_ids=[1],
    completion_ids=[2, 3],
    prompt="Q",
    completion="ab",
    mean_value=0.1,
    completion_given=[False, True],
    provenance=replace(PROVENANCE, scorer_version=None),
)
PAIR = PreferencePair(
    problem_id="p",
    prompt_ids=[1],
    chosen_ids=[2],
    rejected_ids=[3],
    prompt="Q",
    chosen="a",
    rejected="b",
    chosen_value=0.9,
    rejected_value=0.1,
    depth=1,
    chosen_visits=9,
    rejected_visits=3,
    chosen_logps=[-0.25],
    rejected_logps=[-1e-300],
    agreement=1 / 3,
    uncertainty=None,
    chosen_given=[False, True, False],
    rejected_given=[],
    provenance=PROVENANCE,
)
GRADED = GradedRow(
    problem_id="p",
    prompt_ids=[1],
    completion_ids=[2, 3],
    good=False,
    value=0.1,
    prompt_value=0.1 + 0.2,
    prompt="Q\n",
    completion="ab",
    logps=[-0.5, 0.0],
    completion_given=[False, True],
    provenance=PROVENANCE,
)
VALUE = ValueRow(
    problem_id="p",
    prompt_ids=[1],
    step_ids=[[2], [3, 4]],
    targets=[None, 1 / 3],
    prompt="Q",
    steps=["a", "bc"],
    provenance=PROVENANCE,
    given_ids=[[5, 6], []],
    given_texts=["", "\u2028"],
)

KINDS = {
    "trees": (store.TREES, store.write_trees, store.read_trees, TREE),
    "traces": (store.TRACES, store.write_traces, store.read_traces, TRACE),
    "pairs": (store.PAIRS, store.write_pairs, store.read_pairs, PAIR),
    "graded": (store.GRADED, store.write_graded, store.read_graded, GRADED),
    "values": (store.VALUES, store.write_values, store.read_values, VALUE),
}


@pytest.fixture(params=KINDS)
def shard(request, tmp_path):
    """(path, kind, writer, reader, record) of one kind."""
    return tmp_path / "shard-0000.parquet", *KINDS[request.param]


def test_records_survive_unchanged(shard):
    """Unicode, nulls inside lists, empty lists, the smallest floats and the largest seeds come back as they were."""
    path, _, write, read, record = shard
    records = [record, replace(record, problem_id="other")]
    write(path, records)
    assert read(path) == records
    assert [type(value) for value in read(path)[0].prompt_ids] == [int] * len(record.prompt_ids)


def test_every_field_is_stored(shard):
    """The written-out schema names exactly the fields of the record and of its provenance."""
    _, kind, _, _, record = shard
    expected = [field.name for field in fields(record) if field.name not in ("provenance",)]
    assert sorted(kind.columns) == sorted(expected)
    assert kind.schema.names[-6:] == [field.name for field in fields(Provenance)]


def test_empty_shard_keeps_its_type(shard):
    """No rows is a valid shard with the same schema as a full one."""
    path, kind, write, read, record = shard
    write(path, [])
    assert read(path) == []
    empty = pq.read_schema(path)
    assert (empty.names, empty.metadata) == (kind.schema.names, kind.schema.metadata)
    write(path, [record])
    assert pq.read_schema(path).equals(empty, check_metadata=True)


def test_files_of_earlier_releases_are_read(shard):
    """A file without the columns that came later gives the same records with their defaults; one without another column is refused."""
    path, kind, write, read, record = shard
    bare = replace(record, **{name: [] for name in kind.later})
    write(path, [bare])
    table = store.read_table(path, kind)
    assert kind.later
    store.write_table(path, table.drop_columns(list(kind.later)))
    assert read(path) == [bare]
    store.write_table(path, table.drop_columns([*kind.later, "prompt_ids"]))
    with pytest.raises(DataFormatError, match=f"must be a shard of {kind.name}"):
        read(path)


def test_bytes_depend_on_the_records_alone(shard, tmp_path):
    """Another name, another place and a second time give the same bytes."""
    path, _, write, _, record = shard
    write(path, [record] * 300)
    other = tmp_path / "deep" / "er" / "shard-0007.parquet"
    write(other, [record] * 300)
    assert other.read_bytes() == path.read_bytes()


def test_bytes_are_equal_in_another_process(tmp_path):
    """A fresh process with another hash seed writes the same bytes."""
    script = (
        "import sys, pathlib\n"
        "from tests.unit.data.test_store import TREE\n"
        "from stepladder.data.store import write_trees\n"
        "write_trees(pathlib.Path(sys.argv[1]), [TREE])\n"
    )
    store.write_trees(tmp_path / "here", [TREE])
    env = {**os.environ, "PYTHONHASHSEED": "123"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "there")], check=True, env=env, cwd=Path(__file__).parents[3])
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


def test_foreign_files_are_refused(tmp_path):
    """Another kind, another version, no shard, no Parquet, nothing: one sentence that names the file."""
    pairs = tmp_path / "pairs"
    store.write_pairs(pairs, [PAIR])
    with pytest.raises(DataFormatError, match="pairs: must be a shard of trees, schema version 1: got pairs, version 3"):
        store.read_trees(pairs)
    newer = store.PAIRS.schema.with_metadata({b"stepladder.kind": b"pairs", b"stepladder.schema_version": b"9"})
    pq.write_table(pq.read_table(pairs).cast(newer), tmp_path / "newer")
    with pytest.raises(DataFormatError, match="newer: must be a shard of pairs, schema version 3: got pairs, version 9"):
        store.read_pairs(tmp_path / "newer")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "plain")
    (tmp_path / "text").write_text("no parquet")
    for name in ("plain", "text", "missing"):
        with pytest.raises(DataFormatError, match=f"{name}: must be a .*shard of pairs"):
            store.read_pairs(tmp_path / name)


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    """A disk that fills up while writing is one sentence; the shard that stood there still stands, and nothing else does."""
    path = tmp_path / "shard-0000.parquet"
    store.write_pairs(path, [PAIR])
    before = path.read_bytes()

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.pq, "write_table", full_disk)
    with pytest.raises(CheckpointError, match="the disk is full"):
        store.write_pairs(path, [PAIR, PAIR])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_real_full_device_is_recognised(tmp_path, monkeypatch):
    """The error number of a device that is really full reaches the explanation through Parquet's writer."""
    real_open = Path.open

    def open_full(self, mode="r", *args, **kwargs):
        return real_open(Path("/dev/full") if "w" in mode else self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        store.write_pairs(tmp_path / "shard", [PAIR])
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_byte_is_noticed(tmp_path):
    """Wherever a bit of a page or of the footer changes, the shard is refused with its path, or what is read is what was written."""
    path = tmp_path / "shard-0000.parquet"
    store.write_trees(path, [TREE] * 3)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 13):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            assert store.read_trees(path) == [TREE] * 3
        except DataFormatError as error:
            assert str(error).startswith(f"{path}")
            refused += 1
    assert refused > len(whole) // 13 // 2
    path.write_bytes(whole)
    with pq.ParquetFile(path) as file:
        column = file.metadata.row_group(0).column(0)
        last = column.dictionary_page_offset + column.total_compressed_size - 1
    path.write_bytes(whole[:last] + bytes([whole[last] ^ 1]) + whole[last + 1 :])
    with pytest.raises(DataFormatError, match="CRC checksum verification failed"):
        store.read_trees(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depths": [0, 1]}, "'depths' must have an entry for each of the 3 nodes: got 2"),
        ({"parents": [-1, 2, 0]}, "the parent of node 1 must stand before it"),
        ({"parents": [-1, -1, 0]}, "the parent of node 1 must stand before it"),
        ({"depths": [0, 1, 2]}, "the parent of node 2 must stand before it, one step nearer"),
        ({"parents": [0, 0, 0]}, "node 0 must be the root"),
        ({"logps": [[], [-0.1], []]}, "every token must have its log-probability"),
        ({"visits": [2, None, 0]}, "values of 'visits' are missing"),
        ({"token_ids": [[], [None, 8], []]}, "values of 'token_ids' are missing"),
        ({"question": None}, "values of 'question' are missing"),
        ({"given_ids": [[1]]}, "'given_ids' must be empty or have an entry for each of the 3 nodes: got 1"),
        ({"given_texts": []}, "'given_ids' must be empty or have an entry for each of the 3 nodes"),
    ],
)
def test_a_tree_that_is_none_is_refused(tmp_path, changes, said):
    """Lists of unequal length, children before parents and missing values are found when the shard is read, not somewhere later."""
    path = tmp_path / "shard-0000.parquet"
    store.write_trees(path, [TREE, replace(TREE, **changes)])
    with pytest.raises(DataFormatError, match=re.escape(said)):
        store.read_trees(path)


def test_columns_of_other_types_are_refused(tmp_path):
    """The names of the columns are not enough: a shard whose visits are text is no shard of trees."""
    path = tmp_path / "shard-0000.parquet"
    store.write_trees(path, [TREE])
    table = store.read_table(path, store.TREES)
    at = table.schema.names.index("generated_tokens")
    changed = table.set_column(at, pa.field("generated_tokens", pa.string()), pa.array(["2"]))
    store.write_table(path, changed.replace_schema_metadata(table.schema.metadata))
    with pytest.raises(DataFormatError, match="must be a shard of trees"):
        store.read_trees(path)
