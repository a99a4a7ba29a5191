"""Settings over settings: one nested table laid over another, with the rules for variants."""

from copy import deepcopy
from typing import Any

from stepladder.loops.config.names import variants
from stepladder.loops.config.search import DEFAULT_METHOD

METHOD_KEYS = ("search.method", "evaluate.method")
"""Settings that name a search method; its options are beside them."""


def merge(raw: dict[str, Any], over: dict[str, Any]) -> None:
    """Lay settings over others, in place. ``over`` stays as it is, and shares nothing with the result."""
    for name, value in deepcopy(over).items():
        put(raw, name, value, table="")


def as_table(given: Any, key: str) -> Any:
    """Return a variant given only by its type as a table; return anything else unchanged."""
    return {"type": given} if isinstance(given, str) and key in variants() else given


def put(target: dict[str, Any], name: str, value: Any, *, table: str) -> None:
    """Set a value.

    A new type resets a variant, and a new search method the options beside it, because the settings of the old one are not those of the
    new one.
    """
    key = f"{table}.{name}" if table else name
    if key in METHOD_KEYS and target.get("method", DEFAULT_METHOD) != value:
        target.pop("options", None)
    if name == "type" and table in variants():
        if target.get("type") != value:
            target.clear()
        target["type"] = value
    elif key in variants() and isinstance(value, str):
        before = as_table(target.get(name), key)
        target[name] = before if isinstance(before, dict) and before.get("type") == value else {"type": value}
    elif isinstance(value, dict) and isinstance(before := as_table(target.get(name), key), dict):
        if key in variants() and value.get("type", before.get("type")) != before.get("type"):
            before = {}
        target[name] = before
        # The method comes first: what is given beside it are its own options.
        for inner, one in sorted(value.items(), key=lambda item: f"{key}.{item[0]}" not in METHOD_KEYS):
            put(before, inner, one, table=key)
    else:
        target[name] = value
