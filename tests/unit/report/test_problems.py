"""What the page says about single test problems, about depth, about seeds: worked out by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from stepladder.data.store import write_trees
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.evaluation_rows import SolvedRow, write_rows
from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.side_by_side import compare_runs
from stepladder.loops.runs.split_figures import LevelFigures
from stepladder.report.levels import LevelPicture
from stepladder.report.page import render_page
from stepladder.report.prm_depth import depth_aucs
from stepladder.report.runs import write_comparison_of_runs
from stepladder.report.seed_groups import mean_interval, seed_groups
from stepladder.report.wrong_problems import Failure, before_and_after, failure_of, wrong_problems
from stepladder.types import TreeRecord
from tests.report_run import HOSTILE, config, full_rows, provenance, tree, write_run


def _tree(*, answers: dict[int, str], scores: dict[int, float]) -> TreeRecord:
    """Return a root with three leaves, which have answers and scores."""
    base = tree("p", origin=provenance(1, policy=0, scorer=0))
    size = 4
    return replace(
        base,
        parents=[-1, 0, 0, 0],
        depths=[0, 1, 1, 1],
        token_ids=[[]] * size,
        logps=[[]] * size,
        texts=["", "a", "b", "c"],
        priors=[1.0] * size,
        scores=[None, *(scores.get(node) for node in (1, 2, 3))],
        visits=[3, 1, 1, 1],
        values=[0.5] * size,
        stop_reasons=["step", "end", "end", "end"],
        answers=[None, *(answers.get(node) for node in (1, 2, 3))],
        outcomes=[None] * size,
    )


def _row(answer: str | None, right: tuple[str, ...]) -> SolvedRow:
    return SolvedRow(problem_id="p", answer=answer, correct=False, tokens=1, anytime=(), right_answers=right)


@pytest.mark.parametrize(
    ("row", "scores", "failure"),
    [
        (_row(None, ()), {}, Failure.NO_ANSWER),
        (_row("8", ()), {1: 0.9}, Failure.NOT_FOUND),
        (_row("8", ("7",)), {1: 0.2, 2: 0.9}, Failure.PREFERRED),
        (_row("8", ("7",)), {1: 0.9, 2: 0.2, 3: 0.3}, Failure.OUTVOTED),
        (_row("8", ("7",)), {}, Failure.OUTVOTED),
    ],
)
def test_the_nearest_cause_of_a_wrong_answer(row: SolvedRow, scores: dict[int, float], failure: Failure) -> None:
    """The tree's leaf 1 says 7, leaves 2 and 3 say 8; what is right and how it is scored decides."""
    assert failure_of(row, _tree(answers={1: "7", 2: "8", 3: "8"}, scores=scores)) is failure


def test_all_wrong_problems_are_listed_with_what_the_others_did(tmp_path: Path) -> None:
    """Of eight problems the search gets the last four wrong; of these the policy alone two right."""
    run = write_run(tmp_path / "run", full_rows())
    wrong = wrong_problems(run, 3)
    assert [problem.problem_id for problem in wrong] == ["test-4", "test-5", "test-6", "test-7"]
    assert [problem.greedy for problem in wrong] == [True, True, False, False]
    assert wrong[0].question == "4 1 7 2 : a c f" and wrong[0].sampled is None
    page = render_page(run)
    assert "answers 4 test problems of" in page and '"problem_id":"test-7"' in page


def test_more_trees_on_request(tmp_path: Path) -> None:
    """Six of eight test problems unless more are wanted, or none."""
    run = write_run(tmp_path / "run", full_rows())
    shown = [render_page(run, most_trees=most).count('"split":"test"') for most in (0, 6, 100)]
    assert shown == [0, 6, 8] and render_page(run) == render_page(run, most_trees=6)


def test_the_same_problem_before_and_after(tmp_path: Path) -> None:
    """Greedy solutions of the first and the best policy, those first that were learned; hostile text stays text."""
    run = write_run(tmp_path / "run", full_rows())
    folder = run.round(0) / "evaluation" / "test" / "greedy"
    solved = [SolvedRow(problem_id=f"test-{index}", answer="1", correct=index == 0, tokens=2, text=f"old {index}") for index in range(8)]
    write_rows(folder / "shard-0000.json", solved)
    examples = before_and_after(run, run.rows())
    # The best policy, of round 2, is right on 0, 1, 4 and 5, and the first one on 0 alone.
    assert [(each.problem_id, each.before.text, each.after.correct) for each in examples] == [
        ("test-1", "old 1", True),
        ("test-4", "old 4", True),
        ("test-5", "old 5", True),
    ]
    page = render_page(run)
    assert "Before and after" in page and "old 4" in page and HOSTILE not in page


def test_runs_of_earlier_versions_have_no_texts(tmp_path: Path) -> None:
    """Nothing is shown then, and nothing fails."""
    run = write_run(tmp_path / "run", full_rows())
    for number in (0, 2):
        solved = [SolvedRow(problem_id="test-0", answer="1", correct=True, tokens=2)]
        write_rows(run.round(number) / "evaluation" / "test" / "greedy" / "shard-0000.json", solved)
    assert before_and_after(run, run.rows()) == []


def _with_levels(rows: list[RoundRow], levels: list[str]) -> list[RoundRow]:
    figures = {level: LevelFigures(problems=8, pass_at_1=0.5, search=0.25) for level in levels}
    return [replace(row, test=replace(row.test, levels=figures)) for row in rows]


def test_problems_with_a_depth_are_the_first_picture(tmp_path: Path) -> None:
    """In the order of their numbers; the name of the level is that of its field."""
    settings = config(problems={"train": "train.jsonl", "test": "test.jsonl", "rule": "exact", "level_field": "distance"})
    run = write_run(tmp_path / "run", _with_levels(full_rows(), ["5", "6", "10"]), settings=settings)
    page = render_page(run)
    header = page[: page.index("<main")]
    assert "right answers by distance of the problem" in header and "Accuracy by distance" in page
    assert "pass@1 of the best policy by round" not in header
    assert "pass@1 of the best policy by round" in render_page(write_run(tmp_path / "flat", full_rows())).partition("<main")[0]


def test_levels_that_are_no_numbers_are_a_table(tmp_path: Path) -> None:
    """Two of them or words make no axis."""
    assert not LevelPicture(_with_levels(full_rows(), ["algebra", "geometry", "logic"]), None).is_drawn
    assert not LevelPicture(_with_levels(full_rows(), ["1", "2"]), None).is_drawn
    section = LevelPicture(_with_levels(full_rows(), ["algebra", "geometry", "logic"]), None).section()
    assert "algebra" in section and "<svg" not in section


def test_many_rounds_are_thinned_out() -> None:
    """Six lines at most, with the first and the last."""
    rows = [replace(full_rows()[1], round=number) for number in range(20)]
    drawn = LevelPicture(_with_levels(rows, ["1", "2", "3"]), None).policy()
    assert [name for name in (f"round {number}<" for number in range(20)) if name in drawn] == [
        f"round {number}<" for number in (0, 4, 8, 11, 15, 19)
    ]


def test_steps_are_ranked_by_depth(tmp_path: Path) -> None:
    """At depth 1 a good step scores 0.9 and a bad one 0.1: AUC 1. At depth 2 it is the other way round: AUC 0."""
    base = _tree(answers={}, scores={})
    chain = replace(
        base,
        parents=[-1, 0, 0, 1, 2],
        depths=[0, 1, 1, 2, 2],
        token_ids=[[]] * 5,
        logps=[[]] * 5,
        texts=[""] * 5,
        priors=[1.0] * 5,
        scores=[None, 0.9, 0.1, 0.2, 0.8],
        visits=[1] * 5,
        values=[None] * 5,
        stop_reasons=["step", "step", "step", "end", "end"],
        answers=[None, None, None, "7", "8"],
        outcomes=[None, None, None, 1.0, 0.0],
    )
    run = write_run(tmp_path / "run", full_rows())
    write_trees(run.shard(1, "trees", 0), [replace(chain, problem_id=f"p{index}") for index in range(10)])
    assert depth_aucs(run, 1) == {1: 1.0, 2: 0.0}
    # Nine trees have 18 steps at each depth, too few.
    write_trees(run.shard(1, "trees", 0), [replace(chain, problem_id=f"p{index}") for index in range(9)])
    assert depth_aucs(run, 1) == {}


def test_the_interval_over_seeds_is_student_s() -> None:
    """Of 1, 2, 3 the mean is 2, the deviation 1, and the half width 4.303 / sqrt(3); one run has no width."""
    middle, low, high = mean_interval([1.0, 2.0, 3.0])
    assert middle == 2.0 and (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert mean_interval([0.5]) == (0.5, 0.5, 0.5)
    # Beyond the table, too: of 1 to 17 the mean is 9, the variance 25.5, and the point with 16 degrees of freedom 2.120.
    middle, low, high = mean_interval([float(value) for value in range(1, 18)])
    assert middle == 9.0 and (low, high) == pytest.approx((9 - 2.120 * 1.5**0.5, 9 + 2.120 * 1.5**0.5), abs=1e-3)


def _seeded(folder: Path, seed: int, **sections) -> RunDir:
    return write_run(folder, full_rows(), settings=config(run={"seed": seed}, **sections))


def test_seeds_are_one_line_with_a_band(tmp_path: Path) -> None:
    """Three seeds of one configuration and a run of another: two lines, one of them with a band, and a table of the seeds."""
    runs = [_seeded(tmp_path / f"a{seed}", seed) for seed in (1, 2, 3)] + [_seeded(tmp_path / "b", 1, search={"simulations": 99})]
    groups = seed_groups(runs, compare_runs(runs))
    assert [(group.name, len(group.runs)) for group in groups] == [("a1 and 2 more", 3), ("b", 1)]
    text = write_comparison_of_runs(runs, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count('<polygon class="band"') == 2 and "Over seeds" in text and "a1 and 2 more" in text
    assert "Over seeds" not in write_comparison_of_runs([runs[0], runs[3]], tmp_path / "other.html")
    assert 'class="band"' not in (tmp_path / "other.html").read_text()
