"""Chart geometry, worked out by hand from the documented frame (plot area 54..412 by 16..286 of 540 by 330)."""

import re
from itertools import pairwise

import pytest

from stepladder.report import charts
from stepladder.report.charts import Axis, Point, Series, Tread
from stepladder.report.page import chart_style


def unit_axis() -> Axis:
    """Return an axis from 0 to 1."""
    return Axis(label="share", low=0.0, high=1.0, ticks=[(0.0, "0"), (1.0, "1")])


def test_points_lie_where_the_axes_say() -> None:
    """Half of both axes is the middle of the plot area; the ends are its corners."""
    line = Series(name="a", style="policy", points=[Point(x=x, y=x, text="") for x in (0.0, 0.5, 1.0)])
    drawing = charts.line_chart([line], x=unit_axis(), y=unit_axis(), label="l", x_name="x")
    assert 'class="line" points="54.0,286.0 233.0,151.0 412.0,16.0"' in drawing


def test_whiskers_span_the_interval_and_stand_apart() -> None:
    """An interval 0.25-0.75 spans half the height; the whiskers of two lines at one x stand 6 units apart, around it."""
    lines = [Series(name=name, style=name, points=[Point(x=0.5, y=0.5, low=0.25, high=0.75, text="")]) for name in ("policy", "search")]
    drawing = charts.line_chart(lines, x=unit_axis(), y=unit_axis(), label="l", x_name="x")
    found = re.findall(r'class="whisker" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', drawing)
    assert found == [("230.0", "218.5", "230.0", "83.5"), ("236.0", "218.5", "236.0", "83.5")]


def test_lines_without_points_are_left_out() -> None:
    """A method that was never measured has no label either."""
    drawn = Series(name="shown", style="policy", points=[Point(x=0.5, y=0.5, text="")])
    drawing = charts.line_chart(
        [drawn, Series(name="absent", style="search", points=[])], x=unit_axis(), y=unit_axis(), label="l", x_name="x"
    )
    assert "shown" in drawing
    assert "absent" not in drawing


def test_hover_columns_tile_the_plot_and_hold_all_values() -> None:
    """One column per x, from edge to edge without gaps, with every line's value there; texts are escaped."""
    lines = [
        Series(name="a<b", style="policy", points=[Point(x=0.2, y=0.1, text="10 %"), Point(x=0.6, y=0.2, text="20 %")]),
        Series(name="c", style="search", points=[Point(x=0.6, y=0.3, text="30 %")]),
    ]
    drawing = charts.line_chart(lines, x=unit_axis(), y=unit_axis(), label="l", x_name="tokens")
    found = re.findall(r'class="hit" x="([\d.]+)" y="16.0" width="([\d.]+)" height="270.0" data-tip="([^"]*)"', drawing)
    (first, first_width, first_tip), (second, second_width, second_tip) = found
    assert float(first) == 54.0
    assert float(first) + float(first_width) == pytest.approx(float(second), abs=0.11)
    assert float(second) + float(second_width) == pytest.approx(412.0, abs=0.11)
    assert first_tip == "tokens 0\na&lt;b  10 %"
    assert second_tip == "tokens 1\na&lt;b  20 %\nc  30 %"


def test_spread_moves_only_what_is_too_close() -> None:
    """Worked by hand: 10 and 12 move apart downwards, 50 stays, and 98 with 99 are pushed back from the end at 100."""
    assert charts.spread([10, 12, 50, 98, 99], gap=10, low=0, high=100) == [10, 20, 50, 90, 100]


@pytest.mark.parametrize("positions", [[], [5.0], [0.0] * 5, [100.0] * 5, [0.0, 1.0, 99.0, 100.0], [50.0] * 12])
def test_spread_keeps_the_gap_and_the_order(positions: list[float]) -> None:
    """Neighbours are at least the gap apart and in order; everything is inside unless it cannot fit, and then starts at the lower end."""
    placed = charts.spread(positions, gap=10, low=0, high=100)
    assert all(after - before >= 10 - 1e-9 for before, after in pairwise(placed))
    assert all(place >= 0 for place in placed)
    assert not placed or placed[-1] <= max(100, 10 * (len(placed) - 1))


@pytest.mark.parametrize(
    ("values", "top"), [([], 1.0), ([0.0], 0.05), ([0.05], 0.05), ([0.051], 0.1), ([0.2, 0.41], 0.6), ([0.81], 1.0), ([1.0], 1.0)]
)
def test_percent_axis_starts_at_zero_and_holds_all_values(values: list[float], top: float) -> None:
    """The axis always starts at 0, so that no difference looks larger than it is, and its last tick is its end."""
    axis = charts.percent_axis("l", values)
    assert (axis.low, axis.high) == (0.0, top)
    assert axis.ticks[0] == (0.0, "0")
    assert axis.ticks[-1][0] == top


def test_token_axis_is_logarithmic() -> None:
    """The geometric mean of two values lies half-way; a single value has an axis of its own; ticks lie inside."""
    axis = charts.token_axis([10, 1000])
    assert axis.place(100) == pytest.approx(0.5)
    assert [text for _, text in axis.ticks] == ["10", "20", "50", "100", "200", "500", "1,000"]
    assert charts.token_axis([7]).place(7) == pytest.approx(0.5)
    assert charts.token_axis([7]).ticks


def test_round_axis_has_few_ticks() -> None:
    """Sixty rounds have at most fourteen labelled ticks; one round has its own."""
    assert len(charts.round_axis(list(range(60))).ticks) <= 14
    assert charts.round_axis([0]).ticks == [(0, "0")]


def test_the_newest_line_is_the_strongest_on_every_chart() -> None:
    """A lone one, too; there are six shades, and others share them out."""
    assert charts.age_styles(1) == ["age-5"]
    assert charts.age_styles(3) == ["age-0", "age-3", "age-5"]
    assert charts.age_styles(6) == [f"age-{number}" for number in range(6)]


def test_time_bars_are_proportional() -> None:
    """The longest round fills the width; lengths are in proportion to seconds, stages in the order of the fullest round."""
    drawing = charts.time_bars({0: {"train": 10.0}, 1: {"search": 30.0, "train": 10.0}}, label="l")
    lengths = [
        (style, float(width)) for style, width in re.findall(r'class="bar (stage-\d)" x="[\d.]+" y="[\d.]+" width="([\d.]+)"', drawing)
    ]
    full = 540 - 54 - 108
    expected = [("stage-1", full / 4), ("stage-0", full * 3 / 4), ("stage-1", full / 4)]
    assert [style for style, _ in lengths] == [style for style, _ in expected]
    assert [width for _, width in lengths] == pytest.approx([width for _, width in expected], abs=0.06)
    assert ">40 s<" in drawing
    assert charts.stage_names({0: {"train": 1.0, "evaluate": 1.0}, 1: {"search": 1.0, "label": 1.0, "train": 1.0}}) == [
        "search",
        "label",
        "train",
        "evaluate",
    ]


def test_every_stage_of_a_round_has_its_own_colour() -> None:
    """The style sheet gives each class of a stage one colour, in light and in dark, and no two are alike."""
    assert len({charts.stage_style(index) for index in range(charts.STAGE_COLOURS)}) == charts.STAGE_COLOURS
    light, dark = chart_style().split("@media", 1)
    for scheme in (light, dark):
        colours = re.findall(r"--stage-\d: (#\w{6})", scheme)
        assert len(colours) == len(set(colours)) == charts.STAGE_COLOURS
    for index in range(charts.STAGE_COLOURS):
        assert f".stage-{index} {{ fill: var(--stage-{index})" in dark


def test_kept_bar_shows_the_share() -> None:
    """3 of 4 kept fill 60 of 80 units; nothing at all fills none and divides nothing by zero."""
    assert 'class="part" width="60.0"' in charts.kept_bar(3, 1)
    assert 'class="part" width="0.0"' in charts.kept_bar(0, 0)


def test_staircase_draws_kept_levels_and_rejected_policies() -> None:
    """A rejected round's step stands at the best policy's height, with its own accuracy dashed: heights 0.5 and 1 in proportion to 186."""
    treads = [
        Tread(round=0, value=0.5, accepted=True, level=0.5),
        Tread(round=1, value=1.0, accepted=True, level=1.0),
        Tread(round=2, value=0.5, accepted=False, level=1.0),
    ]
    drawing = charts.staircase(treads, label="l")
    heights = re.findall(r'class="(tread(?: kept)?)" x="[\d.]+" y="[\d.]+" width="[\d.]+" height="([\d.]+)"', drawing)
    assert heights == [("tread", "93.0"), ("tread", "186.0"), ("tread kept", "186.0")]
    assert 'class="rejected"' in drawing
    assert "50.0 % rejected" in drawing
    assert drawing.count("tread-value") == 2


@pytest.mark.parametrize("value", [None, 0.0])
def test_staircase_of_nothing(value: float | None) -> None:
    """Unmeasured and zero accuracies draw without dividing by zero."""
    assert "<svg" in charts.staircase([Tread(round=0, value=value, accepted=True, level=value)], label="l")
    assert "<svg" in charts.staircase([], label="l")
