"""Runs that differ only in their seed are one group, shown as a mean with a band."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from stepladder.loops.config.paths import PATH_KEYS
from stepladder.loops.config.run import flatten_keys
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.side_by_side import ComparedRun
from stepladder.report import charts
from stepladder.report.figures import Method, accuracy, percent

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""97.5% points of Student's distribution with 1, 2, 3 ... degrees of freedom."""
_Z_975 = 1.959964
"""That of the normal distribution."""
_STYLES = ("line-0", "line-1", "line-2", "line-3", "line-4", "line-5", "policy")


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedGroup:
    """Runs of one configuration."""

    name: str
    """Name of the run, or of the first one with the number of seeds."""
    runs: tuple[ComparedRun, ...]
    """The runs, one per seed."""

    def best(self) -> list[float]:
        """Return pass@1 of the best policy of every run."""
        found = (run.best.test.pass_at_1 for run in self.runs)
        return [each.value for each in found if each is not None]


def seed_groups(runs: Sequence[RunDir], compared: Sequence[ComparedRun]) -> list[SeedGroup]:
    """Return runs in groups of one configuration, in the order of their first runs.

    Args:
        runs: The runs.
        compared: Their figures, in the same order.
    """
    groups: dict[str, list[ComparedRun]] = {}
    for run, each in zip(runs, compared, strict=True):
        groups.setdefault(_identity(run), []).append(each)
    return [
        SeedGroup(name=members[0].name if len(members) == 1 else f"{members[0].name} and {len(members) - 1} more", runs=tuple(members))
        for members in groups.values()
    ]


def _identity(run: RunDir) -> str:
    """Return everything that decides a run but its seed, and where its files lie."""
    paths = {".".join(key) for key in PATH_KEYS} | {"run.seed", "run.rounds", "run.workers"}
    plain = flatten_keys(run.config().model_dump(mode="json"))
    return json.dumps({key: value for key, value in plain.items() if key not in paths}, sort_keys=True)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean over seeds and the ends of its 95% interval by Student's distribution; one value has no width.

    Args:
        values: At least one.

    Source: Student 1908, "The probable error of a mean".
    """
    middle = mean(values)
    if len(values) < 2:
        return middle, middle, middle
    degrees = len(values) - 1
    width = _t_975(degrees) * stdev(values) / math.sqrt(len(values))
    return middle, middle - width, middle + width


def _t_975(degrees: int) -> float:
    """Return a 97.5% point of Student's distribution; beyond the table by two terms of its series, right to 0.001.

    Source: Abramowitz and Stegun 1964, "Handbook of mathematical functions", 26.7.5.
    """
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = _Z_975
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def group_line(group: SeedGroup, method: Method, style: str) -> charts.Series:
    """Return a method's accuracy by round: that of a run, or the mean of the seeds with the range between the worst and the best."""
    last = max(len(run.rows) for run in group.runs)
    points = []
    for number in range(last):
        found = [accuracy(run.rows[number], method) for run in group.runs if number < len(run.rows)]
        values = [each.value for each in found if each is not None]
        if values:
            several = len(group.runs) > 1
            text = f"{percent(mean(values))} %" + (
                f" ({percent(min(values))} to {percent(max(values))}, {len(values)} seeds)" if several else ""
            )
            points.append(
                charts.Point(
                    x=number, y=mean(values), low=min(values) if several else None, high=max(values) if several else None, text=text
                )
            )
    return charts.Series(name=group.name, style=style, points=points, band=len(group.runs) > 1)


def group_chart(groups: Sequence[SeedGroup], method: Method, label: str) -> str:
    """Draw a method's accuracy by round, one line per group; empty if it was not measured."""
    lines = [group_line(group, method, _STYLES[index % len(_STYLES)]) for index, group in enumerate(groups)]
    values = [point.y if point.high is None else point.high for line in lines for point in line.points]
    if not values:
        return ""
    rounds = sorted({round(point.x) for line in lines for point in line.points})
    x, y = charts.round_axis(rounds), charts.percent_axis("right answers (%)", values)
    return charts.line_chart(lines, x=x, y=y, label=label, x_name="round")
