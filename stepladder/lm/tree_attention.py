"""Running a model on rows of token trees (``packing.py``).

Attention follows the tree. sdpa (eager if scores are bounded) with an additive mask runs everywhere. FlexAttention with a block mask skips
empty blocks and never writes out a mask, but takes a minute to compile: on CUDA, models that it supports use it from the moment at which
``compilation.py`` has their layers compiled, and with several processes from the start. Layers with a sliding window get a mask of their
own, in which distance is counted along the path. Models of other kinds (``families.py``), or without position ids, can do neither:
``check_tree_attention`` says why not, and the trainers train them on separate paths.

Axes: B rows, T columns, C columns with logits, V outputs (vocabulary, or one score).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from accelerate.utils import extract_model_from_parallel
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward

from stepladder.errors import BackendError
from stepladder.lm.families import SLIDING, layer_kinds, max_positions_of, soft_cap_of, unserved_parts, window_of
from stepladder.lm.flat import LayerAttention, attend_padded
from stepladder.lm.packing import Layout

MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) indices -> whether the query sees the key; the signature is FlexAttention's."""

ONE_ROW = 1 << 40
"""Width of rows that puts all trees of a pass side by side."""
_BLOCK = 128
"""Queries, and keys, of a block of FlexAttention."""
_ON_GPU = "stepladder_tree"
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


compiled_layers: WeakKeyDictionary[nn.Module, dict[nn.Module, Callable[..., Any]]] = WeakKeyDictionary()
"""The compiled calls of the layers of models that use FlexAttention; none of them if it alone is compiled, which transformers does."""


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend along trees on a GPU, by blocks or by a dense mask. The signature is that of transformers' attention registry."""
    if torch.is_autocast_enabled(query.device.type):
        # Rotary embeddings in float32 raise queries and keys to it; kernels want one type.
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
    if isinstance(attention_mask, BlockMask):
        return flex_attention_forward(module, query, key, value, attention_mask, scaling=scaling, softcap=softcap)
    output = attend_padded(query, key, value, attention_mask.to(query.dtype), LayerAttention(scaling, None, softcap))
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(_ON_GPU, _attend)


@contextmanager
def tree_attention(model: PreTrainedModel) -> Iterator[None]:
    """Give the model the tree attention of its device while the block runs."""
    before = cast(str, model.config._attn_implementation)
    # transformers' sdpa leaves the bound of the scores out.
    dense = "sdpa" if soft_cap_of(model.config.get_text_config()) is None else "eager"
    model.set_attn_implementation(_ON_GPU if can_flex(model) else dense)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def takes_one_row(model: nn.Module) -> bool:
    """Say whether the model uses FlexAttention now: then all trees of a pass best stand in one row, else in narrow ones."""
    return core_model(model) in compiled_layers


@contextmanager
def blocks_alone(core: PreTrainedModel) -> Iterator[None]:
    """Let the model use FlexAttention from its first pass on while the block runs, with layers that are not compiled."""
    compiled_layers[core] = {}
    try:
        yield
    finally:
        del compiled_layers[core]


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

    if window is None or depths is None:
        return rule
    # A tensor, not a number: kernels are compiled for any window.
    horizon = depths - window

    def windowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[batch, key]) & (horizon[batch, query] < depths[batch, key])

    return windowed


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
    """Return the same rule as blocks for FlexAttention, from the ends alone: no pair of tokens is looked at, and nothing is compiled.

    A block of keys before a block of queries holds a visible pair if one of its keys reaches the first query, and only visible pairs if all
    its keys reach beyond the last one. With a window, a block may be looked into in vain, but no block with a visible pair is left out.

    Args:
        ends: As in ``Layout``; T is a multiple of 128.
        depths: Position of each token, if there is a window.
        window: Tokens that a token sees; None is all.
    """
    rows, columns = ends.shape
    blocks = ends.view(rows, columns // _BLOCK, _BLOCK)
    first = torch.arange(0, columns, _BLOCK, device=ends.device)
    before, own = first[:, None] > first, first[:, None] == first
    seen = own | (before & (blocks.amax(-1)[:, None] > first[:, None]))
    whole = before & (blocks.amin(-1)[:, None] >= first[:, None] + _BLOCK)
    if window is not None and depths is not None:
        deep = depths.view(blocks.shape)
        low, high = deep.amin(-1), deep.amax(-1)
        seen &= own | (low[:, :, None] - high[:, None] < window)
        whole &= high[:, :, None] - low[:, None] < window
    partly, wholly = (_listed(each[:, None]) for each in (seen & ~whole, seen & whole))
    return BlockMask.from_kv_blocks(*partly, *wholly, BLOCK_SIZE=_BLOCK, mask_mod=sees(ends, depths, window))


def _listed(dense: Bool[Tensor, "B 1 Q K"]) -> tuple[Int[Tensor, "B 1 Q"], Int[Tensor, "B 1 Q K"]]:
    """Return how many blocks of keys each block of queries has, and their numbers first."""
    order = torch.argsort(dense.to(torch.int32), dim=-1, descending=True, stable=True)
    return dense.sum(-1, dtype=torch.int32), order.to(torch.int32)


def _masks(core: PreTrainedModel, ends: Int[Tensor, "B T"], depths: Int[Tensor, "B T"], *, blocks: bool) -> Any:
    """Return the masks of a model's layers: one if all are of one kind, else one for each kind by its name."""
    config: Any = core.config.get_text_config()
    windows = {kind: window_of(config) if kind == SLIDING else None for kind in sorted(layer_kinds(config))}
    masks: dict[str, Any] = {
        kind: block_mask(ends, depths, window) if blocks else dense_mask(ends, depths, window, dtype=core.dtype)
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
    arguments, core = dict(inputs), core_model(model)
    # Rows that were laid out before the layers were compiled are narrow; they take the dense mask once more.
    fast = "ends" in arguments and len(arguments["ends"]) == 1 and takes_one_row(core)
    for layer, call in compiled_layers.get(core, {}).items():
        layer._compiled_call_impl = call if fast else None
    if "ends" in arguments:
        if fast:
            arguments = _whole_blocks(arguments)
        # The masks replace the causal one that the model would build; ``use_cache`` would keep keys that nothing reads.
        arguments["attention_mask"] = _masks(core, arguments.pop("ends"), arguments["position_ids"], blocks=fast)
    return model(**arguments, **options, use_cache=False).logits


def _whole_blocks(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return one row of tokens, padded to whole blocks, whose number is not a power of two.

    torch takes dimensions of one size for the same one. One block, or as many as a head has dimensions, would get a graph of their own.
    """
    width = inputs["ends"].shape[1]
    blocks = -(-width // _BLOCK)
    if blocks & (blocks - 1) == 0:
        blocks += 1 + (blocks == 1)
    more = blocks * _BLOCK - width
    padded = {name: nn.functional.pad(value, (0, more)) for name, value in inputs.items()}
    padded["ends"][:, width:] = torch.arange(width + 1, width + more + 1, device=padded["ends"].device)
    return padded


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
