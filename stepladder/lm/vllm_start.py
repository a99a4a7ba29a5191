"""Starting vLLM engines in this process: its import, the arguments of an engine, and a loader of bodies without their head."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch._dynamo
from pydantic import JsonValue
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
_MESSAGE_CHARACTERS = 300
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
    arguments = engine_arguments(source, task, settings, on_cpu=on_cpu(), whole_graphs=_takes_whole_graphs())
    if on_cpu():
        hide_llvmlite()
    if task == "embed":
        arguments |= _body_arguments(source, settings)
        register_body_loader()
    try:
        return vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**arguments))
    except TypeError as error:
        raise ConfigError(f"vllm options: must be arguments of vllm.EngineArgs: {told(error)}") from error
    except (ValueError, OSError, RuntimeError, NotImplementedError, AssertionError, KeyError) as error:
        raise CheckpointError(f"{source}: vLLM could not start on this model: {told(error)} -- see docs/backends.md") from error


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
    return arguments | {"max_logprobs": 1, "logprobs_mode": "raw_logprobs"}


def _body_arguments(source: str | Path, settings: EngineSettings) -> dict[str, Any]:
    """Return the arguments that serve a checkpoint as the body of its family's language model, whatever head it has."""
    config, _ = load_model_settings(source, trust_remote_code=settings.trust_remote_code)
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if name is None:
        raise CheckpointError(
            f"{source}: must be of a family of language models: got {config.model_type!r} -- use prm.backend=transformers"
        )
    return {"hf_overrides": {"architectures": [name]}, "load_format": _BODY_FORMAT}


def register_body_loader() -> None:
    """Register a loader with vLLM that loads a body without the checkpoint's head.

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
    """Return the message of one of vLLM's errors in one line; a validation error names the setting only in its second line."""
    return " ".join(str(error).split())[:_MESSAGE_CHARACTERS] or type(error).__name__
