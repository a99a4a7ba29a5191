"""The parts that both trainers share: settings, schedule, resuming, and atomic saving; ``trainer.py`` does the updates.

A training has three independent parts:

- rows: anything with a ``length`` and a ``num_tokens`` (``Row``);
- a collator: rows -> ``Batch``, nested tensors of which ``batch["inputs"]`` are the model's own arguments;
- an ``Objective``: model and batch -> loss.

Only rows and collators know the layout of tokens. By default the rows of a problem are merged into trees, each shared token once
(``packing.py``). If a model cannot attend along a tree, each sequence is forwarded separately, with the same loss and gradient.

The order of the rows is fixed before training starts (``schedule.py``), so a resumed training continues at the right row. Several
processes (``accelerate launch``) share every update. Each forwards its part of the rows, and losses are divided by the counts of the
whole update.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.integrations.integration_utils import TensorBoardCallback

from stepladder.errors import BackendError, CheckpointError, ConfigError, DataFormatError
from stepladder.files import atomic_directory, read_json_object
from stepladder.hold_out import hold_out, share_of
from stepladder.lm.adapters import quantization, with_adapters, without_adapters
from stepladder.lm.compilation import compiling
from stepladder.lm.loading import FORMAT_FILE, computes_in_bf16, quiet, resolve_device
from stepladder.lm.memory import memory_explained
from stepladder.lm.packing import PackedPass, PackedRow, group_rows, pack_rows
from stepladder.lm.processes import fill, this_process, whole_model
from stepladder.lm.schedule import Pool, Schedule, batch_schedule
from stepladder.lm.settings import TrainSettings
from stepladder.lm.trackers import check_trackers
from stepladder.lm.trainer import FINISHED_FILE, Batch, Collate, Objective, ObjectiveTrainer, Plan, ProgressCallback, Watch
from stepladder.lm.training_rows import Replay, Row
from stepladder.lm.tree_attention import ONE_ROW, check_tree_attention, core_model, takes_one_row, tree_attention
from stepladder.types import derive_seed

UPDATES_PER_READING = {"cuda": 5}
"""Updates between two readings of loss and gradient norm, by type of device: 1 where none is named.

A reading waits for the device, and until the next pass is prepared the device waits for Python. On a GPU that was a quarter of an update.
"""


class PackedCollate(Protocol):
    """Lays out trees."""

    def __call__(self, trees: list[PackedRow[Any]], *, width: int) -> Batch:
        """Return the batch of some trees in rows of ``width`` tokens, or of the largest tree's tokens if it has more."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainReport:
    """Result of a training run."""

    updates: int
    """Optimiser updates, including those before a resume."""
    rows: int
    """Distinct rows trained on."""
    tokens: int
    """Tokens forwarded over all updates, not counting padding and the reference pass."""
    first_loss: float
    """Loss of the first update."""
    last_loss: float
    """Loss of the last update; on a GPU, mean of the last few."""
    mean_loss: float
    """Mean over the updates."""
    seconds: float
    """Wall time of this call."""
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""
    layout: str = "paths"
    """``trees`` if rows were packed, else ``paths``, with the reason if the settings asked for packing."""
    best_update: int | None = None
    """Update whose weights were kept: the one with the lowest loss on the held-out rows; None without held-out rows."""
    held_out_loss: float | None = None
    """That loss."""
    curve: tuple[tuple[int, float, float | None], ...] = ()
    """(last update, mean loss, mean gradient norm before clipping) of consecutive updates, in at most 40 groups of about one size."""
    ranking_accuracy: float | None = None
    """Share of the training pairs whose preferred side is likelier under the trained model, from the first differing token on; None without
    pairs, and where several processes trained."""


def fingerprint(*parts: Any) -> str:
    """Return 16 hexadecimal digits that depend on the ``repr`` of every part and on nothing else."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(repr(part).encode())
        digest.update(b"\x1f")
    return digest.hexdigest()


def training_dtype(settings: TrainSettings) -> str:
    """Return the type to load weights in: float32 if they are trained, the stored type if only adapters are."""
    return "auto" if settings.lora else "float32"


def load_options(settings: TrainSettings) -> dict[str, Any]:
    """Return the loaders' keyword arguments for a model to be trained.

    Raises:
        ConfigError: If the settings ask for 4-bit weights and bitsandbytes is not installed.
    """
    return {"device": settings.device, "dtype": training_dtype(settings), "quantization": quantization(settings.lora)}


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
    replay: Replay[Any] | None = None,
) -> TrainReport:
    """Train a model on rows and save it to ``out_dir``, completely or not at all.

    With ``checkpoint_every``, a repeated call continues a killed one from the newest complete checkpoint in ``<out_dir>.work``. It ends
    with the weights of an uninterrupted call. The work directory is removed once the model is saved.

    Args:
        model: The model, on any device; it is moved and changed in place.
        rows: Rows to train on, not empty.
        collate: Turns rows into a batch.
        collate_packed: Turns ``PackedRow``s into a batch; None forwards every sequence separately, whatever the settings say.
        objective: The loss.
        settings: The training settings.
        out_dir: Directory of the trained model; replaced if it exists.
        identity: ``fingerprint`` of everything that decides the result.
        save: Writes the trained model, with merged adapters, to a given directory.
        on_progress: Called after every update.
        dropped: Counts of rows dropped earlier, by reason, for the report.
        replay: Rows of the same kind to mix in; none of them is held out.

    Under a launcher every process makes this call with the same arguments; the first one writes.

    Raises:
        BackendError: If the loss is not finite, or memory runs out.
        CheckpointError: If ``<out_dir>.work`` holds checkpoints of another training, or the model cannot be written.
        ConfigError: If the device does not exist, or a tracker is not installed.
        DataFormatError: If there are too few problems to hold some out.
    """
    start = time.perf_counter()
    _check_call(model, settings, out_dir)
    here = this_process(resolve_device(settings.device))
    work = out_dir.with_name(f"{out_dir.name}.work")
    with here.main_process_first():
        checkpoint = newest_checkpoint(work, identity)
    mixed_in = [] if replay is None else replay.rows
    layout = packed_layout(model, [*rows, *mixed_in], settings) if collate_packed else "paths"
    if collate_packed and layout == "trees":
        collate = packed_collate(model, collate_packed)
    kept, aside = split_held_out(rows, share=settings.held_out, seed=settings.seed)
    packed, num_processes = layout == "trees", here.num_processes
    pool = None if replay is None else Pool(first=len(kept), per_pass=replay.per_pass(len(kept)))
    plan, order = plan_of([*kept, *mixed_in], settings, collate, packed=packed, num_processes=num_processes, pool=pool)
    measured = None
    if aside:
        measured = plan_of(aside, _one_update(settings, len(aside)), collate, packed=packed, num_processes=num_processes).plan
    tokens = plan.tokens_after_updates()
    kind, config = type(model), model.config
    use_cache = config.use_cache if hasattr(config, "use_cache") else None
    with quiet(), tree_attention(model) if packed else nullcontext(), compiling(model, settings) if packed else nullcontext():
        trained = with_adapters(model, settings.lora, seed=settings.seed)
        arguments = _training_arguments(settings, plan.schedule, work)
        trainer = ObjectiveTrainer(trained, arguments, plan=plan, objective=objective, held_out=measured)
        trainer.add_callback(Watch(tokens=tokens, identity=identity, on_progress=on_progress))
        _log_beside(trainer, out_dir)
        try:
            _run(trainer, settings, checkpoint)
        finally:
            if not settings.checkpoint_every:
                shutil.rmtree(work, ignore_errors=True)
        final = _gathered(trainer, settings, kind, config) if _in_parts(trainer) else without_adapters(trained, settings.lora)
        if here.is_main_process:
            if use_cache is not None:
                # The Trainer turns the cache off; the saved model gets its own setting back.
                final.config.use_cache = use_cache
            with atomic_directory(out_dir) as temporary:
                save(final, temporary)
            shutil.rmtree(work, ignore_errors=True)
    # Wait: the next training starts from the files that the first process writes.
    here.wait_for_everyone()
    state = trainer.state
    logs = update_logs(state.log_history)
    return TrainReport(
        updates=state.global_step,
        rows=len({index for indices in order for index in indices}) if replay else len(kept),
        tokens=tokens[-1],
        first_loss=logs[0].loss,
        last_loss=logs[-1].loss,
        mean_loss=sum(log.loss * log.updates for log in logs) / state.global_step,
        seconds=time.perf_counter() - start,
        dropped_by_reason=dict(dropped or {}),
        layout=layout,
        best_update=state.best_global_step if aside else None,
        held_out_loss=state.best_metric,
        curve=training_curve(logs),
    )


class UpdateLog(NamedTuple):
    """What was read of some consecutive updates."""

    step: int
    """The last of them; the first update of a training is 1."""
    updates: int
    """How many they are."""
    loss: float
    """Their mean loss."""
    grad_norm: float | None
    """Gradient norm of the last of them before clipping."""


def update_logs(history: Sequence[dict[str, Any]]) -> list[UpdateLog]:
    """Return what the Trainer's log says of the updates, in their order."""
    entries = [entry for entry in history if "loss" in entry]
    begins = [0, *(int(entry["step"]) for entry in entries)]
    return [
        UpdateLog(step=int(entry["step"]), updates=int(entry["step"]) - begin, loss=float(entry["loss"]), grad_norm=entry.get("grad_norm"))
        for begin, entry in zip(begins, entries, strict=False)
    ]


_MOST_POINTS = 40


def training_curve(logs: Sequence[UpdateLog]) -> tuple[tuple[int, float, float | None], ...]:
    """Return (last update, mean loss, mean gradient norm) of consecutive updates, in at most 40 groups of about one size."""
    if not logs:
        return ()
    size = -(-logs[-1].step // _MOST_POINTS)
    groups = [list(group) for _, group in groupby(logs, key=lambda log: (log.step - 1) // size)]
    return tuple((group[-1].step, _mean(group, "loss") or 0.0, _mean(group, "grad_norm")) for group in groups)


def _mean(logs: Sequence[UpdateLog], what: str) -> float | None:
    """Return the mean over updates of what is known and finite."""
    known = [(value, log.updates) for log in logs if (value := getattr(log, what)) is not None and math.isfinite(value)]
    return round(sum(value * weight for value, weight in known) / sum(weight for _, weight in known), 6) if known else None


def _check_call(model: PreTrainedModel, settings: TrainSettings, out_dir: Path) -> None:
    """Refuse what cannot be trained or saved, before anything is moved."""
    check_trackers(settings.report_to)
    if file := next((path for path in (out_dir, *out_dir.parents) if path.exists() and not path.is_dir()), None):
        raise CheckpointError(f"training: out_dir must be a directory or not exist: got the file {file} -- choose another place")
    if settings.lora and settings.lora.four_bit and not getattr(model, "is_loaded_in_4bit", False):
        raise ConfigError(f"training: lora.four_bit is not known to this training of a {type(model).__name__} -- set it to false")


def split_held_out(rows: Sequence[Any], *, share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Return (rows to train on, rows held out). About ``share`` of the problems, at least one, are held out whole, chosen by the seed.

    A row that names no problem counts as a problem of its own.

    Raises:
        DataFormatError: If there are fewer than two problems.
    """
    if not share:
        return list(rows), []
    problems = [getattr(row, "group", "") or f"row {index}" for index, row in enumerate(rows)]
    keys = set(problems)
    if len(keys) < 2:
        raise DataFormatError(f"training: held_out = {share} needs rows of at least two problems: got {len(keys)} -- set held_out to 0")
    aside = hold_out([[key] for key in keys], count=share_of(len(keys), share), seed=seed)
    kept = [row for row, problem in zip(rows, problems, strict=True) if problem not in aside]
    return kept, [row for row, problem in zip(rows, problems, strict=True) if problem in aside]


def _one_update(settings: TrainSettings, num_rows: int) -> TrainSettings:
    """Return settings that forward every row once, in passes of the usual size."""
    size = settings.micro_batch_size or settings.batch_size
    return replace(settings, epochs=1.0, max_updates=None, updates=None, batch_size=num_rows, micro_batch_size=min(size, num_rows))


class Planned(NamedTuple):
    """A plan, and what it is made of."""

    plan: Plan
    """The plan. Packed rows are merged into trees pass by pass, and each pass is then one item of it."""
    order: list[list[int]]
    """Places of the rows of every forward pass."""


def plan_of(
    rows: Sequence[Any], settings: TrainSettings, collate: Collate, *, packed: bool, num_processes: int = 1, pool: Pool | None = None
) -> Planned:
    """Return the plan of some rows, at least one; every pass takes other ones of a pool."""
    schedule = batch_schedule(
        [row.length for row in rows],
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        max_updates=settings.max_updates,
        num_updates=settings.updates,
        group_by_length=settings.group_by_length,
        groups=group_rows(rows) if packed else None,
        together=max(1, settings.batch_size // settings.problems_per_update) if settings.problems_per_update > 1 else None,
        num_processes=num_processes,
        seed=settings.seed,
        pool=pool,
    )
    if not packed:
        return Planned(Plan(rows=rows, schedule=schedule, collate=collate), schedule.micro_batches)
    passes = [PackedPass(trees=pack_rows([rows[i] for i in batch], row_tokens=settings.row_tokens)) for batch in schedule.micro_batches]
    one_by_one = [[number] for number in range(len(passes))]
    return Planned(Plan(rows=passes, schedule=replace(schedule, micro_batches=one_by_one), collate=collate), schedule.micro_batches)


def _run(trainer: ObjectiveTrainer, settings: TrainSettings, checkpoint: str | None) -> None:
    if _in_parts(trainer) and settings.lora and settings.lora.four_bit:
        raise ConfigError("training: weights in 4 bits cannot be spread over processes: got lora.four_bit with FSDP or DeepSpeed")

    def where() -> str:
        return f"update {trainer.state.global_step + 1} of {trainer.args.max_steps}"

    with memory_explained(settings, where=where, num_processes=trainer.accelerator.num_processes):
        trainer.train(resume_from_checkpoint=checkpoint)


def _in_parts(trainer: Trainer) -> bool:
    """Say whether a process may hold only a part of the weights."""
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled


def _gathered(trainer: ObjectiveTrainer, settings: TrainSettings, kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """Return a sharded model as one model without adapters. Only the first process has its weights."""
    weights = cast(dict[str, Tensor], trainer.accelerator.get_state_dict(trainer.model_wrapped))
    whole = with_adapters(whole_model(kind, config), settings.lora, seed=settings.seed)
    if not trainer.accelerator.is_main_process:
        return core_model(whole)
    fill(whole, weights)
    return without_adapters(whole, settings.lora)


def _log_beside(trainer: Trainer, out_dir: Path) -> None:
    """Make TensorBoard write outside the work directory, so that its files survive; an environment variable overrides the place."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(out_dir.with_name(f"{out_dir.name}.logs"))


def packed_layout(model: PreTrainedModel, rows: Sequence[Any], settings: TrainSettings) -> str:
    """Return ``trees`` if the settings pack rows and the model can train on trees, else ``paths`` with the reason."""
    if not settings.packed:
        return "paths"
    try:
        check_tree_attention(model, longest=max(row.length for row in rows))
    except BackendError as error:
        return f"paths: {error}"
    return "trees"


def packed_collate(model: PreTrainedModel, collate: PackedCollate) -> Collate:
    """Return a collator of one ``PackedPass``. Block-sparse attention gets one long row, dense attention narrow ones."""
    return lambda passes: collate(passes[0].trees, width=ONE_ROW if takes_one_row(model) else 0)


def newest_checkpoint(work: Path, identity: str) -> str | None:
    """Return the newest complete checkpoint of this training, or None; incomplete ones are removed.

    Raises:
        CheckpointError: If a checkpoint belongs to another training.
    """
    found: dict[int, Path] = {}
    for directory in work.glob("checkpoint-*"):
        mark = directory / FINISHED_FILE
        if not mark.is_file():
            shutil.rmtree(directory)
        elif read_json_object(mark, what="the mark of a finished checkpoint", remedy=f"delete {work}").get("identity") != identity:
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
        # The warm-up starts at a learning rate of 0, so a training of one update must not be all warm-up.
        warmup_steps=min(math.ceil(settings.warmup_ratio * schedule.updates), schedule.updates - 1),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=computes_in_bf16(settings.bf16, device),
        use_cpu=device.type == "cpu",
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        seed=derive_seed(settings.seed, "trainer") % 2**32,
        save_strategy="steps" if settings.checkpoint_every else "no",
        save_steps=settings.checkpoint_every or 1,
        save_total_limit=settings.keep_checkpoints,
        eval_strategy="steps" if settings.held_out else "no",
        eval_steps=settings.checkpoint_every or None,
        load_best_model_at_end=settings.held_out > 0,
        metric_for_best_model="eval_loss" if settings.held_out else None,
        greater_is_better=False,
        logging_steps=UPDATES_PER_READING.get(device.type, 1),
        logging_first_step=True,
        # Without the filter, a loss that is not finite reaches the callback that stops the training.
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to) or "none",
        run_name=work.name.removesuffix(".work"),
        disable_tqdm=True,
        dataloader_pin_memory=False,
        # Batches are pinned (``get_train_dataloader``), so their copies need not be waited for.
        accelerator_config={"non_blocking": device.type == "cuda"},
        label_names=["targets"],
        remove_unused_columns=False,
    )
    arguments.device  # noqa: B018 - sets up the device, so that the next line is not overwritten
    # Otherwise the Trainer would split batches over all visible GPUs, and it cannot split nested batches.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def identity_of(settings: TrainSettings, **parts: Any) -> str:
    """Return the fingerprint of a training: everything that decides its weights, and nothing else."""
    # With held-out rows, the checkpoints are the candidates for the saved weights.
    every = settings.checkpoint_every if settings.held_out else 0
    plain = asdict(replace(settings, checkpoint_every=every, keep_checkpoints=1, report_to=(), device="auto", compile=True))
    return fingerprint(sorted(plain.items()), sorted(parts.items(), key=lambda item: item[0]))


def autocast(settings: TrainSettings, device: torch.device) -> torch.autocast:
    """Return the autocast context of the Trainer, for forward passes outside it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_in_bf16(settings.bf16, device))
