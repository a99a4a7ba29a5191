"""The test problems of a round: which are wrong and why, and what a policy wrote before and writes now."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol

from stepladder.data.store import read_columns
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.evaluation_rows import (
    SolvedRow,
    all_pools,
    all_solved,
    evaluation_shards,
    read_solved,
    searched_questions,
    solved_problems,
)
from stepladder.loops.runs.results import RoundRow

MOST_TEXT = 600
"""Characters of a question or solution in a list."""
_EXAMPLES = 3


class Failure(StrEnum):
    """Why the search answered a problem wrongly, the nearest cause."""

    NO_ANSWER = "no answer"
    """No solution of the tree states an answer."""
    PREFERRED = "the PRM preferred a wrong one"
    """The tree has a right solution, and the PRM scores the chosen wrong one higher."""
    OUTVOTED = "outvoted"
    """The tree has a right solution with the higher score, and other answers had more votes or value."""
    NOT_FOUND = "not found"
    """No solution of the tree is right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrongProblem:
    """A test problem that the search answered wrongly."""

    problem_id: str
    """Key of the problem."""
    question: str
    """The question, cut."""
    answer: str | None
    """The given answer, cut; None without one."""
    failure: Failure
    """Why."""
    greedy: bool | None
    """Whether the policy alone is right; None if it was not asked."""
    sampled: float | None
    """Share of right independent samples, in [0, 1]; None without samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BeforeAfter:
    """One problem as the first policy and the best one solve it, greedily."""

    problem_id: str
    """Key of the problem."""
    question: str
    """The question."""
    before: SolvedRow
    """By the first policy."""
    after: SolvedRow
    """By the best policy."""


def wrong_problems(run: RunDir, number: int) -> list[WrongProblem]:
    """Return the test problems that a round's search answered wrongly, in the order of the problems.

    Raises:
        CheckpointError: If an evaluation file is damaged.
    """
    folder = run.evaluation(number, "test")
    greedy = solved_problems(folder / "greedy")
    sampled = {
        row.problem_id: sum(sample.correct for sample in row.samples) / max(len(row.samples), 1) for row in all_pools(folder / "samples")
    }
    found = []
    for path in evaluation_shards(folder / "search"):
        wrong = {row.problem_id: row for row in read_solved(path) if not row.correct}
        trees = _trees(path, wrong)
        for problem_id, row in wrong.items():
            tree = trees.get(problem_id)
            found.append(
                WrongProblem(
                    problem_id=problem_id,
                    question="" if tree is None else cut(tree.question),
                    answer=None if row.answer is None else cut(row.answer),
                    failure=failure_of(row, tree),
                    greedy=greedy.get(problem_id),
                    sampled=sampled.get(problem_id),
                )
            )
    return found


class ScoredAnswers(Protocol):
    """What is looked at in a tree; a ``TreeRecord`` has it."""

    @property
    def answers(self) -> Sequence[str | None]:
        """Answer of every node; None without one."""
        ...

    @property
    def scores(self) -> Sequence[float | None]:
        """Score of every node by the PRM, in [0, 1]; None without one."""
        ...


class _Searched(NamedTuple):
    question: str
    answers: Sequence[str | None]
    scores: Sequence[float | None]


def failure_of(row: SolvedRow, tree: ScoredAnswers | None) -> Failure:
    """Return why a search gave no right answer, as far as its row and its tree tell."""
    right = set(row.right_answers or ())
    if row.answer is None and not right:
        return Failure.NO_ANSWER
    if not right:
        return Failure.NOT_FOUND
    if tree is None:
        return Failure.OUTVOTED
    chosen, best = _best_score(tree, {row.answer}), _best_score(tree, right)
    return Failure.PREFERRED if chosen is not None and best is not None and chosen > best else Failure.OUTVOTED


def _best_score(tree: ScoredAnswers, answers: Container[str | None]) -> float | None:
    scores = [tree.scores[node] for node, answer in enumerate(tree.answers) if answer is not None and answer in answers]
    return max((score for score in scores if score is not None), default=None)


def _trees(path: Path, wanted: Mapping[str, SolvedRow]) -> dict[str, _Searched]:
    """Return what is looked at in the trees beside a shard of rows; the texts and tokens of their steps are not read."""
    file = path.with_suffix(".parquet")
    if not wanted or not file.exists():
        return {}
    rows = read_columns(file, ["problem_id", *_Searched._fields]).to_pylist()
    return {name: _Searched(**row) for row in rows if (name := row.pop("problem_id")) in wanted}


def before_and_after(run: RunDir, rows: list[RoundRow]) -> list[BeforeAfter]:
    """Return some test problems with the greedy solutions of the first and of the best policy, those first that were learned.

    Raises:
        CheckpointError: If an evaluation file is damaged.
    """
    best = rows[-1].best_policy
    if best == 0:
        return []
    before, after = ({row.problem_id: row for row in all_solved(run.evaluation(number, "test") / "greedy")} for number in (0, best))
    shared = [name for name in before if name in after and before[name].text and after[name].text]
    # What was learned, then what both get wrong in different ways: a page with nothing but successes shows half of the truth.
    learned = [name for name in shared if after[name].correct and not before[name].correct]
    open_still = [name for name in shared if not after[name].correct and before[name].text != after[name].text]
    chosen = (learned[:_EXAMPLES] + open_still[: _EXAMPLES - len(learned[:_EXAMPLES])]) or shared[:_EXAMPLES]
    questions = searched_questions(run.evaluation(best, "test") / "search")
    return [BeforeAfter(problem_id=name, question=questions.get(name, name), before=before[name], after=after[name]) for name in chosen]


def cut(text: str) -> str:
    """Return a text that is not too long for a list."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} …"
