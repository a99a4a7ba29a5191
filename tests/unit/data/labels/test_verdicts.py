"""Verdicts on steps of graded trees, by hand."""

from stepladder.data.labels.verdicts import WrittenVerdict, verdict_traces
from tests.trees import tree


def write(question, steps, right):
    return WrittenVerdict((1, *(int(step[1:]) for step in steps)), (9 if right else 8,), "yes" if right else "no")


def test_a_step_is_right_if_a_leaf_below_is():
    """Root -> 1 -> (2 right, 3 wrong); root -> 4 -> 5 wrong; 6 ungraded. Right: 1, 2. Wrong: 3, 4, 5. The step 6 has no verdict."""
    graded = tree((-1, 0.5, None), (0, 0.5, None), (1, 1.0, 1.0), (1, 0.0, 0.0), (0, 0.0, None), (4, 0.0, 0.0), (4, None, None))
    found = verdict_traces([graded], write, per_side=4)
    assert {tuple(row.prompt_ids): row.completion for row in found.rows} == {
        (1, 1): "yes",
        (1, 1, 2): "yes",
        (1, 1, 3): "no",
        (1, 4): "no",
        (1, 4, 5): "no",
    }
    assert {row.completion: row.completion_ids for row in found.rows} == {"yes": [9], "no": [8]}
    assert (found.considered, found.dropped_by_reason) == (5, {})


def test_both_sides_are_as_long_at_most_and_one_sided_problems_teach_nothing():
    """One of two right and one of three wrong steps are kept per problem, the same ones every time; a problem without a right one, none."""
    mixed = tree((-1, 0.5, None), (0, 0.5, None), (1, 1.0, 1.0), (1, 0.0, 0.0), (0, 0.0, None), (4, 0.0, 0.0))
    wrong = tree((-1, 0.0, None), (0, 0.0, 0.0), (0, 0.0, 0.0), problem_id="q")
    failed = tree((-1, 0.5, None), (0, 1.0, 1.0), (0, 0.0, 0.0), problem_id="r", tokens={2: []})
    found = verdict_traces([mixed, wrong, failed], write, per_side=1)
    assert [row.completion for row in found.rows] == ["yes", "no"]
    assert found.dropped_by_reason == {"failed step": 1, "one-sided problem": 3, "over problem cap": 3}
    assert found.considered == 9
    assert verdict_traces([mixed, wrong, failed], write, per_side=1) == found
