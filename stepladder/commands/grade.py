"""Grading of answers from a file: the verdict of the rule, or of a task's verifier, on each, with the reason."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stepladder.boxes import boxed_answer
from stepladder.data.datasets.problems import SourceRow, answer_regex, jsonl_rows
from stepladder.data.grading.answers import answer_key
from stepladder.data.grading.plugged import load_verifier, open_verifier, taken_arguments
from stepladder.data.grading.rules import STRICT, AnswerRule, MathOptions
from stepladder.data.grading.verifier import PairGrader
from stepladder.data.metrics.answers import mean_credit
from stepladder.errors import ConfigError, DataFormatError, StepladderError
from stepladder.files import atomic_write_text
from stepladder.loops.config.load import read_value
from stepladder.outputs import STANDARD, input_name
from stepladder.types import LabelledProblem, Problem, Verdict

OUTPUT_KEYS = ("answer", "correct", "reason", "answer_key")
"""Keys of every row that the command writes."""
_OWN_KEYS = (*OUTPUT_KEYS, "reference", "reference_key", "credit")


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
    verifier: str | None = None
    """A task's verifier in the place of the rule; ``stepladder.plugs`` has the forms of names."""
    verifier_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the verifier."""
    passing: float = 1.0
    """Smallest number of the verifier that counts as right, in (0, 1]."""

    @classmethod
    def parse(
        cls,
        *,
        rule: str,
        options: Sequence[str],
        answer_pattern: str | None = None,
        num_workers: int = 2,
        deadline_s: float = 5.0,
        verifier: str | None = None,
        passing: float = 1.0,
    ) -> "GradeSettings":
        """Return settings from the words of a command line, options as ``NAME=VALUE``; with a verifier they are its arguments.

        Raises:
            ConfigError: If one of them is unknown, or the verifier cannot be imported.
        """
        common = cls(answer_pattern=answer_pattern, num_workers=num_workers, deadline_s=deadline_s)
        if rule not in list(AnswerRule):
            raise ConfigError(f"--rule: must be one of {', '.join(AnswerRule)}: got {rule!r} -- choose one of these")
        pairs = [option.partition("=") for option in options]
        if any(not sign for _, sign, _ in pairs):
            raise ConfigError(f"--option: must have the form NAME=VALUE: got {options!r} -- see docs/grading.md")
        if answer_pattern is not None:
            answer_regex(answer_pattern)
        if verifier is not None:
            given = {name: read_value(value) for name, _, value in pairs}
            with _named_as_options():
                load_verifier(verifier, given)
            return replace(common, verifier=verifier, verifier_options=given, passing=passing)
        chosen = MathOptions.of(**{name: value for name, _, value in pairs})
        return replace(common, rule=AnswerRule(rule), options=chosen)


@contextmanager
def _named_as_options() -> Iterator[None]:
    """Name the settings of an error as the command line does."""
    try:
        yield
    except StepladderError as error:
        text = str(error).replace("problems.verifier_options", "--option").replace("problems.verifier", "--verifier")
        raise type(error)(text) from None


def grade_file(source: str, output: str, settings: GradeSettings) -> str:
    """Grade the rows of a JSONL file, write them with their verdicts, and return a summary.

    Args:
        source: File of rows with ``reference``, and ``answer`` or ``text``; ``-`` is standard input. A verifier may need ``question``, and
            may do without ``reference``.
        output: File to write; ``-`` is standard output.
        settings: How to grade.

    Raises:
        DataFormatError: If a row is malformed; the message names it.
    """
    rows = list(_rows(source))
    if not rows:
        raise DataFormatError(f"{input_name(source)}: must hold at least one row: got none -- check that this is the right file")
    graded = _by_rule(rows, settings) if settings.verifier is None else _by_verifier(rows, settings.verifier, settings)
    text = "".join(json.dumps(row) + "\n" for row in graded)
    if output == STANDARD:
        sys.stdout.write(text)
    else:
        atomic_write_text(Path(output), text)
    return _summary(graded)


def _by_rule(rows: Sequence[SourceRow], settings: GradeSettings) -> list[dict[str, Any]]:
    references = [_required(row, "reference") for row in rows]
    pairs = [(_answer(row, settings), reference) for row, reference in zip(rows, references, strict=True)]
    with PairGrader(settings.rule, options=settings.options, num_workers=settings.num_workers, deadline_s=settings.deadline_s) as grader:
        verdicts = grader.grade(pairs)

    def key(answer: str) -> str:
        return answer_key(answer, settings.rule, settings.options)

    return [
        _kept(row) | {"reference": reference, **_said(answer, verdict, key), "reference_key": key(reference)}
        for row, (answer, reference), verdict in zip(rows, pairs, verdicts, strict=True)
    ]


def _by_verifier(rows: Sequence[SourceRow], name: str, settings: GradeSettings) -> list[dict[str, Any]]:
    takes = taken_arguments(load_verifier(name, settings.verifier_options))
    problems = [
        LabelledProblem(
            problem=Problem(id=str(number), question=_required(row, "question") if "question" in takes else _field(row, "question") or ""),
            # A factory gets what there is.
            answer=_required(row, "reference") if "reference" in takes else _field(row, "reference") or "",
        )
        for number, row in enumerate(rows)
    ]
    answers = [_required(row, "text") if "solution" in takes else _answer(row, settings) for row in rows]
    opened = open_verifier(problems, name, settings.verifier_options, passing=settings.passing, deadline_s=settings.deadline_s)
    with _named_as_options(), opened as verifier:
        verdicts = verifier.grade([(labelled.problem.id, answer) for labelled, answer in zip(problems, answers, strict=True)])
        return [
            _kept(row) | ({"reference": labelled.answer} if labelled.answer else {}) | _said(answer, verdict, verifier.answer_key)
            for row, labelled, answer, verdict in zip(rows, problems, answers, verdicts, strict=True)
        ]


def _rows(source: str) -> Iterator[SourceRow]:
    return jsonl_rows(sys.stdin.buffer, "stdin") if source == STANDARD else jsonl_rows(Path(source))


def _answer(row: SourceRow, settings: GradeSettings) -> str | None:
    """Return the answer of a row."""
    if "answer" in row.fields:
        return _field(row, "answer")
    text = _field(row, "text")
    if text is None:
        raise DataFormatError(f"{row.place}: must have a field 'answer' or 'text': got neither -- add one of them")
    if settings.answer_pattern is None:
        return boxed_answer(text)
    found = [match[1] for match in answer_regex(settings.answer_pattern).finditer(text)]
    return (found[-1] or "").strip() or None if found else None


def _required(row: SourceRow, name: str) -> str:
    value = _field(row, name)
    if value is None:
        raise DataFormatError(f"{row.place}: field {name!r} must be a string or a number: got nothing -- add it")
    return value


def _field(row: SourceRow, name: str) -> str | None:
    value = row.fields.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataFormatError(f"{row.place}: field {name!r} must be a string or a number: got {type(value).__name__} -- correct the row")


def _kept(row: SourceRow) -> dict[str, Any]:
    return {name: value for name, value in row.fields.items() if name not in (*_OWN_KEYS, "text")}


def _said(answer: str | None, verdict: Verdict, key: Callable[[str], str]) -> dict[str, Any]:
    return {
        "answer": answer,
        "correct": verdict.correct,
        "reason": verdict.reason,
        "answer_key": None if answer is None else key(answer),
        **({} if verdict.credit is None else {"credit": verdict.credit}),
    }


def _summary(graded: Iterable[dict[str, Any]]) -> str:
    rows = list(graded)
    right = sum(row["correct"] for row in rows)
    reasons = Counter(row["reason"] for row in rows if not row["correct"])
    why = f" ({', '.join(f'{reason}: {count}' for reason, count in reasons.most_common())})" if reasons else ""
    summary = f"{len(rows)} answer{'' if len(rows) == 1 else 's'}: {right} right, {len(rows) - right} wrong{why}"
    credit = mean_credit([(row["correct"], row.get("credit")) for row in rows])
    summary += "" if credit is None else f"; mean credit {credit:.3f}"
    stated = [row for row in rows if isinstance(row.get("equal"), bool)]
    if not stated:
        return summary
    too_kind = sum(row["correct"] and not row["equal"] for row in stated)
    too_strict = sum(row["equal"] and not row["correct"] for row in stated)
    return f"{summary}; {len(stated)} with a stated verdict: {too_kind} wrong graded right, {too_strict} right graded wrong"
