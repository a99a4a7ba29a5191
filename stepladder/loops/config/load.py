"""Loading a configuration: class defaults < TOML file < ``--set section.key=value``.

Everything is checked here, once, before any model is loaded; the rest of the library takes plain arguments. Paths in a file are relative to
that file.
"""

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from stepladder.errors import ConfigError, right_name
from stepladder.files import file_fault, reading
from stepladder.loops.config.names import all_settings, right_key, variants
from stepladder.loops.config.run import PATH_KEYS, Config

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""pydantic's error types for an unknown key, in a section and in a dataclass."""
_NO_TABLE = ("model_type", "dataclass_type", "model_attributes_type", "dict_type")
"""pydantic's error types for a value instead of settings."""


def load_config(path: Path | None, overrides: list[str], *, base: dict[str, Any] | None = None) -> Config:
    """Read a TOML file over ``base``, apply ``section.key=value`` overrides, and check the result.

    Args:
        path: Configuration file; None starts from ``base`` alone.
        overrides: Each ``a.b=value``. The value is read as TOML, or as a string if that fails.
        base: Settings below the file's.

    Raises:
        ConfigError: If the file is missing or malformed, or a setting is unknown or impossible.
    """
    where = str(path) if path else "configuration"
    with reading(where, what="settings of stepladder", remedy="correct them", raises=ConfigError):
        raw: dict[str, Any] = json.loads(json.dumps(base or {}))
        if path is not None:
            _merge(raw, _resolve_paths(_read_toml(path), path.parent))
        given = [(override, *_split_override(override)) for override in overrides]
        for override, key, value in sorted(given, key=lambda each: not _names_type(each[1])):
            _apply_override(raw, key, value, override=override)
        try:
            return Config.model_validate(raw)
        except ValidationError as error:
            raise ConfigError(_explain(error, where=where)) from None


def with_overrides(config: Config, overrides: list[str]) -> Config:
    """Return a configuration with ``section.key=value`` overrides applied.

    Raises:
        ConfigError: If a setting is unknown or impossible.
    """
    return load_config(None, overrides, base=config.model_dump(mode="json")) if overrides else config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file -- give the path of a TOML file, or none for the embedded task") from None
    except (ValueError, RecursionError, OSError, MemoryError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {file_fault(error)} -- correct it") from None


def _resolve_paths(raw: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make the existing relative paths of a file absolute. A name that does not exist next to the file may be a hub id, and stays."""
    for section, key in PATH_KEYS:
        value = raw.get(section, {}).get(key) if isinstance(raw.get(section), dict) else None
        if isinstance(value, str) and value and not Path(value).is_absolute() and (base / value).exists():
            raw[section][key] = str((base / value).resolve())
    return raw


def _apply_override(raw: dict[str, Any], key: list[str], value: Any, *, override: str) -> None:
    target, table = raw, ""
    for part in key[:-1]:
        table = f"{table}.{part}" if table else part
        target[part] = target = _as_table(target.get(part, {}), table)
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override!r}: {table!r} is a value, not a section")
    _put(target, key[-1], value, table=table)


def _split_override(override: str) -> tuple[list[str], Any]:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"--set {override!r}: must have the form section.key=value, for example --set search.simulations=64")
    return parts, read_value(text)


def _names_type(key: list[str]) -> bool:
    """Say whether an override chooses a variant. Those are applied first, so that the order of ``--set`` does not matter."""
    return ".".join(key) in variants() or (key[-1] == "type" and ".".join(key[:-1]) in variants())


def _as_table(given: Any, key: str) -> Any:
    """Return a variant given only by its type as a table; return anything else unchanged."""
    return {"type": given} if isinstance(given, str) and key in variants() else given


def _put(target: dict[str, Any], name: str, value: Any, *, table: str) -> None:
    """Set a value. A new type resets a variant, because the settings of the old type are not those of the new one."""
    key = f"{table}.{name}" if table else name
    if name == "type" and table in variants():
        if target.get("type") != value:
            target.clear()
        target["type"] = value
    elif key in variants() and isinstance(value, str):
        before = _as_table(target.get(name), key)
        target[name] = before if isinstance(before, dict) and before.get("type") == value else {"type": value}
    elif isinstance(value, dict) and isinstance(before := _as_table(target.get(name), key), dict):
        if key in variants() and value.get("type", before.get("type")) != before.get("type"):
            before = {}
        target[name] = before
        for inner, one in value.items():
            _put(before, inner, one, table=key)
    else:
        target[name] = value


def read_value(text: str) -> Any:
    """Return a value written as in TOML, or the text itself where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _merge(raw: dict[str, Any], over: dict[str, Any]) -> None:
    for name, value in over.items():
        _put(raw, name, value, table="")


def _explain(error: ValidationError, *, where: str) -> str:
    """Say the first problem of a validation in one sentence, with the right name for an unknown key."""
    errors = [(_place(entry["loc"]), entry) for entry in error.errors()]
    place, first = min(errors, key=lambda each: each[1]["type"] not in _UNKNOWN)
    key = ".".join(place.parts)
    if first["type"] in _UNKNOWN:
        return f"{where}: unknown setting {key!r} -- {right_key('.'.join(place.parts[:-1]), place.parts[-1], given_type=place.type)}"
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
    type: str | None
    """The type of the enclosing variant; None outside of variants."""


def _place(location: tuple[int | str, ...]) -> _Place:
    """Return the key of pydantic's location, without the names of types and of the alternatives of one value."""
    settings = {setting.key: setting for setting in all_settings()}
    parts: list[str] = []
    chosen = None
    for part in location:
        here = settings.get(key := ".".join(parts))
        if chosen is None and part in variants().get(key, ()):
            chosen = str(part)
        elif here is None or here.holds != "value":
            parts.append(str(part))
            if here is not None and here.holds == "names":
                break
    return _Place(tuple(parts), chosen)
