"""The slots of a key/value cache that each token sequence occupies.

A radix tree over token ids: a node holds a run of tokens and the slot of each, so every prefix that two sequences share is stored once.
No tensors here; ``prefix_cache.py`` owns the storage that the slots number.

Invariants: a slot belongs to one node or is free; siblings differ in their first token; a parent was used no earlier than its children.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


@dataclass(slots=True, eq=False)
class SlotNode:
    """A run of tokens. To callers it stands for the sequence from the root to the end of the run."""

    tokens: tuple[int, ...]
    """The run; empty for the root only."""
    slots: np.ndarray
    """Slot of each token of the run."""
    parent: "SlotNode | None"
    """None for the root, and for a node that was evicted."""
    used: int
    """Period of use in which the node was last placed or passed."""
    children: "dict[int, SlotNode]" = field(default_factory=dict)
    """By first token."""


class Placement(NamedTuple):
    """Where a sequence lies."""

    slots: Int[np.ndarray, "T"]
    """Slot of every token."""
    num_known: int
    """Leading tokens that were placed before. The slots of the others are new, and their contents are undefined."""
    node: SlotNode
    """Where the sequence ends."""


class SlotTree:
    """Places token sequences into slots, shares their prefixes, and forgets the least recently used ends on request."""

    def __init__(self) -> None:
        self._root = self._new_root()
        self._free = np.empty(0, dtype=np.int64)
        self._num_free = 0
        self._clock = 0
        self.capacity = 0
        """Slots, free or not."""

    @staticmethod
    def _new_root() -> SlotNode:
        return SlotNode(tokens=(), slots=np.empty(0, dtype=np.int64), parent=None, used=0)

    @property
    def num_free(self) -> int:
        """Slots that hold nothing."""
        return self._num_free

    def clear(self) -> None:
        """Forget every sequence and every slot."""
        for node in self._nodes():
            node.parent = None
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
        """Start a period of use: ``evict`` keeps everything that is placed from now on, until the next call."""
        self._clock += 1

    def holds(self, node: SlotNode) -> bool:
        """Say whether the sequence that ends at a node is still placed."""
        return node.parent is not None or node is self._root

    def num_missing(self, tokens: tuple[int, ...]) -> int:
        """Return how many trailing tokens of a sequence are not placed. It changes nothing that a caller can see."""
        return len(tokens) - self._descend(tokens, self._root).num_known

    def place(self, tokens: tuple[int, ...], after: SlotNode | None = None) -> Placement:
        """Place a sequence, with free slots for its new part. There must be a free slot for each new token.

        Args:
            tokens: The sequence, or with ``after`` only the tokens that follow it.
            after: A node that is held, which ``tokens`` continue.
        """
        if after is not None:
            self._touch(after)
        known = self._descend(tokens, self._root if after is None else after)
        num_new = len(tokens) - known.num_known
        if not num_new:
            return known
        assert num_new <= self._num_free, "the caller makes room first"
        self._num_free -= num_new
        slots = self._free[self._num_free : self._num_free + num_new][::-1].copy()
        node = SlotNode(tokens=tokens[known.num_known :], slots=slots, parent=known.node, used=self._clock)
        known.node.children[node.tokens[0]] = node
        return Placement(np.concatenate([known.slots, slots]), known.num_known, node)

    def evict(self, num_slots: int, *, keep: SlotNode | None = None) -> None:
        """Free slots, least recently used ends first, until ``num_slots`` are free or only ``keep`` and sequences in use remain."""
        if keep is not None:
            self._touch(keep)
        nodes = [node for node in self._nodes() if node.used < self._clock]
        # Children come after their parent in _nodes() and were used no later, so in this order they go first.
        for node in sorted(reversed(nodes), key=lambda node: node.used):
            if self._num_free >= num_slots:
                return
            if not node.children:
                self._drop(node)

    def _descend(self, tokens: tuple[int, ...], node: SlotNode) -> Placement:
        """Follow a sequence from a node as far as it is known. A node that matches only in part is split there."""
        done, runs = 0, []
        while done < len(tokens) and (child := node.children.get(tokens[done])) is not None:
            length = len(child.tokens)
            if tokens[done : done + length] != child.tokens:
                child = self._split(child, num_shared(child.tokens, tokens[done : done + length]))
                length = len(child.tokens)
            child.used = self._clock
            runs.append(child.slots)
            node, done = child, done + length
        return Placement(np.concatenate(runs) if runs else np.empty(0, dtype=np.int64), done, node)

    def _touch(self, node: SlotNode) -> None:
        """Mark a node and its ancestors as used now."""
        above: SlotNode | None = node
        while above is not None and above.used < self._clock:
            above.used = self._clock
            above = above.parent

    def _split(self, node: SlotNode, length: int) -> SlotNode:
        """Cut a node after ``length`` tokens and return the upper part."""
        assert node.parent is not None
        upper = SlotNode(tokens=node.tokens[:length], slots=node.slots[:length], parent=node.parent, used=node.used)
        node.parent.children[upper.tokens[0]] = upper
        node.tokens, node.slots, node.parent = node.tokens[length:], node.slots[length:], upper
        upper.children[node.tokens[0]] = node
        return upper

    def _nodes(self) -> list[SlotNode]:
        nodes = list(self._root.children.values())
        for node in nodes:
            nodes.extend(node.children.values())
        return nodes

    def _drop(self, node: SlotNode) -> None:
        assert node.parent is not None
        del node.parent.children[node.tokens[0]]
        node.parent = None
        count = len(node.slots)
        if self._num_free + count > len(self._free):
            self._free = np.concatenate([self._free, np.empty(self.capacity - len(self._free), dtype=np.int64)])
        self._free[self._num_free : self._num_free + count] = node.slots[::-1]
        self._num_free += count


def num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with in common."""
    for i, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return i
    return min(len(first), len(second))
