"""Small charts as inline SVG that names its colours by class: one drawing serves light and dark pages, and no clock or random id enters it.

Every chart carries its figures a second time as ``data-tip`` texts on invisible columns; the page's script shows them under the pointer.
Coordinates are SVG user units; charts scale with the page.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from stepladder.report.figures import count, duration

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 540, 54, 128, 16, 44
_LABEL_GAP = 16.0
_MAX_TICKS = 14
"""Most ticks of an axis of rounds, levels or depths."""
_AGES = 6
"""Shades of rounds in ``chart.css``, from the first to the newest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A measured point."""

    x: float
    y: float
    low: float | None = None
    """Lower end of the 95% interval; None draws no whisker."""
    high: float | None = None
    """Upper end of the interval."""
    text: str
    """The value as the reader sees it under the pointer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A line."""

    name: str
    """Label at the line's end."""
    style: str
    """CSS class of the colour, and key of the marker's shape."""
    points: Sequence[Point]
    """In order of x; empty draws nothing."""
    lone: bool = False
    """Draw the points without a line between them."""
    bare: bool = False
    """Draw the line without markers: it has many points."""
    band: bool = False
    """Draw the intervals of the points as one band instead of whiskers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One axis."""

    label: str
    """The measured quantity, with its unit."""
    low: float
    high: float
    """Larger than ``low``."""
    ticks: Sequence[tuple[float, str]]
    """Positions and their texts."""
    log: bool = False
    """Logarithmic; ``low`` is then above 0."""

    def place(self, value: float) -> float:
        """Return the position of a value between the ends, 0 to 1."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


def percent_axis(label: str, values: Sequence[float]) -> Axis:
    """Return an axis from 0 to the next round percentage above the largest share."""
    top = next(limit for limit in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if limit >= min(max(values, default=1.0), 1.0))
    step = {0.05: 1, 0.1: 2, 0.2: 5, 0.4: 10}.get(top, 20)
    return Axis(label=label, low=0.0, high=top, ticks=[(tick / 100, f"{tick}") for tick in range(0, round(100 * top) + 1, step)])


def round_axis(rounds: Sequence[int]) -> Axis:
    """Return the axis of round numbers, with half a round of air at both ends."""
    return whole_axis("round", rounds)


def whole_axis(label: str, numbers: Sequence[int]) -> Axis:
    """Return an axis of some ascending whole numbers, with a little air at both ends."""
    ticks = thinned([(number, str(number)) for number in numbers])
    return Axis(label=label, low=min(numbers) - 0.4, high=max(numbers) + 0.4, ticks=ticks)


def thinned(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Return every tick, or every second, third ... one if there are too many for an axis."""
    return list(ticks[:: -(-len(ticks) // _MAX_TICKS)])


def age_styles(number: int) -> list[str]:
    """Return the style of each of some lines in the order of their rounds: the later, the stronger. A lone one is the newest."""
    last = max(number - 1, 1)
    return [f"age-{_AGES - 1 - round((number - 1 - index) * (_AGES - 1) / last)}" for index in range(number)]


def token_axis(values: Sequence[float]) -> Axis:
    """Return a logarithmic axis of generated tokens that holds all values."""
    return log_axis("generated tokens per problem (logarithmic)", values)


def log_axis(label: str, values: Sequence[float]) -> Axis:
    """Return a logarithmic axis that holds all values, which are above 0."""
    low, high = min(values), max(values)
    low, high = (low / 1.5, high * 1.5) if low == high else (low / 1.08, high * 1.08)
    candidates = [float(f"{digit}e{power}") for power in range(-6, 9) for digit in (1, 2, 5)]
    ticks = [tick for tick in candidates if low <= tick <= high] or [min(values)]
    return Axis(label=label, low=low, high=high, ticks=[(tick, short_number(tick)) for tick in ticks], log=True)


def short_number(value: float) -> str:
    """Write a number above 0: whole from 100 on, with three digits below."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def value_axis(label: str, values: Sequence[float]) -> Axis:
    """Return a linear axis that holds all values, with round ticks."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    step = next(unit * 10.0**power for power in range(-9, 12) for unit in (1, 2, 5) if span / (unit * 10.0**power) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [(number * step, f"{number * step:,.10g}") for number in range(first, last + 1)]
    return Axis(label=label, low=ticks[0][0], high=ticks[-1][0] if last > first else ticks[0][0] + step, ticks=ticks)


def mirrored_bars(
    above: Sequence[int], below: Sequence[int], *, names: tuple[str, str], tips: Sequence[str], label: str, height: int = 300
) -> str:
    """Draw two histograms over the same bins from 0 to 1, one upward and one downward.

    Args:
        above: Counts of the bins that are drawn upward.
        below: Counts that are drawn downward, as many.
        names: What both are.
        tips: Text of every bin under the pointer.
        label: What the chart shows, for those who cannot see it.
        height: Height in user units.
    """
    most, bins = max(*above, *below, 1), len(above)
    left, right, middle = _LEFT, _WIDTH - _RIGHT, (height - _BOTTOM + _TOP) / 2
    width, scale = (right - left) / bins, (height - _BOTTOM - _TOP) / 2 / most
    parts = []
    for index, (up, down) in enumerate(zip(above, below, strict=True)):
        x = left + width * index + 1.5
        parts.append(_box("bar upper", x, middle - up * scale, width - 3, max(up * scale, 0.0)))
        parts.append(_box("bar lower", x, middle, width - 3, max(down * scale, 0.0)))
    for sign in (1, -1):
        parts.append(_text(left - 8, middle - sign * most * scale + 4, f"{most:,}", "tick", anchor="end"))
    parts.append(_segment("axis", left, middle, right, middle))
    for tick in range(6):
        parts.append(_text(left + (right - left) * tick / 5, height - _BOTTOM + 18, f"{tick / 5:.1f}", "tick", anchor="middle"))
    parts.append(_text((left + right) / 2, height - 6, "score of the PRM", "label", anchor="middle"))
    parts += [_text(right + 10, middle - 24, names[0], "name upper-name"), _text(right + 10, middle + 32, names[1], "name lower-name")]
    parts += [_box("hit", left + width * index, _TOP, width, height - _BOTTOM - _TOP, tip=tip) for index, tip in enumerate(tips)]
    return _svg(height, label, "".join(parts))


def plain_number(value: float) -> str:
    """Write a number without needless decimals."""
    return f"{value:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """Maps values to coordinates inside the plot area."""

    x: Axis
    y: Axis
    height: int
    right: float = field(default=_WIDTH - _RIGHT)

    def across(self, value: float) -> float:
        return _LEFT + (self.right - _LEFT) * self.x.place(value)

    def up(self, value: float) -> float:
        bottom = self.height - _BOTTOM
        return bottom - (bottom - _TOP) * self.y.place(value)


def line_chart(
    series: Sequence[Series],
    *,
    x: Axis,
    y: Axis,
    label: str,
    x_name: str,
    x_text: Callable[[float], str] = "{:,.0f}".format,
    height: int = 330,
    guide: tuple[float, str] | None = None,
) -> str:
    """Draw lines with markers, whiskers, labels at the lines' ends and one hover column per x.

    Args:
        series: The lines; those without points are left out.
        x: Horizontal axis.
        y: Vertical axis.
        label: What the chart shows, for those who cannot see it.
        x_name: Word before the x value under the pointer, such as ``round``.
        x_text: How the x value is written there.
        height: Height in user units; the width is fixed.
        guide: Height and text of a dashed horizontal line.
    """
    drawn = [line for line in series if line.points]
    frame = _Frame(x=x, y=y, height=height)
    parts = [_axes(frame)]
    if guide is not None:
        parts.append(_guide(frame, *guide))
    for index, line in enumerate(drawn):
        parts.append(_line(frame, line, shift=(index - (len(drawn) - 1) / 2) * _dodge(frame, drawn)))
    parts += [_end_labels(frame, drawn), _hover_columns(frame, drawn, x_name, x_text)]
    return _svg(height, label, "".join(parts))


def _dodge(frame: _Frame, drawn: Sequence[Series]) -> float:
    """Shift between whiskers at one x, so that intervals are side by side; none without whiskers."""
    if not any(point.low is not None for line in drawn for point in line.points):
        return 0.0
    places = sorted({frame.across(point.x) for line in drawn for point in line.points})
    spacing = min((after - before for before, after in pairwise(places)), default=60.0)
    return min(6.0, spacing / (2 * len(drawn)))


def _axes(frame: _Frame) -> str:
    bottom, parts = frame.height - _BOTTOM, []
    for value, text in frame.y.ticks:
        parts.append(_segment("grid", _LEFT, frame.up(value), frame.right, frame.up(value)))
        parts.append(_text(_LEFT - 8, frame.up(value) + 4, text, "tick", anchor="end"))
    for value, text in frame.x.ticks:
        parts.append(_text(frame.across(value), bottom + 18, text, "tick", anchor="middle"))
    parts.append(_segment("axis", _LEFT, bottom, frame.right, bottom))
    parts.append(_text((_LEFT + frame.right) / 2, frame.height - 6, frame.x.label, "label", anchor="middle"))
    middle = (_TOP + bottom) / 2
    turned = f'<text class="label" text-anchor="middle" transform="translate(11 {middle:.1f}) rotate(-90)">'
    return "".join([*parts, turned, escape(frame.y.label), "</text>"])


def _guide(frame: _Frame, value: float, text: str) -> str:
    y = frame.up(value)
    return _segment("guide", _LEFT, y, frame.right, y) + _text(_LEFT + 4, y - 5, text, "tick")


def _line(frame: _Frame, line: Series, *, shift: float) -> str:
    shift = 0.0 if line.band else shift
    places = [(frame.across(point.x) + shift, frame.up(point.y)) for point in line.points]
    parts = [f'<g class="{line.style}">']
    if line.band:
        parts.append(_band(frame, line))
    for (x, _), point in zip(places, line.points, strict=True):
        if not line.band and point.low is not None and point.high is not None:
            parts.append(_segment("whisker", x, frame.up(point.low), x, frame.up(point.high)))
    if not line.lone:
        parts.append(f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
    if not line.bare:
        parts += [_marker(line.style, x, y) for x, y in places]
    return "".join([*parts, "</g>"])


def _band(frame: _Frame, line: Series) -> str:
    """Draw the area between the lower and the upper ends of the intervals."""
    upper = [(frame.across(point.x), frame.up(point.y if point.high is None else point.high)) for point in line.points]
    lower = [(frame.across(point.x), frame.up(point.y if point.low is None else point.low)) for point in line.points]
    return f'<polygon class="band" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *reversed(lower)])}"/>'


_MARKERS = {
    "search": "M0 -5.2L5.2 0L0 5.2L-5.2 0Z",
    "weighted_vote": "M-4.2 -4.2H4.2V4.2H-4.2Z",
    "best_of_n": "M0 -5L5 4H-5Z",
    "majority": "M0 5L5 -4H-5Z",
    "line-0": "M0 -5.2L5.2 0L0 5.2L-5.2 0Z",
    "line-1": "M-4.2 -4.2H4.2V4.2H-4.2Z",
    "line-2": "M0 -5L5 4H-5Z",
    "line-3": "M0 5L5 -4H-5Z",
    "line-4": "M-1.6 -5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5V-1.6H-1.6Z",
}
"""Marker shape by series; a circle for all others."""


def _marker(style: str, x: float, y: float) -> str:
    path = _MARKERS.get(style, "M0 -4.4A4.4 4.4 0 1 1 0 4.4A4.4 4.4 0 1 1 0 -4.4Z")
    return f'<path class="marker" transform="translate({x:.1f} {y:.1f})" d="{path}"/>'


def _end_labels(frame: _Frame, drawn: Sequence[Series]) -> str:
    """Name each line at its end. Names of close ends are moved apart."""
    ends = [(frame.up(line.points[-1].y), frame.across(line.points[-1].x), line) for line in drawn]
    ends.sort(key=lambda end: end[0])
    heights = spread([y for y, _, _ in ends], gap=_LABEL_GAP, low=_TOP + 2, high=frame.height - _BOTTOM)
    parts, x = [], frame.right + 6
    for (y, end_x, line), height in zip(ends, heights, strict=True):
        leader = f"{end_x + 7:.1f},{y:.1f} {x:.1f},{height:.1f} {x + 4:.1f},{height:.1f}"
        parts.append(f'<g class="{line.style}"><polyline class="leader" points="{leader}"/>')
        parts.append(_marker(line.style, x + 11, height) + _text(x + 20, height + 4, line.name, "name") + "</g>")
    return "".join(parts)


def spread(positions: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Move ascending positions as little as needed to lie ``gap`` apart and, if there is room, within ``low`` and ``high``.

    Args:
        positions: Wished positions, ascending.
        gap: Smallest distance between neighbours.
        low: Smallest position.
        high: Largest position; ignored if the positions do not fit.
    """
    placed: list[float] = []
    for wish in positions:
        placed.append(max(wish, low if not placed else placed[-1] + gap))
    # Positions past the end are pushed back from there, as far as there is room.
    limit = max(high, low + gap * (len(placed) - 1))
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def _hover_columns(frame: _Frame, drawn: Sequence[Series], x_name: str, x_text: Callable[[float], str]) -> str:
    xs = sorted({point.x for line in drawn for point in line.points})
    places = [frame.across(x) for x in xs]
    edges = [float(_LEFT), *((a + b) / 2 for a, b in pairwise(places)), frame.right]
    parts = []
    for index, x in enumerate(xs):
        values = [f"{line.name}  {point.text}" for line in drawn for point in line.points if point.x == x]
        tip = "\n".join([f"{x_name} {x_text(x)}", *values])
        width = max(edges[index + 1] - edges[index], 0.5)
        parts.append(_box("hit", edges[index], _TOP, width, frame.height - _BOTTOM - _TOP, tip=tip))
    return "".join(parts)


def standalone(panels: Sequence[str], *, style: str, title: str, columns: int = 2, height: int = 330) -> str:
    """Return charts as one self-contained SVG file.

    Args:
        panels: Results of ``line_chart``, row by row, all with the same height.
        style: Style sheet with the colours of the classes.
        title: Text above the panels.
        columns: Panels in a row, >= 1.
        height: Their height in user units.
    """
    gap, head = 24, 44
    columns = min(columns, len(panels))
    width, rows = columns * (_WIDTH + gap) + gap, -(-len(panels) // columns)
    total = head + rows * (height + gap)
    parts = [f'<rect width="{width}" height="{total}" fill="var(--paper)"/>', _text(gap, 28, title, "title")]
    for index, panel in enumerate(panels):
        x, y = gap + index % columns * (_WIDTH + gap), head + index // columns * (height + gap)
        # Without the class that makes a chart as wide as its page; the outer element has it for all.
        place = f'<svg x="{x}" y="{y}" width="{_WIDTH}" height="{height}" overflow="visible" '
        parts.append(panel.replace('<svg class="chart" ', place, 1))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {total}" role="img" aria-label="{escape(title)}">'
        f"<style>{style}</style>{''.join(parts)}</svg>\n"
    )


STAGE_COLOURS = 8
"""Colours of stages in ``chart.css``."""


def time_bars(rounds: dict[int, dict[str, float]], *, label: str) -> str:
    """Draw one horizontal bar per round, cut into its stages, with the total at its end.

    Args:
        rounds: Round -> stage -> seconds.
        label: What the chart shows, for those who cannot see it.
    """
    stages = stage_names(rounds)
    longest = max((sum(times.values()) for times in rounds.values()), default=0.0) or 1.0
    width, parts = _WIDTH - _LEFT - 108, []
    for index, (number, times) in enumerate(sorted(rounds.items())):
        y, x = 8 + 28 * index, float(_LEFT + 14)
        parts.append(_text(x - 8, y + 15, f"round {number}", "tick", anchor="end"))
        for stage in (name for name in stages if name in times):
            seconds = times[stage]
            length = width * seconds / longest
            tip = f"round {number}, {stage}\n{duration(seconds)}"
            parts.append(_box(f"bar {stage_style(stages.index(stage))}", x, y, length, 21, tip=tip))
            x += length
        parts.append(_text(x + 6, y + 15, duration(sum(times.values())), "value"))
    return _svg(16 + 28 * len(rounds), label, "".join(parts))


def stage_style(index: int) -> str:
    """Return the class that colours a stage; ``chart.css`` has as many colours as a round can have stages."""
    return f"stage-{index % STAGE_COLOURS}"


def stage_names(rounds: dict[int, dict[str, float]]) -> list[str]:
    """Return the stages of all rounds, in the order of the round that has the most of them; colours and columns follow it."""
    fullest = max(rounds.values(), key=len, default={})
    return list(dict.fromkeys([*fullest, *(stage for times in rounds.values() for stage in times)]))


def kept_bar(kept: int, dropped: int) -> str:
    """Draw the kept share of a count as a small bar for a table cell."""
    share = kept / (kept + dropped) if kept + dropped else 0.0
    tip = escape(f"kept {count(kept)} of {count(kept + dropped)}")
    return (
        f'<svg class="share" viewBox="0 0 80 8" aria-hidden="true" data-tip="{tip}"><rect class="rest" width="80" height="8" rx="1.5"/>'
        f'<rect class="part" width="{80 * share:.1f}" height="8" rx="1.5"/></svg>'
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Tread:
    """One round of the staircase."""

    round: int
    value: float | None
    """Accuracy of the round's policy in [0, 1]; None draws a gap."""
    accepted: bool
    """A rejected policy is dashed, next to the step that it did not replace."""
    level: float | None
    """Accuracy of the best policy after the round."""


def staircase(treads: Sequence[Tread], *, label: str) -> str:
    """Draw the best policy's accuracy as a flight of steps, one tread per round."""
    height, bottom = 250, 250 - 30
    width = min((_WIDTH - 12) / max(len(treads), 1), 150.0)
    top = max((value for tread in treads for value in (tread.value, tread.level) if value is not None), default=1.0) or 1.0
    parts, step = [], -(-len(treads) // _MAX_TICKS)
    for index, tread in enumerate(treads):
        x = 6 + width * index
        if tread.level is not None:
            y = bottom - (bottom - 34) * tread.level / top
            parts.append(_box("tread" if tread.accepted else "tread kept", x, y, width, bottom - y))
            parts.append(_segment("nosing", x, y, x + width, y))
        if tread.value is not None:
            parts.append(_tread_value(tread, x, width, bottom - (bottom - 34) * tread.value / top, show=index % step == 0))
        if index % step == 0:
            parts.append(_text(x + width / 2, bottom + 20, f"{'round ' if width > 60 else ''}{tread.round}", "tick", anchor="middle"))
    parts.append(_segment("axis", 6, bottom, 6 + width * len(treads), bottom))
    return _svg(height, label, "".join(parts))


def _tread_value(tread: Tread, x: float, width: float, y: float, *, show: bool) -> str:
    text = f"{100 * tread.value:.1f} %" if width > 60 else f"{100 * tread.value:.0f}"  # type: ignore[operator]
    if tread.accepted:
        return _text(x + width / 2, y - 9, text, "tread-value", anchor="middle") if show else ""
    dashed = _segment("rejected", x + 4, y, x + width - 4, y)
    # Below its line, unless that is outside the drawing: a rejected policy is mostly below the step, whose own line is just above.
    return dashed + (_text(x + width / 2, y + 17, f"{text} rejected" if width > 110 else text, "tick", anchor="middle") if show else "")


def _segment(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _box(style: str, x: float, y: float, width: float, height: float, *, tip: str = "") -> str:
    data = f' data-tip="{escape(tip)}"' if tip else ""
    return f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"{data}/>'


def _text(x: float, y: float, text: str, style: str, *, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, label: str, body: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">{body}</svg>'
