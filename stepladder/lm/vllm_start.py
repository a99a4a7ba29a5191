"""Starting vLLM engines in this process: its import, the arguments of an engine, and a loader of bodies without their head.

What vLLM cannot serve is refused from its configuration, before weights are loaded: ``check_engine`` asks in advance, without an engine.
"""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch._dynamo
from pydantic import JsonValue, ValidationError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stepladder.errors import CheckpointError, ConfigError
from stepladder.lm.loading import HEAD_PREFIXES, load_model_settings, silence_bars
from stepladder.lm.settings import EngineSettings

CPU_BLOCK_SIZE = 32
"""Tokens of a cache block on a CPU: the smallest size that vLLM accepts there. Only whole blocks are shared, and with vLLM's default of
128 hardly any step would be."""

_CPU_CACHE_GIB = "1"
_CPU_ARGUMENTS = {"enforce_eager": True, "enable_chunked_prefill": False}
"""On a CPU a prefix must be forwarded in one step: between parts, vLLM rewinds a request's random numbers, which only GPUs can do."""
_MOST_GRAPH_TOKENS = 2048
"""Tokens of the largest step that has a CUDA graph: some hundred sequences that decode, and what arrives beside them."""
_MESSAGE_CHARACTERS = 400
_GIB = 1 << 30
_OWN_ARGUMENTS = (
    "model", "tokenizer", "skip_tokenizer_init", "runner", "convert", "seed", "dtype", "trust_remote_code", "enable_prefix_caching",
    "disable_log_stats", "use_tqdm_on_load", "logprobs_mode", "max_logprobs", "data_parallel_size",
)  # fmt: skip
"""Engine arguments that the options may not change, because the backends rely on them."""
_BODY_ARGUMENTS = ("hf_overrides", "load_format")
"""The same for engines that serve only the body of a model."""
_BODY_FORMAT = "stepladder_body"
"""Name under which vLLM knows our loader."""

Task = Literal["generate", "embed"]
"""What an engine does: sample tokens, or return hidden states."""


def start_engine(source: str | Path, task: Task, settings: EngineSettings) -> Any:
    """Return a running ``vllm.LLMEngine``.

    Raises:
        ConfigError: If vLLM is not installed, or an option is unknown or reserved.
        CheckpointError: If vLLM cannot serve the model on this machine.
    """
    vllm = import_vllm()
    silence_bars()
    config = engine_config(source, task, settings)
    if on_cpu():
        hide_llvmlite()
    with _explained(source):
        return vllm.LLMEngine.from_vllm_config(config, disable_log_stats=True)


def check_engine(source: str | Path, task: Task, settings: EngineSettings) -> None:
    """Refuse an engine that could not start, or would fail at its first request, as far as its configuration tells.

    Raises:
        ConfigError, CheckpointError: As for ``engine_config``.
    """
    engine_config(source, task, settings)


def engine_config(source: str | Path, task: Task, settings: EngineSettings) -> Any:
    """Return vLLM's configuration of an engine that this machine can run, as far as that is known without weights.

    vLLM itself refuses unknown architectures, types, quantisation, contexts beyond the model's and heads that cannot be divided. Whether
    its cache holds a sequence it would say only after loading weights. On a GPU it chooses an attention that supports the model; on a CPU
    it has one, and would say only at the first request what that does not support.

    Raises:
        ConfigError: If vLLM is not installed, or an option is unknown or reserved.
        CheckpointError: If vLLM cannot serve the model on this machine.
    """
    vllm = import_vllm()
    from vllm.config import set_current_vllm_config  # pyright: ignore[reportMissingImports]
    from vllm.usage.usage_lib import UsageContext  # pyright: ignore[reportMissingImports]
    from vllm.v1.attention.selector import get_attn_backend  # pyright: ignore[reportMissingImports]

    arguments = engine_arguments(source, task, settings, on_cpu=on_cpu(), whole_graphs=_takes_whole_graphs())
    if task == "embed":
        arguments |= _body_arguments(source, settings)
        register_body_loader()
    with _explained(source):
        config = vllm.EngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
        model = config.model_config
        # Latent attention and states have layers with sizes of their own, which only the loaded model knows.
        if model.use_mla or model.is_attention_free:
            return config
        if on_cpu():
            with set_current_vllm_config(config):
                windows = model.get_sliding_window() is not None
                backend = get_attn_backend(model.get_head_size(), model.dtype, config.cache_config.cache_dtype, has_sliding_window=windows)
            check_attention(source, config, backend)
    check_cache(source, config)
    return config


def check_attention(source: str | Path, config: Any, backend: Any) -> None:
    """Refuse a model that an attention backend does not support. On a CPU, vLLM has one and does not ask it.

    Args:
        source: The model, for messages.
        config: vLLM's configuration.
        backend: The class of the backend, an ``AttentionBackend`` of vLLM.

    Raises:
        CheckpointError: If it does not.
    """
    model, cache = config.model_config, config.cache_config
    head_size, block_size = model.get_head_size(), cache.block_size if cache.user_specified_block_size else None
    sizes = ", ".join(map(str, backend.get_supported_head_sizes())) or "another size"
    dtype, *dtypes = (str(each).removeprefix("torch.") for each in (model.dtype, *backend.supported_dtypes))
    blocks = " or ".join(_block_words(size) for size in backend.get_supported_kernel_block_sizes())
    rules = [
        (backend.supports_head_size(head_size), f"heads of size {sizes}: got {head_size}", "use backend 'transformers', or another model"),
        (backend.supports_dtype(model.dtype), f"weights in {', '.join(dtypes)}: got {dtype}", "set policy.dtype to one of them"),
        (backend.supports_block_size(block_size), f"blocks of {blocks} tokens: got {block_size}", "leave policy.vllm.block_size out"),
    ]
    for holds, rule, remedy in rules:
        if not holds:
            raise CheckpointError(f"{source}: vLLM's attention on this machine ({backend.get_name()}) takes {rule} -- {remedy}")


def _block_words(size: Any) -> str:
    """Say a size of blocks that a backend takes: a number, or vLLM's ``MultipleOf``."""
    return str(size) if isinstance(size, int) else f"multiples of {size.base}"


def check_cache(source: str | Path, config: Any) -> None:
    """Refuse a cache of known size that does not hold a sequence of the whole context, which vLLM asks for when it starts.

    Models with layers that see a part of the context need less than this formula, and are left to vLLM:

        2 * layers * heads of keys * head size * bytes of a value * tokens, in whole blocks

    Args:
        source: The model, for messages.
        config: vLLM's configuration.

    Raises:
        CheckpointError: If it does not.
    """
    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    there = cache.kv_cache_memory_bytes
    sees_part = any(getattr(model.hf_text_config, each, None) for each in ("sliding_window", "attention_chunk_size"))
    if there is None or cache.cache_dtype != "auto" or sees_part or model.is_hybrid:
        return
    values = 2 * model.get_num_layers(parallel) * model.get_num_kv_heads(parallel) * model.get_head_size()
    tokens = math.ceil(model.max_model_len / cache.block_size) * cache.block_size
    needed = tokens * values * model.dtype.itemsize
    if needed > there:
        raise CheckpointError(
            f"{source}: vLLM's cache must hold a sequence of the whole context: {model.max_model_len} tokens take {needed / _GIB:.1f} GiB, "
            f"of {there / _GIB:.1f} -- set policy.vllm.max_context, or a larger cache (docs/backends.md)"
        )


@contextmanager
def _explained(source: str | Path) -> Iterator[None]:
    """Turn what vLLM raises about an engine into one sentence."""
    try:
        yield
    except TypeError as error:
        raise ConfigError(f"vllm options: must be arguments of vllm.EngineArgs: {told(error)}") from error
    except (ValueError, OSError, RuntimeError, NotImplementedError, AssertionError, KeyError) as error:
        raise CheckpointError(f"{source}: vLLM must be able to serve the model here: {told(error)} -- see docs/backends.md") from error


def hide_llvmlite() -> None:
    """Give llvmlite's library an empty ``__dict__`` where numba has loaded it.

    On a CPU, vLLM asks every object in every loaded module for its ``__dict__``. llvmlite's library makes a function for any name, also
    for this one, and vLLM fails on it. Names in the library's table are not looked up again. Remove this when llvmlite
    answers ``AttributeError`` for names of the form ``__x__``; ``tests/unit/lm/test_vllm_engine.py`` then fails and says so.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab.setdefault("__dict__", {})


def import_vllm() -> Any:
    """Return the package, set up for engines inside this process.

    Raises:
        ConfigError: If it is not installed.
    """
    # vLLM reads these during its import or when an engine starts. Values that the user has set stay.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"backend 'vllm': needs the package vllm: {error} -- pip install 'stepladder[vllm]' where there is a GPU, or see "
            "docs/backends.md for the CPU"
        ) from error
    if on_cpu():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)
        # vLLM compiles small functions even with enforce_eager, which needs a C++ compiler and delays the first requests by half a minute.
        torch._dynamo.config.disable = True
    return vllm


def on_cpu() -> bool:
    """Say whether vLLM computes on a CPU. It is imported by this call."""
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    return current_platform.is_cpu()


def _takes_whole_graphs() -> bool:
    """Say whether attention can be a part of CUDA graphs in steps that read prefixes, too: FlashAttention 3, which Hopper GPUs have."""
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    return current_platform.is_cuda() and current_platform.is_device_capability(90)


def with_whole_graphs(given: JsonValue, *, max_batch: int) -> JsonValue:
    """Return vLLM's ``compilation_config`` with CUDA graphs of whole steps, those included in which sequences arrive.

    vLLM's own graphs of whole steps are for steps that only decode, and none has more than 512 tokens. Nearly every step of a search has
    arrivals, so it would nearly always run without. Settings of CUDA graphs that are given stay.

    Args:
        given: What the user set; None is nothing.
        max_batch: Sequences decoded at once, >= 1.
    """
    if given is None:
        given = {}
    if not isinstance(given, dict) or any("cudagraph" in key for key in given):
        return given
    most = min(8 * max_batch, _MOST_GRAPH_TOKENS)
    sizes = (1, 2, 4, *range(8, 256, 8), *range(256, 1024, 32), *range(1024, _MOST_GRAPH_TOKENS + 1, 128))
    return {**given, "cudagraph_mode": "FULL", "cudagraph_capture_sizes": [size for size in sizes if size <= most]}


def engine_arguments(
    source: str | Path, task: Task, settings: EngineSettings, *, on_cpu: bool, whole_graphs: bool = False
) -> dict[str, Any]:
    """Return the arguments of ``vllm.EngineArgs``. Options override the machine's defaults, but not what the backends rely on.

    Args:
        source: Model directory or hub id.
        task: What the engine does.
        settings: How to use the machine.
        on_cpu: Whether it is a CPU.
        whole_graphs: Whether CUDA graphs can hold whole steps with arrivals; an engine that samples then uses them.

    Raises:
        ConfigError: If an option is reserved.
    """
    owned = sorted(set(settings.options) & {*_OWN_ARGUMENTS, *(_BODY_ARGUMENTS if task == "embed" else ())})
    if owned:
        raise ConfigError(f"vllm options: must leave {owned[0]!r} to stepladder: got {settings.options[owned[0]]!r} -- remove it")
    dtype = "float32" if on_cpu and settings.dtype == "auto" else settings.dtype
    block_size = CPU_BLOCK_SIZE if on_cpu and settings.block_size is None else settings.block_size
    arguments: dict[str, Any] = {
        "tensor_parallel_size": settings.tensor_parallel,
        "max_num_seqs": settings.max_batch,
        **(_CPU_ARGUMENTS if on_cpu else {"gpu_memory_utilization": settings.memory_share}),
        **({} if block_size is None else {"block_size": block_size}),
        **({} if settings.max_context is None else {"max_model_len": settings.max_context}),
        **settings.options,
        "model": str(source),
        "dtype": dtype,
        "trust_remote_code": settings.trust_remote_code,
        "skip_tokenizer_init": True,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if task == "embed":
        return arguments | {"runner": "pooling", "convert": "embed"}
    if whole_graphs and not arguments.get("enforce_eager"):
        arguments["compilation_config"] = with_whole_graphs(arguments.get("compilation_config"), max_batch=settings.max_batch)
    return arguments | {"runner": "generate", "max_logprobs": 1, "logprobs_mode": "raw_logprobs"}


def _body_arguments(source: str | Path, settings: EngineSettings) -> dict[str, Any]:
    """Return the arguments that serve a checkpoint as the body of its family's language model, whatever head it has."""
    config, _ = load_model_settings(source, trust_remote_code=settings.trust_remote_code)
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if name is None:
        raise CheckpointError(
            f"{source}: must be of a family of language models: got {config.model_type!r} -- use prm.backend=transformers"
        )
    return {"hf_overrides": {"architectures": [name]}, "load_format": _BODY_FORMAT}


@cache
def register_body_loader() -> None:
    """Register a loader with vLLM, once, that loads a body without the checkpoint's head.

    vLLM calls this in each of its worker processes, through the entry point in pyproject.toml.
    """
    from vllm.model_executor.model_loader import register_model_loader  # pyright: ignore[reportMissingImports]
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader  # pyright: ignore[reportMissingImports]

    class BodyLoader(DefaultModelLoader):
        def __init__(self, load_config: Any) -> None:
            super().__init__(replace(load_config, load_format="auto"))

        def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, Any]]:
            return ((name, weight) for name, weight in super().get_all_weights(model_config, model) if not name.startswith(HEAD_PREFIXES))

    register_model_loader(_BODY_FORMAT)(BodyLoader)


def told(error: BaseException) -> str:
    """Return the message of one of vLLM's errors in one line; of validation errors what they are about, without the values."""
    text = str(error)
    if isinstance(error, ValidationError):
        text = "; ".join(": ".join([*map(str, each["loc"][:1]), each["msg"].removeprefix("Value error, ")]) for each in error.errors())
    words = " ".join(text.split())
    # The reasons stand at the end where vLLM lists what it tried.
    cut = words if len(words) <= _MESSAGE_CHARACTERS else f"{words[: _MESSAGE_CHARACTERS // 2]} ... {words[-_MESSAGE_CHARACTERS // 2 :]}"
    return cut or type(error).__name__
