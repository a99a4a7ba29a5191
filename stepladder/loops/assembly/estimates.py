"""Memory and disk that a run needs, estimated from the shape of its models; docs/doctor.md has the formulas.

Symbols: P parameters, L layers, d width, c values that a layer keeps of a token as keys (as many again as values), V vocabulary, b bytes of
a weight.
"""

from typing import Any, NamedTuple

from stepladder.lm.settings import CHUNK_BYTES, StageSettings

FLOAT32_BYTES, HALF_BYTES = 4, 2
_NAMED_BYTES = {"float32": FLOAT32_BYTES, "bfloat16": HALF_BYTES, "float16": HALF_BYTES, "float64": 8}
_OPTIMISED_BYTES = 4 * FLOAT32_BYTES
"""Bytes of a trained weight: the weight itself, its gradient, and two moments of AdamW, all in float32."""
_ACTIVATION_VALUES = 17
"""Values that a layer keeps of a token for the backward pass, in multiples of the width."""
_LOGIT_COPIES = 2
_FOUR_BIT_BYTES = 0.5


class ModelShape(NamedTuple):
    """The sizes of a decoder that decide its memory."""

    parameters: int
    """All parameters, the embedding's included."""
    layers: int
    """Layers."""
    width: int
    """Size of the hidden state."""
    inner: int
    """Size of the hidden layer between two linear ones."""
    queries: int
    """Size of all queries of a token in a layer."""
    keys: int
    """Size of all keys of a token in a layer; the values have the same."""
    vocabulary: int
    """Tokens that it can sample."""
    stored_bytes: int
    """Bytes of a weight in the checkpoint."""

    @classmethod
    def of(cls, config: Any, parameters: int) -> "ModelShape":
        """Read the shape from a text configuration of transformers."""
        heads = config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            parameters=parameters,
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            queries=heads * head,
            keys=(getattr(config, "num_key_value_heads", None) or heads) * head,
            vocabulary=config.vocab_size,
            stored_bytes=_NAMED_BYTES.get(str(getattr(config, "dtype", None)).removeprefix("torch."), FLOAT32_BYTES),
        )


def weight_bytes(shape: ModelShape, dtype: str, *, on_gpu: bool) -> int:
    """Return b of a policy or PRM in a search: of ``policy.dtype``, where ``auto`` is float32 on a CPU and the checkpoint's on a GPU."""
    if dtype == "auto":
        return shape.stored_bytes if on_gpu else FLOAT32_BYTES
    return _NAMED_BYTES[dtype]


def cache_memory(shape: ModelShape, *, rows: int, tokens: int, value_bytes: int) -> int:
    """Return the bytes of keys and values of sequences.

        rows * tokens * 2 * L * c * b

    Args:
        shape: The model.
        rows: Sequences decoded at once.
        tokens: Tokens of each.
        value_bytes: b.
    """
    return rows * tokens * 2 * shape.layers * shape.keys * value_bytes


def training_memory(shape: ModelShape, stage: StageSettings, *, pass_tokens: int, has_head: bool, on_gpu: bool) -> int:
    """Return the bytes that a training takes with some tokens in a forward pass.

        weights, gradients, AdamW: 16 P, with adapters b P + 16 P_adapters
        activations: pass_tokens * L * 17 d * b, with gradient checkpointing pass_tokens * (L + 17) * d * b
        logits and their gradient: 2 * min(pass_tokens * V * 4, 1 GiB), for a policy; chunks of them are made again for the gradient

    Args:
        shape: The model.
        stage: The settings of the training.
        pass_tokens: Tokens of the pass.
        has_head: Whether a small head replaces the vocabulary, as in a PRM.
        on_gpu: Whether it runs on a GPU, where trainings compute in bfloat16 unless the settings say otherwise.

    Source: Korthikanti et al. 2022, "Reducing activation recomputation in large transformer models", equation 1: 34 bytes per token, width
        and layer at two bytes a value. We leave out its term for attention scores, which fused attention does not keep.
    """
    in_half = on_gpu if stage.bf16 is None else stage.bf16
    computed = HALF_BYTES if in_half else FLOAT32_BYTES
    layers = shape.layers + _ACTIVATION_VALUES if stage.gradient_checkpointing else shape.layers * _ACTIVATION_VALUES
    logits = 0 if has_head else min(pass_tokens * shape.vocabulary * FLOAT32_BYTES, CHUNK_BYTES) * _LOGIT_COPIES
    return _weights_and_optimiser(shape, stage) + pass_tokens * layers * shape.width * computed + logits


def _weights_and_optimiser(shape: ModelShape, stage: StageSettings) -> int:
    if stage.lora is None:
        return _OPTIMISED_BYTES * shape.parameters
    frozen = (_FOUR_BIT_BYTES if stage.lora.four_bit else shape.stored_bytes) * shape.parameters
    # Inputs and outputs of the seven linear layers of a decoder's layer: four of attention, three of the gated network.
    sides = 2 * (shape.width + shape.queries) + 2 * (shape.width + shape.keys) + 3 * (shape.width + shape.inner)
    return int(frozen) + _OPTIMISED_BYTES * stage.lora.r * shape.layers * sides


def checkpoint_disk(shape: ModelShape, stage: StageSettings) -> int:
    """Return the bytes of the checkpoints of a training while it runs: weights and two moments in float32, of every one that is kept."""
    if not stage.checkpoint_every or stage.lora is not None:
        return 0
    kept = stage.keep_checkpoints + (1 if stage.held_out else 0)
    return kept * 3 * FLOAT32_BYTES * shape.parameters
