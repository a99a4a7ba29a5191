"""Policies and renderers, from the configuration.

Model classes are imported inside the functions that need them, so that reading a configuration stays free of torch.
"""

import os
from functools import lru_cache
from typing import Any

from stepladder.errors import ConfigError
from stepladder.loops.assembly.engines import engine_settings, held_engine
from stepladder.loops.config.models import OpenAIConfig
from stepladder.loops.config.run import Config


def step_format(config: Config) -> Any:
    """Return the ``StepFormat`` that the configuration describes."""
    from stepladder.policy.prompts import StepFormat

    return StepFormat(**config.format.model_dump())


def build_renderer(config: Config, policy_dir: str) -> Any:
    """Return the renderer of a policy: its tokenizer with the configured format."""
    from stepladder.lm.loading import load_tokenizer
    from stepladder.policy.prompts import PromptRenderer

    return PromptRenderer(load_tokenizer(policy_dir, trust_remote_code=config.policy.trust_remote_code), step_format(config))


def build_policy(config: Config, policy_dir: str) -> Any:
    """Return a policy on the configured backend; weights and engines are kept per process, caches of keys and values are new.

    Raises:
        ConfigError: If the backend is not installed or its settings are impossible.
        CheckpointError: If the model cannot be loaded.
        BackendError: If the server does not answer.
    """
    if config.policy.backend == "vllm":
        return _vllm_policy(config, policy_dir)
    if config.policy.backend == "openai":
        return _openai_policy(config, policy_dir)
    from stepladder.policy.backends.transformers import TransformersPolicy

    model, tokenizer = policy_weights(policy_dir, config.policy.device, config.policy.dtype, config.policy.trust_remote_code)
    return TransformersPolicy(model, tokenizer, step_format(config), max_batch=config.policy.max_batch)


def _vllm_policy(config: Config, policy_dir: str) -> Any:
    from stepladder.lm.loading import load_model_settings, load_tokenizer
    from stepladder.lm.vllm_engine import VLLMEngine
    from stepladder.policy.backends.vllm import VLLMPolicy

    trust, settings = config.policy.trust_remote_code, engine_settings(config, config.policy.vllm.memory_share)
    engine = held_engine("policy", (policy_dir, settings), lambda: VLLMEngine(policy_dir, task="generate", settings=settings))
    tokenizer, named = load_tokenizer(policy_dir, trust_remote_code=trust), load_model_settings(policy_dir, trust_remote_code=trust)
    return VLLMPolicy(engine, tokenizer, step_format(config), *named)


def _openai_policy(config: Config, policy_dir: str) -> Any:
    from stepladder.lm.loading import load_model_settings, load_tokenizer
    from stepladder.policy.backends.openai import OpenAIPolicy

    section, trust = config.policy.openai, config.policy.trust_remote_code
    tokenizer, named = load_tokenizer(policy_dir, trust_remote_code=trust), load_model_settings(policy_dir, trust_remote_code=trust)
    text = named[0].get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    server = _server(**_server_options(section))
    return OpenAIPolicy(server, tokenizer, step_format(config), *named, vocab_size=text.vocab_size, context=context)


@lru_cache(maxsize=1)
def _server(**options: Any) -> Any:
    from stepladder.policy.backends.completion_server import CompletionServer, ServerSettings

    return CompletionServer(ServerSettings(**options))


def _server_options(section: OpenAIConfig) -> dict[str, Any]:
    plain = section.model_dump(exclude={"api_key_env"})
    key = None if section.api_key_env is None else os.environ.get(section.api_key_env)
    if section.api_key_env is not None and not key:
        raise ConfigError(f"policy.openai.api_key_env: the variable must hold a key: {section.api_key_env!r} is not set -- export it")
    return {**plain, "api_key": key}


@lru_cache(maxsize=1)
def policy_weights(policy_dir: str, device: str, dtype: str, trust_remote_code: bool) -> Any:
    """Return model and tokenizer of a policy; the last ones are kept in memory."""
    from stepladder.lm.loading import load_causal_lm, load_tokenizer, silence_bars

    silence_bars()
    model = load_causal_lm(policy_dir, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    return model, load_tokenizer(policy_dir, trust_remote_code=trust_remote_code)
