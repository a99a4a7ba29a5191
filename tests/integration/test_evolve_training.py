"""Whole runs whose models are trained in other ways: other PRMs, a given one, several processes."""

import json
from pathlib import Path

import pytest

from stepladder.loops.assembly.policies import build_renderer
from stepladder.loops.config.load import load_config
from stepladder.prm.new_models import initialise_prm
from tests.runs import called, stepladder, write_tiny_config


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (
            "ensemble of preference models",
            ["prm.ensemble=2", "prm.target=step-pairs", "prm.target.min_margin=0.0", "prm.loss=pairwise", "search.scores.ensemble=min"],
        ),
        ("probe", ["prm.body=policy", "prm.start=best"]),
        ("implicit", ["prm.target=outcome", "prm.loss=implicit-ce"]),
        ("first errors", ["prm.target=first-error", "prm.loss=hl-gauss", "evaluate.scores.entropy_penalty=0.1", "prm.rollouts=0"]),
    ],
)
def test_other_prms_run_a_whole_round(tmp_path: Path, name: str, settings: list[str]) -> None:
    """Each is trained, measured on held-out problems, and guides `solve` afterwards; scored files need no further word."""
    config, run = write_tiny_config(tmp_path, rounds=1, workers=1, num_train=12), tmp_path / "run"
    done = called("evolve", config, "--run-dir", run, *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode == 0, done.stderr
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[1])
    assert row["scorer_version"] == 1, row["prm_accepted_reason"]
    assert row["training"]["prm"]["rows"] > 0
    assert row["prm_within_problem_auc"] is not None
    prm = run / "rounds" / "001" / "models" / "prm"
    done = called("solve", "test 1 a", "--run", run, "--prm", prm, "--tokens", 30, "--json")
    assert done.returncode == 0, done.stderr
    if name == "ensemble of preference models":
        members = [(prm / member / "model.safetensors").read_bytes() for member in ("member-00", "member-01")]
        assert members[0] != members[1]
    else:
        (tmp_path / "plain.jsonl").write_text(json.dumps({"question": "test 1 a", "steps": ["+", "a"]}) + "\n")
        scored = called("prm", "score", tmp_path / "plain.jsonl", "--model", prm, "--output", tmp_path / "out.jsonl")
        assert scored.returncode == 0, scored.stderr
        moved = tmp_path / "moved"
        run.rename(moved)
        done = called("prm", "score", tmp_path / "plain.jsonl", "--model", moved / prm.relative_to(run), "--output", tmp_path / "b.jsonl")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def test_a_given_prm_guides_every_round(tmp_path: Path) -> None:
    """With prm.start = "fixed" a PRM that stays as it is guides the search of every round, and is measured after the warm-up already."""
    config = write_tiny_config(tmp_path, rounds=1, workers=1, num_train=6)
    given, policy = tmp_path / "given", str(tmp_path / "model")
    renderer = build_renderer(load_config(config, []), policy)
    model, spec = initialise_prm(policy, renderer_hash=renderer.hash, seed=0, device="cpu")
    model.save_pretrained(given)
    renderer.tokenizer.save_pretrained(given)
    spec.save(given)
    settings = ["--set", "prm.start=fixed", "--set", f"prm.model={given}"]
    done = called("evolve", config, "--run-dir", tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["best_prm"] for row in rows] == [0, 0]
    assert rows[1]["search"]["scored_tokens"] > 0
    assert rows[1]["prm_accepted_reason"] == "the PRM is given"
    assert not (tmp_path / "run" / "rounds/001/models/prm").exists()


@pytest.mark.slow
def test_a_training_in_two_processes_is_part_of_a_run(tmp_path: Path) -> None:
    """The warm-up of a run trains in two launched processes, shows its progress, and the evaluation goes on with what they wrote."""
    config = write_tiny_config(tmp_path, rounds=0, workers=1)
    run = tmp_path / "run"
    done = stepladder("evolve", config, "--run-dir", run, "--set", "training.num_processes=2", "--set", "warmup.train.max_updates=4")
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "rounds/000/models/policy.json").read_text())
    assert summary["updates"] == 4 and summary["layout"] == "trees"
    assert "warm-up: 4/4" in done.stderr + done.stdout
    assert json.loads((run / "metrics.jsonl").read_text())["policy_pass_at_1"] is not None
