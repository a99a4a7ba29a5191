"""Models that read sequences of tokens, as the readers need them, and their form on transformers."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from transformers import PreTrainedModel

from stepladder.lm.flat import FlatModel
from stepladder.lm.prefix_cache import PathGroup, PrefixCache


class ServedModel(Protocol):
    """A model that reads sequences of tokens."""

    @property
    def max_positions(self) -> int:
        """Tokens that a sequence can have."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids that the model knows."""
        ...

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far."""
        ...

    def clear(self) -> None:
        """Drop the cache and free its memory."""
        ...


class TokenOutputs(ServedModel, Protocol):
    """A model with outputs at every token."""

    def outputs(self, paths: Sequence[tuple[int, ...]], indices: Sequence[np.ndarray]) -> list[Float[np.ndarray, "T F"]]:
        """Return the outputs of every path at some of its tokens."""
        ...


class TokenLogps(ServedModel, Protocol):
    """A language model."""

    def logps(self, paths: Sequence[tuple[int, ...]], starts: Sequence[int]) -> list[Float[np.ndarray, "T"]]:
        """Return the log-probability, in nats, of every path's tokens from ``starts`` on, each >= 1, given all tokens before it."""
        ...


class CachedModel:
    """``TokenOutputs`` and ``TokenLogps`` of a transformers model. Shared prefixes of paths, now or later, are forwarded once."""

    def __init__(self, model: PreTrainedModel, *, num_outputs: int, head: nn.Module | None = None) -> None:
        """Serve a model.

        Args:
            model: A model with ``num_outputs`` logits per token. With ``head``, its logits are its hidden states.
            num_outputs: Numbers that are kept for every token.
            head: The language head; only log-probabilities need it.

        Raises:
            BackendError: If the model's attention cannot be served from a cache.
        """
        self._flat, self._head = FlatModel(model), head
        self._cache = PrefixCache(self._flat, num_outputs=num_outputs)

    @classmethod
    def of_language_model(cls, bare: PreTrainedModel, head: nn.Module) -> "CachedModel":
        """Serve a language model whose logits are its hidden states. They are cached, because all later outputs are computed from them."""
        return cls(bare, num_outputs=int(head.in_features), head=head)  # type: ignore[arg-type]

    @property
    def max_positions(self) -> int:
        """Tokens that a sequence can have."""
        return self._flat.max_positions

    @property
    def vocab_size(self) -> int:
        """Ids that the model knows."""
        return self._flat.vocab_size

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far."""
        return self._flat.forwarded_tokens

    @torch.inference_mode()
    def outputs(self, paths: Sequence[tuple[int, ...]], indices: Sequence[np.ndarray]) -> list[Float[np.ndarray, "T F"]]:
        """Return the outputs of every path at some of its tokens."""
        placed = self._cache.extend([PathGroup(prefix_ids=(), branches=(path,)) for path in paths])
        return [self._cache.outputs(group[0].slots[index]) for group, index in zip(placed, indices, strict=True)]

    @torch.inference_mode()
    def logps(self, paths: Sequence[tuple[int, ...]], starts: Sequence[int]) -> list[Float[np.ndarray, "T"]]:
        """Return the log-probability, in nats, of every path's tokens from ``starts`` on, each >= 1, given all tokens before it."""
        indices = [np.arange(start - 1, len(path) - 1) for start, path in zip(starts, paths, strict=True)]
        hidden = self.outputs(paths, indices)
        return [self._next_logps(states, path[start:]) for states, path, start in zip(hidden, paths, starts, strict=True)]

    def clear(self) -> None:
        """Drop the cache and free its memory."""
        self._cache.clear()

    def _next_logps(self, hidden: Float[np.ndarray, "T F"], targets: Sequence[int]) -> Float[np.ndarray, "T"]:
        assert self._head is not None, "log-probabilities are asked of language models"
        weight = next(self._head.parameters())
        wanted = torch.tensor(targets, device=weight.device)
        logps = []
        # The logits of a whole batch of solutions over a large vocabulary would outweigh the model.
        for states, ids in zip(torch.from_numpy(hidden).split(256), wanted.split(256), strict=True):
            logits = self._head(states.to(device=weight.device, dtype=weight.dtype)).float()
            logps.append(logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0].double().cpu().numpy())
        return np.concatenate([np.zeros(0), *logps])
