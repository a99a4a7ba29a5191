"""The sections of the page, each a function from figures to HTML. A section without data is empty."""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from stepladder.loops.config.run import Config
from stepladder.loops.runs.problem_facts import ProblemFacts
from stepladder.loops.runs.results import FailedTraining, RoundRow, TrainingSummary
from stepladder.loops.runs.split_figures import AnswerMethod
from stepladder.loops.runs.stage_times import StageTimes
from stepladder.report import charts, figures
from stepladder.report.figures import (
    METHODS,
    POLICY,
    SAMPLING,
    SEARCH,
    accuracy,
    count,
    decimals,
    duration,
    percent,
    times,
)
from stepladder.report.idle_time import idle_time
from stepladder.report.levels import LevelPicture
from stepladder.report.markup import Markup, beside, figure, html, lead, prose, section, table
from stepladder.report.overview import costs
from stepladder.report.training_curves import training_curves

_MOST_FINDINGS = 4
"""Number of rounds for which the over-optimisation remark gives figures; with more, it names only the rounds."""


def hero(name: str, rows: Sequence[RoundRow], stages: StageTimes, *, picture: LevelPicture, facts: Markup) -> Markup:
    """Return the top of the page: the headline, its remarks, the first picture, and what was run.

    The picture is accuracy by level and round where problems have levels, else the staircase of the rounds.

    Args:
        name: Name of the run.
        rows: Its rounds.
        stages: Times of its stages.
        picture: Accuracy by level.
        facts: What was run.
    """
    said = figures.headline(rows)
    remarks = "".join(f"<li>{prose(remark)}</li>" for remark in said.remarks)
    line = " · ".join(fact for fact in (f"run {name}", _when(stages), _spent(rows)) if fact)
    text = f'<p class="kicker">{escape(line)}</p><h1>{prose(said.title)}</h1>' + (f"<ul>{remarks}</ul>" if remarks else "")
    if picture.is_drawn:
        drawing = figure(picture.policy(), f"right answers by {picture.name} of the problem: the policy alone, greedy, round by round")
    else:
        drawing = staircase(rows)
    return Markup(f'<header><div class="said">{text}</div>{drawing}{facts}</header>')


def staircase(rows: Sequence[RoundRow], attributes: str = "") -> Markup:
    """Return the best policy's accuracy round by round, as steps; empty if nothing was measured."""
    treads = [_tread(rows, row) for row in rows]
    if all(tread.value is None for tread in treads):
        return Markup("")
    label = f"pass@1 of the best policy by round: {', '.join(percent(tread.level) for tread in treads)} %"
    return figure(charts.staircase(treads, label=label), "pass@1 on test problems, the policy alone, greedy", attributes)


def _tread(rows: Sequence[RoundRow], row: RoundRow) -> charts.Tread:
    # A round that trained no policy has measured the best one again, which is no news.
    value = _value(row) if row.trained_policy else None
    return charts.Tread(round=row.round, value=value, accepted=row.accepted, level=_value(rows[row.best_policy]))


def _value(row: RoundRow) -> float | None:
    estimate = accuracy(row, POLICY)
    return None if estimate is None else estimate.value


def _when(stages: StageTimes) -> str:
    return "" if stages.begin is None else datetime.fromtimestamp(stages.begin, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")


def _spent(rows: Sequence[RoundRow]) -> str:
    if not rows:
        return ""
    tokens = sum(row.generated_tokens for row in rows)
    return f"{count(tokens)} tokens generated, {duration(sum(row.seconds or 0 for row in rows))}"


def rounds(rows: Sequence[RoundRow], *, with_steps: bool) -> Markup:
    """Return the table of rounds, and the staircase if it is not the first picture."""
    has_credit = any(row.test.credit is not None for row in rows)
    header = (
        "round",
        "policy alone",
        "search",
        "weighted vote",
        "best-of-n",
        "majority",
        "tokens a problem",
        *(["credit"] if has_credit else []),
        "PRM AUC",
        "pairs",
        "tokens",
        "time",
    )
    best = rows[-1].best_policy
    cells = [
        (
            row.round,
            _with_interval(row),
            *_equal_token_cells(row),
            _with_sampled_tokens(row),
            *([figures.credit(row)] if has_credit else []),
            decimals(row.test.pool.prm_within_problem_auc),
            count(figures.kept_pairs(row)),
            count(row.generated_tokens),
            duration(row.seconds),
            _decision(row, is_best=row.round == best),
        )
        for row in rows
    ]
    problems = rows[-1].test.problems
    explanation = lead(
        f"Accuracy in percent on {f'{problems:,}' if problems else 'the'} test problems; the 95 % interval stands below. On each problem "
        "the three sampling methods get the whole samples that fit the search's tokens, one at least; what they took stands below the "
        "tokens of the search. The best of the four is set in bold. The gate decides on held-out problems, never on test."
        + (" Credit is the verifier's mean number, of the policy alone and of the search." if has_credit else "")
    )
    shown = table((*header, "gate"), cells, style="rounds", text_columns=[len(header)])
    return section("rounds", "The rounds", explanation, shown, staircase(rows, ' class="small"') if with_steps else "")


def _with_sampled_tokens(row: RoundRow) -> Markup:
    search = row.test.search
    if search is None:
        return html(figures.MISSING)
    return Markup(f"{count(search.tokens_per_problem)}<small>samples {count(search.sampling_tokens_per_problem)}</small>")


def _with_interval(row: RoundRow) -> Markup:
    estimate = accuracy(row, POLICY)
    if estimate is None:
        return html(figures.MISSING)
    low, high = estimate.interval
    return Markup(f"{percent(estimate.value)}<small>{percent(low)}–{percent(high)}</small>")


def _equal_token_cells(row: RoundRow) -> list[Markup]:
    values = [None if (estimate := accuracy(row, method)) is None else estimate.value for method in (SEARCH, *SAMPLING)]
    best = max((value for value in values if value is not None), default=None)
    return [
        Markup(f"<strong>{percent(value)}</strong>") if value is not None and value == best else html(percent(value)) for value in values
    ]


def _decision(row: RoundRow, *, is_best: bool) -> Markup:
    word = "start" if row.round == 0 else _gate_word(accepted=row.accepted, trained=row.trained_policy)
    parts = [f'<span class="badge {word}">{word}</span>', escape(row.accepted_reason)]
    if is_best:
        parts.append("<em>current best</em>")
    if row.nothing_learned is not None:
        parts.append(f"<small>{escape(row.nothing_learned)}</small>")
    if row.scorer_version is not None or isinstance(row.training.prm, FailedTraining):
        word = _gate_word(accepted=row.prm_accepted, trained=row.scorer_version == row.round)
        parts.append(f"<small>PRM {word}: {escape(row.prm_accepted_reason)}</small>")
    return Markup(" ".join(parts))


def _gate_word(*, accepted: bool, trained: bool) -> str:
    """A model that the round did not train cannot be rejected."""
    return "accepted" if accepted else "rejected" if trained else "unchanged"


def by_round(rows: Sequence[RoundRow]) -> Markup:
    """Return the curves by round."""
    lines = [_round_line(rows, method) for method in METHODS]
    values = [point.y if point.high is None else point.high for line in lines for point in line.points]
    if not values:
        return Markup("")
    chart = charts.line_chart(
        lines,
        x=charts.round_axis([row.round for row in rows]),
        y=charts.percent_axis("right answers (%)", values),
        label="Accuracy on test problems by round, one line per method",
        x_name="round",
    )
    explanation = lead(
        "Each point is a round's own policy and PRM, accepted or not, on the test problems; whiskers are 95 % intervals. The "
        "distance from “policy alone” to “search” is what searching adds; the rise of “policy alone” is what the policy learned "
        "from it."
    )
    return section("by-round", "Accuracy by round", beside(figure(chart), explanation))


def _round_line(rows: Sequence[RoundRow], method: figures.Method) -> charts.Series:
    estimates = [(row.round, accuracy(row, method)) for row in rows]
    points = [
        charts.Point(
            x=number,
            y=estimate.value,
            low=estimate.interval.low,
            high=estimate.interval.high,
            text=f"{figures.percent_with_interval(estimate)} %",
        )
        for number, estimate in estimates
        if estimate is not None
    ]
    return charts.Series(name=method.label, style=method.key, points=points)


def by_tokens(rows: Sequence[RoundRow]) -> Markup:
    """Return accuracy against generated tokens, one chart per round; the page's script shows one of them at a time."""
    measured = [(row, curves) for row in rows if (curves := figures.measured_curves(row))]
    if not measured:
        return Markup("")
    values = [value for row, curves in measured for curve in curves.values() for _, value in curve]
    # One scale for all rounds, so that they can be compared side by side.
    y = charts.percent_axis("right answers (%)", [*values, *(value for row, _ in measured if (value := _value(row)) is not None)])
    charts_by_round = [_token_figure(row, curves, y) for row, curves in measured]
    explanation = lead(
        "Answers cost tokens, so methods are compared at equal cost. A sampling method uses as many independent solutions as the "
        "budget pays for; the search is stopped at the budget and asked for its answer. The dot is the policy alone: one greedy "
        "solution."
    )
    return section(
        "by-tokens",
        "Accuracy against generated tokens",
        beside(
            f'<div class="choice" id="round-choice" hidden></div><div class="multiples">{"".join(charts_by_round)}</div>',
            explanation,
            _over_optimisation_note(figures.over_optimisation(rows)),
        ),
    )


def _over_optimisation_note(findings: Sequence[figures.OverOptimisation]) -> Markup:
    if not findings:
        return Markup("")
    said = [_over_optimised(finding) for finding in findings[-_MOST_FINDINGS:]]
    if earlier := findings[:-_MOST_FINDINGS]:
        said.append(f"and earlier in round{'s' if len(earlier) > 1 else ''} {', '.join(str(finding.round) for finding in earlier)}")
    listed = "".join(f"<li>{prose(sentence)}</li>" for sentence in said)
    return Markup(
        '<div class="remark"><p>Over-optimisation: with more samples, best-of-n falls while the weighted vote rises.</p>'
        f"<ul>{listed}</ul><p>The one sample that the PRM likes best is more and more often one it is wrong about; in a vote, many "
        "samples would have to be wrong in the same way.</p></div>"
    )


def _over_optimised(finding: figures.OverOptimisation) -> str:
    (peak, last), (vote_before, vote_after) = finding.best_of_n, finding.weighted_vote
    return (
        f"round {finding.round}, {finding.from_tokens:,} → {finding.to_tokens:,} tokens: best-of-n {percent(peak)} → {percent(last)} %, "
        f"vote {percent(vote_before)} → {percent(vote_after)} %"
    )


def _token_figure(row: RoundRow, curves: dict[AnswerMethod, figures.Curve], y: charts.Axis) -> Markup:
    lines = [_token_line(method, curves[method.key]) for method in METHODS if method.key in curves]
    if (greedy := _greedy_point(row)) is not None:
        lines.append(charts.Series(name=POLICY.label, style=POLICY.key, points=[greedy], lone=True))
    tokens = [point.x for line in lines for point in line.points]
    chart = charts.line_chart(
        lines,
        x=charts.token_axis(tokens),
        y=y,
        label=f"Accuracy against generated tokens per problem in round {row.round}",
        x_name="tokens a problem:",
    )
    return figure(chart + _token_table(curves), f"round {row.round}", f' data-round="{row.round}"')


def _token_line(method: figures.Method, curve: figures.Curve) -> charts.Series:
    points = [charts.Point(x=max(tokens, 1), y=value, text=f"{percent(value)} %") for tokens, value in curve]
    return charts.Series(name=method.label, style=method.key, points=points)


def _greedy_point(row: RoundRow) -> charts.Point | None:
    tokens, value = row.test.tokens.greedy, _value(row)
    if value is None or not tokens or not row.test.problems:
        return None
    return charts.Point(x=max(tokens / row.test.problems, 1), y=value, text=f"{percent(value)} %")


def _token_table(curves: dict[AnswerMethod, figures.Curve]) -> Markup:
    budgets = sorted({tokens for curve in curves.values() for tokens, _ in curve})
    shown = [method for method in METHODS if method.key in curves]
    by_budget = {method.key: dict(curves[method.key]) for method in shown}
    cells = [(f"{tokens:,.0f}", *(percent(by_budget[method.key].get(tokens)) for method in shown)) for tokens in budgets]
    body = table(("tokens a problem", *(f"{method.label} %" for method in shown)), cells)
    return Markup(f"<details><summary>the figures</summary>{body}</details>")


def data(rows: Sequence[RoundRow]) -> Markup:
    """Return the training data from the searches, and its use in training."""
    explanation = lead(
        "What each round's training search was turned into. Traces, pairs and graded rows train the policy, value rows train the PRM;"
        " nothing is dropped without a reason."
    )
    tables = [*_search_table(rows), *_label_table(rows), *_training_table(rows), *_curves(rows)]
    if not tables:
        return Markup("")
    return section("data", "Training data", explanation if any(row.search for row in rows) else "", *tables)


def problems(facts: ProblemFacts | None) -> Markup:
    """Return what was read, left out and shared, and how similar evaluation problems are to training problems."""
    if facts is None:
        return Markup("")
    explanation = lead(
        "No problem is in two splits: one that a later split asks, too, leaves the earlier one. Similar problems share ten words in a row "
        "with a training problem."
    )
    cells = []
    for name, split in facts.splits.items():
        similar = facts.similar.get(name)
        likeness = figures.MISSING if similar is None else f"{similar.num_similar:,} of {similar.num_problems:,}"
        reasons = _reasons(split.dropped)
        cells.append((name.replace("_", "-"), count(split.num_rows), count(split.num_problems), count(split.num_shared), likeness, reasons))
    header = ("problems", "rows", "in use", "in a later split", "similar to training", "left out because")
    examples = [f"{problem} resembles {other}" for similar in facts.similar.values() for problem, other in similar.examples]
    listed = prose("; ".join(examples)) if examples else ""
    return section("problems", "Problems", explanation, table(header, cells, text_columns=[0, 5]), listed)


def _search_table(rows: Sequence[RoundRow]) -> list[Markup]:
    cells = []
    for row in rows:
        if (found := row.search) is not None:
            solved = f"{found.solved:,} ({percent(found.solved / found.problems)} %)" if found.problems else "0"
            unique = "-" if found.unique_share is None else f"{percent(found.unique_share)} %"
            costs = (count(found.nodes), count(found.generated_tokens), unique, count(found.scored_tokens), count(found.failed_steps))
            cells.append((row.round, count(found.problems), solved, *costs))
    if not cells:
        return []
    header = ("round", "problems searched", "with a right answer", "nodes", "tokens", "unique", "tokens scored", "failed steps")
    return [Markup("<h3>Training search</h3>"), table(header, cells)]


_KINDS = {
    "trees": "trees of recent policies",
    "traces": "traces",
    "revisions": "revision traces",
    "abstentions": "abstentions",
    "verdicts": "verdicts",
    "soft_targets": "weighted steps",
    "pairs": "preference pairs",
    "refined": "mended solutions",
    "graded": "graded rows",
    "advantages": "rows with advantages",
    "values": "value rows",
}
"""Kinds of rows that labelling counts, in the order of the report, as it calls them."""


def _label_table(rows: Sequence[RoundRow]) -> list[Markup]:
    cells = []
    for row in rows:
        for kind, counts in ({} if row.labels is None else row.labels.by_kind).items():
            bar = Markup(charts.kept_bar(counts.kept, counts.dropped))
            reasons = _reasons(counts.dropped_by_reason)
            cells.append((row.round, _KINDS[kind], count(counts.kept), bar, count(counts.dropped), reasons))
    if not cells:
        return []
    header = ("round", "rows", "kept", "share", "dropped", "dropped because")
    return [Markup("<h3>Rows kept and dropped</h3>"), table(header, cells, text_columns=[1, 3, 5])]


def _reasons(dropped: dict[str, int]) -> str:
    listed = sorted(dropped.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{reason.replace('_', ' ')} {number:,}" for reason, number in listed if number) or figures.MISSING


def _training_table(rows: Sequence[RoundRow]) -> list[Markup]:
    cells = [_training_cells(row, name, summary) for row in rows for name, summary in _trainings(row)]
    if not cells:
        return []
    header = ("round", "trained", "updates", "rows", "tokens", "loss, first → last", "rows left out")
    return [Markup("<h3>Training</h3>"), table(header, cells, text_columns=[1, 6])]


def _curves(rows: Sequence[RoundRow]) -> list[Markup]:
    found: dict[str, list[tuple[int, TrainingSummary]]] = {}
    for row in rows:
        for name, summary in _trainings(row):
            found.setdefault(name, []).append((row.round, summary))
    drawn = training_curves(found)
    return [Markup("<h3>Training curves</h3>"), drawn] if drawn else []


def _trainings(row: RoundRow) -> list[tuple[str, TrainingSummary]]:
    """Return the finished trainings of a round, each with its name."""
    policy, prm = row.training.policy, row.training.prm
    named = [
        ("policy, warm-up", policy.warmup),
        ("policy, SFT", policy.sft),
        ("policy, preferences", policy.preference),
        ("policy, policy gradient", policy.gradient),
        ("PRM", prm if isinstance(prm, TrainingSummary) else None),
    ]
    return [(name, summary) for name, summary in named if summary is not None]


def _training_cells(row: RoundRow, name: str, summary: TrainingSummary) -> tuple[str | int, ...]:
    loss = f"{decimals(summary.first_loss)} → {decimals(summary.last_loss)}"
    numbers = (count(summary.updates), count(summary.rows), count(summary.tokens))
    return (row.round, name, *numbers, loss, _reasons(summary.dropped_by_reason))


def time_spent(rows: Sequence[RoundRow], stages: StageTimes, config: Config) -> Markup:
    """Return the time use and the costs."""
    if not stages.seconds:
        return Markup("")
    names = charts.stage_names(stages.seconds)
    legend = "".join(f'<span><i class="{charts.stage_style(index)}"></i>{escape(name)}</span>' for index, name in enumerate(names))
    chart = charts.time_bars(stages.seconds, label="Seconds per stage, one bar per round")
    cells = [
        (number, *(duration(spent.get(name)) for name in names), duration(sum(spent.values())))
        for number, spent in sorted(stages.seconds.items())
    ]
    return section(
        "time",
        "Time and cost",
        _interruptions(stages),
        Markup(f'<div class="legend">{legend}</div>'),
        figure(chart),
        table(("round", *names, "together"), cells),
        *idle_time(rows, stages.work),
        *(costs(rows, stages, config) if rows else []),
    )


def _interruptions(stages: StageTimes) -> Markup:
    said = []
    if stages.num_starts > 1:
        said.append(f"The run was started {stages.num_starts} times.")
    if stages.num_cut:
        said.append(f"{times(stages.num_cut, 'stage')} cut off by a stop {'is' if stages.num_cut == 1 else 'are'} not counted.")
    if stages.num_unreadable:
        said.append(f"{times(stages.num_unreadable, 'line')} of events.jsonl could not be read.")
    return lead(" ".join(said)) if said else Markup("")


def trees(number: int) -> Markup:
    """Return the frame in which the page's script shows ``number`` trees."""
    if not number:
        return Markup("")
    explanation = lead(
        "What the search did, problem by problem: test problems of the last round, of each kind some, and training problems of "
        "round 1. The thick path leads to the answer that was given. Circles are steps, squares end a solution; the fuller the "
        "colour, the higher the PRM’s score (without a PRM, the value); the larger, the more visits. An end without ✓ or ✗ was not graded."
    )
    frame = files("stepladder.report").joinpath("trees.html").read_text(encoding="utf-8")
    return section("trees", "Searched trees", explanation, Markup(frame))
