"""Step sampling on a server that speaks OpenAI's completions protocol: vLLM, SGLang, llama.cpp and others.

Every step of every sample is one HTTP request with a seed of its own; the server's prefix cache keeps what they share. Requests run on a
thread of their own, so ``submit`` returns at once. A request that the server refuses or cannot finish is data. A server that stays away is
an exception, so that a search stops, keeps finished work, and can continue.
"""

import queue
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from stepladder.errors import BackendError
from stepladder.interfaces import StepRequest, StepResult, TokenCounts, check_ticket
from stepladder.policy.backends.completion_replies import Completion, Json, ReplyError, read_completion
from stepladder.policy.backends.completion_server import CompletionServer, RequestFailed
from stepladder.policy.backends.steps import OpenSample, StepRules, refusal, refused
from stepladder.policy.prompts import StepFormat
from stepladder.types import derive_seed

_MAX_BIAS = 1024
"""Ids that the servers keep from being sampled in one request."""
_BAN = -100.0
"""The lowest bias that the protocol knows."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Job:
    """An open request."""

    request: StepRequest
    samples: list[OpenSample]
    open_samples: int
    tasks: list[Future[Any]] = field(default_factory=list)


class OpenAIPolicy:
    """A ``Policy`` on a completions server.

    The tokenizer must be the served model's. The server's token ids are used if it returns them. Otherwise its text is tokenised here, and
    must give the same number of tokens and the same text back.
    """

    def __init__(
        self,
        server: CompletionServer,
        tokenizer: PreTrainedTokenizerBase,
        step_format: StepFormat,
        *settings: Any,
        vocab_size: int,
        context: int | None = None,
    ) -> None:
        """Serve requests through a connection, which several policies may share.

        Args:
            server: The connection.
            tokenizer: The model's tokenizer.
            step_format: Where steps and solutions end.
            settings: Configurations that name end-of-sequence tokens, as for ``end_tokens``.
            vocab_size: Ids that the model knows.
            context: Tokens that the model can hold; the server's own limit is kept, too.

        Raises:
            BackendError: If neither says how many tokens the model can hold.
        """
        known = [limit for limit in (context, server.context) if limit is not None]
        if not known:
            raise BackendError(
                f"{server.url}: the context must be known: neither the server nor the model's configuration says it -- give it"
            )
        self._server, self._context = server, min(known)
        self._tokenizer = tokenizer
        self._rules = StepRules(tokenizer, step_format, *settings, vocab_size=vocab_size)
        self._fixed = _fixed_fields(server, self._rules)
        self._jobs: dict[int, _Job] = {}
        self._arrived: queue.SimpleQueue[tuple[_Job, BaseException | None] | None] = queue.SimpleQueue()
        """Samples that are over, and None for an interrupt."""
        self._done: list[StepResult] = []
        self.generated_tokens = 0
        """Tokens taken into steps so far."""
        self.prefix_tokens = 0
        """Tokens of the prefixes of all HTTP requests that were answered; every sample and step counts its own."""
        self.cached_tokens = 0
        """Tokens of these that the server found in its cache; 0 where it does not tell (vLLM: ``--enable-prompt-tokens-details``)."""
        self._answered = 0
        self._server_tells = False

    @property
    def token_counts(self) -> TokenCounts | None:
        """What went through the server's model for us so far; None while it has not told what it had cached."""
        if not self._server_tells:
            return None
        return TokenCounts(
            prefix_tokens=self.prefix_tokens,
            cached_tokens=self.cached_tokens,
            generated_tokens=self.generated_tokens,
            forwarded_tokens=self.prefix_tokens - self.cached_tokens + self.generated_tokens - self._answered,
        )

    def submit(self, requests: Sequence[StepRequest]) -> None:
        """Queue requests; one that cannot be served becomes a result with ERROR steps.

        Raises:
            BackendError: If a ticket is open already.
        """
        for request in requests:
            check_ticket(request.ticket, self._jobs)
            message = refusal(request, vocab_size=self._rules.vocab_size, context=self._context)
            samples = [] if message else [OpenSample(self._rules, request, context=self._context) for _ in range(request.num_samples)]
            self._jobs[request.ticket] = job = _Job(request=request, samples=samples, open_samples=len(samples))
            if message is not None:
                self._done.append(refused(request, message))
            for number in range(len(samples)):
                task = self._server.run(self._grow(job, number))
                job.tasks.append(task)
                task.add_done_callback(lambda task, job=job: self._arrived.put((job, _error(task))))

    def collect(self) -> list[StepResult]:
        """Return finished results, at least one; empty only when nothing is in flight.

        Raises:
            BackendError: If the server is gone, refuses every request, or its output is not a number.
        """
        while len(self._jobs) > len(self._done) and not (self._done and self._arrived.empty()):
            arrived = self._arrived.get()
            if arrived is None:
                break
            self._take(*arrived)
        done, self._done = self._done, []
        for result in done:
            del self._jobs[result.ticket]
        return done

    def interrupt(self) -> None:
        """Make a ``collect`` that waits, or the next one, return, maybe with nothing. Safe from any thread."""
        self._arrived.put(None)

    def cancel(self, tickets: Sequence[int]) -> None:
        """Drop open requests: their HTTP requests are cancelled, and no results follow."""
        dropped = set(tickets)
        self._done = [result for result in self._done if result.ticket not in dropped]
        for ticket in dropped:
            for task in self._jobs.pop(ticket).tasks:
                task.cancel()

    def _take(self, job: _Job, error: BaseException | None) -> None:
        """Note that a sample of a job is over."""
        if self._jobs.get(job.request.ticket) is not job:
            # It was cancelled.
            return
        if error is not None:
            for task in [task for other in self._jobs.values() for task in other.tasks]:
                task.cancel()
            raise error
        job.open_samples -= 1
        if job.open_samples == 0:
            self._done.append(StepResult(ticket=job.request.ticket, samples=tuple(tuple(sample.steps) for sample in job.samples)))

    # ------------------------------------------------------------------------------------------- what runs on the connection's thread

    async def _grow(self, job: _Job, number: int) -> None:
        """Ask for the steps of a sample, one after the other."""
        request, sample = job.request, job.samples[number]
        while not sample.finished:
            prefix = [*request.prefix_ids, *sample.token_ids]
            payload = {
                **self._fixed,
                "prompt": prefix,
                "max_tokens": sample.tokens_left,
                "temperature": request.temperature,
                # A signed 64-bit number, different for every request: a step does not depend on how earlier steps were requested.
                "seed": derive_seed(request.seed, number, len(sample.token_ids)),
            }
            try:
                reply = await self._server.complete(payload)
                self._feed(sample, self._read(reply, len(prefix), payload["max_tokens"]), len(prefix))
            except RequestFailed as failure:
                sample.fail(str(failure))

    def _read(self, reply: Json, num_prefix: int, max_tokens: int) -> Completion:
        try:
            return read_completion(reply, self._tokenizer, vocab_size=self._rules.vocab_size, num_prompt=num_prefix, max_tokens=max_tokens)
        except ReplyError as error:
            raise RequestFailed(f"the server's answer cannot be read: {error}") from error

    def _feed(self, sample: OpenSample, answer: Completion, num_prefix: int) -> None:
        """Take an answer's tokens into a sample, up to where the sample ends."""
        self._answered += 1
        self.prefix_tokens += num_prefix
        if answer.cached_tokens is not None:
            self._server_tells = True
            self.cached_tokens += answer.cached_tokens
        for token, logp in answer.tokens:
            self.generated_tokens += 1
            if sample.feed(token, logp):
                return
        if answer.stopped and sample.open_step and self._server.settings.stop == "client":
            sample.end_here()
        elif not answer.tokens or (answer.stopped and sample.open_step):
            raise RequestFailed("the server must show the token it stopped at: it does not -- try policy.openai.stop=client")


def _fixed_fields(server: CompletionServer, rules: StepRules) -> dict[str, Any]:
    """Return what all requests to a server share. Servers pass over fields that they do not know."""
    fields: dict[str, Any] = {
        "model": server.model,
        "n": 1,
        "logprobs": 1,
        # Servers fill in the sampling settings that a checkpoint recommends unless they are given.
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        # Token ids: vLLM has two ways, by age.
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "skip_special_tokens": False,
        "stop_token_ids": rules.stop_ids,
    }
    if rules.never_sampled:
        fields["logit_bias"] = {str(i): _BAN for i in rules.never_sampled[:_MAX_BIAS]}
    if server.settings.stop == "server":
        # The stop text in the answer: vLLM's name for it, and SGLang's.
        stops = [rules.format.step_end] if rules.rule.name == "text" else []
        stops += [] if rules.rule.thinking_end is None else [rules.rule.thinking_end]
        fields |= {"stop": stops, "include_stop_str_in_output": True, "no_stop_trim": True}
    return fields


def _error(task: "Future[Any]") -> BaseException | None:
    return BackendError("the connection was closed while requests were in flight") if task.cancelled() else task.exception()
