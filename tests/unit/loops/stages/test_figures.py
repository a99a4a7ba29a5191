"""Figures of an evaluation, worked out by hand from rows of three problems."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stepladder.errors import CheckpointError
from stepladder.loops.runs.split_figures import (
    SAMPLING_METHODS,
    AbstentionFigures,
    AnswerMethod,
    CreditFigures,
    EvaluationTokens,
    LevelFigures,
    SplitFigures,
)
from stepladder.loops.stages.figures import search_figures, split_figures
from stepladder.loops.stages.kinds import TREES
from tests.trees import tree


def sample(tokens: int, key: str | None, score: float | None, correct: bool) -> dict:
    return {"num_tokens": tokens, "answer_key": key, "score": score, "correct": correct}


GREEDY = [{"problem_id": name, "answer": "x", "correct": name == "a", "tokens": 10} for name in "abc"]
SEARCH = [
    {"problem_id": "a", "answer": "1", "correct": True, "tokens": 30, "anytime": [[10, False], [30, True]]},
    {"problem_id": "b", "answer": "2", "correct": True, "tokens": 20, "anytime": [[20, True]]},
    {"problem_id": "c", "answer": None, "correct": False, "tokens": 5, "anytime": [[5, False]]},
]
SAMPLES = [
    # 30 tokens buy three samples: two for the wrong 9, one for the right 1 with the best score.
    {
        "problem_id": "a",
        "samples": [sample(10, "9", 0.2, False), sample(10, "1", 0.9, True), sample(10, "9", 0.3, False), sample(10, "1", 0.8, True)],
    },
    # 20 tokens buy one sample of 15; a second would overrun.
    {
        "problem_id": "b",
        "samples": [sample(15, "2", 0.4, True), sample(10, "7", 0.6, False), sample(10, "7", 0.1, False), sample(10, None, None, False)],
    },
    # 5 tokens buy none, but a method that may ask asks once.
    {"problem_id": "c", "samples": [sample(10, "4", 0.5, False)] * 4},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind, rows in (("greedy", GREEDY), ("search", SEARCH), ("samples", SAMPLES)):
        (tmp_path / kind).mkdir()
        for index, row in enumerate(rows):
            (tmp_path / kind / f"shard-{index:04d}.json").write_text(json.dumps({"rows": [row]}))
    return tmp_path


def test_partial_credit_is_averaged_beside_the_shares(folder: Path) -> None:
    """Numbers of the verifier by kind; without one an answer counts 1 or 0, and figures without any number have no credit."""
    assert split_figures(folder).credit is None and "credit" not in split_figures(folder).to_dict()
    for kind, credits in (("greedy", [1.0, 0.25, None]), ("search", [0.8, None, None])):
        for index, given in enumerate(credits):
            path = folder / kind / f"shard-{index:04d}.json"
            (row,) = json.loads(path.read_text())["rows"]
            path.write_text(json.dumps({"rows": [row | ({} if given is None else {"credit": given})]}))
    path = folder / "samples" / "shard-0001.json"
    (row,) = json.loads(path.read_text())["rows"]
    for drawn, given in zip(row["samples"], (1.0, 0.5, 0.25, None), strict=True):
        drawn |= {} if given is None else {"credit": given}
    path.write_text(json.dumps({"rows": [row]}))
    figures = split_figures(folder)
    # greedy: (1 + 0.25 + 0) / 3; search: a 0.8, b right, c wrong; samples: a and c have no number at all, b (1 + 0.5 + 0.25 + 0) / 4.
    assert figures.credit == CreditFigures(policy=pytest.approx(1.25 / 3), search=pytest.approx(0.6), samples=pytest.approx(1.75 / 4 / 3))
    assert figures.to_dict()["credit"]["search"] == pytest.approx(0.6)


def test_abstentions_are_no_answers(folder: Path) -> None:
    """One of three greedy solutions abstains, one of the other two is right: 1/3, 1/2, and 0.8 * 1/2 + 0.2 * 2/3."""
    assert split_figures(folder).abstention is None and "abstention" not in split_figures(folder).to_dict()
    path = folder / "greedy" / "shard-0002.json"
    (row,) = json.loads(path.read_text())["rows"]
    path.write_text(json.dumps({"rows": [row | {"answer": "?"}]}))
    found = split_figures(folder, abstention="?")
    assert found.abstention == AbstentionFigures(share=pytest.approx(1 / 3), precision=0.5)
    assert found.abstention.reliability == pytest.approx(0.8 * 0.5 + 0.2 * 2 / 3)
    assert found.to_dict()["abstention"]["precision"] == 0.5
    assert AbstentionFigures(share=1.0, precision=None).reliability == 0.0


def test_figures_by_hand(folder: Path) -> None:
    """Every figure of a split follows from its rows."""
    figures = split_figures(folder)
    pool, search = figures.pool, figures.search
    assert search is not None
    assert figures.problems == 3
    assert figures.tokens == EvaluationTokens(greedy=30, samples=40 + 45 + 40, search=55)
    assert value_of(figures, AnswerMethod.POLICY) == pytest.approx(1 / 3)
    assert value_of(figures, AnswerMethod.SEARCH) == pytest.approx(2 / 3)
    # a: majority says 9, best of n says 1, the vote is 0.9 against 0.5; b: the single sample is right; c: wrong everywhere.
    assert value_of(figures, AnswerMethod.MAJORITY) == pytest.approx(1 / 3)
    assert value_of(figures, AnswerMethod.BEST_OF_N) == pytest.approx(2 / 3)
    assert value_of(figures, AnswerMethod.WEIGHTED_VOTE) == pytest.approx(2 / 3)
    assert search.sampling_tokens_per_problem == pytest.approx((30 + 15 + 10) / 3)
    # a: right .9 .8 against wrong .2 .3, all four pairs ordered; b: right .4 against .6 and .1, one of two; c has no right one.
    assert pool.prm_within_problem_auc == pytest.approx((1.0 + 0.5) / 2)
    assert pool.sampled_pass_at_1 == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert pool.pass_at_k == pytest.approx(2 / 3)
    majority = search.sampling[AnswerMethod.MAJORITY]
    assert majority is not None
    assert (majority.search_against.num_better, majority.search_against.num_worse) == (1, 0)
    assert search.tokens_per_problem == pytest.approx(55 / 3)
    assert search.short_pools == 0


def test_short_pools_are_counted(folder: Path) -> None:
    """The four samples of problem a have 40 tokens, so a search with 50 could pay for a fifth one; with 49 it could not."""
    for tokens, short in ((50, 1), (49, 0)):
        (folder / "search" / "shard-0000.json").write_text(json.dumps({"rows": [SEARCH[0] | {"tokens": tokens}]}))
        search = split_figures(folder).search
        assert search is not None and search.short_pools == short and search.to_dict()["short_pools"] == short


def value_of(figures: SplitFigures, method: AnswerMethod) -> float | None:
    accuracy = figures.accuracy(method)
    return None if accuracy is None else accuracy.value


def test_curves_end_where_the_search_ended(folder: Path) -> None:
    """The last point of the search's curve is its accuracy, and before its first wave a search has no answer."""
    search = split_figures(folder).search
    assert search is not None
    assert set(search.curves) == {AnswerMethod.SEARCH, *SAMPLING_METHODS}
    assert search.curves[AnswerMethod.SEARCH][-1][1] == pytest.approx(2 / 3)
    assert search.curves[AnswerMethod.SEARCH][0][1] == 0.0


def test_sampling_has_no_answer_before_its_first_sample(folder: Path) -> None:
    """The shortest first sample has 10 tokens. No method has an answer with fewer, though beside a search each gets one sample."""
    search = split_figures(folder).search
    assert search is not None
    for method in SAMPLING_METHODS:
        assert all(value == 0.0 for tokens, value in search.curves[method] if tokens < 10), method
    assert search.curves[AnswerMethod.BEST_OF_N][0][0] < 10


def test_missing_evaluations_are_none(tmp_path: Path) -> None:
    """What was not measured is None, never 0; without scores the PRM's figures are None and majority stays."""
    assert split_figures(tmp_path).pass_at_1 is None
    for kind, rows in (("greedy", GREEDY), ("search", SEARCH)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "shard-0000.json").write_text(json.dumps({"rows": rows}))
    bare = [{**row, "samples": [{**entry, "score": None} for entry in row["samples"]]} for row in SAMPLES]
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "shard-0000.json").write_text(json.dumps({"rows": bare}))
    figures = split_figures(tmp_path)
    assert figures.search is not None
    assert figures.pool.prm_within_problem_auc is None
    assert value_of(figures, AnswerMethod.BEST_OF_N) is None
    assert value_of(figures, AnswerMethod.MAJORITY) == pytest.approx(1 / 3)
    assert set(figures.search.curves) == {AnswerMethod.SEARCH, AnswerMethod.MAJORITY}


def test_foreign_file_is_named(tmp_path: Path) -> None:
    """A file that no evaluation wrote is an error with its path."""
    (tmp_path / "greedy").mkdir()
    (tmp_path / "greedy" / "shard-0000.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"shard-0000\.json"):
        split_figures(tmp_path)


def test_figures_by_level(folder: Path) -> None:
    """Problems are grouped by level, levels that are numbers in their order; what has no level is in no group."""
    assert split_figures(folder).levels == {}
    figures = split_figures(folder, {"a": "10", "b": "9"})
    assert figures.levels == {
        "9": LevelFigures(problems=1, pass_at_1=0.0, search=1.0, sampled_pass_at_1=0.25, pass_at_k=1.0),
        "10": LevelFigures(problems=1, pass_at_1=1.0, search=1.0, sampled_pass_at_1=0.5, pass_at_k=1.0),
    }
    assert list(figures.levels) == ["9", "10"]
    assert list(split_figures(folder, {"a": "hard", "b": "easy", "c": "easy"}).levels) == ["easy", "hard"]


def test_first_samples_are_counted_once(tmp_path: Path) -> None:
    """A sample of two steps solves q and one of three steps begins p's tree, which adds two steps: 2 tokens of search, 5 steps of 5 tokens.

    Without the sample's tokens, five steps of two tokens would be unique. A sample that no tree goes on from has no part in the share.
    """
    begun = tree((-1, None, None), (0, None, None), (1, None, None), (2, None, 0.0), problem_id="p")
    solved = tree((-1, None, None), (0, None, None), (1, None, 1.0), problem_id="q")
    grown = tree((-1, None, None), (0, None, None), (1, None, None), (2, None, 0.0), (2, None, None), (4, None, 0.0), problem_id="p")
    before, after = tmp_path / "before.parquet", tmp_path / "after.parquet"
    TREES.write(before, [begun, solved])
    TREES.write(after, [replace(grown, generated_tokens=2)])
    found = search_figures([after], sampled_before=[before], continued=True)
    assert (found.problems, found.solved, found.generated_tokens, found.unique_share) == (2, 1, 2, 1.0)
    assert search_figures([before]).generated_tokens == 5
