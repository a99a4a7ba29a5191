"""What a round knows of every training problem: from the tables of earlier rounds, its graded samples and its finished trees."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepladder.data.store import read_columns
from stepladder.loops.runs.problem_table import Attempt, next_table, read_problem_table, write_problem_table
from stepladder.loops.stages.context import RoundContext
from stepladder.loops.stages.kinds import ROLLOUTS, TREES
from stepladder.mcts.allocation import ProblemState


def problem_states(context: RoundContext, number: int, trees: Sequence[Path]) -> list[ProblemState]:
    """Return what is known of every training problem within a round.

    Args:
        context: The run.
        number: The round.
        trees: Shards of the trees that the round has searched so far.
    """
    before = read_problem_table(_table_path(context, number - 1))
    sampled = _spent(attempts(context.run.shards(ROLLOUTS.name, rounds=[number]))) if context.config.prm.samples_first else {}
    searched = _spent(attempts(trees))
    states = []
    for labelled in context.problems["train"]:
        key = labelled.problem.id
        known, own, first = before.get(key), searched.get(key, _NOTHING), sampled.get(key, _NOTHING)
        states.append(
            ProblemState(
                problem_id=key,
                pass_rate=None if known is None else known.pass_rate,
                solved_before=known is not None and known.solved_round is not None,
                trees=own.attempts,
                tokens=own.tokens,
                sampled_tokens=first.tokens,
                solved=own.solved or first.solved,
            )
        )
    return states


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spent:
    """What was done for a problem."""

    attempts: int = 0
    tokens: int = 0
    solved: bool = False


_NOTHING = _Spent()


def _spent(found: Sequence[Attempt]) -> dict[str, _Spent]:
    spent: dict[str, _Spent] = {}
    for each in found:
        so_far = spent.get(each.problem_id, _NOTHING)
        spent[each.problem_id] = _Spent(
            attempts=so_far.attempts + 1, tokens=so_far.tokens + each.tokens, solved=so_far.solved or each.solved
        )
    return spent


def attempts(shards: Sequence[Path]) -> list[Attempt]:
    """Return the attempts in shards of trees or rollouts, without reading the trees themselves."""
    found = []
    for path in shards:
        for row in read_columns(path, ["problem_id", "generated_tokens", "outcomes"]).to_pylist():
            outcomes = [outcome for outcome in row["outcomes"] if outcome is not None]
            found.append(Attempt(problem_id=row["problem_id"], tokens=row["generated_tokens"], outcomes=outcomes))
    return found


def write_problems(context: RoundContext, number: int) -> None:
    """Write the table of the round's problems from its trees and rollouts, if it is not there yet."""
    path = _table_path(context, number)
    if path.exists():
        return
    table = next_table(
        [labelled.problem.id for labelled in context.problems["train"]],
        read_problem_table(_table_path(context, number - 1)),
        number=number,
        trees=attempts(context.paths(number, TREES)),
        rollouts=attempts(context.run.shards(ROLLOUTS.name, rounds=[number])),
    )
    write_problem_table(path, table)


def _table_path(context: RoundContext, number: int) -> Path:
    return context.run.round(number) / "problems.parquet"
