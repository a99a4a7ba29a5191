"""Problems and solved examples: reading them, splitting them, and proving that splits share nothing.

Sources are JSONL files, Parquet files, and Hugging Face data sets (a hub id, or a directory). Rows are counted from 1, so that the number
in a message is the line an editor shows.
"""

import io
import json
import logging
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from stepladder.boxes import boxed_answer, boxes
from stepladder.data.grading.answers import unreadable_reason
from stepladder.data.grading.rules import AnswerRule
from stepladder.errors import ConfigError, DataFormatError
from stepladder.files import file_fault, reading
from stepladder.hold_out import hold_out
from stepladder.hub import absent, cached_where_unreachable, why_unreachable
from stepladder.plugs import is_source, load_plug, raised
from stepladder.types import LabelledProblem, Problem

_LOG = logging.getLogger(__name__)
_SUFFIXES = (".jsonl", ".parquet", ".json")
"""Suffixes of files of rows."""


class SourceRow(NamedTuple):
    """One row of a source."""

    place: str
    """Its source, for messages."""
    default_id: str
    """Id of the problem when the source has no id field."""
    fields: dict[str, Any]
    """The row itself."""


class Loaded(NamedTuple):
    """The problems of a source, and what was left out."""

    problems: list[LabelledProblem]
    """The problems, in source order."""
    num_rows: int
    """Rows that were read."""
    dropped: dict[str, int]
    """Rows that were left out, by reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedSolution:
    """A solved problem for the warm-up."""

    id: str
    """Key of the problem."""
    question: str
    """The question, verbatim."""
    solution: str
    """The whole solution as text: every step with its boundary, the final answer last."""
    finished: bool = True
    """Whether it comes to its end. An unfinished one shows steps: no end token follows, and it is neither right nor wrong."""


def read_problems(
    source: str | Path,
    *,
    id_field: str | None = "id",
    question_field: str = "question",
    answer_field: str = "answer",
    answer_pattern: str | None = None,
    level_field: str | None = None,
    rule: AnswerRule | str | None = None,
    drop_unreadable: bool = False,
    subset: str | None = None,
    split: str = "train",
    allow_unlabelled: bool = False,
    limit: int | None = None,
) -> Loaded:
    r"""Read problems with their reference answers, in source order.

    Args:
        source: ``*.jsonl`` or ``*.parquet`` file; anything else is a Hugging Face data set: a directory or a hub id.
        id_field: Field of the id, a string or an integer. None makes ids from the place of the row: ``<file stem>-<line>`` for files,
            ``<data set name>-<split>-<row>`` for data sets; they are stable as long as the rows are not reordered.
        question_field: Field of the question.
        answer_field: Field of the reference answer, a string or a number.
        answer_pattern: Regular expression with one group that reads the answer out of that field; its last match counts. None reads the
            last ``\boxed{}`` of a field that has one, and takes any other field unchanged.
        level_field: Field of the problem's level, a string or a number; None gives none.
        rule: Grading rule under which some answer must be able to equal every reference answer; None checks nothing.
        drop_unreadable: Drop problems whose reference breaks this rule, and log their number and the first one's place and reason.
        subset: Configuration name of a Hugging Face data set; not for files.
        split: Split of a Hugging Face data set; files have no splits and ignore it.
        allow_unlabelled: Accept rows without an answer; it is then the empty string, which no verifier accepts.
        limit: Read at most this many problems; None reads all.

    Raises:
        DataFormatError: If the source is missing, empty or malformed, two problems share an id, or no answer can equal a reference
            answer; the message names the row.
        ConfigError: If ``answer_pattern`` is no regular expression with exactly one group.
    """
    pattern = None if answer_pattern is None else answer_regex(answer_pattern)
    problems: list[LabelledProblem] = []
    places: dict[str, str] = {}
    unreadable: list[str] = []
    for row in islice(source_rows(str(source), subset=subset, split=split), limit):
        problem = Problem(id=_row_id(row, id_field), question=_text(row, question_field))
        _claim_id(problem.id, row.place, places)
        answer = _answer(row, answer_field, pattern=pattern, allow_unlabelled=allow_unlabelled)
        level = None if level_field is None else _level(row, level_field)
        reason = unreadable_reason(answer, rule) if rule is not None and answer else None
        if reason is None:
            problems.append(LabelledProblem(problem=problem, answer=answer, level=level))
        else:
            unreadable.append(f"{row.place}: no answer can equal the reference {_shown(answer)} under rule {str(rule)!r}: {reason}")
    if unreadable:
        _report_unreadable(unreadable, num_rows=len(places), drop=drop_unreadable)
    if not problems:
        raise DataFormatError(f"{source}: must hold at least one problem: got none -- check that this is the right file")
    return Loaded(problems, len(places), {"an unreadable answer": len(unreadable)} if unreadable else {})


def _report_unreadable(unreadable: list[str], *, num_rows: int, drop: bool) -> None:
    counted = f"{unreadable[0]} ({len(unreadable)} of {num_rows} rows are like this)"
    if not drop:
        raise DataFormatError(f"{counted} -- correct them, or set problems.unreadable to 'drop'")
    _LOG.warning("%s -- dropped", counted)


def load_seed_solutions(path: str | Path) -> list[SeedSolution]:
    """Read solved problems for the warm-up from a JSONL file with the fields ``id``, ``question`` and ``solution``.

    A field ``finished`` that is false marks a solution that was cut.

    Raises:
        DataFormatError: If the file is missing, empty or malformed, or two solutions share an id; the message names the line.
    """
    solutions: list[SeedSolution] = []
    places: dict[str, str] = {}
    for row in jsonl_rows(Path(path)):
        finished = row.fields.get("finished", True)
        if not isinstance(finished, bool):
            raise DataFormatError(f"{row.place}: field 'finished' must be true or false: got {_shown(finished)} -- correct the row")
        solution = SeedSolution(id=_row_id(row, "id"), question=_text(row, "question"), solution=_text(row, "solution"), finished=finished)
        _claim_id(solution.id, row.place, places)
        solutions.append(solution)
    if not solutions:
        raise DataFormatError(f"{path}: must hold at least one solution: got none -- check that this is the right file")
    return solutions


def questions_of(rows: Iterable[SourceRow], *, id_field: str | None = "id", question_field: str = "question") -> list[Problem]:
    """Return the questions of rows; answers in them are not read.

    Args:
        rows: From ``source_rows``, ``jsonl_rows`` or ``question_rows``.
        id_field: Field of the id, as for ``read_problems``.
        question_field: Field of the question.

    Raises:
        DataFormatError: If a row is malformed, or two share an id; the message names the row.
    """
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for row in rows:
        problem = Problem(id=_row_id(row, id_field), question=_text(row, question_field))
        _claim_id(problem.id, row.place, places)
        problems.append(problem)
    return problems


def question_rows(stream: IO[bytes], name: str, *, id_field: str | None, question_field: str) -> Iterator[SourceRow]:
    """Yield the rows of a stream of questions: JSON objects, or plain text, one question a line. The first line decides which.

    Args:
        stream: The stream.
        name: Its name in messages, and in the ids of plain lines.
        id_field: Field that takes the id of a plain line; None takes none.
        question_field: Field that takes a plain line.

    Raises:
        DataFormatError: If a line is malformed.
    """
    lines = list(_lines(stream, name))
    if _is_object(next((line for line in lines if line.strip()), b"")):
        yield from _stream_rows(io.BytesIO(b"".join(lines)), name, stem=name)
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataFormatError(f"{name}:{number}: must be UTF-8: got byte {line[error.start]:#04x} -- save it as UTF-8") from None
        fields = {question_field: text} | ({} if id_field is None else {id_field: f"{name}-{number}"})
        yield SourceRow(f"{name}:{number}", f"{name}-{number}", fields)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def normalise_question(question: str) -> str:
    """Return a question with normalised Unicode compatibility forms, case and white space. Equal results are the same question."""
    return " ".join(unicodedata.normalize("NFKC", question).casefold().split())


def check_disjoint(**splits: Sequence[LabelledProblem]) -> None:
    """Check that no problem is in two splits, by id and by normalised question text.

    Repetition inside one split is allowed: it leaks nothing.

    Raises:
        DataFormatError: On the first clash, in the order of the arguments.
    """
    ids: dict[str, str] = {}
    questions: dict[str, tuple[str, str]] = {}
    for split, problems in splits.items():
        for problem in (labelled.problem for labelled in problems):
            other = ids.setdefault(problem.id, split)
            if other != split:
                raise DataFormatError(
                    f"splits must not share a problem: id {problem.id!r} is in {other!r} and in {split!r} -- remove it from one of them"
                )
            other, other_id = questions.setdefault(normalise_question(problem.question), (split, problem.id))
            if other != split:
                raise DataFormatError(
                    f"splits must not share a question: {problem.id!r} in {split!r} asks the same as {other_id!r} in {other!r} "
                    "-- remove one of them"
                )


def split_problems(problems: Sequence[LabelledProblem], *, held_out: int, seed: int) -> tuple[list[LabelledProblem], list[LabelledProblem]]:
    """Set ``held_out`` problems aside and return (the others, the ones set aside), both in their original order.

    The choice depends on the seed and on each problem's id alone, not on the order of the problems. Problems that ask the same question
    stay on one side. A group that would overfill the held-out side is skipped.

    Raises:
        ConfigError: If there are not more than ``held_out`` problems, or repeated questions leave no choice of exactly that many.
    """
    if not 0 <= held_out < len(problems):
        raise ConfigError(
            f"held_out_size: must leave problems to train on: got {held_out} of {len(problems)} -- lower it or give a held-out file"
        )
    groups: dict[str, list[str]] = {}
    for labelled in problems:
        groups.setdefault(normalise_question(labelled.problem.question), []).append(labelled.problem.id)
    chosen = hold_out(groups.values(), count=held_out, seed=seed, label="split")
    if len(chosen) != held_out:
        raise ConfigError(
            f"held_out_size: no choice of whole questions has exactly {held_out} problems: got {len(chosen)} because questions repeat "
            "-- choose another size or remove the repetitions"
        )
    return (
        [labelled for labelled in problems if labelled.problem.id not in chosen],
        [labelled for labelled in problems if labelled.problem.id in chosen],
    )


def check_source(source: str | Path) -> None:
    """Check that a file of rows is there and may be read, before a model is looked for; data sets are left to ``source_rows``.

    Raises:
        DataFormatError: If not.
    """
    path = Path(source)
    if path.suffix in _SUFFIXES:
        with reading(path, what="a readable file", remedy="check the path", raises=DataFormatError), path.open("rb"):
            pass


def source_rows(source: str, *, subset: str | None = None, split: str = "train") -> Iterator[SourceRow]:
    """Yield the rows of a ``*.jsonl`` or ``*.parquet`` file, of a Hugging Face data set, or of a function of the split.

    Raises:
        DataFormatError: If the source is missing or a row is malformed; the message names the row.
    """
    if is_source(source):
        return _function_rows(source, split)
    path = Path(source)
    if path.suffix == ".jsonl":
        return jsonl_rows(path)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if path.is_file() or path.suffix in (".json", ".csv", ".txt"):
        raise DataFormatError(f"{source}: must be a .jsonl or .parquet file: got {path.suffix!r} -- convert it to one of these")
    return _dataset_rows(source, subset=subset, split=split)


def _function_rows(source: str, split: str) -> Iterator[SourceRow]:
    function = load_plug(source, setting=f"problems.{split}")
    rule = f"problems.{split}: {source!r} must take the name of a split and give rows"
    try:
        rows = list(function(split))
    # Somebody's code, which may raise anything.
    except Exception as error:
        raise DataFormatError(f"{rule}: it raised {raised(error)} -- correct it") from error
    name = source.rpartition(":")[2]
    for number, fields in enumerate(rows, 1):
        if not isinstance(fields, dict):
            raise DataFormatError(f"{rule}: row {number} must be a dictionary of fields: got {type(fields).__name__} -- correct it")
        yield SourceRow(f"{source}[{split}]:{number}", f"{name}-{split}-{number}", fields)


def jsonl_rows(source: Path | IO[bytes], name: str | None = None) -> Iterator[SourceRow]:
    """Yield the rows of a JSONL file, or of an open stream that is called ``name`` in messages.

    Raises:
        DataFormatError: If the file cannot be read or a line is malformed; the message names the line.
    """
    if not isinstance(source, Path):
        yield from _stream_rows(source, name or "input", stem=name or "input")
        return
    with reading(source, what="a file of JSON lines", remedy="check the path", raises=DataFormatError):
        file = source.open("rb")
    with file:
        yield from _stream_rows(file, str(source), stem=source.stem)


def _stream_rows(stream: IO[bytes], name: str, *, stem: str) -> Iterator[SourceRow]:
    for number, line in enumerate(_lines(stream, name), 1):
        # Blank lines separate nothing.
        if line.strip():
            yield SourceRow(f"{name}:{number}", f"{stem}-{number}", _json_object(line, f"{name}:{number}"))


def _lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield lines; only reading them is under the boundary, not the work on them."""
    # An editor's byte order mark is no part of the first line.
    mark = b"\xef\xbb\xbf"
    while True:
        with reading(name, what="a file of JSON lines", remedy="check the disk", raises=DataFormatError):
            line = stream.readline()
        if not line:
            return
        yield line.removeprefix(mark)
        mark = b""


def _json_object(line: bytes, place: str) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataFormatError(f"{place}: must be UTF-8: got byte {line[error.start]:#04x} -- save the file as UTF-8") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise DataFormatError(f"{place}: must be one JSON object: {file_fault(error)} -- correct or remove the line") from None
    if not isinstance(fields, dict):
        raise DataFormatError(f"{place}: must be one JSON object: got {type(fields).__name__} -- correct or remove the line")
    return fields


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    import pyarrow.parquet as pq

    with reading(path, what="a Parquet file", remedy="check the path, or write the file again", raises=DataFormatError):
        # ParquetFile reads this file alone; read_table would also read a directory and infer columns from its name.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        # Text that is not UTF-8 is found here, before a row is used.
        table.validate(full=True)
        rows = table.to_pylist()
    for number, fields in enumerate(rows, 1):
        yield SourceRow(f"{path}:{number}", f"{path.stem}-{number}", fields)


def _dataset_rows(source: str, *, subset: str | None, split: str) -> Iterator[SourceRow]:
    import datasets

    try:
        if (Path(source) / "dataset_dict.json").exists():
            data = datasets.load_from_disk(source)[split]
        elif (Path(source) / "dataset_info.json").exists():
            data = datasets.load_from_disk(source)
        else:
            with nullcontext() if Path(source).exists() else cached_where_unreachable():
                data = datasets.load_dataset(source, subset, split=split)
    # The library raises dozens of its own and the network's types here, and all mean the same to the reader.
    except Exception as error:
        if not Path(source).exists() and why_unreachable() is not None:
            raise DataFormatError(absent(source, "data set")) from error
        raise DataFormatError(
            f"{source}: must be a .jsonl or .parquet file or a data set with split {split!r}: {file_fault(error) or error} "
            "-- check the path, subset and split"
        ) from error
    for number, fields in enumerate(data, 1):
        yield SourceRow(f"{source}[{split}]:{number}", f"{Path(source).name}-{split}-{number}", dict(fields))


def answer_regex(pattern: str) -> re.Pattern[str]:
    """Return the regular expression that reads an answer.

    Raises:
        ConfigError: If it is none, or has not exactly one group.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"answer_pattern: must be a regular expression: {error} in {pattern!r} -- correct it") from None
    if regex.groups != 1:
        raise ConfigError(f"answer_pattern: must have exactly one group: got {regex.groups} in {pattern!r} -- put ( ) around the answer")
    return regex


def _row_id(row: SourceRow, id_field: str | None) -> str:
    if id_field is None:
        return row.default_id
    value = row.fields.get(id_field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(row, id_field)


def _claim_id(id: str, place: str, places: dict[str, str]) -> None:
    if id in places:
        raise DataFormatError(f"{place}: id must be unique: {id!r} is also at {places[id]} -- rename or remove one of them")
    places[id] = place


def _text(row: SourceRow, field: str) -> str:
    """Return a field that must be a string with something in it, verbatim."""
    value = row.fields.get(field)
    if not isinstance(value, str) or not value.strip():
        known = "" if field in row.fields else f" (the row has {', '.join(map(repr, row.fields)) or 'no fields'})"
        raise DataFormatError(
            f"{row.place}: field {field!r} must be a non-empty string: got {_shown(value)}{known} "
            "-- correct the row or name the right field"
        )
    check_unicode(row, field, value)
    return value


def check_unicode(row: SourceRow, field: str, value: str) -> None:
    """Check that a field's text can be written: JSON can spell half of a surrogate pair, which no file and no tokenizer takes.

    Raises:
        DataFormatError: If it holds such a half; the message names the row.
    """
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataFormatError(
            f"{row.place}: field {field!r} must be valid Unicode: got a lone surrogate at character {error.start} -- correct the row"
        ) from None


def _level(row: SourceRow, field: str) -> str:
    value = row.fields.get(field)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else _text(row, field)


def _answer(row: SourceRow, field: str, *, pattern: re.Pattern[str] | None, allow_unlabelled: bool) -> str:
    value = _answer_text(row, field, allow_unlabelled=allow_unlabelled)
    if not value:
        return ""
    if pattern is None:
        return _boxed_or_whole(row, field, value, allow_unlabelled=allow_unlabelled)
    found = [match.group(1).strip() for match in pattern.finditer(value) if match.group(1)]
    if found and found[-1]:
        return found[-1]
    if allow_unlabelled:
        return ""
    raise DataFormatError(
        f"{row.place}: field {field!r} must match answer_pattern {pattern.pattern!r}: got {_shown(value)} -- correct the row or the pattern"
    )


def _answer_text(row: SourceRow, field: str, *, allow_unlabelled: bool) -> str:
    """Return what stands in the answer field as text; empty if there is nothing and that is allowed."""
    value = row.fields.get(field)
    if isinstance(value, float) and not math.isfinite(value):
        if allow_unlabelled:
            return ""
        raise DataFormatError(
            f"{row.place}: field {field!r} must be a finite number: got {value!r}, which is how a gap is often written -- drop the row"
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        if allow_unlabelled and (value is None or isinstance(value, str)):
            return ""
        raise DataFormatError(
            f"{row.place}: field {field!r} must be a non-empty string: got {_shown(value)} -- drop the row or name the right answer field"
        )
    check_unicode(row, field, value)
    return value


def _boxed_or_whole(row: SourceRow, field: str, value: str, *, allow_unlabelled: bool) -> str:
    if not any(True for _ in boxes(value)):
        return value.strip()
    answer = boxed_answer(value)
    if answer is None and not allow_unlabelled:
        raise DataFormatError(f"{row.place}: field {field!r} must state an answer in its last box: got {_shown(value)} -- correct the row")
    return answer or ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
