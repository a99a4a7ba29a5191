"""Nested settings as TOML text."""

import json
from typing import Any


def as_toml(settings: dict[str, Any]) -> str:
    """Return nested settings as TOML; None is left out, which is what it means in a configuration file.

    Args:
        settings: Tables, strings, numbers, booleans, lists of those, and None.
    """
    lines = [
        f"{toml_key(name)} = {toml_value(value)}" for name, value in settings.items() if value is not None and not isinstance(value, dict)
    ]
    return "\n".join(lines + _tables(settings, prefix="")).lstrip("\n") + "\n"


def _tables(settings: dict[str, Any], *, prefix: str) -> list[str]:
    lines: list[str] = []
    for name, inner in settings.items():
        if isinstance(inner, dict):
            path = f"{prefix}{toml_key(name)}"
            lines += ["", f"[{path}]"]
            lines += [
                f"{toml_key(key)} = {toml_value(value)}"
                for key, value in inner.items()
                if value is not None and not isinstance(value, dict)
            ]
            lines += _tables(inner, prefix=f"{path}.")
    return lines


def toml_key(name: str) -> str:
    """Return a key, in quotes where it needs them."""
    return name if name.isascii() and name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)


def toml_value(value: Any) -> str:
    """Return a value on one line; tables inside lists are inline tables."""
    if isinstance(value, dict):
        if not value:
            return "{}"
        return "{ " + ", ".join(f"{toml_key(name)} = {toml_value(inner)}" for name, inner in value.items() if inner is not None) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    # TOML's strings, numbers and booleans are written like JSON's; DEL is the one character that only JSON allows bare.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
