"""Settings of training runs, adapters and engines: plain data that a configuration reads without loading a model library."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import JsonValue

from stepladder.errors import check
from stepladder.lm.trackers import TRACKERS
from stepladder.settings import Count, Natural, NonNegative, Positive, Share, check_bounds

MemoryShare = Annotated[float, Gt(0), Le(1)]
"""Share of the memory of a GPU, in (0, 1]."""
LearningRate = Literal["linear", "cosine", "constant"]
"""Schedules of the learning rate."""
CHUNK_BYTES = 1 << 30
"""Bytes of the float32 logits that exist at once in a training; more than that is cut into chunks (``chunked_head.py``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """Low-rank adapters instead of full fine-tuning. They are merged into the weights when the model is saved."""

    r: Count = 16
    """Rank, >= 1."""
    alpha: Count = 32
    """Numerator of the scale, >= 1: updates are scaled by alpha / r."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout on the adapter input, in [0, 1)."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the modules that get adapters; ``all-linear`` is every linear layer but the head."""
    four_bit: bool = False
    """Hold the frozen weights in 4 bits (QLoRA; NF4, with quantised scales); needs bitsandbytes. The saved model is the trained one: the
    rounded weights plus the adapters."""

    def __post_init__(self) -> None:
        check_bounds(self, where="lora")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSettings:
    """Settings of one training stage. The optimiser is always AdamW."""

    learning_rate: Positive = 1e-5
    """Peak learning rate, > 0."""
    epochs: Annotated[float, Gt(0), Lt(math.inf)] = 2.0
    """Passes over the rows, > 0, rounded up to whole updates."""
    max_updates: Count | None = None
    """Cap on optimiser updates, >= 1; None is no cap."""
    updates: Count | None = None
    """Exactly so many optimiser updates, >= 1, whatever the number of rows, in place of ``epochs`` and ``max_updates``; None goes by these.
    With fewer rows than ``batch_size``, an update has all rows."""
    batch_size: Count = 64
    """Rows per update, >= 1; all rows if there are fewer."""
    micro_batch_size: Count | None = None
    """Rows per forward pass of a process, >= 1; None is its whole share of the batch. It changes memory, not gradients. Lower it if you
    run out of memory."""
    group_by_length: bool = True
    """Put rows of similar length into the same update, which saves padding. It has no effect on packed rows."""
    packed: bool = True
    """Merge the rows of a problem into trees, so that every shared token is forwarded once. Losses and gradients are those of separate
    rows. The rows of a problem then come together, in the same update if they fit. If this is off, or the model does not support it, every
    sequence is forwarded separately."""
    problems_per_update: Count = 1
    """About how many problems an update mixes with ``packed``, >= 1. Above 1, a problem's rows come in parts of at most ``batch_size``
    divided by this number, at different places of the order. Updates then differ less, but a prefix is forwarded once for every part. It
    pays where updates are scarce rather than seconds (``benchmarks/RESULTS.md``)."""
    row_tokens: Count = 1024
    """Maximum tokens of a tree with ``packed``, >= 1; larger trees are cut. On a CPU, attention costs the square of this number."""
    warmup_ratio: Share = 0.03
    """Share of the updates over which the learning rate rises from 0, in [0, 1]."""
    schedule: LearningRate = "linear"
    """Schedule of the learning rate after the rise; ``linear`` and ``cosine`` end at 0."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW, >= 0."""
    max_grad_norm: Positive = 1.0
    """Maximum norm of the gradients, > 0; larger gradients are scaled down to it."""
    bf16: bool | None = None
    """Compute in bfloat16 autocast; the trained weights stay float32. None does so on a GPU that has it, and not on a CPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    compile: bool = True
    """On a GPU with packed rows, compile the layers in a process of its own while the training already runs, and go on with them once they
    are ready. Losses differ by rounding from then on. With several processes, each compiles its attention alone, at its first use. It has
    no effect on a CPU, or on one GPU with weights in 4 bits."""
    checkpoint_every: Natural = 0
    """Updates between checkpoints, >= 0. A killed training continues from the last one; with 0 there are none, and it starts over."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints kept during training, >= 1. With ``held_out`` the best one is kept as well."""
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the problems set aside from training, in [0, 1). Their loss is measured at every checkpoint and at the end, and the weights
    with the lowest loss are saved. 0 saves the last weights. Needs ``checkpoint_every``."""
    lora: LoraSettings | None = None
    """Train adapters only; None trains all weights."""

    def __post_init__(self) -> None:
        check_bounds(self, where="training")
        both = f"updates must be without max_updates, which caps it: got {self.updates} and {self.max_updates} -- leave one out"
        check(self.updates is None or self.max_updates is None, f"training: {both}")
        chooses = f"held_out must be 0 without checkpoint_every, because it chooses among checkpoints: got {self.held_out}"
        check(not self.held_out or self.checkpoint_every, f"training: {chooses} -- set checkpoint_every")

    def rows_per_pass(self, num_processes: int) -> int:
        """Return the rows that go into a forward pass of one of the processes that share an update, at most."""
        share = math.ceil(self.batch_size / num_processes)
        return min(self.micro_batch_size or share, share)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings(StageSettings):
    """Settings of a training: those of a stage, and those of the whole run."""

    report_to: tuple[str, ...] = ()
    """Trackers that receive the loss, learning rate and gradient norm of every update: names of ``TRACKERS``. TensorBoard's files go to
    ``<out_dir>.logs``. Configure the others with their own environment variables."""
    seed: Natural = 0
    """Seed of row order, dropout and new weights, >= 0."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""

    def __post_init__(self) -> None:
        StageSettings.__post_init__(self)
        known = f"training: report_to must be names of {', '.join(TRACKERS)}: got {self.report_to!r}"
        check(set(self.report_to) <= set(TRACKERS), known)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How a vLLM engine holds its model, whatever else runs beside it."""

    tensor_parallel: Count = 1
    """GPUs that hold one copy of the model together, >= 1."""
    block_size: Count | None = None
    """Tokens of a cache block, >= 1; None is 32 on a CPU and vLLM's choice on a GPU."""
    max_context: Annotated[int, Ge(2)] | None = None
    """Tokens of question and solution together, >= 2; None is the model's own limit. Lower it when the cache does not fit."""
    arrival_steps: Count | None = None
    """Steps of the engine from one arrival of new sequences to the next, >= 1; None is 4 on a GPU and 1 on a CPU. A GPU is fastest in steps
    without arrivals, and the sequences of a search are short and end at any time."""
    options: dict[str, JsonValue] = field(default_factory=dict)
    """Further arguments of ``vllm.EngineArgs``, such as ``quantization = "fp8"`` or ``compilation_config = {mode = 0}``."""

    def __post_init__(self) -> None:
        check_bounds(self, where="policy.vllm")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings(EngineOptions):
    """How an engine uses the machine. Nothing here changes results by more than rounding."""

    dtype: str = "auto"
    """Type of the weights; ``auto`` is float32 on a CPU and the checkpoint's own type on a GPU."""
    memory_share: MemoryShare = 0.9
    """Share of each GPU's memory that the engine takes, weights and cache together, in (0, 1]. Engines that share a GPU must leave room for
    each other: their shares must not sum to more than about 0.9."""
    max_batch: Count = 256
    """Sequences decoded at once, >= 1."""
    trust_remote_code: bool = False
    """Run code that ships with a hub model."""
