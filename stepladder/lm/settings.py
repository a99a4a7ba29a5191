"""Settings of trainings and adapters: plain data that a configuration reads without loading a model library."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from stepladder.errors import check
from stepladder.lm.trackers import TRACKERS
from stepladder.settings import Count, Natural, NonNegative, Positive, Share, check_bounds

LearningRate = Literal["linear", "cosine", "constant"]
"""Courses of the learning rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """Low-rank adapters instead of full fine-tuning; merged into the weights when the model is saved."""

    r: Count = 16
    """Rank, >= 1."""
    alpha: Count = 32
    """Scale numerator, >= 1: updates are scaled by alpha / r."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout on the adapter input, in [0, 1)."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the modules that get adapters; ``all-linear`` is every linear layer but the head."""
    four_bit: bool = False
    """Hold the frozen weights in 4 bits (QLoRA; NF4, scales quantised too); needs bitsandbytes. The saved model is the one that was
    trained: the rounded weights plus the adapters."""

    def __post_init__(self) -> None:
        check_bounds(self, where="lora")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSettings:
    """How one stage trains; AdamW throughout."""

    learning_rate: Positive = 1e-5
    """Peak learning rate, > 0."""
    epochs: Annotated[float, Gt(0), Lt(math.inf)] = 2.0
    """Passes over the rows, > 0; rounded up to whole updates."""
    max_updates: Count | None = None
    """Cap on optimiser updates, >= 1; None is no cap."""
    batch_size: Count = 64
    """Rows per update, >= 1; all rows where there are fewer."""
    micro_batch_size: Count | None = None
    """Rows per forward pass of a process, >= 1; None is its whole share of the batch. It changes memory, not gradients: lower it when
    memory runs out."""
    group_by_length: bool = True
    """Put rows of similar length into the same update, which saves padding; trees are fitted to rows instead."""
    packed: bool = True
    """Merge the rows of a problem into trees, so that every shared token is forwarded once; losses and gradients are those of separate
    rows. The rows of a problem then come together, in the same update where they fit. Off, or where the model cannot do it, every sequence
    is forwarded by itself."""
    row_tokens: Count = 1024
    """Tokens of the largest tree with ``packed``, >= 1; larger trees are cut. Attention on a CPU costs its square."""
    warmup_ratio: Share = 0.03
    """Share of the updates over which the learning rate rises from 0, in [0, 1]."""
    schedule: LearningRate = "linear"
    """Course of the learning rate after the rise; ``linear`` and ``cosine`` end at 0."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW, >= 0."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm, > 0."""
    bf16: bool = False
    """Compute in bfloat16 autocast; the trained weights stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    checkpoint_every: Natural = 0
    """Updates between checkpoints from which a killed training continues, >= 0; 0 writes none and starts it over."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept while training, >= 1; with ``held_out`` the best one is kept besides."""
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the problems whose rows are not trained on, in [0, 1): their loss is measured at every checkpoint and at the end, and the
    weights with the lowest are saved. 0 saves the last weights. Needs ``checkpoint_every``."""
    lora: LoraSettings | None = None
    """Train adapters only; None trains all weights."""

    def __post_init__(self) -> None:
        check_bounds(self, where="training")
        chooses = f"held_out must be 0 without checkpoint_every, because it chooses among checkpoints: got {self.held_out}"
        check(not self.held_out or self.checkpoint_every, f"training: {chooses} -- set checkpoint_every")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings(StageSettings):
    """How to train: the settings of a stage, and what the whole run decides."""

    report_to: tuple[str, ...] = ()
    """Trackers that get every update's loss, learning rate and gradient norm: names of ``TRACKERS``. TensorBoard's files go to
    ``<out_dir>.logs``; the others are set up by their own environment variables."""
    seed: Natural = 0
    """Seed of row order, dropout and new weights, >= 0."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""

    def __post_init__(self) -> None:
        StageSettings.__post_init__(self)
        known = f"training: report_to must be names of {', '.join(TRACKERS)}: got {self.report_to!r}"
        check(set(self.report_to) <= set(TRACKERS), known)
