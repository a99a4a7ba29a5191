"""The settings of a configuration that name files or directories, those of its rounds included."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from stepladder.loops.config.run import PATH_KEYS


def preset_file(value: str) -> tuple[str, str]:
    """Return the part of a source in front of its file, and the file: ``preset:gsm8k:a.jsonl`` is ``preset:gsm8k:`` and ``a.jsonl``."""
    parts = value.split(":", 2)
    return (f"{parts[0]}:{parts[1]}:", parts[2]) if parts[0] == "preset" and len(parts) == 3 else ("", value)


class _PathSetting(NamedTuple):
    name: str
    table: dict[str, Any]
    key: str


def map_paths(plain: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Change every path of nested settings, in place, and return them. Settings that are malformed stay as they are."""
    for setting in _path_settings(plain):
        setting.table[setting.key] = change(setting.table[setting.key])
    return plain


def named_paths(plain: dict[str, Any]) -> dict[str, str]:
    """Return every path of nested settings by the name of its setting, such as ``prm.model`` or ``rounds[0].prm.model``."""
    return {setting.name: setting.table[setting.key] for setting in _path_settings(plain)}


def _path_settings(plain: dict[str, Any], prefix: str = "") -> Iterator[_PathSetting]:
    for *tables, key in PATH_KEYS:
        holder: Any = plain
        for table in tables:
            holder = holder.get(table) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and isinstance(holder.get(key), str):
            yield _PathSetting(prefix + ".".join((*tables, key)), holder, key)
    rounds = plain.get("rounds")
    for number, table in enumerate(rounds if isinstance(rounds, list | tuple) and not prefix else ()):
        if isinstance(table, dict):
            yield from _path_settings(table, f"rounds[{number}].")
