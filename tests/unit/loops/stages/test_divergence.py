"""Log-probabilities of samples under a start policy, by a plain forward."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from stepladder.loops.stages.divergence import start_logps
from stepladder.prm.checkpoints import load_bare_lm
from stepladder.prm.served import CachedModel
from tests.models import save_tiny_policy
from tests.trees import tree


def test_log_probabilities_are_those_of_a_plain_forward(tmp_path: Path) -> None:
    """Every draw is its prompt and its steps; the sum runs over the sampled tokens alone."""
    model = save_tiny_policy(tmp_path / "start", hidden=32, layers=1)
    drawn = tree((-1, 0.0, None), (0, 0.0, None), (1, 1.0, 1.0), (0, 0.0, 0.0), tokens={1: [5, 6], 2: [7], 3: [8, 9, 10]}, prompt=(11, 12))
    with torch.no_grad():
        network = AutoModelForCausalLM.from_pretrained(model)

        def plain(steps: list[int]) -> float:
            logps = network(torch.tensor([[11, 12, *steps]])).logits[0].double().log_softmax(-1)
            return sum(logps[1 + place, token].item() for place, token in enumerate(steps))

        expected = [plain([5, 6, 7]), plain([8, 9, 10])]
    served = CachedModel.of_language_model(*load_bare_lm(model, device="cpu"))
    assert start_logps(drawn, served) == pytest.approx(expected, abs=1e-4)
    assert start_logps(replace(drawn, stop_reasons=["step"] * 4), served) == []
