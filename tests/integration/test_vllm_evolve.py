"""A whole run whose searches and scores come from vLLM: every stage, engines ended for training and started on new weights."""

import json

import pytest
import torch
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.data.store import read_trees
from stepladder.lm.loading import load_causal_lm
from tests.models import save_tiny_policy
from tests.runs import write_tiny_config

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


def _largest_drift(model, trees):
    """Return how far stored log-probabilities are from those of a plain forward, in nats."""
    largest = 0.0
    for tree in trees:
        for node, ids in enumerate(tree.token_ids):
            path, at = list(ids), tree.parents[node]
            while at > 0:
                path, at = [*tree.token_ids[at], *path], tree.parents[at]
            whole = [*tree.prompt_ids, *path]
            if not ids:
                continue
            with torch.no_grad():
                logps = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            expected = [logps[at - 1, whole[at]].item() for at in range(len(whole) - len(ids), len(whole))]
            largest = max(largest, *(abs(a - b) for a, b in zip(tree.logps[node], expected, strict=True)))
    return largest


def test_a_run_on_vllm_uses_the_weights_of_its_round(tmp_path):
    """Trees of round 1 are sampled by the warmed-up policy and its evaluation's trees by the newly trained one, within 1e-4 per token."""
    config = write_tiny_config(tmp_path / "start", rounds=1, workers=1, num_train=6)
    run = tmp_path / "run"
    settings = ["policy.backend=vllm", "prm.backend=vllm", "policy.max_batch=64"]
    arguments = ["evolve", str(config), "--run-dir", str(run), *(word for setting in settings for word in ("--set", setting))]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    use = rows[1]["search"]
    unique = use["unique_tokens"]
    # Prompts and solutions of this task are shorter than a block of 32 tokens, so every sample forwards its whole prefix.
    assert use["cached_share"] < 0.5 and use["forwarded_tokens"] > unique and use["prm_forwarded_tokens"] is None
    assert use["forwarded_per_unique_token"] == pytest.approx(use["forwarded_tokens"] / unique, abs=1e-4)
    policies = [load_causal_lm(run / "rounds" / number / "models" / "policy", device="cpu") for number in ("000", "001")]
    searched = [tree for path in sorted((run / "rounds/001/trees").glob("*.parquet")) for tree in read_trees(path)]
    tested = [tree for path in sorted((run / "rounds/001/evaluation/test/search").glob("*.parquet")) for tree in read_trees(path)]
    assert searched and tested
    assert all(score is not None for tree in tested for score in tree.scores[1:])
    assert _largest_drift(policies[0], searched) < 1e-4
    assert _largest_drift(policies[1], tested) < 1e-4 < _largest_drift(policies[0], tested)


@pytest.mark.parametrize("backend", ["policy.backend", "prm.backend"])
def test_a_model_that_vllm_cannot_serve_is_refused_before_its_warm_up(tmp_path, backend):
    """Whether it samples or scores; ``doctor`` gives the same sentence, and nothing is written."""
    config, run = write_tiny_config(tmp_path / "start"), tmp_path / "run"
    save_tiny_policy(tmp_path / "start" / "model", head_dim=24)
    for command, code in ((["evolve", str(config), "--run-dir", str(run)], 2), (["doctor", str(config)], 1)):
        done = CliRunner().invoke(app, [*command, "--set", f"{backend}=vllm"])
        assert done.exit_code == code, done.output
        assert "model: vLLM's attention on this machine (CPU_ATTN) takes heads of size 32" in done.output
        assert ": got 24 -- use backend 'transformers'" in done.output
    assert not run.exists()
