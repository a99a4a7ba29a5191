"""Pass rates of problems, and the filter by them, by hand."""

from stepladder.data.labels.pass_rates import pass_rates, within_pass_rates
from tests.trees import tree

HALF = tree((-1, 0.5, None), (0, 1.0, 1.0), (0, 0.0, 0.0))
"""One of two ends is right; with the next tree of the same problem, one of four."""
NONE = tree((-1, 0.0, None), (0, 0.0, 0.0), (0, 0.5, 0.5))
ALL = tree((-1, 1.0, None), (0, 1.0, 1.0), problem_id="q")
OPEN = tree((-1, None, None), (0, None, None), problem_id="r")


def test_pass_rates_join_the_trees_of_a_problem() -> None:
    """Partial credit is not right; an end without an outcome does not count."""
    assert pass_rates([HALF, NONE, ALL, OPEN]) == {"p": 0.25, "q": 1.0}


def test_trees_of_problems_that_are_too_hard_or_too_easy_are_dropped() -> None:
    """Bounds belong to the range; a problem that shows nothing is too hard, unless nothing is."""
    records = [HALF, NONE, ALL, OPEN]
    assert within_pass_rates(records, low=0.25, high=0.625).rows == [HALF, NONE]
    assert within_pass_rates(records, low=0.25, high=0.625).dropped_by_reason == {"too hard": 1, "too easy": 1}
    assert within_pass_rates(records, low=0.3, high=1.0).dropped_by_reason == {"too hard": 3}
    assert within_pass_rates(records, low=0.0, high=1.0).rows == records
