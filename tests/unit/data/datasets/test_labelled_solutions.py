"""Public forms of step-labelled solutions, by hand and on samples of the real files."""

import json
import os
from pathlib import Path

import pytest

from stepladder.data.datasets.labelled_solutions import load_stepwise
from stepladder.errors import ConfigError, DataFormatError

ORACLES = Path(os.environ.get("STEPLADDER_ORACLES", Path(__file__).resolve().parents[5] / "shared" / "oracles"))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shapes(file):
    return [(solution.steps, solution.labels) for solution in file.solutions]


def prm800k(*entries):
    return {"question": {"problem": "Q"}, "label": {"steps": list(entries)}}


def rated(*ratings, chosen=None, human=None, flagged=()):
    completions = [{"text": f"{i}:{rating}", "rating": rating, "flagged": i in flagged} for i, rating in enumerate(ratings)]
    return {"completions": completions, "chosen_completion": chosen, "human_completion": human and {"text": human}}


@pytest.mark.parametrize(("neutral", "label"), [("good", 1.0), ("bad", 0.0), ("half", 0.5), ("drop", None)])
def test_prm800k_alternatives_become_solutions_that_end_there(tmp_path, neutral, label):
    """The chosen path keeps its ratings, a human step has none, every other alternative is labelled after the path so far, 0 as asked."""
    row = prm800k(rated(1, -1, chosen=0), rated(-1, human="H"), rated(0, 1, chosen=0, flagged=(1,)), {"completions": None})
    file = load_stepwise(write(tmp_path / "a.jsonl", row), neutral=neutral)
    assert shapes(file) == [
        (("0:1", "H", "0:0"), (1.0, None, label)),
        (("1:-1",), (0.0,)),
        (("0:1", "0:-1"), (None, 0.0)),
    ]
    assert file.dropped_by_reason == {"flagged alternative": 1}


def test_math_shepherd_markers_and_signs_are_matched_one_by_one(tmp_path):
    """The question ends where step 1 begins; a sign that is missing is an error with its line."""
    row = {"input": "How? Step 1: a + b ки\nStep 2: c ки", "label": "How? Step 1: a + b +\nStep 2: c -"}
    file = load_stepwise(write(tmp_path / "a.jsonl", row))
    assert (file.solutions[0].question, shapes(file)) == ("How?", [(("Step 1: a + b", "Step 2: c"), (1.0, 0.0))])
    bad = row | {"label": "How? Step 1: a + b ?\nStep 2: c -"}
    with pytest.raises(DataFormatError, match=r"b.jsonl:2: 'label' must repeat 'input'"):
        load_stepwise(write(tmp_path / "b.jsonl", row, bad))


def test_both_forms_of_omegaprm_give_the_same_paths_and_every_node_counts_once(tmp_path):
    """A root with children a (0.5; children b 1.0, c 0.0) and d (0.25): the label of a goes with the path to b."""
    node = {"text": "Q", "mc_value": 0.4, "children": []}
    a = {
        "text": "a",
        "mc_value": 0.5,
        "children": [{"text": " b", "mc_value": 1.0, "children": []}, {"text": " c", "mc_value": 0.0, "children": []}],
    }
    tree = {"question": "Q", "question_id": 7, "reasoning_steps": node | {"children": [a, {"text": "d", "mc_value": 0.25, "children": []}]}}
    prefixes = [("Q", 0.4), ("Q\n\n\na", 0.5), ("Q\n\n\nd", 0.25), ("Q\n\n\na b", 1.0), ("Q\n\n\na c", 0.0)]
    flat = {"question": "Q", "reasoning_steps": [{"solution_prefix": prefix, "mc_value": value} for prefix, value in prefixes]}
    expected = [(("a", "b"), (0.5, 1.0)), (("a", "c"), (None, 0.0)), (("d",), (0.25,))]
    file = load_stepwise(write(tmp_path / "tree.jsonl", tree))
    assert shapes(file) == expected
    assert {solution.problem_id for solution in file.solutions} == {"7"}
    file = load_stepwise(write(tmp_path / "flat.jsonl", flat))
    assert shapes(file) == expected
    assert file.dropped_by_reason == {"prefix without a step": 1}
    flat["reasoning_steps"].append({"solution_prefix": "Q\n\n\na", "mc_value": 0.9})
    file = load_stepwise(write(tmp_path / "repeated.jsonl", flat))
    assert shapes(file) == expected, "a prefix that repeats trains once, with its first value"
    assert file.dropped_by_reason == {"prefix without a step": 1, "repeated prefix": 1}


def test_trl_processbench_and_plain_rows(tmp_path):
    """Booleans are labels; the first wrong step labels what comes before it and itself, and nothing behind it."""
    rows = [
        {"prompt": "P", "completions": ["a", "b"], "labels": [True, False]},
        {"problem": "P", "steps": ["a", "b", "c"], "label": 1, "final_answer_correct": False},
        {"problem": "P", "steps": ["a", "b"], "label": -1, "final_answer_correct": True},
        {"question": "P", "solution": "a\n\nb\n\n", "problem_id": "x"},
    ]
    file = load_stepwise(write(tmp_path / "a.jsonl", *rows))
    assert shapes(file) == [
        (("a", "b"), (1.0, 0.0)),
        (("a", "b", "c"), (1.0, 0.0, None)),
        (("a", "b"), (1.0, 1.0)),
        (("a", "b"), (None, None)),
    ]
    assert [(solution.first_error, solution.correct) for solution in file.solutions] == [(None, None), (1, False), (-1, True), (None, None)]
    assert len({solution.problem_id for solution in file.solutions[:3]}) == 1
    assert file.solutions[3].problem_id == "x"


def test_a_label_that_is_true_or_false_is_about_the_whole_solution(tmp_path):
    """It says nothing of steps; a number stays the first wrong step, and fields that contradict each other are refused."""
    row = {"prompt": "1+1?", "completion": "a\n\nb\n\nc"}
    rows = [row | {"label": True}, row | {"label": False}, row | {"label": 1}, row | {"label": 0}, row | {"label": True, "correct": 1}]
    file = load_stepwise(write(tmp_path / "a.jsonl", *rows, {"problem": "P", "steps": ["a"], "label": True}))
    assert [(each.correct, each.first_error) for each in file.solutions] == [
        (True, None),
        (False, None),
        (None, 1),
        (None, 0),
        (True, None),
        (True, None),
    ]
    assert [each.labels for each in file.solutions[:4]] == [(None,) * 3, (None,) * 3, (1.0, 0.0, None), (0.0, None, None)]
    with pytest.raises(DataFormatError, match=r"b.jsonl:1: a solution must be right or wrong: got .*'label': True"):
        load_stepwise(write(tmp_path / "b.jsonl", row | {"label": True, "correct": False}))
    with pytest.raises(DataFormatError, match=r"true or false of the whole solution: got 'yes'"):
        load_stepwise(write(tmp_path / "b.jsonl", row | {"label": "yes"}))


def test_rewardmath_rows_are_one_solution_each(tmp_path):
    """The benchmark's own file is one JSON list; the rows of a problem share its number, and the chosen one is right."""
    common = {"problem": "P", "answer": "1600", "subject": "Algebra", "level": 1, "problem_id": 0}
    rows = [
        common | {"id": 0, "eval_solution": ["a", "b"], "solution_type": "chosen", "solution_reference": "human_to_GPT-4"},
        common | {"id": 1, "eval_solution": ["c"], "solution_type": "rejected", "solution_reference": "modified_with_GPT-4"},
    ]
    (tmp_path / "direct.json").write_text(json.dumps(rows))
    file = load_stepwise(tmp_path / "direct.json", split=None)
    assert [(each.problem_id, each.steps, each.correct) for each in file.solutions] == [("0", ("a", "b"), True), ("0", ("c",), False)]
    assert file.solutions[1].place.endswith("direct.json:2")
    for broken, message in (({**rows[0], "solution_type": "good"}, "solution_type"), ({**rows[0], "eval_solution": []}, "list of strings")):
        with pytest.raises(DataFormatError, match=message):
            load_stepwise(write(tmp_path / "b.jsonl", broken))
    (tmp_path / "object.json").write_text("{}")
    with pytest.raises(DataFormatError, match="list of JSON objects"):
        load_stepwise(tmp_path / "object.json")


def test_chosen_and_rejected_rows_are_right_and_wrong_solutions(tmp_path):
    """Solutions in one piece are split, and all belong to one problem."""
    row = {"problem": "P", "chosen": "a\n\nb", "rejected": ["c", "d\n\ne"]}
    file = load_stepwise(write(tmp_path / "a.jsonl", row, row | {"chosen": ["a"]}))
    assert [(each.steps, each.correct) for each in file.solutions[:3]] == [(("a", "b"), True), (("c",), False), (("d", "e"), False)]
    assert len({each.problem_id for each in file.solutions}) == 1
    with pytest.raises(DataFormatError, match="split the solution"):
        load_stepwise(tmp_path / "a.jsonl", split=None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "P", "completions": ["a", "b"], "labels": [True]}, "got 1 labels for 2 steps"),
        ({"prompt": "P", "completions": ["a"], "labels": [float("nan")]}, r"label of step 1 must be in \[0, 1\] or null: got nan"),
        ({"prompt": "P", "completions": ["a"], "labels": [1.5]}, "got 1.5"),
        ({"prompt": "P", "completions": ["a"], "labels": ["good"]}, "got 'good'"),
        ({"problem": "P", "steps": ["a"], "label": 1}, r"must be a step in \[0, 1\) or -1"),
        ({"problem": "P", "steps": "a"}, "must be a list of strings"),
        ({"problem": "P"}, "'solution' or 'completion' or 'response' must be a non-empty string"),
        ({"steps": ["a"]}, "'question' or 'problem' or 'prompt'"),
        ({"question": "Q", "reasoning_steps": [{"solution_prefix": "R", "mc_value": 1}]}, "must begin with the question"),
        ({"question": {"problem": "Q"}, "label": {"steps": [{"completions": [{"text": "a", "rating": 3}]}]}}, "rating must be -1, 0, 1"),
        ({"question": {"problem": "Q"}, "label": {"steps": [3]}}, "'label.steps' must hold JSON objects"),
        ({"question": {"problem": "Q"}, "label": {"steps": [{"completions": "a"}]}}, "'completions' must hold JSON objects"),
        ({"question": {"problem": "Q"}, "label": {"steps": [{"completions": [{"rating": 1}]}]}}, "every step must have a 'text'"),
        ({"question": {"problem": "Q"}, "label": {"steps": [{"human_completion": "a"}]}}, "'human_completion' must hold JSON objects"),
        ({"question": {"problem": "Q"}, "label": {"steps": [{"chosen_completion": 0}]}}, r"must be in \[0, 0\) or null: got 0"),
        ({"question": "Q", "reasoning_steps": [3]}, "'reasoning_steps' must hold JSON objects"),
        ({"question": "Q", "reasoning_steps": {"children": [3]}}, "'children' must hold JSON objects"),
        ({"question": "Q", "reasoning_steps": {"children": [{"mc_value": 1}]}}, "every step must have a 'text'"),
        ({"question": "Q", "steps": ["a"], "correct": "no"}, "must be true, false or null: got 'no'"),
        ({"input": "Q Step 1: a", "label": "Q Step 1: a"}, "every step must end with"),
        ({"question": "Q", "steps": ["a", "b\ud800"]}, "must be valid Unicode: got a lone surrogate at character 1"),
    ],
)
def test_rows_that_break_their_form_are_named_with_file_and_line(tmp_path, row, message):
    """Every message begins with the place."""
    with pytest.raises(DataFormatError, match=rf"bad.jsonl:1: .*{message}"):
        load_stepwise(write(tmp_path / "bad.jsonl", row))


def test_empty_files_and_unknown_meanings_are_refused(tmp_path):
    """An empty file is no data set, and a neutral rating has four meanings."""
    with pytest.raises(DataFormatError, match="at least one solution"):
        load_stepwise(write(tmp_path / "empty.jsonl"))
    with pytest.raises(ConfigError, match="'maybe'"):
        load_stepwise(tmp_path / "empty.jsonl", neutral="maybe")  # type: ignore[arg-type]


@pytest.mark.skipif(not (ORACLES / "prm").is_dir(), reason="no samples of the public files: set STEPLADDER_ORACLES")
def test_samples_of_the_real_files_are_read_whole():
    """Every unflagged rating of PRM800K once, a step per marker of Math-Shepherd, every node of OmegaPRM but the root once."""
    folder = ORACLES / "prm"
    rows = [json.loads(line) for line in _lines(folder / "samples_prm800k.jsonl")]
    completions = [c for row in rows for step in row["label"]["steps"] for c in step["completions"] or []]
    ratings = sorted(c["rating"] for c in completions if not c["flagged"])
    labels = [label for s in load_stepwise(folder / "samples_prm800k.jsonl", neutral="half").solutions for label in s.labels]
    assert sorted(2 * label - 1 for label in labels if label is not None) == ratings
    file = load_stepwise(folder / "samples_math-shepherd.jsonl")
    texts = [json.loads(line)["input"] for line in _lines(folder / "samples_math-shepherd.jsonl")]
    assert [len(solution.steps) for solution in file.solutions] == [text.count("ки") for text in texts]
    for name, count in (("math-aps-tree", _tree_nodes), ("math-aps", _flat_nodes)):
        path = folder / f"samples_{name}.jsonl"
        labels = [label for solution in load_stepwise(path).solutions for label in solution.labels if label is not None]
        assert len(labels) == sum(count(json.loads(line)) for line in _lines(path))


def _lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def _tree_nodes(row):
    def count(node):
        return 1 + sum(map(count, node["children"]))

    return count(row["reasoning_steps"]) - 1


def _flat_nodes(row):
    # A prefix that repeats is one label.
    prefixes = {entry["solution_prefix"].removeprefix(row["question"]).strip() for entry in row["reasoning_steps"]}
    return len(prefixes - {""})
