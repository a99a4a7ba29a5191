"""Given tokens are context and nothing else: no loss has a gradient at their predictions, and packed training equals unpacked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stepladder.errors import DataFormatError
from stepladder.lm.completions import collate_completions, collate_packed_completions
from stepladder.lm.packing import pack_rows
from stepladder.policy.fine_tuning import (
    collate_packed_preferences,
    collate_preferences,
    completion_rows,
    preference_rows,
)
from stepladder.policy.objectives import CompletionObjective, PreferenceObjective, UnpairedObjective
from stepladder.policy.preference_settings import DPO, KTO, ORPO, SimPO
from stepladder.policy.unpaired import collate_packed_unpaired, collate_unpaired, unpaired_rows
from stepladder.prm.implicit import (
    ImplicitObjective,
    collate_outcomes,
    collate_packed_outcomes,
    outcome_rows_of_paths,
)
from stepladder.types import GradedRow, PreferencePair, Trace, ValueRow
from tests.families import VOCABULARY, family_model
from tests.unit.policy.test_packed import PROVENANCE, assert_same_gradients, gradients

Part = tuple[list[int], bool]
"""Tokens, and whether they were given."""


def solutions(seed: int, count: int = 6) -> list[list[Part]]:
    """Return solutions of one problem that share beginnings: steps and observations in turn, of one to four tokens."""
    rng = np.random.default_rng(seed)

    def part(given: bool) -> Part:
        return rng.integers(3, VOCABULARY, int(rng.integers(1, 5))).tolist(), given

    made: list[list[Part]] = [[part(False), part(True), part(False)]]
    while len(made) < count:
        known = made[int(rng.integers(len(made)))]
        kept = known[: 2 * int(rng.integers(0, 1 + len(known) // 2))]
        made.append([*kept, part(False), part(True), part(False)])
    # What one solution was given, another one wrote itself: equal tokens at equal places, of which only one is learned.
    made.append([(ids, False) for ids, _ in made[0]])
    return made


def ids_of(parts: Sequence[Part]) -> list[int]:
    return [token for ids, _ in parts for token in ids]


def given_of(parts: Sequence[Part]) -> list[bool]:
    return [given for ids, given in parts for _ in ids]


@dataclass
class Case:
    """An objective with its rows."""

    rows: list[Any]
    objective: Any
    collate: Callable[..., dict[str, Any]]
    collate_packed: Callable[..., dict[str, Any]]
    completions: Callable[[list[Any]], list[Any]]
    """The completion rows, in the order of the batch."""


PROMPT = [3, 4, 5]


def sft(parts: list[list[Part]]) -> Case:
    fields = {"problem_id": "p", "prompt": "", "completion": "", "mean_value": 1.0, "provenance": PROVENANCE, "prompt_ids": PROMPT}
    traces = [Trace(completion_ids=ids_of(each), completion_given=given_of(each), **fields) for each in parts]
    rows = completion_rows(traces, vocabulary=VOCABULARY)
    return Case(rows, CompletionObjective(), collate_completions, collate_packed_completions, lambda rows: rows)


def preference(parts: list[list[Part]], loss: Any) -> Case:
    texts = {"prompt": "", "chosen": "", "rejected": "", "chosen_value": 0.9, "rejected_value": 0.1}
    pairs = [
        PreferencePair(
            problem_id="p",
            prompt_ids=PROMPT,
            chosen_ids=ids_of(first),
            rejected_ids=ids_of(second),
            chosen_given=given_of(first),
            rejected_given=given_of(second),
            depth=1,
            provenance=PROVENANCE,
            **texts,
        )
        for first, second in pairwise(parts)
    ]
    made = preference_rows(pairs, vocabulary=VOCABULARY, dropped={})
    rows = [replace(row, ref_chosen_logp=-3.0, ref_rejected_logp=-4.0) for row in made]
    both = lambda rows: [*(row.chosen for row in rows), *(row.rejected for row in rows)]  # noqa: E731
    return Case(rows, PreferenceObjective(settings=loss), collate_preferences, collate_packed_preferences, both)


def unpaired(parts: list[list[Part]]) -> Case:
    fields = {
        "prompt_ids": PROMPT,
        "value": 1.0,
        "prompt_value": 0.5,
        "prompt": "",
        "completion": "",
        "logps": [],
        "provenance": PROVENANCE,
    }
    graded = [
        GradedRow(problem_id=f"p{i % 3}", completion_ids=ids_of(each), completion_given=given_of(each), good=i % 2 == 0, **fields)
        for i, each in enumerate(parts)
    ]
    rows = unpaired_rows(graded, vocabulary=VOCABULARY, mismatched=True)
    both = lambda rows: [*(row.completion for row in rows), *(row.mismatched for row in rows)]  # noqa: E731
    return Case(rows, UnpairedObjective(settings=KTO()), collate_unpaired, collate_packed_unpaired, both)


def implicit(parts: list[list[Part]]) -> Case:
    fields = {"problem_id": "p", "prompt_ids": PROMPT, "prompt": "", "provenance": PROVENANCE}
    paths = []
    for i, each in enumerate(parts):
        steps = [ids for ids, given in each if not given]
        observed = [ids for ids, given in each if given]
        # The last solution has three steps without observations.
        given = [*observed, []] if observed else []
        targets = [*([None] * (len(steps) - 1)), float(i % 2)]
        paths.append(
            ValueRow(step_ids=steps, targets=targets, steps=[""] * len(steps), given_ids=given, given_texts=[""] * len(given), **fields)
        )
    rows = outcome_rows_of_paths(paths, dropped={})
    return Case(rows, ImplicitObjective(loss_name="implicit-ce", beta=0.1), collate_outcomes, collate_packed_outcomes, lambda rows: rows)


CASES: dict[str, Callable[[list[list[Part]]], Case]] = {
    "sft": sft,
    "dpo": lambda parts: preference(parts, DPO(beta=0.3, sft_weight=0.5)),
    "simpo": lambda parts: preference(parts, SimPO()),
    "orpo": lambda parts: preference(parts, ORPO()),
    "kto": unpaired,
    "implicit": implicit,
}


def logit_gradients(model: nn.Module, objective: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Return the gradient of the loss by the logits of the unpacked batch, [B T V]."""
    seen: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    handle = model.lm_head.register_forward_hook(keep)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    objective.loss(model, batch, objective.counts(batch)).backward()
    handle.remove()
    (logits,) = seen
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_given_tokens_carry_no_gradient_and_packing_changes_nothing(name: str, seed: int) -> None:
    """Logits that predict a given token get a gradient of exactly zero; those of other tokens do not; trees give the same update."""
    case, model = CASES[name](solutions(seed)), family_model("llama")
    trees = pack_rows(case.rows, row_tokens=10_000)
    rows = [row for tree in trees for row in tree.rows]
    plain, packed = case.collate(rows), case.collate_packed(trees)
    found = logit_gradients(model, case.objective, plain)
    sides = case.completions(rows)
    assert found.shape[0] == len(sides)
    first = min(len(side.prompt_ids) for side in sides) - 1
    columns_without_logits = max(side.length for side in sides) - found.shape[1]
    num_given = num_learned = 0
    for gradient, side in zip(found, sides, strict=True):
        begin = len(side.prompt_ids) - 1 - columns_without_logits
        marks = side.completion_given or [False] * len(side.completion_ids)
        norms = gradient[begin : begin + len(marks)].norm(dim=-1)
        assert not norms[torch.tensor(marks)].any()
        assert not gradient[: begin if begin > 0 else 0].any()
        num_given += sum(marks)
        num_learned += int((norms > 0).sum())
    assert first == columns_without_logits and num_given >= 7 and num_learned >= 14
    counts = case.objective.counts(plain)
    assert torch.equal(counts, case.objective.counts(packed))
    losses = [case.objective.loss(model, batch, counts) for batch in (packed, plain)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    assert_same_gradients(gradients(model, losses[0]), gradients(model, losses[1]))


def test_the_loss_is_the_mean_over_sampled_tokens_given_everything_before_them() -> None:
    """SFT by hand: whole sequences through the model, log-probabilities of the sampled tokens alone."""
    parts, model = solutions(7), family_model("qwen2")
    case = sft(parts)
    total, count = 0.0, 0
    for each in parts:
        table = model(torch.tensor([[*PROMPT, *ids_of(each)]])).logits[0].log_softmax(-1).detach()
        for place, (token, given) in enumerate(zip(ids_of(each), given_of(each), strict=True)):
            total -= 0.0 if given else float(table[len(PROMPT) - 1 + place, token])
            count += not given
    batch = case.collate(case.rows)
    assert case.objective.counts(batch).item() == count
    assert case.objective.loss(model, batch, case.objective.counts(batch)).item() == pytest.approx(total / count, rel=1e-5)


def test_tokens_that_both_sides_begin_with_end_at_the_first_difference_in_ids_or_marks() -> None:
    """[5 | 6 | 7] against [5 | 6 | 8] share one learned token; against [5 6 7], written by the policy, too, though all ids are equal."""
    texts = {"problem_id": "p", "prompt": "", "chosen": "", "rejected": "", "chosen_value": 0.9, "rejected_value": 0.1, "depth": 1}
    fields: dict[str, Any] = {
        **texts,
        "prompt_ids": [3],
        "provenance": PROVENANCE,
        "chosen_ids": [5, 6, 7],
        "chosen_logps": [-1.0, 0.0, -2.0],
    }
    marks = [False, True, False]
    rows = preference_rows(
        [
            PreferencePair(**fields, rejected_ids=[5, 6, 8], chosen_given=marks, rejected_given=marks, rejected_logps=[-1.0, 0.0, -4.0]),
            PreferencePair(**fields, rejected_ids=[5, 6, 7], chosen_given=marks, rejected_logps=[-1.0, -8.0, -2.0]),
        ],
        vocabulary=VOCABULARY,
        dropped={},
    )
    assert [row.num_shared for row in rows] == [1, 1]
    assert [row.sampler_logps for row in rows] == [(-2.0, -4.0), (-2.0, -10.0)]
    batch = collate_preferences(rows)
    assert batch["contrast"].tolist() == [[False, False, True], [False, False, True], [False, False, True], [False, True, True]]


@pytest.mark.parametrize("marks", [[True, True], [False]])
def test_marks_that_cannot_be_are_refused(marks: list[bool]) -> None:
    """A completion of which nothing was sampled, or with another number of marks than tokens, is no row."""
    fields = {"problem_id": "p", "prompt": "", "completion": "", "mean_value": 1.0, "provenance": PROVENANCE}
    trace = Trace(prompt_ids=[3], completion_ids=[4, 5], completion_given=marks, **fields)
    with pytest.raises(DataFormatError, match="must be marked as given or sampled"):
        completion_rows([trace], vocabulary=VOCABULARY)
