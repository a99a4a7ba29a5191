"""Prefix reversals: a puzzle whose solutions become exponentially rarer with depth.

A question is a row of the digits 1 to 8: ``37214586``. A move reverses the first 2, 3, 5 or 8 of them, and the goal is ``12345678``. A
solution has one step per move, with the row that results::

    f3 27314586
    f8 68541372
    ...
    f5 12345678

No answer key exists. ``grade`` replays a solution: every step must be a move and the row that it leads to, and the last row the goal.
The warm-up shows how moves work and how to solve rows at most four moves away. Training and test problems lie 5 to 13 moves away, where
sampled solutions are rare. The distance of a row is exact, by breadth-first search. It decides which problems are drawn, and no learner
sees it.

Everything is derived from a seed. Standard library and ``stepladder`` only, as a task of your own would be.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from stepladder.errors import ConfigError
from stepladder.types import derive_seed

GOAL = "12345678"
FLIPS = (2, 3, 5, 8)
"""Lengths of the prefixes that a move may reverse. Every move undoes itself."""
STEP_END = "\n"
PROMPT_TEMPLATE = "{question}\n"
END_PATTERN = f"({GOAL})"
"""A step that states the goal ends the solution; the answer is all of it."""
VERIFIER = f"{__name__}:grade"


@dataclass(frozen=True, kw_only=True, slots=True)
class PuzzleTask:
    """The size and the difficulty of the task.

    Raises:
        ConfigError: On construction, if a value is impossible.
    """

    least_distance: int = 5
    """Fewest moves from a problem to the goal, > ``warmup_distance``."""
    most_distance: int = 13
    """Moves from the hardest problems to the goal, <= 16."""
    train_per_distance: int = 16
    """Problems to search at each distance."""
    held_out_per_distance: int = 4
    """Problems for the gate at each distance."""
    test_per_distance: int = 16
    """Problems for the reported figures at each distance."""
    warmup_distance: int = 4
    """Moves of the scrambles that the warm-up solves at most, >= 1."""
    num_solved: int = 3000
    """Solved examples of the warm-up."""
    num_walks: int = 600
    """Examples of legal moves without an end."""
    walk_steps: int = 22
    """Moves of such an example, and of a solution at most."""

    def __post_init__(self) -> None:
        if not 1 <= self.warmup_distance < self.least_distance <= self.most_distance <= 16:
            raise ConfigError(
                "puzzle task: 1 <= warmup_distance < least_distance <= most_distance <= 16 must hold: got "
                f"{self.warmup_distance!r}, {self.least_distance!r}, {self.most_distance!r}"
            )
        wanted = self.train_per_distance + self.held_out_per_distance + self.test_per_distance
        fewest = min(len(rows_at(distance)) for distance in range(self.least_distance, self.most_distance + 1))
        if min(self.train_per_distance, self.held_out_per_distance, self.test_per_distance) < 1 or wanted > fewest:
            raise ConfigError(f"puzzle task: a distance has {fewest} rows or more, one per split at least: got {wanted} -- ask for fewer")


def flipped(row: str, length: int) -> str:
    """Return a row with its first ``length`` digits reversed."""
    return row[:length][::-1] + row[length:]


@cache
def distances() -> dict[str, int]:
    """Return the fewest moves to the goal from every one of the 40320 rows."""
    found, edge = {GOAL: 0}, [GOAL]
    while edge:
        reached = {flipped(row, length): found[row] + 1 for row in edge for length in FLIPS}
        edge = [row for row in reached if row not in found]
        found |= {row: reached[row] for row in edge}
    return found


@cache
def rows_at(distance: int) -> tuple[str, ...]:
    """Return the rows at a distance from the goal, in order."""
    return tuple(sorted(row for row, moves in distances().items() if moves == distance))


def write_step(row: str, length: int) -> str:
    """Return the step that makes a move: its name and the row that results."""
    return f"f{length} {flipped(row, length)}{STEP_END}"


def problem_rows(task: PuzzleTask, *, seed: int, split: str) -> list[dict[str, Any]]:
    """Return the rows ``{id, question, distance}`` of a split, in mixed order. Splits share no question."""
    sizes = {"train": task.train_per_distance, "held_out": task.held_out_per_distance, "test": task.test_per_distance}
    before = list(sizes).index(split)
    first = sum(list(sizes.values())[:before])
    chosen: list[tuple[str, int]] = []
    for distance in range(task.least_distance, task.most_distance + 1):
        drawn = random.Random(derive_seed("puzzle problems", seed, distance)).sample(rows_at(distance), sum(sizes.values()))
        chosen += [(row, distance) for row in drawn[first : first + sizes[split]]]
    # Problems are in mixed order, so that shards are equally hard.
    random.Random(derive_seed("puzzle order", seed, split)).shuffle(chosen)
    return [{"id": f"{split}-{index:04d}", "question": row, "distance": distance} for index, (row, distance) in enumerate(chosen)]


def warmup_rows(task: PuzzleTask, *, seed: int) -> list[dict[str, Any]]:
    """Return the examples of the warm-up: short solutions, and legal moves that lead nowhere, which are marked as unfinished."""
    rng = random.Random(derive_seed("puzzle warm-up", seed))
    near = [_solved(rng, task) for _ in range(task.num_solved)]
    walks = [_walk(rng, task.walk_steps) for _ in range(task.num_walks)]
    return [
        {"id": f"warmup-{index:05d}", "question": question, "solution": "".join(steps), "finished": index < task.num_solved}
        for index, (question, steps) in enumerate([*near, *walks])
    ]


def _solved(rng: random.Random, task: PuzzleTask) -> tuple[str, list[str]]:
    """Return a scramble and its undoing."""
    moves: list[int] = []
    row = GOAL
    for _ in range(rng.randint(1, task.warmup_distance)):
        # A move right after itself would undo it.
        moves.append(rng.choice([length for length in FLIPS if moves[-1:] != [length]]))
        row = flipped(row, moves[-1])
    return row, list(_written(row, moves[::-1]))


def _written(row: str, moves: Sequence[int]) -> Iterator[str]:
    for length in moves:
        yield write_step(row, length)
        row = flipped(row, length)


def _walk(rng: random.Random, steps: int) -> tuple[str, list[str]]:
    """Return a row far from the goal, and moves from there that come to no row twice and never to the goal."""
    start = row = rng.choice([row for row in rows_at(rng.randint(9, 15))])
    seen, moves = {GOAL, start}, []
    while len(moves) < steps:
        ways = [length for length in FLIPS if flipped(row, length) not in seen]
        if not ways:
            # A dead end is rare; begin again from there.
            return _walk(rng, steps)
        moves.append(rng.choice(ways))
        row = flipped(row, moves[-1])
        seen.add(row)
    return start, list(_written(start, moves))


def grade(question: str, solution: str) -> tuple[bool, str]:
    """Say whether every step is a move with the row that results, and the last row the goal; ``problems.verifier`` names this function."""
    row = question
    for number, step in enumerate(solution.splitlines(), 1):
        legal = {write_step(row, length).strip(): flipped(row, length) for length in FLIPS}
        if step.strip() not in legal:
            return False, f"step {number} is no move"
        row = legal[step.strip()]
    return row == GOAL, "solved" if row == GOAL else "goal not reached"
