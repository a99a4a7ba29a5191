"""Section ``policy``: the language model, and the engine or server that samples from it."""

from typing import Literal

from pydantic import Field

from stepladder.loops.config.section import Section


class VLLMConfig(Section):
    """Engines of vLLM inside the worker processes: of the policy (``policy.backend``) and of the PRM (``prm.backend``)."""

    memory_share: float = Field(default=0.45, gt=0, le=1)
    """Share of each GPU's memory for the policy's engine. Raise it to 0.9 where no PRM shares the GPU; it has no meaning on a CPU."""
    prm_memory_share: float = Field(default=0.35, gt=0, le=1)
    """Share of each GPU's memory for the PRM's engine."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that hold one copy of a model together."""
    data_parallel: int = Field(default=1, ge=1)
    """Workers that search side by side in ``evolve``, each with engines of its own on ``tensor_parallel`` GPUs of its own."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens of a cache block; None is 32 on a CPU and vLLM's choice on a GPU."""
    max_context: int | None = Field(default=None, ge=2)
    """Tokens of question and solution together; None is the model's limit. Lower it when the cache does not fit."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Further arguments of ``vllm.EngineArgs``, such as ``quantization = "fp8"``."""


class OpenAIConfig(Section):
    """A server that speaks OpenAI's completions protocol and serves the policy's model."""

    url: str = "http://127.0.0.1:8000/v1"
    """Where the protocol begins."""
    model: str | None = None
    """Name of the model on the server; None takes the only one it serves."""
    api_key_env: str | None = None
    """Environment variable that holds the key; None sends none."""
    concurrency: int = Field(default=64, ge=1)
    """Requests in flight at once."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds for one try of a request, from the connection to the last byte of the reply."""
    retries: int = Field(default=6, ge=0)
    """Further tries of a request that failed in a way that may pass."""
    backoff_s: float = Field(default=0.5, ge=0)
    """Mean delay before the first of them; it doubles with each, up to 30 s. A server that sends ``Retry-After`` is given that time, up to
    60 s."""
    stop: Literal["server", "client"] = "server"
    """Who ends a step: a server that shows the token it stopped at (vLLM, SGLang), or stepladder, which wastes what comes behind it."""


class PolicyConfig(Section):
    """The language model that proposes steps."""

    model: str
    """Directory or hub id of a causal language model."""
    backend: Literal["transformers", "vllm", "openai"] = "transformers"
    """What samples: the embedded engine, vLLM in process, or a server (``solve`` only; the tokenizer is still read from ``model``)."""
    vllm: VLLMConfig = VLLMConfig()
    """Settings of vLLM."""
    openai: OpenAIConfig = OpenAIConfig()
    """Settings of the server."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:N``; also used for the PRM and for training."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights' type; ``auto`` is what the checkpoint says on a GPU and float32 on a CPU."""
    max_batch: int = Field(default=1024, ge=1)
    """Sequences decoded at once."""
    trust_remote_code: bool = False
    """Run code that ships with a hub model. Off unless you trust its author."""
