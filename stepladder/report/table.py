"""The rounds of a run as text: a line when a round is finished, a table at the end."""

import io

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stepladder.loops.runs.results import RoundRow
from stepladder.report.figures import (
    POLICY,
    SAMPLING,
    SEARCH,
    Method,
    accuracy,
    count,
    credit,
    decimals,
    duration,
    kept_pairs,
    percent,
    percent_with_interval,
    policy_decision,
    prm_decision,
)
from stepladder.terminal import plain

_ACCURACIES = (SEARCH, *reversed(SAMPLING))
_WIDE_ENOUGH = 240
"""Columns of the console that renders the table: the table takes its natural width, whatever the terminal's is."""


class RoundTable:
    """Collects the figures of finished rounds."""

    def __init__(self, console: Console) -> None:
        """Announce rounds on ``console``."""
        self._console = console
        self._rows: list[RoundRow] = []

    def add(self, row: RoundRow) -> None:
        """Store a finished round's figures and print them as one line; if the round learned nothing, print the reason as another."""
        self._rows.append(row)
        parts = [
            f"pass@1 {percent_with_interval(accuracy(row, POLICY))} %",
            *(f"{method.label} {_percent(row, method)}" for method in _ACCURACIES),
            *([] if row.test.credit is None else [f"credit {credit(row)}"]),
            f"PRM AUC {decimals(row.test.pool.prm_within_problem_auc)}",
            f"pairs {count(kept_pairs(row))}",
            f"tokens {count(row.generated_tokens)}",
            duration(row.seconds),
        ]
        line = Text(f"round {row.round}: {', '.join(parts)}, ")
        # The gate looks at held-out problems, whose figures the line does not have otherwise.
        line.append(plain(policy_decision(row)), "green" if row.accepted else "red")
        if (decision := prm_decision(row)) is not None:
            line.append(plain(f", {decision}"))
        # Lines of a log are for programs, too; those of a terminal are broken between words.
        self._console.print(line, soft_wrap=not self._console.is_terminal)
        said = () if row.nothing_learned is None else (f"the policy learned nothing: {row.nothing_learned}",)
        for sentence in (*said, *row.warnings):
            self._console.print(Text(plain(f"round {row.round}: {sentence}"), style="yellow"), soft_wrap=True)

    def render(self) -> str:
        """Return the figures of all rounds as plain text: accuracies, then the rest, in two tables that fit a terminal of 80 columns."""
        accuracies = _table("pass@1 % (95 %)", *(method.label for method in _ACCURACIES))
        has_credit = any(row.test.credit is not None for row in self._rows)
        others = _table(*(["credit"] if has_credit else []), "PRM AUC", "pairs", "tokens", "time", "accepted")
        for row in self._rows:
            figures = (percent_with_interval(accuracy(row, POLICY)), *(_percent(row, method) for method in _ACCURACIES))
            accuracies.add_row(str(row.round), *figures)
            others.add_row(str(row.round), *([credit(row)] if has_credit else []), *_other_figures(row))
        return f"{_as_text(accuracies)}\n{_as_text(others)}"


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("round", *names):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _as_text(table: Table) -> str:
    out = io.StringIO()
    Console(file=out, width=_WIDE_ENOUGH, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n") + "\n"


def _other_figures(row: RoundRow) -> list[str]:
    return [
        decimals(row.test.pool.prm_within_problem_auc),
        count(kept_pairs(row)),
        count(row.generated_tokens),
        duration(row.seconds),
        "yes" if row.accepted else "no",
    ]


def _percent(row: RoundRow, method: Method) -> str:
    estimate = accuracy(row, method)
    return percent(None if estimate is None else estimate.value)
