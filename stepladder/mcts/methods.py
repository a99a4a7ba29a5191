"""The named search methods: published systems and plain baselines as points on the axes of ``SearchMethod``.

The rows are in ``presets``, which says how to add one.
"""

from dataclasses import fields, replace
from typing import Any

from stepladder.errors import ConfigError, right_name
from stepladder.mcts.method import SearchMethod
from stepladder.mcts.presets.level import LEVEL_ROWS
from stepladder.mcts.presets.preset import Preset
from stepladder.mcts.presets.sampled_solutions import SAMPLING_ROWS
from stepladder.mcts.presets.tree_search import DESCENT_ROWS

__all__ = ["METHODS", "OUTSIDE", "PRESETS", "Preset", "SearchMethod", "resolve_method"]

PRESETS = {preset.method.name: preset for preset in (*DESCENT_ROWS, *LEVEL_ROWS, *SAMPLING_ROWS)}
"""The presets by name, with their sources."""
METHODS = {name: preset.method for name, preset in PRESETS.items()}
"""The methods by name."""
OUTSIDE = {
    "COS(M+O)S": "its value of a step, moderate surprisal without incoherence, is a scorer, not a search: any preset that descends can be "
    "given one",
    "TreeRL (EPTree)": "it branches at single tokens in the middle of steps, and nodes here are whole steps; `branch_entropy` decides by "
    "the same surprisal at their ends",
}
"""Published searches that the axes do not express, and why."""


def resolve_method(name: str, /, **overrides: Any) -> SearchMethod:
    """Return a preset with some of its axes set otherwise.

    Raises:
        ConfigError: If the name or an axis is unknown, or a value is unknown or impossible.
    """
    if name not in METHODS:
        raise ConfigError(f"method must be a known one: got {name!r} -- {right_name(name, METHODS)}")
    axes = [f.name for f in fields(SearchMethod) if f.name not in ("name", "description")]
    for axis in overrides:
        if axis not in axes:
            raise ConfigError(f"method {name!r}: unknown setting {axis!r} -- {right_name(axis, axes)}")
    return replace(METHODS[name], **overrides)
