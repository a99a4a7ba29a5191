"""Grading of answers from a file: the verdict of the rule on each, with the reason."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepladder.boxes import boxed_answer
from stepladder.data.datasets.problems import SourceRow, answer_regex, jsonl_rows
from stepladder.data.grading.answers import answer_key
from stepladder.data.grading.rules import STRICT, AnswerRule, MathOptions
from stepladder.data.grading.verifier import PairGrader
from stepladder.errors import ConfigError, DataFormatError
from stepladder.files import atomic_write_text
from stepladder.types import Verdict

STANDARD = "-"
"""Name of standard input and output."""
OUTPUT_KEYS = ("reference", "answer", "correct", "reason", "reference_key", "answer_key")
"""Keys of every row that the command writes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GradeSettings:
    """How answers are graded."""

    rule: AnswerRule = AnswerRule.MATH
    """When an answer is right."""
    options: MathOptions = STRICT
    """Of rule ``math``."""
    answer_pattern: str | None = None
    r"""Regular expression with one group that reads the answer out of ``text``; None reads the last ``\boxed{}``."""
    num_workers: int = 2
    """Processes for algebra, >= 1."""
    deadline_s: float = 5.0
    """CPU seconds for one answer, > 0."""

    @classmethod
    def parse(
        cls, *, rule: str, options: Sequence[str], answer_pattern: str | None = None, num_workers: int = 2, deadline_s: float = 5.0
    ) -> "GradeSettings":
        """Return settings from the words of a command line, options as ``NAME=VALUE``.

        Raises:
            ConfigError: If one of them is unknown.
        """
        if rule not in list(AnswerRule):
            raise ConfigError(f"--rule: must be one of {', '.join(AnswerRule)}: got {rule!r} -- choose one of these")
        pairs = [option.partition("=") for option in options]
        if any(not sign for _, sign, _ in pairs):
            raise ConfigError(f"--option: must have the form NAME=VALUE: got {options!r} -- see docs/grading.md")
        if answer_pattern is not None:
            answer_regex(answer_pattern)
        chosen = MathOptions.of(**{name: value for name, _, value in pairs})
        return cls(rule=AnswerRule(rule), options=chosen, answer_pattern=answer_pattern, num_workers=num_workers, deadline_s=deadline_s)


def grade_file(source: str, output: str, settings: GradeSettings) -> str:
    """Grade the rows of a JSONL file, write them with their verdicts, and return a summary.

    Args:
        source: File of rows with ``reference``, and ``answer`` or ``text``; ``-`` is standard input.
        output: File to write; ``-`` is standard output.
        settings: How to grade.

    Raises:
        DataFormatError: If a row is malformed; the message names it.
    """
    rows = list(_rows(source))
    if not rows:
        raise DataFormatError(f"{source}: must hold at least one row: got none -- check that this is the right file")
    pairs = [_pair(row, settings) for row in rows]
    with PairGrader(settings.rule, options=settings.options, num_workers=settings.num_workers, deadline_s=settings.deadline_s) as grader:
        verdicts = grader.grade(pairs)
    graded = [_graded(row, pair, verdict, settings) for row, pair, verdict in zip(rows, pairs, verdicts, strict=True)]
    text = "".join(json.dumps(row) + "\n" for row in graded)
    if output == STANDARD:
        sys.stdout.write(text)
    else:
        atomic_write_text(Path(output), text)
    return _summary(graded)


def _rows(source: str) -> Iterator[SourceRow]:
    return jsonl_rows(sys.stdin.buffer, "stdin") if source == STANDARD else jsonl_rows(Path(source))


def _pair(row: SourceRow, settings: GradeSettings) -> tuple[str | None, str]:
    """Return the answer and the reference of a row."""
    reference = _field(row, "reference")
    if reference is None:
        raise DataFormatError(f"{row.place}: field 'reference' must be a string or a number: got nothing -- add it")
    if "answer" in row.fields:
        return _field(row, "answer"), reference
    text = _field(row, "text")
    if text is None:
        raise DataFormatError(f"{row.place}: must have a field 'answer' or 'text': got neither -- add one of them")
    if settings.answer_pattern is None:
        return boxed_answer(text), reference
    found = [match[1] for match in answer_regex(settings.answer_pattern).finditer(text)]
    return (found[-1] or "").strip() or None if found else None, reference


def _field(row: SourceRow, name: str) -> str | None:
    value = row.fields.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataFormatError(f"{row.place}: field {name!r} must be a string or a number: got {type(value).__name__} -- correct the row")


def _graded(row: SourceRow, pair: tuple[str | None, str], verdict: Verdict, settings: GradeSettings) -> dict[str, Any]:
    answer, reference = pair
    kept = {name: value for name, value in row.fields.items() if name not in (*OUTPUT_KEYS, "text")}
    return {
        **kept,
        "reference": reference,
        "answer": answer,
        "correct": verdict.correct,
        "reason": verdict.reason,
        "reference_key": answer_key(reference, settings.rule, settings.options),
        "answer_key": None if answer is None else answer_key(answer, settings.rule, settings.options),
    }


def _summary(graded: Iterable[dict[str, Any]]) -> str:
    rows = list(graded)
    right = sum(row["correct"] for row in rows)
    reasons = Counter(row["reason"] for row in rows if not row["correct"])
    why = f" ({', '.join(f'{reason}: {count}' for reason, count in reasons.most_common())})" if reasons else ""
    summary = f"{len(rows)} answer{'' if len(rows) == 1 else 's'}: {right} right, {len(rows) - right} wrong{why}"
    stated = [row for row in rows if isinstance(row.get("equal"), bool)]
    if not stated:
        return summary
    too_kind = sum(row["correct"] and not row["equal"] for row in stated)
    too_strict = sum(row["equal"] and not row["correct"] for row in stated)
    return f"{summary}; {len(stated)} with a stated verdict: {too_kind} wrong graded right, {too_strict} right graded wrong"
