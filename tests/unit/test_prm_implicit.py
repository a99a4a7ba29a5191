"""Implicit process reward models: rows, log-ratios against plain ones, and training that is read back as step scores."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stepladder.errors import ConfigError, DataFormatError
from stepladder.lm.training import TrainSettings
from stepladder.prm.implicit import GradedSolution, ImplicitObjective, add_reference, collate_outcomes, outcome_rows, train_implicit
from stepladder.prm.layout import SolutionLayout
from stepladder.prm.reader import Solution, StepReader
from stepladder.prm.specs import NAMED_SPECS
from tests.prm_models import llama3_tokenizer, save_language_model

SPEC = replace(NAMED_SPECS["implicit"].spec, beta=0.5)
SETTINGS = TrainSettings(learning_rate=3e-3, epochs=4.0, batch_size=8, schedule="constant", device="cpu")


def graded(outcome, *steps, problem="P"):
    return GradedSolution(solution=Solution(question=problem, steps=steps), problem_id=problem, outcome=outcome)


def toy(num_problems, seed=0):
    """Return a right and a wrong solution of each problem; a wrong one has an exclamation mark in its second step."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(num_problems):
        first = str(rng.integers(10, 99))
        made += [graded(right, first, f"{rng.integers(10, 99)}{'.' if right else '!'}", problem=f"P{number}") for right in (1.0, 0.0)]
    return made


def plain_logp(model, ids, begin):
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logps[i - 1, ids[i]].item() for i in range(begin, len(ids)))


def test_rows_and_reference_are_those_of_plain_forwards(tmp_path):
    """Solutions are grouped by problem; reference log-probabilities run over the step tokens only; what is dropped is counted."""
    model = AutoModelForCausalLM.from_pretrained(save_language_model(tmp_path, llama3_tokenizer(), arch="llama"))
    layout, dropped = SolutionLayout(llama3_tokenizer(), SPEC), {}
    solutions = [graded(1.0, "a", "bc"), graded(0.0, "d", problem="R"), graded(0.5, "e"), graded(None, "f"), graded(1.0)]
    rows = outcome_rows(solutions, layout, compare=False, dropped=dropped)
    assert [row.outcomes for row in rows] == [[1.0, 0.5], [0.0]]
    assert dropped == {"no outcome": 1, "no tokens": 1}
    for row in add_reference(model, rows, SETTINGS):
        expected = [plain_logp(model, path, begin) for path, begin in zip(row.paths, row.begins, strict=True)]
        assert row.reference_logps == pytest.approx(expected, abs=1e-4)
    laid = layout.lay_out("P", ("a", "bc"))
    text = llama3_tokenizer().decode(laid.token_ids[laid.begin :])
    assert text == "a\n\nbc"
    compared = {}
    assert len(outcome_rows(solutions, layout, compare=True, dropped=compared)) == 1
    assert compared["problem without solutions to compare"] == 1


def test_losses_start_at_log_two_and_equal_their_formulas(tmp_path):
    """At the reference every log-ratio is 0; with a shifted reference the losses are those of the shifts."""
    model = AutoModelForCausalLM.from_pretrained(save_language_model(tmp_path, llama3_tokenizer(), arch="llama"))
    rows = outcome_rows([graded(1.0, "a"), graded(0.0, "b")], SolutionLayout(llama3_tokenizer(), SPEC), compare=True, dropped={})
    (row,) = add_reference(model, rows, SETTINGS)
    shifted = replace(row, reference_logps=[row.reference_logps[0] - 2 * math.log(3), row.reference_logps[1]])
    for name, expected in (("implicit-ce", (math.log(4 / 3) + math.log(2)) / 2), ("implicit-dpo", math.log(4 / 3))):
        objective = ImplicitObjective(loss_name=name, beta=0.5)
        start, moved = (collate_outcomes([each]) for each in (row, shifted))
        assert objective.loss(model, start, objective.counts(start)).item() == pytest.approx(math.log(2), abs=1e-4)
        assert objective.loss(model, moved, objective.counts(moved)).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("loss", ["implicit-ce", "implicit-dpo"])
def test_outcomes_alone_teach_which_step_is_bad(tmp_path, loss):
    """Trained on whole solutions, the model scores the bad second step of unseen problems below the good one."""
    start = save_language_model(tmp_path / "start", llama3_tokenizer(), arch="llama")
    report = train_implicit(start, toy(48), tmp_path / "out", SETTINGS, spec=SPEC, loss=loss)
    assert report.first_loss == pytest.approx(math.log(2), abs=1e-3)
    assert report.last_loss < 0.5
    reader = StepReader.from_pretrained(tmp_path / "out", SPEC, reference=start, device="cpu")
    scores = reader.score([each.solution for each in toy(16, seed=1)])
    assert np.mean([good[1] > bad[1] for good, bad in zip(scores[::2], scores[1::2], strict=True)]) > 0.9


def test_what_cannot_be_learned_is_refused(tmp_path):
    """One kind of outcome, an outcome out of range, and a spec of another family."""
    layout = SolutionLayout(llama3_tokenizer(), SPEC)
    with pytest.raises(DataFormatError, match="outcomes must differ"):
        outcome_rows([graded(1.0, "a")], layout, compare=False, dropped={})
    with pytest.raises(DataFormatError, match=r"outcome must be in \[0, 1\]: got 2.0"):
        outcome_rows([graded(2.0, "a")], layout, compare=False, dropped={})
    with pytest.raises(ConfigError, match="must go together"):
        train_implicit(tmp_path, [], tmp_path / "out", SETTINGS, spec=NAMED_SPECS["trl"].spec)
