"""Text that the tokenizer of a policy has no token for, in prompts, written solutions and the marks of a format.

A policy cannot read such text, and cannot write it, whatever it learns. Many a tokenizer made by hand says nothing of it. A byte-level
tokenizer has a token for every byte, so that nothing is found.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stepladder.data.datasets.problems import SeedSolution
from stepladder.errors import ConfigError
from stepladder.loops.config.problems import FormatConfig
from stepladder.types import Problem

if TYPE_CHECKING:
    from stepladder.policy.prompts import PromptRenderer

_SHOWN = 5
"""Pieces of text that a message shows."""
_READ = 256
"""Solutions that are read; all others only if none of these can be written."""
_ATOM = re.compile(
    r"\\(?P<escaped>\W)|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{[\d,]*\}|(?P<open>\()|(?P<close>\))|[.^$?*+]|(?P<plain>.)", re.DOTALL
)
_REMEDY = "take a policy whose tokenizer has them"


class UnknownText(NamedTuple):
    """Text without tokens in one place."""

    place: str
    """A split, a file or a setting."""
    found: str
    """Where in it, and which text."""
    policy: str
    """The policy with the tokenizer."""
    follows: str
    """What follows from it, and what helps."""

    @property
    def kind(self) -> str:
        """``tokenizer``."""
        return "tokenizer"

    @property
    def sentence(self) -> str:
        """The finding in words, without what follows from it."""
        return f"{self.place}: {self.found}, for which the tokenizer of {self.policy} has no token"

    @property
    def warning(self) -> str:
        """The sentence to show."""
        return f"{self.sentence}: {self.follows}"


def unknown_in_format(renderer: "PromptRenderer", stated: FormatConfig, *, policy: str) -> list[UnknownText]:
    """Return what is unknown of the text around questions, of the end of steps and thinking blocks, and of what states an answer.

    Args:
        renderer: Makes prompts with the policy's tokenizer.
        stated: The format.
        policy: Name of the policy, for messages.
    """
    found = []
    if around := renderer.unknown_in_prompt(""):
        follows = f"the policy cannot read it -- leave it out, or {_REMEDY}"
        found.append(UnknownText("format", f"the text around a question holds {_shown(around)}", policy, follows))
    unread = f"no answer can be read from what it writes -- choose another, or {_REMEDY}"
    marks = [
        ("step_end", stated.step_end if stated.steps == "text" else "", f"no step ends there -- choose another, or {_REMEDY}"),
        ("thinking_end", stated.thinking_end or "", unread),
        ("answer_pattern", _answer_mark(stated), unread),
    ]
    for name, text, follows in marks:
        if pieces := renderer.unknown_in(text):
            found.append(UnknownText(f"format.{name}", f"needs {_shown(pieces)}", policy, follows))
    return found


def unknown_in_prompts(
    renderer: "PromptRenderer", split: str, problems: Sequence[Problem], *, policy: str, apart: Iterable[str] = ()
) -> list[UnknownText]:
    """Return what is unknown in the prompts of problems: one finding, or none.

    Args:
        renderer: Makes prompts with the policy's tokenizer.
        split: Name of the problems.
        problems: Those to read.
        policy: Name of the policy, for messages.
        apart: Pieces of text that are reported elsewhere.
    """
    known = set(apart)
    pieces = {problem.id: [each for each in renderer.unknown_in_prompt(problem.question) if each not in known] for problem in problems}
    holding = [id for id, each in pieces.items() if each]
    if not holding:
        return []
    text = f"the prompt of problem {holding[0]!r} holds {_shown(pieces[holding[0]])}"
    text += f", and {len(holding)} of {len(pieces)} that were read hold such text" if len(holding) > 1 else ""
    return [UnknownText(split, text, policy, f"the policy cannot read it -- leave it out, or {_REMEDY}")]


def unknown_in_solutions(renderer: "PromptRenderer", source: Path, solutions: Sequence[SeedSolution], *, policy: str) -> list[UnknownText]:
    """Return what is unknown in written solutions, of which 256 are read, and all if none of these can be written.

    Args:
        renderer: Encodes solutions with the policy's tokenizer.
        source: The file, for messages.
        solutions: At least one.
        policy: Name of the policy, for messages.

    Raises:
        ConfigError: If the tokenizer cannot write any of them.
    """
    pieces = {each.id: renderer.unknown_in(each.solution) for each in solutions[:_READ]}
    holding = [id for id, each in pieces.items() if each]
    if not holding:
        return []
    text = _shown(pieces[holding[0]])
    if len(holding) == len(pieces) and all(renderer.unknown_in(each.solution) for each in solutions[_READ:]):
        raise ConfigError(
            f"{source}: the tokenizer of {policy} must have tokens for a solution: it has none for {text}, which solution {holding[0]!r} "
            f"holds, and for parts of every other one -- write them without, or {_REMEDY}"
        )
    found = f"solution {holding[0]!r} holds {text}"
    found += f", and {len(holding)} of {len(pieces)} that were read hold such text" if len(holding) > 1 else ""
    return [UnknownText(str(source), found, policy, f"the policy cannot learn to write it -- leave it out, or {_REMEDY}")]


def _shown(pieces: Sequence[str]) -> str:
    first = ", ".join(f"{piece[:20]!r}" for piece in pieces[:_SHOWN])
    return first if len(pieces) <= _SHOWN else f"{first} and {len(pieces) - _SHOWN} more"


def _answer_mark(stated: FormatConfig) -> str:
    """Return text without which a solution states no answer; empty if there is no such text."""
    if stated.answer == "solution":
        return ""
    return "\\boxed{}" if stated.answer_pattern is None else fixed_text(stated.answer_pattern)


def fixed_text(pattern: str) -> str:
    """Return the characters that every match of a regular expression holds, of those that its text shows: outside of groups, not optional.

    Empty where that is not plain to see, because of alternatives or flags.
    """
    if "|" in pattern or "(?" in pattern:
        return ""
    found, depth = [], 0
    for atom in _ATOM.finditer(pattern):
        depth += (atom["open"] is not None) - (atom["close"] is not None)
        if depth == 0 and pattern[atom.end() : atom.end() + 1] not in ("?", "*", "{"):
            found.append(atom["escaped"] or atom["plain"] or "")
    return "".join(found)
