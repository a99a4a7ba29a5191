"""vLLM engines in this process, each for one model and one task. The caller steps them, so that a search and its engine share one loop.

The first engine imports vLLM; nothing imports it earlier. Weights are never reloaded in place: another model needs another engine.
"""

import gc
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

from stepladder.errors import BackendError
from stepladder.lm.settings import EngineSettings
from stepladder.lm.vllm_start import Task, on_cpu, start_engine, told

ARRIVAL_STEPS = 4
"""Steps of an engine on a GPU from one arrival of new sequences to the next."""


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


class Arrivals:
    """Sequences that wait for an engine. They go to it together, every few steps, or at once if it has nothing else to do.

    A step that takes up a sequence reads its prefix beside the tokens of the others, and is much slower on a GPU where vLLM's CUDA graphs
    of whole steps are for steps that only decode (``vllm_start.with_whole_graphs``). The sequences of a search are short and end at any
    time, so without waiting every step would be such a step.
    """

    def __init__(self, steps: int) -> None:
        """Begin with no sequence.

        Args:
            steps: Steps of the engine from one arrival to the next, >= 1; with 1 nothing waits.
        """
        self.steps = steps
        self._waiting: dict[str, Any] = {}
        self._since = 0

    def add(self, key: str, request: Any) -> None:
        """Let a sequence wait."""
        self._waiting[key] = request

    def take(self, num_open: int) -> list[Any]:
        """Return the requests that arrive in the step that begins now, in their order.

        Args:
            num_open: Sequences that wait or run.
        """
        self._since += 1
        if not self._waiting or (self._since < self.steps and len(self._waiting) < num_open):
            return []
        taken = list(self._waiting.values())
        self.clear()
        return taken

    def drop(self, keys: Sequence[str]) -> list[str]:
        """Forget sequences, and return the keys of those that do not wait."""
        return [key for key in keys if self._waiting.pop(key, None) is None]

    def clear(self) -> None:
        """Forget all, and count steps anew."""
        self._waiting.clear()
        self._since = 0


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
        self.arrivals = Arrivals(settings.arrival_steps or (1 if on_cpu() else ARRIVAL_STEPS))
        """Sequences that wait."""
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
            self._live = start_engine(self._source, self._task, self._settings)
            # With tensor parallelism, or in a process of its own, an engine keeps its groups elsewhere.
            self._in_groups = _groups_exist()
        return self._live

    def add(self, key: str, token_ids: Sequence[int], params: Any) -> str | None:
        """Queue a sequence under a unique key. Return None, or the reason why vLLM refuses it."""
        try:
            self._engine.add_request(key, {"prompt_token_ids": list(token_ids)}, params)
        except ValueError as error:
            return told(error)
        self._open.add(key)
        return None

    def step(self) -> list[Any]:
        """Run one step and return vLLM's outputs, one per sequence with new tokens.

        Raises:
            BackendError: If the engine failed.
        """
        outputs = _run(self._engine.step)
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
            raise BackendError(f"vLLM engine: must sample: {told(error)}") from error

    def sample(self, token_ids: Sequence[int], request: Any, *, seed: int | None, max_tokens: int) -> str:
        """Queue a sequence to be sampled and return its key; ``sample_step`` returns its tokens.

        The request goes to vLLM's core as it is: vLLM's own front end checks and copies every request and builds an output of every token,
        which costs more than a search's bookkeeping.

        Args:
            token_ids: The prefix, shorter than ``context``, ids below ``vocab_size``.
            request: From ``prepare``; it stays as it is.
            seed: Seed of the sequence, in [0, 2**63); None leaves its random numbers to vLLM.
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
        self.arrivals.add(key, own)
        self._sampled.add(key)
        return key

    def sample_step(self) -> list[NewTokens]:
        """Run one step and return what it sampled.

        Raises:
            BackendError: If the engine failed.
        """
        for request in self.arrivals.take(len(self._sampled)):
            self._engine.engine_core.add_request(request)
        found = []
        for output in _run(self._engine.engine_core.get_output).outputs:
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
        self._sampled.difference_update(sampled)
        if begun := self.arrivals.drop(sampled):
            self._engine.engine_core.abort_requests(begun)

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
            self.arrivals.clear()
            gc.collect()


def _run(step: Callable[[], Any]) -> Any:
    """Return what a step of an engine returns; an engine that fails is a ``BackendError``."""
    from vllm.v1.engine.exceptions import EngineDeadError  # pyright: ignore[reportMissingImports]

    try:
        return step()
    except (RuntimeError, EngineDeadError) as error:
        raise BackendError(f"vLLM engine: must run: {told(error)} -- see its log") from error


def _groups_exist() -> bool:
    """Say whether this process has the process groups that vLLM keeps for all its engines."""
    from vllm.distributed.parallel_state import model_parallel_is_initialized  # pyright: ignore[reportMissingImports]

    return model_parallel_is_initialized()


def _cached(output: Any) -> int:
    """Return how many tokens of a prefix were cached; only a sequence's first output says so."""
    stats = output.prefill_stats
    return 0 if stats is None else stats.num_cached_tokens
