"""The figures behind the report: headline, comparison, over-optimisation, stage times, and how numbers are written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepladder.data.metrics.answers import Interval
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.split_figures import Accuracy, AnswerMethod
from stepladder.loops.runs.stage_times import stage_times
from stepladder.report import figures
from tests.report_run import full_rows, row, unmeasured


def test_headline_says_first_and_best_policy_not_the_last_one() -> None:
    """After a rejected round the headline holds the policy that the gate kept: round 2's 64.0 %, not round 3's 60.0 %."""
    said = figures.headline(full_rows())
    assert said.title == "pass@1 from 16.7 % to 64.0 % in 3 rounds"
    assert said.remarks[0] == "95 % intervals 11.7–21.7 and 59.0–69.0 on 300 test problems; they do not overlap."
    assert said.remarks[1] == "The gate did not accept round 3."


def test_headline_says_when_nothing_was_accepted() -> None:
    """If the first policy is still the best, the headline says so, however good the rejected ones look on test."""
    rows = [row(0, policy=0.3, search=0.4, majority=0.3)]
    rows.append(row(1, policy=0.5, search=0.4, majority=0.3, accepted=False, best_policy=0))
    assert figures.headline(rows).title == "pass@1 stays at 30.0 %: the one round was not accepted"
    rows.append(row(2, policy=0.5, search=0.4, majority=0.3, accepted=False, best_policy=0))
    assert figures.headline(rows).title == "pass@1 stays at 30.0 %: none of 2 rounds was accepted"


@pytest.mark.parametrize(
    ("last", "title", "overlap"),
    [
        (0.28, "pass@1 falls from 30.0 % to 28.0 % in 1 round", True),
        (0.30, "pass@1 unchanged at 30.0 % after 1 round", True),
        (0.38, "pass@1 from 30.0 % to 38.0 % in 1 round", True),
        (0.42, "pass@1 from 30.0 % to 42.0 % in 1 round", False),
    ],
)
def test_headline_does_not_embellish(last: float, title: str, overlap: bool) -> None:
    """A fall is called a fall; a change within overlapping intervals (each value +- 5 points) is called possible chance."""
    said = figures.headline([row(0, policy=0.3, search=0.4, majority=0.3), row(1, policy=last, search=0.4, majority=0.3)])
    assert said.title == title
    assert ("may be chance" in said.remarks[0]) is overlap


def test_headline_of_unfinished_and_unmeasured_runs() -> None:
    """No round, only the start, and a run without a measured pass@1 each have a headline of their own."""
    assert figures.headline([]).title == "No round is finished yet"
    assert figures.headline(full_rows()[:1]).title == "pass@1 16.7 % at the start; no round has been run yet"
    blank = replace(row(0, policy=0.1, search=0.1, majority=0.1), test=unmeasured())
    assert figures.headline([blank]).title == "0 rounds, no pass@1 measured"


@pytest.mark.parametrize(("search", "place"), [(0.6, "ahead of"), (0.57, "level with the best of"), (0.5, "behind the best of")])
def test_headline_compares_search_with_sampling(search: float, place: str) -> None:
    """Search is set against the best sampling method, with all of them listed from best to worst."""
    rows = [row(0, policy=0.45, search=search, majority=0.48, best_of_n=0.50, vote=0.57, auc=0.7)]
    assert figures.headline(rows).remarks[-1] == (
        f"With the policy of round 0, search answers {100 * search:.1f} % with 112 generated tokens a problem, {place} sampling "
        "with 108: weighted vote 57.0 %, best-of-n 50.0 %, majority 48.0 %. "
        f"One greedy solution answers 45.0 % with 28 tokens, fewer than the search."
    )


def test_headline_compares_without_prm() -> None:
    """Without a PRM only majority is there to compare with."""
    assert figures.headline(full_rows()[:1]).remarks == (
        "With the policy of round 0, search answers 21.0 % with 112 generated tokens a problem, ahead of sampling with 108: "
        "majority 19.0 %. One greedy solution answers 16.7 % with 28 tokens, fewer than the search.",
    )


def test_headline_says_where_samples_are_too_few() -> None:
    """Where a search takes more than all samples together, the comparison is not at equal tokens, and the remedy is named."""
    made = full_rows()[0]
    assert made.test.search is not None
    short = replace(made, test=replace(made.test, search=replace(made.test.search, short_pools=7)))
    (said,) = figures.headline([short]).remarks
    assert "On 7 of 300 problems all samples together take fewer tokens than the search: raise evaluate.samples. One greedy" in said


def curves(best_of_n: list[float], vote: list[float]) -> RoundRow:
    """Return a row whose two curves have the given accuracies at 10, 20, 30 tokens."""
    made = row(1, policy=0.4, search=0.5, majority=0.4, best_of_n=best_of_n[-1], vote=vote[-1], auc=0.7)
    assert made.test.search is not None
    tokens = (10, 20, 30)
    given = {
        AnswerMethod.BEST_OF_N: tuple(zip(tokens, best_of_n, strict=True)),
        AnswerMethod.WEIGHTED_VOTE: tuple(zip(tokens, vote, strict=True)),
    }
    return replace(made, test=replace(made.test, search=replace(made.test.search, curves=given)))


def test_over_optimisation_is_measured_from_the_peak() -> None:
    """Best-of-n peaks at 20 tokens and loses 9 points to the end, where the vote has gained 5: both changes are reported from the peak."""
    (found,) = figures.over_optimisation([curves([0.40, 0.49, 0.40], [0.40, 0.50, 0.55])])
    assert (found.round, found.from_tokens, found.to_tokens) == (1, 20, 30)
    assert found.best_of_n == (0.49, 0.40)
    assert found.weighted_vote == (0.50, 0.55)


@pytest.mark.parametrize(
    ("best_of_n", "vote"),
    [
        ([0.40, 0.45, 0.50], [0.4, 0.5, 0.6]),
        ([0.40, 0.455, 0.45], [0.4, 0.5, 0.6]),
        ([0.40, 0.49, 0.40], [0.4, 0.5, 0.5]),
        ([0.40, 0.49, 0.40], [0.4, 0.5, 0.45]),
    ],
    ids=["best-of-n rises", "fall below a point", "vote level", "vote falls too"],
)
def test_over_optimisation_is_not_claimed_without_cause(best_of_n: list[float], vote: list[float]) -> None:
    """The remark needs both: best-of-n falling noticeably, and the vote rising."""
    assert figures.over_optimisation([curves(best_of_n, vote)]) == []


def test_curves_without_a_prm_are_left_out() -> None:
    """A method that had no scores to choose with has no curve; search and majority stay."""
    assert set(figures.measured_curves(full_rows()[0])) == {"search", "majority"}
    assert figures.over_optimisation(full_rows()[:1]) == []


def test_stage_times_add_up_and_count_what_was_cut(tmp_path: Path) -> None:
    """A stage entered twice adds up, a begin without an end is counted as cut, and a torn line is counted, not raised."""
    events: list[dict[str, Any]] = [
        {"time": 100.0, "event": "start", "rounds": 1, "workers": 2},
        {"time": 100.5, "event": "stage_begin", "round": 0, "stage": "train"},
        {"time": 103.0, "event": "stage_end", "round": 0, "stage": "train", "seconds": 2.5},
        {"time": 103.1, "event": "stage_begin", "round": 1, "stage": "search"},
        {"time": 200.0, "event": "start", "rounds": 1, "workers": 2},
        {"time": 200.1, "event": "stage_begin", "round": 1, "stage": "search"},
        {"time": 205.1, "event": "stage_end", "round": 1, "stage": "search", "seconds": 5.0},
        {"time": 205.2, "event": "stage_begin", "round": 1, "stage": "search"},
        {"time": 205.3, "event": "stage_end", "round": 1, "stage": "search", "seconds": 0.25},
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"time": 206.0, "eve')
    times = stage_times(path)
    assert times.seconds == {0: {"train": 2.5}, 1: {"search": 5.25}}
    assert (times.begin, times.end) == (100.0, 205.3)
    assert (times.num_starts, times.num_cut, times.num_unreadable) == (2, 1, 1)


def test_stage_times_without_events(tmp_path: Path) -> None:
    """A run without events has no times, and no invented ones."""
    times = stage_times(tmp_path / "events.jsonl")
    assert (times.seconds, times.begin, times.num_starts, times.num_cut) == ({}, None, 0, 0)


def test_numbers_are_written_for_people() -> None:
    """None is an en dash everywhere; shares have one decimal, large counts a unit, times the two largest units."""
    assert [figures.percent(None), figures.count(None), figures.decimals(None), figures.duration(None)] == ["–"] * 4
    assert figures.percent_with_interval(None) == "–"
    assert figures.percent_with_interval(Accuracy(value=0.45, interval=Interval(0.394, 0.507))) == "45.0 (39.4–50.7)"
    assert [figures.percent(0.0), figures.percent(1.0), figures.percent(1 / 3)] == ["0.0", "100.0", "33.3"]
    assert [figures.count(0), figures.count(1204), figures.count(999_999), figures.count(2_104_000)] == ["0", "1,204", "999,999", "2.10M"]
    assert [figures.duration(seconds) for seconds in (0.26, 43.2, 59.6, 320, 3600, 7530)] == [
        "0.3 s",
        "43 s",
        "1 min 00 s",
        "5 min 20 s",
        "1 h 00 min",
        "2 h 05 min",
    ]
    assert [figures.times(1, "round"), figures.times(2, "round"), figures.times(0, "round")] == ["1 round", "2 rounds", "0 rounds"]
