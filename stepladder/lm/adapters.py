"""Low-rank adapters: wrapping a model, loading its base in 4 bits (QLoRA), and merging trained adapters into plain weights."""

from importlib.util import find_spec
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from stepladder.errors import ConfigError
from stepladder.lm.loading import load_model_settings
from stepladder.lm.settings import LoraSettings
from stepladder.types import derive_seed


def quantization(lora: LoraSettings | None) -> BitsAndBytesConfig | None:
    """Return how to load the frozen weights; None loads them as they are stored.

    Raises:
        ConfigError: If the settings ask for 4 bits and bitsandbytes is not installed.

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
    """Return the model, wrapped in adapters if ``lora`` is given. A task head is trained in full.

    Args:
        model: The model, changed in place.
        lora: The adapters; None returns the model as it is.
        seed: Seed of the adapters' first weights, >= 0.

    Raises:
        ConfigError: If the named modules are not in the model, or cannot have adapters.
    """
    if lora is None:
        return model
    if getattr(model, "is_loaded_in_4bit", False):
        # The Trainer switches gradient checkpointing on, with and without adapters.
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
    linear = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)} - set(head))
    try:
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, "lora"))
            return get_peft_model(model, config)  # pyright: ignore[reportReturnType]
    except ValueError as error:
        said = str(error).split(". ")[0]
        raise ConfigError(
            f"lora.target_modules: must name linear layers of {type(model).__name__}: got {config.target_modules!r} ({said}) -- it has "
            f"{', '.join(linear)}"
        ) from error


def check_adapters(source: str | Path, lora: LoraSettings, *, trust_remote_code: bool = False) -> None:
    """Check that a causal language model has the modules that get adapters, without loading its weights.

    Raises:
        ConfigError: If it has not.
        CheckpointError: If there is no such model.
    """
    config, _ = load_model_settings(source, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    with_adapters(model, lora, seed=0)


def without_adapters(model: PreTrainedModel | PeftModel, lora: LoraSettings | None) -> PreTrainedModel:
    """Return a plain model that computes the same as the trained one; 4-bit weights are dequantised."""
    if not isinstance(model, PeftModel):
        return model
    assert lora is not None, "adapters come from settings"
    if lora.four_bit:
        # Merging into 4-bit weights would round the trained update away.
        learnt = get_peft_model_state_dict(model)
        plain = model.unload().dequantize()  # pyright: ignore[reportCallIssue]
        model = with_adapters(plain, lora, seed=0)  # pyright: ignore[reportAssignmentType]
        set_peft_model_state_dict(model, learnt)
    return model.merge_and_unload()  # pyright: ignore[reportReturnType, reportCallIssue]
