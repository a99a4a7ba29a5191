"""Whole runs whose PRM is a head on the policy's body: trained alone, or with the policy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stepladder.commands import evolve as evolve_command
from stepladder.commands.evolve import best_models
from stepladder.interfaces import collect_all
from stepladder.lm.loaded_models import LoadedModels
from stepladder.loops.assembly.policies import build_renderer
from stepladder.loops.assembly.scorers import build_scorer
from stepladder.loops.assembly.search import choose_search, search_engine
from stepladder.loops.config.load import load_config
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import RoundRow, TrainingSummary
from stepladder.loops.stages.tree_rows import score_trees
from stepladder.prm.sources import VALUE_HEAD_FOLDER
from stepladder.prm.specs import PRMSpec
from stepladder.types import Problem, Provenance
from tests.inline import inline_pool
from tests.runs import write_tiny_config

PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="", renderer_hash="")


@pytest.mark.parametrize(
    "settings",
    [
        ["prm.body=policy", "prm.start=best"],
        ["prm.body=joint", "prm.read=step-end", "prm.rollouts=0", "prm.loss=mse", "preference.enabled=false"],
    ],
    ids=["policy", "joint"],
)
def test_a_run_trains_heads_and_searches_with_them(settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both rounds have a PRM that is a head on the round's policy, and score their steps in the passes that sample them."""
    monkeypatch.setattr(evolve_command, "open_workers", inline_pool)
    gate = ["gate.min_problems=1", "gate.min_rows=1", "gate.max_drop=1.0"]
    config = load_config(write_tiny_config(tmp_path, rounds=2, workers=1, num_train=12), [*settings, *gate])
    rows: list[RoundRow] = []
    run = evolve_command.evolve(config, tmp_path / "run", display=ProgressDisplay(), on_round=rows.append)
    for row in rows[1:]:
        assert isinstance(row.training.prm, TrainingSummary)
        assert row.training.prm.rows > 0
        assert not list(run.prm(row.round).glob("model*.safetensors"))
        assert PRMSpec.load(run.prm(row.round)).body == "../policy"
        assert (run.policy(row.round) / VALUE_HEAD_FOLDER).exists() == (config.prm.body == "joint")
    policy, prm = run.policy_source(2, config), run.prm_source(2, config)
    assert best_models(run)[0] == policy
    problems, renderer = [Problem(id=str(i), question=f"test {i} a") for i in range(4)], build_renderer(config, policy)
    method, budget = choose_search(config)
    with LoadedModels() as models:
        engine = search_engine(
            config, models, problems, policy=policy, prm=prm, method=method, budget=budget, provenance=replace(PROVENANCE)
        )
        trees = [result.tree for result in engine.search(problems)]
        assert engine.scorer is not None
        assert engine.scorer.forwarded_tokens == 0  # pyright: ignore[reportAttributeAccessIssue]
        # Without a policy that samples, the head's own policy is loaded; the scores are the same.
        alone = build_scorer(config, models, prm=prm, renderer=renderer, problems=problems)
        again = score_trees(alone, trees)
    scored = [
        (one, two) for tree, other in zip(trees, again, strict=True) for one, two in zip(tree.scores, other, strict=True) if two is not None
    ]
    assert len(scored) > 10
    own, alike = zip(*scored, strict=True)
    np.testing.assert_allclose(own, alike, atol=1e-5)
    assert collect_all(alone, []) == []
