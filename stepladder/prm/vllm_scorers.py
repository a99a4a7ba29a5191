"""Process reward models on vLLM engines in this process.

vLLM pools hidden states at the last token of a sequence and, for that kind of reading alone, finds prefixes in its cache. So every token at
which a score is read ends a sequence of its own: all tokens up to there. What is cached already is not forwarded again, up to vLLM's whole
blocks. The head, which may be of any family, is computed here. An implicit model needs the log-probability of every token of a step, which
vLLM gives for the tokens that it forwards.

Axes: T tokens, F outputs of a token.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from stepladder.errors import BackendError
from stepladder.interfaces import ScoreRequest, ScoreResult, check_ticket
from stepladder.lm.vllm_engine import VLLMEngine
from stepladder.prm.checkpoints import out_features
from stepladder.prm.outputs import check_entropy_penalty, scores_of
from stepladder.prm.requests import known_ids
from stepladder.prm.specs import PRMSpec, check_reads_tokens
from stepladder.remembered import forget_oldest

_MAX_KEPT = 1 << 18
"""Number of sequences whose outputs are remembered."""


class VLLMOutputs:
    """Outputs of a head at the last token of sequences, as a stream and as ``TokenOutputs`` of whole paths."""

    def __init__(self, engine: VLLMEngine, head: nn.Module) -> None:
        """Serve an engine of task ``embed``. Nothing else may use the engine.

        Args:
            engine: The engine.
            head: Makes outputs of hidden states, in float32 on the CPU.
        """
        self._engine, self._head = engine, head
        self._kept: dict[str, np.ndarray] = {}
        self.num_open = 0
        """Sequences whose outputs are not finished."""
        self.read_tokens = 0
        """Tokens of all sequences that were read so far; the end of every step counts its whole path."""
        self.cached_tokens = 0
        """Tokens of these that were found in the prefix cache."""

    @property
    def max_positions(self) -> int:
        """Tokens that a sequence can have."""
        return self._engine.context

    @property
    def vocab_size(self) -> int:
        """Ids that the model knows."""
        return self._engine.vocab_size

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far."""
        return self.read_tokens - self.cached_tokens

    def add(self, key: str, token_ids: Sequence[int]) -> None:
        """Queue a sequence under a key of its own.

        Raises:
            BackendError: If vLLM refuses it.
        """
        from vllm.pooling_params import PoolingParams  # pyright: ignore[reportMissingImports]

        # The activation would scale a hidden state to unit length.
        message = self._engine.add(key, token_ids, PoolingParams(task="embed", use_activation=False))
        if message is not None:
            raise BackendError(f"vLLM scorer: a path of {len(token_ids)} tokens must be readable: {message}")
        self.num_open += 1

    @torch.inference_mode()
    def step(self) -> list[tuple[str, Float[np.ndarray, "F"]]]:
        """Run one step of the engine and return keys and outputs of the sequences that it finished.

        Raises:
            BackendError: If the engine failed.
        """
        finished = [output for output in self._engine.step() if output.finished]
        if not finished:
            return []
        self.num_open -= len(finished)
        self.read_tokens += sum(len(output.prompt_token_ids) for output in finished)
        self.cached_tokens += sum(output.num_cached_tokens or 0 for output in finished)
        outputs = self._head(torch.stack([output.outputs.data.flatten() for output in finished]).float()).numpy()
        return list(zip((output.request_id for output in finished), outputs, strict=True))

    def outputs(self, paths: Sequence[tuple[int, ...]], indices: Sequence[np.ndarray]) -> list[Float[np.ndarray, "T F"]]:
        """Return the outputs of every path at some of its tokens. A beginning that several paths share is read once.

        Raises:
            BackendError: If the engine failed or refuses a path.
        """
        wanted = [[path[: index + 1] for index in index_list] for path, index_list in zip(paths, indices, strict=True)]
        names = [[_digest(sequence) for sequence in sequences] for sequences in wanted]
        unread = {name: sequence for pair in zip(names, wanted, strict=True) for name, sequence in zip(*pair, strict=True)}
        for name in unread:
            if name not in self._kept:
                self.add(name, unread[name])
        found = {name: self._kept[name] for name in unread if name in self._kept}
        while self.num_open:
            found.update(self.step())
        self._keep(found)
        shape = (-1, out_features(self._head))
        return [np.array([found[name] for name in part]).reshape(shape) for part in names]

    def _keep(self, outputs: dict[str, np.ndarray]) -> None:
        """Remember outputs: reading the end of an earlier step again would forward the tokens after its last whole block."""
        for name, output in outputs.items():
            self._kept.pop(name, None)
            self._kept[name] = output
        forget_oldest(self._kept, _MAX_KEPT)

    def clear(self) -> None:
        """Forget everything cached, and requests in flight."""
        self._engine.reset()
        self._kept.clear()
        self.num_open = 0


class VLLMLogps:
    """``TokenLogps`` of a language model on vLLM.

    vLLM computes them for the tokens that it forwards and leaves out those that it finds in its cache. So a path is forwarded as a whole,
    unless most of it lies before the requested tokens, as in a search.
    """

    def __init__(self, engine: VLLMEngine) -> None:
        """Serve an engine of task ``generate``. Nothing else may use the engine."""
        self._engine = engine
        self.forwarded_tokens = 0
        """Tokens that went through the model so far."""

    @property
    def max_positions(self) -> int:
        """Maximum tokens of a sequence: vLLM samples one more token after it."""
        return self._engine.context - 1

    @property
    def vocab_size(self) -> int:
        """Ids that the model knows."""
        return self._engine.vocab_size

    def logps(self, paths: Sequence[tuple[int, ...]], starts: Sequence[int]) -> list[Float[np.ndarray, "T"]]:
        """Return the log-probability, in nats, of every path's tokens from ``starts`` on, each >= 1, given all tokens before it.

        Raises:
            BackendError: If the engine failed or refuses a path.
        """
        for number, (path, start) in enumerate(zip(paths, starts, strict=True)):
            self._ask(number, path, cached=start > len(path) // 2)
        found: dict[int, np.ndarray] = {}
        while len(found) < len(paths):
            for output in self._engine.step():
                if not output.finished:
                    continue
                number, num_cached = int(output.request_id.split()[0]), output.num_cached_tokens or 0
                path, start = paths[number], starts[number]
                self.forwarded_tokens += len(path) - num_cached
                if num_cached >= start:
                    # The token before the first requested one was not forwarded.
                    self._ask(number, path, cached=False)
                    continue
                entries = zip(output.prompt_logprobs[start:], path[start:], strict=True)
                found[number] = np.array([entry[token].logprob for entry, token in entries])
        return [found[number] for number in range(len(paths))]

    def _ask(self, number: int, path: Sequence[int], *, cached: bool) -> None:
        from vllm.sampling_params import SamplingParams  # pyright: ignore[reportMissingImports]

        params = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, skip_reading_prefix_cache=not cached, skip_clone=True
        )
        message = self._engine.add(f"{number} {'cached' if cached else 'whole'}", path, params)
        if message is not None:
            raise BackendError(f"vLLM reader: a path of {len(path)} tokens must be readable: {message}")

    def clear(self) -> None:
        """Forget everything cached, and requests in flight."""
        self._engine.reset()


@dataclass(kw_only=True, slots=True, eq=False)
class _Job:
    """An open request and the scores that have come."""

    request: ScoreRequest
    scores: list[list[float | None]]
    num_open: int = 0


class VLLMStepScorer:
    """A ``StepScorer`` that reads a value head, or two classes, at the last token of each step, on vLLM.

    A step without tokens scores as None. So does a step that ends outside the model's context, contains an id that the model does not have,
    comes after such a step, or gets an output that is not a number.
    """

    def __init__(self, model: VLLMOutputs, spec: PRMSpec, *, entropy_penalty: float = 0.0) -> None:
        """Read scores off a model that is served already.

        Args:
            model: The model.
            spec: How it is read.
            entropy_penalty: As for ``scores_of``.

        Raises:
            ConfigError: If the spec reads text instead of the policy's tokens, or there are no bins with an entropy.
        """
        check_entropy_penalty(entropy_penalty, spec)
        check_reads_tokens(spec)
        self.spec, self._entropy_penalty = spec, entropy_penalty
        self._model = model
        self._jobs: dict[int, _Job] = {}
        self._places: dict[str, tuple[_Job, int, int]] = {}
        self._done: list[ScoreResult] = []

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far."""
        return self._model.forwarded_tokens

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        """Queue requests.

        Raises:
            BackendError: If a ticket is open already.
        """
        for request in requests:
            check_ticket(request.ticket, self._jobs)
            job = _Job(request=request, scores=[[None] * len(branch) for branch in request.branches])
            self._jobs[request.ticket] = job
            if known_ids(request.prefix_ids, self._model.vocab_size) and request.prefix_ids:
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
            self._take(self._model.step())
        done, self._done = self._done, []
        for result in done:
            del self._jobs[result.ticket]
        return done

    def _read_branch(self, job: _Job, number: int) -> None:
        """Queue the end of every step that the model can read."""
        branch = job.request.branches[number]
        ends = accumulate((len(step) for step in branch), initial=len(job.request.prefix_ids))
        next(ends)
        path = job.request.prefix_ids + tuple(token for step in branch for token in step)
        for index, (step, end) in enumerate(zip(branch, ends, strict=True)):
            if end > self._model.max_positions or not known_ids(step, self._model.vocab_size):
                return
            if not step:
                continue
            key = f"{job.request.ticket}.{number}.{index}"
            self._model.add(key, path[:end])
            self._places[key] = (job, number, index)
            job.num_open += 1

    def _take(self, finished: Sequence[tuple[str, Float[np.ndarray, "F"]]]) -> None:
        if not finished:
            return
        scores = scores_of(np.array([outputs for _, outputs in finished]), self.spec, entropy_penalty=self._entropy_penalty).tolist()
        for (key, _), score in zip(finished, scores, strict=True):
            job, number, index = self._places.pop(key)
            job.scores[number][index] = None if math.isnan(score) else score
            job.num_open -= 1
            if not job.num_open:
                self._finish(job)

    def _finish(self, job: _Job) -> None:
        self._done.append(ScoreResult(ticket=job.request.ticket, scores=tuple(tuple(branch) for branch in job.scores)))


def _digest(token_ids: Sequence[int]) -> str:
    return hashlib.blake2b(np.asarray(token_ids, dtype=np.int64).tobytes(), digest_size=16).hexdigest()
