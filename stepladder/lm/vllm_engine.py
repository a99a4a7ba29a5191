"""vLLM engines in this process, each for one model and one task. The caller steps them, so that a search and its engine share one loop.

The first engine imports vLLM; nothing imports it earlier. Weights are never reloaded in place: another model needs another engine.
"""

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch._dynamo
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stepladder.errors import BackendError, CheckpointError, ConfigError
from stepladder.lm.loading import HEAD_PREFIXES, load_model_settings, silence_bars
from stepladder.lm.settings import EngineSettings

CPU_BLOCK_SIZE = 32
"""Tokens of a cache block on a CPU: the smallest size that vLLM accepts there. Only whole blocks are shared, and with vLLM's default of
128 hardly any step would be."""

_CPU_CACHE_GIB = "1"
_CPU_ARGUMENTS = {"enforce_eager": True, "enable_chunked_prefill": False}
"""On a CPU a prefix must be forwarded in one step: between parts, vLLM rewinds a request's random numbers, which only GPUs can do."""
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


class NewTokens(NamedTuple):
    """What a step of the engine sampled for one sequence."""

    key: str
    """The sequence."""
    token_ids: Sequence[int]
    """Its new tokens."""
    logps: Sequence[float]
    """Their log-probabilities, as the engine's ``logprobs_mode`` says."""
    finish_reason: str | None
    """Why vLLM ended the sequence; None while it goes on."""
    cached_tokens: int
    """With the first tokens, how many of the prefix were in the cache; 0 later."""


class VLLMEngine:
    """An engine. A process can hold several. A closed engine starts again when it is used."""

    def __init__(self, source: str | Path, *, task: Task, settings: EngineSettings) -> None:
        """Start an engine.

        Args:
            source: Model directory or hub id.
            task: ``generate`` samples tokens. ``embed`` returns the last hidden state at the last token of a sequence, whatever head
                the checkpoint has.
            settings: How to use the machine.

        Raises:
            ConfigError: If vLLM is not installed, or an option is unknown or reserved.
            CheckpointError: If vLLM cannot serve the model on this machine.
        """
        self._source, self._settings = source, settings
        self._task: Task = task
        self._open: set[str] = set()
        self._sampled: set[str] = set()
        self._num_sampled = 0
        self._live: Any = None
        self._in_groups = False
        model = self._engine.vllm_config.model_config
        self.context: int = model.max_model_len
        """Maximum tokens of a sequence."""
        self.vocab_size: int = model.get_vocab_size()
        """Ids that the model knows."""

    @property
    def _engine(self) -> Any:
        """The running engine. It is started if there is none, or if closing another engine destroyed its process groups."""
        if self._live is not None and self._in_groups and not _groups_exist():
            self.close()
        if self._live is None:
            self._live = _start(self._source, self._task, self._settings)
            # With tensor parallelism, or in a process of its own, an engine keeps its groups elsewhere.
            self._in_groups = _groups_exist()
        return self._live

    def add(self, key: str, token_ids: Sequence[int], params: Any) -> str | None:
        """Queue a sequence under a unique key. Return None, or the reason why vLLM refuses it."""
        try:
            self._engine.add_request(key, {"prompt_token_ids": list(token_ids)}, params)
        except ValueError as error:
            return _told(error)
        self._open.add(key)
        return None

    def step(self) -> list[Any]:
        """Run one step and return vLLM's outputs, one per sequence with new tokens.

        Raises:
            BackendError: If the engine failed.
        """
        try:
            outputs = self._engine.step()
        except (RuntimeError, self._dead_error()) as error:
            raise BackendError(f"vLLM engine: must run: {_told(error)} -- see its log") from error
        self._open.difference_update(output.request_id for output in outputs if output.finished)
        return outputs

    def prepare(self, params: Any) -> Any:
        """Return a sampling request without a sequence, for ``sample``.

        Args:
            params: ``SamplingParams`` with ``logprobs=0``. They are checked and completed here, once for all requests that copy them.

        Raises:
            BackendError: If vLLM refuses them.
        """
        engine = self._engine
        try:
            return engine.input_processor.process_inputs(
                "-", {"prompt_token_ids": [0]}, params, supported_tasks=engine.get_supported_tasks()
            )
        except ValueError as error:
            raise BackendError(f"vLLM engine: must sample: {_told(error)}") from error

    def sample(self, token_ids: Sequence[int], request: Any, *, seed: int, max_tokens: int) -> str:
        """Queue a sequence to be sampled and return its key; ``sample_step`` returns its tokens.

        The request goes to vLLM's core as it is: vLLM's own front end checks and copies every request and builds an output of every token,
        which costs more than a search's bookkeeping.

        Args:
            token_ids: The prefix, shorter than ``context``, ids below ``vocab_size``.
            request: From ``prepare``; it stays as it is.
            seed: Seed of the sequence, in [0, 2**63).
            max_tokens: Maximum tokens to sample, >= 1.
        """
        # An engine that schedules ahead may still compute an aborted sequence, so no key serves twice.
        self._num_sampled += 1
        key = str(self._num_sampled)
        params = copy(request.sampling_params)
        params.seed, params.max_tokens = seed, max_tokens
        own = copy(request)
        own.request_id = own.external_req_id = key
        own.prompt_token_ids, own.sampling_params = list(token_ids), params
        self._engine.engine_core.add_request(own)
        self._sampled.add(key)
        return key

    def sample_step(self) -> list[NewTokens]:
        """Run one step and return what it sampled.

        Raises:
            BackendError: If the engine failed.
        """
        try:
            outputs = self._engine.engine_core.get_output().outputs
        except (RuntimeError, self._dead_error()) as error:
            raise BackendError(f"vLLM engine: must run: {_told(error)} -- see its log") from error
        found = []
        for output in outputs:
            if output.finish_reason is not None:
                self._sampled.discard(output.request_id)
            logps = () if output.new_logprobs is None else output.new_logprobs.logprobs[:, 0].tolist()
            reason = None if output.finish_reason is None else str(output.finish_reason)
            found.append(NewTokens(output.request_id, output.new_token_ids, logps, reason, _cached(output)))
        return found

    def abort(self, keys: Sequence[str]) -> None:
        """Stop unfinished sequences; they produce no further outputs."""
        listed = [key for key in keys if key in self._open]
        if listed:
            self._engine.abort_request(listed)
            self._open.difference_update(listed)
        sampled = [key for key in keys if key in self._sampled]
        if sampled:
            self._engine.engine_core.abort_requests(sampled)
            self._sampled.difference_update(sampled)

    def reset(self) -> None:
        """Drop open sequences and cached prefixes, so that later results are those of a fresh process.

        Raises:
            BackendError: If vLLM keeps its cache.
        """
        if self._open or self._sampled:
            self.abort([*self._open, *self._sampled])
            self.step()
        if not self._engine.reset_prefix_cache():
            raise BackendError("vLLM engine: the prefix cache must be empty before other work: it was not freed -- build a new engine")

    def close(self) -> None:
        """Stop the engine and free its memory. Requests in flight are lost.

        vLLM then ends the process groups that all engines of this process share. The others start again at their next use.
        """
        if self._live is not None:
            self._live.engine_core.shutdown()
            self._live = None
            self._open.clear()
            self._sampled.clear()
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
    """Give llvmlite's library an empty ``__dict__`` where numba has loaded it.

    On a CPU, vLLM asks every object in every loaded module for its ``__dict__``. llvmlite's library makes a function for any name, also
    for this one, and vLLM fails on it. Names in the library's table are not looked up again. Remove this when llvmlite
    answers ``AttributeError`` for names of the form ``__x__``; ``test_vllm_engine.py`` then fails and says so.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab.setdefault("__dict__", {})


def _groups_exist() -> bool:
    """Say whether this process has the process groups that vLLM keeps for all its engines."""
    from vllm.distributed.parallel_state import model_parallel_is_initialized  # pyright: ignore[reportMissingImports]

    return model_parallel_is_initialized()


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
    if _on_cpu():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)
        # vLLM compiles small functions even with enforce_eager, which needs a C++ compiler and delays the first requests by half a minute.
        torch._dynamo.config.disable = True
    return vllm


def _on_cpu() -> bool:
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    return current_platform.is_cpu()


def engine_arguments(source: str | Path, task: Task, settings: EngineSettings, *, on_cpu: bool) -> dict[str, Any]:
    """Return the arguments of ``vllm.EngineArgs``. Options override the machine's defaults, but not what the backends rely on.

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


def _cached(output: Any) -> int:
    """Return how many tokens of a prefix were cached; only a sequence's first output says so."""
    stats = output.prefill_stats
    return 0 if stats is None else stats.num_cached_tokens


def _told(error: BaseException) -> str:
    """Return an error's message in one line; a validation error names the setting only in its second line."""
    return " ".join(str(error).split())[:_MESSAGE_CHARACTERS] or type(error).__name__
