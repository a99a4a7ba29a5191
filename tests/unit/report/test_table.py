"""The table of rounds on the terminal."""

import io
from dataclasses import replace

from rich.console import Console

from stepladder.loops.runs.results import FailedTraining
from stepladder.loops.runs.split_figures import CreditFigures
from stepladder.report.table import RoundTable
from tests.report_run import full_rows, row


def plain_console(width: int = 80) -> tuple[Console, io.StringIO]:
    """Return a console that writes plain text to memory."""
    out = io.StringIO()
    return Console(file=out, width=width, force_terminal=False, color_system=None), out


def test_a_finished_round_is_one_line_that_explains_itself() -> None:
    """The line is printed when the round is added, is never wrapped, and names every figure."""
    console, out = plain_console()
    table = RoundTable(console)
    table.add(full_rows()[1])
    assert out.getvalue() == (
        "round 1: pass@1 45.0 (40.0–50.0) %, search 66.0, majority 48.0, best-of-n 50.0, weighted vote 57.0, PRM AUC 0.771, "
        "pairs 1,204, tokens 2.10M, 1 min 04 s, accepted (held-out pass@1 45.0 %), PRM accepted (held-out within-problem AUC 0.771)\n"
    )


def test_missing_figures_and_rejection_are_shown() -> None:
    """Without a PRM its figures are en dashes; zero pairs are 0 and not a dash; a rejected round says so, and by which held-out figures."""
    console, out = plain_console()
    RoundTable(console).add(row(1, policy=0.3, search=0.4, majority=0.35, accepted=False, best_policy=0, pairs=0))
    assert "best-of-n –, weighted vote –, PRM AUC –, pairs 0," in out.getvalue()
    assert out.getvalue().endswith(", not accepted (held-out pass@1 30.0 % is below the best model's 64.0 %)\n")


def test_a_line_tells_of_the_prm_that_the_round_trained_and_of_no_other() -> None:
    """An earlier round's PRM had its decision in that round; a training that failed is one as well."""
    console, out = plain_console()
    trained = full_rows()[1]
    older = replace(trained, scorer_version=0)
    failed = replace(
        older, training=replace(older.training, prm=FailedTraining(failed="no rows")), prm_accepted=False, prm_accepted_reason="no rows"
    )
    for entry in (older, failed):
        RoundTable(console).add(entry)
    first, second = out.getvalue().splitlines()
    assert first.endswith(", accepted (held-out pass@1 45.0 %)")
    assert second.endswith(", accepted (held-out pass@1 45.0 %), PRM not accepted (no rows)")


def test_render_has_one_aligned_line_per_round() -> None:
    """Two tables, each with header, rule and rounds: aligned, within 80 columns whatever the console's width, without control codes."""
    console, _ = plain_console(width=20)
    table = RoundTable(console)
    for entry in full_rows():
        table.add(entry)
    text = table.render()
    accuracies, others = (part.splitlines() for part in text.split("\n\n"))
    assert len(accuracies) == len(others) == 2 + 4
    assert accuracies[0].split() == ["round", "pass@1", "%", "(95", "%)", "search", "majority", "best-of-n", "weighted", "vote"]
    assert others[0].split() == ["round", "PRM", "AUC", "pairs", "tokens", "time", "accepted"]
    assert accuracies[2].split() == ["0", "16.7", "(11.7–21.7)", "21.0", "19.0", "–", "–"]
    assert others[2].split() == ["0", "–", "–", "176,000", "1", "min", "03", "s", "yes"]
    assert others[5].split()[-1] == "no"
    ends = {line.index(text) + len(text) for line, text in zip(accuracies[2:], ("21.0", "66.0", "81.0", "79.0"), strict=True)}
    assert len(ends) == 1
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_render_without_rounds_is_only_the_headers() -> None:
    """An empty run renders; nothing is invented."""
    assert len(RoundTable(plain_console()[0]).render().splitlines()) == 2 + 1 + 2


def test_partial_credit_has_a_column_where_a_verifier_gives_it() -> None:
    """The means of the policy alone and of the search, in per cent; a round without shows a dash."""
    console, out = plain_console()
    table = RoundTable(console)
    first, second = full_rows()[:2]
    table.add(first)
    table.add(replace(second, test=replace(second.test, credit=CreditFigures(policy=0.412, samples=0.4, search=0.63))))
    assert "weighted vote 57.0, credit 41.2 / 63.0, PRM AUC" in out.getvalue()
    others = table.render().split("\n\n")[1].splitlines()
    assert (
        others[0].split()[:3] == ["round", "credit", "PRM"]
        and others[2].split()[1] == "–"
        and others[3].split()[1:4] == ["41.2", "/", "63.0"]
    )
