"""Runs whose rounds overlap: equal bytes, whoever works and whatever is stopped; rows say which models made them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from stepladder.commands import evolve as evolve_command
from stepladder.commands.evolve import evolve
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import OverlapFigures
from stepladder.loops.runs.workers import Task, prepare_worker
from stepladder.loops.stages import judge
from stepladder.loops.stages.gate import GateDecision
from stepladder.loops.stages.kinds import TREES
from tests.inline import InlinePool, inline_pool
from tests.integration.test_evolve import data_digests
from tests.runs import write_tiny_config

pytestmark = pytest.mark.slow
OVERRIDES = ["run.overlap=true", "sft.max_updates=2", "preference.max_updates=2", "warmup.train.epochs=2"]


class Gates:
    """Gates that refuse the policy of round 1 and accept everything else, so that every case occurs."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(judge, "_policy_decision", lambda context, number, *_: self.decide(number != 1))
        patch.setattr(judge, "_prm_decision", lambda context, number, *_: self.decide(number > 0))

    def decide(self, accepted: bool) -> GateDecision:
        return GateDecision(accepted=accepted, reason="a test")


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    prepare_worker(1)
    with pytest.MonkeyPatch.context() as patch:
        Gates(patch)
        yield patch


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_config(tmp_path_factory.mktemp("overlap"), rounds=3, num_train=12)


@pytest.fixture(scope="module")
def alone(config: Path, patch: pytest.MonkeyPatch) -> RunDir:
    """A run in one process, in which nothing overlaps in time."""
    with patch.context() as here:
        here.setattr(evolve_command, "open_workers", inline_pool)
        return evolve(config, config.parent / "alone", overrides=OVERRIDES)


def test_rounds_begin_with_the_newest_models_that_may_stay(alone: RunDir) -> None:
    """Every tree names the models that made it.

    Round 1 begins early and has no PRM. Round 2 began with policy 1, which the gate refused, and began again with what it left. Round 3
    began with policy 2 and PRM 1, when PRM 2 was still in training.
    """
    expected = [
        None,
        OverlapFigures(policy_version=0, scorer_version=None, prm_rounds_old=0, began_early=True),
        OverlapFigures(policy_version=0, scorer_version=1, prm_rounds_old=0, began_early=False),
        OverlapFigures(policy_version=2, scorer_version=1, prm_rounds_old=1, began_early=True),
    ]
    assert [row.overlap for row in alone.rows()] == expected
    for number, overlap in enumerate(expected):
        trees = TREES.read(alone.shards(TREES.name, rounds=[number]))
        found = {(tree.provenance.round, tree.provenance.policy_version, tree.provenance.scorer_version) for tree in trees}
        assert found == (set() if overlap is None else {(number, overlap.policy_version, overlap.scorer_version)})
    assert alone.rows()[3].best_prm == 3


class EagerPool(InlinePool):
    """Does tasks of the next round at once, as if many workers were idle."""

    def ahead(self, tasks: Sequence[Task]) -> None:
        self.run(tasks, on_progress=None)


@contextmanager
def eager_pool(*_: object, **__: object) -> Iterator[InlinePool]:
    """Stand in for ``open_workers``."""
    yield EagerPool()


class StoppedDisplay(ProgressDisplay):
    """Presses Ctrl-C when a stage begins, or when something is said."""

    def __init__(self, *, stage: tuple[int, str] | None = None, words: str | None = None) -> None:
        super().__init__()
        self._stage, self._words = stage, words

    def enter(self, number: int, stage: str) -> None:
        if (number, stage) == self._stage:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        if self._words is not None and self._words in text:
            raise KeyboardInterrupt


def test_two_workers_and_stops_give_the_same_bytes(config: Path, alone: RunDir, patch: pytest.MonkeyPatch) -> None:
    """A run that is stopped twice and goes on with other workers has the data, models and figures of the run that one process made.

    The first stop comes when the work for round 2 has been thrown away and round 1 is not finished, the other one while two processes
    search round 3.
    """
    root = config.parent / "two"
    with patch.context() as here, pytest.raises(KeyboardInterrupt):
        here.setattr(evolve_command, "open_workers", eager_pool)
        evolve(config, root, overrides=OVERRIDES, display=StoppedDisplay(words="round 2: begins again"))
    with pytest.raises(KeyboardInterrupt):
        evolve(config, root, overrides=OVERRIDES, display=StoppedDisplay(stage=(2, "evaluate")))
    assert [row.round for row in RunDir(root=root).rows()] == [0, 1]
    assert {tree.provenance.policy_version for tree in TREES.read(RunDir(root=root).shards(TREES.name, rounds=[3]))} <= {2}
    with patch.context() as here:
        here.setattr(evolve_command, "open_workers", inline_pool)
        run = evolve(config, root, overrides=OVERRIDES)
    assert data_digests(root) == data_digests(alone.root)
    assert [row.overlap for row in run.rows()] == [row.overlap for row in alone.rows()]
    events = [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]
    assert [event["round"] for event in events if event["event"] == "thrown_away"] == [2]
