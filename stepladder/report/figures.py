"""The figures of a report, as plain data: accuracies with intervals, the headline, remarks, time per stage; and how numbers are written.

Nothing here knows HTML or the terminal. A figure that was not measured is None until the page, which shows an en dash.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stepladder.loops.runs.results import FailedTraining, RoundRow
from stepladder.loops.runs.split_figures import Accuracy, AnswerMethod

Curve = Sequence[tuple[int, float]]
"""(generated tokens per problem, accuracy), by rising tokens."""
MISSING = "–"

_NOTICEABLE_FALL = 0.01
"""Best-of-n must lose at least this much accuracy before the report calls it over-optimisation: less is one problem or two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A way to answer a problem, as the report names it."""

    key: AnswerMethod
    """The method; also the CSS class of its lines."""
    label: str
    """Name on the page and in the table."""


POLICY = Method(key=AnswerMethod.POLICY, label="policy alone")
SEARCH = Method(key=AnswerMethod.SEARCH, label="search")
SAMPLING = (
    Method(key=AnswerMethod.WEIGHTED_VOTE, label="weighted vote"),
    Method(key=AnswerMethod.BEST_OF_N, label="best-of-n"),
    Method(key=AnswerMethod.MAJORITY, label="majority"),
)
METHODS = (POLICY, SEARCH, *SAMPLING)


def accuracy(row: RoundRow, method: Method) -> Accuracy | None:
    """Return a method's accuracy on test problems in a round, or None if it was not measured."""
    return row.test.accuracy(method.key)


def kept_pairs(row: RoundRow) -> int | None:
    """Return how many preference pairs a round kept; None for a round that labels nothing."""
    return None if row.labels is None else row.labels.pairs.kept


def percent(value: float | None) -> str:
    """Write a share in [0, 1] as percent with one decimal, without the sign."""
    return MISSING if value is None else f"{100 * value:.1f}"


def percent_with_interval(estimate: Accuracy | None) -> str:
    """Write an accuracy as ``45.0 (39.4–50.7)``, in percent."""
    if estimate is None:
        return MISSING
    return f"{percent(estimate.value)} ({_interval(estimate)})"


def _interval(estimate: Accuracy) -> str:
    return f"{percent(estimate.interval.low)}–{percent(estimate.interval.high)}"


def credit(row: RoundRow) -> str:
    """Write the mean partial credit of the policy alone and of the search on test problems as ``41.2 / 63.0``, in percent."""
    found = row.test.credit
    return MISSING if found is None else f"{percent(found.policy)} / {percent(found.search)}"


def decimals(value: float | None, digits: int = 3) -> str:
    """Write a number with a fixed count of decimals."""
    return MISSING if value is None else f"{value:.{digits}f}"


def policy_decision(row: RoundRow) -> str:
    """Say whether the gate accepted a round's policy, and by which held-out figures."""
    return f"{'accepted' if row.accepted else 'not accepted'} ({row.accepted_reason})"


def prm_decision(row: RoundRow) -> str | None:
    """Say the same of the PRM that a round trained; None if it trained none."""
    if row.scorer_version != row.round and not isinstance(row.training.prm, FailedTraining):
        return None
    return f"PRM {'accepted' if row.prm_accepted else 'not accepted'} ({row.prm_accepted_reason})"


def count(value: float | None) -> str:
    """Write a count with thousands separators, from a million on as ``1.23M``."""
    if value is None:
        return MISSING
    return f"{value / 1e6:.2f}M" if value >= 1e6 else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Write seconds as ``43 s``, ``5 min 20 s`` or ``2 h 05 min``."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    if minutes:
        return f"{minutes} min {rest:02d} s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def times(number: int, noun: str) -> str:
    """Write ``1 round``, ``2 rounds``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """The first thing to know about a run."""

    title: str
    """One line on the change of pass@1."""
    remarks: tuple[str, ...]
    """Sentences that put the title in proportion."""


def headline(rows: Sequence[RoundRow]) -> Headline:
    """Return the result of the run: pass@1 on test problems of the first policy, and of the best policy now."""
    if not rows:
        return Headline(title="No round is finished yet", remarks=())
    best = rows[rows[-1].best_policy]
    first, last = accuracy(rows[0], POLICY), accuracy(best, POLICY)
    num_rounds = len(rows) - 1
    if first is None or last is None:
        return Headline(title=f"{times(num_rounds, 'round')}, no pass@1 measured", remarks=())
    title = _unchanged_title(rows, first.value) if best.round == 0 else _title(first.value, last.value, times(num_rounds, "round"))
    return Headline(title=title, remarks=_remarks(rows, best, first, last))


def _unchanged_title(rows: Sequence[RoundRow], first: float) -> str:
    """Say why the first policy is still the best: nothing was run, nothing could be trained, or nothing was better."""
    num_rounds = len(rows) - 1
    if num_rounds == 0:
        return f"pass@1 {percent(first)} % at the start; no round has been run yet"
    if not any(row.trained_policy for row in rows[1:]):
        return f"pass@1 stays at {percent(first)} %: {times(num_rounds, 'round')} found nothing to train on"
    none = "the one round was not accepted" if num_rounds == 1 else f"none of {num_rounds} rounds was accepted"
    return f"pass@1 stays at {percent(first)} %: {none}"


def _title(first: float, last: float, rounds: str) -> str:
    if last == first:
        return f"pass@1 unchanged at {percent(first)} % after {rounds}"
    return f"pass@1 {'falls ' if last < first else ''}from {percent(first)} % to {percent(last)} % in {rounds}"


def _remarks(rows: Sequence[RoundRow], best: RoundRow, first: Accuracy, last: Accuracy) -> tuple[str, ...]:
    remarks = []
    problems = best.test.problems
    on = f" on {problems:,} test problems" if problems else ""
    if best.round:
        both = f"95 % intervals {_interval(first)} and {_interval(last)}{on}"
        overlap = first.interval.high >= last.interval.low and last.interval.high >= first.interval.low
        remarks.append(f"{both}; they overlap, so the change may be chance." if overlap else f"{both}; they do not overlap.")
    if (rejected := [str(row.round) for row in rows[1:] if not row.accepted]) and len(rejected) < len(rows) - 1:
        remarks.append(f"The gate did not accept round{'s' if len(rejected) > 1 else ''} {', '.join(rejected)}.")
    if reasons := [(row.round, row.nothing_learned) for row in rows if row.nothing_learned is not None]:
        number, reason = reasons[-1]
        remarks.append(f"The policy learned nothing in round {number}: {reason}.")
    remarks += [f"Round {rows[-1].round}: {warning}." for warning in rows[-1].warnings]
    return (*remarks, *_comparison(best))


def _comparison(row: RoundRow) -> tuple[str, ...]:
    """Compare the search with the sampling methods, which have the samples that fit its tokens."""
    search, searched = accuracy(row, SEARCH), row.test.search
    others = [(estimate.value, method.label) for method in SAMPLING if (estimate := accuracy(row, method)) is not None]
    if search is None or searched is None or not others:
        return ()
    others.sort(key=lambda pair: -pair[0])
    listed = ", ".join(f"{label} {percent(value)} %" for value, label in others)
    spent = f" with {searched.tokens_per_problem:,.0f} generated tokens a problem"
    best = others[0][0]
    place = "ahead of" if search.value > best else "level with the best of" if search.value == best else "behind the best of"
    said = f"With the policy of round {row.round}, search answers {percent(search.value)} %{spent}, "
    sampled = f"{place} sampling with {searched.sampling_tokens_per_problem:,.0f}: {listed}."
    return (f"{said}{sampled}{_few_samples_clause(row)}{_greedy_clause(row, search.value)}",)


def _few_samples_clause(row: RoundRow) -> str:
    """Say if the samples were too few for the search's tokens, so that the comparison is not at equal tokens."""
    short = None if row.test.search is None else row.test.search.short_pools
    if not short:
        return ""
    return (
        f" On {short:,} of {row.test.problems:,} problems all samples together take fewer tokens than the search: raise evaluate.samples."
    )


def _greedy_clause(row: RoundRow, search: float) -> str:
    """Set the search beside one greedy solution, which costs a fraction of its tokens."""
    greedy, problems = accuracy(row, POLICY), row.test.problems
    if greedy is None or not problems:
        return ""
    tokens = f" with {row.test.tokens.greedy / problems:,.0f} tokens" if row.test.tokens.greedy else ""
    than = "as many" if greedy.value == search else "more" if greedy.value > search else "fewer"
    return f" One greedy solution answers {percent(greedy.value)} %{tokens}, {than}{'' if than == 'as many' else ' than the search'}."


@dataclass(frozen=True, kw_only=True, slots=True)
class OverOptimisation:
    """A round in which more samples made best-of-n worse while the weighted vote gained."""

    round: int
    from_tokens: int
    """Generated tokens per problem at which best-of-n was best."""
    to_tokens: int
    """Largest budget measured."""
    best_of_n: tuple[float, float]
    """Accuracy of best-of-n at the two budgets."""
    weighted_vote: tuple[float, float]
    """Accuracy of the weighted vote at the two budgets."""


def over_optimisation(rows: Sequence[RoundRow]) -> list[OverOptimisation]:
    """Return the rounds in which best-of-n falls with more samples while the weighted vote rises."""
    return [finding for row in rows if (finding := _over_optimised(row)) is not None]


def _over_optimised(row: RoundRow) -> OverOptimisation | None:
    curves = measured_curves(row)
    best_of_n, vote = curves.get(AnswerMethod.BEST_OF_N, ()), dict(curves.get(AnswerMethod.WEIGHTED_VOTE, ()))
    if len(best_of_n) < 2 or not vote:
        return None
    tokens, peak = max(best_of_n, key=lambda point: (point[1], point[0]))
    end, last = best_of_n[-1]
    if tokens not in vote or end not in vote or peak - last < _NOTICEABLE_FALL or vote[end] <= vote[tokens]:
        return None
    return OverOptimisation(
        round=row.round,
        from_tokens=tokens,
        to_tokens=end,
        best_of_n=(peak, last),
        weighted_vote=(vote[tokens], vote[end]),
    )


def measured_curves(row: RoundRow) -> dict[AnswerMethod, Curve]:
    """Return accuracy against tokens per problem of search and of the sampling methods that were measured, without the others."""
    curves = {} if row.test.search is None else row.test.search.curves
    return {method.key: curves[method.key] for method in METHODS if method.key in curves and accuracy(row, method) is not None}
