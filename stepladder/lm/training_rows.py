"""The row protocol of both trainers, and the checks and padding of rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from stepladder.errors import DataFormatError
from stepladder.types import Provenance

_MORE_ROWS = "search more problems or loosen the label settings"


@runtime_checkable
class Row(Protocol):
    """One unit of shuffling; it becomes one or more sequences of a batch."""

    @property
    def length(self) -> int:
        """Positions of the row's longest sequence. Rows of equal length need no padding."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded for the row, not counting padding."""
        ...


AnyT = TypeVar("AnyT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay(Generic[AnyT]):
    """Rows from elsewhere that are mixed into a training, other ones in every pass."""

    rows: Sequence[AnyT]
    """The rows, at least one."""
    share: float
    """Share of the rows of a pass that they are, in [0, 1)."""

    def per_pass(self, num_rows: int) -> int:
        """Return how many of them come to ``num_rows`` others, rounded to the nearest."""
        return round(num_rows * self.share / (1 - self.share))


def check_provenance(provenances: Iterable[Provenance], *, renderer_hash: str, what: str) -> None:
    """Refuse rows that another renderer made, because their tokens mean something else.

    Raises:
        DataFormatError: If there are no rows, or a row's renderer hash is not ``renderer_hash``.
    """
    found = {provenance.renderer_hash for provenance in provenances}
    if not found:
        raise DataFormatError(f"{what}: training needs at least one row: got none -- {_MORE_ROWS}")
    if foreign := sorted(found - {renderer_hash}):
        raise DataFormatError(
            f"{what}: every row must come from renderer {renderer_hash!r}: got {', '.join(map(repr, foreign))} "
            "-- train on rows that were made with the same prompt format and tokenizer"
        )


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return the number of token ids that a model has embeddings for."""
    return model.get_input_embeddings().num_embeddings  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]


def check_ids(ids: Iterable[int], *, vocabulary: int, place: str) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        DataFormatError: If an id is outside [0, vocabulary).
    """
    for token in ids:
        if not 0 <= token < vocabulary:
            raise DataFormatError(
                f"{place}: token ids must be in [0, {vocabulary}): got {token} -- the rows belong to a model with another vocabulary"
            )


RowT = TypeVar("RowT", bound=Row)


def fit_context(rows: Sequence[RowT], model: PreTrainedModel, dropped: dict[str, int], *, what: str) -> list[RowT]:
    """Return the rows that the model's context can hold, and count the others in ``dropped``.

    Raises:
        DataFormatError: If no row is left.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    kept = [row for row in rows if limit is None or row.length <= limit]
    if len(kept) < len(rows):
        dropped["longer than the context"] = len(rows) - len(kept)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        remedy = f"the model's context is {limit} tokens" if rows else _MORE_ROWS
        raise DataFormatError(f"{what}: no row can be trained on: dropped {reasons} -- {remedy}")
    return kept


def pad(sequences: Sequence[Sequence[int]], *, value: int) -> Int[Tensor, "B T"]:
    """Return sequences as one int64 tensor, padded on the right with ``value``.

    Padding comes after every real token and attention is causal. So no real token sees padding, and no attention mask is needed, which
    keeps attention on its fastest path.
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    return pad_flat(np.fromiter(chain.from_iterable(sequences), dtype=np.int64, count=lengths.sum()), lengths, value=value)


def pad_flat(flat: Int[np.ndarray, " N"], lengths: Int[np.ndarray, " B"], *, value: int) -> Int[Tensor, "B T"]:
    """Return sequences that lie one after the other as one int64 tensor, padded on the right with ``value``.

    Args:
        flat: The numbers of all sequences.
        lengths: Of the B sequences; they sum to N.
        value: What the padding holds.
    """
    padded = np.full((len(lengths), lengths.max()), value, dtype=np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = flat
    return torch.from_numpy(padded)
