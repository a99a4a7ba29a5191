"""Which token sequence lies in which slots of a cache of keys and values.

A radix tree over token ids: a node holds a run of tokens and the slot of each, so every prefix that two sequences share is stored once.
No tensors here; ``prefix_cache.py`` owns the storage that the slots number.

Invariants: a slot belongs to one node or is free; siblings differ in their first token; a parent was used no earlier than its children.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Placement(NamedTuple):
    """Where a sequence lies."""

    slots: Int[np.ndarray, "T"]
    """Slot of every token."""
    num_known: int
    """Leading tokens that were there before; the slots of the others are new and their contents undefined."""


@dataclass(slots=True, eq=False)
class _Node:
    tokens: tuple[int, ...]
    slots: np.ndarray
    parent: "_Node | None"
    used: int
    children: "dict[int, _Node]" = field(default_factory=dict)


class SlotTree:
    """Places token sequences into slots, shares their prefixes, and forgets the least recently used ends when told to."""

    def __init__(self) -> None:
        self._root = self._new_root()
        self._free = np.empty(0, dtype=np.int64)
        self._num_free = 0
        self._clock = 0
        self.capacity = 0
        """Slots, free or not."""

    @staticmethod
    def _new_root() -> _Node:
        return _Node(tokens=(), slots=np.empty(0, dtype=np.int64), parent=None, used=0)

    @property
    def num_free(self) -> int:
        """Slots that hold nothing."""
        return self._num_free

    def clear(self) -> None:
        """Forget every sequence and every slot."""
        self._root = self._new_root()
        self._free, self._num_free, self._clock, self.capacity = np.empty(0, dtype=np.int64), 0, 0, 0

    def grow(self, capacity: int) -> None:
        """Add the slots from the present capacity up to ``capacity``."""
        # Lower slots are handed out first, so they stand at the end of the stack.
        added = np.arange(capacity - 1, self.capacity - 1, -1, dtype=np.int64)
        self._free = np.concatenate([added, self._free[: self._num_free]])
        self._num_free += capacity - self.capacity
        self.capacity = capacity

    def begin_use(self) -> None:
        """Start a period of use: whatever is placed from now on is kept by ``evict`` until the next call."""
        self._clock += 1

    def num_missing(self, tokens: Sequence[int]) -> int:
        """Return how many trailing tokens of a sequence are not placed; changes nothing that a caller can see."""
        return len(tokens) - self._descend(tuple(tokens))[1]

    def place(self, tokens: Sequence[int]) -> Placement:
        """Return the slots of a sequence, taking free slots for the part that is new.

        Needs ``num_missing(tokens)`` free slots.
        """
        tokens = tuple(tokens)
        node, num_known, runs = self._descend(tokens)
        num_new = len(tokens) - num_known
        if num_new:
            assert num_new <= self._num_free, "the caller makes room first"
            self._num_free -= num_new
            slots = self._free[self._num_free : self._num_free + num_new][::-1].copy()
            node.children[tokens[num_known]] = _Node(tokens=tokens[num_known:], slots=slots, parent=node, used=self._clock)
            runs.append(slots)
        return Placement(np.concatenate(runs) if runs else np.empty(0, dtype=np.int64), num_known)

    def evict(self, num_slots: int) -> None:
        """Free slots until ``num_slots`` are free or nothing but what is in use remains, least recently used ends first."""
        nodes = [node for node in self._nodes() if node.used < self._clock]
        # Children come after their parent in _nodes() and were used no later, so in this order they go first.
        for node in sorted(reversed(nodes), key=lambda node: node.used):
            if self._num_free >= num_slots:
                return
            if not node.children:
                self._drop(node)

    def _descend(self, tokens: tuple[int, ...]) -> tuple[_Node, int, list[np.ndarray]]:
        """Follow a sequence as far as it is known; a node that is known in part is split there."""
        node, done, runs = self._root, 0, []
        while done < len(tokens) and (child := node.children.get(tokens[done])) is not None:
            length = len(child.tokens)
            if tokens[done : done + length] != child.tokens:
                child = self._split(child, _shared(child.tokens, tokens[done : done + length]))
                length = len(child.tokens)
            child.used = self._clock
            runs.append(child.slots)
            node, done = child, done + length
        return node, done, runs

    def _split(self, node: _Node, length: int) -> _Node:
        """Cut a node after ``length`` tokens and return the upper part."""
        assert node.parent is not None
        upper = _Node(tokens=node.tokens[:length], slots=node.slots[:length], parent=node.parent, used=node.used)
        node.parent.children[upper.tokens[0]] = upper
        node.tokens, node.slots, node.parent = node.tokens[length:], node.slots[length:], upper
        upper.children[node.tokens[0]] = node
        return upper

    def _nodes(self) -> list[_Node]:
        nodes = list(self._root.children.values())
        for node in nodes:
            nodes.extend(node.children.values())
        return nodes

    def _drop(self, node: _Node) -> None:
        assert node.parent is not None
        del node.parent.children[node.tokens[0]]
        count = len(node.slots)
        if self._num_free + count > len(self._free):
            self._free = np.concatenate([self._free, np.empty(self.capacity - len(self._free), dtype=np.int64)])
        self._free[self._num_free : self._num_free + count] = node.slots[::-1]
        self._num_free += count


def _shared(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Return how many leading tokens two runs share."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
