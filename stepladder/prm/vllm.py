"""Step scores from a value-head model on a vLLM engine in this process.

vLLM reads the head at the last token of a sequence and, for that kind of reading alone, finds prefixes in its cache. So the end of every
step is a sequence of its own: prompt and steps up to there. What is cached already is not forwarded again, up to vLLM's whole blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from stepladder.errors import BackendError, CheckpointError
from stepladder.interfaces import ScoreRequest, ScoreResult, check_ticket
from stepladder.lm.loading import load_model_settings
from stepladder.lm.vllm import EngineSettings, VLLMEngine
from stepladder.prm.outputs import transform_outputs
from stepladder.prm.specs import PRMSpec


@dataclass(kw_only=True, slots=True, eq=False)
class _Job:
    """An open request and the scores that have come."""

    request: ScoreRequest
    scores: list[list[float | None]]
    num_open: int = 0


class VLLMStepScorer:
    """A ``StepScorer`` that reads a value head at the last token of each step, on vLLM.

    A step without tokens scores as None; so does a step that ends beyond the model's context, holds an id that the model does not have,
    comes after such a step, or gets an output that is not a number.
    """

    def __init__(self, engine: VLLMEngine, spec: PRMSpec) -> None:
        """Serve an engine of task ``classify`` whose model has one output; nothing else may use it meanwhile."""
        self.spec = spec
        self._engine = engine
        self._jobs: dict[int, _Job] = {}
        self._places: dict[str, tuple[_Job, int, int]] = {}
        self._done: list[ScoreResult] = []
        self.read_tokens = 0
        """Tokens of all sequences that were read so far; the end of every step counts its whole path."""
        self.cached_tokens = 0
        """Tokens of these that were found in the prefix cache."""

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, settings: EngineSettings | None = None) -> "VLLMStepScorer":
        """Start an engine on a model and its ``PRMSpec``.

        Raises:
            CheckpointError: If a part is missing, the head has more than one output, or vLLM cannot serve the model.
            ConfigError: If vLLM is not installed or an option is unknown.
        """
        settings = EngineSettings() if settings is None else settings
        spec = PRMSpec.load(directory)
        return cls(start_scoring_engine(directory, settings=settings), spec)

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far."""
        return self.read_tokens - self.cached_tokens

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close()

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        """Queue requests.

        Raises:
            BackendError: If a ticket is open already.
        """
        for request in requests:
            check_ticket(request.ticket, self._jobs)
            job = _Job(request=request, scores=[[None] * len(branch) for branch in request.branches])
            self._jobs[request.ticket] = job
            if _known(request.prefix_ids, self._engine.vocab_size) and request.prefix_ids:
                for number in range(len(request.branches)):
                    self._read_branch(job, number)
            if not job.num_open:
                self._finish(job)

    def collect(self) -> list[ScoreResult]:
        """Return finished results, at least one; empty only when nothing is in flight.

        Raises:
            BackendError: If the engine failed.
        """
        while not self._done and self._places:
            for output in self._engine.step():
                if output.finished and output.request_id in self._places:
                    self._take(output)
        done, self._done = self._done, []
        for result in done:
            del self._jobs[result.ticket]
        return done

    def _read_branch(self, job: _Job, number: int) -> None:
        """Queue the end of every step that the model can read."""
        from vllm import PoolingParams  # pyright: ignore[reportMissingImports]

        branch = job.request.branches[number]
        ends = accumulate((len(step) for step in branch), initial=len(job.request.prefix_ids))
        next(ends)
        path = job.request.prefix_ids + tuple(token for step in branch for token in step)
        for index, (step, end) in enumerate(zip(branch, ends, strict=True)):
            if end > self._engine.context or not _known(step, self._engine.vocab_size):
                return
            if not step:
                continue
            key = f"{job.request.ticket}.{number}.{index}"
            message = self._engine.add(key, path[:end], PoolingParams(task="classify", use_activation=False))
            if message is not None:
                raise BackendError(f"vLLM scorer: a path of {end} tokens must be readable: {message}")
            self._places[key] = (job, number, index)
            job.num_open += 1

    def _take(self, output: Any) -> None:
        job, number, index = self._places.pop(output.request_id)
        self.read_tokens += len(output.prompt_token_ids)
        self.cached_tokens += output.num_cached_tokens or 0
        raw = np.array([output.outputs.data.flatten()[0].item()])
        score = float(transform_outputs(raw, self.spec.transform)[0])
        job.scores[number][index] = None if math.isnan(score) else score
        job.num_open -= 1
        if not job.num_open:
            self._finish(job)

    def _finish(self, job: _Job) -> None:
        self._done.append(ScoreResult(ticket=job.request.ticket, scores=tuple(tuple(branch) for branch in job.scores)))


def start_scoring_engine(directory: str | Path, *, settings: EngineSettings) -> VLLMEngine:
    """Start the engine of a value-head model.

    Raises:
        CheckpointError: If the head has more than one output, or vLLM cannot serve the model.
        ConfigError: If vLLM is not installed or an option is unknown.
    """
    config, _ = load_model_settings(directory, trust_remote_code=settings.trust_remote_code)
    if config.num_labels != 1:
        raise CheckpointError(f"{directory}: a value head must have one output per token: got num_labels={config.num_labels}")
    return VLLMEngine(directory, task="classify", settings=settings)


def _known(token_ids: Sequence[int], vocab_size: int) -> bool:
    return not token_ids or (min(token_ids) >= 0 and max(token_ids) < vocab_size)
