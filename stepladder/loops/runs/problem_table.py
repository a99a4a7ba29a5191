"""The table of a round's training problems: what was spent on each, what was found, and the pass rate known since.

One row per problem, in the order of the problem file, in ``problems.parquet`` of the round. The next round shares out its budget by it
(``search.allocation``); rates and solved problems are carried along.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from stepladder.data.store import read_parquet, write_table
from stepladder.errors import DataFormatError

_SCHEMA = pa.schema(
    {
        "problem_id": pa.string(),
        "trees": pa.int64(),
        "generated_tokens": pa.int64(),
        "ends": pa.int64(),
        "right": pa.int64(),
        "pass_rate": pa.float64(),
        "solved_round": pa.int64(),
    },
    metadata={b"stepladder.kind": b"problems", b"stepladder.schema_version": b"1"},
)
_REMEDY = "remove the round's directory and later ones, and run evolve again"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemRow:
    """A training problem after a round."""

    problem_id: str
    """Key of the problem."""
    trees: int = 0
    """Trees that the round searched for it."""
    generated_tokens: int = 0
    """Tokens that the round generated for it, in trees and graded rollouts."""
    ends: int = 0
    """Graded ends of the rollouts, or of the trees if there are no rollouts; samples count as often as they were drawn."""
    right: int = 0
    """Right ones among them."""
    pass_rate: float | None = None
    """``right / ends`` of the last round that had ends, in [0, 1]; None before the first."""
    solved_round: int | None = None
    """First round that found a right solution; None if none has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One searched tree, or the rollouts, of a problem."""

    problem_id: str
    """Key of the problem."""
    tokens: int
    """Tokens generated."""
    outcomes: Sequence[float]
    """Outcomes of its graded ends, 1.0 or 0.0."""

    @property
    def solved(self) -> bool:
        """Whether a right solution is among the ends."""
        return 1.0 in self.outcomes


def next_table(
    problem_ids: Sequence[str],
    before: Mapping[str, ProblemRow],
    *,
    number: int,
    trees: Iterable[Attempt],
    rollouts: Iterable[Attempt] = (),
) -> list[ProblemRow]:
    """Return the table of a round.

    Args:
        problem_ids: The training problems, in file order.
        before: Rows of the round before, by problem.
        number: The round.
        trees: Its searched trees; a problem may have several.
        rollouts: Its graded rollouts.
    """
    searched, sampled = _by_problem(trees), _by_problem(rollouts)
    return [_row(before.get(key, ProblemRow(problem_id=key)), number, searched.get(key, []), sampled.get(key, [])) for key in problem_ids]


def _by_problem(attempts: Iterable[Attempt]) -> dict[str, list[Attempt]]:
    found: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        found.setdefault(attempt.problem_id, []).append(attempt)
    return found


def _row(before: ProblemRow, number: int, trees: list[Attempt], rollouts: list[Attempt]) -> ProblemRow:
    outcomes = [outcome for attempt in rollouts for outcome in attempt.outcomes]
    outcomes = outcomes or [outcome for attempt in trees for outcome in attempt.outcomes]
    solved = any(attempt.solved for attempt in (*trees, *rollouts))
    return ProblemRow(
        problem_id=before.problem_id,
        trees=len(trees),
        generated_tokens=sum(attempt.tokens for attempt in (*trees, *rollouts)),
        ends=len(outcomes),
        right=outcomes.count(1.0),
        pass_rate=outcomes.count(1.0) / len(outcomes) if outcomes else before.pass_rate,
        solved_round=number if solved and before.solved_round is None else before.solved_round,
    )


def write_problem_table(path: Path, rows: Sequence[ProblemRow]) -> None:
    """Write the table of a round; errors as for ``stepladder.data.store.write_table``."""
    write_table(path, pa.Table.from_pylist([asdict(row) for row in rows], schema=_SCHEMA))


def read_problem_table(path: Path) -> dict[str, ProblemRow]:
    """Read the table of a round, by problem; empty without a file, as in round 0.

    Raises:
        DataFormatError: If the file is damaged or something else.
    """
    if not path.exists():
        return {}
    table = read_parquet(path, remedy=_REMEDY)
    if not table.schema.equals(_SCHEMA, check_metadata=True):
        raise DataFormatError(f"{path}: must be a table of problems, schema version 1: got columns {table.schema.names} -- {_REMEDY}")
    required = [name for name in _SCHEMA.names if name not in ("pass_rate", "solved_round")]
    if missing := [name for name in required if table[name].null_count]:
        raise DataFormatError(f"{path}: must hold complete rows: values of {missing[0]!r} are missing -- {_REMEDY}")
    return {row["problem_id"]: ProblemRow(**row) for row in table.to_pylist()}
