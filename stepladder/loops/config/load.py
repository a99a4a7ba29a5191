"""Loading a configuration: class defaults < TOML file < ``--set section.key=value``.

Everything is checked here, once, before any model is loaded; the rest of the library takes plain arguments. Paths in a file are relative to
that file.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from stepladder.errors import ConfigError, check
from stepladder.files import file_fault, reading
from stepladder.loops.config.merge import METHOD_KEYS, as_table, merge, put
from stepladder.loops.config.names import variants
from stepladder.loops.config.paths import map_paths, preset_file
from stepladder.loops.config.run import PLUG_KEYS, Config
from stepladder.loops.config.schedule import check_schedule
from stepladder.loops.config.validation import validated
from stepladder.plugs import at_place


def load_config(
    path: Path | str | None, overrides: Sequence[str] = (), *, base: dict[str, Any] | None = None, where: str | None = None
) -> Config:
    """Read a TOML file over ``base``, apply ``section.key=value`` overrides, and check the result.

    Args:
        path: Configuration file; None starts from ``base`` alone.
        overrides: Each ``a.b=value``. The value is read as TOML, or as a string if that fails.
        base: Settings below the file's.
        where: Origin of ``base``, for messages.

    Raises:
        ConfigError: If the file is missing or malformed, or a setting is unknown or impossible.
    """
    check(
        not isinstance(overrides, str | Mapping),
        f"overrides: must be a list of texts, each KEY=VALUE: got {overrides!r} -- write it as ['search.simulations=64']",
    )
    where = str(path) if path else where or "configuration"
    with reading(where, what="settings of stepladder", remedy="correct them", raises=ConfigError):
        raw: dict[str, Any] = json.loads(json.dumps(base or {}))
        if path is not None:
            merge(raw, read_settings(Path(path)))
        given = [(override, *_split_override(override)) for override in overrides]
        for override, key, value in sorted(given, key=lambda each: not _names_type(each[1])):
            _apply_override(raw, key, value, override=override)
        _resolve_plugs(raw, Path())
        _find_shipped(raw)
        config = validated(raw, where=where)
        check_schedule(config, where=where)
        return config


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Return a configuration with ``section.key=value`` overrides applied.

    Raises:
        ConfigError: If a setting is unknown or impossible.
    """
    return load_config(None, overrides, base=config.model_dump(mode="json")) if overrides else config


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a TOML file, unchecked; existing relative paths are made absolute.

    Raises:
        ConfigError: If the file is missing or malformed.
    """
    path = shipped(path)
    return _resolve_paths(_read_toml(path), path.parent)


def shipped(path: Path) -> Path:
    """Return the file that comes with stepladder for a path such as ``configs/gsm8k.toml`` that does not exist here; else the path."""
    if path.exists() or path.is_absolute() or path.parts[:1] != ("configs",):
        return path
    package = Path(str(files("stepladder")))
    # An installed package has the files inside, a checkout beside it.
    return next((place / path for place in (package, package.parent) if (place / path).is_file()), path)


def _find_shipped(raw: dict[str, Any]) -> None:
    """Let ``training.accelerate_config`` name a file that comes with stepladder."""
    section = raw.get("training")
    if isinstance(section, dict) and isinstance(value := section.get("accelerate_config"), str):
        section["accelerate_config"] = str(shipped(Path(value)))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file -- give the path of a TOML file, or none for the embedded task") from None
    except (ValueError, RecursionError, OSError, MemoryError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {file_fault(error)} -- correct it") from None


def _resolve_paths(raw: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make the existing relative paths of a file absolute. A name that does not exist next to the file may be a hub id, and stays."""

    def absolute(value: str) -> str:
        preset, file = preset_file(value)
        return preset + str((base / file).resolve()) if file and not Path(file).is_absolute() and (base / file).exists() else value

    _resolve_plugs(raw, base)
    return map_paths(raw, absolute)


def _resolve_plugs(raw: dict[str, Any], base: Path) -> None:
    """Make the existing relative files of functions absolute."""
    for section, key in PLUG_KEYS:
        value = raw.get(section, {}).get(key) if isinstance(raw.get(section), dict) else None
        if isinstance(value, str):
            raw[section][key] = at_place(value, base)


def _apply_override(raw: dict[str, Any], key: list[str], value: Any, *, override: str) -> None:
    target, table = raw, ""
    for part in key[:-1]:
        table = f"{table}.{part}" if table else part
        target[part] = target = as_table(target.get(part, {}), table)
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override!r}: {table!r} is a value, not a section")
    put(target, key[-1], value, table=table)


def _split_override(override: str) -> tuple[list[str], Any]:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"--set {override!r}: must have the form section.key=value, for example --set search.simulations=64")
    return parts, read_value(text)


def _names_type(key: list[str]) -> bool:
    """Say whether an override chooses a variant or a method. Those are applied first, so that the order of ``--set`` does not matter."""
    return ".".join(key) in (*METHOD_KEYS, *variants()) or (key[-1] == "type" and ".".join(key[:-1]) in variants())


def read_value(text: str) -> Any:
    """Return a value written as in TOML, or the text itself where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
