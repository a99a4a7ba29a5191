"""The children of nodes that may be sampled again: new samples join those that exist."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from stepladder.mcts.expansion import Expansion
from stepladder.mcts.settings.growth import Widening
from stepladder.types import Step, StopReason

SiblingKey = tuple[tuple[int, ...] | str, StopReason]
"""(tokens or text, stop reason): two samples after a node with equal keys are the same child."""


@dataclass(slots=True)
class _Family:
    """The samples after one node so far."""

    children: dict[SiblingKey, int] = field(default_factory=dict)
    """Index of each child, without failed ones."""
    counts: dict[int, int] = field(default_factory=dict)
    """Samples of each child, by index, in the order of the indices."""
    drawn: dict[tuple[int, ...], Step] = field(default_factory=dict)
    """Every different step that was sampled, by its tokens: more than the children if those of equal text are merged."""
    num_drawn: int = 0
    """Samples, repeated and failed ones included."""
    unseen: float = 1.0
    """Probability of everything that was not sampled yet."""
    keys: Sequence[SiblingKey] = ()
    """Keys of the new children of the expansion in flight."""


class Families:
    """The families of one search, by the index of their parent."""

    def __init__(self, widening: Widening) -> None:
        """Begin without samples."""
        self.again_samples = widening.again_samples
        self._least_unseen = float(widening.least_unseen)
        self._families: dict[int, _Family] = {}
        self._none = _Family()

    def num_drawn(self, leaf: int) -> int:
        """Return the number of samples after a node."""
        return self._families.get(leaf, self._none).num_drawn

    def drawn_after(self, leaf: int) -> Sequence[Step]:
        """Return the different steps that were sampled after a node, in their order."""
        return list(self._families.get(leaf, self._none).drawn.values())

    def counts_of(self, leaf: int) -> dict[int, int]:
        """Return the children of a node with their numbers of samples, in the order of their indices."""
        return self._families.get(leaf, self._none).counts

    def join(self, expansion: Expansion, keys: Sequence[SiblingKey], samples: Sequence[Step]) -> None:
        """Take the samples of an expansion: those of children that exist become its repeats, and only the others remain its new nodes.

        A failed sample is a node of its own every time.

        Args:
            expansion: The expansion, with its merged samples.
            keys: The key of each.
            samples: All samples.

        """
        family = self._families.setdefault(expansion.leaf, _Family())
        expansion.num_known = len(family.counts)
        family.num_drawn += len(samples)
        for step in samples:
            if step.token_ids and step.token_ids not in family.drawn:
                family.drawn[step.token_ids] = step
                family.unseen -= step.probability
        # Samples that failed say nothing about the others, but nobody should wait for a backend that only fails.
        expansion.unseen = max(family.unseen, 0.0)
        expansion.reopens = family.unseen >= self._least_unseen and any(step.token_ids for step in samples)
        is_new = [key not in family.children for key in keys]
        expansion.repeats = [
            (family.children[key], count) for key, count, new in zip(keys, expansion.counts, is_new, strict=True) if not new
        ]
        expansion.steps = [step for step, new in zip(expansion.steps, is_new, strict=True) if new]
        expansion.counts = [count for count, new in zip(expansion.counts, is_new, strict=True) if new]
        family.keys = [key for key, new in zip(keys, is_new, strict=True) if new]

    def enter(self, expansion: Expansion) -> None:
        """Note the indices of the new children of an expansion, which are numbered now."""
        family = self._families[expansion.leaf]
        for index, (key, step, count) in enumerate(zip(family.keys, expansion.steps, expansion.counts, strict=True), expansion.first):
            family.counts[index] = count
            if step.token_ids:
                family.children[key] = index
        for index, count in expansion.repeats:
            family.counts[index] += count
        family.keys = ()
