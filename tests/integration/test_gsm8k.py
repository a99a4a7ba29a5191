"""The same code on a real task by configuration alone: GSM8K's own files, any causal model, answers graded under rule math."""

import json
import os
from pathlib import Path

import pytest

from tests.models import save_tiny_policy
from tests.runs import called, stepladder

ROOT = Path(__file__).parents[2]
ORACLES = Path(os.environ.get("STEPLADDER_ORACLES", ROOT.parent / "shared" / "oracles"))
TRAIN, TEST = ORACLES / "gsm8k" / "train.jsonl", ORACLES / "gsm8k" / "test.jsonl"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TRAIN.exists(), reason="GSM8K's files are not here; set STEPLADDER_ORACLES to the folder that holds gsm8k/"),
]

SMALL = {
    "problems.train": TRAIN,
    "problems.test": TEST,
    "problems.held_out_size": 4,
    "problems.train_limit": 6,
    "problems.test_limit": 4,
    "policy.device": "cpu",
    "run.rounds": 1,
    "run.workers": 2,
    "run.shard_size": 4,
    "search.simulations": 4,
    "search.max_depth": 3,
    "search.max_step_tokens": 12,
    "evaluate.simulations": 4,
    "evaluate.samples": 4,
    "prm.train.epochs": 1,
    "prm.mixed_only": "false",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one round with a random byte-level model."""
    folder = tmp_path_factory.mktemp("gsm8k")
    save_tiny_policy(folder / "model", vocab="bytes", max_positions=2048)
    settings = {**SMALL, "policy.model": folder / "model"}
    overrides = [value for key, setting in settings.items() for value in ("--set", f"{key}={setting}")]
    done = stepladder("evolve", ROOT / "configs" / "gsm8k.toml", "--run-dir", folder / "run", *overrides)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_every_stage_runs_and_says_what_it_found(run: Path) -> None:
    """A random model solves nothing: pass@1 is 0, the policy is left as it is, and the row says why."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1]
    assert rows[1]["policy_pass_at_1"] == 0.0
    assert rows[1]["search"]["problems"] == 6
    assert rows[1]["search"]["solved"] == 0
    assert rows[1]["labels"]["traces"]["kept"] == 0
    assert not rows[1]["accepted"]
    assert "no training data" in rows[1]["accepted_reason"]
    assert rows[1]["prm_within_problem_auc"] is None


def test_solve_and_export(run: Path, tmp_path: Path) -> None:
    """Solve takes the original file, answers and all, and numbers its lines; the trees export; an empty export says that it is empty."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(TEST.read_text(encoding="utf-8").splitlines(keepends=True)[:3]), encoding="utf-8")
    output = tmp_path / "answers.jsonl"
    done = called("solve", "--input", questions, "--output", output, "--run", run, "--id-field", "", "--tokens", 60)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["questions-1", "questions-2", "questions-3"]
    done = called("export", run, "--format", "tree", "--to", tmp_path / "trees")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "trees").rglob("*.parquet"))
    done = called("export", run, "--format", "preference", "--to", tmp_path / "pairs")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
