"""A language model and a value head trained by one loss: what the loss is, what is saved, and what it learns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stepladder.errors import ConfigError
from stepladder.lm.completions import CompletionRow
from stepladder.lm.loading import load_causal_lm
from stepladder.lm.packing import pack_rows
from stepladder.lm.settings import TrainSettings
from stepladder.lm.tree_attention import tree_attention
from stepladder.loops.assembly import two_heads
from stepladder.loops.assembly.checks import check_joint
from stepladder.loops.assembly.two_heads import JointObjective, collate_joint, collate_packed_joint, train_two_heads
from stepladder.loops.config.load import load_config
from stepladder.prm.checkpoints import load_head
from stepladder.prm.objective import StepObjective
from stepladder.prm.sources import VALUE_HEAD_FOLDER, prm_members
from stepladder.prm.specs import PRMSpec
from stepladder.prm.target_rows import TargetRow
from stepladder.types import Trace
from tests.models import save_tiny_policy
from tests.runs import write_tiny_config
from tests.value_paths import HASH, PROVENANCE, auc, scores_of, toy_rows

SPEC = PRMSpec(family="probe", body="..", read="step-end", renderer_hash=HASH)
OBJECTIVE = JointObjective(values=StepObjective(loss_name="mse", spec=SPEC), weight=0.5)
PARTS = {"renderer_hash": HASH, "spec": SPEC, "objective": OBJECTIVE}
ROWS = [
    CompletionRow(prompt_ids=[5, 6], completion_ids=[7, 8, 9], group="p"),
    TargetRow(ids=[5, 6, 7, 8, 9], positions=[3, 4], targets=[0.25, 1.0], group="p"),
    TargetRow(ids=[5, 6, 11], positions=[2], targets=[0.0], group="p"),
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy."""
    return save_tiny_policy(tmp_path_factory.mktemp("policy"), hidden=32, layers=1, max_positions=64)


def _with_head(policy: Path):
    model = load_causal_lm(policy, device="cpu")
    two_heads._add_head(model, policy, SPEC, seed=0)
    return model


def test_the_loss_is_likelihood_plus_weighted_values_on_plain_and_packed_rows(policy: Path) -> None:
    """Three tokens and three targets: -(1/3) sum log pi + 0.5 (1/3) sum (sigmoid(w h + b) - y)^2, the same with one gradient on trees."""
    model = _with_head(policy)
    head = model.value_head.head
    found = []
    for packed in (False, True):
        batch = collate_packed_joint([*pack_rows(ROWS, row_tokens=64)]) if packed else collate_joint(ROWS)
        counts = OBJECTIVE.counts(batch)
        assert counts.tolist() == [3, 3]
        model.zero_grad()
        if packed:
            with tree_attention(model):
                loss = OBJECTIVE.loss(model, batch, counts)
                loss.backward()
        else:
            loss = OBJECTIVE.loss(model, batch, counts)
            loss.backward()
        found.append((loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
    with torch.no_grad():
        logps = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0].log_softmax(-1)
        likelihood = -(logps[1, 7] + logps[2, 8] + logps[3, 9]) / 3
        first = torch.sigmoid(head(model.model(torch.tensor([[5, 6, 7, 8, 9]])).last_hidden_state[0, [3, 4]]))[:, 0]
        second = torch.sigmoid(head(model.model(torch.tensor([[5, 6, 11]])).last_hidden_state[0, 2]))[0]
    values = ((first[0] - 0.25) ** 2 + (first[1] - 1.0) ** 2 + second**2) / 3
    torch.testing.assert_close(found[0][0], likelihood + 0.5 * values)
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-4)


def test_counts_stay_on_the_device_of_the_batch() -> None:
    """A batch that was moved to another device is counted there."""
    moved = {name: each.to("meta") for name, each in collate_joint(ROWS).items() if name != "inputs"}
    assert OBJECTIVE.counts(moved).device.type == "meta"


def test_a_pass_with_one_kind_of_rows_adds_nothing_for_the_other(policy: Path) -> None:
    """The losses of two passes of one update add up to that of one pass."""
    model = _with_head(policy)
    whole = collate_joint(ROWS)
    counts = OBJECTIVE.counts(whole)
    with torch.no_grad():
        parts = [OBJECTIVE.loss(model, collate_joint(rows), counts) for rows in (ROWS[:1], ROWS[1:])]
        torch.testing.assert_close(parts[0] + parts[1], OBJECTIVE.loss(model, whole, counts))


def test_both_heads_learn_and_are_one_directory(policy: Path, tmp_path: Path) -> None:
    """Likelihood rises and values tell good steps from bad ones; plain transformers loads the policy, and a second training goes on."""
    values, settings = toy_rows(192, seed=0), TrainSettings(learning_rate=5e-3, epochs=6.0, batch_size=32, device="cpu")
    trace = {"prompt": "", "completion": "", "mean_value": 1.0, "provenance": PROVENANCE}
    traces = [Trace(problem_id=f"t{i}", prompt_ids=[20 + i, 21], completion_ids=[30, 31, 32], **trace) for i in range(16)]
    out = tmp_path / "both"
    report = train_two_heads(policy, traces, values, out, settings, **PARTS)
    assert report.rows == 208
    assert report.layout == "trees"
    model = AutoModelForCausalLM.from_pretrained(out)
    assert not [name for name, _ in model.named_parameters() if "value" in name]
    with torch.no_grad():
        before, after = (
            each(torch.tensor([[20, 21, 30, 31]])).logits[0].log_softmax(-1)[[1, 2, 3], [30, 31, 32]].sum()
            for each in (AutoModelForCausalLM.from_pretrained(policy), model)
        )
    assert after > before + 3
    assert prm_members(str(out)) == [str(out / VALUE_HEAD_FOLDER)]
    rows = toy_rows(64, seed=1)
    good = np.array([target > 0.5 for row in rows for target in row.targets])
    assert auc(scores_of(out / VALUE_HEAD_FOLDER, rows), good) > 0.8
    still = replace(settings, learning_rate=1e-9, max_updates=1)
    train_two_heads(out, traces, values[:8], tmp_path / "again", still, **PARTS)
    heads = [load_head(each / VALUE_HEAD_FOLDER, SPEC).weight for each in (out, tmp_path / "again")]
    torch.testing.assert_close(*heads, rtol=0, atol=1e-6)


def test_settings_that_two_heads_do_not_have_are_refused(tmp_path: Path) -> None:
    """One sentence each: a training after the joint one, rows that are no values of trees, another engine."""
    config = write_tiny_config(tmp_path)
    with pytest.raises(ConfigError, match=r"prm.body: 'joint' trains policy and head together .* needs preference.enabled False, got True"):
        check_joint(load_config(config, ["prm.body=joint", "prm.rollouts=0"]))
    check_joint(load_config(config, ["prm.body=joint", "prm.rollouts=0", "preference.enabled=false"]))
    for settings, message in {
        ("prm.body=joint", "prm.rollouts=4"): "needs rollouts 0, got 4",
        ("prm.body=joint", "prm.rollouts=0", "prm.target=rollouts"): "learns values of trees: got target 'rollouts'",
        ("prm.body=policy", "prm.loss=implicit-ce", "prm.target=outcome"): "has a value head: got loss 'implicit-ce'",
        ("prm.body=policy", "prm.backend=vllm"): "needs the policy's hidden states: got backend 'vllm'",
        ("prm.body=policy", "prm.model=model"): "trains a head on the policy: got model",
        ("prm.read=before-end",): "body 'own' reads at the end of steps: got read 'before-end'",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load_config(config, [*settings])
