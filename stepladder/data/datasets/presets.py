r"""Public sets of mathematical problems by name: where they are, and how their rows are read.

``preset:NAME`` reads the data set from the hub, ``preset:NAME:FILE`` a file of the same layout. Copies of a set differ in their layouts. So
a preset names several fields, and the first that a row has counts. All of them are graded under the rule ``math``.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from stepladder.boxes import boxed_answer, boxes
from stepladder.data.datasets.problems import Loaded, SourceRow, answer_regex, normalise_question, source_rows
from stepladder.data.grading.answers import unreadable_reason
from stepladder.data.grading.rules import AnswerRule
from stepladder.errors import ConfigError, DataFormatError, right_name
from stepladder.types import LabelledProblem, Problem

Role = Literal["train", "test"]
PREFIX = "preset:"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemPreset:
    """The place and layout of a public set of problems."""

    hub: str
    """Id of the data set."""
    subset: str | None = None
    """Configuration of the data set."""
    train: str | None = None
    """Split to train on; None for a set that is made for evaluation."""
    test: str = "test"
    """Split to evaluate on."""
    questions: tuple[str, ...] = ("problem", "question", "Problem")
    """Fields that may hold the question."""
    answers: tuple[str, ...] = ("final_answer", "answer", "Answer", "solution")
    r"""Fields that may hold the answer. A text with a box is read at its last box; a list is joined with commas."""
    answer_pattern: str | None = None
    """Regular expression that reads the answer out of its field."""
    ids: tuple[str, ...] = ("unique_id",)
    """Fields that may hold an id. Without one, the id is a digest of the question, which stays when rows are reordered."""
    level: tuple[str, ...] = ("level", "difficulty")
    """Fields that may hold a level."""


PRESETS: dict[str, ProblemPreset] = {
    "gsm8k": ProblemPreset(hub="openai/gsm8k", subset="main", train="train", answer_pattern=r"####\s*(.+)"),
    "math": ProblemPreset(hub="DigitalLearningGmbH/MATH-lighteval", train="train", answers=("solution", "answer")),
    "math-500": ProblemPreset(hub="HuggingFaceH4/MATH-500"),
    "aime": ProblemPreset(hub="AI-MO/aimo-validation-aime", test="train"),
    "aime-2024": ProblemPreset(hub="HuggingFaceH4/aime_2024", test="train"),
    "aime-2025": ProblemPreset(hub="math-ai/aime25"),
    "amc": ProblemPreset(hub="AI-MO/aimo-validation-amc", test="train"),
    "amc-23": ProblemPreset(hub="math-ai/amc23"),
    "olympiadbench": ProblemPreset(
        hub="Hothan/OlympiadBench", subset="OE_TO_maths_en_COMP", test="train", answers=("final_answer", "answer")
    ),
    "gaokao": ProblemPreset(hub="MARIO-Math-Reasoning/Gaokao2023-Math-En", test="train"),
    "college-math": ProblemPreset(hub="realtreetune/college_math"),
    "omni-math": ProblemPreset(hub="KbsdJames/Omni-MATH"),
    "minerva": ProblemPreset(hub="math-ai/minervamath"),
}
"""Presets by name. OlympiadBench is the part with text alone, in English, with final answers; AIME and AMC without a year are the
validation sets of 2022 to 2024."""


class PresetSource(NamedTuple):
    """What a source of the form ``preset:NAME`` or ``preset:NAME:FILE`` means."""

    name: str
    """Its name."""
    preset: ProblemPreset
    """The layout."""
    file: str | None
    """A file in place of the hub."""

    @property
    def place(self) -> str:
        """The source as it was named."""
        return f"{PREFIX}{self.name}" + ("" if self.file is None else f":{self.file}")

    def split(self, role: Role) -> str:
        """Return the split of the data set for a role.

        Raises:
            ConfigError: If the set is made for evaluation and would be trained on.
        """
        if role == "test":
            return self.preset.test
        if self.preset.train is None and self.file is None:
            raise ConfigError(
                f"problems.train: preset {self.name!r} is a set for evaluation -- train on 'gsm8k' or 'math', or name a file: "
                f"{PREFIX}{self.name}:FILE"
            )
        return self.preset.train or self.preset.test


def find_preset(source: str) -> PresetSource | None:
    """Return the preset that a source names; None if it names none.

    Raises:
        ConfigError: If it names one that does not exist.
    """
    if not source.startswith(PREFIX):
        return None
    name, _, file = source.removeprefix(PREFIX).partition(":")
    if name not in PRESETS:
        raise ConfigError(f"problems: a preset must be one of {', '.join(PRESETS)}: got {name!r} -- {right_name(name, PRESETS)}")
    return PresetSource(name, PRESETS[name], file or None)


def load_preset(source: PresetSource, role: Role, *, limit: int | None = None) -> Loaded:
    """Read the problems of a preset. Rows that cannot be graded are left out and counted.

    Args:
        source: The preset.
        role: What the problems are for, which chooses the split of the data set; a file has no splits.
        limit: Keep at most this many problems; None keeps all.

    Dropped by reason: ``no question``, ``no answer``, ``an unreadable answer``, ``a question that is there already``.

    Raises:
        ConfigError: If the set is made for evaluation and would be trained on.
        DataFormatError: If the source is missing or malformed, a row has none of the fields, or no problem is left.
    """
    preset = source.preset
    pattern = None if preset.answer_pattern is None else answer_regex(preset.answer_pattern)
    problems: list[LabelledProblem] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    num_rows = 0
    for row in source_rows(source.file or preset.hub, subset=preset.subset, split=source.split(role)):
        if limit is not None and len(problems) >= limit:
            break
        num_rows += 1
        question = _field(row, preset.questions, "question", source.name)
        key = _key(_field(row, preset.answers, "answer", source.name), pattern)
        reason = _fault(question, key, seen)
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add(normalise_question(question))
        problems.append(_problem(row, source, question=question, key=key))
    if not problems:
        raise DataFormatError(
            f"{source.place}: must hold a problem that can be graded: got {num_rows} rows, {dict(dropped)} -- check the file"
        )
    return Loaded(problems, num_rows, dict(dropped))


def _field(row: SourceRow, names: Sequence[str], what: str, preset: str) -> Any:
    """Return the first field with something in it; None if all that are there are empty."""
    known = [name for name in names if name in row.fields]
    if not known:
        raise DataFormatError(
            f"{row.place}: a row of preset {preset!r} must have its {what} in {' or '.join(map(repr, names))}: the row has "
            f"{', '.join(map(repr, row.fields)) or 'no fields'} -- give a file of that layout, or name the fields without a preset"
        )
    return next((row.fields[name] for name in known if row.fields[name] not in (None, "", [])), None)


def _key(value: Any, pattern: re.Pattern[str] | None) -> str:
    """Return the final answer that a field states; empty if it states none."""
    text = one_text(value)
    if not text:
        return ""
    if pattern is not None and (found := [match.group(1).strip() for match in pattern.finditer(text)]):
        return found[-1]
    return (boxed_answer(text) or "") if any(True for _ in boxes(text)) else text


def _fault(question: Any, key: str, seen: set[str]) -> str | None:
    if not isinstance(question, str) or not question.strip():
        return "no question"
    if normalise_question(question) in seen:
        return "a question that is there already"
    if not key:
        return "no answer"
    return "an unreadable answer" if unreadable_reason(key, AnswerRule.MATH) else None


def _problem(row: SourceRow, source: PresetSource, *, question: str, key: str) -> LabelledProblem:
    stated = next((str(row.fields[name]) for name in source.preset.ids if row.fields.get(name)), None)
    number = hashlib.blake2b(normalise_question(question).encode(), digest_size=6).hexdigest()
    level = next((row.fields[name] for name in source.preset.level if row.fields.get(name) is not None), None)
    problem = Problem(id=f"{source.name}-{stated or number}", question=question)
    return LabelledProblem(problem=problem, answer=key, level=None if level is None else str(level))


def one_text(value: Any) -> str:
    """Return an answer as one text: several parts are joined with commas, dollar signs around a part are left out, 27.0 is 27."""
    parts = [_part(part) for part in (value if isinstance(value, list | tuple) else [value])]
    return ", ".join(part for part in parts if part)


def _part(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return text[1:-1].strip() if len(text) > 2 and text[0] == text[-1] == "$" and text.count("$") == 2 else text
