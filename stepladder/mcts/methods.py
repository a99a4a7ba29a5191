"""The named search methods: published systems and plain baselines as settings of one engine.

The rows are in ``presets``, which explains how to add one.
"""

from typing import Any

from stepladder.errors import ConfigError, right_name
from stepladder.mcts.presets.level import LEVEL_ROWS
from stepladder.mcts.presets.preset import Preset
from stepladder.mcts.presets.sampled_solutions import SAMPLING_ROWS
from stepladder.mcts.presets.tree_search import DESCENT_ROWS
from stepladder.mcts.search_method import SearchMethod, all_options, build_method
from stepladder.mcts.strategies import SELECTIONS

__all__ = ["METHODS", "OUTSIDE", "PRESETS", "RULES", "Preset", "SearchMethod", "resolve_method"]

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
