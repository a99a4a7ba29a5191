"""The PRM study trains what its tables name, on a run with the settings that runs have."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import prm_study
from stepladder.data.labels.rstar_math import StepPairs
from stepladder.data.store import write_trees
from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import RunDir
from tests.trees import tree


@pytest.mark.parametrize(
    ("settings", "min_margin"),
    [({}, 0.25), ({"target": {"type": "step-pairs", "min_margin": 0.6}, "loss": "pairwise"}, 0.6)],
    ids=["rule's own", "run's"],
)
def test_step_pairs_have_the_margin_that_a_round_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], min_margin: float
) -> None:
    """Without a margin in the run's settings the rule has its own, as in a round."""
    config = Config.model_validate({"policy": {"model": "m"}, "problems": {"train": "a", "test": "b"}, "prm": settings})
    run = RunDir(root=tmp_path / "run")
    run.policy(1).mkdir(parents=True)
    record = tree((-1, 0.5, None), (0, 0.75, None), (0, 0.25, None), (1, 1.0, 1.0), (1, 0.5, 0.0), (2, 0.5, 1.0), (2, 0.0, 0.0))
    write_trees(run.shard(1, "rollouts", 0), [record])
    given: list[object] = []
    renderer = SimpleNamespace(hash="r", step_format=SimpleNamespace(save=lambda out: None))
    monkeypatch.setattr(prm_study, "build_renderer", lambda config, policy: renderer)
    monkeypatch.setattr(prm_study, "train_value", lambda policy, rows, out, settings, **options: given.extend(rows))
    sizes = prm_study.Sizes(problems=1, updates=1, samples=1, tokens=1, members=1, noise=0.0)
    study = prm_study.Study(run=run, config=config, problems=[], root=tmp_path, sizes=sizes)
    prm_study.train(study, prm_study.VARIANTS["pairwise, step pairs"], tmp_path / "prm")
    assert given == StepPairs(min_margin=min_margin).select([record]).rows


def test_every_loss_passes_over_the_solutions_as_often() -> None:
    """Four solutions of one problem: four rows for bce, one group for listwise, and groups at the two nodes with steps that differ."""
    record = tree((-1, 0.5, None), (0, 0.75, None), (0, 0.25, None), (1, 1.0, 1.0), (1, 0.5, 0.0), (2, 0.5, 1.0), (2, 0.0, 0.0))
    rows = prm_study.value_rows([record], target="monte-carlo", drop_one_sided=True).rows
    assert len(rows) == 4
    shares = {
        name: prm_study.rows_per_solution(prm_study.VARIANTS[name], rows, [record]) for name in ("bce", "pairwise", "listwise, outcomes")
    }
    assert shares == {"bce": 1.0, "pairwise": 0.5, "listwise, outcomes": 0.25}
    pairs = StepPairs(min_margin=0.25).select([record]).rows
    nodes = {tuple(pair.prompt_ids) for pair in pairs}
    assert prm_study.rows_per_solution(prm_study.VARIANTS["pairwise, step pairs"], pairs, [record]) == len(nodes) / 4
