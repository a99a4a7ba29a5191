"""What a preset is."""

from dataclasses import dataclass
from typing import Any

from stepladder.mcts.method import SearchMethod


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A named method and where it comes from."""

    method: SearchMethod
    """The method."""
    source: str
    """Paper or system; ``ours`` for what has none."""
    budget: str = ""
    """The budget that the source reports, in words; empty when it states none. A search takes its budget from the caller."""
    differs: str = ""
    """Where the method departs from the source; empty when it does not."""


def row(name: str, description: str, *, source: str, budget: str = "", differs: str = "", **settings: Any) -> Preset:
    """Return a preset of the settings in which it differs from the defaults."""
    method = SearchMethod(name=name, description=description, **settings)
    return Preset(method=method, source=source, budget=budget, differs=differs)
