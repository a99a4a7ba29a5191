"""Published systems as files: one TOML file each, with the sizes of the publication and what an embedded task needs instead.

A file is a configuration without a task, and two tables beside it: ``[recipe]`` says what it is, and ``[embedded]`` holds the settings that
differ on an embedded task. To add a recipe, add a file; its name is that of the file.
"""

import tomllib
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

from stepladder.errors import check, right_name

PREFIX = "recipe:"
"""How a recipe is named in the place of a configuration file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeFacts:
    """The table ``[recipe]`` of a file."""

    summary: str
    """One line on what it does."""
    source: str
    """The publication, and the code if it was released."""
    cost: str
    """What the publication spent, or that it does not say."""
    departures: tuple[str, ...]
    """Where the recipe differs from its source, one sentence each."""
    models: str
    """The models of the publication."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A published system."""

    name: str
    """Its name, that of the file."""
    facts: RecipeFacts
    """What it is."""
    settings: dict[str, Any]
    """Its settings with the published sizes."""
    embedded: dict[str, Any]
    """Settings over these on an embedded task."""
    text: str
    """The file."""


@cache
def recipes() -> dict[str, Recipe]:
    """Return all recipes by name, in alphabetical order.

    Raises:
        ConfigError: If a file is malformed.
    """
    found = (entry for entry in files(__name__).iterdir() if entry.name.endswith(".toml"))
    return {name: read_recipe(name, text) for name, text in sorted((entry.name[:-5], entry.read_text("utf-8")) for entry in found)}


def find_recipe(name: str) -> Recipe:
    """Return a recipe.

    Raises:
        ConfigError: If there is none of this name.
    """
    known = recipes()
    check(name in known, f"{PREFIX}{name}: no such recipe -- {right_name(name, known)}")
    return known[name]


def read_recipe(name: str, text: str) -> Recipe:
    """Read the text of a recipe's file.

    Raises:
        ConfigError: If it is no TOML, or its table ``[recipe]`` has missing or unknown keys.
    """
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        check(False, f"{PREFIX}{name}: not a readable TOML file: {error} -- correct it")
        raise
    facts, embedded, wanted = plain.pop("recipe", {}), plain.pop("embedded", {}), {each.name for each in fields(RecipeFacts)}
    check(isinstance(facts, dict) and isinstance(embedded, dict), f"{PREFIX}{name}: [recipe] and [embedded] must be tables")
    wrong = sorted(wanted ^ set(facts))
    check(not wrong, f"{PREFIX}{name}: [recipe] must have the keys {', '.join(sorted(wanted))}, and no others: got a wrong {wrong[:1]}")
    return Recipe(
        name=name,
        facts=RecipeFacts(**{**facts, "departures": tuple(facts["departures"])}),
        settings=plain,
        embedded=embedded,
        text=text,
    )
