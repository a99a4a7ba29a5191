import random

import numpy as np
import pytest

from stepladder.lm.slots import SlotTree


def _tree(capacity: int) -> SlotTree:
    tree = SlotTree()
    tree.grow(capacity)
    tree.begin_use()
    return tree


def test_shared_prefixes_are_stored_once():
    """Two sequences share the slots of their common tokens, wherever they part, and only the rest is new."""
    tree = _tree(10)
    first = tree.place((1, 2, 3, 4))
    second = tree.place((1, 2, 7))
    assert first.slots.tolist() == [0, 1, 2, 3] and first.num_known == 0
    assert second.slots.tolist() == [0, 1, 4] and second.num_known == 2
    assert tree.place((1, 2)).slots.tolist() == [0, 1]
    assert tree.num_missing((1, 2, 3, 9)) == 1
    assert tree.num_free == 5


def test_placing_after_a_node_equals_placing_the_whole():
    """A node stands for its sequence, also after it was split."""
    tree = _tree(10)
    end = tree.place((1, 2, 3)).node
    tree.place((1, 9))
    continued = tree.place((4,), end)
    assert continued.slots.tolist() == tree.place((1, 2, 3, 4)).slots.tolist()[3:]


def test_eviction_takes_the_least_recently_used_ends_and_never_what_is_in_use():
    """The oldest branch goes first, its shared prefix stays as long as anything needs it, and this period's sequences stay."""
    tree = _tree(6)
    old = tree.place((1, 2, 3)).node
    tree.begin_use()
    tree.place((1, 2, 4))
    tree.begin_use()
    tree.place((5, 6))
    assert tree.num_free == 0
    tree.evict(1)
    assert tree.num_free == 1 and not tree.holds(old)
    assert tree.num_missing((1, 2, 4)) == 0
    tree.begin_use()
    tree.place((5, 6))
    tree.evict(6)
    assert tree.num_free == 4
    assert tree.num_missing((5, 6)) == 0 and tree.num_missing((1, 2, 4)) == 3


def test_a_kept_node_survives_eviction_with_all_its_ancestors():
    """``keep`` protects a sequence that was not used in this period."""
    tree = _tree(4)
    kept = tree.place((1, 2, 3)).node
    tree.place((1, 4))
    tree.begin_use()
    tree.evict(4, keep=kept)
    assert tree.holds(kept) and tree.num_free == 1


@pytest.mark.parametrize("seed", range(5))
def test_random_use_agrees_with_a_plain_dictionary(seed):
    """Every held prefix has one slot of its own, slots never clash, and free plus held slots make the capacity."""
    rng = random.Random(seed)
    tree = _tree(40)
    for _ in range(300):
        tree.begin_use()
        path = tuple(rng.randrange(3) for _ in range(rng.randrange(1, 9)))
        if tree.num_free < len(path):
            tree.evict(len(path) + rng.randrange(10))
        known = len(path) - tree.num_missing(path)
        placement = tree.place(path)
        assert placement.num_known == known
        held = {(): -1}
        stack = [(tree._root, ())]
        while stack:
            node, prefix = stack.pop()
            for child in node.children.values():
                for i, slot in enumerate(child.slots.tolist()):
                    held[prefix + child.tokens[: i + 1]] = slot
                stack.append((child, prefix + child.tokens))
        assert placement.slots.tolist() == [held[path[: i + 1]] for i in range(len(path))]
        assert len(set(held.values())) == len(held)
        assert len(held) - 1 + tree.num_free == tree.capacity


def test_clear_forgets_everything():
    """After ``clear`` nothing is held and nothing is free."""
    tree = _tree(4)
    node = tree.place((1,)).node
    tree.clear()
    assert not tree.holds(node) and (tree.capacity, tree.num_free) == (0, 0)
    tree.grow(2)
    np.testing.assert_array_equal(tree.place((1, 2)).slots, [0, 1])
