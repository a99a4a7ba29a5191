"""The section on the PRM: how it ranks, how true its scores are, which solutions have which scores, and how that depends on depth."""

from collections.abc import Callable, Mapping, Sequence

from stepladder.data.metrics.monitors import ScoreHistogram
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.split_figures import PoolFigures
from stepladder.report import charts
from stepladder.report.figures import count, decimals, percent
from stepladder.report.markup import Markup, figure, lead, prose, section
from stepladder.report.prm_depth import DepthAuc

_FALL = 0.03
"""Loss of AUC that is worth a sentence."""
_FEWEST_IN_BIN = 5
"""Fewest solutions of a bin whose share means anything."""
_RELIABILITY_ROUNDS = 3
"""Newest rounds of which the reliability is drawn."""


def prm(rows: Sequence[RoundRow], by_depth: Mapping[int, DepthAuc]) -> Markup:
    """Return the quality of the PRM.

    Args:
        rows: The rounds.
        by_depth: AUC by depth for some rounds.
    """
    within = _pool_line(rows, lambda pool: pool.prm_within_problem_auc, name="within problem", style="search")
    pooled = _pool_line(rows, lambda pool: pool.prm_pooled_auc, name="pooled", style="majority")
    brier = _pool_line(rows, lambda pool: pool.prm_brier, name="Brier score", style="weighted_vote")
    if not (within.points or pooled.points or brier.points):
        return section("prm", "The process reward model", lead("No PRM has been measured in this run."))
    explanation = lead(
        "What counts is the AUC within a problem: how often, of a right and a wrong solution of the same problem, the PRM scores "
        "the right one higher. The pooled AUC compares solutions of different problems as well, so telling easy problems from hard "
        "ones raises it, and that guides no search."
    )
    numbers = [row.round for row in rows]
    drawn = [
        figure(_auc_chart([within, pooled], numbers), "Ranking: AUC, higher is better"),
        figure(_brier_chart(brier, numbers), "Calibration: Brier score, lower is better"),
        *_score_figures(rows),
        *([figure(_depth_chart(by_depth), "Ranking of steps by depth, in the trees of the training search")] if by_depth else []),
    ]
    said = [sentence for sentence in (_over_rounds(within), _over_depth(by_depth)) if sentence]
    remark = Markup(f'<div class="remark"><p>{prose(" ".join(said))}</p></div>') if said else Markup("")
    return section("prm", "The process reward model", explanation, remark, Markup(f'<div class="multiples">{"".join(drawn)}</div>'))


def _over_rounds(line: charts.Series) -> str:
    """Explain an AUC that falls over the rounds."""
    if len(line.points) < 2:
        return ""
    best, last = max(line.points, key=lambda point: point.y), line.points[-1]
    if best.y - last.y < _FALL:
        return ""
    return (
        f"The AUC within a problem falls from {decimals(best.y, 2)} in round {best.x:.0f} to {decimals(last.y, 2)} in round {last.x:.0f}. "
        "This alone does not make it a worse PRM: a better policy writes wrong solutions that look more like right ones, and each round is "
        "measured on its own policy's solutions."
    )


def _over_depth(by_depth: Mapping[int, DepthAuc]) -> str:
    """Explain an AUC that falls with depth, in the newest round that has one."""
    if not by_depth:
        return ""
    number = max(by_depth)
    figures = sorted(by_depth[number].items())
    if len(figures) < 2:
        return ""
    (first, before), (last, after) = max(figures[: len(figures) // 2 + 1], key=lambda pair: pair[1]), figures[-1]
    if before - after < _FALL:
        return ""
    return (
        f"In the trees of round {number} the AUC of single steps falls from {decimals(before, 2)} at depth {first} to "
        f"{decimals(after, 2)} at depth {last}: deep in a solution the search is guided less well than at its beginning."
    )


def _score_figures(rows: Sequence[RoundRow]) -> list[Markup]:
    """Draw reliability and scores of the newest round that has them."""
    measured = [(row.round, row.test.monitors.prm_scores) for row in rows if row.test.monitors is not None]
    found = [(number, scores) for number, scores in measured if scores is not None]
    if not found:
        return []
    number, scores = found[-1]
    drawn = found[-_RELIABILITY_ROUNDS:]
    lines = [_reliability_line(*each, style) for each, style in zip(drawn, charts.age_styles(len(drawn)), strict=True)]
    return [
        figure(_reliability_chart(lines), "Reliability: share of right solutions among those with a score"),
        figure(_histogram(scores, number), f"Scores of right and of wrong solutions, round {number}"),
    ]


def _reliability_line(number: int, scores: ScoreHistogram, style: str) -> charts.Series:
    bins = len(scores.right)
    points = [
        charts.Point(x=(index + 0.5) / bins, y=right / (right + wrong), text=f"{percent(right / (right + wrong))} % of {right + wrong:,}")
        for index, (right, wrong) in enumerate(zip(scores.right, scores.wrong, strict=True))
        if right + wrong >= _FEWEST_IN_BIN
    ]
    return charts.Series(name=f"round {number}", style=style, points=points)


def _reliability_chart(lines: Sequence[charts.Series]) -> str:
    perfect = charts.Series(
        name="perfect", style="baseline", points=[charts.Point(x=0.0, y=0.0, text="0 %"), charts.Point(x=1.0, y=1.0, text="100 %")]
    )
    ticks = [(tick / 5, f"{tick / 5:.1f}") for tick in range(6)]
    x = charts.Axis(label="score of the PRM", low=-0.02, high=1.02, ticks=ticks)
    y = charts.Axis(label="right solutions (%)", low=0.0, high=1.0, ticks=[(tick / 5, f"{20 * tick}") for tick in range(6)])
    label = "Reliability of the PRM: share of right test solutions by score; on the dashed diagonal a score is the chance to be right"
    return charts.line_chart([*lines, perfect], x=x, y=y, label=label, x_name="score about", x_text="{:.2f}".format, height=300)


def _histogram(scores: ScoreHistogram, number: int) -> str:
    label = f"Scores of right and of wrong test solutions in round {number}, in ten bins from 0 to 1"
    tips = [
        f"score {index / 10:.1f} to {(index + 1) / 10:.1f}\nright {count(right)}\nwrong {count(wrong)}"
        for index, (right, wrong) in enumerate(zip(scores.right, scores.wrong, strict=True))
    ]
    return charts.mirrored_bars(scores.right, scores.wrong, names=("right", "wrong"), tips=tips, label=label)


def _depth_chart(by_depth: Mapping[int, DepthAuc]) -> str:
    numbers = sorted(by_depth)
    lines = [
        charts.Series(
            name=f"round {number}",
            style=style,
            points=[charts.Point(x=depth, y=auc, text=decimals(auc)) for depth, auc in sorted(by_depth[number].items())],
        )
        for number, style in zip(numbers, charts.age_styles(len(numbers)), strict=True)
    ]
    depths = sorted({depth for figures in by_depth.values() for depth in figures})
    x = charts.whole_axis("depth of the step", depths)
    label = "AUC of single steps by depth, one line per round"
    return charts.line_chart(lines, x=x, y=_auc_axis(lines), label=label, x_name="depth", height=300, guide=(0.5, "chance"))


def _pool_line(rows: Sequence[RoundRow], of: Callable[[PoolFigures], float | None], *, name: str, style: str) -> charts.Series:
    measured = [(row.round, of(row.test.pool)) for row in rows]
    points = [charts.Point(x=number, y=value, text=decimals(value)) for number, value in measured if value is not None]
    return charts.Series(name=name, style=style, points=points)


def _auc_axis(lines: Sequence[charts.Series]) -> charts.Axis:
    lowest = min((point.y for line in lines for point in line.points), default=0.5)
    low = 0.4 if lowest >= 0.4 else 0.0
    ticks = [(tick / 10, f"0.{tick}" if tick < 10 else "1.0") for tick in range(round(10 * low), 11, 1 if low else 2)]
    return charts.Axis(label="AUC (0.5 is chance)", low=low, high=1.0, ticks=ticks)


def _auc_chart(lines: Sequence[charts.Series], numbers: Sequence[int]) -> str:
    label = "AUC of the PRM within problems and pooled, by round"
    return charts.line_chart(
        lines, x=charts.round_axis(numbers), y=_auc_axis(lines), label=label, x_name="round", height=280, guide=(0.5, "chance")
    )


def _brier_chart(line: charts.Series, numbers: Sequence[int]) -> str:
    high = 0.3 if max((point.y for point in line.points), default=0.0) <= 0.3 else 1.0
    ticks = [(tick / 10, f"{tick / 10:.1f}") for tick in range(0, round(10 * high) + 1, 1 if high < 1 else 2)]
    axis = charts.Axis(label="mean squared error", low=0.0, high=high, ticks=ticks)
    guide = (0.25, "always scoring 0.5")
    label = "Brier score of the PRM by round"
    return charts.line_chart([line], x=charts.round_axis(numbers), y=axis, label=label, x_name="round", height=280, guide=guide)
