"""Section ``policy``: the language model, and the engine or server that samples from it."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from stepladder.lm.settings import EngineOptions, MemoryShare
from stepladder.loops.config.section import Section
from stepladder.policy.backends.server_settings import ServerOptions
from stepladder.settings import Count


@dataclass(frozen=True, kw_only=True, slots=True)
class VLLMConfig(EngineOptions):
    """Engines of vLLM inside the worker processes: of the policy (``policy.backend``) and of the PRM (``prm.backend``)."""

    memory_share: MemoryShare = 0.45
    """Share of each GPU's memory for the policy's engine, in (0, 1]. Raise it to 0.9 if no PRM shares the GPU; it has no meaning on a
    CPU."""
    prm_memory_share: MemoryShare = 0.35
    """Share of each GPU's memory for the PRM's engine, in (0, 1]."""
    data_parallel: Count = 1
    """Workers that search side by side in ``evolve``, >= 1, each with engines of its own on ``tensor_parallel`` GPUs of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenAIConfig(ServerOptions):
    """A server that speaks OpenAI's completions protocol and serves the policy's model."""

    api_key_env: str | None = None
    """Environment variable that holds the key; None sends none."""


class PolicyConfig(Section):
    """The language model that proposes steps."""

    model: str
    """Directory or hub id of a causal language model."""
    backend: Literal["transformers", "vllm", "openai"] = "transformers"
    """Sampler: the embedded engine, vLLM in process, or a server (``solve`` only; the tokenizer is still read from ``model``)."""
    vllm: VLLMConfig = VLLMConfig()
    """Settings of vLLM."""
    openai: OpenAIConfig = OpenAIConfig()
    """Settings of the server."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or, to search with ``transformers`` alone, ``cuda:N``; also used for the PRM and
    for training. ``CUDA_VISIBLE_DEVICES`` chooses the GPU of everything."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights; ``auto`` is the checkpoint's own type on a GPU and float32 on a CPU."""
    max_batch: int = Field(default=1024, ge=1)
    """Sequences decoded at once."""
    trust_remote_code: bool = False
    """Run code that ships with a hub model. Off unless you trust its author."""
