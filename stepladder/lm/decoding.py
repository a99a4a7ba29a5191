"""Rows of keys and values for decoding several continuations of each of many prefixes, one token at a time.

A row holds a prefix once and, behind it, the tokens of up to M continuations (lanes) in the order in which they came; a mask says which
lane sees which of them. So the keys of a prefix are read once for all its continuations, and only lanes that are alive go through the
model, as one flat pass.

Axes: R rows, M lanes of a row, S token slots of a row, N lanes forwarded in a pass, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from stepladder.lm.flat import FlatModel, attend_padded

_SLOT_STEP = 64


class DecodeRows:
    """The rows. The caller says which are in use; row numbers stay valid until ``compact``."""

    def __init__(self, model: FlatModel, *, num_lanes: int) -> None:
        """Start without rows; they are added as they are needed.

        Args:
            model: The model.
            num_lanes: Most lanes of a row.
        """
        self._model = model
        self.num_lanes = num_lanes
        self.clear()

    def clear(self) -> None:
        """Drop all rows and give the memory back."""
        self._keys, self._values = self._model.zeros(0, 0), self._model.zeros(0, 0)
        self._mask = torch.zeros(0, self.num_lanes, 0, dtype=self._model.dtype, device=self._model.device)
        self.fill: Int[np.ndarray, "R"] = np.zeros(0, dtype=np.int64)
        """Token slots in use in each row."""

    @property
    def num_rows(self) -> int:
        """Rows that exist."""
        return len(self.fill)

    @property
    def num_slots(self) -> int:
        """Token slots of every row."""
        return self._keys.shape[2]

    @torch.inference_mode()
    def reserve(self, num_rows: int, num_slots: int) -> None:
        """Make at least so many rows, with at least so many token slots; both grow by half or more, so that copying stays rare."""
        rows = self.num_rows if num_rows <= self.num_rows else max(num_rows, self.num_rows * 3 // 2)
        slots = self.num_slots if num_slots <= self.num_slots else max(num_slots, self.num_slots * 3 // 2)
        slots = -(-slots // _SLOT_STEP) * _SLOT_STEP
        if (rows, slots) == (self.num_rows, self.num_slots):
            return
        old_rows, old_slots = self.num_rows, self.num_slots
        keys, values = self._model.zeros(rows, slots), self._model.zeros(rows, slots)
        keys[:, :old_rows, :old_slots], values[:, :old_rows, :old_slots] = self._keys, self._values
        mask = self._mask.new_full((rows, self.num_lanes, slots), torch.finfo(self._mask.dtype).min)
        mask[:old_rows, :, :old_slots] = self._mask
        self._keys, self._values, self._mask = keys, values, mask
        self.fill = np.concatenate([self.fill, np.zeros(rows - old_rows, dtype=np.int64)])

    @torch.inference_mode()
    def start(self, rows: Sequence[int], lengths: Sequence[int], keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put prefixes into rows, whatever stood there before.

        Args:
            rows: Row of each prefix.
            lengths: Tokens of each prefix, >= 0.
            keys: The prefixes' keys, one behind the other: [L, sum of lengths, h, D].
            values: Their values.
        """
        self._mask[torch.tensor(rows, device=self._mask.device)] = torch.finfo(self._mask.dtype).min
        self.fill[list(rows)] = lengths
        target = self._index(np.concatenate([row * self.num_slots + np.arange(length) for row, length in zip(rows, lengths, strict=True)]))
        self._flat(self._keys).index_copy_(1, target, keys)
        self._flat(self._values).index_copy_(1, target, values)
        for row, length in zip(rows, lengths, strict=True):
            self._mask[row, :, :length] = 0

    @torch.inference_mode()
    def forward(
        self,
        *,
        rows: Int[np.ndarray, "N"],
        lanes: Int[np.ndarray, "N"],
        shared: Bool[np.ndarray, "N"],
        token_ids: Int[np.ndarray, "N"],
        positions: Int[np.ndarray, "N"],
    ) -> tuple[Float[torch.Tensor, "N V"], Int[np.ndarray, "N"]]:
        """Append one token to each given lane and return the logits of what comes next, and the slot that each token took in its row.

        Args:
            rows: Row of each lane, ascending.
            lanes: The lane within its row.
            shared: Whether all lanes of the row are to see the token.
            token_ids: The tokens.
            positions: Their positions in their sequences.
        """
        slots = self.fill[rows] + _rank(rows)
        num_rows, num_lanes = int(rows[-1]) + 1, int(lanes.max()) + 1
        self.fill[:num_rows] += np.bincount(rows, minlength=num_rows)
        self.reserve(0, int(self.fill[np.unique(rows)].max()))
        self._show(rows, lanes, shared, slots)
        num_keys = min(self.num_slots, -(-int(slots.max() + 1) // 8) * 8)
        target = self._index(rows * self.num_slots + slots)
        query_row = self._index(rows * num_lanes + lanes)
        mask = self._mask[:num_rows, None, :num_lanes, :num_keys]

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
            keys, values = self._keys[layer], self._values[layer]
            keys.flatten(0, 1).index_copy_(0, target, k[0].transpose(0, 1))
            values.flatten(0, 1).index_copy_(0, target, v[0].transpose(0, 1))
            heads, dim = q.shape[1], q.shape[3]
            padded = q.new_zeros(num_rows * num_lanes, heads, dim).index_copy_(0, query_row, q[0].transpose(0, 1))
            output = attend_padded(
                padded.view(num_rows, num_lanes, heads, dim).transpose(1, 2),
                keys[:num_rows, :num_keys].transpose(1, 2),
                values[:num_rows, :num_keys].transpose(1, 2),
                mask,
                scale,
            )
            return output.transpose(1, 2).reshape(-1, heads, dim).index_select(0, query_row)

        return self._model.forward(self._index(token_ids), self._index(positions), attend), slots

    def contents(self) -> tuple[Float[torch.Tensor, "L X h D"], Float[torch.Tensor, "L X h D"]]:
        """Return the keys and values of all rows, without a copy; slot s of row r is entry ``r * num_slots + s``."""
        return self._flat(self._keys), self._flat(self._values)

    @torch.inference_mode()
    def compact(self, rows: Int[np.ndarray, "X"]) -> None:
        """Move the given rows, ascending, to the front, in order."""
        index = self._index(rows)
        count = len(rows)
        self._keys[:, :count] = self._keys[:, index]
        self._values[:, :count] = self._values[:, index]
        self._mask[:count] = self._mask[index]
        self.fill[:count] = self.fill[rows]

    def _show(self, rows: np.ndarray, lanes: np.ndarray, shared: np.ndarray, slots: np.ndarray) -> None:
        """Let each lane see its new token, and every lane of the row a shared one."""
        own = (rows * self.num_lanes + lanes) * self.num_slots + slots
        everyone = (rows[shared, None] * self.num_lanes + np.arange(self.num_lanes)) * self.num_slots + slots[shared, None]
        self._mask.view(-1).index_fill_(0, self._index(np.concatenate([own, everyone.ravel()])), 0)

    def _flat(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(tensor.shape[0], tensor.shape[1] * tensor.shape[2], *tensor.shape[3:])

    def _index(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._model.device)


def _rank(rows: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """Return how many earlier entries of an ascending array are equal to each entry."""
    return np.arange(len(rows)) - np.searchsorted(rows, rows)
