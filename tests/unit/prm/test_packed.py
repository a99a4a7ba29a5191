"""Training the PRM on trees: one forward pass scores every step, with the losses and gradients of separate paths."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stepladder.lm.packing import pack_rows
from stepladder.lm.settings import TrainSettings
from stepladder.prm.new_models import initialise_prm
from stepladder.prm.objective import Loss, StepObjective, step_outputs
from stepladder.prm.target_rows import collate_packed_values, collate_values, target_rows
from stepladder.prm.value_training import train_value
from stepladder.types import ValueRow
from tests.models import save_tiny_policy
from tests.value_paths import HASH, PROVENANCE, tree_paths


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy."""
    return save_tiny_policy(tmp_path_factory.mktemp("policy"), hidden=32, layers=2, max_positions=64)


@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("row_tokens", [1000, 40])
def test_packed_value_training_has_the_gradients_of_paths(policy: Path, loss: Loss, row_tokens: int) -> None:
    """Outputs, loss and every parameter's gradient are those of separate paths, whole or cut; targets are counted alike."""
    model, _ = initialise_prm(policy, renderer_hash=HASH, seed=0, device="cpu")
    rows = target_rows(tree_paths(seed=0), vocabulary=60, dropped={})
    objective, found = StepObjective(loss_name=loss), []
    trees = pack_rows(rows, row_tokens=row_tokens)
    rows = [row for tree in trees for row in tree.rows]
    packed, plain = collate_packed_values(trees), collate_values(rows)
    present = ~plain["targets"].isnan()
    torch.testing.assert_close(packed["targets"], plain["targets"][present])
    torch.testing.assert_close(step_outputs(model, packed), step_outputs(model, plain)[present], rtol=1e-5, atol=1e-6)
    for batch in (packed, plain):
        assert objective.counts(batch).tolist() == [3 * 30, 0]
        model.zero_grad()
        value = objective.loss(model, batch, objective.counts(batch))
        value.backward()
        found.append((value.item(), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    largest = max(float(gradient.norm()) for gradient in found[1][1])
    for ours, expected in zip(found[0][1], found[1][1], strict=True):
        assert float((ours - expected).norm()) <= 1e-5 * max(float(expected.norm()), 1e-3 * largest)


def test_equal_steps_of_different_nodes_each_count(policy: Path) -> None:
    """Two nodes with the same tokens are one token in the tree and two targets in the loss."""
    model, _ = initialise_prm(policy, renderer_hash=HASH, seed=0, device="cpu")
    fields = {"problem_id": "p", "prompt_ids": [5], "prompt": "", "steps": [""], "provenance": PROVENANCE}
    rows = target_rows([ValueRow(step_ids=[[6, 7]], targets=[target], **fields) for target in (0.0, 1.0)], vocabulary=60, dropped={})
    batch, objective = collate_packed_values(pack_rows(rows, row_tokens=10)), StepObjective()
    assert batch["sources"].tolist() == [2, 2]
    expected = objective.loss(model, collate_values(rows), torch.tensor([2, 0]))
    torch.testing.assert_close(objective.loss(model, batch, torch.tensor([2, 0])), expected)


def test_train_value_forwards_each_step_once(policy: Path, tmp_path: Path) -> None:
    """One pass over packed trees forwards their distinct tokens, and the losses are those of paths."""
    settings = TrainSettings(learning_rate=1e-3, epochs=2.0, batch_size=100, device="cpu")
    rows = tree_paths(seed=1)
    reports = [
        train_value(policy, rows, tmp_path / str(packed), replace(settings, packed=packed), renderer_hash=HASH) for packed in (True, False)
    ]
    unique = {(row.problem_id, *[t for s in row.step_ids for t in s][:i]) for row in rows for i in range(1 + sum(map(len, row.step_ids)))}
    assert [report.layout for report in reports] == ["trees", "paths"]
    assert reports[0].tokens == 2 * (len(unique) + 2 * 3)  # the empty prefix stands for the last of three prompt tokens
    assert reports[0].tokens < 0.5 * reports[1].tokens
    assert reports[0].first_loss == pytest.approx(reports[1].first_loss, rel=1e-6)
    assert reports[0].last_loss == pytest.approx(reports[1].last_loss, rel=1e-4)
