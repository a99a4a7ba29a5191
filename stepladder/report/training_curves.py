"""Loss and gradient norm over the updates of every training, one line per round."""

from collections.abc import Mapping, Sequence

from stepladder.loops.runs.results import TrainingSummary
from stepladder.report import charts
from stepladder.report.figures import decimals
from stepladder.report.markup import Markup, figure

_MOST_LINES = 6
Curves = Mapping[str, Sequence[tuple[int, TrainingSummary]]]
"""Name of a training -> its rounds with their summaries."""


def training_curves(trainings: Curves) -> Markup:
    """Return one chart per training whose course was kept; empty without any."""
    drawn = []
    for name, rounds in trainings.items():
        kept = [(number, summary) for number, summary in rounds if len(summary.curve) > 1]
        if kept:
            drawn.append(figure(_chart(name, kept[-_MOST_LINES:]), f"{name}: loss by update"))
    return Markup(f'<div class="multiples">{"".join(drawn)}</div>') if drawn else Markup("")


def _chart(name: str, rounds: Sequence[tuple[int, TrainingSummary]]) -> str:
    lines = [
        charts.Series(
            name=f"round {number}",
            style=style,
            points=[charts.Point(x=update, y=loss, text=f"loss {decimals(loss)}{_norm(norm)}") for update, loss, norm in summary.curve],
            bare=True,
        )
        for (number, summary), style in zip(rounds, charts.age_styles(len(rounds)), strict=True)
    ]
    values = [point.y for line in lines for point in line.points]
    updates = [point.x for line in lines for point in line.points]
    return charts.line_chart(
        lines,
        x=charts.value_axis("update", [0.0, *updates]),
        y=charts.value_axis("loss", [0.0, *values]),
        label=f"Loss of the training of {name} by update, one line per round",
        x_name="update",
        height=280,
    )


def _norm(value: float | None) -> str:
    return "" if value is None else f", gradient norm {decimals(value, 2)}"
