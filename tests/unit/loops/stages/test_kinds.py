"""The table of row kinds: names, learners, and which kinds a configuration asks for."""

from pathlib import Path
from typing import Any

import pytest

from stepladder.errors import DataFormatError
from stepladder.loops.stages import kinds
from stepladder.loops.stages.kinds import Learner, RowKind, has_rows, preference_kind, prm_kind
from stepladder.types import Trace
from tests.report_run import config, provenance

ALL = [value for value in vars(kinds).values() if isinstance(value, RowKind)]
STEP_PAIRS = {"target": "step-pairs", "loss": "pairwise"}


def test_every_kind_has_a_folder_of_its_own() -> None:
    """Two kinds in one folder would read each other's shards."""
    assert len({kind.name for kind in ALL}) == len(ALL) == 14


@pytest.mark.parametrize(
    ("prm", "name"),
    [
        ({}, "values"),
        ({"rollouts": 4}, "rollout-values"),
        (STEP_PAIRS, "step-pairs"),
        ({**STEP_PAIRS, "rollouts": 4}, "rollout-step-pairs"),
        ({"target": "rollouts"}, "estimated-values"),
        ({"target": "first-error", "rollouts": 4}, "estimated-values"),
    ],
)
def test_the_prm_learns_from_one_kind(prm: dict[str, Any], name: str) -> None:
    """Trees or rollouts, values or pairs of steps, or values that are estimated."""
    kind = prm_kind(config(prm=prm))
    assert kind.name == name
    assert kind.learner is Learner.PRM


@pytest.mark.parametrize(
    ("preference", "name"), [({}, "pairs"), ({"loss": "kto"}, "graded"), ({"loss": "oreal"}, "graded"), ({"enabled": False}, None)]
)
def test_the_policy_learns_from_what_its_loss_takes(preference: dict[str, Any], name: str | None) -> None:
    """Pairs, graded rows, or traces alone."""
    kind = preference_kind(config(preference=preference))
    assert (None if kind is None else kind.name) == name
    assert kind is None or kind.learner is Learner.POLICY


def test_a_kind_reads_what_it_wrote_and_nothing_else(tmp_path: Path) -> None:
    """Shards follow each other; a shard of another kind is refused; an empty one holds no rows."""
    origin = provenance(1, policy=0, scorer=None)
    row = Trace(problem_id="p", prompt_ids=[1], completion_ids=[2], prompt="q", completion="a", mean_value=1.0, provenance=origin)
    paths = [tmp_path / f"{number}.parquet" for number in range(3)]
    for path, rows in zip(paths, ([row], [], [row, row]), strict=True):
        kinds.TRACES.write(path, rows)
    assert kinds.TRACES.read(paths) == [row, row, row]
    assert has_rows(paths)
    assert not has_rows(paths[1:2])
    assert not has_rows([])
    with pytest.raises(DataFormatError, match="must be a shard of pairs"):
        kinds.PAIRS.read(paths[:1])
