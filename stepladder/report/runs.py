"""Several runs side by side, as text and as a page."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from stepladder.files import atomic_write_text
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.side_by_side import ComparedRun, compare_runs, differing_settings
from stepladder.outputs import check_output, text_with
from stepladder.report.figures import MISSING, POLICY, SEARCH, accuracy, count, decimals, duration, percent, percent_with_interval, times
from stepladder.report.markup import Markup, figure, lead, section, table
from stepladder.report.page import PAGE_MARK, document
from stepladder.report.seed_groups import SeedGroup, group_chart, mean_interval, seed_groups

_Table = tuple[list[str], list[list[str]]]
"""Header and rows."""
_LONGEST = 60
"""Characters of a setting's value."""


def write_comparison_of_runs(runs: Sequence[RunDir], to: Path | None, *, overwrite: bool = False) -> str:
    """Return runs side by side as text, and write the page if there is a place for it.

    Args:
        runs: Two or more runs; the others are set against the first.
        to: HTML file; None writes none.
        overwrite: Replace an earlier page.

    Raises:
        ConfigError: If the runs cannot be compared.
        CheckpointError: If a run is damaged, or the page cannot be written.
    """
    if to is not None:
        check_output(to, option="--to", ours=text_with(PAGE_MARK), overwrite=overwrite)
    compared, settings = compare_runs(runs), differing_settings(runs)
    tables = {
        "Best policies on test problems": _best(compared),
        "Rounds": _rounds(compared),
        "Settings that differ": _settings(compared, settings),
    }
    groups = seed_groups(runs, compared)
    if any(len(group.runs) > 1 for group in groups):
        tables["Over seeds"] = _over_seeds(groups)
    if to is not None:
        atomic_write_text(to, document("Runs side by side", _body(compared, groups, tables)))
    return "\n\n".join(f"{title}\n{_text(*each)}" for title, each in tables.items() if each[1])


def _best(runs: Sequence[ComparedRun]) -> _Table:
    header = ["run", "best round", "pass@1 % (95 %)", f"against {runs[0].name}", "p", "updates", "tokens", "time"]
    return header, [
        [
            run.name,
            str(run.best.round),
            percent_with_interval(accuracy(run.best, POLICY)),
            _difference(run),
            MISSING if run.against_first is None else decimals(run.against_first.p_value),
            count(run.updates),
            count(run.generated_tokens),
            duration(run.seconds),
        ]
        for run in runs
    ]


def _difference(run: ComparedRun) -> str:
    found = run.against_first
    if found is None:
        return MISSING
    low, high = (f"{100 * bound:+.1f}" for bound in found.interval)
    return f"{100 * found.difference:+.1f} ({low} to {high}) on {times(run.num_shared, 'problem')}"


def _rounds(runs: Sequence[ComparedRun]) -> _Table:
    header = ["round", *(f"{run.name}: {what}" for run in runs for what in ("pass@1", "search", "PRM AUC", "accepted"))]
    rounds = zip_longest(*(run.rows for run in runs))
    return header, [[str(number), *(cell for row in rows for cell in _cells(row))] for number, rows in enumerate(rounds)]


def _cells(row: RoundRow | None) -> list[str]:
    if row is None:
        return [MISSING] * 4
    values = [accuracy(row, method) for method in (POLICY, SEARCH)]
    shares = [percent(None if each is None else each.value) for each in values]
    return [*shares, decimals(row.test.pool.prm_within_problem_auc), "yes" if row.accepted else "no"]


def _settings(runs: Sequence[ComparedRun], settings: dict[str, list[Any]]) -> _Table:
    return ["setting", *(run.name for run in runs)], [[key, *(_value(each) for each in values)] for key, values in settings.items()]


def _value(value: Any) -> str:
    text = MISSING if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _text(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (header, *rows))


def _over_seeds(groups: Sequence[SeedGroup]) -> _Table:
    header = ["configuration", "seeds", "pass@1 %, mean", "95 %", "worst", "best"]
    rows = []
    for group in groups:
        if values := group.best():
            middle, low, high = mean_interval(values)
            interval = MISSING if len(values) < 2 else f"{percent(low)}–{percent(high)}"
            rows.append([group.name, str(len(values)), percent(middle), interval, percent(min(values)), percent(max(values))])
    return header, rows


def _body(runs: Sequence[ComparedRun], groups: Sequence[SeedGroup], tables: dict[str, _Table]) -> Markup:
    said = f"Figures are on test problems, and the others are set against {runs[0].name} problem by problem."
    parts = [
        section(f"part-{number}", title, table(*each, text_columns=[0])) for number, (title, each) in enumerate(tables.items()) if each[1]
    ]
    top = f'<header><div class="said"><p class="kicker">{times(len(runs), "run")}</p><h1>Runs side by side</h1>{lead(said)}</div></header>'
    return Markup(f'{top}<main id="figures">{_curves(groups)}{"".join(parts)}</main>')


def _curves(groups: Sequence[SeedGroup]) -> Markup:
    drawn = [
        (method, chart)
        for method in (POLICY, SEARCH)
        if (chart := group_chart(groups, method, f"{method.label} by round, one line per configuration"))
    ]
    if not drawn:
        return Markup("")
    bands = any(len(group.runs) > 1 for group in groups)
    said = "A line with a band is the mean over runs that differ only in their seed; the band reaches from the worst to the best of them."
    figures = "".join(figure(chart, method.label) for method, chart in drawn)
    shown = Markup(f'<div class="multiples">{figures}</div>')
    return section("curves", "Accuracy by round", lead(said) if bands else "", shown)
