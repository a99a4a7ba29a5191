"""Which trees the page shows, and what it says of every node."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stepladder.data.metrics.answers import PoolSample
from stepladder.errors import CheckpointError
from stepladder.loops.runs.evaluation_rows import PoolRow, write_rows
from stepladder.report.trees import MAX_TEXT, tree_to_json, trees_for_page
from stepladder.types import TreeRecord
from tests.report_run import full_rows, provenance, tree, write_run


def small_tree() -> TreeRecord:
    """Return a tree in which answer 7 has two terminals, the better scored one at node 4.

    0 -+- 1 -+- 3 (answer 7, score .3)
       |     +- 4 (answer 7, score .8)
       +- 2 --- 5 (answer 9, score .9)
    """
    return TreeRecord(
        problem_id="p",
        question="q",
        prompt_ids=[1],
        method="mcts",
        parents=[-1, 0, 0, 1, 1, 2],
        depths=[0, 1, 1, 2, 2, 2],
        token_ids=[[], [2], [3], [4], [5], [6]],
        logps=[[], [-1.0], [-1.0], [-1.0], [-1.0], [-1.0]],
        texts=["", "a", "b", "c", "d", "e"],
        priors=[1.0, 0.5, 0.5, 0.5, 0.5, 1.0],
        scores=[None, 0.6, 0.4, 0.3, 0.8, float("nan")],
        visits=[9, 3, 5, 1, 1, 4],
        values=[0.5, 0.123456, None, 0.3, 0.8, 0.9],
        stop_reasons=["step", "step", "step", "end", "end", "length"],
        answers=[None, None, None, "7", "7", "9"],
        outcomes=[None] * 6,
        generated_tokens=5,
        policy_calls=3,
        scored_tokens=5,
        num_simulations=9,
        provenance=provenance(2, policy=1, scorer=1),
    )


def as_json(record: TreeRecord, *, answer: str | None = "7", graded: dict[str, bool] | None = None, max_nodes: int = 100) -> dict:
    """Return the tree's JSON form for a right answer."""
    return tree_to_json(record, answer=answer, correct=True, graded=graded or {}, split="test", max_nodes=max_nodes)


def test_nodes_keep_their_figures() -> None:
    """Every figure of a node is there; unscored, unvisited and NaN are null, never numbers; values are rounded to four digits."""
    nodes = as_json(small_tree())["nodes"]
    assert [node["parent"] for node in nodes] == [-1, 0, 0, 1, 1, 2]
    assert [node["score"] for node in nodes] == [None, 0.6, 0.4, 0.3, 0.8, None]
    assert [node["value"] for node in nodes] == [0.5, 0.1235, None, 0.3, 0.8, 0.9]
    assert [node["visits"] for node in nodes] == [9, 3, 5, 1, 1, 4]
    assert [node["stop"] for node in nodes] == ["step", "step", "step", "end", "end", "length"]
    json.dumps(nodes, allow_nan=False)


def test_chosen_path_leads_to_the_best_scored_supporter() -> None:
    """Of the two terminals with answer 7 the one scored .8 stands for it; without an answer no path is marked."""
    assert [node["chosen"] for node in as_json(small_tree())["nodes"]] == [True, True, False, False, True, False]
    assert not any(node["chosen"] for node in as_json(small_tree(), answer=None)["nodes"])
    assert not any(node["chosen"] for node in as_json(small_tree(), answer="8")["nodes"])


def test_chosen_path_without_scores_goes_by_value_then_visits() -> None:
    """Without a PRM the value decides, then the visits, then the order."""
    unscored = replace(small_tree(), scores=[None] * 6, values=[0.5, 0.1, None, 0.9, 0.8, 0.9])
    assert as_json(unscored)["nodes"][3]["chosen"]
    level = replace(unscored, values=[None] * 6, visits=[9, 3, 5, 1, 2, 4])
    assert as_json(level)["nodes"][4]["chosen"]
    same = replace(level, visits=[9, 3, 5, 1, 1, 4])
    assert as_json(same)["nodes"][3]["chosen"]


def test_verdicts_come_from_outcomes_or_graded_answers() -> None:
    """A test tree has no outcomes: its verdicts are those of the graded answers, and an ungraded answer has none."""
    nodes = as_json(small_tree(), graded={"7": True})["nodes"]
    assert [node["right"] for node in nodes] == [None, None, None, True, True, None]
    labelled = replace(small_tree(), outcomes=[None, None, None, 0.0, 1.0, 0.0])
    assert [node["right"] for node in as_json(labelled)["nodes"]] == [None, None, None, False, True, False]


def test_cut_keeps_the_path_and_the_most_visited_nodes() -> None:
    """With four nodes: the root, the path 1-4, and node 2 with five visits; its child 5 and node 1's child 3 are counted as left out."""
    cut = as_json(small_tree(), max_nodes=4)
    assert cut["total_nodes"] == 6
    assert [node["text"] for node in cut["nodes"]] == ["", "a", "b", "d"]
    assert [node["parent"] for node in cut["nodes"]] == [-1, 0, 0, 1]
    assert [node["hidden"] for node in cut["nodes"]] == [0, 1, 1, 0]


def test_cut_counts_whole_subtrees() -> None:
    """With only the path kept, node 2 and its child are two nodes left out below the root."""
    cut = as_json(small_tree(), max_nodes=1)
    assert [node["text"] for node in cut["nodes"]] == ["", "a", "d"]
    assert [node["hidden"] for node in cut["nodes"]] == [2, 1, 0]


@pytest.mark.parametrize("max_nodes", [1, 2, 7, 20, 1000])
def test_cut_of_large_trees_is_a_tree(max_nodes: int) -> None:
    """Whatever the limit: parents come first, and shown plus hidden nodes are all nodes."""
    record = tree("large", origin=provenance(1, policy=0, scorer=0), depth=6, children=4)
    cut = as_json(record, answer="2714", max_nodes=max_nodes)
    nodes = cut["nodes"]
    assert all(node["parent"] < index for index, node in enumerate(nodes))
    assert nodes[0]["parent"] == -1
    assert len(nodes) + sum(node["hidden"] for node in nodes) == len(record.parents)
    assert len(nodes) <= max(max_nodes, 7)


def test_root_alone_is_a_tree() -> None:
    """A search that got no further than the question is shown as one node."""
    record = small_tree()
    keep = {name: getattr(record, name)[:1] for name in ("parents", "depths", "token_ids", "logps", "texts", "priors", "scores", "visits")}
    keep |= {name: getattr(record, name)[:1] for name in ("values", "stop_reasons", "answers", "outcomes")}
    (node,) = as_json(replace(record, **keep), answer=None)["nodes"]
    assert (node["parent"], node["hidden"], node["chosen"]) == (-1, 0, False)


def test_long_texts_are_cut_and_say_so() -> None:
    """A step of more than the limit ends with the count of what is missing."""
    record = replace(small_tree(), texts=["", "x" * (MAX_TEXT + 1234), "b", "c", "d", "e"])
    text = as_json(record)["nodes"][1]["text"]
    assert text.endswith(" … (1,234 more characters)")
    assert len(text) < MAX_TEXT + 40


def test_page_shows_test_problems_of_every_kind_and_training_problems(tmp_path: Path) -> None:
    """Of 8 test problems, two of each kind, the six shown take turns among the kinds; two training trees of round 1 follow."""
    run = write_run(tmp_path / "run", full_rows())
    shown = trees_for_page(run, 3)
    assert [(one["problem_id"], one["correct"], one["note"]) for one in shown[:6]] == [
        ("test-2", True, "the policy alone gets it wrong"),
        ("test-0", True, "the policy alone gets it right too"),
        ("test-3", True, "the policy alone gets it wrong"),
        ("test-1", True, "the policy alone gets it right too"),
        ("test-6", False, "the policy alone gets it wrong too"),
        ("test-4", False, "the policy alone gets it right"),
    ]
    assert [(one["problem_id"], one["split"], one["round"]) for one in shown[6:]] == [
        ("train-1", "training", 1),
        ("train-2", "training", 1),
    ]
    assert {one["round"] for one in shown[:6]} == {3}
    assert all(any(node["right"] is False for node in one["nodes"]) for one in shown[6:])


def test_page_of_the_start_has_no_training_trees(tmp_path: Path) -> None:
    """Round 0 searches test problems but no training problems."""
    run = write_run(tmp_path / "run", full_rows()[:1])
    assert [one["split"] for one in trees_for_page(run, 0)] == ["test"] * 6


def test_graded_answers_of_samples_mark_nodes(tmp_path: Path) -> None:
    """An answer that only a sample gave is graded too, so a node that found it without being chosen is marked."""
    run = write_run(tmp_path / "run", full_rows()[:1])
    folder = run.round(0) / "evaluation" / "test" / "samples"
    folder.mkdir()
    samples = [
        PoolSample(num_tokens=9, answer_key="1001", score=None, correct=False),
        PoolSample(num_tokens=9, answer_key=None, score=None, correct=False),
    ]
    write_rows(folder / "shard-0000.json", [PoolRow(problem_id="test-2", samples=tuple(samples))])
    shown = next(one for one in trees_for_page(run, 0) if one["problem_id"] == "test-2")
    assert {node["right"] for node in shown["nodes"] if node["answer"] == "1001"} == {False}
    assert {node["right"] for node in shown["nodes"] if node["answer"] == "2714"} == {True}


def test_missing_trees_are_left_out_and_damaged_rows_refused(tmp_path: Path) -> None:
    """Rows without their tree shard show nothing; a damaged row file is one sentence with its place."""
    run = write_run(tmp_path / "run", full_rows()[:1])
    folder = run.round(0) / "evaluation" / "test" / "search"
    (folder / "shard-0000.parquet").unlink()
    assert trees_for_page(run, 0) == []
    (folder / "shard-0000.json").write_text('{"rows": [')
    with pytest.raises(CheckpointError, match=r"shard-0000\.json: must be a stepladder evaluation"):
        trees_for_page(run, 0)
