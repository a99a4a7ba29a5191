"""Solutions with labels on their steps, from the public files of process supervision.

A label says in [0, 1] how good a step is, None that nobody said. If several solutions share their beginning (a tree of solutions, or the
alternatives of one step), a shared step carries its label in one of them only, so that every judged step counts once.

Known forms, told apart by their fields: PRM800K (``question``, ``label.steps``), Math-Shepherd (``input``, ``label``), OmegaPRM flat and
tree (``reasoning_steps``), TRL (``prompt``, ``completions``, ``labels``), ProcessBench (``problem``, ``steps``, ``label``), RewardMATH
(``problem``, ``eval_solution``, ``solution_type``: one solution a row), right and wrong solutions (``chosen`` and ``rejected``, in
one piece, as in RewardBench 2), and plain rows (``question`` or ``problem`` or ``prompt``, with ``steps`` or ``solution``, and ``labels``
and ``correct`` where there are any). A ``label`` that is true or false, as in rows for KTO, says whether the solution is right.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from stepladder.data.datasets.problems import SourceRow, check_unicode, normalise_question, source_rows
from stepladder.errors import ConfigError, DataFormatError
from stepladder.files import read_json

Neutral = Literal["good", "bad", "half", "drop"]
_NEUTRAL_LABELS: dict[str, float | None] = {"good": 1.0, "bad": 0.0, "half": 0.5, "drop": None}
SHEPHERD_MARKER, SHEPHERD_BEGIN = "ки", "Step 1:"
"""The marker after every step of Math-Shepherd's texts, and the beginning of the first step."""
_SIGNS = {"+": 1.0, "-": 0.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepwiseSolution:
    """A written solution, step by step."""

    place: str
    """Source file and line."""
    problem_id: str
    """Key of its problem: the row's own, or a digest of the question."""
    question: str
    """The question."""
    steps: tuple[str, ...]
    """The steps, in order."""
    labels: tuple[float | None, ...]
    """Label of each step, in [0, 1]; None if unknown."""
    correct: bool | None = None
    """Whether its final answer is right; None if the file does not say."""
    first_error: int | None = None
    """Index of the first wrong step, -1 for none; None if the file does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepwiseFile:
    """What a file held."""

    solutions: list[StepwiseSolution]
    """The solutions, in file order."""
    dropped_by_reason: dict[str, int]
    """Steps and solutions left out, by reason; only reasons that occurred."""


def load_stepwise(source: str | Path, *, neutral: Neutral | str = "good", split: str | None = "\n\n") -> StepwiseFile:
    """Read solutions with their step labels.

    Args:
        source: ``*.jsonl`` or ``*.parquet`` file, ``*.json`` file with a list of rows, or a Hugging Face data set.
        neutral: Meaning of a PRM800K rating of 0: a ``good`` step (as in Qwen2.5-Math-PRM and PURE), a ``bad`` one, ``half``, or
            ``drop``: no label.
        split: Separator that splits a ``solution`` in one piece; None refuses such rows.

    Dropped by reason: ``flagged alternative`` (PRM800K), ``prefix without a step`` and ``repeated prefix`` (OmegaPRM; the first value of a
    prefix counts).

    Raises:
        ConfigError: If ``neutral`` is unknown.
        DataFormatError: If the source is missing or empty, a row has no known form, or its labels do not match its steps; the message names
            file and line.
    """
    if neutral not in get_args(Neutral):
        raise ConfigError(f"neutral: must be one of {', '.join(get_args(Neutral))}: got {neutral!r}")
    dropped: Counter[str] = Counter()
    solutions: list[StepwiseSolution] = []
    for row in _json_rows(Path(source)) if Path(source).suffix == ".json" else source_rows(str(source)):
        solutions += _form(row)(row, _Options(neutral=_NEUTRAL_LABELS[neutral], split=split, dropped=dropped))
    if not solutions:
        raise DataFormatError(f"{source}: must hold at least one solution: got none -- check that this is the right file")
    return StepwiseFile(solutions=solutions, dropped_by_reason=dict(dropped))


def _json_rows(path: Path) -> Iterator[SourceRow]:
    """Yield the rows of a JSON file that is one list of objects, as RewardMATH's is."""
    rows = read_json(path, what="a JSON file", remedy="check the path", raises=DataFormatError)
    for number, fields in enumerate(rows if isinstance(rows, list) else [rows], 1):
        if not isinstance(fields, dict) or not isinstance(rows, list):
            raise DataFormatError(f"{path}: must be a list of JSON objects: row {number} is none -- give a .jsonl file or such a list")
        yield SourceRow(f"{path}:{number}", f"{path.stem}-{number}", fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    neutral: float | None
    split: str | None
    dropped: Counter[str]


_Reader = Callable[[SourceRow, _Options], list[StepwiseSolution]]


def _form(row: SourceRow) -> _Reader:
    fields = row.fields
    if isinstance(fields.get("label"), dict) and isinstance(fields.get("question"), dict):
        return _prm800k
    if isinstance(fields.get("reasoning_steps"), list):
        return _omega_flat
    if isinstance(fields.get("reasoning_steps"), dict):
        return _omega_tree
    if "input" in fields and isinstance(fields.get("label"), str):
        return _math_shepherd
    if "completions" in fields:
        return _trl
    if "eval_solution" in fields:
        return _reward_math
    if "chosen" in fields and "rejected" in fields:
        return _chosen_and_rejected
    return _plain


def _plain(row: SourceRow, options: _Options) -> list[StepwiseSolution]:
    """Read ProcessBench and plain rows."""
    fields = row.fields
    question = _string(row, "question", "problem", "prompt")
    given = "steps" in fields
    steps = _strings(row, "steps") if given else _split(row, _string(row, "solution", "completion", "response"), options)
    # A truth value judges the whole solution, as in rows for KTO; a number is the first wrong step, as in ProcessBench.
    first_error = None if isinstance(fields.get("label"), bool) else fields.get("label")
    if first_error is not None and (not isinstance(first_error, int) or not -1 <= first_error < len(steps)):
        raise DataFormatError(
            f"{row.place}: field 'label' must be a step in [0, {len(steps)}) or -1 for none, or true or false of the whole solution: got "
            f"{first_error!r} -- correct the row"
        )
    labels: list[float | None] = [None] * len(steps)
    if fields.get("labels") is not None:
        labels = _labels(row, fields["labels"], num_steps=len(steps))
    elif first_error is not None:
        # Whether the steps after the first wrong one are right is not said.
        known = [1.0] * (len(steps) if first_error < 0 else first_error) + [0.0] * (first_error >= 0)
        labels[: len(known)] = known
    return [_solution(row, question, steps, labels, correct=_correct(row), first_error=first_error)]


def _correct(row: SourceRow) -> bool | None:
    """Return a row's verdict on its whole solution, from any of its fields; None without one."""
    said = {name: row.fields[name] for name in ("correct", "final_answer_correct") if row.fields.get(name) is not None}
    if isinstance(row.fields.get("label"), bool):
        said["label"] = row.fields["label"]
    for name, value in said.items():
        if value not in (0, 1):
            raise DataFormatError(
                f"{row.place}: whether the final answer is right must be true, false or null: got {value!r} in {name!r} -- correct the row"
            )
    if len({bool(value) for value in said.values()}) > 1:
        raise DataFormatError(f"{row.place}: a solution must be right or wrong: got {said} -- correct the row")
    return next((bool(value) for value in said.values()), None)


def _reward_math(row: SourceRow, options: _Options) -> list[StepwiseSolution]:
    """Read one solution, right if it is the ``chosen`` one of its problem; the rows of a problem share ``problem_id``."""
    kind = row.fields.get("solution_type")
    if kind not in ("chosen", "rejected"):
        raise DataFormatError(f"{row.place}: field 'solution_type' must be 'chosen' or 'rejected': got {kind!r} -- correct the row")
    steps = _strings(row, "eval_solution")
    return [_solution(row, _string(row, "problem"), steps, [None] * len(steps), correct=kind == "chosen")]


def _chosen_and_rejected(row: SourceRow, options: _Options) -> list[StepwiseSolution]:
    """Read the right solutions of a problem and its wrong ones."""
    question = _string(row, "question", "problem", "prompt")
    chosen = row.fields["chosen"]
    right = _strings(row, "chosen") if isinstance(chosen, list) else [_string(row, "chosen")]
    texts = [(text, True) for text in right] + [(text, False) for text in _strings(row, "rejected")]
    return [_graded(row, question, text, correct, options) for text, correct in texts]


def _graded(row: SourceRow, question: str, text: str, correct: bool, options: _Options) -> StepwiseSolution:
    steps = _split(row, text, options)
    return _solution(row, question, steps, [None] * len(steps), correct=correct)


def _split(row: SourceRow, text: str, options: _Options) -> list[str]:
    if options.split is None:
        raise DataFormatError(f"{row.place}: must have its steps in a list 'steps': got {sorted(row.fields)} -- split the solution")
    return [step for step in text.split(options.split) if step.strip()]


def _trl(row: SourceRow, options: _Options) -> list[StepwiseSolution]:
    steps = _strings(row, "completions")
    labels = row.fields.get("labels")
    return [_solution(row, _string(row, "prompt"), steps, _labels(row, labels, num_steps=len(steps)))]


def _math_shepherd(row: SourceRow, options: _Options) -> list[StepwiseSolution]:
    """Read a pair of equal texts: after every step, the first has a marker and the second a sign."""
    text, signed = _string(row, "input"), _string(row, "label")
    marked = text.split(SHEPHERD_MARKER)
    steps, labels, at = [], [], 0
    for part in marked[:-1]:
        at += len(part)
        if signed[at - len(part) : at] != part or signed[at : at + 1] not in _SIGNS:
            raise DataFormatError(
                f"{row.place}: 'label' must repeat 'input' with + or - in place of every {SHEPHERD_MARKER!r}: got "
                f"{signed[max(0, at - 20) : at + 5]!r} after step {len(steps)} -- correct the row"
            )
        steps.append(part)
        labels.append(_SIGNS[signed[at]])
        at += 1
    if not steps or marked[-1].strip():
        raise DataFormatError(f"{row.place}: every step must end with {SHEPHERD_MARKER!r}: got {text[-60:]!r} -- correct the row")
    begin = steps[0].find(SHEPHERD_BEGIN)
    if begin < 0:
        raise DataFormatError(f"{row.place}: the first step must begin with {SHEPHERD_BEGIN!r}: got {steps[0][:80]!r} -- correct the row")
    question, steps[0] = steps[0][:begin].strip(), steps[0][begin:]
    return [_solution(row, question, [step.strip() for step in steps], labels)]


def _prm800k(row: SourceRow, options: _Options) -> list[StepwiseSolution]:
    """Read the labeller's path, and every other alternative of a step as a solution that ends there."""
    question, entries = row.fields["question"].get("problem"), row.fields["label"].get("steps")
    if not isinstance(question, str) or not isinstance(entries, list):
        raise DataFormatError(f"{row.place}: must have question.problem and label.steps: got {sorted(row.fields)} -- correct the row")
    path: list[str] = []
    labels: list[float | None] = []
    others: list[StepwiseSolution] = []
    for entry in _objects(row, entries, "label.steps"):
        completions = _objects(row, entry.get("completions") or [], "completions")
        chosen = entry.get("chosen_completion")
        if chosen is not None and chosen not in range(len(completions)):
            raise DataFormatError(
                f"{row.place}: field 'chosen_completion' must be in [0, {len(completions)}) or null: got {chosen!r} -- correct the row"
            )
        for number, completion in enumerate(completions):
            if completion.get("flagged"):
                options.dropped["flagged alternative"] += number != chosen
            elif number != chosen:
                label = _rating(row, completion, options)
                others.append(_solution(row, question, [*path, _text(row, completion)], [*[None] * len(path), label]))
        if chosen is not None:
            path.append(_text(row, completions[chosen]))
            labels.append(_rating(row, completions[chosen], options))
        elif entry.get("human_completion"):
            path.append(_text(row, *_objects(row, [entry["human_completion"]], "human_completion")))
            labels.append(None)
        else:
            break
    main = [_solution(row, question, path, labels)] if path else []
    return main + others


def _rating(row: SourceRow, completion: dict[str, Any], options: _Options) -> float | None:
    rating = completion.get("rating")
    if rating not in (None, -1, 0, 1):
        raise DataFormatError(f"{row.place}: a rating must be -1, 0, 1 or null: got {rating!r} -- correct the row")
    return options.neutral if rating == 0 else None if rating is None else float(rating == 1)


def _omega_tree(row: SourceRow, options: _Options) -> list[StepwiseSolution]:
    question = _string(row, "question")
    root = row.fields["reasoning_steps"]
    return [_solution(row, question, steps, labels) for steps, labels in _paths(row, root.get("children") or [], [], [])]


def _omega_flat(row: SourceRow, options: _Options) -> list[StepwiseSolution]:
    """Read prefixes of solutions: the difference between a prefix and the longest other prefix within it is one step."""
    question = _string(row, "question")
    nodes: list[dict[str, Any]] = []
    roots: list[dict[str, Any]] = []
    entries = _objects(row, row.fields["reasoning_steps"], "reasoning_steps")
    for entry in sorted(entries, key=lambda entry: len(str(entry.get("solution_prefix", "")))):
        prefix = entry.get("solution_prefix")
        if not isinstance(prefix, str) or not prefix.startswith(question):
            raise DataFormatError(
                f"{row.place}: a solution_prefix must begin with the question: got {str(prefix)[:80]!r} -- correct the row"
            )
        if not prefix[len(question) :].strip():
            options.dropped["prefix without a step"] += 1
            continue
        if any(node["prefix"] == prefix for node in nodes):
            options.dropped["repeated prefix"] += 1
            continue
        above = next((node for node in reversed(nodes) if prefix.startswith(node["prefix"]) and prefix != node["prefix"]), None)
        node = {
            "prefix": prefix,
            "text": prefix[len(above["prefix"] if above else question) :],
            "mc_value": entry.get("mc_value"),
            "children": [],
        }
        (above["children"] if above else roots).append(node)
        nodes.append(node)
    return [_solution(row, question, steps, labels) for steps, labels in _paths(row, roots, [], [])]


def _paths(row: SourceRow, children: Any, steps: list[str], labels: list[float | None]) -> Iterator[tuple[list[str], list[float | None]]]:
    """Yield every path to a leaf; the labels of a node go with the first path through it."""
    for number, child in enumerate(_objects(row, children, "children")):
        text = _text(row, child)
        above = labels if number == 0 else [None] * len(labels)
        here = [*above, *_labels(row, [child.get("mc_value")], num_steps=1)]
        if child.get("children"):
            yield from _paths(row, child["children"], [*steps, text.strip()], here)
        else:
            yield [*steps, text.strip()], here


def _solution(
    row: SourceRow,
    question: str,
    steps: list[str],
    labels: list[float | None],
    *,
    correct: bool | None = None,
    first_error: int | None = None,
) -> StepwiseSolution:
    for text in (question, *steps):
        check_unicode(row, "question or step", text)
    own = row.fields.get("problem_id", row.fields.get("question_id"))
    digest = hashlib.blake2b(normalise_question(question).encode(), digest_size=8).hexdigest()
    return StepwiseSolution(
        place=row.place,
        problem_id=str(own) if own is not None else digest,
        question=question,
        steps=tuple(steps),
        labels=tuple(labels),
        correct=correct,
        first_error=first_error,
    )


def _objects(row: SourceRow, values: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise DataFormatError(f"{row.place}: {name!r} must hold JSON objects: got {str(values)[:80]!r} -- correct the row")
    return values


def _text(row: SourceRow, entry: dict[str, Any]) -> str:
    if not isinstance(entry.get("text"), str):
        raise DataFormatError(f"{row.place}: every step must have a 'text': got {sorted(entry)} -- correct the row")
    return entry["text"]


def _labels(row: SourceRow, labels: Any, *, num_steps: int) -> list[float | None]:
    if not isinstance(labels, list) or len(labels) != num_steps:
        got = f"{len(labels)} labels" if isinstance(labels, list) else repr(labels)
        raise DataFormatError(f"{row.place}: every step must have one label: got {got} for {num_steps} steps -- correct the row")
    for number, label in enumerate(labels, 1):
        valid = label is None or (isinstance(label, bool | int | float) and math.isfinite(label) and 0 <= label <= 1)
        if not valid:
            raise DataFormatError(f"{row.place}: the label of step {number} must be in [0, 1] or null: got {label!r} -- correct the row")
    return [None if label is None else float(label) for label in labels]


def _string(row: SourceRow, *names: str) -> str:
    value = next((row.fields[name] for name in names if name in row.fields), None)
    if not isinstance(value, str) or not value.strip():
        raise DataFormatError(
            f"{row.place}: field {' or '.join(map(repr, names))} must be a non-empty string: got {value!r} among {sorted(row.fields)} "
            "-- correct the row"
        )
    return value


def _strings(row: SourceRow, name: str) -> list[str]:
    values = row.fields[name]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values) or not values:
        raise DataFormatError(
            f"{row.place}: field {name!r} must be a list of strings, one per step: got {str(values)[:80]!r} -- correct the row"
        )
    return values
