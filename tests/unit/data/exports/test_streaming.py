"""What an export keeps of a data set of any size: questions that are looked up, splits, and figures in a bounded memory."""

import random
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pytest

from stepladder.data.exports import figures
from stepladder.data.exports.dataset import _taken
from stepladder.data.exports.figures import Distinct, Spread
from stepladder.data.exports.questions import StoredQuestions
from stepladder.data.exports.shards import OpenShard, inner_sizes, python_values
from stepladder.data.store import TREES, read_trees, write_records, write_trees
from stepladder.errors import DataFormatError
from tests.trees import random_tree


def write_questions(root: Path, *shards: dict[str, str], round: str = "001") -> list[Path]:
    """Write a shard of trees for each mapping of ids to questions."""
    paths = []
    for number, questions in enumerate(shards):
        path = root / round / "trees" / f"shard-{number:04d}.parquet"
        write_trees(path, [replace(random_tree(0), problem_id=name, question=question) for name, question in questions.items()])
        paths.append(path)
    return paths


def test_questions_come_from_the_shard_beside_and_from_others_only_if_need_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's problem is mostly in the tree shard of the same name; a problem that is nowhere is left out."""
    trees = write_questions(tmp_path, {"a": "A?", "b": "B?"}, {"c": "C?"})
    questions, pairs = StoredQuestions(trees, {"k": "K?"}), tmp_path / "001" / "pairs" / trees[1].name
    assert questions.of(pairs, {"a", "c", "k", "nowhere"}) == {"a": "A?", "c": "C?", "k": "K?"}
    trees[0].unlink()
    assert questions.of(pairs, {"c"}) == {"c": "C?"}


def test_problems_with_one_question_have_one_split_key(tmp_path: Path) -> None:
    """The smallest id among them, wherever they are, and however the question is written; others have no entry."""
    trees = write_questions(tmp_path, {"b": "What is 1+1?", "d": "Other?"}, {"c": "what  is 1+1?", "b": "What is 1+1?"})
    assert StoredQuestions(trees, {"z": "WHAT IS 1+1?", "y": "Third?"}).split_keys() == {"b": "b", "c": "b", "z": "b"}
    assert StoredQuestions(trees[:1], {}).split_keys() == {}


def test_numbers_that_agree_are_compared_word_by_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Different questions with the same number of eight bytes stay apart."""
    monkeypatch.setattr("stepladder.data.exports.questions.short_number", len)
    trees = write_questions(tmp_path, {"a": "one?", "bb": "two?", "ccc": "one?"})
    assert StoredQuestions(trees, {}).split_keys() == {"a": "a", "bb": "bb", "ccc": "a"}


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_spread_is_that_of_all_numbers(count: int) -> None:
    """Mean, extremes and median, however the numbers come."""
    numbers = np.random.default_rng(count).choice([-2.5, 0.0, 1 / 3, 7.0], count)
    spread = Spread()
    for part in np.array_split(numbers, 5):
        spread.add(part)
    assert (spread.count, spread.smallest, spread.largest) == (count, min(numbers), max(numbers))
    assert spread.mean == pytest.approx(sum(numbers) / count, rel=1e-12)
    assert spread.median == median(numbers.tolist())


def test_spread_of_many_values_keeps_four_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of different values the memory no longer grows, and the median is right to the digits that are shown."""
    monkeypatch.setattr(figures, "_MOST_VALUES", 50)
    numbers = np.concatenate([[0.0, -0.0], -(10.0 ** np.random.default_rng(0).uniform(0, 1, 30_001))])
    spread = Spread()
    for part in np.array_split(numbers, 9):
        spread.add(part)
    # From 1.000 to 10.00, and 0.
    assert len(spread._counts) <= 9002 < len(set(numbers.tolist()))
    assert spread.median == pytest.approx(np.median(numbers), rel=5e-4)


def test_distinct_counts_every_name_once() -> None:
    """Also over several additions."""
    names = Distinct()
    assert len(names) == 0
    names.add(["a", "b", "a"])
    names.add(["b", "ü"])
    assert len(names) == 3


@pytest.mark.parametrize(
    "values",
    [
        [[1, 2], [], [3]],
        [[[1.5], []], [], [[2.0, -0.0]]],
        [["a", None], ["b"]],
        [[1.0, None], [2.0]],
        [[[True], [False, True]]],
        [None, [1]],
        [{"role": "user"}],
        [],
    ],
)
def test_python_values_are_those_of_arrow(values: list) -> None:
    """Lists of numbers take the short way, everything else Arrow's own; slices, too."""
    array = pa.array(values)
    assert python_values(array) == array.to_pylist()
    assert python_values(array[1:]) == array[1:].to_pylist()


@pytest.mark.parametrize("places", [[0], [0, 1, 2, 3], [3], [0, 2], [1, 2, 3], [0, 1, 3]])
def test_rows_of_a_split_are_copied_in_runs(places: list[int]) -> None:
    """As one by one, and in one piece."""
    rows = pa.table({"a": ["w", "x", "y", "z"], "b": [[1], [], None, [2, 3]]})
    taken = _taken(rows, np.array(places))
    assert taken.to_pylist() == [rows.to_pylist()[place] for place in places]
    assert taken["b"].num_chunks == 1


def test_inner_lists_are_counted() -> None:
    """By row, with empty ones in between."""
    array = pa.array([[[1, 2], []], [], [[3]], [[]]], type=pa.list_(pa.list_(pa.int64())))
    assert inner_sizes(array).tolist() == [2, 0, 1, 0]
    assert inner_sizes(array[:0]).tolist() == []


def test_records_read_like_those_of_their_class(tmp_path: Path) -> None:
    """Every field of every tree, provenance and the defaults of absent columns included; nothing else is a field."""
    path, records = tmp_path / "shard.parquet", [random_tree(seed) for seed in range(30)]
    write_trees(path, records)
    stored = OpenShard.read(path, TREES).records()
    for record, found in zip(read_trees(path), stored, strict=True):
        assert all(getattr(found, name) == getattr(record, name) for name in [*TREES.columns, "provenance"])
    num_tokens = sum(len(ids) for record in records for ids in record.token_ids)
    assert OpenShard.read_trees(path, ["parents", "depths"]).count_values("token_ids") == num_tokens
    some = OpenShard.read_trees(path, ["parents", "depths", "token_ids"])
    assert inner_sizes(some.column("token_ids")).tolist() == [sum(map(len, record.token_ids)) for record in records]
    assert some.records()[0].qvalues == []
    with pytest.raises(AttributeError, match="colour"):
        _ = stored[0].colour


@pytest.mark.parametrize("seed", range(20))
def test_what_no_reader_takes_is_refused_with_the_readers_words(tmp_path: Path, seed: int) -> None:
    """One number of one tree is changed, or one entry removed: the fast check and the exact one agree."""
    rng = random.Random(seed)
    records = [random_tree(number) for number in range(6)]
    broken = rng.choice([record for record in records if len(record.parents) > 3])
    name = rng.choice(["parents", "depths", "visits", "texts", "logps"])
    values = list(getattr(broken, name))
    if name in ("parents", "depths"):
        values[rng.randrange(len(values))] = rng.choice([-2, 99])
    elif name == "logps":
        values[-1] = [*values[-1], -0.5]
    else:
        values.pop()
    path = tmp_path / "shard.parquet"
    write_records(path, [replace(record, **{name: values}) if record is broken else record for record in records], TREES)
    with pytest.raises(DataFormatError) as expected:
        read_trees(path)
    with pytest.raises(DataFormatError) as found:
        OpenShard.read(path, TREES)
    assert str(found.value) == str(expected.value)
