"""Records in JSON files: read with every key and type checked, so that a wrong file is one sentence and never a ``KeyError``."""

from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from stepladder.errors import CheckpointError
from stepladder.files import too_large

RecordT = TypeVar("RecordT")

CLOSED = ConfigDict(extra="forbid")
"""For ``pydantic.with_config``: a record that has no other keys than its fields."""


def record_of(kind: type[RecordT], plain: object, *, place: object, what: str, remedy: str) -> RecordT:
    """Return plain JSON containers as a record.

    Args:
        kind: The record, a dataclass.
        plain: Content of the file.
        place: The file, for the message.
        what: Expected content, for messages.
        remedy: Remedy for other content.

    Raises:
        CheckpointError: If a key is missing or foreign, a value has another type, or a number is larger than any that stepladder writes.
    """
    if (large := too_large(plain)) is not None:
        raise CheckpointError(f"{place}: must be {what}: {large!r} must be below 2**63 -- {remedy}")
    try:
        return _adapter(kind).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        problem = {"missing": "is missing", "unexpected_keyword_argument": "is not known here"}.get(first["type"])
        found = problem or f"{first['msg'][:1].lower()}{first['msg'][1:]}, got {str(first['input'])[:60]!r}"
        raise CheckpointError(f"{place}: must be {what}: {where!r} {found} -- {remedy}") from None


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
