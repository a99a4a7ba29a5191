"""What a run directory holds, read from Python."""

from pathlib import Path

import pytest

from stepladder.data.store import write_trees
from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.loops.runs.directory import RunDir
from tests.trees import tree


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Rounds 1 and 3 have two trees in the first shard and one in the second; round 1 has one of its evaluation."""
    run = RunDir(root=tmp_path / "run")
    run.round(0).mkdir(parents=True)
    for number in (1, 3):
        write_trees(run.shard(number, "trees", 1), [tree((-1, 0.5, None), (0, 1.0, 1.0), problem_id=f"{number}-c")])
        write_trees(run.shard(number, "trees", 0), [tree((-1, None, None), problem_id=f"{number}-{each}") for each in "ab"])
    write_trees(run.evaluation(1, "test") / "search" / "shard-0000.parquet", [tree((-1, None, None), problem_id="asked")])
    return run


def test_trees_of_a_round_come_in_the_order_of_its_shards(run: RunDir) -> None:
    """They are the records that were written, those of another round and of the evaluation apart."""
    found = list(run.trees(round=3))
    assert [each.problem_id for each in found] == ["3-a", "3-b", "3-c"]
    assert found[2] == tree((-1, 0.5, None), (0, 1.0, 1.0), problem_id="3-c")
    assert [each.problem_id for each in run.trees(round=1, split="test")] == ["asked"]


def test_a_shard_is_read_when_its_first_tree_is_due(run: RunDir) -> None:
    """A damaged second shard is met after the trees of the first."""
    run.shard(1, "trees", 1).write_bytes(b"damaged")
    trees = run.trees(round=1)
    assert [next(trees).problem_id, next(trees).problem_id] == ["1-a", "1-b"]
    with pytest.raises(DataFormatError, match=r"shard-0001\.parquet"):
        next(trees)


def test_a_round_without_trees_is_refused_with_those_that_have_some(run: RunDir) -> None:
    """At once, before the first tree is asked for; a split that no round searched, too."""
    for number in (0, 2, 7):
        with pytest.raises(CheckpointError, match=rf"run: round {number} must have trees of train problems: .* with them are 1, 3 -- "):
            run.trees(round=number)
    with pytest.raises(CheckpointError, match=r"of held_out problems: it has none; no round has any -- look at another split$"):
        run.trees(round=1, split="held_out")
    with pytest.raises(ConfigError, match=r"^split: must be one of train, held_out, test: got 'dev' -- "):
        run.trees(round=1, split="dev")  # pyright: ignore[reportArgumentType]
