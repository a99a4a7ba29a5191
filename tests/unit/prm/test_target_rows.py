"""Groups of the policy's own tokens: what is compared with what, packed or not, and that every loss learns and is served as trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stepladder.errors import ConfigError, DataFormatError
from stepladder.lm.packing import pack_rows
from stepladder.lm.settings import TrainSettings
from stepladder.prm.new_models import initialise_prm
from stepladder.prm.objective import LOSSES, StepObjective, step_outputs
from stepladder.prm.requests import path_requests
from stepladder.prm.specs import PRMSpec
from stepladder.prm.target_rows import collate_groups, collate_packed_groups, group_rows, pair_rows, target_rows
from stepladder.prm.value_losses import mse_loss, pairwise_loss
from stepladder.prm.value_training import train_value
from stepladder.types import PreferencePair, ValueRow
from tests.models import save_tiny_policy
from tests.value_paths import HASH, PROVENANCE, auc, scores_of, toy_rows, tree_paths, value_row

SETTINGS = TrainSettings(learning_rate=3e-3, epochs=6.0, batch_size=16, device="cpu")


def pair(chosen: list[int], rejected: list[int], *, prefix: tuple[int, ...] = (5, 6), values: tuple[float, float] = (1.0, 0.0)):
    texts = {"prompt": "", "chosen": "", "rejected": ""}
    ids = {"prompt_ids": list(prefix), "chosen_ids": chosen, "rejected_ids": rejected}
    numbers = {"chosen_value": values[0], "rejected_value": values[1], "depth": 1}
    return PreferencePair(problem_id="p", provenance=PROVENANCE, **texts, **ids, **numbers)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy."""
    return save_tiny_policy(tmp_path_factory.mktemp("policy"), hidden=32, layers=1, max_positions=64)


def test_siblings_are_compared_and_a_problem_as_a_whole_for_lists() -> None:
    """Steps 7 and 8 after the prompt, 3 and 4 after 7; an only child and equal targets are counted. A list holds all of a problem."""
    rows = [
        value_row([5], [[7], [3]], [0.5, 1.0]),
        value_row([5], [[7], [4]], [None, 0.0]),
        value_row([5], [[8], [9]], [0.25, 0.25]),
    ]
    dropped: dict[str, int] = {}
    made = group_rows(rows, vocabulary=20, dropped=dropped)
    assert [(row.paths, row.targets, row.group) for row in made] == [
        ([[5, 7], [5, 8]], [0.5, 0.25], "p1"),
        ([[5, 7, 3], [5, 7, 4]], [1.0, 0.0], "p1"),
    ]
    assert dropped == {"beginning without steps to compare": 1}
    (row,) = group_rows(rows, vocabulary=20, dropped={}, compare="problem")
    assert row.paths == [[5, 7], [5, 7, 3], [5, 7, 4], [5, 8], [5, 8, 9]]
    assert row.targets == [0.5, 1.0, 0.0, 0.25, 0.25]
    with pytest.raises(DataFormatError, match="different labels after the same beginning: got none"):
        group_rows(rows[:1], vocabulary=20, dropped={})


def test_pairs_of_a_node_are_compared_and_nothing_else() -> None:
    """Of 7, 8, 9 after one prefix only the given pairs count, each node weighing the same, as by hand."""
    made = pair_rows([pair([7], [8]), pair([7], [9]), pair([7], [8]), pair([4], [3], prefix=(6,))], vocabulary=20, dropped=(dropped := {}))
    assert [(row.paths, row.pairs) for row in made] == [
        ([[5, 6, 7], [5, 6, 8], [5, 6, 9]], [(0, 1), (0, 2)]),
        ([[6, 4], [6, 3]], [(0, 1)]),
    ]
    assert dropped == {"repeated pair": 1}
    outputs, batch = torch.tensor([[0.5, -0.25, 2.0], [1.0, 0.0, 9.0]]), collate_groups(made)
    sigmoids = [torch.sigmoid(torch.tensor(gap)) for gap in (0.75, -1.5, 1.0)]
    expected = -((sigmoids[0].log() + sigmoids[1].log()) / 2 + sigmoids[2].log()) / 2
    torch.testing.assert_close(pairwise_loss(outputs, batch["targets"], pairs=batch["pairs"]), expected)
    assert StepObjective(loss_name="pairwise").counts(batch).tolist() == [5, 2]
    for bad, message in ((pair([], [8]), "must have tokens"), (pair([7], [8], values=(1.5, 0.0)), "1.5"), (pair([7], [99]), "99")):
        with pytest.raises(DataFormatError, match=message):
            pair_rows([bad], vocabulary=20, dropped={})


@pytest.mark.parametrize("row_tokens", [1000, 40])
@pytest.mark.parametrize("compare", ["siblings", "problem"])
def test_packed_groups_have_the_gradients_of_paths(policy: Path, compare, row_tokens: int) -> None:
    """Outputs, loss and every gradient of trees are those of separate paths, and the loss is the formula on plain forwards."""
    model, spec = initialise_prm(policy, renderer_hash=HASH, seed=0, device="cpu")
    model.score.weight.data *= 50.0
    rows = group_rows(tree_paths(seed=0, num_problems=2), vocabulary=60, dropped={}, compare=compare)
    trees = pack_rows(rows, row_tokens=row_tokens)
    rows = [row for tree in trees for row in tree.rows]
    packed, plain, found = collate_packed_groups(trees), collate_groups(rows), []
    torch.testing.assert_close(packed["targets"], plain["targets"], equal_nan=True)
    objective = StepObjective(loss_name="pairwise+mse", spec=spec, regression_weight=0.5)
    torch.testing.assert_close(step_outputs(model, packed), step_outputs(model, plain), rtol=1e-4, atol=1e-5)
    for batch in (packed, plain):
        model.zero_grad()
        value = objective.loss(model, batch, objective.counts(batch))
        value.backward()
        found.append((value.item(), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    largest = max(float(gradient.norm()) for gradient in found[1][1])
    for ours, expected in zip(found[0][1], found[1][1], strict=True):
        assert float((ours - expected).norm()) <= 1e-5 * max(float(expected.norm()), 1e-2 * largest)
    with torch.no_grad():
        alone = [torch.stack([model(torch.tensor([path])).logits[0, -1, 0] for path in row.paths]) for row in rows]
        compared = sum(pairwise_loss(values[None], torch.tensor([row.targets])) for values, row in zip(alone, rows, strict=True))
        known = torch.tensor([target for row in rows for target in row.targets])
        expected = compared / len(rows) + 0.5 * mse_loss(torch.cat(alone).sigmoid(), known)
    assert found[1][0] == pytest.approx(expected.item(), rel=1e-5)


def toy_siblings(num_nodes: int, seed: int) -> list[ValueRow]:
    """Return three alternatives of a step at every node; the one with the good token is worth 0.9, the others 0.1."""
    rng, rows = np.random.default_rng(seed), []
    for node in range(num_nodes):
        prompt = rng.integers(11, 50, 4).tolist()
        for number in range(3):
            step = [10 if number == 0 else 12, *rng.integers(11, 50, 3).tolist()]
            rows.append(replace(value_row(prompt, [step], [0.9 if number == 0 else 0.1]), problem_id=f"p{node}"))
    return rows


def spec_for(loss: str) -> PRMSpec:
    return PRMSpec(bins=16, transform="identity") if loss in ("hl-gauss", "two-hot") else PRMSpec()


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_from_trees_and_is_served_as_it_was_trained(policy: Path, tmp_path: Path, loss) -> None:
    """On unseen nodes, scored as a search scores them, good steps rank above bad ones; regressions also come near the targets."""
    spec = spec_for(loss)
    report = train_value(policy, toy_siblings(96, 0), tmp_path / "out", SETTINGS, renderer_hash=HASH, spec=spec, loss=loss)
    assert report.layout == "trees"
    assert PRMSpec.load(tmp_path / "out") == replace(spec, renderer_hash=HASH)
    fresh = toy_siblings(30, 1)
    scores, targets = scores_of(tmp_path / "out", fresh), np.array([row.targets[0] for row in fresh])
    assert auc(scores, targets > 0.5) > 0.95
    if loss not in ("pairwise", "listwise"):
        assert np.abs(scores - targets).mean() < 0.12


def test_two_classes_learn_like_a_value_head(policy: Path, tmp_path: Path) -> None:
    """The second class stands for a good step, in training as in serving."""
    spec = PRMSpec(family="two-class")
    train_value(policy, toy_rows(256, seed=0), tmp_path / "out", SETTINGS, renderer_hash=HASH, spec=spec)
    fresh = toy_rows(60, seed=1)
    targets = np.array([target for row in fresh for target in row.targets], dtype=float)
    assert auc(scores_of(tmp_path / "out", fresh), targets > 0.5) > 0.95


def test_pairs_train_a_preference_model(policy: Path, tmp_path: Path) -> None:
    """Pairs of steps teach the order that they state."""
    rows = toy_siblings(96, 0)
    pairs = [
        pair(good.step_ids[0], bad.step_ids[0], prefix=tuple(good.prompt_ids))
        for good, *others in zip(*[iter(rows)] * 3, strict=True)
        for bad in others
    ]
    train_value(policy, pairs, tmp_path / "out", SETTINGS, renderer_hash=HASH, loss="pairwise")
    fresh = toy_siblings(30, 1)
    assert auc(scores_of(tmp_path / "out", fresh), np.array([row.targets[0] for row in fresh]) > 0.5) > 0.95


def test_choices_that_do_not_fit_each_other_are_refused(policy: Path, tmp_path: Path) -> None:
    """Pairs without a comparing loss, every token under a comparing one, bins without a categorical one, another model to go on from."""
    siblings, options = toy_siblings(4, 0), {"renderer_hash": HASH}
    cases = [
        ([pair([7], [8])], {"loss": "bce"}, "pairs need the loss 'pairwise'"),
        (siblings, {"loss": "pairwise", "supervise": "every-token"}, "where they end"),
        (siblings, {"loss": "bce", "spec": PRMSpec(bins=8, transform="identity")}, "bins must go together"),
        (siblings, {"loss": "nonsense"}, "loss must be one of"),
        (siblings, {"supervise": "all"}, "supervise must be one of step-end, every-token: got 'all'"),
        (siblings, {"spec": PRMSpec(prompt="plain")}, "must read the policy's tokens: got prompt 'plain'"),
    ]
    for rows, choices, message in cases:
        with pytest.raises(ConfigError, match=message):
            train_value(policy, rows, tmp_path / "out", SETTINGS, **options, **choices)
    train_value(policy, siblings, tmp_path / "out", replace(SETTINGS, max_updates=1), **options)
    with pytest.raises(ConfigError, match="must be what is trained"):
        train_value(tmp_path / "out", siblings, tmp_path / "b", SETTINGS, **options, loss="two-hot", spec=spec_for("two-hot"))


def test_targets_stand_at_sampled_tokens_after_all_observations_before_them():
    """Steps [6 7], [8] with [20 21] given between: targets at 7 and 8; every token of a step may learn, no given one does."""
    row = ValueRow(
        problem_id="p",
        prompt_ids=[5],
        step_ids=[[6, 7], [8]],
        targets=[0.25, 0.75],
        prompt="",
        steps=["", ""],
        provenance=PROVENANCE,
        given_ids=[[20, 21], []],
        given_texts=["", ""],
    )
    (found,) = target_rows([row], vocabulary=60, dropped={})
    assert (found.ids, found.positions, found.targets) == ([5, 6, 7, 20, 21, 8], [2, 5], [0.25, 0.75])
    (every,) = target_rows([row], vocabulary=60, dropped={}, supervise="every-token")
    assert every.positions == [1, 2, 5]
    other = replace(row, step_ids=[[6, 7], [9]], targets=[None, 0.5])
    (group,) = group_rows([row, other], vocabulary=60, dropped={})
    assert group.paths == [[5, 6, 7, 20, 21, 8], [5, 6, 7, 20, 21, 9]]
    requests = path_requests(row)
    assert [(request.prefix_ids, request.branches, request.observations) for request in requests] == [
        ((5,), (((6, 7),),), ()),
        ((5, 6, 7, 20, 21), (((8,),),), ((3, 5),)),
    ]
    with pytest.raises(DataFormatError, match="every step needs an observation, or an empty one: got 2 steps and 1 observations"):
        target_rows([replace(row, given_ids=[[20, 21]])], vocabulary=60, dropped={})
