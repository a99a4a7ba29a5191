"""Soft targets: a tree's distribution over the steps after a prefix, by hand."""

import math
from dataclasses import replace
from typing import get_args

import pytest

from stepladder.data.labels.soft_targets import (
    ImprovedPolicyTargets,
    NoSoftTargets,
    SoftTargetRule,
    VisitTargets,
    improved_policy,
    visit_shares,
)
from stepladder.errors import ConfigError
from tests.trees import HAND, random_tree, tree


def weights(rule: SoftTargetRule, *records) -> dict[tuple[int, ...], dict[int, float]]:
    """Return the weights of steps by their first token, by the tokens of the prompt."""
    found: dict[tuple[int, ...], dict[int, float]] = {}
    for row in rule.select(records).rows:
        found.setdefault(tuple(row.prompt_ids), {})[row.completion_ids[0]] = pytest.approx(row.weight)
    return found


def test_visits_become_shares_after_every_prefix_with_a_right_end() -> None:
    """Root: 6, 3, 1 of 10; node 1: 4, 1 of 5; node 4: 2, 2; nothing right was found below node 2."""
    record = replace(HAND, visits=[11, 6, 3, 1, 4, 1, 1, 2, 2, 2])
    assert weights(VisitTargets(), record) == {
        (1,): {101: 0.6, 102: 0.3, 103: 0.1},
        (1, 101): {104: 0.8, 105: 0.2},
        (1, 101, 104): {107: 0.5, 108: 0.5},
    }
    selection = VisitTargets(least_visits=5).select([record])
    assert {tuple(row.prompt_ids) for row in selection.rows} == {(1,), (1, 101)}
    assert selection.dropped_by_reason == {"no right end": 2, "few visits": 2}
    (first, *_) = selection.rows
    assert (first.prompt, first.completion) == ("Q?\n", "s1\n")


def test_nodes_with_more_visits_go_first() -> None:
    """One node a problem: the root, and two of the three continuations of two nodes are over the cap."""
    record = replace(HAND, visits=[11, 6, 3, 1, 4, 1, 1, 2, 2, 2])
    selection = VisitTargets(nodes_per_problem=1).select([record])
    assert {tuple(row.prompt_ids) for row in selection.rows} == {(1,)}
    assert selection.dropped_by_reason == {"no right end": 2, "over problem cap": 4}


def test_steps_without_tokens_visits_or_siblings_are_no_targets() -> None:
    """A failed sibling leaves one continuation; an unvisited one has no weight."""
    record = tree((-1, None, None), (0, 0.5, 1.0), (0, None, None), (0, 0.0, 0.0), tokens={3: []})
    one = replace(record, visits=[9, 8, 0, 1])
    assert weights(VisitTargets(), one) == {(1,): {101: 1.0}}
    assert VisitTargets().select([one]).dropped_by_reason == {"failed step": 1, "no weight": 1}
    alone = tree((-1, None, None), (0, 0.5, 1.0), (0, 0.0, 0.0), tokens={2: []})
    assert VisitTargets().select([alone]).dropped_by_reason == {"failed step": 1, "one continuation": 1}


def test_the_improved_policy_by_hand() -> None:
    """Values 1, 0 and .5 of range 1, scale 2: weights .5 e^2, .25 and .25 e; equal values leave the priors."""
    total = 0.5 * math.e**2 + 0.25 + 0.25 * math.e
    expected = [0.5 * math.e**2 / total, 0.25 / total, 0.25 * math.e / total]
    assert improved_policy([0.5, 0.25, 0.25], [0.9, 0.1, 0.5], scale=2.0) == [pytest.approx(each) for each in expected]
    assert improved_policy([0.5, 0.3], [0.4, 0.4], scale=9.0) == [pytest.approx(0.625), pytest.approx(0.375)]
    assert improved_policy([1.0, 0.0], [0.0, 1.0], scale=5.0) == [1.0, 0.0]
    assert visit_shares([3, 1]) == [0.75, 0.25]


def test_the_improved_policy_of_a_tree_completes_unknown_values() -> None:
    """Priors .5, .25, .25; values .8, .2 and the node's own .5: rescaled 1, 0, .5, times (4 + 6) * .2 = 2."""
    record = replace(
        tree((-1, 0.5, None), (0, 0.8, 1.0), (0, 0.2, 0.0), (0, None, None)), visits=[11, 6, 4, 0], priors=[1.0, 0.5, 0.25, 0.25]
    )
    total = 0.5 * math.e**2 + 0.25 + 0.25 * math.e
    found = weights(ImprovedPolicyTargets(value_scale=0.2, visit_offset=4.0), record)
    assert found == {(1,): {101: 0.5 * math.e**2 / total, 102: 0.25 / total, 103: 0.25 * math.e / total}}


@pytest.mark.parametrize("rule", get_args(SoftTargetRule))
@pytest.mark.parametrize("seed", range(20))
def test_weights_sum_to_one_after_every_prefix(rule: type[SoftTargetRule], seed: int) -> None:
    """On random trees; and what is considered is kept or dropped."""
    selection = rule().select([random_tree(seed), random_tree(seed + 100)])
    sums: dict[tuple, float] = {}
    for row in selection.rows:
        key = (row.problem_id, tuple(row.prompt_ids))
        sums[key] = sums.get(key, 0.0) + row.weight
        assert 0.0 < row.weight <= 1.0
    assert selection.considered == selection.kept + sum(selection.dropped_by_reason.values())
    assert all(abs(total - round(total)) < 1e-9 for total in sums.values())


def test_impossible_settings_and_none() -> None:
    """Nothing is made without a rule; bounds name the setting."""
    assert NoSoftTargets().select([HAND]).rows == []
    with pytest.raises(ConfigError, match=r"labels\.soft_targets: least_visits must be a whole number >= 1: got 0"):
        VisitTargets(least_visits=0)
