"""The named search methods: published systems and plain baselines as settings of one engine.

The rows are in ``presets``, which explains how to add one.
"""

import math
from collections.abc import Mapping
from typing import Any

from stepladder.errors import ConfigError, right_name
from stepladder.mcts.presets.level import LEVEL_ROWS
from stepladder.mcts.presets.preset import Preset
from stepladder.mcts.presets.sampled_solutions import SAMPLING_ROWS
from stepladder.mcts.presets.tree_search import DESCENT_ROWS
from stepladder.mcts.search_method import SearchMethod, all_options, build_method
from stepladder.mcts.settings.growth import Steps
from stepladder.mcts.strategies import SELECTIONS

__all__ = ["METHODS", "OUTSIDE", "PRESETS", "RULES", "Preset", "SearchMethod", "resolve_method", "with_filling_wave"]

PRESETS = {preset.method.name: preset for preset in (*DESCENT_ROWS, *LEVEL_ROWS, *SAMPLING_ROWS)}
"""The presets by name, with their sources."""
METHODS = {name: preset.method for name, preset in PRESETS.items()}
"""The methods by name."""
RULES = tuple(dict.fromkeys((*SELECTIONS, *(type(method.selection) for method in METHODS.values()))))
"""The selection rules: the built-in ones and those that rows brought along."""
OUTSIDE = {
    "COS(M+O)S": "its value of a step, moderate surprisal without incoherence, is a scorer, not a search: any preset that descends can be "
    "given one",
    "TreeRL (EPTree)": "it branches at single tokens in the middle of steps, and nodes here are whole steps; `branch_entropy` decides by "
    "the same surprisal at their ends",
}
"""Published searches that the settings do not express, and why."""
_MOST_NAMED = 6
_MOST_IN_FLIGHT = 8
"""Leaves in flight that ``wave = "auto"`` never exceeds where each depends on the others."""


def resolve_method(name: str, /, **options: Any) -> SearchMethod:
    """Return a preset with some of its settings changed.

    With another ``selection``, the preset keeps those of its settings that the new rule takes, too.

    Args:
        name: Name of a preset.
        options: Settings by name, as everywhere: ``num_children=8``.

    Raises:
        ConfigError: If the name or a setting is unknown, a value is unknown or impossible, or the method does not take a setting.
    """
    if name not in METHODS:
        raise ConfigError(f"method must be a known one: got {name!r} -- {right_name(name, METHODS)}")
    preset = METHODS[name]
    method, refused = build_method(name, preset.description, options, base=preset.settings(), rules=RULES)
    if refused:
        raise ConfigError(f"method {name!r}: {_refusal(method, refused[0])}")
    return method


def with_filling_wave(name: str, options: Mapping[str, Any], *, num_trees: int, max_batch: int, simulations: int) -> dict[str, Any]:
    """Return a method's options with a number in place of ``wave = "auto"``: the fewest leaves in flight that fill a batch.

    It is max_batch / (trees x samples of a leaf), rounded up; at most 8 where the choice of a leaf depends on the others in flight, and at
    most all simulations.

    Args:
        name: Name of a preset.
        options: Its settings by name; others are returned unchanged.
        num_trees: Problems searched at once, >= 1.
        max_batch: Samples that the policy decodes at once, >= 1.
        simulations: Simulations of a tree, >= 1.

    Raises:
        ConfigError: If the method or a setting is impossible, or its wave is a width, as that of a beam.
    """
    if options.get("wave") != "auto":
        return dict(options)
    method = resolve_method(name, **{**options, "wave": 1})
    if method.selection.WAVE_IS_WIDTH:
        raise ConfigError(
            f"wave must be a number with method {name!r}, where it decides what is searched: got 'auto' -- give the width, such as 4"
        )
    samples = method.growth.num_children if isinstance(method.growth, Steps) else 1
    filling = math.ceil(max_batch / (num_trees * samples))
    most = simulations if method.draws_independently else min(simulations, _MOST_IN_FLIGHT)
    return {**options, "wave": min(filling, most)}


def _refusal(method: SearchMethod, option: str) -> str:
    """Say why a method does not take a setting."""
    known = all_options(RULES)
    if option not in known:
        return f"unknown setting {option!r} -- {right_name(option, ['selection', *known])}"
    taken, switch = method.options(), known[option].switch
    if switch in taken:
        return f"setting {option!r} needs {switch}: got {switch} = {taken[switch]} -- set {switch}, too"
    takers = [name for name, other in METHODS.items() if option in other.options()]
    more = f" and {len(takers) - _MOST_NAMED} others" if len(takers) > _MOST_NAMED else ""
    remedy = f"it is taken by {', '.join(takers[:_MOST_NAMED])}{more}" if takers else "leave it out"
    return f"selection {method.selection.type_name!r} does not take setting {option!r} -- {remedy}"
