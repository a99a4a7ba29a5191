"""Judges that learn from graded verdicts: which steps are judged, which verdicts are kept, and what a judge then knows."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.errors import DataFormatError
from stepladder.lm.loading import load_tokenizer
from stepladder.lm.settings import TrainSettings
from stepladder.loops.assembly.judges import GradedStep, agreeing_verdicts, capped_steps, graded_row, graded_steps
from stepladder.loops.assembly.prms import judge_renderer
from stepladder.policy.fine_tuning import train_sft
from stepladder.prm.judge import Judge
from stepladder.prm.reader import Solution
from stepladder.prm.specs import PRMSpec
from stepladder.testing import ScriptedPolicy
from stepladder.types import Provenance, Step, StopReason, Trace, ValueRow
from tests.models import save_tiny_policy

SPEC = PRMSpec(family="judge", prompt="plain", transform="identity", question="{step};\n", good="a", bad="b", verdict="([ab])")
"""A judge that writes a line with its word."""
PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="", renderer_hash="")


def step(problem: str, *texts: str, right: bool) -> GradedStep:
    return GradedStep(problem_id=problem, solution=Solution(question="q", steps=texts), right=right)


def test_labels_above_and_below_one_half_are_grades():
    """Labels 1, 0.5, none and 0.2: the first step is right, the last wrong; each is judged after the steps before it."""
    found = graded_steps("p", Solution(question="q", steps=("s", "t", "u", "v")), [1.0, 0.5, None, 0.2])
    assert found == [step("p", "s", right=True), step("p", "s", "t", "u", "v", right=False)]


def test_a_path_gives_steps_without_their_ends_and_with_the_observations_before_them():
    """The observation after the first step begins the second one, as a judge reads it in a search."""
    row = ValueRow(
        problem_id="p",
        prompt_ids=[1],
        step_ids=[[2], [3]],
        targets=[None, 1.0],
        prompt="q",
        steps=["s\n", "t\n"],
        provenance=PROVENANCE,
        given_ids=[[9], []],
        given_texts=["seen\n", ""],
    )
    assert graded_row(row, step_end="\n") == [step("p", "s", "seen\nt", right=True)]


def test_every_problem_has_as_many_steps_of_each_side_at_most():
    """Three right and one wrong step of p, one right step of r: two, one and one are judged; a step that is there twice counts once."""
    steps = [step("p", text, right=True) for text in "stu"] + [step("p", "w", right=False), step("r", "s", right=True)]
    found = capped_steps([*steps, steps[0]], per_side=2, seed=3)
    assert sorted((each.problem_id, each.right) for each in found) == [("p", False), ("p", True), ("p", True), ("r", True)]
    assert found == capped_steps(steps[::-1], per_side=2, seed=3)


def test_the_first_agreeing_verdict_is_kept_and_both_sides_are_as_long():
    """The judge says a, nothing, b, b of every step.

    So all three right steps have an agreeing verdict, the first one, and the wrong step the third. One right step stays beside it.
    """

    def propose(prefix_ids, sample, seed):
        return Step(token_ids=(sample,), logps=(0.0,), text=["a", "?", "b", "b"][sample], stop_reason=StopReason.END)

    steps = [step("p", text, right=True) for text in "stu"] + [step("p", "w", right=False)]
    judge = Judge(ScriptedPolicy(propose), SPEC, lambda prompt: tuple(prompt.encode()))
    written = judge.verdicts([each.solution for each in steps], num_verdicts=4)
    assert [verdict.good for verdict in written[0]] == [True, None, False, False]
    found = agreeing_verdicts(steps, written)
    assert [(graded.right, verdict.text, verdict.completion_ids) for graded, verdict in found.rows] == [
        (True, "a", (0,)),
        (False, "b", (2,)),
    ]
    assert bytes(found.rows[1][1].prompt_ids) == b"w;\n"
    assert (found.considered, found.dropped_by_reason) == (4, {"more on one side": 2})
    with pytest.raises(DataFormatError, match="got 3 and 0 that agree with the grades of 4 steps"):
        agreeing_verdicts(steps, [verdicts[:2] for verdicts in written])


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that writes a verdict after every step, right or wrong by chance."""
    folder = tmp_path_factory.mktemp("judge")
    model, rng = save_tiny_policy(folder / "model"), random.Random(0)
    tokenizer = load_tokenizer(model)
    provenance = replace(PROVENANCE, renderer_hash=judge_renderer(tokenizer, SPEC).hash)
    rows = [
        Trace(
            problem_id=str(number),
            prompt_ids=tokenizer.encode(f"{rng.choice('0123456789')}{rng.choice('+-')};\n"),
            completion_ids=tokenizer.encode(f"{rng.choice('ab')}\n"),
            prompt="",
            completion="",
            mean_value=0.0,
            provenance=provenance,
        )
        for number in range(48)
    ]
    settings = TrainSettings(learning_rate=5e-3, batch_size=32, epochs=8.0, device="cpu", packed=False)
    train_sft(model, rows, folder / "start", settings, renderer_hash=provenance.renderer_hash)
    return folder / "start"


def test_a_judge_learns_from_its_own_verdicts_that_agree_with_labels(start: Path, tmp_path: Path):
    """From a file to a judge: a step with a plus is right. The start's verdicts are chance; those kept teach the rule."""
    rng = random.Random(1)
    rows = []
    for number in range(40):
        texts = [rng.choice("0123456789") + sign for sign in rng.sample("+-", 2)]
        rows.append({"prompt": f"{number}", "completions": texts, "labels": ["+" in text for text in texts]})
    file, spec, out = tmp_path / "steps.jsonl", tmp_path / "spec.json", tmp_path / "judge"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "specs").mkdir()
    SPEC.save(tmp_path / "specs")
    (tmp_path / "specs" / "stepladder_prm.json").rename(spec)
    words = ["prm", "train", file, "--init", start, "--spec", spec, "--loss", "verdicts", "--output", out, "--device", "cpu"]
    words += ["--epochs", 20, "--learning-rate", 3e-3, "--batch-size", 16, "--held-out", 0.25]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    facts = json.loads((out / "stepladder_prm_training.json").read_text())
    assert facts["held_out"]["auc"] > 0.95
    assert facts["training"]["rows"] + sum(facts["dropped_by_reason"].values()) == 60
    assert PRMSpec.load(out) == SPEC


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--spec", "judge"], "a judge learns verdicts, and nothing else does: got --loss bce for a spec of 'judge'"),
        (["--spec", "trl", "--loss", "verdicts"], "got --loss verdicts for a spec of 'two-class'"),
        (["--spec", "judge", "--loss", "verdicts", "--scope", "head"], "a judge has no head of its own to train alone"),
    ],
)
def test_what_no_judge_can_learn_is_refused_before_the_work(options: list[str], message: str, tmp_path: Path):
    """One sentence, exit code 2."""
    file = tmp_path / "steps.jsonl"
    file.write_text(json.dumps({"prompt": "p", "completions": ["s"], "labels": [True]}) + "\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["prm", "train", str(file), "--init", str(tmp_path), "--output", str(tmp_path / "out"), *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
