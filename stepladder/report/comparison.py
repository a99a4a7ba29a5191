"""Output of ``stepladder eval``: a table for the terminal, Markdown, CSV, charts as files, and one self-contained page.

Everything is made from ``ComparisonResults`` alone. Methods are in the order of their accuracy at the largest budget. A panel of a chart
has six of them and the baseline, which is in all panels: nobody could read two dozen lines in one chart.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stepladder.files import atomic_write_text
from stepladder.loops.runs.comparison_results import ComparisonResults, MethodFigures
from stepladder.loops.runs.split_figures import Accuracy
from stepladder.report import charts
from stepladder.report.figures import MISSING, percent, percent_with_interval, times
from stepladder.report.markup import Markup, figure, html, lead, section, table
from stepladder.report.page import chart_style, document

_LINES_PER_PANEL = 6
_LONGEST_LABEL = 17
_WIDE_ENOUGH = 240
BETTER, WORSE = "▲", "▼"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measure:
    """The horizontal axis of a chart."""

    key: str
    """Name in the page's addresses."""
    of: Callable[[MethodFigures], float]
    """The figure."""
    axis: str
    """Label of the axis."""
    name: str
    """Word before a value under the pointer."""
    title: str
    """Title of the chart."""


_TOKENS = _Measure(
    key="tokens",
    of=lambda figures: figures.tokens,
    axis="generated tokens per problem (logarithmic)",
    name="tokens a problem:",
    title="Accuracy against generated tokens",
)
_SECONDS = _Measure(
    key="seconds",
    of=lambda figures: figures.seconds,
    axis="seconds per problem (logarithmic)",
    name="seconds a problem:",
    title="Accuracy against seconds",
)
_MEASURES = {"accuracy-by-tokens.svg": _TOKENS, "accuracy-by-seconds.svg": _SECONDS}


def write_comparison(results: ComparisonResults, out: Path) -> list[Path]:
    """Write table, charts and page of a comparison and return their paths, the page last.

    Args:
        results: The result of ``run_comparison``.
        out: Directory to write to.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    style = chart_style()
    texts = {"results.csv": render_csv(results), "results.md": render_markdown(results)}
    for name, measure in _MEASURES.items():
        texts[name] = charts.standalone(_panels(results, measure), style=style, title=f"{measure.title}: {_subject(results)}")
    texts["comparison.html"] = render_page(results)
    for name, text in texts.items():
        atomic_write_text(out / name, text)
    return [out / name for name in texts]


def render_table(results: ComparisonResults) -> str:
    """Return accuracies by method and budget, and costs at the largest budget, as plain text."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    header, rows = _rows(results)
    for index, name in enumerate(header):
        shown.add_column(Text(name), justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, width=_WIDE_ENOUGH, color_system=None, force_terminal=False).print(shown)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([*lines, *_notes(results)]).strip("\n") + "\n"


def render_markdown(results: ComparisonResults) -> str:
    """Return the same table as Markdown."""
    header, rows = _rows(results)
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, "", " ".join(_notes(results))]) + "\n"


def render_csv(results: ComparisonResults) -> str:
    """Return every figure, one line per method and budget. An interval is two columns; a missing figure is an empty cell."""
    lines = [_flat(entry) for entry in results.figures]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def render_page(results: ComparisonResults) -> str:
    """Return the page of a comparison as HTML; the same results give the same page."""
    header, rows = _rows(results)
    cells = [[html(cell) for cell in row] for row in rows]
    subject = _subject(results)
    body = [
        f'<header><div class="said"><p class="kicker">{html(subject)}</p><h1>Search methods at equal budgets</h1></div></header>',
        '<main id="figures">',
        section("accuracies", "Accuracy at every budget", lead(" ".join(_notes(results))), table(header, cells, text_columns=[0])),
        *(_chart_section(results, measure) for measure in _MEASURES.values()),
        section("setting", "What was compared", _setting(results)),
        "</main>",
    ]
    return document(f"Search methods at equal budgets · {subject}", "\n".join(body))


def _chart_section(results: ComparisonResults, measure: _Measure) -> Markup:
    explanation = lead(
        f"Whiskers are 95 % intervals. The dashed line is {results.baseline}, the same in every panel; a point without a line is a "
        "method that takes no budget. A method that ends by itself before its budget is shown at the tokens that it spent."
    )
    drawn = "".join(figure(panel) for panel in _panels(results, measure))
    return section(f"by-{measure.key}", measure.title, explanation, Markup(f'<div class="multiples">{drawn}</div>'))


def _setting(results: ComparisonResults) -> Markup:
    rows = [
        ("problems", f"{results.facts.problems.count:,} of {results.facts.problems.source}"),
        ("policy", f"{results.facts.policy.path} ({results.facts.policy.hash})"),
        ("PRM", ", ".join(f"{prm.path} ({prm.hash})" for prm in results.facts.prm) or "none"),
        ("configuration", results.facts.config_hash),
        ("stepladder", f"{results.facts.stepladder}, revision {results.facts.git_revision or 'unknown'}"),
        *((name, ", ".join(f"{axis}={value}" for axis, value in settings.items())) for name, settings in results.methods.items()),
    ]
    return table(("what", "value"), rows, style="facts", text_columns=[0, 1])


def _subject(results: ComparisonResults) -> str:
    return f"{times(results.facts.problems.count, 'problem')}, {times(results.seeds, 'seed')}"


def _notes(results: ComparisonResults) -> list[str]:
    """Say how the figures are to be read."""
    notes = [
        f"Share of right answers in % on {_subject(results)}, with 95% intervals over problems, by generated tokens per problem.",
        "Costs are means per problem at the largest budget; seconds are those of one worker.",
    ]
    if results.baseline is not None:
        notes.insert(
            1,
            f"{BETTER} {WORSE}: the paired 95% interval of the difference to {results.baseline} at the same budget leaves out 0; not "
            "adjusted for the number of comparisons.",
        )
    if any(entry.credit is not None for entry in results.figures):
        notes.append("Credit: the verifier's mean number at the largest budget, in per cent; right answers are those that pass.")
    if any(entry.flops is not None for entry in results.figures):
        notes.append("GFLOPs: 10^9 operations of the matrix products of policy and PRM, for the tokens that they forwarded.")
    if not results.facts.prm:
        notes.append("No PRM: methods that choose by score have nothing to choose by.")
    return notes


def _rows(results: ComparisonResults) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table: accuracy per budget, then costs at the largest."""
    budgets = results.budgets
    header = ["method", *(f"{budget:,}" for budget in budgets), "tokens", "seconds", "PRM calls", "answered"]
    has_credit = any(entry.credit is not None for entry in results.figures)
    if has_credit:
        header.append("credit")
    has_flops = any(entry.flops is not None for entry in results.figures)
    if has_flops:
        header.insert(header.index("seconds") + 1, "GFLOPs")
    rows = []
    for name, entries in _by_method(results):
        last = entries[-1]
        # A point has one accuracy for all budgets; it is in the first column that its tokens fit.
        at = {_column(entry, budgets): entry for entry in entries}
        accuracies = [_accuracy(at[budget]) if budget in at else "" for budget in budgets]
        operations = [MISSING if last.flops is None else charts.short_number(last.flops / 1e9)] if has_flops else []
        costs = [
            f"{last.tokens:,.0f}",
            charts.short_number(last.seconds),
            *operations,
            f"{last.prm_calls:.1f}",
            percent(last.answered),
        ]
        credit = [MISSING if last.credit is None else percent(last.credit)] if has_credit else []
        rows.append([name, *accuracies, *costs, *credit])
    return header, rows


def _column(entry: MethodFigures, budgets: Sequence[int]) -> int:
    if entry.budget is not None:
        return entry.budget
    return next((budget for budget in budgets if budget >= entry.tokens), budgets[-1])


def _accuracy(entry: MethodFigures) -> str:
    mark = ""
    if entry.difference_interval is not None:
        low, high = entry.difference_interval
        mark = f" {BETTER}" if low > 0 else f" {WORSE}" if high < 0 else ""
    return percent_with_interval(Accuracy(value=entry.accuracy, interval=entry.interval)) + mark


def _by_method(results: ComparisonResults) -> list[tuple[str, list[MethodFigures]]]:
    """Return every method with its figures by rising budget, the most accurate at its largest budget first."""
    methods: dict[str, list[MethodFigures]] = {}
    for entry in results.figures:
        methods.setdefault(entry.method, []).append(entry)
    return sorted(methods.items(), key=lambda pair: -pair[1][-1].accuracy)


def _flat(entry: MethodFigures) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in asdict(entry).items():
        if name in ("interval", "difference_interval"):
            flat[f"{name}_low"], flat[f"{name}_high"] = value or (None, None)
        else:
            flat[name] = value
    return flat


def _panels(results: ComparisonResults, measure: _Measure) -> list[str]:
    """Draw the charts, all on the same axes."""
    methods = _by_method(results)
    points = [name for name, entries in methods if entries[0].budget is None]
    others = [name for name, _ in methods if name not in points and name != results.baseline]
    known = dict(methods)
    # A scripted search may take no time at all, and a logarithm has no place for 0.
    values = [max(measure.of(entry), 1e-6) for _, entries in methods for entry in entries]
    highest = [entry.interval.high for _, entries in methods for entry in entries]
    draw = partial(
        charts.line_chart,
        x=charts.log_axis(measure.axis, values),
        y=charts.percent_axis("right answers (%)", highest),
        x_name=measure.name,
        x_text=charts.short_number,
    )
    panels = []
    for begin in range(0, max(len(others), 1), _LINES_PER_PANEL):
        chosen = others[begin : begin + _LINES_PER_PANEL]
        lines = [_series(name, f"line-{index}", known[name], measure) for index, name in enumerate(chosen)]
        lines += [_series(name, "policy", known[name], measure, lone=True) for name in points]
        if results.baseline is not None:
            lines.append(_series(results.baseline, "baseline", known[results.baseline], measure))
        panels.append(draw(lines, label=f"{measure.title}: {', '.join(line.name for line in lines)}"))
    return panels


def _series(name: str, style: str, entries: Sequence[MethodFigures], measure: _Measure, *, lone: bool = False) -> charts.Series:
    shown = name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"
    points = [
        charts.Point(
            x=max(measure.of(entry), 1e-6),
            y=entry.accuracy,
            low=entry.interval.low,
            high=entry.interval.high,
            text=f"{_accuracy(entry)} %" + ("" if entry.budget is None else f" with {entry.budget:,} tokens"),
        )
        for entry in entries
    ]
    return charts.Series(name=shown, style=style, points=sorted(points, key=lambda point: point.x), lone=lone)
