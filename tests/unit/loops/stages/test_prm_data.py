"""Where the rows of a round's PRM come from, and how its samples are drawn."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stepladder.loops.runs.directory import RunDir
from stepladder.loops.stages import rollouts
from stepladder.loops.stages.prm_rows import prm_shards
from tests.report_run import config

STEP_PAIRS = {"target": "step-pairs", "loss": "pairwise"}
ACCUMULATE = {"data": "accumulate", "rollouts": 1}


@pytest.mark.parametrize(
    ("prm", "expected"),
    [
        ({"rollouts": 1}, ["2/rollout-values"]),
        ({"data": "accumulate"}, ["1/values", "2/values"]),
        (ACCUMULATE, ["1/rollout-values", "2/rollout-values"]),
        ({**ACCUMULATE, "when": "before-search"}, ["1/rollout-values", "2/rollout-values", "1/values"]),
        ({"rollouts": 1, "when": "before-search"}, ["2/rollout-values"]),
        ({**ACCUMULATE, **STEP_PAIRS, "when": "before-search"}, ["1/rollout-step-pairs", "2/rollout-step-pairs", "1/step-pairs"]),
    ],
)
def test_a_prm_learns_from_the_trees_that_exist_when_it_is_trained(tmp_path: Path, prm: dict[str, Any], expected: list[str]) -> None:
    """Before its search, a round has samples alone; the rounds before have trees as well. Round 2's own trees belong to round 3."""
    run = RunDir(root=tmp_path)
    for number in (1, 2):
        for kind in ("values", "rollout-values", "step-pairs", "rollout-step-pairs"):
            path = run.shard(number, kind, 0)
            path.parent.mkdir(parents=True)
            path.touch()
    context = cast(Any, SimpleNamespace(run=run, config=config(prm=prm)))
    found = [f"{int(path.parts[-3])}/{path.parts[-2]}" for path in prm_shards(context, 2)]
    assert found == expected


def test_earlier_samples_are_in_the_trees_that_began_with_them(tmp_path: Path) -> None:
    """Of the round before, the values of the trees hold the samples' already."""
    run = RunDir(root=tmp_path)
    for number, kind in itertools.product((1, 2), ("values", "rollout-values")):
        path = run.shard(number, kind, 0)
        path.parent.mkdir(parents=True)
        path.touch()
    settings = config(prm={**ACCUMULATE, "when": "before-search"}, search={"start": "first-samples"})
    found = prm_shards(cast(Any, SimpleNamespace(run=run, config=settings)), 2)
    assert found == [run.shard(2, "rollout-values", 0), run.shard(1, "values", 0)]


def test_rollouts_have_their_own_temperature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples for the PRM are drawn at ``prm.rollout_temperature``, whatever the search's is."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(rollouts, "write_labelled_trees", lambda *given, **named: seen.update(named))
    settings = config(prm={"rollouts": 3, "rollout_temperature": 0.7})
    rollouts.roll_out_shard(config=settings, models=cast(Any, None), problems=[], out=tmp_path / "0.parquet", stage="rollouts")
    assert seen["method"].sampling.temperature == 0.7
    assert seen["budget"].num_simulations == 3
