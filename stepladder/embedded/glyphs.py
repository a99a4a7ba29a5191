"""The embedded task: glyph programs.

A problem is four digits and a chain of glyphs. Each glyph stands for one of a dozen functions on lists of four digits; which one is hidden.
A solution applies the glyphs from left to right, one step each, and every step names the glyph, *the function taken for it*, and the list
that results:

    4172 αγ          question
    α reverse 2714   step: α is taken for reverse
    γ up = 3825      last step: the list behind "=" is the final answer

The label of a problem is its final list only. The warm-up's teacher executes every function correctly but holds wrong beliefs about some
glyphs, the same wrong beliefs in every solution, with little or very little mass on the right meaning. So a model warmed up on its
solutions is well-formed and weak, and must find out by search what the glyphs mean. Judging is easier than proposing, because the
interpretation stands in the step; and of ten thousand lists chance rarely hits the right one, so a right answer nearly always means right
steps. Everything here is a pure function of a seed.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Digits = tuple[int, int, int, int]

FUNCTIONS: dict[str, Callable[[Digits], Digits]] = {
    "reverse": lambda x: (x[3], x[2], x[1], x[0]),
    "left": lambda x: (x[1], x[2], x[3], x[0]),
    "right": lambda x: (x[3], x[0], x[1], x[2]),
    "halves": lambda x: (x[2], x[3], x[0], x[1]),
    "ends": lambda x: (x[3], x[1], x[2], x[0]),
    "middle": lambda x: (x[0], x[2], x[1], x[3]),
    "pairs": lambda x: (x[1], x[0], x[3], x[2]),
    "front": lambda x: (x[1], x[0], x[2], x[3]),
    "up": lambda x: tuple((a + 1) % 10 for a in x),  # type: ignore[return-value]
    "down": lambda x: tuple((a - 1) % 10 for a in x),  # type: ignore[return-value]
    "flip": lambda x: tuple(9 - a for a in x),  # type: ignore[return-value]
    "ramp": lambda x: tuple((a + i + 1) % 10 for i, a in enumerate(x)),  # type: ignore[return-value]
}
"""What a glyph can stand for, by name."""
GLYPHS = "αβγδεζηθικλμνξοπρστυφχψωБГДЖЗИЛЦЧШЩЭЮЯ"
"""The glyphs, each one token."""
PROMPT_TEMPLATE = "{question}\n"
STEP_END = "\n"
ANSWER_PATTERN = r"= (\d{4})"


@dataclass(frozen=True, kw_only=True, slots=True)
class GlyphTask:
    """Size and difficulty of the task."""

    num_glyphs: int = 20
    """Glyphs in use, at most ``len(GLYPHS)``."""
    chain_length: int = 4
    """Glyphs of a problem, all different."""
    right_masses: tuple[float, ...] = (0.3, 0.3, 0.1, 0.1, 0.03, 0.03, 0.03)
    """One entry per glyph about which the teacher is wrong: the mass that it leaves on the right meaning. What is easy to find is found in the
    first round, and makes what is hard findable in the next."""
    wrong_mass: float = 0.6
    """Mass of the teacher's main wrong belief about such a glyph; the rest is spread over all other functions."""
    num_warmup: int = 12_000
    """Solved problems for the warm-up."""
    num_train: int = 400
    """Problems that are searched."""
    num_held_out: int = 200
    """Problems on which the gates decide."""
    num_test: int = 300
    """Problems that are only reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What the glyphs mean, and what the teacher believes."""

    meanings: dict[str, str]
    """Glyph -> function name: the truth."""
    beliefs: dict[str, dict[str, float]]
    """Glyph -> function name -> mass: the teacher's."""

    def execute(self, digits: Digits, glyphs: str) -> Digits:
        """Return what a chain of glyphs makes of four digits."""
        for glyph in glyphs:
            digits = FUNCTIONS[self.meanings[glyph]](digits)
        return digits


def make_world(task: GlyphTask, *, seed: int) -> World:
    """Draw meanings and beliefs; every function is used about equally often."""
    rng = random.Random(f"world {seed}")
    glyphs, names = list(GLYPHS[: task.num_glyphs]), list(FUNCTIONS)
    drawn: list[str] = []
    while len(drawn) < len(glyphs):
        drawn += rng.sample(names, len(names))
    meanings = dict(zip(glyphs, drawn, strict=False))
    beliefs = {glyph: {meaning: 1.0} for glyph, meaning in meanings.items()}
    for glyph, mass in zip(rng.sample(glyphs, len(task.right_masses)), task.right_masses, strict=True):
        right = meanings[glyph]
        wrong = rng.choice([name for name in names if name != right])
        rest = (1.0 - mass - task.wrong_mass) / (len(names) - 2)
        beliefs[glyph] = {name: mass if name == right else task.wrong_mass if name == wrong else rest for name in names}
    return World(meanings=meanings, beliefs=beliefs)


def draw_questions(task: GlyphTask, *, seed: int) -> Iterator[str]:
    """Yield questions without end, no two alike: whatever is cut from this stream is disjoint."""
    rng, seen = random.Random(f"questions {seed}"), set()
    while True:
        digits = "".join(str(rng.randrange(10)) for _ in range(4))
        question = f"{digits} {''.join(rng.sample(GLYPHS[: task.num_glyphs], task.chain_length))}"
        if question not in seen:
            seen.add(question)
            yield question


def answer(world: World, question: str) -> str:
    """Return the final list of a question."""
    digits, glyphs = _parse(question)
    return _text(world.execute(digits, glyphs))


def teacher_solution(world: World, question: str, *, rng: random.Random) -> str:
    """Return a solution in which every glyph is taken for what the teacher believes at that moment, and every function executed rightly."""
    digits, glyphs = _parse(question)
    lines = []
    for i, glyph in enumerate(glyphs):
        belief = world.beliefs[glyph]
        (name,) = rng.choices(list(belief), weights=list(belief.values()))
        digits = FUNCTIONS[name](digits)
        lines.append(f"{glyph} {name} {'= ' if i == len(glyphs) - 1 else ''}{_text(digits)}\n")
    return "".join(lines)


def is_clean(world: World, question: str, solution: str) -> bool:
    """Say whether every step of a solution is right: glyph, meaning and list. For evaluation only; nothing is trained on it."""
    digits, glyphs = _parse(question)
    expected = []
    for i, glyph in enumerate(glyphs):
        digits = FUNCTIONS[world.meanings[glyph]](digits)
        expected.append(f"{glyph} {world.meanings[glyph]} {'= ' if i == len(glyphs) - 1 else ''}{_text(digits)}\n")
    return solution == "".join(expected)


def _parse(question: str) -> tuple[Digits, str]:
    digits, glyphs = question.split(" ")
    a, b, c, d = map(int, digits)
    return (a, b, c, d), glyphs


def _text(digits: Digits) -> str:
    return "".join(map(str, digits))
