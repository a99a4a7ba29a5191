"""Training the process reward model: where targets go, what does not count, and that it learns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification

from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.lm.settings import LoraSettings, TrainSettings
from stepladder.lm.training_rows import Replay
from stepladder.prm.new_models import initialise_prm, transform_logits
from stepladder.prm.objective import StepObjective
from stepladder.prm.outputs import transform_outputs
from stepladder.prm.specs import PRMSpec
from stepladder.prm.target_rows import collate_values, target_rows
from stepladder.prm.value_training import train_value
from tests.models import save_tiny_policy
from tests.value_paths import HASH, PROVENANCE, auc, scores_of, toy_rows, value_row

SETTINGS = TrainSettings(learning_rate=3e-3, epochs=6.0, batch_size=16, device="cpu")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy."""
    return save_tiny_policy(tmp_path_factory.mktemp("policy"), hidden=32, layers=1, max_positions=64)


@pytest.fixture(scope="module")
def trained(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A process reward model of the toy task."""
    out = tmp_path_factory.mktemp("prm") / "out"
    train_value(policy, toy_rows(256, seed=0), out, SETTINGS, renderer_hash=HASH)
    return out


def test_targets_stand_at_the_last_tokens_of_steps() -> None:
    """Prompt of 2, steps of 2, 1 and 3 tokens end at positions 3, 4 and 7; tokens after the last target are not forwarded."""
    rows = [value_row([5, 6], [[7, 8], [9], [7, 7, 7]], [0.25, None, 0.75]), value_row([5, 6], [[7, 8], [9]], [1.0, None])]
    made = target_rows(rows, vocabulary=20, dropped={})
    assert [(row.positions, row.length) for row in made] == [([3, 7], 8), ([3], 4)]
    batch = collate_values(made)
    assert batch["inputs"]["input_ids"].tolist() == [[5, 6, 7, 8, 9, 7, 7, 7], [5, 6, 7, 8, 0, 0, 0, 0]]
    expected = torch.full((2, 8), float("nan"))
    expected[0, 3], expected[0, 7], expected[1, 3] = 0.25, 0.75, 1.0
    torch.testing.assert_close(batch["targets"], expected, equal_nan=True)
    assert StepObjective().counts(batch).tolist() == [3, 0]
    assert StepObjective().counts({"targets": batch["targets"].to("meta")}).device.type == "meta", "counted where the batch is"


def test_every_token_of_a_step_can_learn_its_target() -> None:
    """Prompt of 2, steps of 2, 1 and 3 tokens: positions 2-3 learn the first target, 5-7 the third, none the second step's."""
    (made,) = target_rows(
        [value_row([5, 6], [[7, 8], [9], [7, 7, 7]], [0.25, None, 0.75])], vocabulary=20, dropped={}, supervise="every-token"
    )
    assert made.positions == [2, 3, 5, 6, 7]
    assert made.targets == [0.25, 0.25, 0.75, 0.75, 0.75]


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_steps_without_target_leave_no_trace(policy: Path, loss) -> None:
    """A step without target is context: joining it to the next step gives the same loss and the same gradient."""
    model, _ = initialise_prm(policy, renderer_hash=HASH, seed=0, device="cpu")
    objective = StepObjective(loss_name=loss)
    found = []
    for row in (value_row([5, 6], [[7], [8, 9], [4]], [0.2, None, 0.7]), value_row([5, 6], [[7], [8, 9, 4]], [0.2, 0.7])):
        batch = collate_values(target_rows([row], vocabulary=50, dropped={}))
        value = objective.loss(model, batch, objective.counts(batch))
        model.zero_grad()
        value.backward()
        found.append((value.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
    torch.testing.assert_close(found[0], found[1])


def test_padding_does_not_change_a_row(policy: Path) -> None:
    """The loss of two rows in one batch is the mean over their targets of the rows alone."""
    model, _ = initialise_prm(policy, renderer_hash=HASH, seed=0, device="cpu")
    made = target_rows([value_row([5], [[7]], [1.0]), value_row([5, 6, 7], [[7, 8], [9] * 9], [0.0, 0.5])], vocabulary=50, dropped={})
    objective = StepObjective()
    both = collate_values(made)
    alone = [collate_values([row]) for row in made]
    total = sum(objective.loss(model, batch, torch.tensor([3, 0])) for batch in alone)
    torch.testing.assert_close(objective.loss(model, both, objective.counts(both)), total)


def test_a_new_head_depends_on_the_seed_alone(policy: Path) -> None:
    """Heads of one seed are equal whatever was drawn before, those of two seeds differ; first values lie near 0.5; there is no dropout."""
    heads = []
    for disturbance, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(disturbance)
        model, spec = initialise_prm(policy, renderer_hash=HASH, seed=seed, device="cpu")
        heads.append(model.score.weight.detach().clone())
        values = torch.sigmoid(model.train()(torch.arange(4, 40)[None]).logits)
        assert (values - 0.5).abs().max() < 0.1
        torch.testing.assert_close(values, torch.sigmoid(model.eval()(torch.arange(4, 40)[None]).logits))
        assert spec == PRMSpec(renderer_hash=HASH)
    torch.testing.assert_close(heads[0], heads[1], rtol=0, atol=0)
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("transform", ["sigmoid", "tanh01", "identity"])
def test_training_and_scoring_read_outputs_alike(transform) -> None:
    """The differentiable transform equals the scorer's wherever the scorer does not clip."""
    outputs = torch.linspace(0, 1, 11) if transform == "identity" else torch.linspace(-4, 4, 11)
    expected = transform_outputs(outputs.numpy(), transform)
    np.testing.assert_allclose(transform_logits(outputs, transform).numpy(), expected, atol=1e-6)


def test_it_learns_a_separable_task(trained: Path) -> None:
    """On unseen paths, scored as a search scores them, good steps rank above bad ones (AUC > 0.95) and scores are near the soft targets."""
    fresh = toy_rows(100, seed=1)
    scores = scores_of(trained, fresh)
    targets = np.array([target for row in fresh for target in row.targets], dtype=float)
    assert auc(scores, targets > 0.5) > 0.95
    assert np.abs(scores - targets).mean() < 0.1


@pytest.mark.parametrize(("loss", "lora"), [("mse", None), ("bce", LoraSettings(r=4, alpha=16))], ids=["mse", "bce-lora"])
def test_other_ways_of_training_learn_too(policy: Path, tmp_path: Path, loss, lora: LoraSettings | None) -> None:
    """Squared error, and adapters with a fully trained head, rank the same task; merged adapters leave a plain directory."""
    settings = replace(SETTINGS, lora=lora, learning_rate=2e-2 if lora else 3e-3)
    report = train_value(policy, toy_rows(256, seed=0), tmp_path / "out", settings, renderer_hash=HASH, loss=loss)
    assert report.last_loss < report.first_loss
    fresh = toy_rows(60, seed=1)
    targets = np.array([target for row in fresh for target in row.targets], dtype=float)
    assert auc(scores_of(tmp_path / "out", fresh), targets > 0.5) > 0.95
    names = set(AutoModelForTokenClassification.from_pretrained(tmp_path / "out").state_dict())
    assert names == set(initialise_prm(policy, renderer_hash=HASH, seed=0, device="cpu")[0].state_dict())


def test_an_earlier_model_is_continued(trained: Path, tmp_path: Path) -> None:
    """Starting from a trained model starts at its loss, not at that of a new head, and keeps its spec."""
    report = train_value(trained, toy_rows(64, seed=2), tmp_path / "out", replace(SETTINGS, max_updates=2), renderer_hash=HASH)
    assert report.first_loss < 0.45
    assert PRMSpec.load(tmp_path / "out") == PRMSpec.load(trained)


def test_training_from_a_policy_repeats_byte_for_byte(policy: Path, tmp_path: Path) -> None:
    """New head and order come from the seed: two trainings agree in every byte."""
    for name in ("one", "two"):
        train_value(policy, toy_rows(16, seed=0), tmp_path / name, replace(SETTINGS, epochs=1.0), renderer_hash=HASH)
        torch.manual_seed(99)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (tmp_path / "two" / "model.safetensors").read_bytes()


def test_replayed_paths_are_mixed_in(policy: Path, tmp_path: Path) -> None:
    """A third of every pass are other paths: two passes of 8 + 4 rows in updates of 8 learn from all sixteen."""
    settings = replace(SETTINGS, epochs=2.0, batch_size=8)
    replay = Replay(rows=toy_rows(8, seed=1), share=1 / 3)
    report = train_value(policy, toy_rows(8, seed=0), tmp_path / "out", settings, renderer_hash=HASH, replay=replay)
    assert (report.updates, report.rows) == (3, 16)


def test_rows_that_cannot_be_used_are_counted(policy: Path, tmp_path: Path) -> None:
    """A path without targets and one beyond the context of 64 are dropped by reason; context after the last target does not count."""
    rows = [
        value_row([5], [[6]], [None]),
        value_row([5], [[6] * 64], [1.0]),
        value_row([5], [[6] * 63, [7] * 50], [1.0, None]),
        value_row([8], [[6]], [0.0]),
    ]
    report = train_value(policy, rows, tmp_path / "out", replace(SETTINGS, max_updates=1), renderer_hash=HASH)
    assert (report.rows, report.tokens) == (2, 66)
    assert report.dropped_by_reason == {"no target": 1, "longer than the context": 1}


def test_bad_rows_are_refused(policy: Path, tmp_path: Path) -> None:
    """Each broken row is named with what is wrong with it; nothing is written."""
    foreign = replace(PROVENANCE, renderer_hash="renderer-b")
    cases = [
        ([], "at least one row"),
        ([value_row([5], [[6]], [1.0], foreign)], "'renderer-a'.*'renderer-b'"),
        ([value_row([], [[6]], [1.0])], "row 0.*prompt"),
        ([value_row([5], [[6]], [1.0, 0.5])], "1 steps and 2 targets"),
        ([value_row([5], [[6], []], [1.0, 0.5])], "step 2 must have tokens"),
        ([value_row([5], [[6]], [1.5])], "step 1.*1.5"),
        ([value_row([5], [[6]], [float("nan")])], "step 1.*nan"),
        ([value_row([5], [[9999]], [1.0])], "9999"),
        ([value_row([5], [[6]], [None])], "1 no target"),
    ]
    for rows, message in cases:
        with pytest.raises(DataFormatError, match=message):
            train_value(policy, rows, tmp_path / "out", SETTINGS, renderer_hash=HASH)
    assert not list(tmp_path.iterdir())


def test_unfit_start_models_are_refused(policy: Path, trained: Path, tmp_path: Path) -> None:
    """Another renderer's model, a head of two outputs, a missing directory, and cross-entropy on a tanh model are told apart."""
    rows = toy_rows(4, seed=0)
    foreign = [value_row(row.prompt_ids, row.step_ids, row.targets, replace(PROVENANCE, renderer_hash="b")) for row in rows]
    with pytest.raises(DataFormatError, match=r"'b'.*'renderer-a'"):
        train_value(trained, foreign, tmp_path / "out", SETTINGS, renderer_hash="b")
    with pytest.raises(CheckpointError, match="no such directory"):
        train_value(tmp_path / "absent", rows, tmp_path / "out", SETTINGS, renderer_hash=HASH)

    two = tmp_path / "two"
    AutoModelForTokenClassification.from_pretrained(policy, num_labels=2).save_pretrained(two)
    PRMSpec(renderer_hash=HASH).save(two)
    with pytest.raises(CheckpointError, match="1 linear output per token"):
        train_value(two, rows, tmp_path / "out", SETTINGS, renderer_hash=HASH)

    bounded = tmp_path / "bounded"
    initialise_prm(policy, renderer_hash=HASH, seed=0, device="cpu")[0].save_pretrained(bounded)
    PRMSpec(renderer_hash=HASH, transform="tanh01").save(bounded)
    with pytest.raises(ConfigError, match=r"'bce'.*'tanh01'"):
        train_value(bounded, rows, tmp_path / "out", SETTINGS, renderer_hash=HASH)
    assert not (tmp_path / "out").exists()
