"""The run that a command line of ``evolve`` names: a configuration file, an embedded task, or a recipe on either."""

from pathlib import Path
from typing import Any, NamedTuple

from stepladder.errors import check

_DEFAULT = "embedded"


class AskedRun(NamedTuple):
    """The run that a command line names."""

    recipe: str | None
    """Name of a recipe; None runs the task's own settings."""
    config: Path | None
    """The configuration file; None runs an embedded task."""
    task: str | None
    """The embedded task; None with a configuration file."""
    name: str
    """Name of its directory, unless another is given."""


def asked_run(config: str | None, *, on: str | None, task: str | None) -> AskedRun:
    """Return the run that the arguments of ``evolve`` name.

    Raises:
        ConfigError: If they contradict each other, or name a task that does not exist.
    """
    from stepladder import embedded
    from stepladder.recipes import PREFIX, find_recipe

    recipe = find_recipe(config.removeprefix(PREFIX)).name if config is not None and config.startswith(PREFIX) else None
    check(recipe is not None or on is None, f"--on: names the task of a recipe: got {config or 'no recipe'} -- name a recipe:NAME")
    check(on is None or task is None, f"--task: is the same as --on for an embedded task: got {on!r} and {task!r} -- leave one out")
    embedded_on = on is None or on == _DEFAULT or on in embedded.TASKS
    file = (None if embedded_on else on) if recipe is not None else config
    check(file is None or task is None, f"--task: names an embedded task, and {file} is a task: got both -- leave one out")
    path, chosen = None if file is None else Path(file), task if on in (None, _DEFAULT) else on
    if path is None:
        embedded.task_named(chosen)
    name = recipe or (path.stem if path else chosen or _DEFAULT)
    default = embedded.DEFAULT_TASK if recipe is None else embedded.RECIPE_TASK
    return AskedRun(recipe, path, None if path else chosen or default, name)


def resolved_settings(asked: AskedRun, start: Path, overrides: list[str]) -> Any:
    """Return the configuration of a run.

    Args:
        asked: The run.
        start: Where the files of an embedded task are, or will be.
        overrides: Each ``section.key=value``.

    Raises:
        ConfigError: If a setting is unknown or impossible.
    """
    from stepladder import embedded
    from stepladder.commands.recipes import settings_on_task
    from stepladder.loops.config.load import load_config, read_settings
    from stepladder.recipes import PREFIX, find_recipe

    if asked.recipe is None:
        return load_config(asked.config, overrides, base=None if asked.config else embedded.settings(start, asked.task))
    task = read_settings(asked.config) if asked.config else embedded.settings(start, asked.task)
    settings = settings_on_task(find_recipe(asked.recipe), task, embedded=asked.config is None)
    return load_config(None, overrides, base=settings, where=f"{PREFIX}{asked.recipe}")
