"""The vLLM engines of a process, each held by its role."""

from collections.abc import Callable
from functools import cache
from typing import Any

from stepladder.loops.config.run import Config


def engine_settings(config: Config, memory_share: float) -> Any:
    """Return the settings of an engine that takes a share of each GPU's memory."""
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


@cache
def held_engines() -> dict[str, tuple[Any, Any]]:
    """Return the vLLM engines of this process by role, each with what it was started from."""
    return {}


def held_engine(role: str, made_from: Any, start: Callable[[], Any]) -> Any:
    """Return the engine of a role with an empty cache; one of other weights or settings is ended first, to give its memory back."""
    held = held_engines()
    if role in held and held[role][0] != made_from:
        held.pop(role)[1].close()
    if role not in held:
        held[role] = (made_from, start())
    engine = held[role][1]
    engine.reset()
    return engine
