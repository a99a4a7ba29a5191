"""What the attention of a model's layers can see, read from its configuration alone, and which models cannot be served.

Served are decoders whose layers attend to all earlier tokens (``full_attention``) or to a window of them (``sliding_attention``), mixed
as the model likes. Rotary scalings that depend on the length of a pass are served up to the length at which they begin to change:
beyond it, keys in a cache would have been rotated otherwise.
"""

import sys
from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
_WITH_SINKS = {"deepseek_v4", "gpt_oss", "granite_swa", "granitemoe_swa", "hy_v4", "mimo_v2_flash"}
"""Families whose scores have a learned extra column, which their configurations do not tell."""
TESTED = {
    "gemma2", "gemma3_text", "granite", "llama", "ministral", "mistral", "olmo2", "olmo3", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_moe", "smollm3",
}  # fmt: skip
"""Model types that tests hold to a plain forward pass; what else is served is checked when it is loaded."""
ENCODER = "an encoder"


def layer_kinds(config: Any) -> set[str]:
    """Return the kinds of attention in the layers of a text configuration."""
    # Configurations without ``layer_types`` use one kind of attention in all layers.
    return set(getattr(config, "layer_types", None) or ([SLIDING] if getattr(config, "sliding_window", None) else [FULL]))


def window_of(config: Any) -> int | None:
    """Return the number of tokens, itself included, that a token sees in the layers with a sliding window; None without such layers."""
    return getattr(config, "sliding_window", None) if SLIDING in layer_kinds(config) else None


def soft_cap_of(config: Any) -> float | None:
    """Return the bound of attention scores (``attn_logit_softcapping``, as in Gemma 2), or None."""
    return getattr(config, "attn_logit_softcapping", None)


def max_positions_of(config: Any) -> int:
    """Return the longest sequence that is served, in tokens; models without positions have no limit."""
    limits = [getattr(config, "max_position_embeddings", None) or sys.maxsize]
    for entry in _rotary(config):
        if entry.get("rope_type") in _LENGTH_DEPENDENT_ROPE and (original := entry.get("original_max_position_embeddings")):
            limits.append(original)
    return min(limits)


def unserved_parts(config: Any) -> list[str]:
    """Return the parts of a text configuration that neither search nor training on trees can serve, one phrase each."""
    # Families of some layers without attention name their kinds in one of two places.
    kinds = layer_kinds(config) | set(getattr(config, "layers_block_type", None) or ())
    problems = [f"{kind} layers" for kind in sorted(kinds - {FULL, SLIDING, "attention"})]
    if getattr(config, "num_kv_shared_layers", 0):
        problems.append("layers that share keys and values")
    # A family that can be both says which; one that cannot take up an encoder's states is a decoder, whatever it says.
    if getattr(config, "is_encoder_decoder", False) or (
        getattr(config, "is_decoder", None) is False and hasattr(config, "add_cross_attention")
    ):
        problems.append(ENCODER)
    if getattr(config, "kv_lora_rank", None):
        problems.append("latent attention")
    if config.model_type in _WITH_SINKS:
        problems.append("attention sinks")
    if getattr(config, "use_bidirectional_attention", False):
        problems.append("attention to later tokens")
    return problems


def _rotary(config: Any) -> list[dict[str, Any]]:
    """Return the rotary settings: one entry, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [entry for entry in (rope, *rope.values()) if isinstance(entry, dict)]
