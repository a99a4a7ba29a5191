"""The tree arrays: allocation, growth, adding nodes, reservations, paths."""

import numpy as np
import pytest

from stepladder.errors import ShapeError
from stepladder.mcts.tree import NODE, StepTable, Tree, add_nodes, allocate, grow, land, reserve, reset_rows
from stepladder.testing import make_step
from tests.array_trees import nodes

FIELDS = ("num_nodes", "children_index", *NODE.fields)


def small_tree():
    """Two rows; row 0: root -> 1, 2 (terminal), 1 -> 3; row 1: root -> 1."""
    tree = allocate(2, num_nodes=6, num_slots=2)
    added = add_nodes(tree, nodes([0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [1, 1, 1, 2], raw=[0.1, 0.2, 0.3, np.nan], ended=[2]))
    assert added.tolist() == [1, 1, 2, 3]
    return tree


def test_a_new_tree_holds_open_unvisited_roots():
    """Nothing but roots, and unused nodes hold the sentinels."""
    tree = allocate(3, num_nodes=4, num_slots=2)
    assert tree.num_nodes.tolist() == [1, 1, 1]
    assert tree.open_leaves.tolist() == [[1, 0, 0, 0]] * 3
    assert (tree.parent == Tree.NO_PARENT).all() and (tree.children_index == Tree.UNVISITED).all()
    assert np.isnan(tree.value).all() and np.isnan(tree.raw_value).all() and not tree.visits.any()
    assert tree.prior[:, 0].tolist() == [1.0] * 3


def test_nodes_are_numbered_within_their_rows_in_the_order_given():
    """Rows may be interleaved, and a node may be the parent of a later one of the same batch."""
    tree = small_tree()
    assert tree.num_nodes.tolist() == [4, 2]
    assert tree.parent[0, :4].tolist() == [-1, 0, 0, 1]
    assert tree.depth[0, :4].tolist() == [0, 1, 1, 2]
    assert tree.children_index[0, :2].tolist() == [[1, 2], [3, -1]]
    assert tree.children_index[1, 0].tolist() == [1, -1]


def test_new_nodes_start_with_one_visit_worth_their_own_value():
    """An unscored one starts with a visit and no return; unvisited ones start with neither."""
    tree = small_tree()
    assert tree.visits[0, 1:4].tolist() == [1, 1, 1]
    assert tree.returns[0, 1:4].tolist() == [1, 1, 0]
    np.testing.assert_allclose(tree.value[0, 1:4], [0.1, 0.3, np.nan], rtol=1e-6)
    add_nodes(tree, nodes([1], [0], [1], [1], visited=False))
    assert (tree.visits[1, 2], tree.returns[1, 2]) == (0, 0)
    assert np.isnan(tree.value[1, 2]) and tree.raw_value[1, 2] == 0.5


def test_no_room_is_an_error():
    """Neither nodes nor slots are silently dropped."""
    with pytest.raises(ShapeError, match="no room"):
        add_nodes(small_tree(), nodes([0, 0, 0], [2, 2, 3], [0, 1, 0], [2, 2, 3]))
    with pytest.raises(ShapeError, match="no room"):
        add_nodes(small_tree(), nodes([1], [0], [2], [1]))
    with pytest.raises(ShapeError, match="num_slots"):
        allocate(1, num_nodes=1, num_slots=0)


def test_a_node_without_a_slot_has_a_parent_that_does_not_point_to_it():
    """Sampled trees need no slots: parents and depths are there, children are not."""
    tree = allocate(1, num_nodes=4, num_slots=1)
    add_nodes(tree, nodes([0] * 3, [0, 0, 1], [Tree.NO_SLOT] * 3, [1, 1, 2]))
    assert tree.parent[0].tolist() == [-1, 0, 0, 1] and (tree.children_index == Tree.UNVISITED).all()


def test_growth_keeps_every_figure():
    """A grown tree holds the same nodes and room for more; a tree with enough room is returned as it is."""
    tree = small_tree()
    assert grow(tree, num_nodes=6, num_slots=2) is tree
    grown = grow(tree, num_nodes=7, num_slots=3)
    assert grown.children_index.shape == (2, 12, 4)
    for name in FIELDS:
        old, new = getattr(tree, name), getattr(grown, name)
        np.testing.assert_array_equal(new[tuple(slice(extent) for extent in old.shape)], old)
    assert (grown.parent[:, 6:] == Tree.NO_PARENT).all() and (grown.children_index[:, :, 2:] == Tree.UNVISITED).all()


def test_reset_empties_a_row_and_leaves_the_others():
    """A freed row equals one of a new tree."""
    tree, fresh = small_tree(), allocate(2, num_nodes=6, num_slots=2)
    before = tree.children_index[1].copy()
    reset_rows(tree, np.array([0]))
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(tree, name)[0], getattr(fresh, name)[0])
    np.testing.assert_array_equal(tree.children_index[1], before)


def test_reservation_marks_the_path_and_closes_a_leaf_that_is_to_be_expanded():
    """A leaf to be expanded is closed on its whole path; a terminal stays as it is; landing takes the virtual visits back."""
    tree = small_tree()
    tree.open_leaves[0, :4] = [2, 1, 1, 1]
    reserve(tree, np.array([0]), np.array([3]))
    assert tree.in_flight[0, :4].tolist() == [1, 1, 0, 1]
    assert tree.open_leaves[0, :4].tolist() == [1, 0, 1, 0]
    reserve(tree, np.array([0]), np.array([2]))
    assert tree.in_flight[0, :4].tolist() == [2, 1, 1, 1]
    assert tree.open_leaves[0, :4].tolist() == [1, 0, 1, 0]
    land(tree, np.array([0, 0]), np.array([3, 2]))
    assert not tree.in_flight.any()


def test_memory_per_node_is_as_documented():
    """52 + 4 K bytes, counted from the arrays themselves."""
    for num_slots in (1, 4, 16):
        tree = allocate(3, num_nodes=5, num_slots=num_slots)
        assert tree.bytes_per_node == 52 + 4 * num_slots
        total = tree.nodes.nbytes + tree.children_index.nbytes
        assert total == 3 * 5 * tree.bytes_per_node


def test_step_table_joins_the_steps_on_a_path():
    """Tokens and text of a path are its steps', in order; the root has none."""
    table = StepTable()
    for parent, text in ((0, "ab"), (0, "c"), (1, "d")):
        table.parents.append(parent)
        table.steps.append(make_step(text))
    assert table.path(3) == [1, 3]
    assert table.path_ids(3) == tuple(map(ord, "abd"))
    assert (table.path_text(3), table.path_text(0), table.path_ids(0)) == ("abd", "", ())
