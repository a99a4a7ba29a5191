"""Log-probabilities from hidden states in chunks: hand-worked numbers, the plain way as a twin, every family, and the memory."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stepladder.lm import chunked_head, completions
from stepladder.lm.chunked_head import Head, choice_logps, head_left_out, head_of
from stepladder.lm.completions import CompletionRow, collate_completions, collate_packed_completions, completion_logps
from stepladder.lm.packing import pack_rows
from tests.families import FAMILIES, VOCABULARY, family_model

BOUNDED = "gemma 2 with bounded logits"


def head_with(weight: list[list[float]], *, scale: float = 1.0, cap: float | None = None) -> Head:
    """Return a head with given weights in float64."""
    linear = nn.Linear(len(weight[0]), len(weight), bias=False, dtype=torch.float64)
    linear.weight.data = torch.tensor(weight, dtype=torch.float64)
    return Head(linear, scale, cap)


def test_by_hand() -> None:
    """Hidden (1, log 3) and the identity give the logits 1 and log 3; halved and shifted they change as the formula says."""
    hidden = torch.tensor([[0.0, math.log(3)]] * 2, dtype=torch.float64, requires_grad=True)
    logps = choice_logps(hidden, torch.tensor([1, 0]), head_with([[1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(logps, torch.tensor([math.log(3 / 4), math.log(1 / 4)], dtype=torch.float64))
    # d logp_1 = (-p_0, 1 - p_1) with p = (1/4, 3/4).
    logps[0].backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[-0.25, 0.25], [0.0, 0.0]], dtype=torch.float64))
    halved = choice_logps(hidden.detach()[:1], torch.tensor([1]), head_with([[1.0, 0.0], [0.0, 2.0]], scale=0.5))
    torch.testing.assert_close(halved, torch.tensor([math.log(3 / 4)], dtype=torch.float64))
    bounded = choice_logps(torch.tensor([[0.0, 2 * math.atanh(0.5)]]).double(), torch.tensor([1]), head_with([[1, 0], [0, 1]], cap=2.0))
    # 2 tanh(atanh(1/2)) = 1, so p = e / (1 + e).
    torch.testing.assert_close(bounded, torch.tensor([1 - math.log(1 + math.e)], dtype=torch.float64))


def plain(hidden: Tensor, choices: Tensor, head: Head) -> Tensor:
    """Return the same by the definition."""
    logits = head.scale * head.linear(hidden)
    logits = logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)
    return logits.log_softmax(-1).gather(1, choices[:, None])[:, 0]


@pytest.mark.parametrize(("scale", "cap", "bias"), [(1.0, None, False), (0.5, None, True), (1.0, 3.0, False), (2.0, 1.5, True)])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_values_and_gradients_are_those_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, scale: float, cap: float | None, bias: bool, chunk: int
) -> None:
    """In float64, for chunks of one, of three and of all positions."""
    monkeypatch.setattr(chunked_head, "CHUNK_BYTES", 4 * 11 * chunk)
    generator = torch.Generator().manual_seed(3)
    random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    head = Head(nn.Linear(5, 11, bias=bias, dtype=torch.float64), scale, cap)
    for value in head.linear.parameters():
        value.data = random(*value.shape)
    hidden, upstream = random(7, 5), random(7)
    choices = torch.randint(11, (7,), generator=generator)
    found, expected = [], []
    for read, kept in ((choice_logps, found), (plain, expected)):
        inputs = hidden.clone().requires_grad_()
        logps = read(inputs, choices, head)
        kept += [logps.detach(), *torch.autograd.grad((logps * upstream).sum(), [inputs, *head.linear.parameters()])]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    parameters = torch.autograd.grad(choice_logps(hidden, choices, head).sum(), list(head.linear.parameters()))
    assert all(bool(value.isfinite().all()) for value in parameters)


def rows_of(num_problems: int, seed: int) -> list[CompletionRow]:
    """Return completions of a few problems that share beginnings, some of whose tokens were given."""
    rng = np.random.default_rng(seed)
    rows = []
    for problem in range(num_problems):
        prompt, shared = rng.integers(3, VOCABULARY, 4).tolist(), rng.integers(3, VOCABULARY, 3).tolist()
        for _ in range(3):
            tokens = shared + rng.integers(3, VOCABULARY, int(rng.integers(2, 6))).tolist()
            given = [index == 1 for index in range(len(tokens))]
            rows.append(CompletionRow(prompt_ids=prompt, completion_ids=tokens, group=str(problem), completion_given=given))
    return rows


@pytest.mark.parametrize(("family", "packed"), [*((family, True) for family in (*FAMILIES, BOUNDED)), ("qwen2", False), (BOUNDED, False)])
def test_every_family_learns_the_same(family: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities and gradients of a random sum of them, on trees and on sequences, with and without chunks."""
    bounded: dict[str, Any] = {"final_logit_softcapping": 2.0} if family.endswith("logits") else {}
    model = family_model(family.removesuffix(" with bounded logits"), **bounded)
    rows = rows_of(2, seed=5)
    batch = collate_packed_completions(pack_rows(rows, row_tokens=40), width=50) if packed else collate_completions(rows)
    weights = torch.randn(batch["targets"].shape, generator=torch.Generator().manual_seed(0))
    found = []
    for chunk_bytes in (1 << 30, 4 * VOCABULARY * 3):
        monkeypatch.setattr(chunked_head, "CHUNK_BYTES", chunk_bytes)
        monkeypatch.setattr(completions, "CHUNK_BYTES", chunk_bytes)
        model.zero_grad()
        logps = completion_logps(model, batch)
        (logps * weights).sum().backward()
        found.append((logps.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}))
    (expected, slow), (logps, fast) = found
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-6)
    assert fast.keys() == slow.keys()
    largest = max(float(value.norm()) for value in slow.values())
    for name, value in slow.items():
        assert float((fast[name] - value).norm()) <= 1e-5 * max(float(value.norm()), 1e-3 * largest), name
    # The model is as before.
    assert model(**{"input_ids": torch.tensor([[3, 4]])}).logits.shape == (1, 2, VOCABULARY)


def test_rounding_under_autocast_is_that_of_the_head() -> None:
    """In bfloat16 the logits are those of the head itself, bit by bit, and the softmax is taken in float32."""
    torch.manual_seed(0)
    head = Head(nn.Linear(64, 50, bias=False))
    hidden, choices = torch.randn(9, 64), torch.randint(50, (9,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = head.linear(hidden)
        with head_left_out(head) as kept:
            head.linear(hidden)
    # The Trainer's autocast ends with the model's forward pass; the type is that of the pass all the same.
    assert outputs.dtype == kept[0].computed == torch.bfloat16
    found = choice_logps(hidden, choices, head, computed=kept[0].computed)
    torch.testing.assert_close(found, outputs.float().log_softmax(-1).gather(1, choices[:, None])[:, 0], rtol=0, atol=1e-6)


def test_a_head_that_is_no_plain_layer_stays_in_the_model() -> None:
    """Then nothing is left out, and the plain way is taken. A replaced ``forward`` comes back."""
    model = family_model("qwen2")
    found = head_of(model)
    assert found is not None and found.linear is model.get_output_embeddings()
    own = found.linear.forward = lambda input: input
    with head_left_out(found) as kept:
        assert found.linear(torch.ones(1, 2, 3)).shape == (1, 2, 1)
    assert found.linear.forward is own and kept[0].hidden.shape == (1, 2, 3) and kept[0].computed == torch.float32
    model.set_output_embeddings(nn.Sequential(nn.Linear(32, VOCABULARY)))  # pyright: ignore[reportArgumentType]
    assert head_of(model) is None
    assert head_of(nn.Sequential(family_model("qwen2"))[0]) is not None


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation makes."""

    bytes_made = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        made = func(*args, **(kwargs or {}))  # pyright: ignore[reportCallIssue]
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, Tensor):
                self.bytes_made = max(self.bytes_made, each.numel() * each.element_size())
        return made


def test_no_tensor_is_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 600 positions, 5,000 tokens of vocabulary and chunks of 50 positions, no tensor of either pass exceeds a megabyte.

    The plain way makes logits of 12 megabytes.
    """
    monkeypatch.setattr(chunked_head, "CHUNK_BYTES", 4 * 5000 * 50)
    head = Head(nn.Linear(8, 5000, bias=False))
    hidden, choices = torch.randn(600, 8, requires_grad=True), torch.randint(5000, (600,))
    sizes = []
    for read in (choice_logps, plain):
        with Largest() as largest:
            read(hidden, choices, head).sum().backward()
        sizes.append(largest.bytes_made)
    assert sizes[0] == 4 * 5000 * 50
    assert sizes[1] == 4 * 5000 * 600
