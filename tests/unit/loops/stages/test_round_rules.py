"""Values that rules compute between rounds, and how a round keeps them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stepladder.errors import CheckpointError, ConfigError
from stepladder.loops.config.load import load_config
from stepladder.loops.config.rules import EarlyStopRule, Grid, HillClimbRule
from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.round_settings import RoundSettings
from stepladder.loops.stages.context import BestModels, RoundContext
from stepladder.loops.stages.round_rules import Tried, next_value, stops_early, with_round_settings
from tests.report_run import accuracy, row

BEST = BestModels(policy=0, prm=None)


def held_out(number: int, pass_at_1: float | None, *, best: int | None = None) -> RoundRow:
    """A round with a held-out pass@1."""
    made = row(number, policy=0.5, search=0.5, majority=0.5, best_policy=best)
    return replace(made, held_out=replace(made.held_out, pass_at_1=None if pass_at_1 is None else accuracy(pass_at_1)))


def test_hill_climb_by_hand() -> None:
    """8 -> 10 -> 12 as it rises; at 12 it falls, so back to 10 and half a step on the other side; then half of that, turned again."""
    rule = HillClimbRule(setting="search.simulations", start=8.0, step=2.0)
    tried: list[Tried] = []
    found = []
    for figure in (0.3, 0.4, 0.35, 0.39, 0.402):
        found.append(next_value(rule, tried))
        tried.append(Tried(found[-1], figure))
    # 0.402 is no gain: it is less than 0.003 above 0.4.
    assert [*found, next_value(rule, tried)] == [8.0, 10.0, 12.0, 9.0, 10.5, 9.75]


def test_hill_climb_keeps_its_bounds_and_whole_numbers() -> None:
    """A value beyond a bound is the bound; two whole numbers give whole ones; what was not measured is no gain."""
    assert next_value(HillClimbRule(setting="s", start=8, step=3, high=9), [Tried(8, 0.5)]) == 9
    halved = next_value(HillClimbRule(setting="s", start=8, step=3), [Tried(8, 0.5), Tried(11, 0.4)])
    assert halved == 6 and isinstance(halved, int)
    assert next_value(HillClimbRule(setting="s", start=8.0, step=2.0), [Tried(8.0, 0.5), Tried(10.0, None)]) == 7.0
    assert next_value(HillClimbRule(setting="s", start=8.0, step=2.0), [Tried(8.0, None), Tried(10.0, 0.1)]) == 12.0


def test_grid_values_are_as_written() -> None:
    """B-STaR's grids have 15 and 201 values, without 0.7500000000000001."""
    assert Grid(low=0.5, high=1.2, step=0.05).values[5] == 0.75
    assert len(Grid(low=0.5, high=1.2, step=0.05).values) == 15
    assert len(Grid(low=-1.0, high=1.0, step=0.01).values) == 201


def test_early_stop_by_hand() -> None:
    """Two rounds without a gain of the best policy end the run; one does not, nor does a figure that nobody measured."""
    rule = EarlyStopRule(patience=2)
    rows = [held_out(0, 0.3), held_out(1, 0.4), held_out(2, 0.35, best=1), held_out(3, 0.36, best=1)]
    assert [stops_early(rows[:count], rule) is None for count in (1, 2, 3, 4)] == [True, True, True, False]
    assert stops_early(rows, rule) == (
        "the run ends after round 3: 2 rounds changed the held-out pass@1 of the best policy from 0.400 to 0.400 (rules.early_stop)"
    )
    assert stops_early(rows, EarlyStopRule(patience=3)) is None
    assert stops_early(rows, EarlyStopRule(patience=3, least_gain=0.15)) is not None
    assert stops_early([held_out(0, None), *rows[1:]], EarlyStopRule(patience=3)) is None
    assert stops_early(rows, None) is None


def context_of(root: Path, *overrides: str) -> RoundContext:
    """A run with finished rounds 0 and 1."""
    config = load_config(None, ["problems.train=a", "problems.test=b", "policy.model=m", *overrides])
    run = RunDir(root=root)
    for number, figure in ((0, 0.2), (1, 0.3)):
        run.finish_round(held_out(number, figure))
    return RoundContext(config=config, run=run, problems={}, pool=None, display=ProgressDisplay())  # type: ignore[arg-type]


CLIMB = 'rules.hill_climb={setting="search.simulations", start=8, step=4}'


def test_a_round_keeps_its_computed_settings(tmp_path: Path) -> None:
    """They are in its file before it starts, and a continued round takes them from there, whatever the rule would say now."""
    context = context_of(tmp_path, CLIMB)
    RoundSettings(settings={"search.simulations": 8}, computed={"search.simulations": 8}).save(tmp_path / "rounds/001/settings.json")
    inside, _ = with_round_settings(context, 2, BEST)
    assert inside.config.search.simulations == 12
    assert inside.run_config.search.simulations == 32
    assert inside.models(2, 0, None).provenance.config_hash == context.config.hash()
    path = tmp_path / "rounds/002/settings.json"
    assert json.loads(path.read_text()) == {
        "settings": {"search.simulations": 12},
        "computed": {"search.simulations": 12},
        "evidence": {"hill_climb": [[8.0, 0.3]]},
        "probe_tokens": 0,
    }
    path.write_text(path.read_text().replace("12", "13"))
    assert with_round_settings(context, 2, BEST)[0].config.search.simulations == 13
    path.write_text("{}}")
    with pytest.raises(CheckpointError, match=r"settings\.json"):
        with_round_settings(context, 2, BEST)


def test_an_impossible_value_of_a_rule_is_one_sentence(tmp_path: Path) -> None:
    """Climbing down below one simulation is refused with the round and the value."""
    context = context_of(tmp_path, 'rules.hill_climb={setting="search.simulations", start=2, step=-8}')
    RoundSettings(computed={"search.simulations": 2}).save(tmp_path / "rounds/001/settings.json")
    with pytest.raises(ConfigError, match=r"round 2, computed by \[rules\]: setting 'search.simulations': .*got -6"):
        with_round_settings(context, 2, BEST)


def test_a_round_without_settings_of_its_own_writes_none(tmp_path: Path) -> None:
    """Its directory is as it always was, and its settings are those of the run."""
    context = context_of(tmp_path)
    inside, own = with_round_settings(context, 2, BEST)
    assert own == RoundSettings()
    assert not (tmp_path / "rounds/002/settings.json").exists()
    assert inside.config == context.config
    assert isinstance(inside.config, Config)


def test_measurements_keep_the_limits_of_the_run(tmp_path: Path) -> None:
    """Rounds with deeper searches of their own are measured like the others."""
    context = context_of(tmp_path, "rounds=[{round=2, search={max_depth=4}, prm={spec='two-class'}}]")
    inside, _ = with_round_settings(context, 2, BEST)
    assert inside.config.search.max_depth == 4
    assert inside.evaluation_config.search.max_depth == 16
    assert inside.evaluation_config.prm.spec == "two-class"
