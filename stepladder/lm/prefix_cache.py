"""A cache of the keys and values of token sequences that share prefixes.

The storage is one pool of token slots; a radix tree (``slots.py``) says where each sequence lies. ``extend`` forwards exactly the tokens
that are not in the pool, for many sequences in one pass. Everything in the pool can be recomputed, so a full pool drops the sequence ends
that were least recently used. The cache changes results by rounding only.

A pass is one flat row of new tokens. Its attention runs bucket by bucket: sequences of similar length are padded to one shape, so K
branches of L tokens cost K x L queries, each over the keys of its own branch.

Axes: T tokens of a path, F outputs of a token, B paths of a bucket, Q new tokens of a path, S keys of a path, N new tokens of a pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from stepladder.lm.flat import FlatModel, LayerAttention, attend_padded
from stepladder.lm.slots import Placement, SlotNode, SlotTree

_FIRST_CAPACITY = 1024
_GROWTH = 4
_CPU_BYTES = 512 << 20
_GPU_SHARE = 0.15
_LENGTH_RATIO, _LENGTH_SLACK = 1.5, 16
"""Two lengths share a bucket when neither exceeds the other by more than this ratio plus this many tokens."""
_KEYS_PER_TOKEN = 1024
"""A bucket's padded mask has at most this many keys for each token that a pass may have."""


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
    """The new tokens of one path, or a piece of them: the last ``len(slots)`` tokens of the path's first ``len(key_slots)``."""

    key_slots: np.ndarray
    """The slots of all tokens of the path up to the last new one; a token's index is its position."""
    token_ids: np.ndarray
    slots: np.ndarray

    @property
    def first(self) -> int:
        """The position of the first new token."""
        return len(self.key_slots) - len(self.slots)

    def pieces(self, size: int) -> "Iterator[_Work]":
        """Cut the new tokens into pieces of at most ``size``, in order."""
        for begin in range(0, len(self.slots), size):
            end = min(begin + size, len(self.slots))
            yield _Work(key_slots=self.key_slots[: self.first + end], token_ids=self.token_ids[begin:end], slots=self.slots[begin:end])


class _Bucket:
    """Paths of one pass whose attention is computed together, padded to the longest."""

    def __init__(self, work: Sequence[_Work], begins: Sequence[int], device: torch.device) -> None:
        """Pad some paths.

        Args:
            work: The paths.
            begins: Index of each path's first new token among the tokens of the pass.
            device: Where attention runs.
        """
        # A multiple of eight keeps the masked attention kernels of a GPU on their fast path.
        num_keys = -(-max(len(each.key_slots) for each in work) // 8) * 8
        self.num_queries = max(len(each.slots) for each in work)
        key_slots = np.zeros((len(work), num_keys), dtype=np.int64)
        positions = np.full((len(work), self.num_queries), -1)
        for row, each in enumerate(work):
            key_slots[row, : len(each.key_slots)] = each.key_slots
            positions[row, : len(each.slots)] = each.first + np.arange(len(each.slots))
        as_tensor = lambda array: torch.from_numpy(array).to(device)  # noqa: E731
        self.key_slots: Int[torch.Tensor, "B S"] = as_tensor(key_slots)
        self.positions: Int[torch.Tensor, "B Q"] = as_tensor(positions)
        counts = [len(each.slots) for each in work]
        self.tokens = as_tensor(np.concatenate([begin + np.arange(count) for begin, count in zip(begins, counts, strict=True)]))
        """Index of each of its tokens among those of the pass."""
        self.padded = as_tensor(np.concatenate([row * self.num_queries + np.arange(count) for row, count in enumerate(counts)]))
        """Index of the same tokens among the padded queries."""

    def mask(self, window: int | None, dtype: torch.dtype) -> Float[torch.Tensor, "B 1 Q S"]:
        """Return 0 where a token sees another and the type's minimum elsewhere: its path up to itself, or the end of it."""
        keys = torch.arange(self.key_slots.shape[1], device=self.key_slots.device)
        seen = keys <= self.positions[:, :, None]
        if window is not None:
            seen &= keys > self.positions[:, :, None] - window
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

    def attend(
        self,
        query: Float[torch.Tensor, "N H D"],
        keys: Float[torch.Tensor, "X h D"],
        values: Float[torch.Tensor, "X h D"],
        mask: Float[torch.Tensor, "B 1 Q S"],
        kind: LayerAttention,
    ) -> Float[torch.Tensor, "_ H D"]:
        """Return the outputs of the bucket's tokens, given the queries of the pass and the keys and values of the pool."""
        batch, (heads, dim) = len(self.key_slots), query.shape[1:]
        padded = query.new_zeros(batch * self.num_queries, heads, dim).index_copy_(0, self.padded, query.index_select(0, self.tokens))
        output = attend_padded(
            padded.view(batch, self.num_queries, heads, dim).transpose(1, 2),
            keys[self.key_slots].transpose(1, 2),
            values[self.key_slots].transpose(1, 2),
            mask,
            kind,
        )
        return output.transpose(1, 2).reshape(-1, heads, dim).index_select(0, self.padded)


class StepOutputs:
    """Outputs of the steps that were sampled last. The oldest are dropped when there are too many."""

    def __init__(self, max_tokens: int = 1 << 22) -> None:
        """Keep paths of at most ``max_tokens`` tokens in all."""
        self._max_tokens, self._num_tokens = max_tokens, 0
        self._by_path: dict[tuple[int, ...], np.ndarray] = {}

    def put(self, path: tuple[int, ...], outputs: Float[np.ndarray, "F"]) -> None:
        """Keep the outputs of the step with which a path ends."""
        self._num_tokens += 0 if path in self._by_path else len(path)
        self._by_path[path] = outputs
        if self._num_tokens > self._max_tokens:
            # Dropping half at once keeps this rare.
            paths = [*self._by_path]
            self._by_path = {kept: self._by_path[kept] for kept in paths[len(paths) // 2 :]}
            self._num_tokens = sum(map(len, self._by_path))

    def get(self, path: tuple[int, ...]) -> Float[np.ndarray, "F"] | None:
        """Return the outputs of a step; None if they are not here."""
        return self._by_path.get(path)

    def clear(self) -> None:
        """Forget everything."""
        self._by_path.clear()
        self._num_tokens = 0


class AttachedHead(NamedTuple):
    """Outputs at every token of a cache: those of a head on its model."""

    model: FlatModel
    """The model."""
    cache: "PrefixCache"
    """The cache, which others may share."""
    columns: slice
    """The head's columns of ``PrefixCache.outputs``."""
    sampled: StepOutputs
    """Outputs of steps that a policy on the same cache has sampled, at the tokens where the head reads."""


class PrefixCache:
    """Keys, values and, on request, some model outputs per token of all recently used sequences."""

    def __init__(self, model: FlatModel, *, max_tokens: int | None = None, pass_tokens: int = 4096, num_outputs: int = 0) -> None:
        """Start with an empty pool, which grows as it is used.

        Args:
            model: The model.
            max_tokens: Maximum number of slots; None takes 512 MB on a CPU and 15% of a GPU's memory. A call that needs more slots
                gets them, so the sequences of one call always fit.
            pass_tokens: New tokens forwarded in one pass, and the longest piece of one sequence.
            num_outputs: How many logits of the model to keep for every token, readable with ``outputs``; or attach heads.
        """
        self._model = model
        self._tree = SlotTree()
        self._max_tokens = _default_max_tokens(model) if max_tokens is None else max_tokens
        self._pass_tokens = pass_tokens
        self._num_outputs, self._logits_read = num_outputs, num_outputs > 0
        self.clear()

    def attach(self, head: torch.nn.Module, num_outputs: int) -> "AttachedHead":
        """Keep the outputs of one more head of the model for every token. Forgets everything.

        Args:
            head: As for ``FlatModel.attach``.
            num_outputs: Outputs per token, >= 1.
        """
        assert not self._logits_read, "a model whose logits are scores has no other head"
        columns = self._model.attach(head, num_outputs)
        self._num_outputs = self._model.num_outputs
        self.clear()
        return AttachedHead(self._model, self, columns, StepOutputs())

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
            for path in todo:
                work.extend(path.pieces(self._pass_tokens))
        for batch in self._batches(work):
            self._forward(batch)
        return placed

    @torch.inference_mode()
    def load(self, slots: Int[np.ndarray, "T"]) -> tuple[Float[torch.Tensor, "L T h D"], Float[torch.Tensor, "L T h D"]]:
        """Return copies of the keys and values in some slots."""
        index = torch.from_numpy(slots).to(self._model.device)
        return self._keys.index_select(1, index), self._values.index_select(1, index)

    def outputs(self, slots: Int[np.ndarray, "T"]) -> Float[np.ndarray, "T F"]:
        """Return the first ``num_outputs`` logits of the model, or the outputs of the attached heads, at the tokens in some slots."""
        return self._outputs[slots]

    @torch.inference_mode()
    def store(
        self,
        sequences: Sequence[CachedSequence],
        keys: Float[torch.Tensor, "L X h D"],
        values: Float[torch.Tensor, "L X h D"],
        outputs: Float[np.ndarray, "X F"],
    ) -> None:
        """Store what was computed elsewhere. A sequence is left out if its beginning was dropped in the meantime.

        Args:
            sequences: The sequences to store.
            keys: Keys.
            values: Values.
            outputs: Outputs of the attached heads; F is 0 without any.
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
        found, places = np.concatenate(sources), np.concatenate(targets)
        self._outputs[places] = outputs[found]
        source, target = torch.from_numpy(found).to(self._model.device), torch.from_numpy(places).to(self._model.device)
        self._keys.index_copy_(1, target, keys.index_select(1, source))
        self._values.index_copy_(1, target, values.index_select(1, source))

    def _place(self, group: PathGroup) -> tuple[list[Placement], list[_Work]]:
        """Place a group's branches, and list the tokens to forward, each once: those of the prefix belong to the first branch."""
        placements, work = [], []
        for branch in group.branches:
            path = group.prefix_ids + branch
            self._make_room(path)
            slots, num_known, _ = placement = self._tree.place(path)
            placements.append(placement)
            if num_known < len(path):
                work.append(_Work(key_slots=slots, token_ids=np.asarray(path[num_known:], dtype=np.int64), slots=slots[num_known:]))
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
        num_tokens = 0
        for piece in work:
            if batch and num_tokens + len(piece.slots) > self._pass_tokens:
                yield batch
                batch, num_tokens = [], 0
            batch.append(piece)
            num_tokens += len(piece.slots)
        if batch:
            yield batch

    def _buckets(self, batch: Sequence[_Work]) -> list[_Bucket]:
        """Group the paths of a pass by length, so that little is padded and no mask outgrows the work."""
        begins = np.cumsum([0, *(len(work.slots) for work in batch)])
        order = sorted(range(len(batch)), key=lambda index: (len(batch[index].slots), len(batch[index].key_slots)))
        groups: list[list[int]] = []
        fewest = most = 0
        for index in order:
            queries, keys = len(batch[index].slots), len(batch[index].key_slots)
            small = min(fewest, keys) * _LENGTH_RATIO + _LENGTH_SLACK
            similar = groups and queries <= len(batch[groups[-1][0]].slots) * _LENGTH_RATIO + _LENGTH_SLACK and max(most, keys) <= small
            if not similar or (len(groups[-1]) + 1) * queries * max(most, keys) > _KEYS_PER_TOKEN * self._pass_tokens:
                groups.append([])
                fewest = most = keys
            groups[-1].append(index)
            fewest, most = min(fewest, keys), max(most, keys)
        device = self._model.device
        return [_Bucket([batch[index] for index in group], [int(begins[index]) for index in group], device) for group in groups]

    def _forward(self, batch: Sequence[_Work]) -> None:
        model, device = self._model, self._model.device
        slots = np.concatenate([work.slots for work in batch])
        positions = np.concatenate([work.first + np.arange(len(work.slots)) for work in batch])
        target, buckets = torch.from_numpy(slots).to(device), self._buckets(batch)
        longest = int(positions.max()) + 1
        masks: dict[int | None, list[torch.Tensor]] = {}

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kind: LayerAttention) -> torch.Tensor:
            keys, values = self._keys[layer], self._values[layer]
            keys.index_copy_(0, target, k[0].transpose(0, 1))
            values.index_copy_(0, target, v[0].transpose(0, 1))
            window = kind.window_within(longest)
            if window not in masks:
                masks[window] = [bucket.mask(window, model.dtype) for bucket in buckets]
            query = q[0].transpose(0, 1)
            output = torch.empty_like(query)
            for bucket, mask in zip(buckets, masks[window], strict=True):
                output.index_copy_(0, bucket.tokens, bucket.attend(query, keys, values, mask, kind))
            return output

        token_ids = torch.from_numpy(np.concatenate([work.token_ids for work in batch])).to(device)
        options = {} if self._logits_read else {"logits_to_keep": 1}
        logits = model.forward(token_ids, torch.from_numpy(positions).to(device), attend, **options)
        if self._logits_read:
            self._outputs[slots] = logits[:, : self._num_outputs].float().cpu().numpy()
        elif self._num_outputs:
            self._outputs[slots] = model.outputs()


def _default_max_tokens(model: FlatModel) -> int:
    on_gpu = model.device.type == "cuda"
    num_bytes = int(_GPU_SHARE * torch.cuda.get_device_properties(model.device).total_memory) if on_gpu else _CPU_BYTES
    return max(_FIRST_CAPACITY, num_bytes // model.bytes_per_token)
