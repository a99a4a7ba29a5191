"""Running a model on rows of token trees (``packing.py``).

Attention follows the tree. On CUDA, FlexAttention with a block mask skips empty blocks and never writes out a mask, for models that it
supports. Everything else runs sdpa with an additive mask. Only models with plain causal attention and position ids can do either. For other
models ``check_tree_attention`` says why not, and the trainers train them on separate paths.

Axes: B rows, T columns, C columns with logits, V outputs (vocabulary, or one score).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate.utils import extract_model_from_parallel
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from stepladder.errors import BackendError
from stepladder.lm.flat import length_dependent_rotary
from stepladder.lm.packing import Layout

MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) indices -> whether the query sees the key; the signature is FlexAttention's."""

_WINDOWED = "sliding_attention"
_MIN_FLEX_HEAD_DIM = 16
"""Smallest head dimension that FlexAttention's kernels support."""


def core_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside the wrappers of adapters and distributed training."""
    inner = extract_model_from_parallel(model)
    return cast(PreTrainedModel, inner.get_base_model() if isinstance(inner, PeftModel) else inner)


def check_tree_attention(model: PreTrainedModel, *, longest: int) -> None:
    """Refuse models whose results on trees would differ from those on separate sequences.

    A sliding window is allowed if it holds the longest sequence.

    Args:
        model: The model.
        longest: Tokens of the longest sequence, >= 1.

    Raises:
        BackendError: If the model has layers other than plain causal attention, or takes no position ids.
    """
    config: Any = model.config.get_text_config()
    # Configurations without ``layer_types`` use one kind of attention in all layers.
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ([_WINDOWED] if window else ["full_attention"]))
    problems = [f"{kind} layers" for kind in sorted(kinds - {"full_attention", _WINDOWED})]
    if _WINDOWED in kinds and window is not None and window < longest:
        problems.append(f"a sliding window of {window} tokens for sequences of {longest}")
    # A tree's row is longer than any of its sequences, so a rotary scaling by the length of the pass would be another one.
    problems += length_dependent_rotary(config)
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        problems.append("no position ids")
    if not (model._supports_sdpa and model._supports_attention_backend):
        problems.append("attention outside transformers' registry")
    if problems:
        raise BackendError(
            f"{type(model).__name__}: training on trees needs plain causal attention with position ids: got {', '.join(problems)} "
            "-- train on separate paths with packed = false"
        )


@contextmanager
def tree_attention(model: PreTrainedModel) -> Iterator[None]:
    """Give the model the tree attention of its device while the block runs."""
    before = cast(str, model.config._attn_implementation)
    model.set_attn_implementation("flex_attention" if can_flex(model) else "sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def can_flex(model: PreTrainedModel) -> bool:
    """Say whether FlexAttention can train this model: on CUDA, without attention dropout, with heads that its kernels support."""
    config: Any = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = not getattr(config, "attention_dropout", 0.0) and head_dim >= _MIN_FLEX_HEAD_DIM
    return model.device.type == "cuda" and model._supports_flex_attn and plain


def sees(ends: Int[Tensor, "B T"]) -> MaskRule:
    """Return the rule by which token q sees token k of its row: k <= q < ends[k]."""

    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[batch, key])

    return rule


def dense_mask(ends: Int[Tensor, "B T"], *, dtype: torch.dtype) -> Float[Tensor, "B 1 T T"]:
    """Return 0 where a token sees another and the type's minimum elsewhere.

    The mask is added to the scores and never boolean, which eager attention would silently misread.
    """
    return torch.zeros((), dtype=dtype, device=ends.device).masked_fill(~_seen(ends)[:, None], torch.finfo(dtype).min)


def _seen(ends: Int[Tensor, "B T"]) -> Bool[Tensor, "B T T"]:
    # An empty tensor stands for the head: the rule does not depend on it.
    index = torch.arange(ends.shape[1], device=ends.device)
    return sees(ends)(torch.arange(len(ends), device=ends.device)[:, None, None], index[:0], index[:, None], index)


def block_mask(ends: Int[Tensor, "B T"]) -> BlockMask:
    """Return the same rule as blocks for FlexAttention. On CUDA a compiled kernel finds them without writing the whole mask."""
    rows, columns = ends.shape
    return create_block_mask(sees(ends), rows, None, columns, columns, device=ends.device, _compile=ends.is_cuda)


def tree_inputs(layout: Layout) -> dict[str, Tensor]:
    """Return the arguments of ``run_rows`` for a layout."""
    return {name: torch.from_numpy(getattr(layout, name)) for name in ("input_ids", "position_ids", "ends")}


def run_rows(model: nn.Module, inputs: Mapping[str, Tensor], **options: Any) -> Float[Tensor, "B _ V"]:
    """Return the logits of a batch: of rows of trees if ``ends`` is among the inputs, else of plain sequences.

    Args:
        model: A model in ``tree_attention``, possibly wrapped.
        inputs: ``input_ids``, and for trees ``position_ids`` and ``ends``.
        options: More arguments of the model.
    """
    arguments = dict(inputs)
    if "ends" in arguments:
        ends, core = arguments.pop("ends"), core_model(model)
        # The masks replace the causal one that the model would build; ``use_cache`` would keep keys that nothing reads.
        flex = core.config._attn_implementation == "flex_attention"
        arguments["attention_mask"] = cast(Tensor, block_mask(ends)) if flex else dense_mask(ends, dtype=core.dtype)
    return model(**arguments, **options, use_cache=False).logits


def logits_at(model: nn.Module, inputs: Mapping[str, Tensor], columns: Int[Tensor, " C"] | int) -> Float[Tensor, "B C V"]:
    """Return the logits of some columns. The model computes only those if it can.

    With a large vocabulary, the logits of the prompt would cost more than everything else.

    Args:
        model: As for ``run_rows``.
        inputs: As for ``run_rows``.
        columns: The columns, or the number of last columns.
    """
    if "logits_to_keep" in inspect.signature(type(core_model(model)).forward).parameters:
        return run_rows(model, inputs, logits_to_keep=columns)
    logits = run_rows(model, inputs)
    return logits[:, -columns:] if isinstance(columns, int) else logits[:, columns]
