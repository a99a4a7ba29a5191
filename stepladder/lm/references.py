"""Log-probabilities of the training rows under a reference model, computed once before the first update."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, TypeVar, cast

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import PreTrainedModel

from stepladder.lm.completions import IGNORE, completion_logps, contrast_sums
from stepladder.lm.loading import resolve_device
from stepladder.lm.memory import memory_explained
from stepladder.lm.packing import PackableRow, PackedPass, group_rows, pack_rows
from stepladder.lm.processes import gathered, this_process
from stepladder.lm.settings import TrainSettings
from stepladder.lm.trainer import Batch, Collate
from stepladder.lm.training import PackedCollate, autocast, packed_collate, packed_layout
from stepladder.lm.tree_attention import tree_attention


class ReferencedRow(PackableRow, Protocol):
    """A row that stores the log-probabilities of its completions under a reference model."""

    def with_reference(self, logps: Sequence[Any]) -> Self:
        """Return the row with what was read of each of its completions, by default the log-probability."""
        ...


RowT = TypeVar("RowT", bound=ReferencedRow)
Reading = Callable[[Tensor, Batch], list[Any]]
"""What is kept of the log-probabilities of the tokens of a batch: one entry per completion."""


def completion_sums(logps: Tensor, batch: Batch) -> list[float]:
    """Return the log-probability of every completion, from the first token on that the loss compares."""
    return contrast_sums(logps, batch).tolist()


def learned_logps(logps: Tensor, batch: Batch) -> list[list[float]]:
    """Return the log-probability of every learned token of every completion."""
    return [line[targets != IGNORE].tolist() for line, targets in zip(logps, batch["targets"], strict=True)]


@torch.no_grad()
def add_reference(
    model: PreTrainedModel,
    rows: Sequence[RowT],
    settings: TrainSettings,
    *,
    collate: Collate,
    collate_packed: PackedCollate,
    read: Reading = completion_sums,
) -> list[RowT]:
    """Return the rows with their log-probabilities under the unchanged model. Packed rows are forwarded once per tree.

    Args:
        model: The reference model; it is moved to the device of the settings.
        rows: The rows.
        settings: Training settings; the reference runs under them, too.
        collate: Lays out rows for ``contrast_sums``. If rows differ in their numbers of completions, ``members``, int64 ``[B, G]``, holds
            the completions of each row, then -1.
        collate_packed: Lays out trees of rows.
        read: What of the log-probabilities the rows keep.

    Returns:
        The rows in the order given.

    Raises:
        BackendError: If memory runs out.
    """
    device = resolve_device(settings.device)
    model.to(device)  # pyright: ignore[reportArgumentType]
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: -rows[i].length)
    if packed_layout(model, rows, settings) != "trees":
        return _with_references(model, rows, settings, order=order, collate=collate, read=read)
    packed = packed_collate(model, collate_packed)

    def collate_trees(part: list[RowT]) -> Batch:
        return packed([PackedPass(trees=pack_rows(part, row_tokens=settings.row_tokens))])

    order = [i for group in group_rows(rows) for i in group]
    with tree_attention(model):
        return _with_references(model, rows, settings, order=order, collate=collate_trees, read=read)


def _with_references(
    model: PreTrainedModel, rows: Sequence[RowT], settings: TrainSettings, *, order: list[int], collate: Collate, read: Reading
) -> list[RowT]:
    """Forward the rows in the given order, in parts that the processes take in turn."""
    size, here = settings.micro_batch_size or settings.batch_size, this_process(model.device)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    found: list[tuple[int, RowT]] = []
    for indices in parts[here.process_index :: here.num_processes]:
        batch = collate([rows[i] for i in indices])
        explained = memory_explained(settings, where=lambda: "the reference pass")
        with autocast(settings, model.device), explained:
            logps = completion_logps(model, cast(Batch, send_to_device(batch, model.device)))
        kept = read(logps.cpu(), batch)
        # Completions of one kind stand together, in the order of the rows, unless the batch has ``members``.
        members = batch["members"] if "members" in batch else torch.arange(len(kept)).view(-1, len(indices)).T
        found += [
            (i, rows[i].with_reference([kept[each] for each in mine[mine >= 0].tolist()])) for i, mine in zip(indices, members, strict=True)
        ]
    by_index = dict(gathered(found, here))
    return [by_index[i] for i in range(len(rows))]
