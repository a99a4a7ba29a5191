"""Every setting by name, and the right name for a wrong one."""

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from stepladder.loops.config.section import Variant

ANY_NAME = "NAME"
"""What stands for the name of a table whose name is free."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A place in the configuration."""

    table: str
    """The enclosing table, such as ``labels.pairs``; empty at the top."""
    name: str
    """Its own name."""
    holds: Literal["settings", "names", "value"] = "value"
    """Other settings, values under names that are free, or a value."""
    types: tuple[str, ...] = ()
    """The types of the variant that take it; empty if the table is no variant, or all take it."""

    @property
    def key(self) -> str:
        """Its whole name, as ``--set`` takes it."""
        return f"{self.table}.{self.name}" if self.table else self.name


@cache
def all_settings() -> tuple[Setting, ...]:
    """Return every setting of a configuration, tables before their contents."""
    from stepladder.loops.config.run import Config

    return tuple(_settings(Config, ""))


@cache
def variants() -> dict[str, dict[str, type]]:
    """Return the settings that are one of several variants: by key, the class of every type."""
    found: dict[str, dict[str, type]] = {}
    for setting, annotation in _annotated_tables():
        if marker := marker_of(annotation):
            found[setting] = {name: kind for kind in settings_classes(annotation) for name in _type_names(kind)}
            assert marker.default in found[setting], f"{setting}: the default type is none of its types"
    return found


@cache
def setting_classes() -> tuple[type, ...]:
    """Return every class of settings in a configuration, each once."""
    from stepladder.loops.config.run import Config

    found: dict[type, None] = {}
    waiting: list[type] = [Config]
    while waiting:
        kind = waiting.pop()
        if kind not in found:
            found[kind] = None
            for annotation in _annotations(kind).values():
                waiting += [named] if (named := named_class(annotation)) else settings_classes(annotation)
    return tuple(found)


def right_key(table: str, name: str, *, given_type: str | None = None) -> str:
    """Return the remedy for a key that does not exist.

    Args:
        table: The table that it was looked for in.
        name: The key.
        given_type: The type of the table, if it is a variant.
    """
    inside = [setting for setting in all_settings() if setting.table == table]
    takers = sorted({one for setting in inside if setting.name == name for one in setting.types})
    if given_type and takers:
        return f"{table}.type {given_type!r} does not take it, {_listed(takers)} does: pass --set {table}.type={takers[0]}"
    usable = [setting for setting in inside if not setting.types or given_type in setting.types]
    elsewhere = [setting for setting in all_settings() if setting.name == name and setting.table != table]
    below = [setting for setting in elsewhere if table and setting.table.startswith(table)]
    for found in (below, _method_options(table, name), _near(name, usable), elsewhere, _near(name, all_settings())):
        if found:
            return f"did you mean {' or '.join(_shown(setting) for setting in found[:3])}?"
    return f"known here: {', '.join(sorted({setting.name for setting in usable}))}"


def _near(name: str, settings: Iterable[Setting]) -> list[Setting]:
    """Return the setting with the most similar own name, as a list of one or none."""
    by_name = {setting.name: setting for setting in reversed(list(settings))}
    return [by_name[near] for near in get_close_matches(name, by_name, n=1, cutoff=0.7)]


def _shown(setting: Setting) -> str:
    """Return the key of a setting, with the types that take it if the default type does not."""
    taken = not setting.types or _default_type(setting.table) in setting.types
    return repr(setting.key) if taken else f"{setting.key!r} (with {setting.table}.type {_listed(setting.types)})"


def _default_type(table: str) -> str | None:
    return next((marker.default for key, annotation in _annotated_tables() if key == table and (marker := marker_of(annotation))), None)


def _listed(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _method_options(table: str, name: str) -> list[Setting]:
    """Return the places for a setting of search methods; only the table's own place if it has one."""
    from stepladder.mcts.methods import RULES
    from stepladder.mcts.search_method import all_options

    if name not in all_options(RULES):
        return []
    places = [Setting(table=f"{section}.options", name=name) for section in ("search", "evaluate")]
    return [place for place in places if place.table == f"{table}.options"] or places


def _settings(kind: type, table: str) -> Iterator[Setting]:
    for name, annotation in _annotations(kind).items():
        key = f"{table}.{name}" if table else name
        kinds = settings_classes(annotation)
        yield Setting(table=table, name=name, holds="settings" if kinds else "names" if get_origin(annotation) is dict else "value")
        if named := named_class(annotation):
            yield from _settings(named, f"{key}.{ANY_NAME}")
        elif marker_of(annotation) is None:
            for inner in kinds:
                yield from _settings(inner, key)
        else:
            yield from _variant_settings(kinds, key)


def _variant_settings(kinds: list[type], table: str) -> Iterator[Setting]:
    takers: dict[str, list[str]] = {}
    for kind in kinds:
        for name in _annotations(kind):
            takers.setdefault(name, []).extend(_type_names(kind))
    for name, types_ in takers.items():
        yield Setting(table=table, name=name, types=() if name == "type" else tuple(types_))


def _annotated_tables(kind: type | None = None, table: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the key and annotation of every setting that is a table."""
    from stepladder.loops.config.run import Config

    for name, annotation in _annotations(kind or Config).items():
        kinds, key = settings_classes(annotation), f"{table}.{name}" if table else name
        if kinds:
            yield key, annotation
        if len(kinds) == 1 and marker_of(annotation) is None:
            yield from _annotated_tables(kinds[0], key)


def _annotations(kind: type) -> dict[str, Any]:
    names = kind.model_fields if issubclass(kind, BaseModel) else {each.name for each in fields(kind)}  # pyright: ignore[reportArgumentType]
    return {name: hint for name, hint in get_type_hints(kind, include_extras=True).items() if name in names}


def marker_of(annotation: Any) -> Variant | None:
    """Return the mark of a setting that is one of several variants; None for any other."""
    return next((each for each in getattr(annotation, "__metadata__", ()) if isinstance(each, Variant)), None)


def named_class(annotation: Any) -> type | None:
    """Return the class of the tables of a setting whose tables have free names; None for any other."""
    kinds = settings_classes(get_args(annotation)[1]) if get_origin(annotation) is dict else []
    return kinds[0] if kinds else None


def settings_classes(annotation: Any) -> list[type]:
    """Return the classes of settings that an annotation names, but not those of tables whose names are free."""
    if get_origin(annotation) is Annotated:
        return settings_classes(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for option in get_args(annotation) for kind in settings_classes(option)]
    return [annotation] if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)) else []


def _type_names(kind: type) -> tuple[str, ...]:
    hint = get_type_hints(kind)["type"]
    assert get_origin(hint) is Literal, f"{kind.__name__}: its type must be a Literal"
    return get_args(hint)
