"""The one way in which problems are set aside: by a seed and their names, whole, whatever their order."""

from collections.abc import Iterable, Sequence

from stepladder.types import derive_seed


def hold_out(groups: Iterable[Sequence[str]], *, count: int, seed: int, label: str = "held out") -> set[str]:
    """Choose ``count`` keys to set aside.

    Keys of one group stay together. Groups come in the order of their smallest hash; one that would overfill the side is passed over, so
    with groups of several keys fewer than ``count`` may be chosen.

    Args:
        groups: Keys that belong together, such as the ids of problems that ask the same question; each key in one group.
        count: How many keys to choose, >= 0.
        seed: Another seed is another choice.
        label: What the choice is for: choices under different labels do not depend on each other.

    Returns:
        The chosen keys. They depend on the arguments as sets: the order of the groups does not matter.
    """
    ranked = sorted(groups, key=lambda group: min((derive_seed(seed, label, key), key) for key in group))
    chosen: set[str] = set()
    for group in ranked:
        if len(chosen) + len(group) <= count:
            chosen.update(group)
    return chosen


def share_of(count: int, share: float) -> int:
    """Return how many of ``count`` keys a share is, with at least one on either side.

    Args:
        count: How many there are, >= 2.
        share: In (0, 1).
    """
    return min(max(1, round(share * count)), count - 1)
