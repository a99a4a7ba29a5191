"""A cache of the keys and values of token sequences that share prefixes.

The storage is one pool of token slots; a radix tree (``slots.py``) says where each sequence lies. ``extend`` forwards exactly the tokens
that are not in the pool, for many sequences in one pass. Everything in the pool can be recomputed, so a full pool drops the sequence ends
that were least recently used. The cache changes results by rounding only.

Axes: T tokens of a path, F outputs of a token, B groups of a pass, Q new tokens of a group, S keys of a group, N new tokens of a pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from stepladder.lm.flat import FlatModel, attend_padded
from stepladder.lm.slots import Placement, SlotNode, SlotTree

_FIRST_CAPACITY = 1024
_GROWTH = 4
_CPU_BYTES = 512 << 20
_GPU_SHARE = 0.15
_SHARED = -1
"""Branch number of the tokens that all branches of a group see."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PathGroup:
    """Sequences that continue one prefix: the branches of a request."""

    prefix_ids: tuple[int, ...]
    """The shared prefix; it may be empty if there is only one branch."""
    branches: tuple[tuple[int, ...], ...] = ((),)
    """The tokens after it in each branch; may be empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedSequence:
    """Tokens whose keys and values lie outside the cache."""

    after: SlotNode
    """Node at which the sequence before them ends, as ``extend`` returned it."""
    token_ids: tuple[int, ...]
    """The tokens."""
    sources: Int[np.ndarray, "T"]
    """Index of each token along axis 1 of the keys and values."""


@dataclass(kw_only=True, slots=True)
class _Work:
    """One group's part of a pass: columns are its keys, rows are its new tokens."""

    key_slots: np.ndarray
    key_positions: np.ndarray
    key_branches: np.ndarray
    token_ids: np.ndarray
    positions: np.ndarray
    branches: np.ndarray
    slots: np.ndarray

    def pieces(self, size: int) -> "Iterator[_Work]":
        """Cut the rows into pieces of at most ``size``, in order. All keys stay, because positions hide later tokens."""
        for begin in range(0, len(self.slots), size):
            part = slice(begin, begin + size)
            yield _Work(
                key_slots=self.key_slots,
                key_positions=self.key_positions,
                key_branches=self.key_branches,
                token_ids=self.token_ids[part],
                positions=self.positions[part],
                branches=self.branches[part],
                slots=self.slots[part],
            )


class PrefixCache:
    """Keys, values and, on request, some model outputs per token of all recently used sequences."""

    def __init__(self, model: FlatModel, *, max_tokens: int | None = None, pass_tokens: int = 4096, num_outputs: int = 0) -> None:
        """Start with an empty pool, which grows as it is used.

        Args:
            model: The model.
            max_tokens: Maximum number of slots; None takes 512 MB on a CPU and 15% of a GPU's memory. A call that needs more slots
                gets them, so the sequences of one call always fit.
            pass_tokens: New tokens forwarded in one pass, and the longest piece of one sequence.
            num_outputs: How many outputs of the model's head to keep for every token, readable with ``outputs``.
        """
        self._model = model
        self._tree = SlotTree()
        self._max_tokens = _default_max_tokens(model) if max_tokens is None else max_tokens
        self._pass_tokens = pass_tokens
        self._num_outputs = num_outputs
        self.clear()

    def clear(self) -> None:
        """Forget everything and free the memory."""
        self._tree.clear()
        self._keys, self._values = self._model.zeros(0), self._model.zeros(0)
        self._outputs = np.zeros((0, self._num_outputs), dtype=np.float32)

    @property
    def num_tokens(self) -> int:
        """Number of cached tokens."""
        return self._tree.capacity - self._tree.num_free

    @torch.inference_mode()
    def extend(self, groups: Sequence[PathGroup]) -> list[list[Placement]]:
        """Forward every token that is not cached, and return the place of each group's branches, prefix included.

        The slots are valid until the next call of ``extend`` or ``store``. The nodes may be passed to ``store`` at any time.
        """
        self._tree.begin_use()
        placed, work = [], []
        for group in groups:
            placements, todo = self._place(group)
            placed.append(placements)
            if len(todo.slots):
                work.extend(todo.pieces(self._pass_tokens))
        for batch in self._batches(work):
            self._forward(batch)
        return placed

    @torch.inference_mode()
    def load(self, slots: Int[np.ndarray, "T"]) -> tuple[Float[torch.Tensor, "L T h D"], Float[torch.Tensor, "L T h D"]]:
        """Return copies of the keys and values in some slots."""
        index = torch.from_numpy(slots).to(self._model.device)
        return self._keys.index_select(1, index), self._values.index_select(1, index)

    def outputs(self, slots: Int[np.ndarray, "T"]) -> Float[np.ndarray, "T F"]:
        """Return the first ``num_outputs`` outputs of the model at the tokens in some slots."""
        return self._outputs[slots]

    @torch.inference_mode()
    def store(self, sequences: Sequence[CachedSequence], keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store keys and values that were computed elsewhere. A sequence is left out if its beginning was dropped in the meantime.

        Args:
            sequences: The sequences to store.
            keys: Keys, [L, X, h, D].
            values: Values, [L, X, h, D].
        """
        self._tree.begin_use()
        sources, targets = [], []
        for sequence in sequences:
            if not self._tree.holds(sequence.after):
                continue
            self._make_room(sequence.token_ids, sequence.after)
            placement = self._tree.place(sequence.token_ids, sequence.after)
            sources.append(sequence.sources[placement.num_known :])
            targets.append(placement.slots[placement.num_known :])
        if not sources:
            return
        source = torch.from_numpy(np.concatenate(sources)).to(self._model.device)
        target = torch.from_numpy(np.concatenate(targets)).to(self._model.device)
        self._keys.index_copy_(1, target, keys.index_select(1, source))
        self._values.index_copy_(1, target, values.index_select(1, source))

    def _place(self, group: PathGroup) -> tuple[list[Placement], _Work]:
        """Place a group's branches, and list the tokens to forward, each once, prefixes first."""
        shared, rows = len(group.prefix_ids), []
        placements, columns = [], []
        for number, branch in enumerate(group.branches):
            path = group.prefix_ids + branch
            self._make_room(path)
            slots, num_known, _ = placement = self._tree.place(path)
            placements.append(placement)
            positions = np.arange(len(path))
            owners = np.where(positions < shared, _SHARED, number)
            rows.append((np.asarray(path, dtype=np.int64)[num_known:], positions[num_known:], owners[num_known:], slots[num_known:]))
            begin = 0 if number == 0 else shared
            columns.append((slots[begin:], positions[begin:], owners[begin:]))
        token_ids, row_positions, row_owners, row_slots = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        key_slots, key_positions, key_owners = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        work = _Work(
            key_slots=key_slots,
            key_positions=key_positions,
            key_branches=key_owners,
            token_ids=token_ids,
            positions=row_positions,
            branches=row_owners,
            slots=row_slots,
        )
        return placements, work

    def _make_room(self, path: tuple[int, ...], after: SlotNode | None = None) -> None:
        """Make room for a path: grow up to the limit, then evict, then grow for what is in use."""
        if self._tree.num_free >= len(path):
            return
        missing = len(path) if after is not None else self._tree.num_missing(path)
        while self._tree.num_free < missing and self._tree.capacity < self._max_tokens:
            self._grow(min(self._max_tokens, max(_FIRST_CAPACITY, _GROWTH * self._tree.capacity)))
        if self._tree.num_free < missing:
            # Evicting a quarter at once keeps the walk over all nodes rare.
            self._tree.evict(max(missing, self._tree.capacity // 4), keep=after)
        if self._tree.num_free < missing:
            self._grow(self._tree.capacity + max(missing, self._tree.capacity // 2))

    def _grow(self, capacity: int) -> None:
        old, added = self._tree.capacity, capacity - self._tree.capacity
        self._tree.grow(capacity)
        keys, values = self._model.zeros(capacity), self._model.zeros(capacity)
        keys[:, :old], values[:, :old] = self._keys, self._values
        self._keys, self._values = keys, values
        self._outputs = np.concatenate([self._outputs, np.zeros((added, self._num_outputs), dtype=np.float32)])

    def _batches(self, work: Sequence[_Work]) -> Iterator[list[_Work]]:
        """Cut the work into passes, in order: a prefix is forwarded before the tokens that need it, or in the same pass."""
        batch: list[_Work] = []
        num_tokens = rows = columns = 0
        for piece in work:
            num_tokens += len(piece.slots)
            rows, columns = max(rows, len(piece.slots)), max(columns, len(piece.key_slots))
            # The padded mask must not outgrow the work: at most about 1,000 keys for each new token of a pass.
            if batch and (num_tokens > self._pass_tokens or (len(batch) + 1) * rows * columns > 1024 * self._pass_tokens):
                yield batch
                batch, num_tokens, rows, columns = [], len(piece.slots), len(piece.slots), len(piece.key_slots)
            batch.append(piece)
        if batch:
            yield batch

    def _forward(self, batch: Sequence[_Work]) -> None:
        model, device = self._model, self._model.device
        slots = np.concatenate([work.slots for work in batch])
        target = torch.from_numpy(slots).to(device)
        lengths = np.array([len(work.slots) for work in batch])
        num_queries = int(lengths.max())
        row = np.concatenate([b * num_queries + np.arange(length) for b, length in enumerate(lengths)])
        query_row = torch.from_numpy(row).to(device)
        key_slots, mask = (part.to(device) for part in _padded(batch, num_queries))
        bias = torch.zeros(mask.shape, dtype=model.dtype, device=device).masked_fill_(~mask, torch.finfo(model.dtype).min)[:, None]

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
            keys, values = self._keys[layer], self._values[layer]
            keys.index_copy_(0, target, k[0].transpose(0, 1))
            values.index_copy_(0, target, v[0].transpose(0, 1))
            heads, dim = q.shape[1], q.shape[3]
            padded = q.new_zeros(len(batch) * num_queries, heads, dim).index_copy_(0, query_row, q[0].transpose(0, 1))
            output = attend_padded(
                padded.view(len(batch), num_queries, heads, dim).transpose(1, 2),
                keys[key_slots].transpose(1, 2),
                values[key_slots].transpose(1, 2),
                bias,
                scale,
            )
            return output.transpose(1, 2).reshape(-1, heads, dim).index_select(0, query_row)

        token_ids = torch.from_numpy(np.concatenate([work.token_ids for work in batch])).to(device)
        positions = torch.from_numpy(np.concatenate([work.positions for work in batch])).to(device)
        options = {} if self._num_outputs else {"logits_to_keep": 1}
        logits = model.forward(token_ids, positions, attend, **options)
        if self._num_outputs:
            self._outputs[slots] = logits[:, : self._num_outputs].float().cpu().numpy()


def _default_max_tokens(model: FlatModel) -> int:
    on_gpu = model.device.type == "cuda"
    num_bytes = int(_GPU_SHARE * torch.cuda.get_device_properties(model.device).total_memory) if on_gpu else _CPU_BYTES
    return max(_FIRST_CAPACITY, num_bytes // model.bytes_per_token)


def _padded(batch: Sequence[_Work], num_queries: int) -> tuple[Int[torch.Tensor, "B S"], torch.Tensor]:
    """Return the key slots of a pass and which of them each query sees, [B, Q, S]; a token sees its ancestors and itself."""
    # A multiple of eight keeps the masked attention kernels of a GPU on their fast path.
    num_keys = -(-max(len(work.key_slots) for work in batch) // 8) * 8
    key_slots = np.zeros((len(batch), num_keys), dtype=np.int64)
    key_positions = np.full((len(batch), num_keys), np.iinfo(np.int64).max)
    key_branches = np.full((len(batch), num_keys), _SHARED)
    positions = np.full((len(batch), num_queries), -1)
    branches = np.full((len(batch), num_queries), _SHARED)
    for b, work in enumerate(batch):
        keys, rows = len(work.key_slots), len(work.slots)
        key_slots[b, :keys], key_positions[b, :keys], key_branches[b, :keys] = work.key_slots, work.key_positions, work.key_branches
        positions[b, :rows], branches[b, :rows] = work.positions, work.branches
    earlier = key_positions[:, None, :] <= positions[:, :, None]
    ancestral = (key_branches[:, None, :] == _SHARED) | (key_branches[:, None, :] == branches[:, :, None])
    return torch.from_numpy(key_slots), torch.from_numpy(earlier & ancestral)
