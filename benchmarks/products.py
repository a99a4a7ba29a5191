"""The matrix products of a search without the search: what the same weights cost, applied to as many tokens as its trees hold.

Counted as ``flops`` in docs/eval.md: every matrix of the layers for every unique token, the output layer for sampled tokens only.
``Passes`` watches a policy meanwhile, and says how many tokens a pass had, and how long its matrix products and its attention took. So the
products are measured twice: within the search, as they are done there, and on their own, at the batch size that is best for them.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from stepladder.lm.flops import flops_of
from stepladder.policy.backends.transformers import TransformersPolicy

BATCHES = (64, 256)
"""Tokens at once, among which the best number is chosen."""
_LEAST_SECONDS = 0.3


class Products:
    """The matrices of a model."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take the weights of a model, without a copy."""
        output = model.get_output_embeddings()
        assert isinstance(output, torch.nn.Linear), "the models of the benchmark have an output layer"
        self.head = [output.weight]
        self.body = [part.weight for part in model.modules() if isinstance(part, torch.nn.Linear) and part is not output]
        counted = flops_of(model)
        assert sum(map(torch.numel, self.body)) == counted.body, "every matrix of the layers is applied, as it is counted"
        assert output.weight.numel() == counted.head, "the output layer is applied, as it is counted"

    @torch.inference_mode()
    def seconds(self, *, unique: int, sampled: int, batch: int) -> float:
        """Return the CPU time of the products of a search, from a sample of passes.

        Args:
            unique: Tokens that go through the layers.
            sampled: Tokens that go through the output layer.
            batch: Tokens at once, >= 1; the last, smaller pass counts by its share.
        """
        return (unique * _pass_seconds(self.body, batch) + sampled * _pass_seconds(self.head, batch)) / batch


def _pass_seconds(weights: Iterable[torch.Tensor], batch: int) -> float:
    """Return the least CPU time in which some tokens go through all weights once."""
    work = [(torch.randn(batch, weight.shape[1]), weight) for weight in weights]
    least, spent = float("inf"), 0.0
    while spent < _LEAST_SECONDS:
        begin = time.thread_time()
        for rows, weight in work:
            torch.nn.functional.linear(rows, weight)
        taken = time.thread_time() - begin
        least, spent = min(least, taken), spent + taken
    return least


class Work:
    """CPU seconds in chosen methods of some objects, none of which calls another."""

    def __init__(self, *methods: tuple[Any, str]) -> None:
        """Watch methods, given as pairs of object and name."""
        self.seconds = 0.0
        for owner, name in methods:
            setattr(owner, name, self.watched(getattr(owner, name)))

    def watched(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose CPU seconds are counted."""

        def watched(*arguments: Any, **options: Any) -> Any:
            begin = time.thread_time()
            result = method(*arguments, **options)
            self.seconds += time.thread_time() - begin
            return result

        return watched


class Passes:
    """The passes of a policy."""

    def __init__(self, policy: TransformersPolicy) -> None:
        """Watch a policy from now on."""
        self.decoding: list[int] = []
        """Tokens of each pass that decodes."""
        self.prefixes: list[int] = []
        """Tokens of each other pass."""
        flat: Any = policy._model
        self.products = Work(*((part, "forward") for part in flat._model.modules() if isinstance(part, torch.nn.Linear)))
        """Matrix products in the passes."""
        self.attention = Work()
        """Attention in them, and the copies into the rows that it reads."""
        flat.forward = self._noted(flat.forward)
        self.all = Work((flat, "forward"))
        """The passes."""
        # Rows that decode call the same model as the cache that reads new prefixes.
        rows: Any = policy._rows
        self._kind = self.prefixes
        rows.forward = self._as_decoding(rows.forward)

    @property
    def mean_batch(self) -> float:
        """Tokens of a pass that decodes, on average."""
        return sum(self.decoding) / len(self.decoding)

    @property
    def tokens(self) -> int:
        """Tokens of all passes."""
        return sum(self.decoding + self.prefixes)

    def _as_decoding(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def decode(**arguments: Any) -> Any:
            self._kind = self.decoding
            try:
                return forward(**arguments)
            finally:
                self._kind = self.prefixes

        return decode

    def _noted(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def noted(token_ids: torch.Tensor, positions: torch.Tensor, attend: Callable[..., Any], **options: Any) -> Any:
            self._kind.append(len(token_ids))
            return forward(token_ids, positions, self.attention.watched(attend), **options)

        return noted
