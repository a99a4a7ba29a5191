"""Recipes: what they take from a task, what they replace, and every mistake in one sentence."""

import json
import math
from pathlib import Path

import pytest

from stepladder import embedded
from stepladder.cli.asked import asked_run, resolved_settings
from stepladder.commands.recipes import list_recipes, settings_on_task, show_recipe
from stepladder.errors import ConfigError
from stepladder.loops.assembly.checks import check_rounds
from stepladder.recipes import read_recipe, recipes

FACTS = 'summary = "s"\nsource = "s"\ncost = "c"\nmodels = "m"\ndepartures = []\n'
FILE = f"""
start_from = "base"
[recipe]
{FACTS}
[search]
method = "uct"
simulations = 48
max_step_tokens = 2048
[sft]
learning_rate = 7e-6
[embedded.search]
simulations = 6
"""
TASK = {
    "problems": {"train": "a", "test": "b"},
    "policy": {"model": "m"},
    "run": {"shard_size": 9},
    "search": {"method": "mcts", "options": {"c": 2.0}, "max_step_tokens": 12, "max_depth": 5},
    "sft": {"learning_rate": 1e-3, "micro_batch_size": 2},
    "labels": {"traces_per_problem": 7},
    "preference": {"loss": "kto", "learning_rate": 1e-2},
    "gate": {"max_drop": 0.5},
}


def test_a_recipe_on_a_task_of_ones_own_has_the_published_sizes() -> None:
    """Problems, models and missing sizes are the task's; everything that makes the algorithm is the recipe's."""
    settings = settings_on_task(read_recipe("r", FILE), TASK, embedded=False)
    assert settings["problems"] == TASK["problems"] and settings["run"] == {"shard_size": 9}
    assert settings["search"] == {"method": "uct", "simulations": 48, "max_step_tokens": 2048, "max_depth": 5}
    assert settings["sft"] == {"learning_rate": 7e-6, "micro_batch_size": 2}
    assert settings["preference"] == {"learning_rate": 1e-2}
    assert settings["start_from"] == "base"
    assert "labels" not in settings and "gate" not in settings


def test_a_recipe_on_an_embedded_task_has_its_sizes() -> None:
    """Steps and trainings are as large as the task's, and the recipe's own table goes over them."""
    settings = settings_on_task(read_recipe("r", FILE), TASK, embedded=True)
    assert settings["search"] == {"method": "uct", "simulations": 6, "max_step_tokens": 12, "max_depth": 5}
    assert settings["sft"] == {"learning_rate": 1e-3, "micro_batch_size": 2}


def test_alphamath_weighs_values_as_its_source_does() -> None:
    """Its loss is 0.1 (tanh z - q)^2 with q in [-1, 1]; (tanh z + 1) / 2 = sigmoid(2 z) is our value, and (q + 1) / 2 our target."""
    z, q = 0.3, -0.5
    ours = 1 / (1 + math.exp(-2 * z)) - (q + 1) / 2
    weight = recipes()["alphamath"].settings["prm"]["joint_weight"]
    assert weight * ours**2 == pytest.approx(0.1 * (math.tanh(z) - q) ** 2)


def test_recipes_leave_tasks_and_each_other_alone(tmp_path: Path) -> None:
    """Whatever was resolved before, a recipe and a task are what their files say."""
    first = embedded.settings(tmp_path, "puzzle")
    before = json.dumps(first), {name: json.dumps(each.settings) for name, each in recipes().items()}
    for recipe in recipes().values():
        settings_on_task(recipe, embedded.settings(tmp_path, "puzzle"), embedded=True)
    assert (
        json.dumps(embedded.settings(tmp_path, "puzzle")),
        {name: json.dumps(each.settings) for name, each in recipes().items()},
    ) == before


@pytest.mark.parametrize("task", [None, *embedded.TASKS])
@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_a_valid_run(name: str, task: str | None, tmp_path: Path) -> None:
    """On every embedded task that it can do, and on a task of one's own, all rounds pass the checks that a run makes first."""
    asked = asked_run(f"recipe:{name}", on=task, task=None)
    assert (asked.name, asked.config) == (name, None)
    if (name, task) == ("auto-cei", "puzzle"):
        # The puzzle has no answers to abstain from: its answer is the solution.
        with pytest.raises(ConfigError, match=r"labels\.abstention: the answer must be read out of the text"):
            check_rounds(resolved_settings(asked, tmp_path, []))
    else:
        check_rounds(resolved_settings(asked, tmp_path, []))
    file = tmp_path / "own.toml"
    file.write_text('problems = {train = "owner/a", test = "owner/b"}\npolicy = {model = "owner/m"}\nwarmup = {solutions = "w"}\n')
    assert resolved_settings(asked_run(f"recipe:{name}", on=str(file), task=None), tmp_path, ["run.seed=3"]).run.seed == 3


def test_what_is_asked_for(tmp_path: Path) -> None:
    """A file, the default task, another one, a recipe on its own default and on each; the directory is named after it."""
    assert asked_run(None, on=None, task=None) == (None, None, "puzzle", "embedded")
    assert asked_run(None, on=None, task="puzzle") == (None, None, "puzzle", "puzzle")
    assert asked_run("configs/gsm8k.toml", on=None, task=None) == (None, Path("configs/gsm8k.toml"), None, "gsm8k")
    assert asked_run("recipe:star", on=None, task=None) == ("star", None, "glyphs", "star")
    assert asked_run("recipe:star", on="embedded", task=None) == ("star", None, "glyphs", "star")
    assert asked_run("recipe:star", on="puzzle", task=None) == ("star", None, "puzzle", "star")
    assert asked_run("recipe:star", on=None, task="puzzle") == ("star", None, "puzzle", "star")
    assert asked_run("recipe:star", on="my.toml", task=None) == ("star", Path("my.toml"), None, "star")


@pytest.mark.parametrize(
    ("config", "on", "task", "sentence"),
    [
        ("recipe:rstar-mat", None, None, "recipe:rstar-mat: no such recipe -- did you mean 'rstar-math'?"),
        (None, "puzzle", None, "--on: names the task of a recipe: got no recipe -- name a recipe:NAME"),
        ("a.toml", "b.toml", None, "--on: names the task of a recipe: got a.toml"),
        ("a.toml", None, "puzzle", "--task: names an embedded task, and a.toml is a task: got both"),
        ("recipe:star", "puzzle", "glyphs", "--task: is the same as --on for an embedded task: got 'puzzle' and 'glyphs'"),
        (None, None, "puzle", "--task: must be one of"),
    ],
)
def test_a_contradiction_is_one_sentence(config: str | None, on: str | None, task: str | None, sentence: str) -> None:
    """The sentence names the option and both values."""
    with pytest.raises(ConfigError) as caught:
        asked_run(config, on=on, task=task)
    assert sentence in str(caught.value)


def test_a_wrong_setting_of_a_recipe_is_one_sentence(tmp_path: Path) -> None:
    """The sentence begins with the recipe, and names the right key."""
    with pytest.raises(ConfigError, match=r"^recipe:star: unknown setting 'search.num_children' -- did you mean"):
        resolved_settings(asked_run("recipe:star", on=None, task=None), tmp_path, ["search.num_children=2"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[search", "recipe:r: not a readable TOML file:"),
        ("recipe = 3", "recipe:r: [recipe] and [embedded] must be tables"),
        (f"[recipe]\n{FACTS}price = 3", "and no others: got a wrong ['price']"),
        ('[recipe]\nsummary = "s"', "and no others: got a wrong ['cost']"),
    ],
)
def test_a_malformed_file_is_one_sentence(text: str, sentence: str) -> None:
    """A file says what it is, with known keys and no others."""
    with pytest.raises(ConfigError) as caught:
        read_recipe("r", text)
    assert sentence in str(caught.value)


def test_the_list_names_every_recipe_with_its_cost() -> None:
    """Two lines each; one recipe is printed as its file."""
    listed = list_recipes().splitlines()
    assert [line.split()[0] for line in listed[: 2 * len(recipes()) : 2]] == list(recipes())
    assert listed.count("") == 1 and sum("cost: " in line for line in listed) == len(recipes())
    assert show_recipe("rstar-math").startswith("# rStar-Math")
    with pytest.raises(ConfigError, match="no such recipe"):
        show_recipe("nothing")
