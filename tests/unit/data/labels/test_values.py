"""Labels from trees: hand-worked trees, and a slow obvious twin on random ones."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from stepladder.data.datasets.problems import SeedSolution
from stepladder.data.labels.pair_rules import EvidencePairs
from stepladder.data.labels.solution_traces import trace_from_solution
from stepladder.data.labels.traces import select_traces
from stepladder.data.labels.value_rows import value_rows
from stepladder.data.labels.values import (
    ValueTarget,
    best_of_values,
    bootstrapped_values,
    discounted_values,
    distance_values,
    gather_evidence,
    node_values,
    progress_values,
    unit_values,
    valued_trees,
)
from stepladder.errors import DataFormatError
from stepladder.types import StopReason, TreeRecord
from tests.trees import HAND, PROVENANCE, path_to, random_tree, tree


def test_evidence_counts_leaves_at_and_below():
    """Each node's counts are those of the drawing."""
    evidence = gather_evidence(HAND)
    assert evidence.right == [2, 2, 0, 0, 2, 0, 0, 1, 1, 0]
    assert evidence.wrong == [3, 1, 2, 0, 0, 1, 1, 0, 0, 1]


def test_monte_carlo_value_is_the_share_of_right_leaves():
    """Two of three below node 1, none of two below node 2, unknown below node 3."""
    assert node_values(HAND, "monte-carlo") == [2 / 5, 2 / 3, 0.0, None, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    assert node_values(HAND, ValueTarget.TREE_VALUE) == HAND.values


def test_partial_credit_is_value_and_no_right_solution():
    """Three leaves worth 1, 0.5 and 0: the mean is their value, and only the first is right, whatever the target."""
    record = tree((-1, None, None), (0, 0.4, 1.0), (0, 0.5, 0.5), (0, 0.1, 0.0))
    evidence = gather_evidence(record)
    assert (evidence.right[0], evidence.wrong[0]) == (1, 2)
    assert node_values(record, "monte-carlo") == [0.5, 1.0, 0.5, 0.0]
    assert node_values(record, "hard-max") == [1.0, 1.0, 0.0, 0.0]
    assert distance_values(record)[2:] == [0.0, 0.0]
    assert [trace.completion for trace in select_traces([record]).rows] == ["s1\n"]


def test_value_rows_put_every_target_in_one_path():
    """The paths of the drawing, in the order of their leaves; what an earlier path has is context; no target, no path."""
    selection = value_rows([HAND])
    assert [(row.step_ids, row.targets) for row in selection.rows] == [
        ([[101], [105]], [2 / 3, 0.0]),
        ([[102], [106]], [0.0, 0.0]),
        ([[101], [104], [107]], [None, 1.0, 1.0]),
        ([[101], [104], [108]], [None, None, 1.0]),
        ([[102], [109]], [None, 0.0]),
    ]
    assert (selection.considered, selection.kept, selection.dropped_by_reason) == (6, 5, {"no target": 1})
    first = selection.rows[0]
    assert (first.prompt_ids, first.prompt, first.steps, first.provenance) == ([1], "Q?", ["s1\n", "s5\n"], PROVENANCE)


def test_tree_value_rows_can_ask_for_evidence():
    """Node 3 has a value of its own, and loses it when a graded leaf is required."""
    first = value_rows([HAND], target="tree-value").rows[0]
    assert (first.step_ids, first.targets) == ([[103]], [0.5])
    with_evidence = value_rows([HAND], target="tree-value", require_evidence=True)
    assert [row.targets for row in with_evidence.rows] == [[0.6, 0.1], [0.2, 0.0], [None, 0.9, 1.0], [None, None, 0.8], [None, 0.3]]
    assert with_evidence.dropped_by_reason == {"no target": 1}


def test_path_is_cut_behind_its_last_target():
    """An unfinished tail carries nothing to learn, so it is not forwarded."""
    record = tree((-1, None, None), (0, 0.4, None), (1, None, None))
    (row,) = value_rows([record], target="tree-value").rows
    assert (row.step_ids, row.targets) == ([[101]], [0.4])


def test_failed_steps_are_evidence_but_no_row():
    """A step without tokens counts as wrong for its parent and is never trained on."""
    record = tree((-1, None, None), (0, 0.5, None), (1, 1.0, 1.0), (1, 0.0, 0.0), (0, 0.0, 0.0), tokens={3: [], 4: []})
    selection = value_rows([record])
    assert [(row.step_ids, row.targets) for row in selection.rows] == [([[101], [102]], [0.5, 1.0])]
    assert (selection.considered, selection.dropped_by_reason) == (3, {"failed step": 2})
    assert EvidencePairs().select([record]).dropped_by_reason == {"failed step": 2}


def test_one_sided_problems_can_be_left_out():
    """A problem is one-sided over all of its trees, not tree by tree."""
    right = tree((-1, 1.0, None), (0, 1.0, 1.0))
    wrong = tree((-1, 0.0, None), (0, 0.0, 0.0))
    other = replace(right, problem_id="other")
    selection = value_rows([right, other, wrong], drop_one_sided=True)
    assert [row.problem_id for row in selection.rows] == ["p", "p"]
    assert (selection.considered, selection.dropped_by_reason) == (3, {"one-sided problem": 1})


def test_root_alone_gives_nothing():
    """A tree that was never expanded, and no tree at all, give empty selections that add up."""
    root = tree((-1, None, None))
    assert (value_rows([root]).considered, value_rows([root]).dropped_by_reason) == (1, {"no target": 1})
    for make in (EvidencePairs().select, select_traces):
        assert (make([root]).rows, make([root]).considered, make([]).dropped_by_reason) == ([], 0, {})


def test_preference_pairs_of_the_drawing():
    """At the root 1 beats 2 by 0.4, below 1 node 4 beats 5 by 0.8; 7 and 8 are both right and 6 and 9 both wrong, so they are no pairs."""
    selection = EvidencePairs().select([HAND])
    assert [(pair.chosen_ids, pair.rejected_ids, pair.depth) for pair in selection.rows] == [([101], [102], 1), ([104], [105], 2)]
    below = selection.rows[1]
    assert (below.prompt_ids, below.prompt, below.chosen, below.rejected) == ([1, 101], "Q?\ns1\n", "s4\n", "s5\n")
    assert (below.chosen_value, below.rejected_value, below.provenance) == (0.9, 0.1, PROVENANCE)
    assert (selection.considered, selection.dropped_by_reason) == (2, {})


def test_margin_is_inclusive_and_free_of_rounding():
    """0.7 - 0.5 is below 0.2 in floating point and still a margin of 0.2; no margin is none even when the minimum is 0."""
    record = tree((-1, None, None), (0, 0.7, 1.0), (0, 0.5, 0.0), (0, 0.7, 0.0))
    assert 0.7 - 0.5 < 0.2
    assert [pair.rejected_ids for pair in EvidencePairs(min_margin=0.2).select([record]).rows] == [[102]]
    selection = EvidencePairs(min_margin=0.0).select([record])
    assert [pair.rejected_ids for pair in selection.rows] == [[102]]
    assert selection.dropped_by_reason == {"below margin": 1}
    assert EvidencePairs(min_margin=0.21).select([record]).dropped_by_reason == {"below margin": 2}


def test_rejected_step_may_have_right_leaves_only_on_request():
    """With mixed evidence on both sides a pair needs the option, and a step is never paired with itself."""
    record = tree((-1, None, None), (0, 0.8, None), (0, 0.3, None), (1, 1.0, 1.0), (1, 0.5, 0.0), (2, 1.0, 1.0), (2, 0.0, 0.0))
    strict = EvidencePairs(min_margin=0.4).select([record])
    assert [pair.depth for pair in strict.rows] == [2, 2]
    loose = EvidencePairs(min_margin=0.4, rejected_must_fail=False).select([record])
    assert [(pair.chosen_ids, pair.rejected_ids) for pair in loose.rows] == [([101], [102]), ([103], [104]), ([105], [106])]
    # At the root 1 over 2 and 2 over 1 are candidates, and the second has a negative margin.
    assert (loose.considered, loose.dropped_by_reason) == (4, {"below margin": 1})


def test_best_and_worst_and_the_caps_keep_the_largest_margins():
    """Three right and three wrong siblings: of nine candidates four are best against worst, of which the caps keep the widest."""
    record = tree((-1, None, None), (0, 0.9, 1.0), (0, 0.8, 1.0), (0, 0.7, 1.0), (0, 0.1, 0.0), (0, 0.3, 0.0), (0, 0.2, 0.0))
    everything = EvidencePairs(pairs_per_node=9, pairs_per_problem=9).select([record])
    assert [(pair.chosen_ids[0], pair.rejected_ids[0]) for pair in everything.rows] == [(101, 104), (101, 106), (102, 104), (102, 106)]
    assert (everything.considered, everything.dropped_by_reason) == (9, {"not among best and worst": 5})
    two = EvidencePairs(pairs_per_node=2).select([record])
    # 0.9 - 0.2 and 0.8 - 0.1 tie, although they differ as floats: the earlier node wins.
    assert 0.9 - 0.2 < 0.8 - 0.1
    assert [(pair.chosen_ids[0], pair.rejected_ids[0]) for pair in two.rows] == [(101, 104), (101, 106)]
    assert two.dropped_by_reason == {"not among best and worst": 5, "over node cap": 2}
    one = EvidencePairs(pairs_per_problem=1).select([record, record])
    assert (one.kept, one.dropped_by_reason["over problem cap"]) == (1, 3)
    assert EvidencePairs(best_and_worst=1).select([record]).kept == 1


def test_pairs_need_values_and_different_tokens():
    """Unvisited steps have no value, and equal steps are no preference."""
    record = tree((-1, None, None), (0, 0.9, 1.0), (0, None, 0.0), (0, 0.1, 0.0), tokens={3: [101]})
    selection = EvidencePairs().select([record])
    assert (selection.considered, selection.dropped_by_reason) == (2, {"no value": 1, "same tokens": 1})
    assert [pair.rejected_ids for pair in EvidencePairs().select(valued_trees([record], "monte-carlo")).rows] == [[102]]


def test_traces_are_ranked_by_mean_then_smallest_value():
    """Means .5, .5 and .4; of the equal means the one without a weak step comes first under a cap of one."""
    record = tree((-1, None, None), (0, 0.1, None), (1, 0.9, 1.0), (0, 0.4, None), (3, 0.6, 1.0), (0, 0.4, 1.0), (0, 1.0, 0.0))
    selection = select_traces([record], per_problem=1)
    (best,) = selection.rows
    assert (best.completion_ids, best.completion, best.mean_value) == ([103, 104], "s3\ns4\n", 0.5)
    assert (best.prompt_ids, best.prompt) == ([1], "Q?")
    assert (selection.considered, selection.dropped_by_reason) == (3, {"over problem cap": 2})
    assert [trace.completion_ids for trace in select_traces([record], per_problem=2).rows] == [[101, 102], [103, 104]]


def test_traces_are_distinct_within_a_problem():
    """The same tokens from two trees, or split into other steps, are one trace: the better ranked one."""
    first = tree((-1, None, None), (0, 0.3, 1.0), tokens={1: [5, 6]})
    second = tree((-1, None, None), (0, 0.8, None), (1, 0.8, 1.0), tokens={1: [5], 2: [6]})
    selection = select_traces([first, second, replace(first, problem_id="other")])
    assert [(trace.problem_id, trace.mean_value) for trace in selection.rows] == [("p", 0.8), ("other", 0.3)]
    assert selection.dropped_by_reason == {"same tokens": 1}


def test_trace_leaves_unknown_values_out():
    """The mean is over the known values, and a path without any is dropped."""
    record = tree((-1, None, None), (0, None, None), (1, 0.6, 1.0), (0, None, 1.0))
    selection = select_traces([record])
    assert [trace.mean_value for trace in selection.rows] == [0.6]
    assert selection.dropped_by_reason == {"no value": 1}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (replace(HAND, outcomes=[1.5, *HAND.outcomes[1:]]), r"outcome of node 0 must be in \[0, 1\] or none: got 1.5"),
        (replace(HAND, parents=[-1, 0, 0, 0, 8, 1, 2, 4, 4, 2]), r"parent of node 4 must be in \[0, 4\): got 8"),
        (replace(HAND, values=[float("nan"), *HAND.values[1:]]), "values of node 0 must be a finite number: got nan"),
    ],
)
def test_impossible_trees_are_refused(record, message):
    """A tree that breaks its own rules names the problem and the node."""
    with pytest.raises(DataFormatError, match=message):
        EvidencePairs().select([record])


class TwoStepRenderer:
    """Steps end at a line break; ids are code points."""

    def prompt_ids(self, problem):
        return tuple(map(ord, problem.question))

    def encode_solution(self, text, *, place):
        return [*self.encode_steps(text, place=place), (0,)]

    def encode_steps(self, text, *, place):
        return [tuple(map(ord, line)) for line in text.splitlines(keepends=True)]


def test_written_solution_becomes_a_trace():
    """The renderer writes prompt and steps, and the ids are those of the steps in a row."""
    solution = SeedSolution(id="s", question="Q", solution="a\nb")
    trace = trace_from_solution(solution, renderer=TwoStepRenderer(), provenance=PROVENANCE)
    assert (trace.prompt_ids, trace.completion_ids, trace.mean_value) == ([ord("Q")], [*map(ord, "a\nb"), 0], 1.0)
    assert (trace.problem_id, trace.prompt, trace.completion) == ("s", "Q", "a\nb")
    cut = replace(solution, finished=False)
    assert trace_from_solution(cut, renderer=TwoStepRenderer(), provenance=PROVENANCE).completion_ids == list(map(ord, "a\nb"))
    with pytest.raises(DataFormatError, match="solution 's': must hold at least one step"):
        trace_from_solution(replace(cut, solution=""), renderer=TwoStepRenderer(), provenance=PROVENANCE)


def leaves_below(record: TreeRecord, node: int) -> list[float]:
    """The outcomes at and below a node, by recursion."""
    own = [record.outcomes[node]] if record.outcomes[node] is not None else []
    return own + [outcome for child, parent in enumerate(record.parents) if parent == node for outcome in leaves_below(record, child)]


@pytest.mark.parametrize("seed", range(40))
def test_values_agree_with_the_recursive_twin(seed):
    """Counting bottom-up equals collecting the leaves below each node one by one."""
    record = random_tree(seed)
    below = [leaves_below(record, node) for node in range(len(record.parents))]
    assert node_values(record, "monte-carlo") == [sum(outcomes) / len(outcomes) if outcomes else None for outcomes in below]


def test_distance_values_rise_to_a_right_leaf_and_fall_with_wrong_steps():
    """By hand on one tree.

    Root - 1 - 2 - 3 (right) rises by thirds. From node 1 (1/3, two steps to go) the wrong child 4 loses a third of what is missing, and its
    wrong child 5 again. Node 6 lies on a way of two steps, so it is half of it; node 8 has no graded leaf.
    """
    record = tree(
        (-1, None, None),
        (0, None, None),
        (1, None, None),
        (2, None, 1.0),
        (1, None, None),
        (4, None, 0.0),
        (0, None, None),
        (6, None, 1.0),
        (0, None, None),
        (0, None, 0.0),
    )
    fourth = 1 / 3 - (2 / 3) / 3
    fifth = max(0.0, fourth - (1 - fourth) / 3)
    expected = [0.0, 1 / 3, 2 / 3, 1.0, fourth, fifth, 0.5, 1.0, None, 0.0]
    assert distance_values(record) == [None if value is None else pytest.approx(value) for value in expected]
    assert node_values(record, "distance") == distance_values(record)
    assert distance_values(tree((-1, None, None), (0, None, 0.0))) == [None, None]


def test_discounted_values_count_the_steps_to_a_right_leaf():
    """By hand: the shorter of two ways counts, wrong leaves alone are worth 0, also in a tree without a right one."""
    record = tree(
        (-1, None, None),
        (0, None, None),
        (1, None, None),
        (2, None, 1.0),
        (1, None, None),
        (4, None, 0.0),
        (0, None, 1.0),
        (0, None, None),
    )
    expected = [0.5, 0.25, 0.5, 1.0, 0.0, 0.0, 1.0, None]
    assert discounted_values(record, discount=0.5) == expected
    assert node_values(record, "discounted") == discounted_values(record, discount=0.85)
    assert discounted_values(tree((-1, None, None), (0, None, 0.0))) == [0.0, 0.0]


def test_bootstrapped_values_take_the_best_step_that_follows_where_nothing_right_is_below():
    """By hand, with a discount of one half: outcomes first, then the larger of score and value of the best child."""
    parents = (-1, 0, 1, 0, 3, 4, 3, 0, 7, 0)
    #          root, 1-2 the right way, 3-6 an unfinished part, 7-8 a wrong end, 9 a step that nothing follows
    scores = (None, 0.1, 0.2, 0.3, 0.4, 0.9, 0.6, 0.7, 0.8, 0.5)
    outcomes = {2: 1.0, 5: 0.0, 8: 0.0}
    reasons = {2: StopReason.END, 5: StopReason.DEPTH, 8: StopReason.END}
    record = replace(
        tree(*((parent, None, outcomes.get(node)) for node, parent in enumerate(parents))),
        scores=list(scores),
        stop_reasons=[reasons.get(node, StopReason.STEP) for node in range(len(parents))],
    )
    # 4: half of the score of 5. 3: half of the larger of 4's (0.45 or 0.4) and 6's score. 7: its only end is wrong. Root: 1 step before 1.
    assert bootstrapped_values(record, discount=0.5) == [0.25, 0.5, 1.0, 0.3, 0.45, None, None, 0.0, 0.0, None]
    assert node_values(record, "bootstrapped") == bootstrapped_values(record, discount=0.85)
    unsolved = replace(record, outcomes=[None if outcome == 1.0 else outcome for outcome in record.outcomes])
    # 2 has a score alone, so 1 is worth 0.1, as its score says; the root takes the best of 0.1, 0.3, 7's 0.7 and 9's 0.5.
    assert bootstrapped_values(unsolved, discount=0.5)[:3] == [0.35, 0.1, None]
    # Scores of -0.5 to 1.5 are mapped to 0 to 1: 4 is worth half of 1.0, and 3 half of the 0.625 that 6's score becomes.
    wide = replace(record, scores=[None, *[-0.5] * 4, 1.5, 0.75, -0.5, -0.5, -0.5])
    assert bootstrapped_values(wide, discount=0.5)[3:5] == [0.3125, 0.5]
    unscored = replace(record, scores=[None] * len(parents))
    assert bootstrapped_values(unscored, discount=0.5) == discounted_values(unscored, discount=0.5)


@pytest.mark.parametrize("seed", range(5))
def test_distance_values_equal_the_form_counted_from_one(seed):
    """A slow twin as the released code has it: m from 1, wrong nodes take their nearest ancestor's m, values from the root down."""
    rng = random.Random(seed)
    nodes = [(-1, None, None)]
    for node in range(1, 30):
        nodes.append((rng.randrange(node), None, None))
    inner = {parent for parent, _, _ in nodes}
    nodes = [(p, v, None if i in inner else float(rng.random() < 0.4)) for i, (p, v, _) in enumerate(nodes)]
    record = tree(*nodes)

    def steps(node):
        children = [child for child in range(1, 30) if record.parents[child] == node]
        own = [1] if record.outcomes[node] == 1.0 else []
        return min(own + [m + 1 for m in map(steps, children) if m], default=0)

    def value(node):
        if node == 0:
            return 0.0
        m, above, ancestor = steps(node), value(record.parents[node]), node
        sign = 1 if m else -1
        while not m:
            ancestor = record.parents[ancestor]
            m = steps(ancestor)
        return max(0.0, above + (1 - above) * sign / m)

    assert distance_values(record) == [pytest.approx(value(node)) for node in range(30)]


def test_hard_max_asks_for_one_right_leaf():
    """One of three right leaves is enough, none of them is 0, and no graded leaf is no target."""
    record = tree((-1, None, None), (0, None, None), (1, None, 1.0), (1, None, 0.0), (0, None, 0.0), (0, None, None))
    assert node_values(record, "hard-max") == [1.0, 1.0, 1.0, 0.0, 0.0, None]


def test_values_outside_the_range_are_mapped_by_the_ends_of_their_tree():
    """-0.5 to 1.5 has length 2; if only one end leaves [0, 1], the other stays; None stays; values in [0, 1] are untouched."""
    assert unit_values([0.5, -0.5, 1.5, None, 0.0]) == [0.5, 0.0, 1.0, None, 0.25]
    assert unit_values([0.0, 4.0, 1.0]) == [0.0, 1.0, 0.25]
    assert unit_values([-3.0, 0.0]) == [0.0, 0.75]
    assert unit_values([0.1, 0.30000000000000004, None]) == [0.1, 0.30000000000000004, None]
    assert unit_values([]) == []
    gains = tree((-1, 0.0, None), (0, 1.4, 1.0), (0, -0.6, 0.0))
    assert node_values(gains, "tree-value") == [pytest.approx(0.3), 1.0, 0.0]
    (pair,) = EvidencePairs(min_margin=1.0).select([gains]).rows
    assert (pair.chosen_value, pair.rejected_value) == (1.0, 0.0)


def test_labels_choose_their_value():
    """The scores, the shares of right leaves or the backed-up values; a graded leaf that none of them reaches is worth its outcome."""
    record = replace(
        tree((-1, 0.4, None), (0, 0.6, None), (1, None, 1.0), (1, 0.2, 0.0), (0, None, None)), scores=[None, 0.7, 0.9, None, 0.3]
    )
    assert valued_trees([record], "tree-value")[0].values == [0.4, 0.6, 1.0, 0.2, None]
    assert valued_trees([record], "q")[0].values == valued_trees([record], "tree-value")[0].values
    rewarded = replace(record, qvalues=[0.0, 0.9, None, 0.4, None])
    assert valued_trees([rewarded], "q")[0].values == [0.0, 0.9, 1.0, 0.4, None]
    assert valued_trees([record], "score")[0].values == [None, 0.7, 0.9, 0.0, 0.3]
    assert valued_trees([record], "monte-carlo")[0].values == [0.5, 0.5, 1.0, 0.0, None]
    assert [trace.mean_value for trace in select_traces(valued_trees([record], "score")).rows] == [pytest.approx(0.8)]


def test_progress_adds_the_provers_advantage():
    """0.4 + 0.5 * (0.9 - 0.5) = 0.6; a large advantage is clipped; the root and what is not known have none."""
    assert progress_values([0.5, 0.4, 0.9, None], [0.5, 0.9, 0.1, 0.3], [-1, 0, 1, 1], alpha=0.5) == [None, pytest.approx(0.6), 0.5, None]
    assert progress_values([0.5, 0.9], [0.0, 1.0], [-1, 0]) == [None, 1.0]


def test_progress_of_a_tree_is_that_under_the_best_of_four_attempts():
    """Shares 1/2 at the root, 2/3 and 0 below: 2/3 + (1 - (1/3)^4) - (1 - (1/2)^4) is above 1, 0 + 0 - 15/16 below 0; leaves likewise."""
    record = tree((-1, None, None), (0, None, None), (0, None, 0.0), (1, None, 1.0), (1, None, 1.0), (1, None, 0.0))
    best = [15 / 16, 80 / 81, 0.0, 1.0, 1.0, 0.0]
    assert best_of_values([1 / 2, 2 / 3, 0.0, 1.0, 1.0, None]) == [pytest.approx(each) for each in best[:5]] + [None]
    values = node_values(record, "progress")
    assert values[0] is None
    assert values[1:] == [pytest.approx(2 / 3 + 80 / 81 - 15 / 16), 0.0, 1.0, 1.0, 0.0]


def test_outcomes_are_targets_of_graded_leaves_alone():
    """One target at the end of every graded solution, none on the way; what was never graded gives no row."""
    selection = value_rows([HAND], target="outcome")
    assert [(row.step_ids[-1], row.targets) for row in selection.rows] == [
        ([105], [None, 0.0]),
        ([106], [None, 0.0]),
        ([107], [None, None, 1.0]),
        ([108], [None, None, 1.0]),
        ([109], [None, 0.0]),
    ]
    assert selection.dropped_by_reason == {"no target": 1}


def test_targets_may_be_given():
    """Estimates from elsewhere take the place of a definition, node by node."""
    record = tree((-1, None, None), (0, 0.3, None), (1, 0.4, None))
    assert [row.targets for row in value_rows([record], given=[[0.1, 0.75, None]]).rows] == [[0.75]]


@pytest.mark.parametrize("target", list(ValueTarget))
@pytest.mark.parametrize("seed", range(20))
def test_value_rows_hold_every_target_once(seed, target):
    """Read back from the rows, the targets are exactly the values of the nodes that have tokens, each once, on its own path."""
    record = random_tree(seed)
    # Ids that name the node let the rows be read back.
    record = replace(record, token_ids=[[1000 + node] if ids or not node else [] for node, ids in enumerate(record.token_ids)])
    selection = value_rows([record], target=target)
    found: Counter[tuple[int, float]] = Counter()
    for row in selection.rows:
        nodes = [ids[0] - 1000 for ids in row.step_ids]
        assert nodes == path_to(record, nodes[-1])
        assert row.targets[-1] is not None
        found.update((node, value) for node, value in zip(nodes, row.targets, strict=True) if value is not None)
    values = node_values(record, target)
    expected = {(node, value) for node, value in enumerate(values) if node and value is not None and record.token_ids[node]}
    assert found == Counter(expected)
    assert selection.considered == selection.kept + sum(selection.dropped_by_reason.values())
    assert selection.considered == len(record.parents) - len(set(record.parents) - {-1})


@pytest.mark.parametrize("must_fail", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_preference_pairs_agree_with_the_exhaustive_twin(seed, must_fail):
    """Without caps, the pairs are those that fulfil the definition when every two nodes are tried."""
    record = random_tree(seed)
    selection = EvidencePairs(
        min_margin=0.25, pairs_per_node=10**6, pairs_per_problem=10**6, best_and_worst=10**6, rejected_must_fail=must_fail
    ).select([record])
    expected = Counter()
    for first in range(1, len(record.parents)):
        for second in range(1, len(record.parents)):
            better, worse = leaves_below(record, first), leaves_below(record, second)
            evidence = 1.0 in better and 0.0 in worse and not (must_fail and 1.0 in worse)
            known = record.values[first] is not None and record.values[second] is not None
            if first == second or record.parents[first] != record.parents[second] or not evidence or not known:
                continue
            steps = record.token_ids[first], record.token_ids[second]
            if all(steps) and steps[0] != steps[1] and record.values[first] - record.values[second] >= 0.25:
                prefix = tuple(token for node in path_to(record, record.parents[first]) for token in record.token_ids[node])
                expected[(1, *prefix), tuple(steps[0]), tuple(steps[1]), record.values[first], record.values[second]] += 1
    found = Counter(
        (tuple(pair.prompt_ids), tuple(pair.chosen_ids), tuple(pair.rejected_ids), pair.chosen_value, pair.rejected_value)
        for pair in selection.rows
    )
    assert found == expected
    assert selection.considered == selection.kept + sum(selection.dropped_by_reason.values())


@pytest.mark.parametrize("seed", range(20))
def test_caps_keep_the_widest_margins_and_add_up(seed):
    """Under a cap, no dropped pair of a problem is wider than a kept one; counts add up; the order follows the trees."""
    records = [random_tree(100 * seed + i) for i in range(6)]
    wide = EvidencePairs(min_margin=0.1, pairs_per_problem=10**6).select(records)
    capped = EvidencePairs(min_margin=0.1, pairs_per_problem=3).select(records)
    for problem_id in {record.problem_id for record in records}:
        margins = sorted((p.chosen_value - p.rejected_value for p in wide.rows if p.problem_id == problem_id), reverse=True)
        kept = sorted((p.chosen_value - p.rejected_value for p in capped.rows if p.problem_id == problem_id), reverse=True)
        assert kept == margins[:3]
    remaining = iter(wide.rows)
    assert all(pair in remaining for pair in capped.rows), "the kept pairs stand in the order of the trees"
    assert capped.considered == wide.considered == capped.kept + sum(capped.dropped_by_reason.values())


@pytest.mark.parametrize("seed", range(20))
def test_traces_agree_with_the_sorting_twin(seed):
    """The kept traces of a problem are the first ones of all its right leaves when these are sorted by the definition."""
    records = [random_tree(100 * seed + i) for i in range(6)]
    selection = select_traces(records, per_problem=2)
    for problem_id in {record.problem_id for record in records}:
        ranked = []
        for record in (record for record in records if record.problem_id == problem_id):
            for leaf in range(len(record.parents)):
                values = [record.values[node] for node in path_to(record, leaf) if record.values[node] is not None]
                if record.outcomes[leaf] == 1.0 and values:
                    tokens = tuple(token for node in path_to(record, leaf) for token in record.token_ids[node])
                    ranked.append((sum(values) / len(values), min(values), -len(ranked), tokens))
        best: list[tuple[int, ...]] = []
        for *_, tokens in sorted(ranked, reverse=True):
            if tokens not in best:
                best.append(tokens)
        assert {tuple(row.completion_ids) for row in selection.rows if row.problem_id == problem_id} == set(best[:2])
    assert selection.considered == selection.kept + sum(selection.dropped_by_reason.values())


def test_selection_does_not_depend_on_other_problems():
    """Trees of one problem give the same rows alone and among others."""
    records = [random_tree(seed) for seed in range(12)]
    for make in (value_rows, EvidencePairs().select, select_traces):
        together = make(records).rows
        for problem_id in {record.problem_id for record in records}:
            alone = make([record for record in records if record.problem_id == problem_id]).rows
            assert [row for row in together if row.problem_id == problem_id] == alone
