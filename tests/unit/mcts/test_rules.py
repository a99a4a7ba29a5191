"""The formulas of selection, value completion, backup and answers, by hand-worked numbers."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from stepladder.errors import ConfigError
from stepladder.mcts.answer_rules import AnswerTally
from stepladder.mcts.backup import backup_paths
from stepladder.mcts.methods import METHODS, PRESETS, resolve_method
from stepladder.mcts.priors import mix_root_noise, sibling_priors
from stepladder.mcts.qvalues import AGGREGATIONS, UNVISITED_RULES, aggregate_scores
from stepladder.mcts.search_method import SearchMethod, build_method
from stepladder.mcts.strategies.beam import select_beam
from stepladder.mcts.strategies.descent import select_descent
from stepladder.mcts.strategies.descent_kernels import (
    completed,
    descent_rule,
    halving_score,
    improve_policy,
    mixed_value,
    normalised,
    puct,
    puct_muzero,
    scale_values,
    uct,
    with_critic,
    with_virtual_loss,
)
from stepladder.mcts.strategies.frontier import select_frontier
from stepladder.mcts.strategies.halving import considered_visits, halving_schedules
from stepladder.mcts.strategies.particles import draw_copies, particle_weights
from stepladder.mcts.strategies.strategy import NO_LEAF
from stepladder.mcts.tree import Tree, add_nodes, allocate, land, reserve
from tests.array_trees import nodes

NAN = math.nan


def test_puct_by_hand():
    """sqrt(1 + 3) = 2: 0.5 + 2 * 0.25 * 2 / 2 = 1.0 and 0.7 + 2 * 0.75 * 2 / 4 = 1.45; without visits the bare value is left."""
    assert puct(0.5, 0.25, 1, sum_visits=4, c=2.0) == pytest.approx(1.0)
    assert puct(0.7, 0.75, 3, sum_visits=4, c=2.0) == pytest.approx(1.45)
    assert puct(0.1, 0.5, 0, sum_visits=0, c=2.0) == 0.1


def test_puct_in_the_form_of_muzero_by_hand():
    """N = 9, c_base = 10: sqrt 9 = 3, ln(20 / 10) = ln 2: 0.5 + 0.5 * 3 / 2 * (1 + ln 2) and 0 + 0.5 * 3 * (1 + ln 2)."""
    constants = {"parent_visits": 9, "c_init": 1.0, "c_base": 10.0}
    assert puct_muzero(0.5, 0.5, 1, **constants) == pytest.approx(0.5 + 0.75 * (1 + math.log(2)))
    assert puct_muzero(0.0, 0.5, 0, **constants) == pytest.approx(1.5 * (1 + math.log(2)))


def test_uct_by_hand():
    """N = 8: 0.5 + 2 * sqrt(ln 8 / 2); an unvisited child has no bonus; N = 0 counts as 1, whose logarithm is 0."""
    assert uct(0.5, 2, parent_visits=8, c=2.0) == pytest.approx(0.5 + 2 * math.sqrt(math.log(8) / 2))
    assert uct(0.3, 0, parent_visits=8, c=2.0) == 0.3
    assert uct(0.5, 1, parent_visits=0, c=2.0) == 0.5


@pytest.mark.parametrize(("rule", "estimated", "unknown"), [("inf", NAN, NAN), ("zero", 0.0, 0.0), ("parent", 0.6, 0.6), ("raw", 0.9, 0.6)])
def test_completion_of_missing_values(rule, estimated, unknown):
    """Visited with a return, visited without one, unvisited with an estimate, unvisited without one; a bonus is for the last two."""
    arguments = {"parent_value": 0.6, "unvisited": UNVISITED_RULES.index(rule)}
    assert completed(0.4, 1, 0.1, bonus=0.5, **arguments) == 0.4
    assert completed(NAN, 1, 0.2, bonus=0.5, **arguments) == 0.6
    for bonus in (0.0, 0.5):
        expected = [math.inf, math.inf] if rule == "inf" else [estimated + bonus, unknown + bonus]
        assert [completed(NAN, 0, raw, bonus=bonus, **arguments) for raw in (0.9, NAN)] == expected


def test_completion_without_a_parent_value_is_neutral():
    """A parent without any return counts as 0.5."""
    assert [completed(NAN, visits, NAN, parent_value=NAN, unvisited=UNVISITED_RULES.index("parent"), bonus=0.0) for visits in (1, 0)] == [
        0.5,
        0.5,
    ]


def test_virtual_loss_counts_flights_as_lost():
    """0.6 over 2 visits and one in flight: 1.2 / 3; over no visit and one in flight: 0.6 / 2; infinite values stay."""
    assert with_virtual_loss(0.6, 2, 1) == pytest.approx(0.4)
    assert with_virtual_loss(0.6, 0, 1) == pytest.approx(0.3)
    assert with_virtual_loss(math.inf, 0, 1) == math.inf
    assert with_virtual_loss(0.6, 5, 0) == 0.6


def test_normalisation_between_bounds():
    """Bounds 0.2 and 0.6: 0.4 and 0.6 become 0.5 and 1, an unknown value 0; equal bounds and unknown ones give 0."""
    low, high = np.float32(0.2), np.float32(0.6)
    assert normalised(np.float32(0.4), low, high) == pytest.approx(0.5)
    assert normalised(high, low, high) == 1.0
    assert normalised(np.float32(NAN), low, high) == 0.0
    assert normalised(low, low, low) == 0.0
    assert normalised(np.float32(NAN), np.float32(NAN), np.float32(NAN)) == 0.0


def test_aggregation_of_step_scores():
    """Steps without a score are left out, and a trajectory without any has none."""
    scores = [0.5, None, 0.8]
    assert [aggregate_scores(scores, rule=rule) for rule in ("last", "min", "mean", "product")] == [0.8, 0.5, 0.65, 0.4]
    assert aggregate_scores([None, 0.3, None], rule="last") == 0.3
    assert aggregate_scores([None], rule="product") is None
    with pytest.raises(ConfigError, match="median"):
        aggregate_scores([], rule="median")


def test_aggregation_by_means_that_lean_to_the_worst_step():
    """Geometric mean of (1/2, 1/8) is 1/4; min-form of (0.5, 0.5 + ln(3) / 10) weighs 3 : 1; log-sigmoid of (1/2, 1/2) is sigmoid(0)^2."""
    assert aggregate_scores([0.5, 0.125], rule="geometric-mean") == pytest.approx(0.25)
    assert aggregate_scores([0.5, 0.0], rule="geometric-mean") == 0.0
    assert aggregate_scores([0.5, None, 0.125], rule="max") == 0.5
    step = np.log(3) / 10
    assert aggregate_scores([0.5 + step, 0.5], rule="min-form") == pytest.approx(0.5 + step / 4)
    assert aggregate_scores([0.0, 1.0], rule="min-form") == pytest.approx(0.0, abs=1e-4)
    assert aggregate_scores([0.5, 0.5], rule="log-sigmoid") == pytest.approx(0.25)
    assert aggregate_scores([0.5 + np.log(3)], rule="log-sigmoid") == pytest.approx(0.75)
    assert [aggregate_scores([0.3], rule=rule) for rule in AGGREGATIONS if rule != "log-sigmoid"] == pytest.approx([0.3] * 7)


def test_sibling_priors():
    """Three samples in one child and one in the other; logp gap ln 3; failed samples have logp -inf."""
    assert sibling_priors([3, 1], [], rule="uniform") == [0.5, 0.5]
    assert sibling_priors([3, 1], [], rule="frequency") == [0.75, 0.25]
    np.testing.assert_allclose(sibling_priors([1, 1], [-1.0, -1.0 - math.log(3)], rule="mean-logp"), [0.75, 0.25])
    assert sibling_priors([1, 1], [-1.0, -math.inf], rule="mean-logp") == [1.0, 0.0]
    assert sibling_priors([1, 2], [-math.inf, -math.inf], rule="mean-logp") == [0.5, 0.5]
    # Two tokens of 1/2 each have 1/4, one of 3/4 three times that; the samples do not count.
    sums = sibling_priors([5, 1, 1], [math.log(1 / 2), math.log(3 / 4), -math.inf], rule="sum-logp", lengths=[2, 1, 0])
    assert sums == pytest.approx([0.25, 0.75, 0.0])


def test_length_normalised_priors_by_hand():
    """16 tokens of mean -1: -16 / 16^1.25 = -1 / 2; one token of mean -0.5 is -0.5: equal; the bare exponentials are e^-0.5."""
    assert sibling_priors([1, 1], [-1.0, -0.5], rule="norm-logp", lengths=[16, 1]) == pytest.approx([0.5, 0.5])
    assert sibling_priors([1, 1], [-1.0, -0.5], rule="exp-norm-logp", lengths=[16, 1]) == pytest.approx([math.exp(-0.5)] * 2)
    assert sibling_priors([1, 1], [-1.0, -0.5], rule="exp-mean-logp") == pytest.approx([math.exp(-1), math.exp(-0.5)])
    assert sibling_priors([1, 1], [-1.0, -math.inf], rule="exp-norm-logp", lengths=[1, 0]) == pytest.approx([math.exp(-1), 0.0])


def test_prior_temperature_by_hand():
    """Temperature 2 takes square roots: 4 : 1 becomes 2 : 1; temperature 1 changes nothing."""
    assert sibling_priors([4, 1], [], rule="frequency", temperature=2.0) == pytest.approx([2 / 3, 1 / 3])
    assert sibling_priors([1, 1], [math.log(4), 0.0], rule="mean-logp", temperature=2.0) == pytest.approx([2 / 3, 1 / 3])
    assert sibling_priors([4, 1], [], rule="uniform", temperature=2.0) == [0.5, 0.5]


def test_root_noise_keeps_a_distribution():
    """Fraction 0 is the prior, fraction 1 the noise alone; a mixture is between them and sums to 1; one seed, one noise."""
    prior, noise = mix_root_noise([0.9, 0.1], fraction=0.0, alpha=0.3, seed=5), mix_root_noise([0.9, 0.1], fraction=1.0, alpha=0.3, seed=5)
    assert prior == [0.9, 0.1] and noise != prior and sum(noise) == pytest.approx(1.0)
    mixed = mix_root_noise([0.9, 0.1], fraction=0.25, alpha=0.3, seed=5)
    assert mixed == pytest.approx([0.75 * 0.9 + 0.25 * noise[0], 0.75 * 0.1 + 0.25 * noise[1]])
    assert mix_root_noise([0.9, 0.1], fraction=1.0, alpha=0.3, seed=6) != noise


def test_sequential_halving_by_hand():
    """4 candidates, 8 simulations, 2 rounds: max(1, 8 / (2 * 4)) = 1 visit to each of 4, then 8 / (2 * 2) = 2 to each of 2."""
    assert considered_visits(4, 8) == [0, 0, 0, 0, 1, 1, 2, 2]
    assert considered_visits(1, 3) == [0, 1, 2]
    assert considered_visits(3, 2) == [0, 0]
    assert halving_schedules(4, 8, max_considered=2)[3].tolist() == considered_visits(2, 8)
    assert halving_schedules(1, 0, max_considered=1).shape == (1, 1) and halving_schedules(1, 10**9, max_considered=1).shape == (1, 4096)
    with pytest.raises(ConfigError, match="at least 1"):
        considered_visits(0, 3)


def test_gumbel_values_by_hand():
    """One visited child of two, P = 0.25, Q = 0.8, n = 3, raw 0.4: (0.4 + 3 * 0.8) / 4 = 0.7; scale (50 + 3) * 0.1, rescaled to 0 and 1."""
    visits, priors = np.array([3, 0]), np.array([0.25, 0.75])
    assert mixed_value(np.array([0.8, NAN]), priors, visits, raw_value=0.4) == pytest.approx(0.7)
    assert mixed_value(np.array([NAN, NAN]), priors, visits, raw_value=0.4) == 0.4
    values = np.array([0.8, 0.7])
    scale_values(values, visits, value_scale=0.1, maxvisit_init=50.0, rescales=False)
    np.testing.assert_allclose(values, [5.3 * 0.8, 5.3 * 0.7])
    scale_values(values, visits, value_scale=0.1, maxvisit_init=50.0, rescales=True)
    np.testing.assert_allclose(values, [5.3, 0.0], atol=1e-12)


def test_gumbel_scores_by_hand():
    """Candidates are the children with the considered visits; a sole one with prior 0 still counts; the improved policy is a softmax."""
    score = halving_score(0.1, math.log(0.25), 2.0, max_logit=math.log(0.5), is_candidate=True)
    assert score == pytest.approx(0.1 - math.log(2) + 2.0)
    assert halving_score(9.0, math.log(0.5), 0.0, max_logit=math.log(0.5), is_candidate=False) < -1e11
    assert halving_score(0.0, -math.inf, 0.0, max_logit=0.0, is_candidate=True) == -1e9
    logits = np.log([0.5, 0.5])
    improve_policy(logits, np.array([math.log(3), 0.0]))
    np.testing.assert_allclose(logits, [0.75, 0.25])


def test_gumbel_below_the_root_follows_the_improved_policy():
    """Node 1 with children of prior 0.8 and 0.2: 0.8 > 0.2; after a visit 0.8 - 1/2 > 0.2; after two 0.8 - 2/3 < 0.2."""
    tree = allocate(1, num_nodes=4, num_slots=2)
    new = nodes([0] * 3, [0, 1, 1], [0, 0, 1], [1, 2, 2], visited=False)
    new.priors[:] = [1.0, 0.8, 0.2]
    add_nodes(tree, new)
    schedules = halving_schedules(2, 8, max_considered=2)
    rule = descent_rule(selection="gumbel", value_scale=0.1, maxvisit_init=50.0, rescale=True, noise=np.zeros((1, 2)), schedules=schedules)
    row, found = np.array([0]), []
    for _ in range(3):
        leaves = select_descent(tree, row, np.array([1]), rule=rule)[:, 0].copy()
        land(tree, row, leaves)
        backup_paths(tree, row, leaves, np.array([NAN]), opened=np.array([1]))
        found += leaves.tolist()
    assert found == [2, 2, 3]


def chain_tree():
    """One row: root -> 1, 2; 1 -> 3, 4; the new nodes 1 to 4 hold one visit worth 0.2, 0.4, 0.6, 1.0."""
    tree = allocate(1, num_nodes=5, num_slots=2)
    add_nodes(tree, nodes([0] * 4, [0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 2, 2], raw=[0.2, 0.4, 0.6, 1.0]))
    return tree


def back_up(tree, node, amount, **options):
    backup_paths(tree, np.array([0]), np.array([node]), np.array([amount], np.float32), opened=np.array([0]), **options)


def test_mean_backup_by_hand():
    """0.8 from node 1: (0.2 + 0.8) / 2 there, 0.8 at the root; then 0.4 from node 2: root (0.8 + 0.4) / 2."""
    tree = chain_tree()
    back_up(tree, 1, 0.8)
    back_up(tree, 2, 0.4)
    np.testing.assert_allclose(tree.value[0], [0.6, 0.5, 0.4, 0.6, 1.0], rtol=1e-6)
    assert tree.visits[0].tolist() == [2, 2, 2, 1, 1]


def test_child_mean_backup_by_hand():
    """Node 1 becomes the mean 0.8 of 0.6 and 1.0; the root (2 * 0.8 + 1 * 0.4) / 3; its own estimate is forgotten."""
    tree = chain_tree()
    back_up(tree, 1, 0.0, rule="child-mean")
    np.testing.assert_allclose(tree.value[0, :3], [2 / 3, 0.8, 0.4], rtol=1e-6)
    assert tree.visits[0].tolist() == [1, 2, 1, 1, 1]


def test_backup_with_rewards_and_discount_by_hand():
    """0.6 at node 3, reward 0.1 into it: 0.1 + 0.5 * 0.6 = 0.4 at node 1; reward 0 into that: 0.2 at the root."""
    tree = chain_tree()
    tree.reward[0, 3] = 0.1
    back_up(tree, 3, 0.6, discount=0.5)
    np.testing.assert_allclose(tree.value[0, [0, 1, 3]], [0.2, (0.2 + 0.4) / 2, 0.6], rtol=1e-6)


def test_max_backup_by_hand():
    """Node 1 becomes the best of 0.6 and 1.0 whatever comes back; the root the best of 1.0 and 0.4."""
    tree = chain_tree()
    back_up(tree, 1, 0.0, rule="max")
    np.testing.assert_allclose(tree.value[0, :3], [1.0, 1.0, 0.4], rtol=1e-6)


def test_uniform_child_mean_backup_by_hand():
    """Node 1: (0.6 + 1.0) / 2 = 0.8; root: (0.8 + 0.4) / 2 = 0.6 although node 1 has two visits of three."""
    tree = chain_tree()
    back_up(tree, 1, 0.0, rule="uniform-child-mean")
    np.testing.assert_allclose(tree.value[0, :3], [0.6, 0.8, 0.4], rtol=1e-6)


def test_min_backup_by_hand():
    """1.0 at node 4 passes node 1, whose own estimate is 0.2: it is 0.2 there and at the unscored root."""
    tree = chain_tree()
    back_up(tree, 4, 1.0, rule="min")
    np.testing.assert_allclose(tree.value[0, [0, 1, 4]], [0.2, (0.2 + 0.2) / 2, 1.0], rtol=1e-6)


def test_a_backup_without_a_return_is_a_visit_only():
    """NaN leaves values and return counts alone."""
    tree = chain_tree()
    before = tree.value.copy()
    back_up(tree, 1, NAN)
    np.testing.assert_array_equal(tree.value, before)
    assert tree.visits[0].tolist() == [1, 2, 1, 1, 1] and tree.returns[0].tolist() == [0, 1, 1, 1, 1]


def flat_tree(raw, *, ended=(), num_rows=1):
    """Root with one child per raw value, in every row."""
    count = len(raw)
    tree = allocate(num_rows, num_nodes=count + 4, num_slots=count)
    ended_everywhere = [row * count + i for row in range(num_rows) for i in ended]
    rows = np.repeat(np.arange(num_rows), count)
    add_nodes(
        tree, nodes(rows, [0] * len(rows), list(range(count)) * num_rows, [1] * len(rows), raw=raw * num_rows, ended=ended_everywhere)
    )
    tree.open_leaves[:, 0] = count - len(ended)
    return tree


GREEDY = descent_rule(selection="puct", c=0.0)


def test_a_wave_spreads_by_virtual_loss_and_never_takes_a_leaf_twice():
    """Without exploration the best leaf comes first and each next one after it; the fourth place of the wave stays empty."""
    tree = flat_tree([0.3, 0.9, 0.6])
    waves = select_descent(tree, np.array([0]), np.array([4]), rule=GREEDY)
    assert waves.tolist() == [[2, 3, 1, NO_LEAF]]
    assert tree.open_leaves[0, 0] == 0 and tree.in_flight[0, 0] == 3


def test_ties_go_to_the_first_slot_and_terminals_are_passed_over():
    """Equal scores: the first open slot."""
    tree = flat_tree([0.5, 0.5, 0.5], ended=[0])
    assert select_descent(tree, np.array([0]), np.array([1]), rule=GREEDY).tolist() == [[2]]


def test_rows_select_for_themselves():
    """Two rows with other statistics, and other numbers of leaves."""
    tree = flat_tree([0.5, 0.5, 0.5], num_rows=2)
    tree.value[1, 3] = 0.9
    assert select_descent(tree, np.array([0, 1]), np.array([1, 2]), rule=GREEDY).tolist() == [[1, NO_LEAF], [3, 1]]


def test_beam_keeps_the_best_and_ended_beams_leave():
    """Width 3 of 0.9 (ended), 0.8, 0.7, 0.1: two go on; the level's unscored nodes rank last; the budget can cut the wave."""
    raw = [0.1, 0.8, 0.9, 0.7, NAN]
    waves, widths = select_beam(flat_tree(raw, ended=[2]), np.array([0]), np.array([3]), widths=np.array([[3]]))
    assert (waves.tolist(), widths.tolist()) == ([[NO_LEAF, 2, 4]], [[2]])
    waves, _ = select_beam(flat_tree(raw, ended=[2]), np.array([0]), np.array([1]), widths=np.array([[3]]))
    assert [leaf for leaf in waves[0].tolist() if leaf != NO_LEAF] == [2]
    waves, widths = select_beam(flat_tree(raw), np.array([0]), np.array([9]), widths=np.array([[9]]))
    assert ([leaf for leaf in waves[0].tolist() if leaf != NO_LEAF], widths.tolist()) == ([3, 2, 4, 1, 5], [[9]])


def test_best_first_takes_the_best_leaf_and_depth_first_the_deepest():
    """Leaves 2 (depth 1, worth 0.9), 3 and 4 (depth 2, worth 0.3 and 0.6); node 1 is no leaf; 0.3 is below the threshold."""
    for deepest_first, expected in ((False, [2, 4]), (True, [4, 2])):
        tree = allocate(1, num_nodes=5, num_slots=2)
        add_nodes(tree, nodes([0] * 4, [0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 2, 2], raw=[0.5, 0.9, 0.3, 0.6]))
        row, four = np.array([0]), np.array([4])
        waves = select_frontier(tree, row, four, deepest_first=deepest_first, min_value=0.4)
        assert [leaf for leaf in waves[0].tolist() if leaf != NO_LEAF] == expected
        assert [leaf for leaf in select_frontier(tree, row, four, deepest_first=False, min_value=0.0)[0].tolist() if leaf != NO_LEAF] == [3]


def test_groups_of_a_beam_keep_their_own_best():
    """Slots 0 and 2 are group 0, slots 1 and 3 group 1: each keeps its best, although 0.9 and 0.8 are both in group 0."""
    raw = [0.9, 0.1, 0.8, 0.2]
    waves, widths = select_beam(flat_tree(raw), np.array([0]), np.array([4]), widths=np.array([[1, 1]]))
    assert (waves.tolist(), widths.tolist()) == ([[1, 4]], [[1, 1]])
    waves, widths = select_beam(flat_tree(raw, ended=[3]), np.array([0]), np.array([4]), widths=np.array([[1, 1]]))
    assert ([leaf for leaf in waves[0].tolist() if leaf != NO_LEAF], widths.tolist()) == ([1], [[1, 0]])


def test_reserved_leaves_come_back_only_through_a_backup():
    """Landing alone keeps a leaf closed: it was expanded, and its children are opened by the backup."""
    tree = flat_tree([0.3, 0.9])
    reserve(tree, np.array([0]), np.array([2]))
    land(tree, np.array([0]), np.array([2]))
    assert select_descent(tree, np.array([0]), np.array([2]), rule=GREEDY).tolist() == [[1, NO_LEAF]]
    assert Tree.ROOT == 0


def tally(rule, *terminals, key_of: Callable[[str], str] = str):
    """Return the choice among (answer, score) or (answer, score, count) terminals, numbered from 1."""
    counted = AnswerTally(rule, key_of)
    for node, (answer, score, *count) in enumerate(terminals, start=1):
        counted.add(node, answer, score, count=count[0] if count else 1)
    return counted.choice()


def test_answer_rules_by_hand():
    """One good '8' against two middling '7's: best takes '8', the votes take '7' and its better supporter."""
    terminals = [("7", 0.4), ("8", 0.7), ("7", 0.5)]
    best, majority, vote = (tally(rule, *terminals) for rule in ("best", "majority", "weighted-vote"))
    assert (best.answer, best.node, best.votes) == ("8", 2, {"8": 0.7, "7": 0.5})
    assert (majority.answer, majority.node, majority.votes) == ("7", 3, {"7": 2.0, "8": 1.0})
    assert (vote.answer, vote.node) == ("7", 3)
    assert vote.votes == pytest.approx({"7": 0.9, "8": 0.7})
    assert list(vote.votes) == ["7", "8"]


def test_the_robust_path_by_hand():
    """Step 2 has more visits than step 1, so its answer wins over the better-scored one; equal visits go by value, then by order."""
    rule = AnswerTally("robust-path")
    rule.follow([1], [NAN])
    assert rule.leader() is None and rule.choice().votes == {}
    for node, answer, score, path in ((3, "7", 0.9, [1, 3]), (4, "8", 0.2, [2, 4]), (5, "9", 0.3, [2, 5])):
        rule.add(node, answer, score, path=path)
    rule.follow([5, 1, 3, 1, 1, 1], [0.5, 0.9, 0.3, 0.9, 0.2, 0.3])
    assert (rule.leader(), rule.choice().node, rule.choice().votes) == ("9", 5, {"9": 1.0, "7": 0.0, "8": 0.0})
    rule.follow([5, 3, 3, 1, 1, 1], [0.5, 0.9, 0.3, 0.9, 0.2, 0.3])
    assert rule.leader() == "7"
    rule.follow([5, 3, 3, 1, 1, 1], [0.5, NAN, 0.3, 0.9, NAN, NAN])
    assert rule.leader() == "8"


def test_answers_with_one_key_share_a_vote():
    """'07' and '7' outvote '8' together, and the better-scored of the two texts is the answer."""
    terminals = [("07", 0.4), ("8", 0.6), ("7", 0.5)]
    for rule, votes in (("majority", {"7": 2.0, "8": 1.0}), ("weighted-vote", {"7": 0.9, "8": 0.6}), ("best", {"8": 0.6, "7": 0.5})):
        choice = tally(rule, *terminals, key_of=lambda answer: answer.lstrip("0"))
        assert choice.votes == pytest.approx(votes) and choice.answer == next(iter(votes))
        assert choice.node == {"7": 3, "8": 2}[choice.answer]
    assert tally("majority", *terminals).votes == {"07": 1.0, "8": 1.0, "7": 1.0}


def test_the_robust_path_ends_at_the_text_of_its_own_end():
    """All texts with the key of the path's end weigh 1; the answer is written as at that end, although '7' scored better elsewhere."""
    rule = AnswerTally("robust-path", lambda answer: answer.lstrip("0"))
    for node, answer, score in ((1, "7", 0.9), (2, "07", 0.2), (3, "8", 0.3)):
        rule.add(node, answer, score, path=[node])
    rule.follow([4, 1, 2, 1], [0.5, 0.9, 0.2, 0.3])
    choice = rule.choice()
    assert (rule.leader(), choice.answer, choice.node, choice.votes) == ("07", "07", 2, {"07": 1.0, "8": 0.0})


def test_particle_weights_by_hand():
    """Odds of 0.8, 0.5, 0.2 are 4, 1, 1/4; the last counts twice: 4 / 5.5, 1 / 5.5, 0.5 / 5.5. At T = 0.5 they are squared."""
    values, copies = np.array([0.8, NAN, 0.2]), np.array([1, 1, 2])
    weights = particle_weights(values, copies, rule="odds", temperature=1.0)
    np.testing.assert_allclose(weights, [4 / 5.5, 1 / 5.5, 0.5 / 5.5])
    sharper = particle_weights(values, copies, rule="odds", temperature=0.5)
    np.testing.assert_allclose(sharper, np.array([16, 1, 0.125]) / 17.125)
    by_value = particle_weights(values, copies, rule="value", temperature=1 / 3)
    np.testing.assert_allclose(by_value, np.exp([2.4, 1.5, 0.6]) * copies / (np.exp([2.4, 1.5, 0.6]) * copies).sum())
    # Certain values stay finite, and among equals only the copies count.
    np.testing.assert_allclose(particle_weights(np.array([1.0, 0.0]), np.array([1, 1]), rule="odds", temperature=1.0), [1, 0], atol=1e-12)
    np.testing.assert_allclose(particle_weights(np.zeros(2), np.array([1, 3]), rule="odds", temperature=1.0), [0.25, 0.75])


def test_drawing_copies_by_hand():
    """Cumulative weights 0.5, 0.75, 1: a number draws the first that exceeds it; no number means no draw."""
    weights = np.array([0.5, 0.25, 0.25])
    assert draw_copies(weights, np.array([0.0, 0.49, 0.5, 0.74, 0.75, 0.999])).tolist() == [2, 2, 2]
    assert draw_copies(weights, np.array([])).tolist() == [0, 0, 0]
    assert draw_copies(np.array([0.3, 0.7 - 1e-9]), np.array([1 - 1e-12])).tolist() == [0, 1]


def test_drawing_copies_is_unbiased():
    """Over many draws each particle comes as often as its weight says, within five standard deviations."""
    weights, num_draws = np.array([0.1, 0.2, 0.7]), 20_000
    counts = draw_copies(weights, np.random.default_rng(5).random(num_draws))
    assert (np.abs(counts - num_draws * weights) < 5 * np.sqrt(num_draws * weights * (1 - weights))).all()


def test_a_critic_has_its_share_by_hand():
    """0.75 * 0.4 + 0.25 * 0.8 = 0.5; a silent critic changes nothing, a share of 1 is the critic alone."""
    assert with_critic(0.4, 0.8, 0.25) == pytest.approx(0.5)
    assert with_critic(0.6, NAN, 0.25) == 0.6
    assert with_critic(0.4, 0.8, 1.0) == 0.8
    assert with_critic(math.inf, 0.8, 0.5) == math.inf
    assert with_critic(math.inf, 0.8, 0.0) == math.inf


def test_answer_rules_break_ties_by_first_found():
    """Equal weights: the answer found first, and of its supporters the first."""
    for rule in ("best", "majority", "weighted-vote"):
        choice = tally(rule, ("b", 0.5), ("a", 0.5))
        assert (choice.answer, choice.node, list(choice.votes)) == ("b", 1, ["b", "a"])


def test_answer_rules_without_scores_and_without_terminals():
    """Without any score every rule is majority, repeated visits included; unscored terminals weigh nothing beside scored ones."""
    for rule in ("best", "weighted-vote"):
        assert tally(rule, ("a", None), ("b", None, 2)).votes == {"b": 2.0, "a": 1.0}
        assert tally(rule, ("a", None, 9), ("b", 0.1)).answer == "b"
        assert (tally(rule).answer, tally(rule).node, tally(rule).votes) == (None, None, {})
    with pytest.raises(ConfigError, match="median"):
        AnswerTally("median")


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("mtcs", {}, "did you mean 'mcts'"),
        ("mcts", {"num_childs": 2}, "did you mean 'num_children'"),
        ("mcts", {"name": "x"}, "unknown setting 'name'"),
        ("mcts", {"num_children": 0}, "num_children must be a whole number >= 1: got 0"),
        ("mcts", {"num_children": True}, "whole number"),
        ("mcts", {"wave": 2.0}, "whole number"),
        ("mcts", {"prior": "mean_logp"}, "did you mean 'mean-logp'"),
        ("mcts", {"prior": ["uniform"]}, "prior must be one of"),
        ("mcts", {"temperature": -1}, "temperature must be a number >= 0"),
        ("mcts", {"temperature": NAN}, "temperature"),
        ("mcts", {"discount": 0}, "discount must be a number in"),
        ("mcts", {"c": "1"}, "c must be a number"),
        ("beam", {"root_num_children": 0}, "root_num_children"),
        ("beam", {"groups": 3}, "groups must divide the wave of a beam"),
        ("mcts", {"selection": "gumbel"}, "needs evaluation 'leaf'"),
        ("beam", {"commit": 3}, "selection 'beam' does not take setting 'commit' -- it is taken by mcts, uct, gumbel"),
        ("majority", {"rollouts": 1}, "selection 'sample' does not take setting 'rollouts'"),
        ("mcts", {"rollouts": 2, "rollout_temperature": 0.0}, "are all equal: got 2"),
        ("mcts", {"stop_agreement": 11}, "at most stop_window: got 11 of 10"),
        ("mcts", {"rollouts": -1}, "rollouts must be a whole number >= 0"),
        ("mcts", {"stop_value": 2}, "stop_value must be a number in"),
        ("gumbel", {"rescale_values": 1}, "rescale_values must be true or false"),
        ("beam", {"share": 1}, "share must be true or false"),
        ("mcts", {"share": True}, "selection 'puct' does not take setting 'share' -- it is taken by beam, beam-lookahead"),
        ("gumbel", {"critic_mix": 0.5}, "selection 'gumbel' does not take setting 'critic_mix'"),
        (
            "mcts",
            {"stop_at_goal": True},
            "does not take setting 'stop_at_goal' -- it is taken by best-first, q-star, frontier, deepsearch, tot-dfs",
        ),
        ("mcts", {"terminals": "once"}, "terminals = 'once' needs evaluation 'leaf'"),
        ("gumbel", {"terminals": "once"}, "gumbel gives visits by its schedule"),
        ("gumbel", {"widen": "power"}, "gumbel compares the children of one expansion"),
        ("mcts", {"count": "descents", "wave": 2}, "count = 'descents' is one descent at a time: got wave 2"),
        ("mcts", {"widen": "gen"}, "widen must be one of once, power, stay with selection 'puct': got 'gen'"),
        ("best-first", {"widen": "gen"}, "set priority = 'probability'"),
        ("ab-mcts-a", {"widen": "once"}, "ab-mcts samples nodes again -- set widen = 'gen'"),
        ("ab-mcts-a", {"belief": "poisson"}, "belief must be one of its choices"),
        ("beam", {"widen": "power"}, "widen must be one of once with selection 'beam'"),
        ("mcts", {"widen_base": 3.0}, "setting 'widen_base' needs widen: got widen = once"),
        ("mcts", {"siblings": "distinct", "temperature": 0.0}, "need samples that can differ: got temperature 0"),
        ("frontier", {"stop_at_goal": True}, "stop_at_goal compares values: got priority 'probability'"),
        ("majority", {"reward": "gain"}, "selection 'sample' does not take setting 'reward'"),
        ("majority", {"branch_entropy": 0.5}, "does not take setting 'branch_entropy'"),
        ("majority", {"num_children": 2}, "does not take setting 'num_children' -- it is taken by mcts, .* and 28 others"),
        ("beam", {"terminals": "revisit"}, "does not take setting 'terminals'"),
        ("mcts", {"c_base": 3.0}, "selection 'puct' does not take setting 'c_base' -- it is taken by x1:paper, x1:code"),
        ("mcts", {"rollout_mix": 0.5}, "setting 'rollout_mix' needs rollouts: got rollouts = 0 -- set rollouts, too"),
        ("beam-lookahead", {"rollouts": 0, "rollout_steps": 2}, "setting 'rollout_steps' needs rollouts"),
        ("mcts", {"commit_by": "value"}, "needs commit: got commit = None"),
        ("mcts", {"stop_window": 4}, "needs stop_agreement"),
        ("mcts", {"root_noise_alpha": 0.1}, "needs root_noise"),
        ("x1:code", {"unvisited": "inf", "normalise": "siblings"}, "unvisited is not read with normalise = 'siblings': got 'inf'"),
        ("uct", {"unvisited": "inf", "unvisited_bonus": 1.0}, "unvisited_bonus needs"),
        ("mcts", {"prior": "ones", "prior_temperature": 2.0}, "prior_temperature needs a prior that varies"),
        ("mcts", {"selection": "bem"}, "selection must be one of its choices: got 'bem' -- did you mean 'beam'"),
        ("mcts", {"branch_entropy": -1}, "branch_entropy must be a number >= 0"),
        ("particle-filter", {"temperature": 0}, "temperature 0"),
        ("vas", {"resample_temperature": 0}, "resample_temperature must be a number > 0"),
    ],
)
def test_impossible_methods_are_refused_by_name(name, overrides, message):
    """One sentence: method, setting, rule, got, nearest name."""
    with pytest.raises(ConfigError, match=message):
        resolve_method(name, **overrides)


def test_presets_say_where_they_come_from():
    """Every preset names a source, and its settings are exactly what makes it from the defaults."""
    assert list(PRESETS) == list(METHODS)
    for name, preset in PRESETS.items():
        assert preset.source and build_method(name, preset.method.description, preset.method.settings()) == (preset.method, ())


def test_presets_are_consistent():
    """Every preset is filed under its name, describes itself and survives being resolved; the beam's root feeds all beams."""
    for name, method in METHODS.items():
        assert method == resolve_method(name) and method.name == name and method.description.endswith(".")
        assert isinstance(method, SearchMethod)
    assert resolve_method("beam", wave=3, num_children=5).root_samples == 15
    assert resolve_method("mcts", wave=3, num_children=5).root_samples == 5
    assert resolve_method("mcts", root_num_children=7).root_samples == 7
