"""A run that samples first, trains the PRM, and shares out the search: any workers, stopped and continued."""

import json
from pathlib import Path

from stepladder.loops.runs.problem_table import read_problem_table
from tests.integration.test_evolve import data_digests, wait_for_new_files
from tests.runs import called, killed, started, write_tiny_config

SETTINGS = (
    "prm.when=before-search",
    "prm.rollouts=3",
    "prm.target=outcome",
    "prm.loss=implicit-ce",
    "prm.right_share=0.3",
    "search.allocation=unsolved-first",
    "search.allocation.trees_per_problem=3",
    "labels.trace_by=score",
    "labels.replay=0.2",
    "evaluate.samples=2",
    "evaluate.simulations=2",
)


def test_a_round_samples_first_and_shares_out_the_rest(tmp_path: Path) -> None:
    """Round 1 searches with a PRM, on what the samples left unsolved; the policy learns from the samples; a killed run ends the same."""
    config = write_tiny_config(tmp_path, rounds=1, num_train=12, workers=1)
    overrides = [part for setting in SETTINGS for part in ("--set", setting)]
    done = called("evolve", config, "--run-dir", tmp_path / "run", *overrides)
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "run/rounds/001/round.json").read_text())
    # Trees of round 1 were scored, by the PRM of round 1.
    assert first["search"]["scored_tokens"] > 0
    assert first["training"]["prm"]["updates"] > 0
    table = read_problem_table(tmp_path / "run/rounds/001/problems.parquet")
    assert len(table) == 12
    assert all((row.trees > 0) or row.right > 0 for row in table.values())
    assert any(row.trees == 0 for row in table.values()), "samples alone solve some of the problems"
    assert first["search"]["solved"] == sum(row.solved_round == 1 for row in table.values())
    assert first["labels"]["traces"]["kept"] >= sum(row.right > 0 for row in table.values())

    command = ("evolve", config, "--run-dir", tmp_path / "killed", *overrides, "--set", "run.workers=2")
    with started(*command) as process:
        wait_for_new_files(tmp_path / "killed", 25, process)
        assert killed(process)
    done = called(*command)
    assert done.returncode == 0, done.stderr
    assert data_digests(tmp_path / "killed") == data_digests(tmp_path / "run")
