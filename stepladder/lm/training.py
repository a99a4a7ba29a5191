"""What both trainers share: settings, the batch schedule, one ``transformers.Trainer`` subclass, resuming, and whole-or-nothing saving.

A training is three parts that do not know each other:

- rows: anything with a ``length`` and a ``num_tokens`` (``Row``);
- a collator: rows -> ``Batch``, nested tensors of which ``batch["inputs"]`` are the model's own arguments;
- an ``Objective``: model and batch -> loss.

Only rows and collators know how tokens are laid out. By default the rows of a problem are merged into trees, every shared token once
(``packing.py``); where a model cannot attend along a tree, each sequence is forwarded by itself, with the same loss and gradient.

The order of the rows is fixed before training starts (``schedule.py``), so a resumed training continues at the right row.
"""

import hashlib
import inspect
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging as hf_logging

from stepladder.errors import BackendError, CheckpointError, ConfigError
from stepladder.files import atomic_directory, atomic_write_text
from stepladder.lm.loading import FORMAT_FILE, resolve_device
from stepladder.lm.packing import PackedPass, PackedRow, group_rows, pack_rows
from stepladder.lm.rows import Row
from stepladder.lm.schedule import Schedule, batch_schedule
from stepladder.lm.tree_attention import can_flex, check_tree_attention, core_model, run_rows, tree_attention
from stepladder.types import derive_seed

_FINISHED = "stepladder_checkpoint.json"

Batch = dict[str, Any]
"""Nested tensors; ``inputs`` holds the keyword arguments of the model's forward pass."""
ProgressCallback = Callable[[int, int, float, int], None]
"""Called after every update with (updates done, updates in all, loss of the update, tokens forwarded so far)."""
Collate = Callable[[list[Any]], Batch]


class PackedCollate(Protocol):
    """Lays out trees."""

    def __call__(self, trees: list[PackedRow[Any]], *, width: int) -> Batch:
        """Return the batch of some trees in rows of ``width`` tokens, or of the largest tree's where that is more."""
        ...


@runtime_checkable
class Objective(Protocol):
    """Turns a model and a batch into a loss; never sees rows."""

    def counts(self, batch: Batch) -> Tensor:
        """Return the sizes over which the loss takes means (tokens, pairs, targets), one number each."""
        ...

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the update's loss: sums over the batch, divided by the counts of the whole update."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """Low-rank adapters instead of full fine-tuning; merged into the weights when the model is saved."""

    r: int = 16
    """Rank, >= 1."""
    alpha: int = 32
    """Scale numerator, >= 1: updates are scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout on the adapter input, in [0, 1)."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Module names that get adapters; ``all-linear`` is every linear layer but the head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """How to train; AdamW throughout."""

    learning_rate: float = 1e-5
    """Peak learning rate, > 0."""
    epochs: float = 2.0
    """Passes over the rows, > 0; rounded up to whole updates."""
    max_updates: int | None = None
    """Cap on optimiser updates, >= 1; None is no cap."""
    batch_size: int = 64
    """Rows per update, >= 1; all rows where there are fewer."""
    micro_batch_size: int | None = None
    """Rows per forward pass, >= 1; None is the whole batch. It changes memory, not gradients."""
    group_by_length: bool = True
    """Put rows of similar length into the same update, which saves padding; trees are fitted to rows instead."""
    packed: bool = True
    """Merge the rows of a problem into trees, so that what they share is forwarded once; losses and gradients are those of separate rows.
    The rows of a problem then come together, in the same update where they fit. Off, or where the model cannot do it, every sequence is
    forwarded by itself."""
    row_tokens: int = 1024
    """Largest tree, >= 1; larger ones are cut. Attention on a CPU costs its square."""
    warmup_ratio: float = 0.03
    """Share of the updates over which the learning rate rises from 0, in [0, 1]."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after the rise; linear and cosine end at 0."""
    weight_decay: float = 0.0
    """AdamW weight decay, >= 0."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm, > 0."""
    bf16: bool = False
    """Compute in bfloat16 autocast; the trained weights stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    checkpoint_every: int = 0
    """Updates between checkpoints from which a killed training continues, >= 0; 0 writes none."""
    lora: LoraSettings | None = None
    """Train adapters only."""
    seed: int = 0
    """Seed of row order, dropout and new weights, >= 0."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""

    def __post_init__(self) -> None:
        rules = {
            "learning_rate": self.learning_rate > 0,
            "epochs": self.epochs > 0,
            "max_updates": self.max_updates is None or self.max_updates >= 1,
            "batch_size": self.batch_size >= 1,
            "micro_batch_size": self.micro_batch_size is None or self.micro_batch_size >= 1,
            "row_tokens": self.row_tokens >= 1,
            "warmup_ratio": 0 <= self.warmup_ratio <= 1,
            "weight_decay": self.weight_decay >= 0,
            "max_grad_norm": self.max_grad_norm > 0,
            "checkpoint_every": self.checkpoint_every >= 0,
            "lora": self.lora is None or (self.lora.r >= 1 and self.lora.alpha >= 1 and 0 <= self.lora.dropout < 1),
            "seed": self.seed >= 0,
        }
        for name, holds in rules.items():
            if not holds:
                raise ConfigError(f"training: {name} is out of range: got {getattr(self, name)!r} -- see the range in the settings")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainReport:
    """What a training came to."""

    updates: int
    """Optimiser updates, those before a resume included."""
    rows: int
    """Distinct rows trained on."""
    tokens: int
    """Tokens forwarded over all updates, padding and the reference pass not counted."""
    first_loss: float
    """Loss of the first update."""
    last_loss: float
    """Loss of the last update."""
    mean_loss: float
    """Mean over the updates."""
    seconds: float
    """Wall time of this call."""
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""
    layout: str = "paths"
    """``trees`` if rows were packed, ``paths`` if not, with the reason where packing was asked for."""


def fingerprint(*parts: Any) -> str:
    """Return 16 hexadecimal digits that depend on the ``repr`` of every part and on nothing else."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(repr(part).encode())
        digest.update(b"\x1f")
    return digest.hexdigest()


def training_dtype(settings: TrainSettings) -> str:
    """Return the type to load weights in: float32 where they are trained, as stored where only adapters are."""
    return "auto" if settings.lora else "float32"


class ObjectiveTrainer(Trainer):
    """A ``transformers.Trainer`` that follows a given schedule and takes its loss from an objective."""

    # The objective divides by the counts of the whole update, so the Trainer must not divide by the number of passes again.
    loss_is_scaled_for_ga = True

    def __init__(
        self, model: nn.Module, args: TrainingArguments, *, rows: Sequence[Row], schedule: Schedule, objective: Objective, collate: Collate
    ) -> None:
        super().__init__(model, args, train_dataset=_RowList(rows), data_collator=collate)
        self._schedule, self._objective = schedule, objective
        self.remove_callback(PrinterCallback)
        if self.accelerator.num_processes > 1:
            raise ConfigError(f"training: must run in one process: got {self.accelerator.num_processes} -- start it without a launcher")

    def get_train_dataloader(self) -> DataLoader:
        """Return the schedule's batches; collation happens in this process, because it is cheaper than handing tensors over."""
        on_gpu = self.args.device.type == "cuda"
        loader = DataLoader(
            self.train_dataset,  # pyright: ignore[reportArgumentType]
            batch_sampler=self._schedule.micro_batches,
            collate_fn=self.data_collator,
            pin_memory=on_gpu,
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Return the batches of one update and, as "items", the counts of all of them."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = [self._objective.counts(batch) for batch in batches]
        return batches, torch.stack(counts).sum(0).to(device) if counts else None

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Return the objective's loss."""
        loss = self._objective.loss(model, inputs, num_items_in_batch)
        return (loss, None) if return_outputs else loss


class _RowList(torch.utils.data.Dataset):
    """A list as a dataset."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


class _Watch(TrainerCallback):
    """Reports progress, stops on a loss that is not a number, and marks checkpoints that are complete."""

    def __init__(self, *, tokens: Sequence[int], identity: str, on_progress: ProgressCallback | None) -> None:
        self._tokens, self._identity, self._on_progress = tokens, identity, on_progress

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        step, loss = state.global_step, logs["loss"]
        if not math.isfinite(loss):
            raise BackendError(
                f"training: the loss must be finite: got {loss} in update {step} of {state.max_steps} -- lower learning_rate"
            )
        if self._on_progress:
            self._on_progress(step, state.max_steps, loss, self._tokens[step - 1])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        mark = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / _FINISHED
        atomic_write_text(mark, json.dumps({"identity": self._identity}))


def run_training(
    model: PreTrainedModel,
    rows: Sequence[Row],
    *,
    collate: Collate,
    collate_packed: PackedCollate | None = None,
    objective: Objective,
    settings: TrainSettings,
    out_dir: Path,
    identity: str,
    save: Callable[[PreTrainedModel, Path], None],
    on_progress: ProgressCallback | None = None,
    dropped: dict[str, int] | None = None,
) -> TrainReport:
    """Train a model on rows and save it to ``out_dir``, whole or not at all.

    With ``checkpoint_every`` a call that was killed continues, when it is made again, from the newest complete checkpoint in
    ``<out_dir>.work`` and ends with the weights of an undisturbed call. The directory is removed once the model is saved.

    Args:
        model: The model, on any device; it is moved and changed.
        rows: Rows to train on, not empty.
        collate: Turns rows into a batch.
        collate_packed: Turns ``PackedRow``s into a batch; None forwards every sequence by itself, whatever the settings say.
        objective: The loss.
        settings: How to train.
        out_dir: Where the model goes; replaced if it exists.
        identity: ``fingerprint`` of everything that decides the result.
        save: Writes the trained model, adapters merged, to the directory it is given.
        on_progress: Called after every update.
        dropped: Rows left out before, for the report.

    Raises:
        BackendError: If the loss is not finite.
        CheckpointError: If ``<out_dir>.work`` holds checkpoints of another training, or the model cannot be written.
        ConfigError: If the device cannot be had.
    """
    start = time.perf_counter()
    work = out_dir.with_name(f"{out_dir.name}.work")
    checkpoint = newest_checkpoint(work, identity)
    num_rows = len(rows)
    layout = packed_layout(model, rows, settings) if collate_packed else "paths"
    schedule = batch_schedule(
        [row.length for row in rows],
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        max_updates=settings.max_updates,
        group_by_length=settings.group_by_length,
        groups=group_rows(rows) if layout == "trees" else None,  # pyright: ignore[reportArgumentType]
        seed=settings.seed,
    )
    if collate_packed and layout == "trees":
        rows, schedule = _packed_passes(rows, schedule, row_tokens=settings.row_tokens)
        collate = packed_collate(model, settings, collate_packed)
    tokens = _tokens_after_updates(rows, schedule)
    use_cache = model.config.use_cache if hasattr(model.config, "use_cache") else None
    with quiet(), tree_attention(model) if layout == "trees" else nullcontext():
        trained = _with_adapters(model, settings)
        arguments = _training_arguments(settings, schedule, work)
        trainer = ObjectiveTrainer(trained, arguments, rows=rows, schedule=schedule, objective=objective, collate=collate)
        trainer.add_callback(_Watch(tokens=tokens, identity=identity, on_progress=on_progress))
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            if not settings.checkpoint_every:
                shutil.rmtree(work, ignore_errors=True)
        final = trained.merge_and_unload() if isinstance(trained, PeftModel) else trained
        if use_cache is not None:
            # The Trainer turns the cache off for itself; whoever loads the result wants it as it was.
            final.config.use_cache = use_cache
        with atomic_directory(out_dir) as temporary:
            save(final, temporary)
    shutil.rmtree(work, ignore_errors=True)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return TrainReport(
        updates=trainer.state.global_step,
        rows=num_rows,
        tokens=tokens[-1],
        first_loss=losses[0],
        last_loss=losses[-1],
        mean_loss=sum(losses) / len(losses),
        seconds=time.perf_counter() - start,
        dropped_by_reason=dict(dropped or {}),
        layout=layout,
    )


def packed_layout(model: PreTrainedModel, rows: Sequence[Any], settings: TrainSettings) -> str:
    """Return ``trees`` where rows are to be packed and the model can train on trees, else ``paths``, with the reason."""
    if not settings.packed:
        return "paths"
    try:
        check_tree_attention(model, longest=max(len(sequence) for row in rows for sequence in row.sequences))
    except BackendError as error:
        return f"paths: {error}"
    return "trees"


def packed_collate(model: PreTrainedModel, settings: TrainSettings, collate: PackedCollate) -> Collate:
    """Return a collator of one ``PackedPass``: block-sparse attention gets wide rows, dense attention narrow ones."""
    width = settings.row_tokens if can_flex(model) else 0
    return lambda passes: collate(passes[0].trees, width=width)


def _packed_passes(rows: Sequence[Any], schedule: Schedule, *, row_tokens: int) -> tuple[list[PackedPass], Schedule]:
    """Merge the rows of every forward pass into trees; they are the new rows, each forwarded once."""
    passes = [PackedPass(trees=pack_rows([rows[i] for i in batch], row_tokens=row_tokens)) for batch in schedule.micro_batches]
    return passes, replace(schedule, micro_batches=[[i] for i in range(len(passes))])


def newest_checkpoint(work: Path, identity: str) -> str | None:
    """Return the newest complete checkpoint of this training, or None; incomplete ones are removed.

    Raises:
        CheckpointError: If a checkpoint belongs to another training.
    """
    found: dict[int, Path] = {}
    for directory in work.glob("checkpoint-*"):
        mark = directory / _FINISHED
        if not mark.is_file():
            shutil.rmtree(directory)
        elif json.loads(mark.read_text(encoding="utf-8"))["identity"] != identity:
            raise CheckpointError(
                f"{directory}: a training continues only its own checkpoints: this one has other rows, settings or start model "
                f"-- delete {work}"
            )
        else:
            found[int(directory.name.rpartition("-")[2])] = directory
    return str(found[max(found)]) if found else None


def save_model(
    model: PreTrainedModel, directory: Path, *, source: str | Path, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool = False
) -> None:
    """Write a Hugging Face directory in the numeric type of the start model, with its tokenizer and step format."""
    stored = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code).dtype or torch.float32
    model.to(stored)  # pyright: ignore[reportArgumentType]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    step_format = Path(source) / FORMAT_FILE
    if step_format.is_file():
        shutil.copyfile(step_format, directory / FORMAT_FILE)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the library's own bars and log lines for a while: progress goes through callbacks, failures are exceptions."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def _tokens_after_updates(rows: Sequence[Row], schedule: Schedule) -> list[int]:
    per_pass = [sum(rows[i].num_tokens for i in batch) for batch in schedule.micro_batches]
    per_update = np.asarray(per_pass).reshape(-1, schedule.passes_per_update).sum(1)
    return np.cumsum(per_update).tolist()


def _with_adapters(model: PreTrainedModel, settings: TrainSettings) -> PreTrainedModel | PeftModel:
    """Return the model, wrapped in adapters if the settings ask for them; a head of its own task is trained in full."""
    if settings.lora is None:
        return model
    lora, targets = settings.lora, settings.lora.target_modules
    head = [name for name, _ in model.named_children() if name in ("score", "classifier")]
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=head or None,
        modules_to_save=head or None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(settings.seed, "lora"))
        return get_peft_model(model, config)  # pyright: ignore[reportReturnType]


def _training_arguments(settings: TrainSettings, schedule: Schedule, work: Path) -> TrainingArguments:
    device = resolve_device(settings.device)
    if (device.index or 0) > 0:
        raise ConfigError(
            f"training: device must be 'auto', 'cpu' or 'cuda': got {settings.device!r} -- choose the GPU by CUDA_VISIBLE_DEVICES"
        )
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=schedule.updates,
        gradient_accumulation_steps=schedule.passes_per_update,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        # The learning rate of warm-up begins at 0: a training of one update must not be all warm-up.
        warmup_steps=min(math.ceil(settings.warmup_ratio * schedule.updates), schedule.updates - 1),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.bf16,
        use_cpu=device.type == "cpu",
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        seed=derive_seed(settings.seed, "trainer") % 2**32,
        save_strategy="steps" if settings.checkpoint_every else "no",
        save_steps=settings.checkpoint_every or 1,
        save_total_limit=2,
        logging_steps=1,
        # Without the filter a loss that is not a number reaches the callback that stops the training.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        label_names=["targets"],
        remove_unused_columns=False,
    )
    arguments.device  # noqa: B018 - sets up the device, so that the next line is not overwritten
    # Several visible GPUs would otherwise be driven as one by splitting batches, which nested batches do not survive.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def identity_of(settings: TrainSettings, **parts: Any) -> str:
    """Return the fingerprint of a training: what decides its weights, and nothing that does not."""
    plain = asdict(replace(settings, checkpoint_every=0, device="auto"))
    return fingerprint(sorted(plain.items()), sorted(parts.items(), key=lambda item: item[0]))


def autocast(settings: TrainSettings, device: torch.device) -> torch.autocast:
    """Return the context in which the Trainer runs forward passes, for passes outside it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.bf16)


def last_logits(model: nn.Module, inputs: dict[str, Tensor], *, positions: int) -> Tensor:
    """Return the logits of the last ``positions`` positions; a model that can compute only those does so.

    With a large vocabulary the logits of the prompt would cost more than everything else.
    """
    can_skip = "logits_to_keep" in inspect.signature(type(core_model(model)).forward).parameters
    return run_rows(model, inputs, **({"logits_to_keep": positions} if can_skip else {}))[:, -positions:]
