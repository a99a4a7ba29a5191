"""Low-rank adapters: settings, wrapping, a base model in 4 bits (QLoRA), and merging what was learnt back into plain weights."""

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from transformers import BitsAndBytesConfig, PreTrainedModel

from stepladder.errors import ConfigError
from stepladder.lm.checks import check_ranges
from stepladder.types import derive_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """Low-rank adapters instead of full fine-tuning; merged into the weights when the model is saved."""

    r: int = 16
    """Rank, >= 1."""
    alpha: int = 32
    """Scale numerator, >= 1: updates are scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout on the adapter input, in [0, 1)."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Module names that get adapters; ``all-linear`` is every linear layer but the head."""
    four_bit: bool = False
    """Hold the frozen weights in 4 bits (QLoRA; NF4, scales quantised too); needs bitsandbytes. What is saved is the rounded weights
    plus the adapters: the model that was trained."""

    def __post_init__(self) -> None:
        rules = {"r": (">= 1", self.r >= 1), "alpha": (">= 1", self.alpha >= 1), "dropout": ("in [0, 1)", 0 <= self.dropout < 1)}
        check_ranges(self, rules, where="lora")


def quantization(lora: LoraSettings | None) -> BitsAndBytesConfig | None:
    """Return how to load the frozen weights; None as they are stored.

    Raises:
        ConfigError: If they are to be held in 4 bits and bitsandbytes is not installed.

    Source: Dettmers et al. 2023, "QLoRA: efficient finetuning of quantized LLMs", section 3.
    """
    if lora is None or not lora.four_bit:
        return None
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "training: lora.four_bit needs the package bitsandbytes: it is not installed -- pip install bitsandbytes, or set it to false"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )


def with_adapters(model: PreTrainedModel, lora: LoraSettings | None, *, seed: int) -> PreTrainedModel | PeftModel:
    """Return the model, wrapped in adapters if there are settings for them; a head of its own task is trained in full.

    Args:
        model: The model; it is changed.
        lora: The adapters; None returns the model as it is.
        seed: Seed of the adapters' first weights, >= 0.
    """
    if lora is None:
        return model
    if getattr(model, "is_loaded_in_4bit", False):
        # Checkpointing is switched on by the Trainer, for adapters as for everything else.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    head = [name for name, _ in model.named_children() if name in ("score", "classifier")]
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
        exclude_modules=head or None,
        modules_to_save=head or None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "lora"))
        return get_peft_model(model, config)  # pyright: ignore[reportReturnType]


def without_adapters(model: PreTrainedModel | PeftModel, lora: LoraSettings | None) -> PreTrainedModel:
    """Return the plain model that computes what the trained one does; weights in 4 bits become numbers again."""
    if not isinstance(model, PeftModel):
        return model
    assert lora is not None, "adapters come from settings"
    if lora.four_bit:
        # Merging into 4 bits would round what was learnt.
        learnt = get_peft_model_state_dict(model)
        plain = model.unload().dequantize()  # pyright: ignore[reportCallIssue]
        model = with_adapters(plain, lora, seed=0)  # pyright: ignore[reportAssignmentType]
        set_peft_model_state_dict(model, learnt)
    return model.merge_and_unload()  # pyright: ignore[reportReturnType, reportCallIssue]
