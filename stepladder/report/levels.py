"""Accuracy by level of the problems, such as the depth of their solutions, and by round."""

from collections.abc import Callable, Sequence

from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.split_figures import LevelFigures
from stepladder.report import charts
from stepladder.report.figures import count, percent
from stepladder.report.markup import Markup, figure, lead, section, table

_MOST_LINES = 6
"""Rounds of one chart; of more, the first, the last and some between are drawn."""
_FEWEST_LEVELS = 3


class LevelPicture:
    """Accuracy by level, one line per round."""

    def __init__(self, rows: Sequence[RoundRow], name: str | None) -> None:
        """Take the figures of the finished rounds.

        Args:
            rows: The rounds.
            name: What a level is, such as ``distance``; None is ``level``.
        """
        self._rows, self.name = rows, name or "level"
        self._levels = _numeric(dict.fromkeys(level for row in rows for level in row.test.levels))

    @property
    def is_drawn(self) -> bool:
        """Whether the problems have levels that make an axis."""
        return len(self._levels) >= _FEWEST_LEVELS

    def policy(self) -> str:
        """Draw the policy alone."""
        return self._chart(lambda figures: figures.pass_at_1, f"Policy alone on test problems by {self.name}, one line per round")

    def search(self) -> str:
        """Draw the search."""
        return self._chart(lambda figures: figures.search, f"Search on test problems by {self.name}, one line per round")

    def has_search(self) -> bool:
        """Whether any round was searched on test problems."""
        return any(figures.search is not None for row in self._rows for figures in row.test.levels.values())

    def section(self) -> Markup:
        """Return the section with policy, search and the training search; empty without levels."""
        if not any(row.test.levels for row in self._rows):
            return Markup("")
        drawn = [figure(self.policy(), "policy alone, greedy")] if self.is_drawn else []
        if self.is_drawn and self.has_search():
            drawn.append(figure(self.search(), "search"))
        if self.is_drawn and (trained := self._training()):
            drawn.append(figure(trained, "training problems that the round's search solved"))
        said = lead(
            f"Right answers by {self.name}. The deeper a problem, the rarer a sampled solution of it, so a policy that only sharpens "
            "what it knew gains at the left, and one that learns something new moves its curve to the right."
            if self.is_drawn
            else f"Right answers by {self.name}."
        )
        body = Markup(f'<div class="multiples">{"".join(drawn)}</div>') if drawn else Markup("")
        return section("by-level", f"Accuracy by {self.name}", said, body, self._table())

    def _chart(self, of: Callable[[LevelFigures], float | None], label: str) -> str:
        lines = []
        for row, style in self._chosen():
            found = [(level, row.test.levels.get(level)) for level in self._levels]
            values = [(level, figures, of(figures)) for level, figures in found if figures is not None]
            points = [
                charts.Point(x=float(level), y=value, text=f"{percent(value)} % of {figures.problems:,}")
                for level, figures, value in values
                if value is not None
            ]
            lines.append(charts.Series(name=f"round {row.round}", style=style, points=points))
        return self._drawn(lines, label, "right answers (%)")

    def _training(self) -> str:
        lines = []
        for row, style in self._chosen():
            counts = {} if row.search is None else row.search.levels
            points = [
                charts.Point(
                    x=float(level),
                    y=counts[level].solved / counts[level].problems,
                    text=f"{counts[level].solved:,} of {counts[level].problems:,}",
                )
                for level in self._levels
                if level in counts
            ]
            lines.append(charts.Series(name=f"round {row.round}", style=style, points=points))
        if not any(line.points for line in lines):
            return ""
        return self._drawn(lines, f"Training problems solved by the search, by {self.name}, one line per round", "solved (%)")

    def _drawn(self, lines: Sequence[charts.Series], label: str, axis: str) -> str:
        values = [point.y for line in lines for point in line.points]
        ticks = charts.thinned([(float(level), level) for level in self._levels])
        low, high = float(self._levels[0]), float(self._levels[-1])
        margin = (high - low) / 40
        x = charts.Axis(label=self.name, low=low - margin, high=high + margin, ticks=ticks)
        return charts.line_chart(
            lines, x=x, y=charts.percent_axis(axis, values), label=label, x_name=self.name, x_text=charts.plain_number, height=300
        )

    def _chosen(self) -> list[tuple[RoundRow, str]]:
        """Return the rounds that are drawn, each with its colour: the later, the stronger."""
        rows = [row for row in self._rows if row.test.levels]
        if len(rows) > _MOST_LINES:
            places = sorted({round(index * (len(rows) - 1) / (_MOST_LINES - 1)) for index in range(_MOST_LINES)})
            rows = [rows[place] for place in places]
        return list(zip(rows, charts.age_styles(len(rows)), strict=True))

    def _table(self) -> Markup:
        levels = list(dict.fromkeys(level for row in self._rows for level in row.test.levels))
        newest = self._rows[-1].test.levels
        rounds = [row for row in self._rows if row.test.levels]
        header = [self.name, "test problems", *(f"{what}, round {row.round}" for what in ("alone", "search") for row in rounds)]
        cells = []
        for level in levels:
            measured = [row.test.levels.get(level) for row in rounds]
            alone = [percent(None if each is None else each.pass_at_1) for each in measured]
            searched = [percent(None if each is None else each.search) for each in measured]
            cells.append((level, count(newest[level].problems if level in newest else None), *alone, *searched))
        return Markup(f"<details><summary>the figures, in %</summary>{table(header, cells)}</details>")


def _numeric(levels: dict[str, None]) -> list[str]:
    """Return levels in the order of their numbers; nothing if one is not a number."""
    try:
        return sorted(levels, key=float)
    except ValueError:
        return []
