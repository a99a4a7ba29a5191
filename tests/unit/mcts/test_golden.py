"""Selection and backup reproduce the golden trees that mctx ships, every visit, value, prior and child.

The stored trees were grown by MuZero searches in a random environment. Here they are replayed as that environment: a node that the golden
search never evaluated has no figures, so one wrong selection fails at once.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from stepladder.mcts.backup import backup_paths
from stepladder.mcts.strategies.descent import select_descent
from stepladder.mcts.strategies.descent_kernels import descent_rule
from stepladder.mcts.strategies.halving import considered_visits, halving_schedules
from stepladder.mcts.tree import NewNodes, Tree, add_nodes, allocate, land

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


def rule_of(golden, num_slots):
    """Score edges as the golden search was configured to, and return what its priors are multiplied by here.

    Values between ``min_value`` and ``max_value`` are not rescaled to [0, 1] but the rest of the score by their range, in the priors: it
    has the same order. What has no visits is worth ``min_value``. Gumbel has no noise.
    """
    config, options = golden["algorithm_config"], golden["algorithm_config"]["qtransform_kwargs"]
    common = {"discount": golden["env_config"]["discount"]}
    if golden["algorithm"] == "gumbel_muzero":
        schedules = halving_schedules(num_slots, golden["tree"]["visit"] - 1, max_considered=config["max_num_considered_actions"])
        return descent_rule(
            selection="gumbel",
            value_scale=options["value_scale"],
            maxvisit_init=options["maxvisit_init"],
            rescale=options["rescale_values"],
            noise=np.zeros((NUM_ROWS, num_slots)),
            schedules=schedules,
            **common,
        ), 1.0
    common |= {"selection": "puct-mctx", "c": config["pb_c_init"], "c_base": config["pb_c_base"]}
    if config["qtransform"] == "qtransform_by_min_max":
        return (
            descent_rule(unvisited="zero", unvisited_bonus=options["min_value"], **common),
            options["max_value"] - options["min_value"],
        )
    return descent_rule(normalise="siblings", **common), 1.0


def expand(tree, leaves, golden_of, scale):
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
            priors=np.array([scale * child["prior"] for _, _, child in children], np.float32),
            rewards=np.zeros(len(rows), np.float32),
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
    root, discount = golden["tree"], golden["env_config"]["discount"]
    num_slots, num_simulations = len(root["child_stats"]), root["visit"]
    rule, scale = rule_of(golden, num_slots)
    tree = allocate(NUM_ROWS, num_nodes=1 + num_simulations * num_slots, num_slots=num_slots)
    rows = np.arange(NUM_ROWS)
    golden_of = {(row, Tree.ROOT): root for row in range(NUM_ROWS)}
    for simulation in range(num_simulations):
        leaves = select_descent(tree, rows, np.ones(NUM_ROWS, int), rule=rule)[:, 0].copy()
        found = [golden_of[row, leaf] for row, leaf in enumerate(leaves)]
        assert [node.get("evaluation_index") for node in found] == [simulation] * NUM_ROWS
        tree.raw_value[rows, leaves] = [node["raw_value_view"] for node in found]
        tree.reward[rows, leaves] = [node.get("reward", 0.0) for node in found]
        expand(tree, leaves.tolist(), golden_of, scale)
        land(tree, rows, leaves)
        backup_paths(tree, rows, leaves, tree.raw_value[rows, leaves], opened=np.full(NUM_ROWS, num_slots), discount=discount)
    tree.prior[:, 1:] /= scale
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
