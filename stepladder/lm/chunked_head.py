"""Log-probabilities of tokens from hidden states, a chunk of positions at a time.

A vocabulary of 262,144 tokens makes a megabyte of float32 logits per position: those of 16,000 positions would take 16 GB, their gradient
as much again. Here the language-modelling head runs on as many positions as fit into ``CHUNK_BYTES``, and what is kept is one number per
position. The backward pass makes the logits of each chunk again, which costs one third more of the head's matrix products. Values and
gradients are those of the plain way to rounding (Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models", section 4,
without its fused kernel).

Axes: P positions, D hidden size, V vocabulary, C positions of a chunk.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from stepladder.lm.settings import CHUNK_BYTES
from stepladder.lm.tree_attention import core_model


class Head(NamedTuple):
    """The last layer of a language model, and what the model does with its outputs: logits = cap * tanh(scale * outputs / cap)."""

    linear: nn.Linear
    """The layer."""
    scale: float = 1.0
    """Factor on its outputs."""
    cap: float | None = None
    """Bound of the logits; None is none."""

    def positions_of_a_chunk(self) -> int:
        """Return the number of positions whose logits are made at once."""
        return max(1, CHUNK_BYTES // (4 * self.linear.out_features))


def head_of(model: nn.Module) -> Head | None:
    """Return the head of a model, possibly wrapped, or None if it must run inside the model.

    That is so if it is no plain linear layer (adapters on it, 4 bits), or if its weights are spread over processes.
    """
    core = core_model(model)
    linear = core.get_output_embeddings()
    # Quantised weights, and those spread over processes, are tensors of other classes.
    if type(linear) is not nn.Linear or type(linear.weight.data) is not Tensor:
        return None
    if not isinstance(model, PreTrainedModel | PeftModel | DistributedDataParallel):
        return None
    config: Any = core.config.get_text_config()
    # Granite divides its logits, Cohere multiplies them, Gemma bounds them.
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return Head(linear, scale, getattr(config, "final_logit_softcapping", None))


class HeadInput(NamedTuple):
    """What a head was given in a forward pass."""

    hidden: Float[Tensor, "*shape D"]
    """Hidden states."""
    computed: torch.dtype
    """Type of its products: that of autocast, which may be on only inside the model's forward pass, or that of the hidden states."""


@contextmanager
def head_left_out(head: Head) -> Iterator[list[HeadInput]]:
    """Let the head keep its inputs in the given list while the block runs, and return one column of them in place of logits."""
    linear, kept = head.linear, []
    before = vars(linear).get("forward")

    def keep(hidden: Tensor) -> Tensor:
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        kept.append(HeadInput(hidden, torch.get_autocast_dtype(device) if autocast else hidden.dtype))
        return hidden[..., :1]

    linear.forward = keep  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield kept
    finally:
        if before is None:
            del linear.forward
        else:
            linear.forward = before


def choice_logps(
    hidden: Float[Tensor, "P D"], choices: Int[Tensor, " P"], head: Head, *, computed: torch.dtype | None = None
) -> Float[Tensor, " P"]:
    """Return the log-probability of one token at every position. A position of which several are wanted comes several times.

        logp[p] = log softmax(logits[p])[choices[p]],  logits[p] = cap * tanh(scale * (W hidden[p] + bias) / cap)

    Args:
        hidden: Inputs of the head.
        choices: The tokens, >= 0.
        head: The head.
        computed: Type of the products, to which hidden states and weights are rounded; None is that of the hidden states.

    Returns:
        Values <= 0 in float32, or float64 if that is the type of the model.
    """
    arguments = (hidden, head.linear.weight, head.linear.bias, choices, head, computed or hidden.dtype)
    return _ChoiceLogps.apply(*arguments)  # pyright: ignore[reportReturnType]


def read_chunk(
    outputs: Float[Tensor, "C V"], choices: Int[Tensor, " C"], scale: float = 1.0, cap: float | None = None
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Return the logits of the choices, and the logarithm of the sum of the exponentials of all logits, given the head's outputs."""
    logits = _bounded(outputs, scale, cap)
    return logits.gather(1, choices[:, None])[:, 0], logits.logsumexp(-1)


def gradient_of_chunk(
    outputs: Float[Tensor, "C V"],
    choices: Int[Tensor, " C"],
    log_sums: Float[Tensor, " C"],
    gradient: Float[Tensor, " C"],
    scale: float = 1.0,
    cap: float | None = None,
) -> Float[Tensor, "C V"]:
    """Return the gradient with respect to the head's outputs, in their type, given that of the log-probabilities.

    d logp / d logits_v = [v = choice] - softmax(logits)_v
    """
    logits = _bounded(outputs, scale, cap)
    chosen = torch.arange(outputs.shape[1], device=outputs.device) == choices[:, None]
    inner = (chosen.to(logits.dtype) - (logits - log_sums[:, None]).exp()) * gradient[:, None]
    if cap is not None:
        # The derivative of cap * tanh(x / cap) is 1 - tanh(x / cap)^2.
        inner = inner * (1 - (logits / cap).square())
    return (inner * scale).to(outputs.dtype)


_fused: WeakSet[nn.Module] = WeakSet()
"""Heads that use the compiled functions."""


def fuse(head: Head, *, on: bool) -> None:
    """Let a head read and differentiate its chunks by compiled functions, or not.

    Compiled, each is one kernel that writes no float32 logits. A head that scales or bounds its outputs, which is rare, never uses them.
    """
    if on and head.scale == 1.0 and head.cap is None:
        _fused.add(head.linear)
    else:
        _fused.discard(head.linear)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _read(head: Head, outputs: Tensor, choices: Tensor) -> tuple[Tensor, Tensor]:
    if head.linear in _fused:
        return _compiled(read_chunk)(outputs, choices)
    return read_chunk(outputs, choices, head.scale, head.cap)


def _gradient(head: Head, outputs: Tensor, choices: Tensor, log_sums: Tensor, gradient: Tensor) -> Tensor:
    if head.linear in _fused:
        return _compiled(gradient_of_chunk)(outputs, choices, log_sums, gradient)
    return gradient_of_chunk(outputs, choices, log_sums, gradient, head.scale, head.cap)


def _bounded(outputs: Tensor, scale: float, cap: float | None) -> Tensor:
    logits = outputs.to(torch.promote_types(outputs.dtype, torch.float32)) * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


class _ChoiceLogps(torch.autograd.Function):
    """``choice_logps``; only hidden states, weights and one sum per position are kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, choices: Tensor, head: Head, computed: torch.dtype
    ) -> Tensor:
        chosen, log_sums = [], []
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(computed)
            for part, ids in _chunks(head, hidden, choices):
                logits, log_sum = _read(head, _outputs(part.to(computed), matrix, bias), ids)
                chosen.append(logits)
                log_sums.append(log_sum)
        sums = torch.cat(log_sums)
        ctx.save_for_backward(hidden, weight, bias, choices, sums)
        ctx.head, ctx.computed = head, computed
        return torch.cat(chosen) - sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, choices, sums = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        head, computed = ctx.head, ctx.computed
        for_hidden = []
        for_weight = torch.zeros_like(weight) if needs_weight else None
        for_bias = torch.zeros_like(bias) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(computed)
            for part, ids, log_sum, upstream in _chunks(head, hidden, choices, sums, gradient):
                inputs = part.to(computed)
                inner = _gradient(head, _outputs(inputs, matrix, bias), ids, log_sum, upstream)
                if needs_hidden:
                    for_hidden.append((inner @ matrix).to(hidden.dtype))
                # Chunks are summed in the type of the weights: sums in bfloat16 would lose small gradients.
                if for_weight is not None:
                    for_weight += inner.T @ inputs
                if for_bias is not None:
                    for_bias += inner.sum(0)
        return torch.cat(for_hidden) if needs_hidden else None, for_weight, for_bias, None, None, None


def _chunks(head: Head, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(head.positions_of_a_chunk()) for tensor in tensors), strict=True)


def _outputs(inputs: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(inputs, matrix, None if bias is None else bias.to(matrix.dtype))
