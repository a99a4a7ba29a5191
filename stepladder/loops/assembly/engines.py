"""Settings of vLLM engines, from the configuration."""

from dataclasses import fields

from stepladder.lm.settings import EngineOptions, EngineSettings
from stepladder.loops.config.run import Config


def engine_settings(config: Config, memory_share: float) -> EngineSettings:
    """Return the settings of an engine that takes a share of each GPU's memory, in (0, 1]."""
    section = config.policy.vllm
    return EngineSettings(
        **{each.name: getattr(section, each.name) for each in fields(EngineOptions)},
        dtype=config.policy.dtype,
        memory_share=memory_share,
        max_batch=config.policy.max_batch,
        trust_remote_code=config.policy.trust_remote_code,
    )
