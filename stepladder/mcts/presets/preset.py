"""What a preset is."""

from dataclasses import dataclass
from typing import Any

from stepladder.errors import ConfigError
from stepladder.mcts.search_method import SearchMethod, build_method


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A named method and its source."""

    method: SearchMethod
    """The method."""
    source: str
    """Paper or system; ``ours`` without one."""
    budget: str = ""
    """The budget that the source reports, in words; empty when it states none. A search takes its budget from the caller."""
    differs: str = ""
    """How the method departs from the source; empty if it does not."""


def row(name: str, description: str, *, source: str, budget: str = "", differs: str = "", **settings: Any) -> Preset:
    """Return a preset, given the settings that differ from the defaults.

    ``selection`` is the name of a built-in rule or the ``Selection`` class of another one.

    Raises:
        ConfigError: If a setting is unknown or impossible, or the method does not take it.
    """
    method, refused = build_method(name, description, settings)
    if refused:
        raise ConfigError(f"method {name!r}: selection {method.selection.type_name!r} does not take setting {refused[0]!r} -- remove it")
    return Preset(method=method, source=source, budget=budget, differs=differs)
