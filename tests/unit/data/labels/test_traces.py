"""Orders in which right solutions become traces, and solved examples that are replayed."""

from collections import Counter
from dataclasses import replace

import pytest

from stepladder.data.labels.traces import TraceOrder, select_traces
from stepladder.types import TreeRecord
from tests.trees import PROVENANCE, tree


def three_ways() -> TreeRecord:
    """Right solutions of two steps (value .5, score .6), one step (.4, unscored) and three steps (.9, .55), and a wrong one."""
    record = tree(
        (-1, None, None),
        (0, 0.5, None),
        (1, 0.5, 1.0),
        (0, 0.4, 1.0),
        (0, 0.9, None),
        (4, 0.9, None),
        (5, 0.9, 1.0),
        (0, 1.0, 0.0),
    )
    return replace(record, scores=[None, 0.4, 0.8, None, 0.5, 0.6, None, 1.0])


@pytest.mark.parametrize(
    ("by", "order"),
    [
        ("value", [[104, 105, 106], [101, 102], [103]]),
        ("score", [[101, 102], [104, 105, 106], [103]]),
        ("shortest", [[103], [101, 102], [104, 105, 106]]),
    ],
)
def test_traces_come_in_the_chosen_order(by: str, order: list[list[int]]) -> None:
    """Means of values .9, .5, .4; means of scores .6 over .55 over none; one, two, three steps."""
    kept = [[row.completion_ids for row in select_traces([three_ways()], per_problem=cap, by=by).rows] for cap in (1, 2, 3)]
    assert kept[0] == order[:1]
    assert sorted(kept[1]) == sorted(order[:2])
    assert sorted(kept[2]) == sorted(order)


def test_equal_scores_go_by_the_smallest_and_then_by_value() -> None:
    """Means of .5: the solution without the weak step first; all scores equal: the better value first."""
    record = replace(
        tree((-1, None, None), (0, 0.9, None), (1, 0.9, 1.0), (0, 0.1, None), (3, 0.1, 1.0)), scores=[None, 0.2, 0.8, 0.5, 0.5]
    )
    assert [row.completion_ids for row in select_traces([record], per_problem=1, by="score").rows] == [[103, 104]]
    equal = replace(record, scores=[None, 0.5, 0.5, 0.5, 0.5])
    assert [row.completion_ids for row in select_traces([equal], per_problem=1, by=TraceOrder.SCORE).rows] == [[101, 102]]


def test_random_traces_depend_on_names_alone_and_are_fair() -> None:
    """The same choice however often a solution was found; over 600 rounds each of three is chosen 200 times, within 4 sigma (46)."""
    record = three_ways()
    chosen = select_traces([record], per_problem=1, by="random").rows
    assert select_traces([record, record], per_problem=1, by="random").rows == chosen
    counts: Counter[int] = Counter()
    for number in range(600):
        other = replace(record, provenance=replace(PROVENANCE, round=number))
        counts[len(select_traces([other], per_problem=1, by="random").rows[0].completion_ids)] += 1
    assert set(counts) == {1, 2, 3}
    assert all(abs(count - 200) <= 46 for count in counts.values())


def test_the_order_leaves_the_threshold_to_values() -> None:
    """The shortest solution has a value of .4 and falls below .45, whatever the order."""
    selection = select_traces([three_ways()], per_problem=1, min_value=0.45, by="shortest")
    assert [row.completion_ids for row in selection.rows] == [[101, 102]]
    assert selection.dropped_by_reason == {"below value": 1, "over problem cap": 1}
