"""Every setting with its type, default and meaning, from the docstrings of the fields: the page, the search, and the template of a file."""

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from stepladder.errors import ConfigError, right_name
from stepladder.loops.config.names import ANY_NAME, marker_of, named_class, settings_classes
from stepladder.toml_text import toml_value


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One setting."""

    table: str
    """The table that holds it, such as ``labels.pairs``; empty at the top."""
    type: str | None
    """The type of the table, if that is a variant with settings of its own."""
    name: str
    """Its own name."""
    kind: str
    """Accepted values, in words."""
    default: str | None
    """The default as TOML; None if the setting is required, ``-`` if it is left out by default."""
    meaning: str
    """The docstring of the field."""

    @property
    def key(self) -> str:
        """The whole name."""
        return f"{self.table}.{self.name}" if self.table else self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One table of settings."""

    key: str
    """Its name; empty for the top."""
    type: str | None
    """The type, of a table that is a variant."""
    is_on: bool
    """Whether it is there by default. Tables of a variant are written with a type, and others are off."""
    meaning: str
    """First paragraph of the docstring of its class."""
    entries: tuple[Entry, ...]
    """The settings that are values, in the order of the class."""


@cache
def all_tables() -> tuple[Table, ...]:
    """Return every table of a configuration, in the order of the classes, inner tables after their outer one."""
    from stepladder.loops.config.run import Config

    return tuple(_tables(Config, "", None, None, is_on=True))


def all_entries() -> list[Entry]:
    """Return every setting that is a value, in the order of the tables."""
    return [entry for table in all_tables() for entry in table.entries]


def find_entries(word: str) -> list[Entry]:
    """Return the settings whose name, values or meaning hold a word, in any case."""
    wanted = word.casefold()
    return [entry for entry in all_entries() if wanted in f"{entry.key} {entry.kind} {entry.meaning}".casefold()]


def entries_of(key: str) -> list[Entry]:
    """Return a setting, once for every type of its table that takes it, or all settings of a table.

    Raises:
        ConfigError: If there is neither.
    """
    found = [entry for entry in all_entries() if entry.key == key]
    found = found or [entry for entry in all_entries() if entry.table == key or entry.table.startswith(f"{key}.")]
    if not found:
        names = sorted(({entry.key for entry in all_entries()} | {table.key for table in all_tables()}) - {""})
        remedy = right_name(key, names, overview=[name for name in names if "." not in name])
        raise ConfigError(f"config: must be a setting or a table: got {key!r} -- {remedy}, or use --search")
    return found


def _tables(kind: type, key: str, type_: str | None, given: Any, *, is_on: bool) -> Iterator[Table]:
    """Yield the tables of a class of settings; ``given`` is the default of the setting that holds it, whose values may be its own."""
    notes, hints, inner = _notes(kind), _hints(kind), list[tuple[str, Any, Any]]()
    entries = []
    for name, hint in hints.items():
        whole = f"{key}.{name}" if key else name
        if named := named_class(hint):
            inner.append((f"{whole}.{ANY_NAME}", named, None))
        if settings_classes(hint):
            inner.append((whole, hint, _default(kind, name, given)))
        elif name != "type" or type_ is None:
            entries.append(
                Entry(
                    table=key,
                    type=type_,
                    name=name,
                    kind=_kind(_bounded(kind, name, hint)),
                    default=_shown(_default(kind, name, given)),
                    meaning=_plain(" ".join(notes[name].split())),
                )
            )
    yield Table(key=key, type=type_, is_on=is_on, meaning=_plain(_first_paragraph(kind)), entries=tuple(entries))
    for below, hint, default in inner:
        for each in settings_classes(hint):
            types_ = get_args(get_type_hints(each)["type"]) if marker_of(hint) else (None,)
            own = default if isinstance(default, each) else None
            inner_type = " or ".join(map(repr, types_)) if marker_of(hint) else None
            yield from _tables(each, below, inner_type, own, is_on=is_on and inner_type is None and default is not None)


def _plain(text: str) -> str:
    """Return the text of a docstring with names in single backquotes."""
    return text.replace("``", "`")


def _hints(kind: type) -> dict[str, Any]:
    names = cast(type[BaseModel], kind).model_fields if issubclass(kind, BaseModel) else [each.name for each in fields(cast(Any, kind))]
    hints = get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in names}


@cache
def _notes(kind: type) -> dict[str, str]:
    """Return the docstring after each field of a class and of its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("stepladder."):
            found |= _own_notes(base)
    return found


def _own_notes(kind: type) -> dict[str, str]:
    (body,) = cast(list[ast.ClassDef], ast.parse(textwrap.dedent(inspect.getsource(kind))).body)
    found = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match after:
                case ast.Expr(value=ast.Constant(value=str() as text)):
                    found[statement.target.id] = inspect.cleandoc(text)
    return found


def _first_paragraph(kind: type) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())


_NO_DEFAULT = object()


def _default(kind: type, name: str, given: Any) -> Any:
    if given is not None:
        return getattr(given, name)
    if issubclass(kind, BaseModel):
        value = kind.model_fields[name].get_default(call_default_factory=True)
        return _NO_DEFAULT if value is PydanticUndefined else value
    field = next(each for each in fields(cast(Any, kind)) if each.name == name)
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return _NO_DEFAULT if value is MISSING else value


def _shown(value: Any) -> str | None:
    return None if value is _NO_DEFAULT else "-" if value is None else toml_value(value)


def _bounded(kind: type, name: str, hint: Any) -> Any:
    """Return an annotation with the bounds that a section's field declares beside it."""
    marks = kind.model_fields[name].metadata if issubclass(kind, BaseModel) else []
    return Annotated[hint, *marks] if marks and get_origin(hint) is not Annotated else hint


_WORDS = {str: "text", bool: "true or false", int: "whole number", float: "number", type(None): "", dict: "table"}


def _kind(hint: Any) -> str:
    """Return what values an annotation accepts, in words."""
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        bounds = [f"{sign} {getattr(mark, name)}" for mark in _bounds(marks) for name, sign in _SIGNS.items() if hasattr(mark, name)]
        return " ".join([_kind(inner), " and ".join(bounds)]).strip()
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(words for option in get_args(hint) if (words := _kind(option)))
    if get_origin(hint) in (list, tuple):
        return f"list of {_kind(next(iter(get_args(hint)), str))}"
    if isinstance(hint, type) and issubclass(hint, str) and hint is not str:
        return ", ".join(f"`{value}`" for value in cast(Any, hint))
    return _WORDS.get(get_origin(hint) or hint, "text")


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _bounds(marks: list[Any]) -> Iterator[Any]:
    for mark in marks:
        yield from getattr(mark, "metadata", [mark])
