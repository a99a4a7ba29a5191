"""Settings of vLLM engines, from the configuration."""

from typing import TYPE_CHECKING

from stepladder.loops.config.run import Config

if TYPE_CHECKING:
    from stepladder.lm.vllm_engine import EngineSettings


def engine_settings(config: Config, memory_share: float) -> "EngineSettings":
    """Return the settings of an engine that takes a share of each GPU's memory, in (0, 1]."""
    from stepladder.lm.vllm_engine import EngineSettings

    section = config.policy.vllm
    return EngineSettings(
        dtype=config.policy.dtype,
        memory_share=memory_share,
        tensor_parallel=section.tensor_parallel,
        block_size=section.block_size,
        max_batch=config.policy.max_batch,
        max_context=section.max_context,
        trust_remote_code=config.policy.trust_remote_code,
        options=section.options,
    )
