"""Selection and backup reproduce the golden trees that mctx ships, every visit, value, prior and child.

The stored trees were grown by MuZero searches in a random environment. Here they are replayed as that environment: a node that the golden
search never evaluated has no figures, so one wrong selection fails at once.
"""

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from stepladder.mcts.backup import backup_paths
from stepladder.mcts.gumbel import considered_visits, halving_scores, improved_policy_scores, mixed_values, scaled_qvalues
from stepladder.mcts.qvalues import normalise_by_parent_and_siblings
from stepladder.mcts.selection import puct_mctx_scores, select_descent
from stepladder.mcts.tree import NewNodes, Tree, add_nodes, allocate, land_rows

NUM_ROWS = 2
"""The same search in two rows: neither may disturb the other."""


def load(name):
    """Return a golden tree of the installed mctx, or skip."""
    spec = importlib.util.find_spec("mctx")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("mctx is not installed")
    path = Path(spec.submodule_search_locations[0]) / "_src" / "tests" / "test_data" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"this mctx ships no {name}.json")
    return json.loads(path.read_text())


def scores_of(stats, *, qtransform, options, c_init, c_base):
    """Score edges as the golden search was configured to."""
    visited = stats.visits > 0
    if qtransform == "qtransform_by_min_max":
        low, high = options["min_value"], options["max_value"]
        qvalues = np.where(visited, (stats.qvalues - low) / (high - low), 0.0)
    else:
        qvalues = normalise_by_parent_and_siblings(stats.qvalues, visited, parent_value=stats.parent_value, **options)
    return puct_mctx_scores(qvalues, stats.prior, stats.visits, parent_visits=stats.parent_visits, c_init=c_init, c_base=c_base)


def gumbel_scores_of(stats, *, config, num_simulations):
    """Score edges as the golden Gumbel search was configured to: no noise, mixed values."""
    options = config["qtransform_kwargs"]
    visited = stats.visits > 0
    value = mixed_values(stats.qvalues, stats.prior, visited, stats.visits, raw_value=stats.parent_raw_value)
    values = scaled_qvalues(
        np.where(visited, stats.qvalues, value[:, None]),
        np.ones_like(visited),
        stats.visits,
        value_scale=options["value_scale"],
        maxvisit_init=options["maxvisit_init"],
        rescale=options["rescale_values"],
    )
    logits = np.log(stats.prior)
    schedule = np.array(considered_visits(min(config["max_num_considered_actions"], stats.visits.shape[1]), num_simulations))
    at_root = halving_scores(
        np.zeros_like(logits), logits, values, stats.visits, considered=schedule[stats.visits.sum(axis=-1).clip(max=num_simulations - 1)]
    )
    return np.where((stats.nodes == Tree.ROOT)[:, None], at_root, improved_policy_scores(logits, values, stats.visits))


def expand(tree, leaves, golden_of):
    """Add all children of one leaf per row; what the golden search knows of them is looked up when they are selected."""
    rows = np.repeat(np.arange(NUM_ROWS), len(golden_of[0, 0]["child_stats"]))
    children = [(row, leaf, child) for row, leaf in enumerate(leaves) for child in golden_of[row, leaf]["child_stats"]]
    false = np.zeros(len(rows), bool)
    nodes = add_nodes(
        tree,
        NewNodes(
            rows=rows,
            parents=np.array([leaf for _, leaf, _ in children]),
            slots=np.array([child["action"] for _, _, child in children]),
            depths=np.array([tree.depth[row, leaf] + 1 for row, leaf, _ in children]),
            priors=np.array([child["prior"] for _, _, child in children], np.float32),
            raw_values=np.full(len(rows), np.nan, np.float32),
            visited=false,
            selectable=~false,
            terminal=false,
            truncated=false,
        ),
    )
    golden_of.update({(row, int(node)): child for (row, _, child), node in zip(children, nodes, strict=True)})


def replay(golden):
    """Search the golden environment and return the tree with the golden node that each of our nodes stands for."""
    root, config, environment = golden["tree"], golden["algorithm_config"], golden["env_config"]
    num_slots, num_simulations = len(root["child_stats"]), root["visit"]
    if golden["algorithm"] == "gumbel_muzero":
        scores = functools.partial(gumbel_scores_of, config=config, num_simulations=num_simulations - 1)
    else:
        scores = functools.partial(
            scores_of,
            qtransform=config["qtransform"],
            options=config["qtransform_kwargs"],
            c_init=float(config["pb_c_init"]),
            c_base=float(config["pb_c_base"]),
        )
    tree = allocate(NUM_ROWS, num_nodes=1 + num_simulations * num_slots, num_slots=num_slots)
    rows, discount = np.arange(NUM_ROWS), environment["discount"]
    golden_of = {(row, Tree.ROOT): root for row in range(NUM_ROWS)}
    for simulation in range(num_simulations):
        leaves = select_descent(tree, rows, np.ones(NUM_ROWS, int), scores=scores, discount=discount)[:, 0]
        found = [golden_of[row, leaf] for row, leaf in enumerate(leaves)]
        assert [node.get("evaluation_index") for node in found] == [simulation] * NUM_ROWS
        tree.raw_value[rows, leaves] = [node["raw_value_view"] for node in found]
        tree.reward[rows, leaves] = [node.get("reward", 0.0) for node in found]
        expand(tree, leaves.tolist(), golden_of)
        land_rows(tree, rows)
        backup_paths(tree, rows, leaves, tree.raw_value[rows, leaves], opened=np.full(NUM_ROWS, num_slots), discount=discount)
    return tree, golden_of


@pytest.mark.parametrize("name", ["muzero_tree", "muzero_qtransform_tree", "gumbel_muzero_tree", "gumbel_muzero_reward_tree"])
def test_golden_trees_of_mctx_are_reproduced(name):
    """PUCT and Gumbel, each with discount -1 and without rewards, and with discount 0.997 and rewards; every node."""
    tree, golden_of = replay(load(name))
    for (row, node), golden in golden_of.items():
        assert tree.visits[row, node] == golden.get("visit", 0)
        np.testing.assert_allclose(tree.prior[row, node], golden["prior"], rtol=1e-6)
        if "visit" in golden:
            np.testing.assert_allclose(tree.value[row, node], golden["value_view"], atol=1e-4)
            np.testing.assert_allclose(tree.raw_value[row, node], golden["raw_value_view"], atol=1e-6)
        for child in golden["child_stats"]:
            ours = tree.children_index[row, node, child["action"]]
            assert golden_of[row, int(ours)] is child
    evaluated = sum("visit" in golden for golden in golden_of.values())
    assert evaluated == NUM_ROWS * int(tree.visits[0, Tree.ROOT])


def test_replay_of_a_tree_with_one_figure_changed_fails():
    """The replay is sensitive: an exploration constant off by one part in five leaves the golden path."""
    golden = load("muzero_qtransform_tree")
    golden["algorithm_config"]["pb_c_init"] *= 1.2
    with pytest.raises((AssertionError, KeyError)):
        replay(golden)


@pytest.mark.parametrize(("name", "setting"), [("gumbel_muzero_tree", "value_scale"), ("gumbel_muzero_reward_tree", "maxvisit_init")])
def test_replay_of_a_gumbel_tree_with_one_figure_changed_fails(name, setting):
    """The replay is sensitive to how values are weighed against logits."""
    golden = load(name)
    golden["algorithm_config"]["qtransform_kwargs"][setting] *= 3
    with pytest.raises((AssertionError, KeyError)):
        replay(golden)


@pytest.mark.parametrize("num_considered", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("num_simulations", [1, 2, 5, 16, 50, 200])
def test_schedules_of_sequential_halving_are_those_of_mctx(num_considered, num_simulations):
    """The schedule of mctx is the oracle."""
    oracle = pytest.importorskip("mctx._src.seq_halving", reason="mctx is not installed")
    expected = oracle.get_sequence_of_considered_visits(num_considered, num_simulations)
    assert considered_visits(num_considered, num_simulations) == list(expected)
