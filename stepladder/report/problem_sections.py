"""The sections on single test problems: one solution before and after, and all wrong ones by kind of failure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stepladder.report.figures import percent, times
from stepladder.report.markup import Markup, html, lead, section, table
from stepladder.report.wrong_problems import BeforeAfter, Failure, WrongProblem, cut

_EXPLAINED = {
    Failure.NO_ANSWER: "no solution of the tree states an answer: more budget, or another reading of answers",
    Failure.PREFERRED: "the tree has a right solution, and the PRM scores the chosen wrong one higher: a better PRM",
    Failure.OUTVOTED: "the tree has a right solution, but other answers have more votes or value: another answer rule",
    Failure.NOT_FOUND: "no solution of the tree is right: a better policy, or more budget",
}
"""What every kind means, and what would help."""


def before_after(examples: Sequence[BeforeAfter], best: int) -> Markup:
    """Return some problems with the greedy solution of the first policy beside that of the best one."""
    if not examples:
        return Markup("")
    said = lead(
        f"Greedy solutions of the same test problems by the first policy and by that of round {best}, verbatim. Problems that "
        "were learned come first."
    )
    pairs = "".join(_pair(example, best) for example in examples)
    return section("before-after", "Before and after", said, Markup(pairs))


def _pair(example: BeforeAfter, best: int) -> str:
    shown = "".join(
        f'<div class="{_verdict(row.correct)}-side"><h4>round {number}, {_verdict(row.correct)}</h4>'
        f'<pre tabindex="0">{html(cut((row.text or "").strip()))}</pre></div>'
        for number, row in ((0, example.before), (best, example.after))
    )
    return f'<article class="pair"><h3>{html(cut(example.question))}</h3><div class="sides">{shown}</div></article>'


def _verdict(right: bool) -> str:
    return "right" if right else "wrong"


def wrong(problems: Sequence[WrongProblem], number: int, total: int) -> Markup:
    """Return the counts of wrong problems by kind, and the frame in which the page's script lists them.

    Args:
        problems: The wrong ones.
        number: The round.
        total: Test problems searched.
    """
    if not total:
        return Markup("")
    if not problems:
        return section("wrong", "Wrong test problems", lead(f"The search of round {number} answers all {total:,} test problems rightly."))
    counts = Counter(problem.failure for problem in problems)
    cells = [(str(kind), f"{counts[kind]:,}", f"{percent(counts[kind] / total)} %", _EXPLAINED[kind]) for kind in Failure if counts[kind]]
    said = lead(
        f"The search of round {number} answers {times(len(problems), 'test problem')} of {total:,} wrongly, for the reasons below. The "
        "list has all of them; “alone” is the verdict on the policy's greedy solution, “samples” the share of right independent ones."
    )
    return section(
        "wrong",
        "Wrong test problems",
        said,
        table(("kind of failure", "problems", "of all", "meaning, and what would help"), cells, text_columns=[0, 3]),
        Markup(_FRAME),
    )


_FRAME = (
    '<noscript><p class="remark">The list is made by this page’s own script, which is switched off here.</p></noscript>'
    '<div id="wrong-frame" hidden><div class="choice">'
    '<label for="wrong-search">search</label> <input type="search" id="wrong-search" autocomplete="off"> '
    '<label for="wrong-kind">kind</label> <select id="wrong-kind"></select></div>'
    '<p id="wrong-count" role="status"></p>'
    '<div class="scroll" tabindex="0" role="region" aria-label="Wrong test problems"><table class="wrong-list"><thead><tr>'
    '<th scope="col" class="words">problem</th><th scope="col" class="words">question</th><th scope="col" class="words">answer given</th>'
    '<th scope="col" class="words">kind of failure</th><th scope="col" class="words">alone</th><th scope="col" class="number">samples</th>'
    '</tr></thead><tbody id="wrong-rows"></tbody></table></div>'
    '<div class="choice"><button type="button" id="wrong-more">show more</button></div></div>'
)


def wrong_data(problems: Sequence[WrongProblem]) -> list[dict[str, Any]]:
    """Return the wrong problems as plain containers, for the page's script."""
    return [asdict(problem) | {"failure": str(problem.failure)} for problem in problems]
