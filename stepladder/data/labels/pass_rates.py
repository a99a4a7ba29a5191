"""Filter of problems by how often the policy solves them."""

from collections import defaultdict
from collections.abc import Sequence

from stepladder.data.labels.selection import Selection
from stepladder.types import TreeRecord


def pass_rates(records: Sequence[TreeRecord]) -> dict[str, float]:
    """Return the share of right ones among the graded ends of every problem, in [0, 1]; problems without any are left out."""
    outcomes: dict[str, list[float]] = defaultdict(list)
    for record in records:
        outcomes[record.problem_id] += [outcome for outcome in record.outcomes if outcome is not None]
    return {problem: sum(each == 1.0 for each in own) / len(own) for problem, own in outcomes.items() if own}


def within_pass_rates(records: Sequence[TreeRecord], *, low: float, high: float) -> Selection[TreeRecord]:
    """Return the trees of problems with a pass rate from ``low`` to ``high``: neither too hard nor too easy to learn from.

    Args:
        records: Searched trees with outcomes.
        low: Smallest pass rate, in [0, 1].
        high: Largest, in [0, 1].

    Dropped by reason: ``too hard``, ``too easy``. A problem without a graded end counts as too hard, unless ``low`` is 0.

    Source: Yang et al. 2024, "Qwen2.5-Math", keep queries with two to five of eight right samples; Cui et al. 2025, "PRIME" (arXiv
        2502.01456), those with an accuracy from 0.2 to 0.8.
    """
    rates = pass_rates(records)
    hard = sum(rates.get(record.problem_id, 0.0) < low for record in records)
    easy = sum(rates.get(record.problem_id, 0.0) > high for record in records)
    rows = [record for record in records if low <= rates.get(record.problem_id, 0.0) <= high]
    dropped = {reason: count for reason, count in (("too hard", hard), ("too easy", easy)) if count}
    return Selection(rows=rows, considered=len(records), dropped_by_reason=dropped)
