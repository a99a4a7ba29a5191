"""The stages of a round in their order, and the guess of what is left of a run, worked out by hand."""

from pathlib import Path

import pytest

from stepladder import embedded
from stepladder.loops.config.load import load_config
from stepladder.loops.config.run import Config
from stepladder.loops.stages.plan import PURPOSES, planned_stages, purpose, seconds_left

PLAN = {0: ["train policy", "evaluate"], 1: ["search", "train policy", "evaluate"], 2: ["search", "train policy", "evaluate"]}


def _config(task: str, *overrides: str) -> Config:
    return load_config(None, list(overrides), base=embedded.settings(Path("start"), task))


def test_rounds_have_the_stages_of_their_settings() -> None:
    """Samples for the PRM come after the policy, or before the search; a run without a PRM has neither; every stage has a purpose."""
    after = ["search", "label", "train policy", "rollouts", "train prm", "evaluate"]
    before = ["rollouts", "train prm", "search", "label", "train policy", "evaluate"]
    assert planned_stages(_config("glyphs"), 1) == after
    assert planned_stages(_config("puzzle"), 3) == before
    assert planned_stages(_config("glyphs", "prm.enabled=false"), 1) == ["search", "label", "train policy", "evaluate"]
    online = planned_stages(_config("glyphs", "run.update_every=4"), 1)
    assert online[:2] == ["search and train policy", "search"] and "train policy" not in online
    assert planned_stages(_config("glyphs"), 0) == ["train policy", "evaluate"]
    settings = embedded.settings(Path("start"), "glyphs")
    del settings["warmup"]
    assert planned_stages(load_config(None, [], base=settings), 0) == ["evaluate"]
    assert all(stage in PURPOSES for stage in (*after, *before))
    assert purpose(0, "train policy") != purpose(1, "train policy")


def test_a_stage_to_come_takes_what_it_took_before() -> None:
    """In round 2's search, 5 s to come; its training 20 s and evaluation 12 s as in round 1."""
    spent = {0: {"train policy": 100.0, "evaluate": 10.0}, 1: {"search": 30.0, "train policy": 20.0, "evaluate": 12.0}}
    assert seconds_left(PLAN, spent, number=2, stage="search", elapsed=25.0, stage_left=5.0) == 5 + 20 + 12
    # The stage does not say: it took 30 s before, and has run for 25; one that takes longer than before is about to end.
    assert seconds_left(PLAN, spent, number=2, stage="search", elapsed=25.0, stage_left=None) == 5 + 20 + 12
    assert seconds_left(PLAN, spent, number=2, stage="search", elapsed=99.0, stage_left=None) == 20 + 12


@pytest.mark.parametrize("number", [0, 1])
def test_nothing_is_guessed_of_a_stage_that_never_ran(number: int) -> None:
    """The training of the warm-up says nothing about that of a round."""
    spent = {0: {"train policy": 100.0, "evaluate": 10.0}}
    stage = "evaluate" if number == 0 else "search"
    assert seconds_left(PLAN, spent, number=number, stage=stage, elapsed=1.0, stage_left=2.0) is None


def test_the_last_stage_is_what_is_left() -> None:
    """Nothing comes after it."""
    assert seconds_left(PLAN, {}, number=2, stage="evaluate", elapsed=1.0, stage_left=2.5) == 2.5
