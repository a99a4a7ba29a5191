r"""Glyph programs: a task whose rules a policy can discover only by search.

A question is a list of different digits and a program, a chain of glyphs (capital letters): ``47193 GBAF``. Every glyph stands for one of
a dozen list functions. This hidden meaning is drawn from the world's seed and written nowhere. A solution has one step per glyph. A step
names the glyph, the assumed function, and the resulting list; the last step marks its list as the answer::

    G reverse 39174
    B up 40285
    A left 02854
    F flip = 97145

A teacher writes the solved examples of the warm-up. It executes every function correctly but holds wrong beliefs about some glyphs. A
policy trained on these examples writes well-formed solutions and repeats the teacher's errors. Only the final answers of the training
problems can correct it. Judging is easier than proposing here, because each step states its interpretation. A wrong path rarely ends in the
right answer: no two functions agree on any list of different digits. So at least two steps must be wrong, and their errors must cancel,
among 30240 lists.

Everything is derived from a seed. Standard library only.
"""

import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from stepladder.errors import ConfigError
from stepladder.types import derive_seed

Digits = tuple[int, ...]

LIST_LENGTH = 5
STEP_END = "\n"
ANSWER_MARK = "= "
PROMPT_TEMPLATE = "{question}\n"
ANSWER_PATTERN = r"= (\d+)"

FUNCTIONS: dict[str, Callable[[Digits], Digits]] = {
    "reverse": lambda x: x[::-1],
    "left": lambda x: x[1:] + x[:1],
    "right": lambda x: x[-1:] + x[:-1],
    "ends": lambda x: x[-1:] + x[1:-1] + x[:1],
    "inner": lambda x: x[:1] + x[-2:0:-1] + x[-1:],
    "front": lambda x: (x[1], x[0], *x[2:]),
    "back": lambda x: (*x[:-2], x[-1], x[-2]),
    "middle": lambda x: (x[0], x[2], x[1], *x[3:]),
    "up": lambda x: tuple((digit + 1) % 10 for digit in x),
    "down": lambda x: tuple((digit - 1) % 10 for digit in x),
    "flip": lambda x: tuple(9 - digit for digit in x),
    "triple": lambda x: tuple(3 * digit % 10 for digit in x),
}
"""The functions that a glyph can stand for. All are one-to-one and turn different digits into different digits. No two of them agree on
any list of different digits, so a solution with one wrong step never ends in the right answer."""

SPLIT_SHARES = {"warmup": 6, "train": 2, "held_out": 1, "test": 1}
"""Tenths of all programs in each split. A program belongs to one split only, whatever digits it is applied to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GlyphTask:
    """The size and the difficulty of the task.

    Raises:
        ConfigError: On construction, if a value is impossible.
    """

    num_glyphs: int = 20
    """Glyphs of the world, the first capital letters; program_length to 26."""
    program_length: int = 4
    """Glyphs per program, all different, >= 1; one step each."""
    right_shares: tuple[float, ...] = (0.3, 0.25, 0.2, 0.2, 0.15, 0.15, 0.1, 0.1)
    """One entry per misread glyph: how often the teacher still takes the right function. The smaller the share, the later a policy finds
    the meaning. Different shares spread the discoveries over the rounds."""
    wrong_share: float = 0.6
    """How often the teacher takes one fixed wrong function for a misread glyph. The other functions share the rest."""
    num_warmup: int = 12000
    """Solved examples of the teacher."""
    num_train: int = 800
    """Number of problems to search; only their final answers are known."""
    num_held_out: int = 200
    """Problems for the gate."""
    num_test: int = 300
    """Number of problems for the reported figures."""

    def __post_init__(self) -> None:
        if not 1 <= self.program_length <= self.num_glyphs <= len(string.ascii_uppercase):
            raise ConfigError(
                f"glyph task: 1 <= program_length <= num_glyphs <= 26 must hold: got program_length={self.program_length!r}, "
                f"num_glyphs={self.num_glyphs!r}"
            )
        if len(self.right_shares) > self.num_glyphs:
            raise ConfigError(f"glyph task: right_shares must have at most one entry per glyph: got {len(self.right_shares)}")
        if any(share < 0 or share + self.wrong_share > 1 for share in self.right_shares) or self.wrong_share < 0:
            raise ConfigError(
                "glyph task: shares must not be negative, nor right and wrong together above 1: "
                f"got {self.right_shares!r}, {self.wrong_share!r}"
            )

    @property
    def glyphs(self) -> str:
        """The glyphs of the world, in alphabetical order."""
        return string.ascii_uppercase[: self.num_glyphs]


@dataclass(frozen=True, kw_only=True, slots=True)
class GlyphProblem:
    """A list and a program."""

    digits: Digits
    """The list that the program starts from."""
    program: str
    """Glyphs, applied from left to right."""

    @property
    def question(self) -> str:
        """The text of the question."""
        return f"{_written(self.digits)} {self.program}"

    @classmethod
    def from_question(cls, question: str) -> "GlyphProblem":
        """Read a question back."""
        digits, program = question.split(" ")
        return cls(digits=tuple(map(int, digits)), program=program)


@dataclass(frozen=True, kw_only=True, slots=True)
class GlyphWorld:
    """The meanings of the glyphs, and the teacher's beliefs about them."""

    seed: int
    """Seed of the world."""
    meanings: dict[str, str]
    """The function of every glyph; hidden."""
    beliefs: dict[str, dict[str, float]]
    """Per glyph, how often the teacher takes each function; sums to 1."""

    @property
    def misread(self) -> str:
        """Glyphs that the teacher misreads, in the order of ``right_shares``."""
        return "".join(glyph for glyph, belief in self.beliefs.items() if belief.get(self.meanings[glyph]) != 1.0)

    def lists(self, problem: GlyphProblem) -> list[Digits]:
        """Return the right list after every glyph of a program."""
        lists, current = [], problem.digits
        for glyph in problem.program:
            current = FUNCTIONS[self.meanings[glyph]](current)
            lists.append(current)
        return lists

    def answer(self, problem: GlyphProblem) -> str:
        """Return the final answer of a problem."""
        return _written(self.lists(problem)[-1])


def make_world(task: GlyphTask, *, seed: int) -> GlyphWorld:
    """Draw the meanings of the glyphs and the teacher's wrong beliefs.

    The functions are used evenly: the numbers of glyphs per function differ by at most one.
    """
    rng = random.Random(derive_seed("glyph world", seed))
    names: list[str] = []
    while len(names) < task.num_glyphs:
        names += rng.sample(list(FUNCTIONS), len(FUNCTIONS))
    meanings = dict(zip(task.glyphs, names, strict=False))
    misread = rng.sample(task.glyphs, len(task.right_shares))
    beliefs = {
        glyph: _wrong_belief(meanings[glyph], right=share, wrong=task.wrong_share, rng=rng)
        for glyph, share in zip(misread, task.right_shares, strict=True)
    }
    beliefs |= {glyph: {meanings[glyph]: 1.0} for glyph in task.glyphs if glyph not in beliefs}
    return GlyphWorld(seed=seed, meanings=meanings, beliefs=beliefs)


def _wrong_belief(meaning: str, *, right: float, wrong: float, rng: random.Random) -> dict[str, float]:
    others = [name for name in FUNCTIONS if name != meaning]
    favourite = rng.choice(others)
    rest = (1.0 - right - wrong) / (len(others) - 1)
    return {name: right if name == meaning else wrong if name == favourite else rest for name in FUNCTIONS}


def problem_stream(task: GlyphTask, *, seed: int, split: str) -> Iterator[GlyphProblem]:
    """Yield distinct problems of a split, until they run out.

    Splits share no program, and so no question. The seed and the program alone decide the split.
    """
    rng = random.Random(derive_seed("glyph problems", seed, split))
    seen: set[GlyphProblem] = set()
    misses = 0
    while misses < 10_000:
        digits = tuple(rng.sample(range(10), LIST_LENGTH))
        problem = GlyphProblem(digits=digits, program="".join(rng.sample(task.glyphs, task.program_length)))
        misses += 1
        if problem not in seen and split_of(problem.program, seed=seed) == split:
            misses = 0
            seen.add(problem)
            yield problem


def split_of(program: str, *, seed: int) -> str:
    """Return the split that a program belongs to."""
    place = derive_seed("glyph split", seed, program) % sum(SPLIT_SHARES.values())
    for split, share in SPLIT_SHARES.items():
        place -= share
        if place < 0:
            return split
    raise AssertionError("the shares cover every place")


def problem_rows(task: GlyphTask, world: GlyphWorld, split: str) -> list[dict[str, Any]]:
    """Return the rows ``{id, question, answer}`` of a split."""
    size = {"train": task.num_train, "held_out": task.num_held_out, "test": task.num_test}[split]
    problems = _take(problem_stream(task, seed=world.seed, split=split), size, split)
    return [
        {"id": f"{split}-{index:04d}", "question": problem.question, "answer": world.answer(problem)}
        for index, problem in enumerate(problems)
    ]


def warmup_rows(task: GlyphTask, world: GlyphWorld) -> list[dict[str, Any]]:
    """Return the teacher's solved examples as rows ``{id, question, solution}``; many of them are wrong, in a consistent way."""
    rng = random.Random(derive_seed("glyph teacher", world.seed))
    problems = _take(problem_stream(task, seed=world.seed, split="warmup"), task.num_warmup, "warmup")
    return [
        {"id": f"warmup-{index:05d}", "question": problem.question, "solution": teacher_solution(world, problem, rng)}
        for index, problem in enumerate(problems)
    ]


def _take(problems: Iterator[GlyphProblem], size: int, split: str) -> list[GlyphProblem]:
    taken = list(islice(problems, size))
    if len(taken) < size:
        raise ConfigError(f"glyph task: split {split!r} must have {size} different problems: got {len(taken)} -- use longer programs")
    return taken


def teacher_solution(world: GlyphWorld, problem: GlyphProblem, rng: random.Random) -> str:
    """Return a solution in which every function is drawn from the teacher's belief and executed correctly."""
    functions = [rng.choices(list(belief), list(belief.values()))[0] for belief in map(world.beliefs.__getitem__, problem.program)]
    return write_solution(problem, functions)


def write_solution(problem: GlyphProblem, functions: list[str]) -> str:
    r"""Return the solution that takes the given function for each glyph.

    Example: ``47193 GB`` with ``reverse`` and ``up`` is ``"G reverse 39174\nB up = 40285\n"``.
    """
    steps, current = [], problem.digits
    for place, (glyph, function) in enumerate(zip(problem.program, functions, strict=True), 1):
        current = FUNCTIONS[function](current)
        mark = ANSWER_MARK if place == len(problem.program) else ""
        steps.append(f"{glyph} {function} {mark}{_written(current)}{STEP_END}")
    return "".join(steps)


def check_steps(world: GlyphWorld, question: str, steps: list[str]) -> list[bool]:
    """Say for every step whether it is right: the next glyph, its meaning, the function applied to the previous list, and the mark.

    For evaluation only: no verifier of final answers knows this. A step is judged by the list that the previous step wrote, so a step after
    a wrong one can be right. After a step with an unreadable list, every step is wrong.
    """
    problem = GlyphProblem.from_question(question)
    verdicts: list[bool] = []
    before: Digits | None = problem.digits
    for place, step in enumerate(steps):
        glyph = problem.program[place] if place < len(problem.program) else None
        right = before is not None and glyph is not None and step == _right_step(world, problem, place, before)
        verdicts.append(right)
        before = _read_list(step)
    return verdicts


def is_clean(world: GlyphWorld, question: str, steps: list[str]) -> bool:
    """Say whether a solution is complete and right in every step."""
    return len(steps) == len(GlyphProblem.from_question(question).program) and all(check_steps(world, question, steps))


def _right_step(world: GlyphWorld, problem: GlyphProblem, place: int, before: Digits) -> str:
    glyph = problem.program[place]
    mark = ANSWER_MARK if place == len(problem.program) - 1 else ""
    meaning = world.meanings[glyph]
    return f"{glyph} {meaning} {mark}{_written(FUNCTIONS[meaning](before))}{STEP_END}"


def _read_list(step: str) -> Digits | None:
    text = step.removesuffix(STEP_END).rpartition(" ")[2]
    return tuple(map(int, text)) if len(text) == LIST_LENGTH and text.isascii() and text.isdigit() else None


def _written(digits: Digits) -> str:
    return "".join(map(str, digits))
