"""What is set aside: as many as asked for, whole groups, by seed and name alone."""

import random

import pytest

from stepladder.hold_out import hold_out, share_of
from stepladder.types import derive_seed

KEYS = [f"p{number}" for number in range(40)]
GROUPS = [KEYS[:3], KEYS[3:5], *([key] for key in KEYS[5:])]


@pytest.mark.parametrize("label", ["held out", "split"])
@pytest.mark.parametrize("seed", range(5))
def test_single_keys_are_the_first_by_hash(seed: int, label: str) -> None:
    """Without groups the chosen ones are those with the smallest hashes, whatever the order in which they come."""
    expected = set(sorted(KEYS, key=lambda key: derive_seed(seed, label, key))[:7])
    shuffled = random.Random(seed).sample(KEYS, len(KEYS))
    assert hold_out([[key] for key in shuffled], count=7, seed=seed, label=label) == expected


@pytest.mark.parametrize("seed", range(20))
def test_groups_stay_together(seed: int) -> None:
    """A group is chosen whole or not at all; here there are enough single keys to fill the rest."""
    chosen = hold_out(GROUPS, count=6, seed=seed)
    assert len(chosen) == 6
    assert all(chosen.isdisjoint(group) or chosen.issuperset(group) for group in GROUPS)


def test_a_group_that_overfills_is_passed_over() -> None:
    """Of one group of three nothing fits into two places, and of nothing nothing is chosen."""
    assert hold_out([KEYS[:3]], count=2, seed=0) == set()
    assert hold_out([], count=2, seed=0) == set()
    assert hold_out(GROUPS, count=0, seed=0) == set()


def test_another_seed_or_label_is_another_choice() -> None:
    """Choices do not depend on each other."""
    singles = [[key] for key in KEYS]
    first = hold_out(singles, count=10, seed=0)
    assert hold_out(singles, count=10, seed=1) != first
    assert hold_out(singles, count=10, seed=0, label="split") != first


@pytest.mark.parametrize(("count", "share", "expected"), [(10, 0.3, 3), (10, 0.001, 1), (10, 0.999, 9), (2, 0.5, 1), (3, 0.5, 2)])
def test_a_share_leaves_something_on_either_side(count: int, share: float, expected: int) -> None:
    """Rounded to whole keys, at least one and not all."""
    assert share_of(count, share) == expected
