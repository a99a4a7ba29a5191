"""Forward passes over a flat row of tokens that belong to many sequences.

All tokens of a pass stand in one row, whatever sequence they belong to, so only attention is padded. A callback computes attention: it
knows which cached keys each token may see. The hook is transformers' own attention registry, so any model that takes its attention from
there works unchanged: Llama, Mistral, Qwen2, Qwen3, Gemma 2 and 3, Phi, OLMo, Granite and similar families (``families.py``). Models
are refused if they use linear attention, attention sinks or learned position biases.

Axes: N tokens of a pass, H query heads, h key/value heads, D head dimension, B padded rows, Q queries, S keys.
"""

import math
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, PreTrainedModel

from stepladder.errors import BackendError
from stepladder.lm.families import max_positions_of, unserved_parts


class LayerAttention(NamedTuple):
    """What one layer's attention adds to its queries, keys and values."""

    scale: float | None = None
    """Factor on the products of queries and keys; None is 1 / sqrt(D)."""
    window: int | None = None
    """Tokens that a token sees, itself included, counted back along its sequence; None is all."""
    soft_cap: float | None = None
    """Bound c of the scores: s becomes c * tanh(s / c)."""

    def window_within(self, longest: int) -> int | None:
        """Return the window if it hides anything in sequences of so many tokens, else None."""
        return self.window if self.window is not None and self.window < longest else None


Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, LayerAttention], torch.Tensor]
"""(layer, queries [1 H N D], keys [1 h N D], values [1 h N D], the layer's attention) -> outputs [N H D]."""

_NAME = "stepladder_flat"
_FOLD_LIMIT = 64
"""Queries per sequence up to which the heads of a group share one pass over their keys."""
_FIXED = "attention outside transformers' registry"
_REFUSED_OPTIONS = ("s_aux", "position_bias")


def _flat_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    stepladder_attend: Attend | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Pass one layer's queries, keys and values to the callback. The signature is that of transformers' attention registry."""
    refused = [name for name in _REFUSED_OPTIONS if options.get(name) is not None]
    if refused or stepladder_attend is None:
        what = f"attention with {', '.join(refused)}" if refused else "attention that drops keyword arguments"
        raise BackendError(f"{type(module).__name__}: only causal attention can be cached: got {what} -- use another model")
    kind = LayerAttention(scaling, sliding_window, softcap)
    return stepladder_attend(int(module.layer_idx), query, key, value, kind)[None], None  # type: ignore[arg-type]


AttentionInterface.register(_NAME, _flat_attention)


class FlatModel:
    """A causal transformer seen as a function of flat tokens, positions and an attention callback."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Wrap a model and put it into evaluation mode.

        Raises:
            BackendError: If the model's attention cannot be served from a cache of keys and values.
        """
        config = model.config.get_text_config()
        _check_served(model, config)
        self._model = model.eval()
        self._configs: list[Any] = list({id(part.config): part.config for part in model.modules() if hasattr(part, "config")}.values())
        heads = config.num_attention_heads
        self.num_layers: int = config.num_hidden_layers
        self.num_kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.hidden_size: int = config.hidden_size
        self.max_positions: int = max_positions_of(config)
        embeddings: Any = model.get_input_embeddings()
        self.vocab_size: int = embeddings.num_embeddings
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.forwarded_tokens = 0
        """Tokens that went through the model so far."""
        self._heads: list[torch.nn.Module] = []
        self._outputs: list[torch.Tensor] = []
        self.num_outputs = 0
        """Outputs per token of the attached heads."""

    def attach(self, head: torch.nn.Module, num_outputs: int) -> slice:
        """Read one more head off the last hidden states of every pass, and return its columns of ``outputs``.

        Args:
            head: Maps a hidden state to ``num_outputs`` numbers. It is moved to the model's device and computed in float32.
            num_outputs: Outputs per token, >= 1.
        """
        self._heads.append(head.to(device=self.device, dtype=torch.float32).eval())
        columns = slice(self.num_outputs, self.num_outputs + num_outputs)
        self.num_outputs = columns.stop
        return columns

    def outputs(self) -> Float[np.ndarray, "N F"]:
        """Return the outputs of the attached heads at the tokens of the last pass."""
        return torch.cat(self._outputs, dim=-1).cpu().numpy()

    @property
    def bytes_per_token(self) -> int:
        """Bytes of the keys and values of one token over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def zeros(self, *shape: int) -> Float[torch.Tensor, "..."]:
        """Return zeros in the model's type on its device, shaped [layers, *shape, h, D]: room for keys or for values."""
        full = (self.num_layers, *shape, self.num_kv_heads, self.head_dim)
        if self.device.type != "cpu":
            return torch.zeros(full, dtype=self.dtype, device=self.device)
        num_bytes = math.prod(full) * self.dtype.itemsize
        return torch.frombuffer(_pages(num_bytes), dtype=self.dtype).view(full) if num_bytes else torch.empty(full, dtype=self.dtype)

    def forward(
        self, token_ids: Int[torch.Tensor, "N"], positions: Int[torch.Tensor, "N"], attend: Attend, **options: Any
    ) -> Float[torch.Tensor, "M V"]:
        """Return the logits of a pass. ``options`` go to the model (``logits_to_keep=1`` keeps those of the last token only).

        Raises:
            BackendError: If a layer did not ask for its attention.
        """
        layers = []

        def counted(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kind: LayerAttention) -> torch.Tensor:
            layers.append(layer)
            return attend(layer, q, k, v, kind)

        with self._hooked(), self._heads_read():
            output = self._model(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False, stepladder_attend=counted, **options
            )
        if len(layers) != self.num_layers:
            raise BackendError(
                f"{type(self._model).__name__}: every layer must take its attention from transformers' registry: "
                f"{len(layers)} of {self.num_layers} did -- use another model or backend"
            )
        self.forwarded_tokens += len(token_ids)
        return output.logits[0]

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        """Use the flat attention for one pass, then restore the model: other code may call it in the ordinary way."""
        before = [config._attn_implementation for config in self._configs]
        for config in self._configs:
            config._attn_implementation = _NAME
        try:
            yield
        finally:
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation = name

    @contextmanager
    def _heads_read(self) -> Iterator[None]:
        """Read the attached heads in one pass; the model itself stays as it is."""
        if not self._heads:
            yield
            return

        def read(_module: torch.nn.Module, _arguments: Any, output: Any) -> None:
            hidden = output[0][0].float()
            self._outputs = [head(hidden) for head in self._heads]

        handle = body_of(self._model).register_forward_hook(read)
        try:
            yield
        finally:
            handle.remove()


def _pages(num_bytes: int) -> mmap.mmap:
    """Return zeroed memory that costs nothing until it is written. torch would write it now.

    It has small pages: a few tokens of each row and layer are written, and each would take a page of 2 MB.
    """
    try:
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no room for {num_bytes:,} bytes of keys and values") from error
    # Not every system has huge pages, or lets them be declined.
    with suppress(OSError, AttributeError):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return pages


def body_of(model: PreTrainedModel) -> torch.nn.Module:
    """Return the part of a causal language model whose output is the last hidden states, after the last norm.

    Raises:
        BackendError: If the model has no such part.
    """
    body = model.get_decoder()
    if not isinstance(body, torch.nn.Module) or body is model:
        raise BackendError(
            f"{type(model).__name__}: hidden states are read off the model's body: it has none of its own -- use another model"
        )
    return body


def fixed_attention(config: Any) -> list[str]:
    """Return a phrase if the family's attention cannot be replaced by one that reads a cache; loads the family's code, but no weights."""
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return [] if family is None or family._supports_attention_backend else [_FIXED]


def _check_served(model: PreTrainedModel, config: Any) -> None:
    problems = unserved_parts(config)
    if not model._supports_attention_backend:
        problems.append(_FIXED)
    if problems:
        raise BackendError(
            f"{type(model).__name__}: only causal attention can be cached: got {', '.join(problems)} -- use another model or backend"
        )


def attend_padded(
    query: Float[torch.Tensor, "B H Q D"],
    key: Float[torch.Tensor, "B h S D"],
    value: Float[torch.Tensor, "B h S D"],
    mask: Float[torch.Tensor, "B 1 Q S"],
    kind: LayerAttention,
) -> Float[torch.Tensor, "B H Q D"]:
    """Return softmax(scale * q k + mask) v, with H // h query heads on each key head. The window is the mask's affair.

    With few queries, the heads of a group are folded into the query axis. So their keys are read once and never repeated in memory.

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        mask: 0 where a query may look, the type's minimum elsewhere. A query that may look nowhere gets a finite, meaningless output.
        kind: Scale and bound of the scores.
    """
    batch, heads, queries, dim = query.shape
    groups = heads // key.shape[1]
    if groups == 1:
        return _attention(query, key, value, mask, kind)
    if queries > _FOLD_LIMIT:
        return _attention(query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), mask, kind)
    folded = query.reshape(batch, key.shape[1], groups * queries, dim)
    output = _attention(folded, key, value, mask.repeat(1, 1, groups, 1), kind)
    return output.reshape(batch, heads, queries, dim)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, kind: LayerAttention) -> torch.Tensor:
    if kind.soft_cap is None:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=kind.scale)
    # No fused kernel bounds scores.
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if kind.scale is None else kind.scale)
    scores = kind.soft_cap * torch.tanh(scores / kind.soft_cap) + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value
