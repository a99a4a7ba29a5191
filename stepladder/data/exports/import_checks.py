"""Checks of imported rows: the text of a row matches its ids, and the policy's vocabulary has every id.

Training reads the ids and people read the text. So without the check, a text edited by hand would be displayed but never learned.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from stepladder.errors import DataFormatError
from stepladder.types import GradedRow, PreferencePair, Problem, Trace, TreeRecord, ValueRow

_REPLACEMENT = "\ufffd"
"""The replacement character, which a decoder writes for a part of a character. Such a text cannot be encoded back."""
_SHOWN = 60


class TextRenderer(Protocol):
    """The part of a renderer that the checks use."""

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """Return the prompt of a problem as token ids."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of some ids, without special tokens."""
        ...


def check_row(row: Any, renderer: TextRenderer, *, vocab_size: int, place: str) -> None:
    """Check one imported record.

    Args:
        row: A pair, trace, graded row, value row or tree.
        renderer: The policy's renderer.
        vocab_size: Size of the policy's vocabulary.
        place: File and row, for messages.

    Raises:
        DataFormatError: If an id is out of range, or a text does not match its ids.
    """
    if isinstance(row, ValueRow | TreeRecord) and len(row.given_ids) != len(row.given_texts):
        raise DataFormatError(
            f"{place}: every observation must have its text: got {len(row.given_ids)} and {len(row.given_texts)} -- undo the edit"
        )
    for name, ids, text in (("prompt", row.prompt_ids, None), *_texts(row)):
        unknown = [i for i in ids if not isinstance(i, int) or not 0 <= i < vocab_size]
        if unknown:
            raise DataFormatError(
                f"{place}: the ids of {name!r} must be in [0, {vocab_size}), the policy's vocabulary: got {unknown[0]!r} -- import rows of "
                "the same tokenizer"
            )
        if text is not None and _REPLACEMENT not in text and (decoded := renderer.decode(ids)) != text:
            raise DataFormatError(
                f"{place}: the text of {name!r} must be that of its token ids, which are what is learned: got {_shown(text, decoded)}, the "
                f"ids say {_shown(decoded, text)} -- undo the edit, or give edited solutions as warmup.solutions"
            )
    _check_prompt(row, renderer, place)


def _texts(row: Any) -> Iterator[tuple[str, Sequence[int], str]]:
    """Yield the name, ids and text of everything in a row that training may learn."""
    match row:
        case PreferencePair():
            yield "chosen", row.chosen_ids, row.chosen
            yield "rejected", row.rejected_ids, row.rejected
        case Trace() | GradedRow():
            yield "completion", row.completion_ids, row.completion
        case ValueRow():
            yield from ((f"step {i}", ids, text) for i, (ids, text) in enumerate(zip(row.step_ids, row.steps, strict=True), 1))
            yield from _observations(row)
        case TreeRecord():
            yield from ((f"node {i}", ids, text) for i, (ids, text) in enumerate(zip(row.token_ids, row.texts, strict=True)))
            yield from _observations(row)


def _observations(row: ValueRow | TreeRecord) -> Iterator[tuple[str, Sequence[int], str]]:
    """Yield the observations of a row; they are context of everything after them."""
    yield from ((f"observation {i}", ids, text) for i, (ids, text) in enumerate(zip(row.given_ids, row.given_texts, strict=True)))


def _check_prompt(row: Any, renderer: TextRenderer, place: str) -> None:
    """Check that a prompt's ids are those of its question, followed by those of the steps after it."""
    text = row.question if isinstance(row, TreeRecord) else row.prompt
    if _REPLACEMENT in text:
        return
    # A row keeps question and steps as one text with a line break between them, and it can be any of its line breaks.
    cuts = [(text, "")] + [(text[:at], text[at + 1 :]) for at, letter in enumerate(text) if letter == "\n"]
    for question, steps in cuts:
        ids = renderer.prompt_ids(Problem(id=place, question=question))
        if tuple(row.prompt_ids[: len(ids)]) == ids and renderer.decode(row.prompt_ids[len(ids) :]) == steps:
            return
    raise DataFormatError(
        f"{place}: the ids of 'prompt' must be those of its text, which is shown and not learned: got {text[:_SHOWN]!r}, the ids say "
        f"{renderer.decode(row.prompt_ids)[-_SHOWN:]!r} -- undo the edit"
    )


def _shown(text: str, other: str) -> str:
    """Return the part of a text around its first difference to another."""
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    begin = max(0, same - _SHOWN // 2)
    return repr(text[begin : begin + _SHOWN])
