"""Training in two processes that accelerate launches: the results of one process, rows of very different lengths shared out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stepladder.errors import BackendError
from stepladder.lm.adapters import with_adapters, without_adapters
from stepladder.lm.processes import fill, whole_model
from stepladder.lm.schedule import batch_schedule
from stepladder.lm.settings import LoraSettings
from tests.launched import SHARDED, VARIANTS, train_all
from tests.models import save_tiny_policy, tiny_policy

REPO = Path(__file__).parents[3]
TRAININGS = [*(f"sft {name}" for name in VARIANTS), "preference", "value"]


def launch(*arguments: object) -> subprocess.Popen:
    """Start the trainings in two processes."""
    # Without a GPU too: "--cpu" would ask for MPI, and what is launched asks for the CPU itself.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=2", "--main_process_port=0"]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *map(str, arguments)], cwd=REPO, env=environment, stderr=subprocess.PIPE, text=True)


def last_words(said: str) -> str:
    """Return the last lines of each process, that of the one that failed first among them."""
    lines = said.splitlines()
    return "\n".join(line for rank in range(2) for line in [line for line in lines if line.startswith(f"[rank{rank}]")][-15:]) or said


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A start model, and what all trainings came to in one process and in two."""
    folder = tmp_path_factory.mktemp("processes")
    start = save_tiny_policy(folder / "start", hidden=32, layers=1, max_positions=64)
    for name in ("one", "two"):
        (folder / name).mkdir()
    options = ("--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no")
    done = launch(*options, "-m", "tests.launched", start, folder / "two")
    train_all(start, folder / "one")
    _, said = done.communicate(timeout=300)
    assert done.returncode == 0, last_words(said)
    return {"start": start, "one": folder / "one", "two": folder / "two"}


@pytest.fixture(scope="module")
def sharded(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same with the model in parts, by the configuration that ships."""
    out = tmp_path_factory.mktemp("sharded")
    done = launch(f"--config_file={REPO / 'configs' / 'accelerate' / 'fsdp.yaml'}", "-m", "tests.launched", folders["start"], out)
    _, said = done.communicate(timeout=300)
    assert done.returncode == 0, last_words(said)
    return {**folders, "two": out}


@pytest.mark.parametrize("training", TRAININGS)
def test_two_processes_train_as_one(folders: dict[str, Path], training: str) -> None:
    """Every update's loss to 2e-6, few tokens forwarded twice, the loss on held-out rows, and the weights to 0.1% of how far they moved."""
    check_same(folders, training)


@pytest.mark.slow
@pytest.mark.parametrize("variant", SHARDED)
def test_processes_that_hold_parts_of_the_model_train_as_one(sharded: dict[str, Path], variant: str) -> None:
    """With FSDP 2 losses, choice of checkpoint, and weights put together and merged are those of one process."""
    check_same(sharded, f"sft {variant}")


def check_same(folders: dict[str, Path], training: str) -> None:
    """Compare what one process and two came to."""
    one, two = (json.loads((folders[name] / f"{training}.json").read_text()) for name in ("one", "two"))
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=2e-6)
    assert one["tokens"] <= two["tokens"] <= 1.2 * one["tokens"]
    assert two["best"] == one["best"]
    if one["held_out_loss"] is not None:
        assert two["held_out_loss"] == pytest.approx(one["held_out_loss"], rel=2e-6)
    start = load_file(folders["start"] / "model.safetensors")
    weights = [load_file(folders[name] / training / "model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    moved = error = 0.0
    for name, value in weights[0].items():
        error += float((weights[1][name] - value).square().sum())
        moved += float((value - start.get(name, torch.zeros_like(value))).square().sum())
    assert moved > 0 and error**0.5 <= 0.001 * moved**0.5


def test_dividing_by_own_counts_is_noticed(folders: dict[str, Path]) -> None:
    """Where each process takes the mean over its own tokens, the loss of the same rows is another one."""
    one, wrong = (
        json.loads((folders[name] / f"{training}.json").read_text()) for name, training in (("one", "sft trees"), ("two", "own means"))
    )
    assert np.abs(np.divide(wrong["losses"], one["losses"]) - 1).max() > 1e-2


def test_nothing_is_left_beside_the_models(folders: dict[str, Path]) -> None:
    """Work directories and half-written models are gone, and every process saw the finished model."""
    left = {path.name for path in folders["two"].iterdir()}
    assert left == {*TRAININGS, "own means", *(f"{name}.json" for name in [*TRAININGS, "own means"])}


@pytest.mark.parametrize("num_processes", [2, 3, 4])
@pytest.mark.parametrize("micro", [None, 1, 3, 100])
@pytest.mark.parametrize("groups", [None, [[0, 1, 2], [3], [4, 5, 6, 7], [8, 9], [10]]])
def test_processes_share_the_updates_of_one(num_processes: int, micro: int | None, groups: list[list[int]] | None) -> None:
    """Each update has the rows that it has with one process, each once; processes make as many passes, none larger than allowed."""
    options = {"epochs": 3.0, "batch_size": 5, "micro_batch_size": micro, "groups": groups, "seed": 1}
    lengths = list(range(1, 12))
    one, shared = (batch_schedule(lengths, **options, num_processes=count) for count in (1, num_processes))
    assert shared.updates == one.updates
    for update in range(one.updates):
        rows = [
            [
                row
                for number in range(update * size, (update + 1) * size)
                if number not in schedule.weightless
                for row in schedule.micro_batches[number]
            ]
            for schedule, size in ((one, one.passes_per_update), (shared, shared.passes_per_update * num_processes))
        ]
        assert sorted(rows[1]) == sorted(rows[0])
    assert not one.weightless
    for number, batch in enumerate(shared.micro_batches):
        assert 0 < len(batch) <= max(micro or 0, -(-7 // num_processes))
        assert number not in shared.weightless or len(batch) == 1


def test_shares_end_where_groups_end() -> None:
    """Two processes get two whole groups each of four groups of 6, 4, 5 and 5 rows, but where the stream begins inside a group."""
    groups = [list(range(0, 6)), list(range(6, 10)), list(range(10, 15)), list(range(15, 20))]
    for seed in range(5):
        schedule = batch_schedule([1] * 20, epochs=1.0, batch_size=20, groups=groups, num_processes=2, seed=seed)
        first, second = (
            {next(number for number, group in enumerate(groups) if row in group) for row in share} for share in schedule.micro_batches
        )
        assert len(first & second) <= 1
        assert abs(len(schedule.micro_batches[0]) - 10) <= 1


@pytest.mark.parametrize("lora", [None, LoraSettings(r=2)], ids=["full", "adapters"])
def test_a_model_is_put_together_from_gathered_weights(lora: LoraSettings | None) -> None:
    """A model without weights, filled with those of a trained one, adapters included, computes the same; missing weights are an error."""
    model, _ = tiny_policy(hidden=32, layers=1)
    kind, config = type(model), model.config
    trained = with_adapters(model, lora, seed=0)
    with torch.no_grad():
        for value in trained.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    weights = {name: value.clone() for name, value in trained.state_dict().items()}
    whole = with_adapters(whole_model(kind, config), lora, seed=0)
    with pytest.raises(BackendError, match="weights were not gathered"):
        fill(with_adapters(whole_model(kind, config), lora, seed=0), {})
    fill(whole, weights)
    merged = without_adapters(whole, lora)
    assert isinstance(merged, kind)
    for name, value in without_adapters(trained, lora).state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value)
