"""Step sampling on a vLLM engine in this process: token ids in, token ids and log-probabilities out.

Every sample is a separate sequence with its own seed. Samples of one prefix find its keys and values in vLLM's prefix cache, which also
keeps the finished steps. Tokens are read as they come and judged by the same rules as in the transformers backend, so a step ends at the
same token. A sequence whose solution continues after the requested steps is aborted.

Tokens that must not be sampled are rare where a model is trained, and a ban of a thousand ids costs vLLM more than the rest of a request.
So sequences begin without a ban. One that draws such a token goes on as a new sequence, with the ban, from the token before. A token is
then drawn from what the model gives to the others, as if the ban had been there before: rejection sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from stepladder.interfaces import StepRequest, StepResult, TokenCounts, check_ticket
from stepladder.lm.loading import load_model_settings, load_tokenizer
from stepladder.lm.sampling import stream_keys
from stepladder.lm.settings import EngineSettings
from stepladder.lm.vllm_engine import NewTokens, VLLMEngine
from stepladder.policy.backends.steps import OpenSample, StepRules, refusal, refused
from stepladder.policy.prompts import StepFormat

_MAX_BIAS = 1024
"""Ids that vLLM can keep from being sampled; special tokens come first, and padding of the vocabulary behind."""
_MAX_REDRAWS = 16
"""Times that a sample is drawn again because of tokens that must not be sampled, before it fails."""
_MAX_STOPS = 64
"""Closing tokens that the engine itself stops at. It looks through them for every token, so a long list would cost more than it saves."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Job:
    """An open request."""

    request: StepRequest
    samples: list[OpenSample] = field(default_factory=list)
    open_samples: int = 0


@dataclass(kw_only=True, slots=True, eq=False)
class _Sequence:
    """A sample on the engine."""

    job: _Job
    sample: OpenSample
    seed: int
    """Seed of its random numbers."""
    begun: bool = False
    """Whether a first token has come."""
    redraws: int = 0
    """Sequences that this one takes up, because they drew tokens that must not be sampled."""


class _Taken(Enum):
    """Whether a sequence goes on after its newest tokens."""

    GOES_ON = auto()
    OVER = auto()
    BANNED = auto()
    """It drew a token that must not be sampled."""


def _continued(sequence: _Sequence) -> _Sequence:
    """Return the sequence that continues a sample whose last token was refused, with random numbers of its own."""
    redraws = sequence.redraws + 1
    return replace(sequence, seed=_seeds(sequence.seed, redraws)[-1], begun=False, redraws=redraws)


def _seeds(seed: int, count: int) -> list[int]:
    """Return seeds of so many sequences. vLLM takes signed ones; the lowest bit is given up."""
    return (stream_keys(seed, count) >> np.uint64(1)).tolist()


class VLLMPolicy:
    """A ``Policy`` on vLLM.

    Log-probabilities are the model's at temperature 1. Special tokens other than end-of-sequence, and ids that the tokenizer does not
    know, are never sampled. Samples depend on their seeds; they are not those of the transformers backend, which
    draws its numbers otherwise.
    """

    def __init__(self, engine: VLLMEngine, tokenizer: PreTrainedTokenizerBase, step_format: StepFormat, *settings: Any) -> None:
        """Serve an engine of task ``generate``.

        Args:
            engine: The engine; nothing else may use it meanwhile.
            tokenizer: The model's tokenizer.
            step_format: Where steps and solutions end.
            settings: Configurations that name end-of-sequence tokens, as for ``end_tokens``.
        """
        self._engine = engine
        self._rules = StepRules(tokenizer, step_format, *settings, vocab_size=engine.vocab_size)
        self._banned = frozenset(self._rules.never_sampled)
        self._prepared: dict[tuple[float, bool, bool], Any] = {}
        """Requests to copy, by temperature, whether they stop at tokens that close a step, and whether they ban tokens."""
        closing = self._rules.boundary.closes.nonzero()[0].tolist()
        self._closing = closing if len(closing) <= _MAX_STOPS else []
        self._jobs: dict[int, _Job] = {}
        self._running: dict[str, _Sequence] = {}
        self._done: list[StepResult] = []
        self._is_interrupted = False
        self._num_begun = 0
        self.generated_tokens = 0
        """Tokens sampled so far."""
        self.prefix_tokens = 0
        """Tokens of the prefixes of all sequences that began so far; every sample counts its own."""
        self.cached_tokens = 0
        """Tokens of these that were found in the prefix cache."""
        self.refused_tokens = 0
        """Tokens of ``generated_tokens`` that must not be sampled, and were drawn again."""

    @classmethod
    def from_pretrained(
        cls, source: str | Path, step_format: StepFormat | None = None, *, settings: EngineSettings | None = None
    ) -> "VLLMPolicy":
        """Start an engine on a directory; a hub id needs the format to be given.

        Raises:
            CheckpointError: If a part is missing, or vLLM cannot serve the model.
            ConfigError: If vLLM is not installed or an option is unknown.
        """
        settings = EngineSettings() if settings is None else settings
        step_format = StepFormat.load(source) if step_format is None else step_format
        tokenizer = load_tokenizer(source, trust_remote_code=settings.trust_remote_code)
        ends = load_model_settings(source, trust_remote_code=settings.trust_remote_code)
        return cls(VLLMEngine(source, task="generate", settings=settings), tokenizer, step_format, *ends)

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far: prefixes that were not cached, and all sampled tokens but each sequence's last."""
        return self.prefix_tokens - self.cached_tokens + self.generated_tokens - self._num_begun

    @property
    def cached_share(self) -> float | None:
        """Share of the prefix tokens that were found in the cache, in [0, 1]; None before the first."""
        return self.cached_tokens / self.prefix_tokens if self.prefix_tokens else None

    @property
    def token_counts(self) -> TokenCounts:
        """What went through the model so far."""
        return TokenCounts(
            prefix_tokens=self.prefix_tokens,
            cached_tokens=self.cached_tokens,
            generated_tokens=self.generated_tokens,
            forwarded_tokens=self.forwarded_tokens,
        )

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close()

    def submit(self, requests: Sequence[StepRequest]) -> None:
        """Queue requests; one that cannot be served becomes a result with ERROR steps.

        Raises:
            BackendError: If a ticket is open already.
        """
        for request in requests:
            check_ticket(request.ticket, self._jobs)
            self._jobs[request.ticket] = job = _Job(request=request)
            message = refusal(request, vocab_size=self._engine.vocab_size, context=self._engine.context)
            if message is not None:
                self._done.append(refused(request, message))
            else:
                self._begin(job)

    def collect(self) -> list[StepResult]:
        """Return finished results, at least one; empty only when nothing is in flight.

        Raises:
            BackendError: If the engine failed, or the model's output is not a number.
        """
        while not self._done and self._running and not self._is_interrupted:
            self._advance()
        self._is_interrupted = False
        done, self._done = self._done, []
        for result in done:
            del self._jobs[result.ticket]
        return done

    def interrupt(self) -> None:
        """Make a ``collect`` that runs, or the next one, return after a step of the engine, maybe with nothing. Safe from any thread."""
        self._is_interrupted = True

    def cancel(self, tickets: Sequence[int]) -> None:
        """Drop open requests: their sequences end at once, and no results follow."""
        dropped = set(tickets)
        self._done = [result for result in self._done if result.ticket not in dropped]
        keys = [key for key, sequence in self._running.items() if sequence.job.request.ticket in dropped]
        for key in keys:
            del self._running[key]
        for ticket in dropped:
            del self._jobs[ticket]
        if keys:
            self._engine.abort(keys)

    def _begin(self, job: _Job) -> None:
        request = job.request
        for seed in _seeds(request.seed, request.num_samples):
            sample = OpenSample(self._rules, request, context=self._engine.context)
            job.samples.append(sample)
            self._start(_Sequence(job=job, sample=sample, seed=seed))
        job.open_samples = request.num_samples

    def _start(self, sequence: _Sequence) -> None:
        """Queue a sequence that continues its sample."""
        request, sample = sequence.job.request, sequence.sample
        so_far = sample.token_ids
        left = request.max_step_tokens * request.max_steps - len(so_far)
        key = self._engine.sample(
            (*request.prefix_ids, *so_far),
            self._prepare(request.temperature, stops=request.max_steps == 1, bans=sequence.redraws > 0),
            seed=sequence.seed,
            max_tokens=min(sample.room - len(so_far), left),
        )
        self._running[key] = sequence

    def _prepare(self, temperature: float, *, stops: bool, bans: bool) -> Any:
        known = self._prepared.get((temperature, stops, bans))
        if known is None:
            from vllm.sampling_params import RequestOutputKind, SamplingParams  # pyright: ignore[reportMissingImports]

            params = SamplingParams(
                temperature=temperature,
                seed=0,
                max_tokens=1,
                logprobs=0,
                logit_bias=dict.fromkeys(self._rules.never_sampled[:_MAX_BIAS], float("-inf")) if bans else None,
                ignore_eos=True,
                stop_token_ids=self._rules.stop_ids + (self._closing if stops else []),
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            known = self._prepared[temperature, stops, bans] = self._engine.prepare(params)
        return known

    def _advance(self) -> None:
        """Run one step of the engine and judge what it sampled."""
        ended, again = [], []
        for new in self._engine.sample_step():
            sequence = self._running.get(new.key)
            # An engine that runs ahead may still report on a sequence that was aborted.
            if sequence is None:
                continue
            taken = self._take(sequence, new)
            if taken is _Taken.GOES_ON:
                continue
            del self._running[new.key]
            if new.finish_reason is None:
                ended.append(new.key)
            if taken is _Taken.BANNED:
                again.append(sequence)
                continue
            sequence.job.open_samples -= 1
            if not sequence.job.open_samples:
                self._finish(sequence.job)
        if ended:
            self._engine.abort(ended)
        for sequence in again:
            self._start(_continued(sequence))

    def _take(self, sequence: _Sequence, new: NewTokens) -> "_Taken":
        """Feed new tokens to a sample and say whether its sequence goes on."""
        sample = sequence.sample
        if not sequence.begun:
            sequence.begun = True
            self._num_begun += 1
            self.prefix_tokens += len(sequence.job.request.prefix_ids) + len(sample.token_ids)
            self.cached_tokens += new.cached_tokens
        for token, logp in zip(new.token_ids, new.logps, strict=True):
            self.generated_tokens += 1
            if token in self._banned and sequence.redraws < _MAX_REDRAWS:
                self.refused_tokens += 1
                return _Taken.BANNED
            if sample.feed(token, logp):
                return _Taken.OVER
        if new.finish_reason is None:
            return _Taken.GOES_ON
        sample.fail(f"vLLM ended the sequence within a step: {new.finish_reason}")
        return _Taken.OVER

    def _finish(self, job: _Job) -> None:
        self._done.append(StepResult(ticket=job.request.ticket, samples=tuple(tuple(sample.steps) for sample in job.samples)))
