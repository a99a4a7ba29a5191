"""The picture of runs of ``benchmarks.evidence``: problems solved in training by distance, and accuracy after each round."""

from collections.abc import Sequence

import numpy as np

from benchmarks.evidence_tables import Cell
from stepladder.report.charts import Axis, Point, Series, line_chart, percent_axis, round_axis, standalone, whole_axis
from stepladder.report.page import chart_style

_STYLES = ("line-0", "line-1", "line-2", "line-3")
_NAMES = {"search": "search", "star-single": "samples", "star-unsolved": "samples, four at a time", "search-random": "random scores"}
"""The arms that are drawn, and their labels; where none of them was run, others are drawn."""


def draw(cells: Sequence[Cell]) -> str:
    """Return an SVG: the share of training problems solved by the last common round, and greedy accuracy on test problems.

    Both are means over the seeds of an arm, with whiskers from the lowest to the highest seed.
    """
    found = list(dict.fromkeys(cell.arm for cell in cells))
    arms = [arm for arm in _NAMES if arm in found] or found[: len(_STYLES)]
    last = min(len(cell.rows) for cell in cells if cell.arm in arms) - 1
    solved, greedy = [], []
    for arm, style in zip(arms, _STYLES, strict=False):
        own = [cell for cell in cells if cell.arm == arm]
        solved.append(Series(name=_NAMES.get(arm, arm), style=style, points=_solved(own, last)))
        greedy.append(Series(name=_NAMES.get(arm, arm), style=style, points=_greedy(own)))
    levels = [int(point.x) for point in solved[0].points]
    rounds = [int(point.x) for point in greedy[0].points]
    panels = [
        line_chart(
            solved,
            x=whole_axis("moves to the goal", levels),
            y=percents(f"training problems solved by round {last} (%)", solved),
            label=f"Share of training problems solved by round {last}, by moves to the goal",
            x_name="moves:",
        ),
        line_chart(
            greedy,
            x=round_axis(rounds),
            y=percents("greedy accuracy on test problems (%)", greedy),
            label="Greedy accuracy after each round",
            x_name="round",
        ),
    ]
    return standalone(panels, style=chart_style(), title="Search and samples at equal tokens and updates")


def percents(label: str, lines: Sequence[Series]) -> Axis:
    """Return an axis of shares that holds some lines with their whiskers."""
    return percent_axis(label, [point.high or point.y for line in lines for point in line.points])


def _solved(cells: Sequence[Cell], number: int) -> list[Point]:
    rows = [cell.rows[number].search for cell in cells]
    searched = [row for row in rows if row is not None and row.levels]
    levels = sorted(searched[0].levels, key=int) if searched else []
    return [mean_point(int(level), [row.levels[level].solved / row.levels[level].problems for row in searched]) for level in levels]


def _greedy(cells: Sequence[Cell]) -> list[Point]:
    points = []
    for number in range(max(len(cell.rows) for cell in cells)):
        found = [cell.rows[number].test.pass_at_1 for cell in cells if len(cell.rows) > number]
        points.append(mean_point(number, [each.value for each in found if each is not None]))
    return points


def mean_point(x: int, values: Sequence[float]) -> Point:
    """Return the mean of one share per seed, with whiskers from the lowest to the highest."""
    mean, low, high = float(np.mean(values)), min(values), max(values)
    return Point(x=x, y=mean, low=low, high=high, text=f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})")
