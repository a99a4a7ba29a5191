"""The graded rows that evaluations write, one per problem, in shards of JSON beside the trees that a search left.

    greedy    {problem_id, answer, correct, tokens, text}
    search    {problem_id, answer, correct, tokens, anytime: [[tokens, correct], ...], right_answers: [...]}
    samples   {problem_id, samples: [{num_tokens, answer_key, score, correct}, ...]}

Where the verifier gave a number for an answer, its row or sample has it as ``credit``.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import with_config

from stepladder.data.metrics.answers import PoolSample
from stepladder.data.store import read_columns
from stepladder.errors import CheckpointError
from stepladder.files import atomic_write_text, read_json
from stepladder.loops.runs.json_records import CLOSED, record_of

_WHAT = "a stepladder evaluation"
_REMEDY = "remove the file and run evolve again"


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class SolvedRow:
    """The answer of a greedy solution or of a search to one problem."""

    problem_id: str
    """Key of the problem."""
    answer: str | None
    """The final answer; None without any."""
    correct: bool
    """Whether it is right."""
    tokens: int
    """Generated tokens."""
    anytime: tuple[tuple[int, bool], ...] | None = None
    """(generated tokens, whether the answer at that point was right) after each wave of a search; None for a greedy solution."""
    credit: float | None = None
    """The verifier's number for the answer, in [0, 1]; None if it gave none."""
    right_answers: tuple[str, ...] | None = None
    """Right ones among all answers in the tree of a search; None for a greedy solution, and in runs of earlier versions."""
    text: str | None = None
    """A greedy solution, verbatim; None for a search, whose tree is kept, and in runs of earlier versions."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        optional = ("anytime", "credit", "right_answers", "text")
        return {name: value for name, value in asdict(self).items() if value is not None or name not in optional}


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class PoolRow:
    """Independent samples of one problem."""

    problem_id: str
    """Key of the problem."""
    samples: tuple[PoolSample, ...]
    """The samples, in the order in which they were drawn."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        plain = asdict(self)
        for sample in plain["samples"]:
            for name in ("credit", "start_logp", "sound"):
                if sample[name] is None:
                    del sample[name]
        return plain

    @property
    def tokens(self) -> int:
        """Generated tokens."""
        return sum(sample.num_tokens for sample in self.samples)


EvaluationRow = SolvedRow | PoolRow


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class _SolvedShard:
    rows: list[SolvedRow]


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class _PoolShard:
    rows: list[PoolRow]


def write_rows(path: Path, rows: Sequence[EvaluationRow]) -> None:
    """Write one shard of rows.

    Raises:
        CheckpointError: If the place cannot be written.
    """
    atomic_write_text(path, json.dumps({"rows": [row.to_dict() for row in rows]}) + "\n")


def evaluation_shards(folder: Path) -> list[Path]:
    """Return the shards of an evaluation folder, in order."""
    return sorted(folder.glob("shard-*.json"))


def read_solved(path: Path) -> list[SolvedRow]:
    """Return the rows of a shard of greedy solutions or searches.

    Raises:
        CheckpointError: If the file is no such shard.
    """
    plain = read_json(path, what=_WHAT, remedy=_REMEDY)
    return record_of(_SolvedShard, plain, place=path, what=_WHAT, remedy=_REMEDY).rows


def read_pools(path: Path) -> list[PoolRow]:
    """Return the rows of a shard of samples.

    Raises:
        CheckpointError: If the file is no such shard.
    """
    plain = read_json(path, what=_WHAT, remedy=_REMEDY)
    return record_of(_PoolShard, plain, place=path, what=_WHAT, remedy=_REMEDY).rows


def check_problems(path: Path, rows: Sequence[EvaluationRow], problem_ids: Sequence[str]) -> None:
    """Check that a shard has one row for each of its problems, in their order, and no row without samples.

    Args:
        path: The file, for the message.
        rows: Its rows.
        problem_ids: The problems of the shard.

    Raises:
        CheckpointError: If it is otherwise.
    """
    found = [row.problem_id for row in rows]
    if found != list(problem_ids):
        missing = [each for each in problem_ids if each not in found]
        which = f"{missing[0]!r} is missing" if missing else f"got {len(found)} rows in another order, or of other problems"
        raise CheckpointError(f"{path}: must hold one row for each of its {len(problem_ids)} problems: {which} -- {_REMEDY}")
    if empty := [row.problem_id for row in rows if isinstance(row, PoolRow) and not row.samples]:
        raise CheckpointError(f"{path}: must hold samples of every problem: {empty[0]!r} has none -- {_REMEDY}")


def all_solved(folder: Path) -> list[SolvedRow]:
    """Return the rows of a folder of greedy solutions or searches, in order; none without the folder. Errors as for ``read_solved``."""
    return [row for path in evaluation_shards(folder) for row in read_solved(path)]


def solved_problems(folder: Path) -> dict[str, bool]:
    """Return by problem whether the answers in a folder of greedy solutions or searches are right; errors as for ``read_solved``."""
    return {row.problem_id: row.correct for row in all_solved(folder)}


def all_pools(folder: Path) -> list[PoolRow]:
    """Return the rows of a folder of samples, in order; none without the folder. Errors as for ``read_pools``."""
    return [row for path in evaluation_shards(folder) for row in read_pools(path)]


def searched_questions(folder: Path) -> dict[str, str]:
    """Return the questions of a folder of searches by problem id; only trees have them, and a shard may have lost its own.

    Raises:
        DataFormatError: If a file of trees is damaged.
    """
    questions: dict[str, str] = {}
    for path in evaluation_shards(folder):
        if (file := path.with_suffix(".parquet")).exists():
            columns = read_columns(file, ["problem_id", "question"]).to_pydict()
            questions |= dict(zip(columns["problem_id"], columns["question"], strict=True))
    return questions
