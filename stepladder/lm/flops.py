"""Floating-point operations of a transformer, from the shape of its configuration and the tokens that it forwards."""

from dataclasses import dataclass
from typing import Any

BACKWARD = 2
"""Operations of a backward pass in units of its forward pass: one product for the inputs and one for the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFlops:
    """What a forward pass costs. A product of a weight and a value counts as two operations; norms, softmax and activations do not count.

    Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", table 1 (2 N + 2 n_layer n_ctx d_attn per token, where n_ctx
        tokens are seen on average by both of attention's products; we count the products and the tokens really seen), and Chowdhery et al.
        2022, "PaLM", appendix B, for training.
    """

    body: int
    """Weights of the matrices of all layers that a token meets: of experts, as many as it is sent to."""
    head: int
    """Weights of the matrix that makes the outputs."""
    attention: int
    """Layers x query heads x head dimension."""

    def forward(self, tokens: float, *, seen: float = 0.0, read: float | None = None) -> float:
        """Return the operations of a forward pass: 2 body tokens + 2 head read + 4 attention seen.

        Args:
            tokens: Tokens forwarded.
            seen: Pairs of a token and one that it sees, itself included.
            read: Tokens that go through the head; None is all.
        """
        return 2 * self.body * tokens + 2 * self.head * (tokens if read is None else read) + 4 * self.attention * seen

    def training(self, tokens: float, *, seen: float = 0.0, read: float | None = None) -> float:
        """Return the operations of a forward and a backward pass. What is computed again to save memory does not count."""
        return (1 + BACKWARD) * self.forward(tokens, seen=seen, read=read)


def flops_of_files(source: str, *, trust_remote_code: bool = False) -> ModelFlops | None:
    """Return the costs of a language model from its configuration alone; None if transformers cannot build one from it.

    Args:
        source: Directory or hub id.
        trust_remote_code: Whether code of the model may run.

    Raises:
        CheckpointError: If there is no such model, or it is damaged.
    """
    # Slow to import.
    import torch
    from transformers import AutoModelForCausalLM

    from stepladder.lm.loading import load_model_settings

    config = load_model_settings(source, trust_remote_code=trust_remote_code)[0]
    try:
        with torch.device("meta"):
            return flops_of(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    except (AttributeError, ValueError):
        return None


def flops_of(model: Any) -> ModelFlops:
    """Return the costs of a transformers model. The head is its output layer, the body all other matrices but embeddings.

    Raises:
        AttributeError: If it has experts, and its configuration does not say how many of them a token is sent to.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings() if model.can_generate() else getattr(model, "score", None)
    embeddings = {id(value) for value in model.get_input_embeddings().parameters()}
    outputs = {id(value) for value in head.parameters()} if head is not None else set()
    matrices = [value for value in model.parameters() if value.ndim == 2]
    # The first axis of such a tensor counts the experts of a layer.
    experts = [value for name, value in model.named_parameters() if value.ndim == 3 and ".experts." in name]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelFlops(
        body=sum(value.numel() for value in matrices if id(value) not in embeddings | outputs)
        + sum(value.numel() // len(value) * _experts_per_token(config) for value in experts),
        head=sum(value.numel() for value in matrices if id(value) in outputs),
        attention=config.num_hidden_layers * config.num_attention_heads * width,
    )


def _experts_per_token(config: Any) -> int:
    found = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k_experts", None)
    if found is None:
        raise AttributeError(f"{type(config).__name__} does not say how many experts a token is sent to")
    return found
