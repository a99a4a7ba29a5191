"""A run that is stopped between two trainings, or in one, continues to the same models and figures and leaves nothing behind."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from stepladder.loops.assembly.problem_sets import build_problems
from stepladder.loops.config.load import load_config
from stepladder.loops.runs.directory import RunDir, open_run
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import PolicyTraining, TrainingSummary
from stepladder.loops.runs.workers import Task
from stepladder.loops.stages.context import BestModels, RoundContext
from stepladder.loops.stages.label import label
from stepladder.loops.stages.search import search
from stepladder.loops.stages.train_policy import train_policy, warm_up
from stepladder.loops.stages.train_prm import train_prm
from tests import inline
from tests.runs import write_tiny_config


class InlinePool(inline.InlinePool):
    """A pool without processes that is stopped before some training."""

    def __init__(self, stop_before: str | None = None) -> None:
        """Stop before the job of this name."""
        super().__init__()
        self.stop_before, self.done = stop_before, list[str]()

    def run(self, tasks: list[Task], *, on_progress: Any, **_: Any) -> list[Any]:
        """Run tasks here."""
        results = []
        for task in tasks:
            if task.function.__name__ == self.stop_before:
                raise KeyboardInterrupt
            self.done.append(task.function.__name__)
            results.append(task.function(**task.arguments))
        return results


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a tiny run whose PRM learns from its trees."""
    return write_tiny_config(tmp_path_factory.mktemp("stopped"), num_train=8)


def context_of(root: Path, config_path: Path, stop_before: str | None = None) -> RoundContext:
    """Return the context of a run, new or continued."""
    config = load_config(config_path, ["prm.rollouts=0", "prm.ensemble=2", "sft.max_updates=2", "preference.max_updates=2"])
    run, problems = open_run(root, config), build_problems(config.problems, seed=0)
    pool: Any = InlinePool(stop_before)
    return RoundContext(config=config, run=run, problems=problems, pool=pool, display=ProgressDisplay())


def up_to_training(root: Path, config_path: Path) -> RoundContext:
    """Warm up, search and label."""
    context, best = context_of(root, config_path), BestModels(policy=0, prm=None)
    warm_up(context)
    search(context, 1, context.models(1, 0, None))
    label(context, 1, best)
    return context


def digests(run: RunDir) -> dict[str, str]:
    """Return a digest of every file of the models of round 1."""
    folder = run.round(1) / "models"
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, config_path: Path) -> tuple[PolicyTraining, TrainingSummary, dict[str, str]]:
    """The trainings of a round that nobody stopped, and its files."""
    context = up_to_training(tmp_path_factory.mktemp("undisturbed") / "run", config_path)
    policy, prm = train_policy(context, 1, 0), train_prm(context, 1, BestModels(policy=0, prm=None), 1)
    assert isinstance(prm, TrainingSummary)
    return policy, prm, digests(context.run)


def test_a_stop_between_sft_and_preferences_loses_no_figures(
    tmp_path: Path, config_path: Path, undisturbed: tuple[PolicyTraining, TrainingSummary, dict[str, str]]
) -> None:
    """The SFT is not done again, its summary is in the round's, and neither its model nor what dead trainings left stays."""
    root = tmp_path / "run"
    up_to_training(root, config_path)
    stopped = context_of(root, config_path, stop_before="train_on_preferences")
    with pytest.raises(KeyboardInterrupt):
        train_policy(stopped, 1, 0)
    models = stopped.run.round(1) / "models"
    assert (models / "sft").is_dir()
    assert not (models / "policy").exists()
    for name in ("sft.work", "policy.work"):
        (models / name / "checkpoint-1").mkdir(parents=True)
    again = context_of(root, config_path)
    policy, prm = train_policy(again, 1, 0), train_prm(again, 1, BestModels(policy=0, prm=None), 1)
    assert again.pool.done == ["train_on_preferences", "train_prm_model", "train_prm_model"]  # type: ignore[attr-defined]
    assert policy.sft is not None
    assert (policy, prm, digests(again.run)) == undisturbed
    kept = [f"{name}{suffix}" for name in ("policy", "prm") for suffix in ("", ".digest", ".json")]
    assert sorted(path.name for path in models.iterdir()) == kept


@pytest.mark.parametrize("lost", ["sft.json", "policy.json", "prm.json"])
def test_a_model_without_its_summary_is_trained_again(
    tmp_path: Path, config_path: Path, undisturbed: tuple[PolicyTraining, TrainingSummary, dict[str, str]], lost: str
) -> None:
    """A stop after a model and before its summary: the same models and figures in the end."""
    root = tmp_path / "run"
    up_to_training(root, config_path)
    if lost == "sft.json":
        stopped = context_of(root, config_path, stop_before="train_on_preferences")
        with pytest.raises(KeyboardInterrupt):
            train_policy(stopped, 1, 0)
    else:
        stopped = context_of(root, config_path)
        train_policy(stopped, 1, 0)
        train_prm(stopped, 1, BestModels(policy=0, prm=None), 1)
    (stopped.run.round(1) / "models" / lost).unlink()
    again = context_of(root, config_path)
    policy, prm = train_policy(again, 1, 0), train_prm(again, 1, BestModels(policy=0, prm=None), 1)
    assert (policy, prm, digests(again.run)) == undisturbed
