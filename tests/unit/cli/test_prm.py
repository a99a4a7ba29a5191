"""``stepladder prm`` on files and saved tiny models."""

import json
import math
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.commands.prm_eval import evaluate_scores
from stepladder.data.datasets.labelled_solutions import StepwiseSolution
from stepladder.data.store import write_trees
from stepladder.interfaces import ScoreRequest
from stepladder.lm.loading import load_tokenizer
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.prm.reader import Solution
from stepladder.prm.specs import NAMED_SPECS, PRMSpec
from stepladder.types import Problem
from tests.models import save_tiny_policy, save_tiny_scorer, tiny_scorer
from tests.prm_models import qwen_tokenizer, save_head_model, save_language_model
from tests.prms import load_reader, load_step_scorer
from tests.trees import tree


def run(*words, code=0):
    """Call the command line, check its exit code, and return what it printed."""
    result = CliRunner().invoke(app, ["prm", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_specs_lists_every_checkpoint():
    """As text for people and as JSON with every field."""
    text, listed = run("specs"), json.loads(run("specs", "--json"))
    assert set(listed) == set(NAMED_SPECS)
    assert all(hub_id in text for entry in NAMED_SPECS.values() for hub_id in entry.checkpoints)
    assert listed["qwen2.5-math-prm"]["spec"]["marker_id"] == 151651


def test_score_writes_the_readers_scores(tmp_path):
    """Lists of steps and solutions in one piece, in file order, with counts; what does not fit the context is null and counted."""
    model = save_head_model(tmp_path / "model", qwen_tokenizer(), head="mlp", num_outputs=2, max_positions=200)
    file = write(
        tmp_path / "in.jsonl",
        {"question": "1 + 1?", "steps": ["It is", "2"]},
        {"problem": "2 + 2?", "solution": "Hm\n\nIt is 4"},
        {"question": "x" * 200, "steps": ["y"]},
    )
    out = tmp_path / "out.jsonl"
    said = run("score", file, "--model", model, "--spec", "qwen2.5-math-prm", "--output", out, "--device", "cpu", "--aggregation", "min")
    assert "4 steps of 3 solutions scored, 1 not scored" in said
    reader = load_reader(model, NAMED_SPECS["qwen2.5-math-prm"].spec)
    solutions = [Solution(question="1 + 1?", steps=("It is", "2")), Solution(question="2 + 2?", steps=("Hm", "It is 4"))]
    rows = rows_of(out)
    assert [row["scores"] for row in rows] == [[*scores] for scores in reader.score(solutions)] + [[None]]
    assert [row["score"] for row in rows] == [min(rows[0]["scores"]), min(rows[1]["scores"]), None]
    assert rows[1]["place"] == f"{file}:2"


def test_score_takes_several_files(tmp_path):
    """As many as ``prm eval`` does: the rows follow the order of the files, and each says where it is from."""
    model = save_head_model(tmp_path / "model", qwen_tokenizer(), head="mlp", num_outputs=2, max_positions=200)
    rows = [{"question": f"{number} + 1?", "steps": ["It is", str(number + 1)]} for number in range(3)]
    files = [write(tmp_path / "b.jsonl", *rows[:2]), write(tmp_path / "a.jsonl", rows[2])]
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    words = ["--model", model, "--spec", "qwen2.5-math-prm", "--device", "cpu"]
    assert "6 steps of 3 solutions scored" in run("score", *files, *words, "--output", out)
    run("score", write(tmp_path / "all.jsonl", *rows), *words, "--output", whole)
    assert [row["place"] for row in rows_of(out)] == [f"{files[0]}:1", f"{files[0]}:2", f"{files[1]}:1"]
    assert [row["scores"] for row in rows_of(out)] == [row["scores"] for row in rows_of(whole)]


def test_score_reads_a_model_that_training_wrote_from_its_own_directory(tmp_path):
    """A directory with step format and spec needs no --spec; the scores are those of the search's scorer on the rendered tokens."""
    model = save_tiny_scorer(tmp_path / "model")
    step_format = StepFormat()
    step_format.save(model)
    renderer = PromptRenderer(tiny_scorer()[1], step_format)
    PRMSpec(renderer_hash=renderer.hash).save(model)
    out = tmp_path / "out.jsonl"
    run("score", write(tmp_path / "in.jsonl", {"question": "1+1", "steps": ["is", "2\n"]}), "--model", model, "--output", out)
    scorer = load_step_scorer(model)
    steps = tuple(renderer.encode_steps("is\n2\n"))
    scorer.submit([ScoreRequest(ticket=0, prefix_ids=renderer.prompt_ids(Problem(id="", question="1+1")), branches=(steps,))])
    assert rows_of(out)[0]["scores"] == [*scorer.collect()[0].scores[0]]
    other = write(tmp_path / "other.jsonl", {"question": "2+1", "steps": ["is", "3\n"]})
    run("score", tmp_path / "in.jsonl", other, "--model", model, "--output", out, "--overwrite")
    assert [row["place"] for row in rows_of(out)] == [f"{tmp_path / 'in.jsonl'}:1", f"{other}:1"]
    inside = write(tmp_path / "in.jsonl", {"question": "1+1", "steps": ["i\ns"]})
    words = ("score", inside, "--model", model, "--output", out, "--overwrite")
    assert "in.jsonl:1: a step must not hold the model's step boundary" in run(*words, code=2)
    PRMSpec(renderer_hash="f" * 16).save(model)
    assert "expected 'ffffffffffffffff' -- keep the files of the model directory as they were saved" in run(*words, code=2)


def test_score_asks_a_judge(tmp_path):
    """A judge that knows no English gives no readable verdict, which is null and no crash; its thoughts are written."""
    model = save_language_model(tmp_path / "model", qwen_tokenizer(), max_positions=700)
    torch.manual_seed(0)
    out = tmp_path / "out.jsonl"
    file = write(tmp_path / "in.jsonl", {"question": "1 + 1?", "steps": ["2"]})
    assert "1 not scored" in run("score", file, "--model", model, "--spec", "judge", "--output", out, "--device", "cpu")
    assert rows_of(out)[0]["thoughts"] == [{"begin": 0, "end": 1, "good": None}]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (
            {"question": "Q", "steps": ["a <extra_0>"]},
            ["--spec", "qwen2.5-math-prm"],
            r"in.jsonl:1: the marker '<extra_0>' must stand once",
        ),
        ({"question": "Q", "steps": ["a"]}, [], "give --spec"),
        ({"question": "Q", "steps": ["a"]}, ["--spec", "math-shepherd"], "must have id 387"),
        ({"question": "Q"}, ["--spec", "trl"], "in.jsonl:1: field 'solution'"),
        ({"question": "Q", "steps": ["a"]}, ["--spec", "trl", "--aggregation", "median"], "--aggregation: must be one of"),
        ({"question": "Q", "steps": ["a"]}, ["--spec", "trl", "--backend", "sglang"], "--backend: must be one of transformers, vllm"),
        ({"question": "Q", "steps": ["a"]}, ["--spec", "trl", "--backend", "vllm"], "--device: vLLM takes the GPU"),
        ({"question": "Q", "steps": ["a"]}, ["--spec", "judge", "--backend", "vllm", "--device", "auto"], "--backend: a judge"),
    ],
)
def test_score_says_in_one_line_what_is_wrong(tmp_path, row, options, message):
    """Exit code 2, the place, no traceback, and no output file."""
    model = save_head_model(tmp_path / "model", qwen_tokenizer(), head="linear", num_outputs=2)
    out = tmp_path / "out.jsonl"
    said = run("score", write(tmp_path / "in.jsonl", row), "--model", model, "--output", out, "--device", "cpu", *options, code=2)
    assert message in said
    assert "Traceback" not in said
    assert not out.exists()


def toy_rows(num_rows):
    """Return TRL rows whose steps with an exclamation mark are bad."""
    return [
        {"prompt": f"P{i}", "completions": [f"{i}{'!' if bad else '.'}" for bad in (i % 2, i % 3 == 0)], "labels": [not i % 2, i % 3 > 0]}
        for i in range(num_rows)
    ]


TRAIN = ("--epochs", 6, "--learning-rate", 0.01, "--batch-size", 16, "--device", "cpu", "--held-out", 0.2)


def test_train_splits_by_problem_and_says_how_good_the_model_is(tmp_path):
    """The held-out AUC is near one on a rule that can be learned; the directory is scored and trained on without --spec."""
    policy = save_language_model(tmp_path / "policy", qwen_tokenizer())
    file, out = write(tmp_path / "train.jsonl", *toy_rows(120)), tmp_path / "prm"
    said = run("train", file, "--init", policy, "--spec", "qwen2.5-math-prm", "--output", out, *TRAIN)
    facts = json.loads((out / "stepladder_prm_training.json").read_text())
    assert f"held out: {facts['held_out']['steps']} steps" in said
    assert "dropped: nothing" in said
    assert facts["held_out"]["auc"] > 0.95
    assert facts["solutions"] + facts["held_out_solutions"] == 120
    assert 10 <= facts["held_out_solutions"] <= 40
    run("score", file, "--model", out, "--output", tmp_path / "scores.jsonl", "--device", "cpu")
    scores = rows_of(tmp_path / "scores.jsonl")
    assert all((score > 0.5) == ("!" not in step) for row in scores[:20] for step, score in zip(row["steps"], row["scores"], strict=True))
    run("train", file, "--init", out, "--output", tmp_path / "more", "--max-updates", 1, *TRAIN)
    assert PRMSpec.load(tmp_path / "more") == NAMED_SPECS["qwen2.5-math-prm"].spec


def test_train_with_a_categorical_loss_gives_the_head_its_bins(tmp_path):
    """The spec that is saved reads the bins back."""
    policy = save_language_model(tmp_path / "policy", qwen_tokenizer())
    file, out = write(tmp_path / "train.jsonl", *toy_rows(20)), tmp_path / "prm"
    run("train", file, "--init", policy, "--spec", "ppm", "--loss", "hl-gauss", "--output", out, "--max-updates", 2, *TRAIN)
    assert (PRMSpec.load(out).bins, PRMSpec.load(out).transform) == (32, "identity")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [{"prompt": "P", "completions": ["a", "b"], "labels": [True]}],
            [],
            "train.jsonl:1: every step must have one label: got 1 labels for 2",
        ),
        ([{"prompt": f"P{i}", "completions": ["a"], "labels": [True]} for i in range(9)], [], "labels must differ: got 1.0 only"),
        (toy_rows(9), ["--scope", "tail"], "--scope: must be full, head or lora"),
        (toy_rows(9), ["--neutral", "maybe"], "neutral: must be one of"),
        (toy_rows(1), [], "both sides of a split need a problem"),
        (toy_rows(9), ["--learning-rate", "0"], "learning_rate must be > 0: got 0.0"),
    ],
)
def test_train_says_in_one_line_what_is_wrong(tmp_path, rows, options, message):
    """Exit code 2, no traceback, no model."""
    policy = save_language_model(tmp_path / "policy", qwen_tokenizer())
    out = tmp_path / "prm"
    words = ("train", write(tmp_path / "train.jsonl", *rows), "--init", policy, "--spec", "trl", "--output", out, *TRAIN, *options)
    said = run(*words, code=2)
    assert message in said
    assert "Traceback" not in said
    assert not out.exists()


def solution(question, *steps, **fields):
    return StepwiseSolution(
        place="", problem_id=question, question=question, steps=steps, labels=fields.pop("labels", (None,) * len(steps)), **fields
    )


def test_evaluate_scores_gives_every_figure_that_the_solutions_allow():
    """By hand on scores that need no model: one wrong solution found, one right one accused, a tie lost, calibration of four steps."""
    scored = [
        (solution("A", "a", "b", first_error=1, labels=(1.0, 0.0)), (0.9, 0.2)),
        (solution("B", "a", "b", first_error=-1, labels=(1.0, 1.0)), (0.3, 0.8)),
        (solution("C", "a", correct=True), (0.7,)),
        (solution("C", "b", correct=False), (0.7,)),
        (solution("D", "a", correct=True), (0.6,)),
        (solution("D", "b", correct=False), (0.1,)),
        (solution("D", "c", correct=False), (None,)),
    ]
    figures = evaluate_scores(scored)
    assert figures["first_error"]["f1"] == 0.0
    assert (figures["first_error"]["wrong_accuracy"], figures["first_error"]["right_accuracy"]) == (1.0, 0.0)
    assert (figures["ranking"]["accuracy"], figures["ranking"]["mrr"]) == (0.5, 0.75)
    assert figures["ranking"]["num_wrong"] == (1, 2)
    assert [point["accuracy"] for point in figures["best_of_n"]] == pytest.approx([0.5, 0.75])
    assert figures["outcomes"]["within_problem_auc"] == 0.75
    assert figures["steps"]["brier"] == pytest.approx((0.01 + 0.04 + 0.49 + 0.04) / 4)
    assert figures["steps"]["auc"] == 1.0
    assert figures["steps"]["auc_by_depth"] == [{"depth": 1, "auc": None, "count": 2}, {"depth": 2, "auc": 1.0, "count": 2}]
    assert figures["unscored_steps"] == 1
    nothing = evaluate_scores([(solution("A", "a"), (0.5,))])
    assert all(nothing[name] is None for name in ("first_error", "ranking", "best_of_n", "outcomes", "steps"))


def test_eval_prints_a_table_and_writes_json_and_plots(tmp_path):
    """ProcessBench, RewardMATH and labelled rows in one go; plots drawn again are equal; the threshold is from elsewhere."""
    model = save_head_model(tmp_path / "model", qwen_tokenizer(), head="linear", num_outputs=2)
    rows = [
        {"problem": "P", "steps": ["a", "b"], "label": 1, "final_answer_correct": False},
        {"problem": "P", "steps": ["c", "d"], "label": -1, "final_answer_correct": True},
        {"problem": "R", "chosen": "x", "rejected": [f"y{i}" for i in range(9)]},
        {"prompt": "S", "completions": ["a", "b"], "labels": [True, False]},
    ]
    file = write(tmp_path / "eval.jsonl", *rows)
    tune = write(tmp_path / "tune.jsonl", {"problem": "T", "steps": ["e", "f"], "label": 0}, {"problem": "T", "steps": ["g"], "label": -1})
    words = ("eval", file, "--model", model, "--spec", "trl", "--device", "cpu", "--tune-on", tune)
    said = run(*words, "--json", tmp_path / "a.json", "--plots", tmp_path / "plots")
    figures = json.loads((tmp_path / "a.json").read_text())
    lines = dict(line.rsplit("  ", 1) for line in said.splitlines() if "first error: F1" in line)
    assert [float(value) for value in lines.values()] == [pytest.approx(figures["first_error"]["f1"], abs=1e-4)]
    assert figures["ranking"]["num_problems"] == 2
    assert figures["ranking"]["num_wrong"] == [1, 9]
    assert figures["first_error"]["threshold"] != 0.5
    assert figures["steps"]["count"] == 6
    names = ["auc-by-depth.svg", "best-of-n.svg", "reliability.svg"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == names
    run(*words, "--plots", tmp_path / "again")
    assert all((tmp_path / "plots" / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    assert "1 are in both" in run("eval", tune, "--model", model, "--spec", "trl", "--tune-on", tune, code=2)
    plain = write(tmp_path / "plain.jsonl", {"question": "Q", "steps": ["a"]})
    assert "must hold something to measure" in run("eval", plain, "--model", model, "--spec", "trl", code=2)


def test_score_writes_bounded_rewards(tmp_path):
    """Clip pays for what is missing, delta telescopes to the first score, PAR is one half at the reference, a wrong solution earns less."""
    model = save_head_model(tmp_path / "model", qwen_tokenizer(), head="mlp", num_outputs=2, max_positions=200)
    rows = [{"question": "1 + 1?", "steps": ["It is", "", "2"], "correct": right} for right in (True, False)]
    file, out = write(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    words = ("score", file, "--model", model, "--spec", "trl", "--output", out, "--overwrite", "--device", "cpu")

    def rewards(rule, *more):
        run(*words, "--rewards", rule, *more)
        return [(row["scores"], row["rewards"], row["score"]) for row in rows_of(out)]

    for scores, given, _ in rewards("clip", "--bound-at", 0.4):
        assert given == [None if score is None else pytest.approx(min(score - 0.4, 0)) for score in scores]
    for scores, given, _ in rewards("delta"):
        assert sum(reward for reward in given if reward is not None) == pytest.approx(scores[0])
    for scores, given, _ in rewards("par"):
        assert given == [None if score is None else pytest.approx(1 / (1 + math.exp(0.5 - score))) for score in scores]
    (_, right, score), (_, wrong, _) = rewards("verdict")
    assert right == pytest.approx(1 / (1 + math.exp(-0.5 * score)))
    assert wrong == pytest.approx(right - 1)
    assert "--rewards: must be one of" in run(*words, "--rewards", "huge", code=2)


def save_policy_and_trees(folder, problems=24):
    """Save a tiny policy with its step format, and trees of its tokens: '+' leads to right answers, '-' to wrong ones."""
    policy = save_tiny_policy(folder / "policy", hidden=32, layers=1)
    StepFormat(answer_pattern="([a-d])").save(policy)
    renderer = PromptRenderer(load_tokenizer(policy), StepFormat.load(policy))
    records = []
    for number in range(problems):
        made = tree((-1, 0.5, None), (0, 0.8, None), (0, 0.2, None), (1, 1.0, 1.0), (1, 0.9, 1.0), (2, 0.1, 0.0), (2, 0.0, 0.0))
        texts = ["", f"{number % 7}+\n", f"{number % 5}-\n", "1+a\n", "2+b\n", "3-c\n", "4-d\n"]
        problem = Problem(id=f"p{number}", question=f"what {number}")
        ids = [[], *([token for step in renderer.encode_steps(text) for token in step] for text in texts[1:])]
        fields = {"problem_id": problem.id, "question": problem.question, "prompt_ids": list(renderer.prompt_ids(problem))}
        provenance = replace(made.provenance, renderer_hash=renderer.hash)
        records.append(
            replace(made, texts=texts, token_ids=ids, logps=[[-1.0] * len(each) for each in ids], provenance=provenance, **fields)
        )
    write_trees(folder / "trees" / "shard-0000.parquet", records)
    return policy, folder / "trees"


@pytest.mark.parametrize(
    ("loss", "target"),
    [("bce", "monte-carlo"), ("hl-gauss", "tree-value"), ("pairwise", "step-pairs"), ("listwise", "outcome"), ("implicit-ce", "outcome")],
)
def test_train_on_trees_gives_a_model_that_says_itself_how_it_is_read(tmp_path, loss, target):
    """On held-out trees good steps rank above bad ones; the directory is scored without --spec, and --reference is not needed."""
    policy, trees = save_policy_and_trees(tmp_path)
    out = tmp_path / "prm"
    training = ("--epochs", 30, "--learning-rate", 1e-2, "--batch-size", 16, "--device", "cpu", "--held-out", 0.3)
    said = run("train", "--trees", trees, "--init", policy, "--output", out, "--loss", loss, "--target", target, *training)
    assert "trees, loss" in said
    facts = json.loads((out / "stepladder_prm_training.json").read_text())
    assert facts["trees"] + facts["held_out_trees"] == 24
    assert facts["held_out"]["auc"] > 0.9
    file = write(tmp_path / "in.jsonl", *({"question": "what 9", "steps": [f"5{sign}", f"1{sign}a"]} for sign in "+-"))
    run("score", file, "--model", out, "--output", tmp_path / "out.jsonl", "--device", "cpu")
    good, bad = rows_of(tmp_path / "out.jsonl")
    assert good["score"] > bad["score"]


def test_trees_that_cannot_be_trained_on_are_refused(tmp_path):
    """Files and trees at once, no trees, another format, a target that needs rollouts, a spec for text, choices of trees for files."""
    policy, trees = save_policy_and_trees(tmp_path, problems=4)
    words = ("train", "--init", policy, "--output", tmp_path / "out", "--device", "cpu")
    assert "got both or neither" in run(*words, code=2)
    assert "found none" in run(*words, "--trees", policy, code=2)
    assert "evolve estimates the others" in run(*words, "--trees", trees, "--target", "rollouts", code=2)
    assert "--supervise: must be step-end or every-token" in run(*words, "--trees", trees, "--supervise", "all", code=2)
    assert "give them with --trees" in run(*words, tmp_path / "absent.jsonl", "--target", "hard-max", code=2)
    assert "the policy's own tokens" in run(*words, "--trees", trees, "--spec", "trl", code=2)
    StepFormat(answer_pattern="([a-d])", prompt_template="Q: {question}").save(policy)
    assert "every row must come from renderer" in run(*words, "--trees", trees, "--held-out", 0, code=2)
    assert not (tmp_path / "out").exists()


def test_lists_of_graded_solutions_train_a_reward_model(tmp_path):
    """With --loss listwise the right solutions of a problem are compared with its wrong ones, at their last steps."""
    model = save_language_model(tmp_path / "policy", qwen_tokenizer())
    rows = [
        {"problem_id": number, "question": f"P{number}", "steps": [str(10 + sample), "ok." if right else "no!"], "correct": right}
        for number in range(24)
        for sample, right in enumerate((True, False, False, True))
    ]
    file = write(tmp_path / "graded.jsonl", *rows)
    training = ("--epochs", 8, "--learning-rate", 1e-2, "--batch-size", 8, "--device", "cpu", "--held-out", 0)
    run("train", file, "--init", model, "--spec", "trl", "--loss", "listwise", "--output", tmp_path / "out", *training)
    run("score", file, "--model", tmp_path / "out", "--output", tmp_path / "out.jsonl", "--device", "cpu")
    got = [(row["score"], row["steps"][1] == "ok.") for row in rows_of(tmp_path / "out.jsonl")]
    assert min(score for score, right in got if right) > max(score for score, right in got if not right)
