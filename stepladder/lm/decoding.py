"""Rows of keys and values that decode several continuations of each of many prefixes, one token at a time.

A row holds a prefix once. After it come the tokens of up to M continuations (lanes), in order of arrival. A mask says which lane sees
which token. So the keys of a prefix are read once for all its continuations, and one flat pass forwards only the lanes that are alive.
Rows are grouped into blocks. Attention runs block by block, up to the block's longest row, so a block takes rows of similar length only.

Axes: R rows, M lanes of a row, S token slots of a row, N lanes forwarded in a pass, P lanes with logits, V vocabulary, F outputs of a
token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from stepladder.lm.flat import FlatModel, LayerAttention, attend_padded

_BLOCK = 32
"""Rows of a block."""
_SLOT_STEP = 64
"""The number of slots of a row is a multiple of this."""
_MAX_BYTES, _KEPT_BYTES = 8 << 30, 256 << 20
"""Keys and values that the rows may hold before no more rows are added, and that are never given back between two uses."""
_SHRINK_RATIO = 4
"""Memory is given back when a fraction of one by this is in use; it grows by halves, so it is not given back and taken again."""
_LENGTH_RATIO, _LENGTH_SLACK = 1.3, 16
"""Two lengths are similar when neither exceeds the other by more than this ratio plus this many tokens."""


class _Block(NamedTuple):
    """One block's part in a pass."""

    begin: int
    """First row."""
    end: int
    """One past the last row that takes part."""
    num_lanes: int
    num_keys: int
    queries: slice
    """Range of its padded queries, ``(end - begin) * num_lanes`` of them."""
    oldest: int
    """Least position of its queries."""

    def keys(self, window: int | None) -> slice:
        """Return the slots in which its queries may see something. No slot holds a later position than its own number."""
        # A multiple of eight, as for the number of keys.
        first = 0 if window is None else max(0, self.oldest + 1 - window) // 8 * 8
        return slice(first, self.num_keys)


class DecodeRows:
    """The rows. Row numbers stay valid until ``tidy``."""

    def __init__(self, model: FlatModel, *, num_lanes: int, max_bytes: int = _MAX_BYTES) -> None:
        """Start without rows; rows are added when they are needed.

        Args:
            model: The model.
            num_lanes: Maximum number of lanes of a row.
            max_bytes: Keys and values, in bytes, up to which ``fits`` allows more rows. Rows that are there may grow beyond it.
        """
        self._model = model
        self._max_tokens = max_bytes // model.bytes_per_token
        self.num_lanes = num_lanes
        self.clear()

    def clear(self) -> None:
        """Drop all rows and free their memory."""
        self._keys, self._values = self._model.zeros(0, 0), self._model.zeros(0, 0)
        self._mask = torch.zeros(0, self.num_lanes, 0, dtype=self._model.dtype, device=self._model.device)
        self._positions = torch.zeros(0, 0, dtype=torch.int32, device=self._model.device)
        self._outputs = np.zeros((0, 0, self._model.num_outputs), dtype=np.float32)
        self._fill = np.zeros(0, dtype=np.int64)
        self._lanes = np.zeros(0, dtype=np.int64)

    @property
    def num_rows(self) -> int:
        """Rows that exist, in use or not."""
        return len(self._fill)

    @property
    def num_slots(self) -> int:
        """Token slots of every row."""
        return self._keys.shape[2]

    @property
    def num_bytes(self) -> int:
        """Bytes of the keys and values of all rows."""
        return self.num_rows * self.num_slots * self._model.bytes_per_token

    def fits(self, lengths: Sequence[int]) -> bool:
        """Say whether there is memory for more rows, in which prefix and samples will have these lengths. A first row always fits."""
        used = np.flatnonzero(self._lanes)
        num_rows, num_slots = len(used) + len(lengths), max([*lengths, *self._fill[used].tolist()])
        return num_rows == 1 or _rounded(num_rows, _BLOCK) * _rounded(num_slots, _SLOT_STEP) <= self._max_tokens

    @torch.inference_mode()
    def allocate(self, lengths: Sequence[int], lanes: Sequence[int]) -> list[int]:
        """Return a free row for each prefix, in a block of rows with similar length and the same number of lanes.

        Args:
            lengths: Tokens of each prefix, >= 0.
            lanes: Lanes of each row, in [1, num_lanes]. A row with lanes is in use until ``release``.
        """
        self._reserve(self.num_rows, max(lengths) + self.num_lanes)
        rows = np.empty(len(lengths), dtype=np.int64)
        # Shortest first: neighbours in this order fall into the same block, which keeps padding low.
        for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
            rows[i] = self._find_row(lengths[i], lanes[i])
            self._fill[rows[i]], self._lanes[rows[i]] = lengths[i], lanes[i]
        return rows.tolist()

    def release(self, row: int) -> None:
        """Free a row."""
        self._lanes[row] = 0

    @torch.inference_mode()
    def load(self, rows: Sequence[int], keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copy the prefixes of newly allocated rows into the rows.

        Args:
            rows: The rows.
            keys: The prefixes' keys, concatenated: [L, sum of lengths, h, D].
            values: Their values.
        """
        index = np.asarray(rows)
        lengths = self._fill[index]
        target = self._index(np.concatenate([row * self.num_slots + np.arange(length) for row, length in zip(rows, lengths, strict=True)]))
        self._flat(self._keys).index_copy_(1, target, keys)
        self._flat(self._values).index_copy_(1, target, values)
        # A row may hold keys of its last use: every lane sees the prefix and nothing after it.
        hidden = torch.arange(self.num_slots, device=self._mask.device) >= self._index(lengths)[:, None]
        row_masks = torch.zeros(hidden.shape, dtype=self._mask.dtype, device=self._mask.device)
        row_masks.masked_fill_(hidden, torch.finfo(self._mask.dtype).min)
        self._mask[self._index(index)] = row_masks[:, None].expand(-1, self.num_lanes, -1)
        # A prefix fills the first slots of its row; ``forward`` sets the positions of the slots after it.
        self._positions[self._index(index)] = torch.arange(self.num_slots, dtype=torch.int32, device=self._positions.device)

    @torch.inference_mode()
    def forward(
        self,
        *,
        rows: Int[np.ndarray, "N"],
        lanes: Int[np.ndarray, "N"],
        shared: Bool[np.ndarray, "N"],
        token_ids: Int[np.ndarray, "N"],
        positions: Int[np.ndarray, "N"],
        goes_on: Bool[np.ndarray, "N"],
    ) -> tuple[Float[torch.Tensor, "P V"], Int[np.ndarray, "N"]]:
        """Append one token to each given lane; return the logits of the next tokens, and the slot that each token took in its row.

        Args:
            rows: Row of each lane, ascending.
            lanes: The lane within its row.
            shared: Whether all lanes of the row see the token.
            token_ids: The tokens.
            positions: Their positions in their sequences.
            goes_on: Lanes whose logits are wanted.
        """
        # Several lanes of a row may append in one pass: they take consecutive slots, and the row's fill is the last one's.
        slots = self._fill[rows] + _rank(rows)
        np.maximum.at(self._fill, rows, slots + 1)
        self._reserve(self.num_rows, int(slots.max()) + 1)
        self._show(rows, lanes, shared, slots)
        blocks, query_row = self._blocks(rows, lanes, positions)
        target, query_index = self._index(rows * self.num_slots + slots), self._index(query_row)
        token_positions = self._index(positions)
        self._positions.view(-1).index_copy_(0, target, token_positions.int())
        query_positions = token_positions.new_zeros(blocks[-1].queries.stop).index_copy_(0, query_index, token_positions)
        longest = int(positions.max()) + 1
        masks: dict[int | None, list[torch.Tensor]] = {}

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kind: LayerAttention) -> torch.Tensor:
            # The new keys go in first: a token attends to itself, too.
            keys, values = self._keys[layer], self._values[layer]
            keys.flatten(0, 1).index_copy_(0, target, k[0].transpose(0, 1))
            values.flatten(0, 1).index_copy_(0, target, v[0].transpose(0, 1))
            padded = q.new_zeros(blocks[-1].queries.stop, *q.shape[1::2]).index_copy_(0, query_index, q[0].transpose(0, 1))
            window = kind.window_within(longest)
            if window not in masks:
                masks[window] = [self._block_mask(block, query_positions, window) for block in blocks]
            parts = zip(blocks, masks[window], strict=True)
            outputs = [self._attend_block(block, padded, (keys, values), mask, kind, block.keys(window)) for block, mask in parts]
            return torch.cat(outputs).index_select(0, query_index)

        options = {} if goes_on.all() else {"logits_to_keep": self._index(np.flatnonzero(goes_on))}
        logits = self._model.forward(self._index(token_ids), token_positions, attend, **options)
        if self._model.num_outputs:
            self._outputs[rows, slots] = self._model.outputs()
        return logits, slots

    def outputs(self, row: int, slot: int) -> Float[np.ndarray, "F"]:
        """Return the outputs of the attached heads at the token in a slot of a row."""
        return self._outputs[row, slot]

    def contents(self) -> tuple[Float[torch.Tensor, "L X h D"], Float[torch.Tensor, "L X h D"], Float[np.ndarray, "X F"]]:
        """Return keys, values and head outputs of all rows without a copy. Slot s of row r is entry ``r * num_slots + s``."""
        outputs = self._outputs.reshape(self.num_rows * self.num_slots, self._model.num_outputs)
        return self._flat(self._keys), self._flat(self._values), outputs

    @torch.inference_mode()
    def tidy(self) -> Int[np.ndarray, "X"] | None:
        """Move rows together if too many blocks are half empty, and give back memory if little of it is in use.

        Returns:
            For each new row number the old one; None if nothing was moved.
        """
        used = np.flatnonzero(self._lanes)
        num_blocks = len(np.unique(used // _BLOCK))
        order = self._move_together(used) if num_blocks > 4 + 2 * (len(used) // _BLOCK) else None
        self._shrink()
        return order

    def _move_together(self, used: Int[np.ndarray, "X"]) -> Int[np.ndarray, "X"]:
        """Move rows to the front, sorted by lanes and length, and return their old numbers."""
        # The last key sorts first: by lanes, then by length.
        order = used[np.lexsort((self._fill[used], self._lanes[used]))]
        index, count = self._index(order), len(order)
        num_keys = int(self._fill[order].max())
        self._keys[:, :count, :num_keys] = self._keys[:, index, :num_keys]
        self._values[:, :count, :num_keys] = self._values[:, index, :num_keys]
        self._outputs[:count] = self._outputs[order]
        self._mask[:count], self._positions[:count] = self._mask[index], self._positions[index]
        self._fill[:count], self._lanes[:count], self._lanes[count:] = self._fill[order], self._lanes[order], 0
        return order

    def _shrink(self) -> None:
        used = np.flatnonzero(self._lanes)
        rows, slots = (int(used[-1]) + 1, int(self._fill[used].max()) + self.num_lanes) if len(used) else (0, 0)
        rows, slots = _rounded(rows, _BLOCK), _rounded(slots, _SLOT_STEP)
        if self.num_bytes > _KEPT_BYTES and _SHRINK_RATIO * rows * slots <= self.num_rows * self.num_slots:
            self._resize(rows, min(slots, self.num_slots))

    def _find_row(self, length: int, lanes: int) -> int:
        blocks = self._lanes.reshape(-1, _BLOCK)
        # Rows out of use keep their old fill, which must not make a block look long.
        longest = np.where(blocks > 0, self._fill.reshape(-1, _BLOCK), 0).max(1, initial=0)
        empty = ~blocks.any(1)
        similar = (longest <= length * _LENGTH_RATIO + _LENGTH_SLACK) & (length <= longest * _LENGTH_RATIO + _LENGTH_SLACK)
        fits = similar & (blocks.max(1, initial=0) == lanes) & (blocks == 0).any(1)
        # A block that fits comes before an empty one, and a new block comes last.
        for candidates in (fits, empty):
            if candidates.any():
                block = int(candidates.argmax())
                return block * _BLOCK + int((blocks[block] == 0).argmax())
        row = self.num_rows
        self._reserve(row + _BLOCK, self.num_slots)
        return row

    def _blocks(self, rows: np.ndarray, lanes: np.ndarray, positions: np.ndarray) -> tuple[list[_Block], np.ndarray]:
        """Return the blocks of a pass, and the row of each lane among the padded queries."""
        # Rows are ascending, so each block's lanes are one run of them, and it begins where the block number changes.
        begins = np.flatnonzero(np.diff(rows // _BLOCK, prepend=-1))
        num_lanes, num_keys = np.maximum.reduceat(lanes, begins) + 1, np.maximum.reduceat(self._fill[rows], begins)
        oldest = np.minimum.reduceat(positions, begins)
        blocks, query_row, offset = [], np.empty(len(rows), dtype=np.int64), 0
        for i, begin in enumerate(begins):
            part = slice(begin, begins[i + 1] if i + 1 < len(begins) else len(rows))
            first, last = int(rows[begin]), int(rows[part.stop - 1])
            size = (last + 1 - first) * int(num_lanes[i])
            query_row[part] = offset + (rows[part] - first) * num_lanes[i] + lanes[part]
            # A multiple of eight keeps the masked attention kernels of a GPU on their fast path.
            keys = min(self.num_slots, -(-int(num_keys[i]) // 8) * 8)
            blocks.append(_Block(first, last + 1, int(num_lanes[i]), keys, slice(offset, offset + size), int(oldest[i])))
            offset += size
        return blocks, query_row

    def _block_mask(self, block: _Block, query_positions: torch.Tensor, window: int | None) -> torch.Tensor:
        """Return what each query of a block sees of its keys, [rows, 1, lanes, keys]."""
        rows, used = slice(block.begin, block.end), block.keys(window)
        mask = self._mask[rows, None, : block.num_lanes, used]
        if window is None:
            return mask
        newest = query_positions[block.queries].view(block.end - block.begin, 1, block.num_lanes, 1)
        return mask.masked_fill(self._positions[rows, None, None, used] <= newest - window, torch.finfo(mask.dtype).min)

    def _attend_block(
        self,
        block: _Block,
        padded: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        kind: LayerAttention,
        used: slice,
    ) -> torch.Tensor:
        """Return the outputs of a block's queries; ``cache`` holds the layer's keys and values, ``used`` the slots that they may see."""
        query = padded[block.queries].view(block.end - block.begin, block.num_lanes, *padded.shape[1:])
        rows = slice(block.begin, block.end)
        keys, values = (each[rows, used].transpose(1, 2) for each in cache)
        output = attend_padded(query.transpose(1, 2), keys, values, mask, kind)
        return output.transpose(1, 2).flatten(0, 1)

    def _reserve(self, num_rows: int, num_slots: int) -> None:
        """Make at least so many rows with at least so many token slots. Both grow by half or more, so that copying stays rare."""
        rows = self.num_rows if num_rows <= self.num_rows else max(num_rows, self.num_rows * 3 // 2)
        slots = self.num_slots if num_slots <= self.num_slots else max(num_slots, self.num_slots * 3 // 2)
        if rows * slots > self._max_tokens:
            # Little memory is left: nothing beyond what is needed.
            rows, slots = max(num_rows, self.num_rows), max(num_slots, self.num_slots)
        rows, slots = _rounded(rows, _BLOCK), _rounded(slots, _SLOT_STEP)
        if (rows, slots) != (self.num_rows, self.num_slots):
            self._resize(rows, slots)

    def _resize(self, rows: int, slots: int) -> None:
        """Take another amount of memory; rows in use that are in both stay. Only they are copied: most of the memory was never touched."""
        keys, values = self._model.zeros(rows, slots), self._model.zeros(rows, slots)
        # Slots are hidden from every lane until ``_show`` opens them.
        mask = self._mask.new_full((rows, self.num_lanes, slots), torch.finfo(self._mask.dtype).min)
        positions = self._positions.new_zeros(rows, slots)
        outputs = np.zeros((rows, slots, self._model.num_outputs), dtype=np.float32)
        used = np.flatnonzero(self._lanes[:rows])
        # Neighbours in use are copied together.
        for run in np.split(used, np.flatnonzero(np.diff(used) > 1) + 1) if len(used) else ():
            kept, filled = slice(run[0], run[-1] + 1), slice(min(slots, self.num_slots, self._fill[run].max()))
            keys[:, kept, filled], values[:, kept, filled] = self._keys[:, kept, filled], self._values[:, kept, filled]
            mask[kept, :, filled] = self._mask[kept, :, filled]
            positions[kept, filled] = self._positions[kept, filled]
            outputs[kept, filled] = self._outputs[kept, filled]
        both = slice(min(rows, self.num_rows))
        self._fill, self._lanes = (np.pad(each[both], (0, rows - len(each[both]))) for each in (self._fill, self._lanes))
        self._keys, self._values, self._mask, self._positions, self._outputs = keys, values, mask, positions, outputs

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


def _rounded(count: int, step: int) -> int:
    """Return the next multiple of a step."""
    return -(-count // step) * step
