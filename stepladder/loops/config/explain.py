"""A failed validation of settings as one sentence."""

import dataclasses
from typing import NamedTuple

from pydantic import ValidationError

from stepladder.errors import right_name
from stepladder.loops.config.names import ANY_NAME, all_settings, right_key, variants

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""pydantic's error types for an unknown key, in a section and in a dataclass."""
_NO_TABLE = ("model_type", "dataclass_type", "model_attributes_type", "dict_type")
"""pydantic's error types for a value instead of settings."""


def explain(error: ValidationError, *, where: str) -> str:
    """Say the first problem of a validation in one sentence, with the right name for an unknown key."""
    errors = [(_place(entry["loc"]), entry) for entry in error.errors()]
    place, first = min(errors, key=lambda each: each[1]["type"] not in _UNKNOWN)
    key = ".".join(place.parts)
    table = ".".join(place.table)
    if first["type"] in _UNKNOWN:
        return f"{where}: unknown setting {key!r} -- {right_key(table, place.parts[-1], given_type=place.type)}"
    if first["type"] == "missing":
        return f"{where}: setting {key!r} is required -- add it to the file or pass --set {key}=..."
    if first["type"] == "union_tag_invalid":
        tag, known = str(first.get("ctx", {})["tag"]), variants()[key]
        return f"{where}: setting '{key}.type': must be one of {', '.join(known)}: got {tag!r} -- {right_name(tag, known)}"
    if first["type"] in _NO_TABLE:
        return f"{where}: setting {key!r}: must be a table of settings: got {first['input']!r}"[:600]
    messages = dict.fromkeys(_sentence(entry["msg"]) for other, entry in errors if other == place)
    # The message of a rule on a whole section contains the given values; its input would repeat the section.
    got = "" if isinstance(first["input"], dict) or dataclasses.is_dataclass(first["input"]) else f": got {first['input']!r}"
    return f"{where}: setting {key!r}: {' or '.join(messages)}{got}"[:600]


def _sentence(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


class _Place(NamedTuple):
    """The place of a validation error."""

    parts: tuple[str, ...]
    """The key, part by part."""
    table: tuple[str, ...]
    """The table that holds it, as settings are known."""
    type: str | None
    """The type of the enclosing variant; None outside of variants."""


def _place(location: tuple[int | str, ...]) -> _Place:
    """Return the key of pydantic's location, without the names of types and of the alternatives of one value."""
    settings = {setting.key: setting for setting in all_settings()}
    tables = {setting.table for setting in all_settings()}
    parts: list[str] = []
    known: list[str] = []
    """The same with ``ANY_NAME`` for names that are free."""
    chosen = None
    for part in location:
        here = settings.get(key := ".".join(known))
        if chosen is None and part in variants().get(key, ()):
            chosen = str(part)
        elif here is None or here.holds != "value":
            parts.append(str(part))
            is_named = here is not None and here.holds == "names"
            known.append(ANY_NAME if is_named and f"{key}.{ANY_NAME}" in tables else str(part))
            if is_named and known[-1] != ANY_NAME:
                break
    return _Place(tuple(parts), tuple(known[:-1]), chosen)
