"""vLLM engines in this process: one model and one task each, stepped by hand, so that a search and its engine share one loop.

vLLM is imported when the first engine is built, never before. Weights are never reloaded in place: another model is another engine.
"""

import gc
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch._dynamo
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stepladder.errors import BackendError, CheckpointError, ConfigError
from stepladder.lm.loading import HEAD_PREFIXES, load_model_settings, silence_bars

CPU_BLOCK_SIZE = 32
"""Tokens of a cache block on a CPU: the smallest that vLLM takes there. Only whole blocks are shared, and its default of 128 would share
hardly any step."""

_CPU_CACHE_GIB = "1"
_CPU_ARGUMENTS = {"enforce_eager": True, "enable_chunked_prefill": False}
"""A prefix must go through in one step on a CPU: between the parts vLLM turns a request's random numbers back, which only GPUs can."""
_MESSAGE_CHARACTERS = 300
_OWN_ARGUMENTS = (
    "model", "tokenizer", "skip_tokenizer_init", "runner", "convert", "seed", "dtype", "trust_remote_code", "enable_prefix_caching",
    "disable_log_stats", "use_tqdm_on_load", "logprobs_mode", "max_logprobs", "data_parallel_size",
)  # fmt: skip
"""Engine arguments that the options may not touch: the backends rely on them."""
_BODY_ARGUMENTS = ("hf_overrides", "load_format")
"""The same where only the body of a model is served."""
_BODY_FORMAT = "stepladder_body"
"""Name under which vLLM knows our loader."""


Task = Literal["generate", "embed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """How an engine uses the machine; nothing here changes what is computed, up to rounding."""

    dtype: str = "auto"
    """Weights' type; ``auto`` is float32 on a CPU and what the checkpoint says on a GPU."""
    memory_share: float = 0.9
    """Share of each GPU's memory that the engine takes, weights and cache together, in (0, 1]. Engines that share a GPU must leave room for
    each other: their shares must not sum to more than about 0.9."""
    tensor_parallel: int = 1
    """GPUs that hold one copy of the model, >= 1."""
    block_size: int | None = None
    """Tokens of a cache block; None is 32 on a CPU and vLLM's choice on a GPU."""
    max_batch: int = 256
    """Sequences decoded at once, >= 1."""
    max_context: int | None = None
    """Tokens of prefix and sample together; None is the model's own limit."""
    trust_remote_code: bool = False
    """Run code that ships with a hub model."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of ``vllm.EngineArgs``, such as ``{"quantization": "fp8"}``."""


class VLLMEngine:
    """An engine. A process can hold several, and each can be closed; a closed one starts again when it is used."""

    def __init__(self, source: str | Path, *, task: Task, settings: EngineSettings) -> None:
        """Start an engine.

        Args:
            source: Model directory or hub id.
            task: ``generate`` samples tokens; ``embed`` gives the last hidden state at the last token of a sequence, whatever head the
                checkpoint has.
            settings: How to use the machine.

        Raises:
            ConfigError: If vLLM is not installed, or an option is unknown or not free to choose.
            CheckpointError: If vLLM cannot serve the model on this machine.
        """
        self._source, self._settings = source, settings
        self._task: Task = task
        self._open: set[str] = set()
        self._live: Any = None
        self._in_groups = False
        model = self._engine.vllm_config.model_config
        self.context: int = model.max_model_len
        """Tokens that a sequence can have."""
        self.vocab_size: int = model.get_vocab_size()
        """Ids that the model knows."""

    @property
    def _engine(self) -> Any:
        """The running engine; started if there is none, or if the end of another one took its process groups away."""
        if self._live is not None and self._in_groups and not _groups_exist():
            self.close()
        if self._live is None:
            self._live = _start(self._source, self._task, self._settings)
            # With tensor parallelism, or in a process of its own, an engine has its groups elsewhere.
            self._in_groups = _groups_exist()
        return self._live

    def add(self, key: str, token_ids: Sequence[int], params: Any) -> str | None:
        """Queue a sequence under a key of its own; return None, or why vLLM refuses it."""
        try:
            self._engine.add_request(key, {"prompt_token_ids": list(token_ids)}, params)
        except ValueError as error:
            return _told(error)
        self._open.add(key)
        return None

    def step(self) -> list[Any]:
        """Run one step and return vLLM's outputs, one per sequence that has news.

        Raises:
            BackendError: If the engine failed.
        """
        try:
            outputs = self._engine.step()
        except (RuntimeError, self._dead_error()) as error:
            raise BackendError(f"vLLM engine: must run: {_told(error)} -- see its log") from error
        self._open.difference_update(output.request_id for output in outputs if output.finished)
        return outputs

    def abort(self, keys: Sequence[str]) -> None:
        """Stop sequences that are not finished; nothing more is heard of them."""
        self._engine.abort_request(list(keys))
        self._open.difference_update(keys)

    def reset(self) -> None:
        """Drop open sequences and cached prefixes, so that what follows is computed as in a fresh process.

        Raises:
            BackendError: If vLLM keeps its cache.
        """
        if self._open:
            self.abort(list(self._open))
            self.step()
        if not self._engine.reset_prefix_cache():
            raise BackendError("vLLM engine: the prefix cache must be empty before other work: it was not freed -- build a new engine")

    def close(self) -> None:
        """Stop the engine and give its memory back; what was in flight is lost.

        vLLM then ends the process groups that all engines of this process share. The others start again when they are used next.
        """
        if self._live is not None:
            self._live.engine_core.shutdown()
            self._live = None
            self._open.clear()
            gc.collect()

    @staticmethod
    def _dead_error() -> type[Exception]:
        from vllm.v1.engine.exceptions import EngineDeadError  # pyright: ignore[reportMissingImports]

        return EngineDeadError


def _start(source: str | Path, task: Task, settings: EngineSettings) -> Any:
    vllm = import_vllm()
    silence_bars()
    arguments = engine_arguments(source, task, settings, on_cpu=_on_cpu())
    if _on_cpu():
        hide_llvmlite()
    if task == "embed":
        arguments |= _body_arguments(source, settings)
        register_body_loader()
    try:
        return vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**arguments))
    except TypeError as error:
        raise ConfigError(f"vllm options: must be arguments of vllm.EngineArgs: {_told(error)}") from error
    except (ValueError, OSError, RuntimeError, NotImplementedError, AssertionError, KeyError) as error:
        raise CheckpointError(f"{source}: vLLM could not start on this model: {_told(error)} -- see docs/backends.md") from error


def hide_llvmlite() -> None:
    """Let vLLM pass over llvmlite's library where numba has loaded it.

    On a CPU vLLM asks everything in every loaded module for its ``__dict__``. llvmlite's library makes a function of whatever name it is
    asked for, of this one, too, and vLLM stumbles over it.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    library = None if ffi is None else type(ffi.lib)
    if library is None or library.__getattr__.__module__ == __name__:
        return
    find = library.__getattr__

    def find_function(self: Any, name: str) -> Any:
        if name == "__dict__":
            raise AttributeError(name)
        return find(self, name)

    library.__getattr__ = find_function


def _groups_exist() -> bool:
    """Say whether this process has the process groups that vLLM keeps for all its engines."""
    from vllm.distributed.parallel_state import model_parallel_is_initialized  # pyright: ignore[reportMissingImports]

    return model_parallel_is_initialized()


def import_vllm() -> Any:
    """Return the package, set up for engines inside this process.

    Raises:
        ConfigError: If it is not installed.
    """
    # Read by vLLM while it is imported or when an engine starts; what the user has set stays.
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
    if _on_cpu():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)
        # vLLM compiles small functions even with enforce_eager: that needs a C++ compiler and half a minute of the first requests.
        torch._dynamo.config.disable = True
    return vllm


def _on_cpu() -> bool:
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    return current_platform.is_cpu()


def engine_arguments(source: str | Path, task: Task, settings: EngineSettings, *, on_cpu: bool) -> dict[str, Any]:
    """Return the arguments of ``vllm.EngineArgs``; options win over the machine's defaults, but not over what the backends rely on.

    Raises:
        ConfigError: If an option is not free to choose.
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
    return arguments | {"max_logprobs": 1, "logprobs_mode": "raw_logprobs"}


def _body_arguments(source: str | Path, settings: EngineSettings) -> dict[str, Any]:
    """Return what serves a checkpoint as the body of its family's language model, whatever stands on it."""
    config, _ = load_model_settings(source, trust_remote_code=settings.trust_remote_code)
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if name is None:
        raise CheckpointError(
            f"{source}: must be of a family of language models: got {config.model_type!r} -- use prm.backend=transformers"
        )
    return {"hf_overrides": {"architectures": [name]}, "load_format": _BODY_FORMAT}


def register_body_loader() -> None:
    """Tell vLLM how to load a body without the head that stands on it in the checkpoint.

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


def _told(error: BaseException) -> str:
    """Return what an error says in one line; a validation error names the setting only in its second."""
    return " ".join(str(error).split())[:_MESSAGE_CHARACTERS] or type(error).__name__
