"""The questions of an export, read from its shards of trees when they are needed, and never all at once."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from stepladder.data.datasets.problems import normalise_question
from stepladder.data.store import read_columns
from stepladder.digests import short_number


class StoredQuestions:
    """Questions of problems by their ids."""

    def __init__(self, trees: Sequence[Path], known: Mapping[str, str]) -> None:
        """Read nothing yet.

        Args:
            trees: Shards of trees.
            known: Questions of problems without a tree there.
        """
        self._trees, self._known = trees, known
        self._by_place = {(path.parents[1], path.name): path for path in trees}

    def of(self, shard: Path, ids: set[str]) -> dict[str, str]:
        """Return the questions of some problems that a shard has rows of; those that are not found are left out.

        The shard of trees of the same name in the same round is read first, and all others only if it lacks a problem.
        """
        found = {name: self._known[name] for name in ids & self._known.keys()}
        beside = self._by_place.get((shard.parents[1], shard.name))
        for path in [*([] if beside is None else [beside]), *(path for path in self._trees if path != beside)]:
            if len(found) == len(ids):
                break
            found |= {name: question for name, question in _rows(path) if name in ids}
        return found

    def split_keys(self) -> dict[str, str]:
        """Return the split keys of the problems that ask the same question as another one: the smallest id among them.

        All others are their own keys. Only numbers of eight bytes are held for each problem: a first pass finds the questions that
        several problems may ask, and a second one compares these word by word.
        """
        numbers = array("Q")
        for name, question in self._questions():
            numbers.extend((short_number(question), short_number(name)))
        pairs = np.unique(np.frombuffer(numbers, dtype=np.uint64).reshape(-1, 2), axis=0)[:, 0]
        repeated = set(pairs[1:][pairs[1:] == pairs[:-1]].tolist())
        if not repeated:
            return {}
        groups: dict[str, set[str]] = {}
        for name, question in self._questions():
            if short_number(question) in repeated:
                groups.setdefault(question, set()).add(name)
        return {name: min(group) for group in groups.values() for name in group}

    def _questions(self) -> Iterator[tuple[str, str]]:
        """Yield ids and normalised questions."""
        for name, question in self._known.items():
            yield name, normalise_question(question)
        for path in self._trees:
            for name, question in _rows(path):
                yield name, normalise_question(question)


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    table = read_columns(path, ["problem_id", "question"])
    yield from zip(table["problem_id"].to_pylist(), table["question"].to_pylist(), strict=True)
