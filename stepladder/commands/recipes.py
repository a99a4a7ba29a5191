"""Recipes on tasks: the settings of a run from a published system and a task, and the list of all systems."""

from typing import Any

from stepladder.loops.config.merge import merge
from stepladder.recipes import PREFIX, Recipe, find_recipe, recipes

ALGORITHM = ("search", "labels", "sft", "preference", "gradient", "prm", "start_from", "start_model", "gate", "rules", "rounds")
"""Sections and settings that a recipe defines; all others are those of the task."""

_SIZES: dict[str, tuple[str, ...]] = {
    "search": ("max_depth", "max_step_tokens", "max_tokens", "max_trees"),
    "prm": ("train", "backend"),
}
_METHODS_OF_TRAINING = {"preference": ("enabled", "loss", "reference"), "gradient": ("enabled", "loss", "reference"), "sft": ()}


def settings_on_task(recipe: Recipe, task: dict[str, Any], *, embedded: bool) -> dict[str, Any]:
    """Return the settings of a recipe on a task, as in a configuration file.

    The task gives problems, prompts, models and measurements. The recipe replaces everything that makes an algorithm. Sizes, which are the
    limits of steps and how models are trained, are the published ones on a task of one's own, where the recipe has them. On an embedded
    task they are those of the task, and the recipe's table ``[embedded]`` goes over them.

    Args:
        recipe: The recipe.
        task: Settings of the task.
        embedded: Whether it is an embedded task.
    """
    settings: dict[str, Any] = {}
    kept = {name: value for name, value in task.items() if name not in ALGORITHM}
    sizes = _sizes(task)
    for layer in (kept, recipe.settings, sizes, recipe.embedded) if embedded else (kept, sizes, recipe.settings):
        merge(settings, layer)
    return settings


def _sizes(task: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a task that say how large its steps and its trainings are."""
    found: dict[str, Any] = {}
    for section, value in task.items():
        if not isinstance(value, dict):
            continue
        if section in _METHODS_OF_TRAINING:
            found[section] = {key: one for key, one in value.items() if key not in _METHODS_OF_TRAINING[section]}
        elif section in _SIZES:
            found[section] = {key: one for key, one in value.items() if key in _SIZES[section]}
    return found


def list_recipes() -> str:
    """Return one line per recipe, and its cost."""
    width = max(map(len, recipes()))
    lines = []
    for name, recipe in recipes().items():
        lines += [f"{name:<{width}}  {recipe.facts.summary}", f"{'':<{width}}  cost: {recipe.facts.cost}"]
    return "\n".join([*lines, "", f"stepladder evolve {PREFIX}NAME runs one on an embedded task, --on CONFIG.toml on another task."])


def show_recipe(name: str) -> str:
    """Return the file of a recipe.

    Raises:
        ConfigError: If there is none of this name.
    """
    return find_recipe(name).text.rstrip()
