"""Every recipe for two rounds: its own search, labels and trainings on a tiny model, and no stage without data."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from stepladder.commands import evolve as evolve_command
from stepladder.commands.recipes import settings_on_task
from stepladder.loops.config.load import load_config, read_settings
from stepladder.loops.config.run import Config
from stepladder.loops.config.schedule import round_config
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import RoundRow, TrainingSummary
from stepladder.loops.runs.round_settings import RoundSettings
from stepladder.loops.stages.kinds import prm_kind
from stepladder.loops.stages.train_policy import warm_up_policy
from stepladder.recipes import recipes
from tests.inline import inline_pool
from tests.runs import write_tiny_config

REPRESENTATIVE = {"agent-r", "b-star", "cream", "iterative-dpo", "mcts-dpo", "pure", "rest-mcts", "rstar-math", "treerl"}
"""Recipes that every run of the suite tests: together they have every kind of row, training and schedule. `make test-recipes` tests all."""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a task whose policy has learned the form of solutions: a quarter of its answers are right."""
    folder = tmp_path_factory.mktemp("recipes")
    path = write_tiny_config(folder, num_train=12)
    warm_up_policy(config=load_config(path, []), solutions=folder / "warmup.jsonl", out=folder / "policy", stage="")
    settings = read_settings(path)
    del settings["warmup"]
    settings["policy"]["model"] = str(folder / "policy")
    settings["run"] = {"shard_size": 12}
    settings["evaluate"] |= {"simulations": 2, "samples": 2}
    settings["problems"] |= {"held_out_limit": 6, "test_limit": 6}
    return settings


def tiny(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe with few simulations, rollouts and updates."""
    for part in (settings, *settings.get("rounds", ())):
        search, prm = part.get("search", {}), part.get("prm", {})
        if "simulations" in search:
            search["simulations"] = min(search["simulations"], {"treepo": 48}.get(search.get("method"), 8))
        if "commit" in search.get("options", {}):
            search["options"] |= {"commit": 2, "commit_first": 2}
        if "rollouts" in prm:
            prm["rollouts"] = min(prm["rollouts"], 4)
    for stage in (settings.setdefault("sft", {}), settings["preference"], settings["prm"].setdefault("train", {}), *gradient_of(settings)):
        stage["max_updates"] = 2
    if "refinement" in settings["search"]:
        # After two updates a judge says the same of everything; to mend something it must accept one solution and reject another.
        settings["prm"]["train"] |= {"max_updates": 60, "epochs": 100.0}
    if settings["evaluate"].get("method") == "beam":
        # A beam keeps four steps of every depth.
        settings["evaluate"]["simulations"] = 4
    # Six problems of two samples show little; what they show must be used, or no PRM would guide round 2.
    settings["gate"] = {"min_problems": 1, "min_rows": 1}
    if "balance" in settings.get("rules", {}):
        grid = {"low": 0.8, "high": 1.2, "step": 0.4}
        settings["rules"]["balance"] |= {"temperatures": grid, "problems": 6, "samples": 4}
    if "abstention" in settings["labels"]:
        # One of the four answers of this task stands for not knowing.
        settings["labels"]["abstention"] |= {"answer": "d", "text": "d\n"}
        # Solutions have two steps: an abstention comes after one.
        settings["rules"]["hill_climb"] |= {"start": 0.25, "step": 0.25}
    return settings


def gradient_of(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of policy gradients, if a recipe has them."""
    return [settings["gradient"]] if "gradient" in settings else []


@pytest.mark.parametrize("name", [name if name in REPRESENTATIVE else pytest.param(name, marks=pytest.mark.recipes) for name in recipes()])
def test_every_recipe_runs_with_data_in_every_stage(
    name: str, task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds: problems are solved, every configured training has rows, settings of rounds and rules arrive in their files."""
    monkeypatch.setattr(evolve_command, "open_workers", inline_pool)
    config = load_config(None, [], base=tiny(settings_on_task(recipes()[name], task, embedded=True)), where=name)
    rows: list[RoundRow] = []
    run = evolve_command.evolve(config, tmp_path / "run", display=ProgressDisplay(), on_round=rows.append, stop_after=2)
    assert [row.round for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        check_round(run, config, row)


def check_round(run: RunDir, config: Config, row: RoundRow) -> None:
    """Check that every stage of a round that its settings ask for had data."""
    own = RoundSettings.load(run.round_settings(row.round)) or RoundSettings()
    settings = round_config(config, row.round, own.computed)
    assert row.search is not None and row.labels is not None
    assert row.search.solved > 0 and row.nothing_learned is None
    trained = {name: summary.rows for name, summary in row.training.policy.stages.items()}
    assert set(trained) == {name for name in ("sft", "preference", "gradient") if getattr(settings, name).enabled}
    assert all(count > 0 for count in trained.values())
    if settings.prm.trains:
        assert isinstance(row.training.prm, TrainingSummary), row.training.prm
        assert row.training.prm.rows > 0 and run.shards(prm_kind(settings).name, rounds=[row.round])
    else:
        assert row.training.prm is None
    if settings.labels.revisions:
        assert row.labels.revisions is not None and row.labels.revisions.kept > 0
    if config.labels.abstention is not None:
        assert row.labels.abstentions is not None and row.labels.abstentions.kept > 0 and row.held_out.abstention is not None
        assert config.rules.hill_climb is not None and own.computed[config.rules.hill_climb.setting] >= 0
    if config.search.refinement is not None:
        assert row.labels.refined is not None and row.labels.refined.kept > 0 and run.shards("refinements", rounds=[row.round])
    if config.labels.verdicts:
        assert row.labels.verdicts is not None and row.labels.verdicts.kept > 0
    if config.rules.balance is not None:
        assert {"search.options.temperature", "labels.min_trace_reward"} <= set(own.computed) and own.probe_tokens > 0


def test_the_files_say_what_they_are() -> None:
    """Every file has its facts, and no key beside the configuration's; the default tests cover every kind of training."""
    for recipe in recipes().values():
        assert set(tomllib.loads(recipe.text)) >= {"recipe", "search"}
        assert recipe.facts.departures and recipe.facts.source and recipe.facts.cost
    assert set(recipes()) >= REPRESENTATIVE
