"""Running a model on rows of token trees (``packing.py``).

Attention follows the tree. On CUDA, FlexAttention with a block mask skips empty blocks and never writes out a mask, for models that it
supports. Everything else runs sdpa (eager if scores are bounded) with an additive mask. Layers with a sliding window get a mask of their
own, in which distance is counted along the path. Models of other kinds (``families.py``), or without position ids, can do neither:
``check_tree_attention`` says why not, and the trainers train them on separate paths.

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
from stepladder.lm.families import SLIDING, layer_kinds, max_positions_of, soft_cap_of, unserved_parts, window_of
from stepladder.lm.packing import Layout

MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) indices -> whether the query sees the key; the signature is FlexAttention's."""

_MIN_FLEX_HEAD_DIM = 16
"""Smallest head dimension that FlexAttention's kernels support."""


def core_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside the wrappers of adapters and distributed training."""
    inner = extract_model_from_parallel(model)
    return cast(PreTrainedModel, inner.get_base_model() if isinstance(inner, PeftModel) else inner)


def check_tree_attention(model: PreTrainedModel, *, longest: int) -> None:
    """Refuse models whose results on trees would differ from those on separate sequences.

    Args:
        model: The model.
        longest: Tokens of the longest sequence, >= 1.

    Raises:
        BackendError: If the model has layers that ``families.py`` does not know, takes no position ids, or is too short.
    """
    config: Any = model.config.get_text_config()
    problems = unserved_parts(config)
    # A tree's row is longer than any of its sequences; a rotary scaling that changes with length must not change within them.
    if longest > (most := max_positions_of(config)):
        problems.append(f"positions up to {most} for sequences of {longest}")
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        problems.append("no position ids")
    if not (model._supports_sdpa and model._supports_attention_backend):
        problems.append("attention outside transformers' registry")
    if problems:
        raise BackendError(
            f"{type(model).__name__}: training on trees needs causal attention with position ids: got {', '.join(problems)} "
            "-- train on separate paths with packed = false"
        )


@contextmanager
def tree_attention(model: PreTrainedModel) -> Iterator[None]:
    """Give the model the tree attention of its device while the block runs."""
    before = cast(str, model.config._attn_implementation)
    # transformers' sdpa leaves the bound of the scores out.
    dense = "sdpa" if soft_cap_of(model.config.get_text_config()) is None else "eager"
    model.set_attn_implementation("flex_attention" if can_flex(model) else dense)
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


def sees(ends: Int[Tensor, "B T"], depths: Int[Tensor, "B T"] | None = None, window: int | None = None) -> MaskRule:
    """Return the rule by which token q sees token k of its row: k <= q < ends[k], and depths[q] - depths[k] < window."""

    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[batch, key])

    def windowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rule(batch, head, query, key) & (depths[batch, query] - depths[batch, key] < window)  # pyright: ignore

    return rule if window is None else windowed


def dense_mask(
    ends: Int[Tensor, "B T"], depths: Int[Tensor, "B T"] | None = None, window: int | None = None, *, dtype: torch.dtype
) -> Float[Tensor, "B 1 T T"]:
    """Return 0 where a token sees another and the type's minimum elsewhere.

    The mask is added to the scores and never boolean, which eager attention would silently misread.
    """
    # An empty tensor stands for the head: the rule does not depend on it.
    index = torch.arange(ends.shape[1], device=ends.device)
    rows = torch.arange(len(ends), device=ends.device)[:, None, None]
    seen: Bool[Tensor, "B T T"] = sees(ends, depths, window)(rows, index[:0], index[:, None], index)
    return torch.zeros((), dtype=dtype, device=ends.device).masked_fill(~seen[:, None], torch.finfo(dtype).min)


def block_mask(ends: Int[Tensor, "B T"], depths: Int[Tensor, "B T"] | None = None, window: int | None = None) -> BlockMask:
    """Return the same rule as blocks for FlexAttention. On CUDA a compiled kernel finds them without writing the whole mask."""
    rows, columns = ends.shape
    return create_block_mask(sees(ends, depths, window), rows, None, columns, columns, device=ends.device, _compile=ends.is_cuda)


def _masks(core: PreTrainedModel, ends: Int[Tensor, "B T"], depths: Int[Tensor, "B T"]) -> Any:
    """Return the masks of a model's layers: one if all are of one kind, else one for each kind by its name."""
    config: Any = core.config.get_text_config()
    flex = core.config._attn_implementation == "flex_attention"
    windows = {kind: window_of(config) if kind == SLIDING else None for kind in sorted(layer_kinds(config))}
    masks: dict[str, Any] = {
        kind: block_mask(ends, depths, window) if flex else dense_mask(ends, depths, window, dtype=core.dtype)
        for kind, window in windows.items()
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


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
        arguments["attention_mask"] = _masks(core, ends, arguments["position_ids"])
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
