"""Implicit process reward models: rows, log-ratios against plain ones, and training that is read back as step scores."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stepladder.errors import ConfigError, DataFormatError
from stepladder.lm.packing import pack_rows
from stepladder.lm.references import add_reference
from stepladder.lm.settings import TrainSettings
from stepladder.prm.implicit import (
    GradedSolution,
    ImplicitObjective,
    Loss,
    OutcomeRow,
    collate_outcomes,
    collate_packed_outcomes,
    collate_packed_problems,
    collate_problems,
    outcome_rows,
    outcome_rows_of_paths,
    problem_rows,
    rows_to_learn,
    train_implicit,
    train_implicit_on_tokens,
)
from stepladder.prm.layout import SolutionLayout
from stepladder.prm.reader import Solution
from stepladder.prm.specs import NAMED_SPECS, PRMSpec
from stepladder.types import ValueRow
from tests.models import save_tiny_policy, tiny_policy
from tests.prm_models import llama3_tokenizer, save_language_model
from tests.prms import load_reader
from tests.value_paths import HASH, value_row

SPEC = replace(NAMED_SPECS["implicit"].spec, beta=0.5)
TOKENS = PRMSpec(family="implicit", beta=0.5)
SETTINGS = TrainSettings(learning_rate=3e-3, epochs=4.0, batch_size=8, schedule="constant", device="cpu")
COLLATES: dict[str, Any] = {"collate": collate_outcomes, "collate_packed": collate_packed_outcomes}


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


def tree_paths(seed: int) -> list[ValueRow]:
    """Return the graded paths of three trees of depth 3 and branching 2, of which the second lacks 3 leaves and the third 6."""
    rng = np.random.default_rng(seed)
    rows = []
    for problem in range(3):
        steps = {node: rng.integers(11, 50, int(rng.integers(1, 6))).tolist() for depth in (1, 2, 3) for node in np.ndindex(*[2] * depth)}
        for number, leaf in enumerate(np.ndindex(2, 2, 2)):
            if number < 8 - 3 * problem:
                path = [steps[leaf[:depth]] for depth in (1, 2, 3)]
                row = value_row([5, 6, 7 + problem], path, [None, None, (0.0, 1.0, 0.25)[number % 3]])
                rows.append(replace(row, problem_id=f"p{problem}"))
    return rows


def plain_logp(model, row: OutcomeRow) -> torch.Tensor:
    """Return the log-probability of a solution's steps by one forward pass over all of it."""
    ids, begin = [*row.prompt_ids, *row.completion_ids], len(row.prompt_ids)
    logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return torch.stack([logps[i - 1, ids[i]] for i in range(begin, len(ids))]).sum()


def batch_of(rows: Sequence[OutcomeRow], loss: Loss, *, row_tokens: int | None) -> Any:
    """Return the batch of a loss, on trees where their size is given."""
    if loss == "implicit-ce":
        return collate_outcomes(rows) if row_tokens is None else collate_packed_outcomes(pack_rows(rows, row_tokens=row_tokens))
    problems = problem_rows(rows)
    return collate_problems(problems) if row_tokens is None else collate_packed_problems(pack_rows(problems, row_tokens=row_tokens))


@torch.no_grad()
def test_rows_and_reference_are_those_of_plain_forwards(tmp_path):
    """Reference log-probabilities run over the step tokens only; solutions are compared by problem; what is dropped is counted."""
    model = AutoModelForCausalLM.from_pretrained(save_language_model(tmp_path, llama3_tokenizer(), arch="llama"))
    layout, dropped = SolutionLayout(llama3_tokenizer(), SPEC), {}
    solutions = [graded(1.0, "a", "bc"), graded(0.0, "d", problem="R"), graded(0.5, "e"), graded(None, "f"), graded(1.0)]
    rows = outcome_rows(solutions, layout, dropped=dropped)
    assert [(row.group, row.outcome) for row in rows] == [("P", 1.0), ("R", 0.0), ("P", 0.5)]
    assert dropped == {"no outcome": 1, "no tokens": 1}
    assert rows_to_learn(rows, compare=False, dropped=dropped) == rows
    for row in add_reference(model, rows, SETTINGS, **COLLATES):
        assert row.ref_logp == pytest.approx(plain_logp(model, row).item(), abs=1e-4)
    assert llama3_tokenizer().decode(rows[0].completion_ids) == "a\n\nbc"
    compared = {}
    (problem,) = problem_rows(rows_to_learn(rows, compare=True, dropped=compared))
    assert sorted(row.outcome for row in problem.solutions) == [0.5, 1.0]
    assert compared == {"problem without solutions to compare": 1}


@pytest.mark.parametrize("row_tokens", [None, 1000])
def test_losses_start_at_log_two_and_equal_their_formulas(tmp_path, row_tokens):
    """At the reference every log-ratio is 0; with a shifted reference the losses are those of the shifts, on trees as well."""
    model = AutoModelForCausalLM.from_pretrained(save_language_model(tmp_path, llama3_tokenizer(), arch="llama"))
    rows = outcome_rows([graded(1.0, "a"), graded(0.0, "b")], SolutionLayout(llama3_tokenizer(), SPEC), dropped={})
    right, wrong = add_reference(model, rows, SETTINGS, **COLLATES)
    shifted = replace(right, ref_logp=right.ref_logp - 2 * math.log(3))
    expectations: dict[Loss, float] = {"implicit-ce": (math.log(4 / 3) + math.log(2)) / 2, "implicit-dpo": math.log(4 / 3)}
    for name, expected in expectations.items():
        objective = ImplicitObjective(loss_name=name, beta=0.5)
        start, moved = (batch_of([each, wrong], name, row_tokens=row_tokens) for each in (right, shifted))
        assert objective.loss(model, start, objective.counts(start)).item() == pytest.approx(math.log(2), abs=1e-4)
        assert objective.loss(model, moved, objective.counts(moved)).item() == pytest.approx(expected, abs=1e-4)


def test_problems_are_laid_out_with_their_solutions():
    """A problem names its lines of the batch, -1 where it has fewer than another; outcomes and references follow the lines."""
    fields = [("a", [8, 9], 1.0, -3.0), ("b", [8], 0.0, -1.0), ("a", [8, 4], 0.0, -2.0), ("b", [6, 6], 0.5, -4.0), ("a", [7], 0.25, -5.0)]
    rows = [OutcomeRow(prompt_ids=[5, 6], completion_ids=ids, group=group, outcome=y, ref_logp=ref) for group, ids, y, ref in fields]
    plain = collate_problems(problem_rows(rows))
    packed = collate_packed_problems(pack_rows(problem_rows(rows), row_tokens=100))
    for batch in (plain, packed):
        # Sorted by what is forwarded, all tokens but the last: of problem "a" [5, 6], then [5, 6, 8] twice.
        assert batch["members"].tolist() == [[0, 1, 2], [3, 4, -1]]
        assert batch["outcomes"].tolist() == [0.25, 1.0, 0.0, 0.0, 0.5]
        assert batch["ref_logps"].tolist() == [-5.0, -3.0, -2.0, -1.0, -4.0]
        assert ImplicitObjective(loss_name="implicit-ce", beta=1.0).counts(batch).tolist() == [5]
        assert ImplicitObjective(loss_name="implicit-dpo", beta=1.0).counts(batch).tolist() == [2]
    assert plain["inputs"]["input_ids"].tolist() == [[5, 6, 0], [5, 6, 8], [5, 6, 8], [5, 6, 0], [5, 6, 6]]
    assert packed["inputs"]["input_ids"].tolist() == [[5, 6, 8], [5, 6, 6]]


@pytest.mark.parametrize("loss", ["implicit-ce", "implicit-dpo"])
@pytest.mark.parametrize("row_tokens", [None, 1000, 40])
def test_losses_and_gradients_equal_the_slow_ones(loss: Loss, row_tokens: int | None) -> None:
    """On trees, whole or cut, and split into passes, loss and gradient are those of whole sequences one by one, references included."""
    model, reference = (tiny_policy(hidden=32, layers=2, seed=seed)[0] for seed in (0, 1))
    plain_rows = outcome_rows_of_paths(tree_paths(seed=0), dropped={})
    packed = row_tokens is not None
    settings = replace(SETTINGS, micro_batch_size=5, packed=packed, row_tokens=row_tokens or 1)
    if loss == "implicit-ce":
        rows = add_reference(reference, plain_rows, settings, **COLLATES)
    else:
        collates = {"collate": collate_problems, "collate_packed": collate_packed_problems}
        problems = add_reference(reference, problem_rows(plain_rows), replace(settings, micro_batch_size=2), **collates)
        rows = [row for problem in problems for row in problem.solutions]
    objective = ImplicitObjective(loss_name=loss, beta=0.3)
    parts = [batch_of([row for row in rows if row.group in groups], loss, row_tokens=row_tokens) for groups in (("p0", "p2"), ("p1",))]
    counts = torch.stack([objective.counts(part) for part in parts]).sum(0)
    assert counts.tolist() == [8 + 5 + 2 if loss == "implicit-ce" else 3]
    found = torch.stack([objective.loss(model, part, counts) for part in parts]).sum()
    found.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()

    total = torch.zeros(())
    for row in rows:
        with torch.no_grad():
            assert row.ref_logp == pytest.approx(plain_logp(reference, row).item(), rel=1e-5)
    rewards = [0.3 * (plain_logp(model, row) - row.ref_logp) for row in rows]
    if loss == "implicit-ce":
        for row, r in zip(rows, rewards, strict=True):
            total = total - (row.outcome * torch.sigmoid(r).log() + (1 - row.outcome) * torch.sigmoid(-r).log()) / 15
    else:
        for group in ("p0", "p1", "p2"):
            mine = [(row.outcome, r) for row, r in zip(rows, rewards, strict=True) if row.group == group]
            gaps = [r - other for y, r in mine for less, other in mine if y > less]
            total = total - torch.stack(gaps).sigmoid().log().mean() / 3
    total.backward()
    assert found.item() == pytest.approx(total.item(), rel=1e-5)
    exact = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert gradients.keys() == exact.keys()
    largest = max(float(value.norm()) for value in exact.values())
    for name, value in exact.items():
        assert float((gradients[name] - value).norm()) <= 1e-5 * max(float(value.norm()), 1e-3 * largest), name


@pytest.mark.parametrize(("loss", "num_rows"), [("implicit-ce", 15), ("implicit-dpo", 3)])
def test_training_on_trees_is_training_on_paths(tmp_path, loss: Loss, num_rows: int) -> None:
    """Either way an update of all rows takes the same steps; on trees the distinct tokens are forwarded once."""
    start = save_tiny_policy(tmp_path / "start", hidden=32, layers=2, max_positions=64)
    paths, reports = tree_paths(seed=1), {}
    for packed in (True, False):
        settings = TrainSettings(learning_rate=1e-3, epochs=3.0, batch_size=num_rows, packed=packed, device="cpu")
        out = tmp_path / str(packed)
        reports[packed] = train_implicit_on_tokens(start, paths, out, settings, renderer_hash=HASH, spec=TOKENS, loss=loss)
    sequences = [[*row.prompt_ids, *(token for step in row.step_ids for token in step)] for row in paths]
    unique = {tuple(ids[:length]) for ids in sequences for length in range(1, len(ids))}
    assert (reports[True].layout, reports[False].layout) == ("trees", "paths")
    # The three prompts differ in their last token only, but trees of different problems share nothing.
    assert reports[True].tokens == 3 * (len(unique) + 2 * 2)
    assert reports[False].tokens == 3 * sum(len(ids) - 1 for ids in sequences)
    assert [(report.rows, report.updates) for report in reports.values()] == [(num_rows, 3)] * 2
    assert reports[True].first_loss == pytest.approx(math.log(2), abs=1e-6)
    assert reports[True].last_loss == pytest.approx(reports[False].last_loss, rel=1e-4)
    assert reports[True].last_loss < reports[True].first_loss - 1e-3


@pytest.mark.parametrize(("loss", "updates"), [("implicit-ce", 8), ("implicit-dpo", 2)])
def test_an_update_counts_solutions_or_problems(tmp_path, loss: Loss, updates: int) -> None:
    """Two solutions an update, or two problems; a solution beyond the context and one without tokens are left out by themselves."""
    start = save_tiny_policy(tmp_path / "start", hidden=32, layers=1, max_positions=64)
    paths = tree_paths(seed=1)
    long, empty = replace(paths[0], step_ids=[[11] * 70], targets=[0.5]), replace(paths[0], step_ids=[[]], targets=[0.5])
    settings = TrainSettings(learning_rate=1e-3, epochs=1.0, batch_size=2, device="cpu")
    report = train_implicit_on_tokens(start, [long, *paths, empty], tmp_path / "out", settings, renderer_hash=HASH, spec=TOKENS, loss=loss)
    assert (report.rows, report.updates) == (15 if loss == "implicit-ce" else 3, updates)
    assert report.dropped_by_reason == {"no tokens": 1, "longer than the context": 1}


def test_what_does_not_fit_leaves_nothing_to_compare(tmp_path):
    """A problem whose only wrong solution is beyond the context is not compared, and is counted."""
    start = save_tiny_policy(tmp_path / "start", hidden=32, layers=1, max_positions=64)
    paths = tree_paths(seed=1)
    fields = replace(paths[0], problem_id="q")
    lopsided = [replace(fields, targets=[None, None, 1.0]), replace(fields, step_ids=[[11] * 70], targets=[0.0])]
    settings = TrainSettings(max_updates=1, device="cpu")
    report = train_implicit_on_tokens(
        start, [*paths, *lopsided], tmp_path / "out", settings, renderer_hash=HASH, spec=TOKENS, loss="implicit-dpo"
    )
    assert report.rows == 3
    assert report.dropped_by_reason == {"longer than the context": 1, "problem without solutions to compare": 1}
    with pytest.raises(DataFormatError, match=r"outcomes must differ: got 1\.0 only, and dropped 1 longer than the context"):
        train_implicit_on_tokens(start, lopsided, tmp_path / "b", settings, renderer_hash=HASH, spec=TOKENS)
    foreign = replace(paths[0], step_ids=[[11], [12], [999]])
    with pytest.raises(DataFormatError, match=r"graded solution 1 \(problem 'p0'\): token ids must be in \[0, 60\): got 999"):
        train_implicit_on_tokens(start, [paths[0], foreign], tmp_path / "b", settings, renderer_hash=HASH, spec=TOKENS)


@pytest.mark.parametrize("loss", ["implicit-ce", "implicit-dpo"])
def test_outcomes_alone_teach_which_step_is_bad(tmp_path, loss):
    """Trained on whole solutions, the model scores the bad second step of unseen problems below the good one."""
    start = save_language_model(tmp_path / "start", llama3_tokenizer(), arch="llama")
    report = train_implicit(start, toy(48), tmp_path / "out", SETTINGS, spec=SPEC, loss=loss)
    assert report.first_loss == pytest.approx(math.log(2), abs=1e-3)
    assert report.last_loss < 0.5
    reader = load_reader(tmp_path / "out", SPEC, reference=start)
    scores = reader.score([each.solution for each in toy(16, seed=1)])
    assert np.mean([good[1] > bad[1] for good, bad in zip(scores[::2], scores[1::2], strict=True)]) > 0.9


def test_what_cannot_be_learned_is_refused(tmp_path):
    """One kind of outcome, an outcome out of range, and a spec of another family."""
    layout = SolutionLayout(llama3_tokenizer(), SPEC)
    with pytest.raises(DataFormatError, match="outcomes must differ"):
        rows_to_learn(outcome_rows([graded(1.0, "a")], layout, dropped={}), compare=False, dropped={})
    with pytest.raises(DataFormatError, match=r"outcome must be in \[0, 1\]: got 2.0"):
        outcome_rows([graded(2.0, "a")], layout, dropped={})
    with pytest.raises(ConfigError, match="must go together"):
        train_implicit(tmp_path, [], tmp_path / "out", SETTINGS, spec=NAMED_SPECS["trl"].spec)
