"""Advantages of steps: worked by hand on one tree, and relations between the forms."""

import math
import random

import pytest

from stepladder.data.labels.advantages import (
    AdvantageForm,
    deepsearch_advantages,
    group_advantages,
    node_advantages,
    parent_advantages,
    path_advantages,
    treepo_advantages,
)
from stepladder.data.labels.values import ValueTarget
from stepladder.types import TreeRecord
from tests import trees


def tree(parents: list[int], outcomes: dict[int, float], values: list[float | None] | None = None) -> TreeRecord:
    """Return a tree of one-token steps with the outcomes of some leaves."""
    known = values or [None] * len(parents)
    return trees.tree(*((parent, known[node], outcomes.get(node)) for node, parent in enumerate(parents)))


# Root 0 with children 1 and 2; below 1 the leaves 3 (right) and 4 (wrong), below 2 the leaf 5 (wrong) and 6, which nobody graded.
# Shares of right ones: root 1/3, node 1 1/2, node 2 0, leaves 1, 0, 0.
PARENTS = [-1, 0, 0, 1, 1, 2, 2]
TREE = tree(PARENTS, {3: 1.0, 4: 0.0, 5: 0.0})


def test_parent_form_by_hand():
    """V(node) - V(parent) at every node; nothing for the root and for what was never graded."""
    assert node_advantages(TREE, "parent") == [None, 1 / 2 - 1 / 3, -1 / 3, 1 / 2, -1 / 2, 0.0, None]


def test_parent_form_sums_to_the_outcome():
    """Along a path to a leaf, the advantages add up to its outcome minus the root's value."""
    advantages = node_advantages(TREE, "parent")
    assert sum(advantages[node] for node in (1, 3)) == pytest.approx(1 - 1 / 3, abs=1e-15)
    assert sum(advantages[node] for node in (1, 4)) == pytest.approx(0 - 1 / 3, abs=1e-15)


def test_parent_form_takes_other_values():
    """With another value target the differences are those of that target, here of the stored tree values."""
    record = tree([-1, 0, 1], {2: 1.0}, values=[0.5, 0.75, None])
    assert node_advantages(record, "parent", target=ValueTarget.TREE_VALUE) == [None, 0.25, None]
    assert parent_advantages([0.5, None, 0.25], [-1, 0, 0]) == [None, None, -0.25]


def test_treepo_form_by_hand():
    """Each solution against the groups above it, worked by hand, then whitened; a shared step has the mean of its solutions."""
    # Leaf 3: (1 - 1/2 + 1 - 1/3) / 2 = 7/12. Leaf 4: (-1/2 - 1/3) / 2 = -5/12. Leaf 5 is alone below node 2: only -1/3 = -4/12 counts.
    # Their mean is -2/36; in thirty-sixths the deviations are 23, -13, -10, with squares 529 + 169 + 100 = 798.
    spread = math.sqrt(798 / 36**2 / 2) + 1e-6
    right, wrong, alone = (deviation / 36 / spread for deviation in (23, -13, -10))
    by_hand = [None, None, None, *(pytest.approx(value, abs=1e-12) for value in (right, wrong, alone)), None]
    assert treepo_advantages(TREE.outcomes, PARENTS) == by_hand
    means = [None, *(pytest.approx(value, abs=1e-12) for value in ((right + wrong) / 2, alone, right, wrong, alone)), None]
    assert node_advantages(TREE, "treepo") == means


def test_treepo_without_branches_is_the_group_form():
    """Where all solutions part at the root, the root is the only group, and whitening it twice changes nothing but the epsilon."""
    parents, outcomes = [-1, 0, 0, 0, 1, 2, 3], {4: 1.0, 5: 0.0, 6: 0.0}
    record = tree(parents, outcomes)
    assert node_advantages(record, "treepo") == [None, *(pytest.approx(value, rel=1e-5) for value in node_advantages(record, "group")[1:])]


def test_group_form_by_hand():
    """Rewards 1, 0, 0 have mean 1/3 and sample standard deviation sqrt(1/3); the shared step has the mean of its two solutions."""
    spread = math.sqrt(1 / 3) + 1e-6
    right, wrong = (2 / 3) / spread, (-1 / 3) / spread
    assert group_advantages([1.0, 0.0, 0.0]) == pytest.approx([right, wrong, wrong], abs=1e-12)
    advantages = node_advantages(TREE, "group")
    assert advantages == [None, *(pytest.approx(value, abs=1e-12) for value in ((right + wrong) / 2, wrong, right, wrong, wrong)), None]


@pytest.mark.parametrize("form", ["group", "treepo"])
def test_a_solution_has_one_number(form):
    """All steps of a solution have the advantage of its leaf; over the parent, each step has its own."""
    advantages = node_advantages(TREE, form)
    assert path_advantages(advantages, [1, 3], form) == [advantages[3], advantages[3]]
    parent = node_advantages(TREE, "parent")
    assert path_advantages(parent, [1, 3], "parent") == [parent[1], parent[3]]


@pytest.mark.parametrize("form", ["group", "treepo"])
@pytest.mark.parametrize("seed", range(5))
def test_shared_steps_weigh_as_their_solutions(seed, form):
    """Summed over solutions, the advantage of a shared step is its node's times the number of solutions through it."""
    rng = random.Random(seed)
    parents = [-1] + [rng.randrange(node) for node in range(1, 30)]
    leaves = sorted(set(range(30)) - set(parents))
    record = tree(parents, {leaf: float(rng.random() < 0.4) for leaf in leaves})
    advantages = node_advantages(record, form)
    sums, counts = [0.0] * 30, [0] * 30
    for leaf in leaves:
        path, node = [], leaf
        while node:
            path.append(node)
            node = parents[node]
        for node, advantage in zip(path, path_advantages(advantages, path[::-1], form), strict=True):
            sums[node] += advantage
            counts[node] += 1
    for node in range(1, 30):
        assert sums[node] == pytest.approx(counts[node] * advantages[node], abs=1e-9)


@pytest.mark.parametrize("form", AdvantageForm)
def test_edge_cases(form):
    """One solution alone, all right, nothing graded, a root without children: zeros and nothing, never a division by zero."""
    assert node_advantages(tree([-1, 0], {1: 1.0}), form) == [None, 0.0]
    assert node_advantages(tree([-1, 0, 0], {1: 1.0, 2: 1.0}), form) == [None, 0.0, 0.0]
    assert node_advantages(tree([-1, 0, 0], {}), form) == [None, None, None]
    assert node_advantages(tree([-1], {}), form) == [None]


def test_one_end_of_every_expansion_counts_in_deepsearch():
    """Ends 3 and 4 continue node 1: the right one counts. Of the wrong ends 5 and 6 below node 2 the less surprising one, 6. 8 is alone.

    Node 1 is on the way to the ends 3 (e = 1, half way: q = 1/2) and 8 (e = -1, a third of the way): q e < 0 and e < 0, so q stays.
    Node 7 leads to 8 alone: q = -2/3. Node 2: q = -1/2. The mean of 1, -1 and -1 is -1/3.
    """
    parents = [-1, 0, 0, 1, 1, 2, 2, 1, 7]
    rewards = [None, None, None, 1.0, 0.0, 0.0, 0.0, None, 0.0]
    found = deepsearch_advantages(rewards, parents, {3: 0.9, 4: 0.1, 5: 0.8, 6: 0.2, 8: 0.5})
    assert set(found) == {3, 6, 8}
    assert found[3] == pytest.approx([math.tanh(1 / 2) + 1 / 3, 4 / 3])
    assert found[6] == pytest.approx([math.tanh(-1 / 2) + 1 / 3, -2 / 3])
    assert found[8] == pytest.approx([math.tanh(1 / 2) + 1 / 3, math.tanh(-2 / 3) + 1 / 3, -2 / 3])


def test_a_right_end_outweighs_wrong_ones_before_it_in_deepsearch():
    """Two wrong ends, then two right ones below node 1, at depth 1 of 3: q = -1/3, -2/3, then 1/3, begun anew, and 2/3. Mean 0."""
    parents = [-1, 0, 1, 1, 1, 1, 2, 3, 4, 5]
    rewards = [None] * 6 + [0.0, 0.0, 1.0, 1.0]
    found = deepsearch_advantages(rewards, parents, {6: 1.0, 7: 1.0, 8: 1.0, 9: 1.0})
    assert found[9] == pytest.approx([math.tanh(2 / 3), math.tanh(2 / 3), 1.0])
    assert found[6] == pytest.approx([math.tanh(2 / 3), math.tanh(-2 / 3), -1.0])
    assert deepsearch_advantages([None], [-1], {}) == {}
