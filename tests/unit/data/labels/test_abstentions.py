"""Abstentions by hand: their worth, and which traces teach them."""

import math
from dataclasses import replace

import pytest

from stepladder.data.labels.abstentions import abstaining_traces, abstention_worth, refusal_traces
from tests.trees import tree


def test_the_worth_of_an_abstention_rises_with_the_steps_before_it():
    """0 at the turning point; (1 - e^-2) / (1 + e^-2) one step after it with slope 2, and the negative one step before."""
    expected = (1 - math.exp(-2)) / (1 + math.exp(-2))
    assert abstention_worth(3, after=3.0, slope=2.0) == 0.0
    assert abstention_worth(4, after=3.0, slope=2.0) == pytest.approx(expected)
    assert abstention_worth(2, after=3.0, slope=2.0) == pytest.approx(-expected)


def unsolved(**fields):
    """Root -> 1 -> 2 wrong; 1 -> 3 -> 4 wrong; 5 wrong at once. The answers of 4 and 5 are abstentions."""
    record = tree((-1, 0.0, None), (0, 0.0, None), (1, 0.0, 0.0), (1, 0.0, None), (3, 0.0, 0.0), (0, 0.0, 0.0), **fields)
    return replace(record, answers=[None, None, "7", None, "?", "?"])


def test_wrong_answers_of_unsolved_problems_are_replaced():
    """The last step of every wrong solution gives way to the abstention; a solved problem teaches none."""
    solved = tree((-1, 0.5, None), (0, 1.0, 1.0), (0, 0.0, 0.0), problem_id="q")
    found = refusal_traces([unsolved(), solved], [9, 9], "?\n", per_problem=5)
    assert sorted(row.completion_ids for row in found.rows) == [[9, 9], [101, 9, 9], [101, 103, 9, 9]]
    assert sorted(row.completion for row in found.rows) == ["?\n", "s1\n?\n", "s1\ns3\n?\n"]
    assert (found.considered, found.dropped_by_reason) == (3, {})
    assert refusal_traces([unsolved()], [9], "?\n", per_problem=2).dropped_by_reason == {"over problem cap": 1}
    failed = refusal_traces([unsolved(tokens={2: []})], [9], "?\n", per_problem=5)
    assert (failed.kept, failed.dropped_by_reason) == (2, {"failed step": 1})


def test_own_abstentions_are_taught_after_enough_steps():
    """Abstentions after 2 steps and after none: a turning point of 1 keeps the first, 2 none, -1 both, those of most worth first."""
    found = abstaining_traces([unsolved()], "?", after=1.0, slope=1.0, per_problem=2)
    assert [row.completion_ids for row in found.rows] == [[101, 103, 104]]
    assert found.rows[0].mean_value == pytest.approx((math.tanh(0.5) + 1) / 2)
    assert (found.considered, found.dropped_by_reason) == (2, {"too early": 1})
    assert abstaining_traces([unsolved()], "?", after=2.0, slope=1.0, per_problem=2).rows == []
    early = abstaining_traces([unsolved()], "?", after=-1.0, slope=1.0, per_problem=1)
    assert [row.completion_ids for row in early.rows] == [[101, 103, 104]] and early.dropped_by_reason == {"over problem cap": 1}
    solved = tree((-1, 0.5, None), (0, 1.0, 1.0))
    assert abstaining_traces([unsolved(), solved], "?", after=-1.0, slope=1.0, per_problem=1).considered == 0
