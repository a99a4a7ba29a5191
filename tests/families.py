"""One tiny model with random weights for each family that the transformers backend, packing and PRMs serve.

Windows are shorter than the sequences of the tests, so that a layer without its window would be noticed.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

VOCABULARY = 20
WINDOW = 6
MIXED = ["sliding_attention", "full_attention"]
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: dict[str, Any] = {**COMMON, "num_key_value_heads": 2}
PLAIN_ROPE: Any = {"rope_type": "default", "rope_theta": 10000.0}
LONGROPE: Any = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 128}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "qwen2 with windows": lambda: Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen2 moe": lambda: Qwen2MoeConfig(**GROUPED, **EXPERTS, shared_expert_intermediate_size=16),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=16),
    "qwen3 moe": lambda: Qwen3MoeConfig(**{**GROUPED, **EXPERTS, "head_dim": 16}),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=WINDOW),
    "ministral": lambda: MinistralConfig(**GROUPED, sliding_window=WINDOW, layer_types=MIXED, head_dim=8, rope_parameters=PLAIN_ROPE),
    "gemma 2": lambda: Gemma2Config(**GROUPED, head_dim=16, sliding_window=WINDOW, layer_types=MIXED, attn_logit_softcapping=3.0),
    "gemma 3": lambda: Gemma3TextConfig(**GROUPED, head_dim=16, sliding_window=WINDOW, layer_types=MIXED, query_pre_attn_scalar=16),
    "phi": lambda: PhiConfig(**COMMON, num_key_value_heads=4),
    "phi 3": lambda: Phi3Config(**GROUPED, sliding_window=WINDOW),
    "phi 3 with a long context": lambda: Phi3Config(**GROUPED, original_max_position_embeddings=128, rope_parameters=LONGROPE),
    "smollm 3": lambda: SmolLM3Config(**GROUPED, no_rope_layers=[1, 0]),
    "olmo 2": lambda: Olmo2Config(**GROUPED),
    "olmo 3": lambda: Olmo3Config(**GROUPED, sliding_window=WINDOW, layer_types=MIXED),
    "granite": lambda: GraniteConfig(**GROUPED, attention_multiplier=0.3, logits_scaling=2.0),
}


def family_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a model whose predictions differ clearly from uniform, in evaluation mode.

    Its own attention is eager: the only one of transformers' that bounds scores on a CPU.
    """
    config = FAMILIES[family]()
    for name, value in overrides.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
