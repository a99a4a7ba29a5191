"""Training a model that goes on being used between the updates: the weights change in place.

The rows of a call are laid out and packed as in ``training.py``, and an update is the same: sums over its passes, divided by the counts of
the whole update, one step of AdamW. What differs is that the rows are not known before, so each call says how far the training is, and
that the state of the optimiser is kept by the caller. One process trains.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from accelerate.utils import send_to_device
from transformers import PreTrainedModel

from stepladder.errors import BackendError
from stepladder.lm.loading import resolve_device
from stepladder.lm.memory import MemoryTrim, memory_explained
from stepladder.lm.settings import TrainSettings
from stepladder.lm.trainer import Batch, Collate, Objective
from stepladder.lm.training import PackedCollate, autocast, packed_collate, packed_layout, plan_of
from stepladder.lm.tree_attention import tree_attention
from stepladder.types import derive_seed


class LiveUpdates(NamedTuple):
    """The updates of one call."""

    losses: list[float]
    """Loss of each update."""
    norms: list[float]
    """Gradient norm of each update before clipping."""
    tokens: int
    """Tokens forwarded, not counting padding."""
    used: dict[int, int]
    """Number of the first update of this call, from 0, that used a row, by the row's place. Rows that no update used are left out."""
    late: int
    """Rows that only updates after ``max_updates`` would have used."""
    layout: str
    """As in ``TrainReport``."""


@dataclass(kw_only=True, slots=True)
class LiveTraining:
    """A model and its optimiser."""

    model: PreTrainedModel
    """The model, changed in place; between updates it is in evaluation mode."""
    objective: Objective
    """The loss."""
    settings: TrainSettings
    """How to train; ``epochs``, ``updates`` and ``max_updates`` are those of one call."""
    collate: Collate
    """Lays out rows."""
    collate_packed: PackedCollate
    """Lays out trees of rows."""
    optimizer: torch.optim.Optimizer
    """The optimiser of the model's weights."""
    memory: MemoryTrim = field(default_factory=MemoryTrim)
    """Frees memory for other processes after updates."""

    @classmethod
    def start(
        cls, model: PreTrainedModel, *, objective: Objective, settings: TrainSettings, collate: Collate, collate_packed: PackedCollate
    ) -> "LiveTraining":
        """Put a model on the device of the settings, with a new optimiser.

        Raises:
            ConfigError: If the device does not exist.
        """
        model.to(resolve_device(settings.device))  # pyright: ignore[reportArgumentType]
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        # As in the Trainer: weights of matrices decay; biases and norms, which are vectors, do not.
        groups = [
            {"params": [value for value in model.parameters() if (value.ndim > 1) is decays], "weight_decay": decay}
            for decays, decay in ((True, settings.weight_decay), (False, 0.0))
        ]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=model.device.type == "cuda" or None)
        return cls(
            model=model,
            objective=objective,
            settings=settings,
            collate=collate,
            collate_packed=collate_packed,
            optimizer=optimizer,
        )

    def train(self, rows: Sequence[Any], *, at: float, number: int, max_updates: int | None = None) -> LiveUpdates:
        """Make the updates of some rows.

        Args:
            rows: The rows, at least one.
            at: Share of the training that is done in the middle of this call, in (0, 1), which sets the learning rate.
            number: Number of the call, which sets its seeds: the order of the rows and dropout.
            max_updates: Updates at most; None is no cap beside that of the settings.

        Raises:
            BackendError: If the loss is not finite, or memory runs out.
        """
        settings = replace(self.settings, seed=derive_seed(self.settings.seed, "live", number))
        layout = packed_layout(self.model, rows, settings)
        packed = layout == "trees"
        collate = packed_collate(self.model, self.collate_packed) if packed else self.collate
        plan, order = plan_of(rows, settings, collate, packed=packed)
        passes = [[plan.rows[use.number] for use in uses] for uses in plan.passes()]
        size = plan.schedule.passes_per_update
        updates = [passes[begin : begin + size] for begin in range(0, len(passes), size)][:max_updates]
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * _factor(settings, at)
        torch.manual_seed(settings.seed % 2**32)
        self.model.train()
        with tree_attention(self.model) if packed else nullcontext():
            made = [self._update(each, collate, number) for each in updates]
        self.model.eval()
        used: dict[int, int] = {}
        for place, indices in enumerate(order[: len(updates) * size]):
            for index in indices:
                used.setdefault(index, place // size)
        late = {index for indices in order[len(updates) * size :] for index in indices} - set(used)
        tokens = sum(row.num_tokens for each in updates for batch in each for row in batch)
        return LiveUpdates([loss for loss, _ in made], [norm for _, norm in made], tokens, used, len(late), layout)

    def _update(self, passes: list[list[Any]], collate: Collate, number: int) -> tuple[float, float]:
        batches = [collate(rows) for rows in passes]
        counts = torch.stack([self.objective.counts(batch) for batch in batches]).sum(0).to(self.model.device)
        total = 0.0
        with memory_explained(self.settings, where=lambda: f"the updates after search {number}"):
            for batch in batches:
                with autocast(self.settings, self.model.device):
                    loss = self.objective.loss(self.model, cast(Batch, send_to_device(batch, self.model.device)), counts)
                loss.backward()
                total += loss.item()
            if not math.isfinite(total):
                raise BackendError(
                    f"training: the loss must be finite: got {total} in the updates after search {number} -- lower learning_rate"
                )
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.memory.trim()
        return total, float(norm)

    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimiser."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with weights and optimiser of an earlier training with these settings."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def _factor(settings: TrainSettings, at: float) -> float:
    """Return the share of the peak learning rate, given the share of the training that is done, below 1: it rises, then falls to 0."""
    warm = settings.warmup_ratio
    if at < warm:
        return at / warm
    left = (1.0 - at) / (1.0 - warm)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 * (1.0 - math.cos(math.pi * left))}[settings.schedule]
