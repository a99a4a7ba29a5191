"""The matrix products of a search without the search: what the same weights cost, applied to as many tokens as its trees hold.

Counted as ``flops`` in docs/eval.md: every matrix of the layers for every unique token, the output layer for sampled tokens only.
``Passes`` watches a policy meanwhile, and says how many tokens a pass had, and how long its matrix products and its attention took. So the
products are measured twice: within the search, as they are done there, and on their own, at the batch size that is best for them.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

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


class Pass(NamedTuple):
    """One pass through the model."""

    tokens: int
    """Tokens forwarded."""
    seconds: float
    """CPU time."""
    products: float
    """CPU time of the matrix products in it."""
    attention: float
    """CPU time of attention in it, and of the copies into the rows that it reads."""


class Passes:
    """The passes of a policy."""

    def __init__(self, policy: TransformersPolicy) -> None:
        """Watch a policy from now on."""
        self.decoding: list[Pass] = []
        self.prefixes: list[Pass] = []
        self._products = self._attention = 0.0
        flat: Any = policy._model
        layers: list[Any] = [part for part in flat._model.modules() if isinstance(part, torch.nn.Linear)]
        for layer in layers:
            layer.forward = self._multiplied(layer.forward)
        # Rows that decode call the same model as the cache that reads new prefixes.
        rows: Any = policy._rows
        self._kind = self.prefixes
        flat.forward = self._watched(flat.forward)
        rows.forward = self._as_decoding(rows.forward)

    @property
    def mean_batch(self) -> float:
        """Tokens of a pass that decodes, on average."""
        return sum(each.tokens for each in self.decoding) / len(self.decoding)

    @property
    def tokens(self) -> int:
        """Tokens of all passes."""
        return sum(each.tokens for each in self.decoding + self.prefixes)

    @property
    def seconds(self) -> float:
        """CPU time of all passes."""
        return sum(each.seconds for each in self.decoding + self.prefixes)

    @property
    def products(self) -> float:
        """CPU time of the matrix products in all passes."""
        return sum(each.products for each in self.decoding + self.prefixes)

    @property
    def attention(self) -> float:
        """CPU time of attention in all passes."""
        return sum(each.attention for each in self.decoding + self.prefixes)

    def _as_decoding(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def decode(**arguments: Any) -> Any:
            self._kind = self.decoding
            try:
                return forward(**arguments)
            finally:
                self._kind = self.prefixes

        return decode

    def _watched(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched(token_ids: torch.Tensor, positions: torch.Tensor, attend: Callable[..., Any], **options: Any) -> Any:
            self._products = self._attention = 0.0
            begin = time.thread_time()
            result = forward(token_ids, positions, self._timed(attend), **options)
            self._kind.append(Pass(len(token_ids), time.thread_time() - begin, self._products, self._attention))
            return result

        return watched

    def _multiplied(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def multiplied(rows: torch.Tensor) -> torch.Tensor:
            begin = time.thread_time()
            result = forward(rows)
            self._products += time.thread_time() - begin
            return result

        return multiplied

    def _timed(self, attend: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begin = time.thread_time()
            result = attend(*arguments)
            self._attention += time.thread_time() - begin
            return result

        return timed
