"""Trainings that tests run in one process and, through ``accelerate launch``, in several: ``python -m tests.launched START OUT``.

Every training leaves its model and the losses of its updates in a directory of its own. Launched with FSDP, only those of ``SHARDED`` run.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from stepladder.errors import DataFormatError
from stepladder.lm.processes import leave_group
from stepladder.lm.settings import LoraSettings, TrainSettings
from stepladder.lm.training import TrainReport
from stepladder.loops.runs.workers import Progress, report_progress
from stepladder.policy.fine_tuning import train_preference, train_sft
from stepladder.policy.objectives import PreferenceObjective
from stepladder.policy.preference_settings import DPO
from stepladder.prm.value_training import train_value
from stepladder.types import PreferencePair, Provenance, Trace, ValueRow

HASH = "renderer-a"
PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="0" * 16, renderer_hash=HASH)
SETTINGS = TrainSettings(learning_rate=1e-3, epochs=2.0, batch_size=5, device="cpu", seed=3)
VARIANTS: dict[str, TrainSettings] = {
    "trees": SETTINGS,
    "paths": replace(SETTINGS, packed=False),
    # Three rows one by one: in every second pass one of two processes has none.
    "idle": replace(SETTINGS, batch_size=3, micro_batch_size=1, max_updates=4),
    "adapters": replace(SETTINGS, lora=LoraSettings(r=2, alpha=4), gradient_checkpointing=True),
    "held out": replace(SETTINGS, checkpoint_every=2, held_out=0.3),
}

SHARDED = ("trees", "adapters", "held out")


def uneven_ids(rng: np.random.Generator, number: int) -> list[int]:
    """Return random tokens: many for every other problem, few for the others."""
    return rng.integers(4, 50, int(rng.integers(12, 20)) if number % 2 else int(rng.integers(1, 4))).tolist()


def uneven_rows() -> dict[str, list[Any]]:
    """Return traces, pairs and value rows of seven problems whose lengths differ much."""
    rng, rows = np.random.default_rng(0), {"traces": [], "pairs": [], "values": []}
    for number in range(7):
        common = {"problem_id": f"p{number}", "prompt_ids": uneven_ids(rng, 0), "prompt": "", "provenance": PROVENANCE}
        steps = [uneven_ids(rng, number) for _ in range(3)]
        rows["traces"].append(Trace(**common, completion_ids=steps[0], completion="", mean_value=1.0))
        for rejected in steps[1:]:
            texts = {"chosen": "", "rejected": "", "chosen_value": 0.9, "rejected_value": 0.1, "depth": 1}
            rows["pairs"].append(PreferencePair(**common, chosen_ids=steps[0], rejected_ids=rejected, **texts))
        targets = [float(rng.random()) for _ in steps] if number % 2 else [0.5, None, None]
        rows["values"].append(ValueRow(**common, step_ids=steps, steps=[""] * 3, targets=targets))
    return rows


def train_all(start: Path, out: Path) -> None:
    """Run every training, and one whose processes divide by their own counts only."""
    rows = uneven_rows()
    for name, settings in VARIANTS.items():
        _recorded(f"sft {name}", start, out, train_sft, rows["traces"], settings)
    objective = PreferenceObjective(settings=DPO(beta=0.5, sft_weight=0.5))
    _recorded("preference", start, out, train_preference, rows["pairs"], SETTINGS, objective=objective)
    _recorded("value", start, out, train_value, rows["values"], SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.Accelerator.reduce", lambda self, tensor, **_: tensor * self.num_processes)
        _recorded("own means", start, out, train_sft, rows["traces"], SETTINGS)


def train_sharded(start: Path, out: Path) -> None:
    """Run some of them with the model in parts. accelerate keeps FSDP from CPUs, which torch's can do: it is told that they are GPUs."""
    torch.distributed.init_process_group("gloo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialState, "_prepare_backend", lambda *_, **__: ("gloo", DistributedType.MULTI_GPU))
        patch.setattr(PartialState, "set_device", lambda self: setattr(self, "device", torch.device("cpu")))
        for name in SHARDED:
            _recorded(f"sft {name}", start, out, train_sft, uneven_rows()["traces"], VARIANTS[name])


def train_with_stops(*, start: Path, out: Path, armed: Path) -> TrainReport:
    """Fine-tune with checkpoints. While the file ``armed`` exists, the first process removes it and dies after the fifth update."""

    def on_progress(step: int, total: int, loss: float, tokens: int) -> None:
        if step == 5 and armed.exists():
            armed.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        report_progress(Progress(stage="training", items=1, total=total))

    settings = replace(SETTINGS, epochs=4.0, checkpoint_every=2)
    return train_sft(start, uneven_rows()["traces"], out, settings, renderer_hash=HASH, on_progress=on_progress)


def fail_with_environment(*, out: Path, names: list[str]) -> None:
    """Fail with the values of environment variables, and with the directory in which this runs."""
    raise DataFormatError(" ".join([*(os.environ[name] for name in names), os.getcwd()]))


def _recorded(name: str, start: Path, out: Path, train: Any, rows: list[Any], settings: TrainSettings, **options: Any) -> None:
    losses: list[float] = []
    progress = lambda step, total, loss, tokens: losses.append(loss)  # noqa: E731
    report = train(start, rows, out / name, settings, renderer_hash=HASH, on_progress=progress, **options)
    if losses:
        facts = {"losses": losses, "tokens": report.tokens, "best": report.best_update, "held_out_loss": report.held_out_loss}
        (out / f"{name}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    (train_sharded if os.environ.get("ACCELERATE_USE_FSDP") == "true" else train_all)(Path(sys.argv[1]), Path(sys.argv[2]))
    leave_group()
