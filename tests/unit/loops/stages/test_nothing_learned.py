"""A round whose searches give the policy nothing to learn from: the reason, what to try, and an error where right solutions were lost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepladder.data.store import write_trees
from stepladder.errors import BackendError, CheckpointError, ConfigError, DataFormatError, StepladderError
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.results import LabelCounts, RowCounts
from stepladder.loops.stages.context import RoundContext
from stepladder.loops.stages.nothing_learned import check_solved_problems_give_rows, why_nothing_is_learned
from stepladder.types import TreeRecord
from tests.report_run import config, provenance, tree

LABELS = LabelCounts(
    traces=RowCounts(kept=0, dropped_by_reason={"below value": 3, "no right solution": 9}),
    pairs=RowCounts(kept=0, dropped_by_reason={"below margin": 4}),
    graded=RowCounts(kept=0, dropped_by_reason={"no change": 7}),
    values=RowCounts(kept=5),
)


def searched(root: Path, trees: list[TreeRecord], **sections: Any) -> RoundContext:
    """Return the context of a run whose round 1 searched these trees."""
    run = RunDir(root=root)
    write_trees(run.shard(1, "trees", 0), trees)
    return RoundContext(config=config(**sections), run=run, problems={}, pool=None, display=ProgressDisplay())  # type: ignore[arg-type]


def wrong_tree(name: str = "a", **changes: Any) -> TreeRecord:
    """Return a tree without a right solution."""
    made = tree(name, origin=provenance(1, policy=0, scorer=None), labelled=True)
    return replace(made, outcomes=[None if outcome is None else 0.0 for outcome in made.outcomes], **changes)


def test_a_weak_policy_gets_the_counts_and_what_to_try(tmp_path: Path) -> None:
    """Solutions with answers, none of them right: more search, a warm-up, or easier problems."""
    made = wrong_tree()
    ended = made.stop_reasons.count("end")
    answers = sum(answer is not None for answer in made.answers)
    assert ended > 0
    said = why_nothing_is_learned(searched(tmp_path, [made]), 1)
    assert said == (
        f"none of 1 problems was solved: {ended} solutions, {answers} with an answer, none of them right -- raise search.simulations, "
        "warm up on solved problems (warmup.solutions), or take easier problems"
    )


def test_answers_that_cannot_be_read_and_solutions_that_are_cut_have_other_remedies(tmp_path: Path) -> None:
    """The format where nothing can be read, the limits where most solutions end there."""
    made = wrong_tree()
    unread = replace(made, answers=[None] * len(made.answers))
    assert "-- check format.answer_pattern" in why_nothing_is_learned(searched(tmp_path / "a", [unread]), 1)
    cut = replace(unread, stop_reasons=["length" if reason == "end" else reason for reason in made.stop_reasons])
    assert "solutions were cut -- raise search.max_depth" in why_nothing_is_learned(searched(tmp_path / "b", [cut]), 1)


def test_a_round_that_searches_nothing_names_the_allocation(tmp_path: Path) -> None:
    """Where earlier rounds have solved everything, or pass rates filter all problems out, more search would change nothing."""
    context = searched(tmp_path, [], search={"allocation": {"type": "unsolved-first", "skip_solved": True}})
    assert why_nothing_is_learned(context, 1) == (
        "no problem was searched: search.allocation 'unsolved-first' left all of them out -- loosen it, or end the run here"
    )


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("dpo", "traces: no right solution 9, below value 3; pairs: below margin 4"),
        ("kto", "traces: no right solution 9, below value 3; graded: no change 7"),
    ],
)
def test_right_solutions_without_rows_are_an_error(tmp_path: Path, loss: str, words: str) -> None:
    """One problem of two was solved: the rules lost it, with their reasons; the exit code is that of a failed run."""
    right = tree("b", origin=provenance(1, policy=0, scorer=None), labelled=True)
    assert 1.0 in right.outcomes
    context = searched(tmp_path, [wrong_tree(), right], preference={"loss": loss})
    with pytest.raises(StepladderError) as caught:
        check_solved_problems_give_rows(context, 1, LABELS)
    assert not isinstance(caught.value, ConfigError | DataFormatError | CheckpointError | BackendError)
    assert f"1 of 2 problems were solved, and the rules dropped everything ({words})" in str(caught.value)


def test_solved_problems_without_traces_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pairs alone are rows, but a round that solves problems and makes no traces says so; one that solves none does not."""
    some = replace(LABELS, pairs=RowCounts(kept=2))
    right = tree("b", origin=provenance(1, policy=0, scorer=None), labelled=True)
    check_solved_problems_give_rows(searched(tmp_path / "a", [wrong_tree(), right, right]), 1, some)
    said = capsys.readouterr()
    assert "1 of 2 problems were solved, but no solution became a trace (traces: no right solution 9, below value 3)" in (
        " ".join((said.out + said.err).split())
    )
    check_solved_problems_give_rows(searched(tmp_path / "b", [wrong_tree()]), 1, LABELS)
    assert capsys.readouterr() == ("", "")
