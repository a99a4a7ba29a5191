"""One ``transformers.Trainer`` subclass for every training: it follows a plan of batches and takes its loss from an objective.

Several processes share every update. An objective divides by counts of the whole update, which the trainer sums over passes and processes.
So nothing depends on how the rows are split.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stepladder.errors import BackendError
from stepladder.files import atomic_write_text
from stepladder.lm.memory import MemoryTrim
from stepladder.lm.schedule import Schedule
from stepladder.lm.training_rows import Row

FINISHED_FILE = "stepladder_checkpoint.json"
"""Written last into a checkpoint: it marks the checkpoint as complete and names its training."""

Batch = dict[str, Any]
"""Nested tensors; ``inputs`` holds the keyword arguments of the model's forward pass."""
ProgressCallback = Callable[[int, int, float, int], None]
"""Called after every update, on a GPU after every few, with (updates done, total updates, mean loss since the last call, tokens forwarded
since the training began or was continued)."""
Collate = Callable[[list[Any]], Batch]


@runtime_checkable
class Objective(Protocol):
    """Turns a model and a batch into a loss. It never sees rows."""

    def counts(self, batch: Batch) -> Tensor:
        """Return the counts that the loss divides by (tokens, pairs, targets), one number each."""
        ...

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the loss of the update: sums over the batch, divided by the counts of the whole update."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is forwarded when."""

    rows: Sequence[Row]
    """Rows, or one ``PackedPass`` per forward pass."""
    schedule: Schedule
    """Their order."""
    collate: Collate
    """What lays them out."""

    def passes(self) -> list[list["RowUse"]]:
        """Return the rows of every forward pass, in the schedule's order."""
        weightless = self.schedule.weightless
        return [[RowUse(row, number not in weightless) for row in batch] for number, batch in enumerate(self.schedule.micro_batches)]

    def data_set(self) -> torch.utils.data.Dataset:
        """Return the rows as a data set, indexed by the entries of ``passes``."""
        return _Rows(self.rows)

    def batch(self, rows: Sequence["WeightedRow"]) -> Batch:
        """Return a batch; ``counted`` says whether it has weight."""
        return {**self.collate([each.row for each in rows]), "counted": rows[0].counted}

    def tokens_after_updates(self) -> list[int]:
        """Return the tokens forwarded by the end of every update, those without weight left out."""
        per_pass = [sum(self.rows[use.number].num_tokens for use in uses if use.counted) for uses in self.passes()]
        per_update = np.asarray(per_pass).reshape(self.schedule.updates, -1).sum(1)
        return np.cumsum(per_update).tolist()


class RowUse(NamedTuple):
    """A row of a forward pass."""

    number: int
    """Place among the plan's rows."""
    counted: bool
    """Whether it has weight in the loss."""


class WeightedRow(NamedTuple):
    """A row as it is forwarded."""

    row: Row
    """The row."""
    counted: bool
    """Whether it has weight in the loss."""


class _Rows(torch.utils.data.Dataset):
    """Rows by their use."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, use: RowUse) -> WeightedRow:
        return WeightedRow(self._rows[use.number], use.counted)


class ObjectiveTrainer(Trainer):
    """A ``transformers.Trainer`` that follows a given plan and takes its loss from an objective."""

    # The objective divides by the counts of the whole update, so the Trainer must not divide by the number of passes again.
    loss_is_scaled_for_ga = True

    def __init__(
        self, model: nn.Module, args: TrainingArguments, *, plan: Plan, objective: Objective, held_out: Plan | None = None
    ) -> None:
        measured = held_out.data_set() if held_out else None
        super().__init__(model, args, train_dataset=plan.data_set(), eval_dataset=measured, data_collator=plan.batch)
        self._plan, self._objective, self._held_out = plan, objective, held_out
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader:
        """Return the plan's batches. accelerate gives every process its own.

        Collation happens in this process, because that is cheaper than passing tensors between processes.
        """
        on_gpu = self.args.device.type == "cuda"
        loader = DataLoader(
            self.train_dataset,  # pyright: ignore[reportArgumentType]
            batch_sampler=self._plan.passes(),
            collate_fn=self.data_collator,
            pin_memory=on_gpu,
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Return this process's batches of one update and, as "items", the counts of the whole update over all processes."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        return batches, self._counts(batches) if batches else None

    def _counts(self, batches: Sequence[Batch]) -> Tensor:
        counts = torch.stack([self._objective.counts(batch) * batch["counted"] for batch in batches]).sum(0)
        if self.args.device.type == "cuda":
            # A copy from memory that is not pinned would wait for all work on the GPU.
            counts = counts.pin_memory()
        return self.accelerator.reduce(counts.to(self.args.device, non_blocking=True), reduction="sum")  # pyright: ignore[reportReturnType]

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Return the objective's loss times the number of processes, so that the mean over their gradients becomes a sum."""
        loss = self._objective.loss(model, inputs, num_items_in_batch) * (self.accelerator.num_processes * inputs["counted"])
        return (loss, None) if return_outputs else loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # The Trainer accepts a checkpoint as the best only if its directory exists; sharded weights are written there later.
        Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}").mkdir(parents=True, exist_ok=True)
        super()._save_checkpoint(model, trial)

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return and log the loss on the held-out rows as ``eval_loss``. All of them make one update."""
        plan, here = self._held_out, self.accelerator
        assert plan is not None, "there is nothing to measure without rows"
        rows = plan.data_set()
        batches = [plan.batch([rows[use] for use in uses]) for uses in plan.passes()[here.process_index :: here.num_processes]]
        counts, total, model = self._counts(batches), torch.zeros((), device=self.args.device), cast(nn.Module, self.model_wrapped)
        model.eval()
        for batch in batches:
            with self.compute_loss_context_manager():
                total += self._objective.loss(model, self._prepare_inputs(batch), counts) * batch["counted"]
        metrics = {"eval_loss": float(here.reduce(total, reduction="sum"))}  # pyright: ignore[reportArgumentType]
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Watch(TrainerCallback):
    """Reports progress, stops on a loss that is not finite, and marks complete checkpoints."""

    def __init__(self, *, tokens: Sequence[int], identity: str, on_progress: ProgressCallback | None) -> None:
        self._tokens, self._identity, self._on_progress = tokens, identity, on_progress
        self._memory = MemoryTrim()
        self._tokens_before = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note which tokens were forwarded before a killed training was continued."""
        self._tokens_before = self._tokens[state.global_step - 1] if state.global_step else 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Have losses read before a checkpoint, which does not keep those that are not, and at the end; free memory."""
        self._memory.trim()
        if control.should_save or state.global_step == state.max_steps:
            control.should_log = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Report updates, and stop on a loss that is not finite."""
        if not logs or "loss" not in logs:
            return
        step, loss = state.global_step, logs["loss"]
        if not math.isfinite(loss):
            raise BackendError(
                f"training: the loss must be finite: got {loss} by update {step} of {state.max_steps} -- lower learning_rate"
            )
        if self._on_progress and state.is_world_process_zero:
            self._on_progress(step, state.max_steps, loss, self._tokens[step - 1] - self._tokens_before)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark a checkpoint once all processes have written their part."""
        mark = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / FINISHED_FILE
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            atomic_write_text(mark, json.dumps({"identity": self._identity}))
