"""Loading a configuration: class defaults < TOML file < ``--set section.key=value``.

Everything is checked here, once, before any model is loaded; the rest of the library takes plain arguments. Paths in a file are relative to
that file.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from stepladder.errors import ConfigError, right_name
from stepladder.loops.config.run import PATH_KEYS, Config


def load_config(path: Path | None, overrides: list[str], *, base: dict[str, Any] | None = None) -> Config:
    """Read a TOML file over ``base``, apply ``section.key=value`` overrides, and check the result.

    Args:
        path: Configuration file; None starts from ``base`` alone.
        overrides: Each ``a.b=value``; the value is read as TOML, or as a string where that fails.
        base: Settings below the file's.

    Raises:
        ConfigError: If the file is missing or malformed, or a setting is unknown or impossible.
    """
    raw: dict[str, Any] = json.loads(json.dumps(base or {}))
    if path is not None:
        _merge(raw, _resolve_paths(_read_toml(path), path.parent))
    for override in overrides:
        _apply_override(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error, where=str(path) if path else "configuration")) from None


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {error}") from None


def _resolve_paths(raw: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make the existing relative paths of a file absolute; a name that does not exist beside the file may be a hub id and stays."""
    for section, key in PATH_KEYS:
        value = raw.get(section, {}).get(key) if isinstance(raw.get(section), dict) else None
        if isinstance(value, str) and value and not Path(value).is_absolute() and (base / value).exists():
            raw[section][key] = str((base / value).resolve())
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"--set {override!r}: must have the form section.key=value, for example --set search.simulations=64")
    target = raw
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
    target[parts[-1]] = read_value(text)


def read_value(text: str) -> Any:
    """Return a value written as in TOML, or the text itself where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _merge(raw: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(raw.get(key), dict):
            _merge(raw[key], value)
        else:
            raw[key] = value


def _explain(error: ValidationError, *, where: str) -> str:
    """Say the first problem of a validation in one sentence, with the nearest valid name for an unknown key."""
    first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown setting {location!r} -- {right_name(first['loc'][-1], valid_names(first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"{where}: setting {location!r} is required -- add it to the file or pass --set {location}=..."
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: setting {location!r}: {message[0].lower()}{message[1:]}: got {first['input']!r}"[:600]


def valid_names(location: tuple[int | str, ...]) -> list[str]:
    """Return the setting names of the section at ``location``."""
    model: Any = Config
    for part in location:
        field = model.model_fields.get(str(part)) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = field.annotation if field is not None else None
        options = getattr(model, "__args__", ())
        model = next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), model)
    return sorted(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
