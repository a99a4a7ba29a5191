"""Step sampling on a server that speaks OpenAI's completions protocol: vLLM, SGLang, llama.cpp and others.

Every step of every sample is one HTTP request with a seed of its own; the server's prefix cache keeps what they share. Requests run on a
thread of their own, so ``submit`` returns at once. A request that the server refuses or cannot finish is data; a server that stays away
is an exception, so that a search stops, keeps what is finished, and can be continued.
"""

import asyncio
import queue
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2
from transformers import PreTrainedTokenizerBase

from stepladder.errors import BackendError
from stepladder.interfaces import StepRequest, StepResult, TokenCounts, check_ticket
from stepladder.policy.backends.steps import OpenSample, StepRules, refusal, refused
from stepladder.policy.prompts import StepFormat
from stepladder.types import derive_seed

_MAX_DELAY_S = 30.0
_MAX_BIAS = 1024
"""Ids that the servers keep from being sampled in one request."""
_BAN = -100.0
"""The lowest bias that the protocol knows."""
_MESSAGE_CHARACTERS = 300

_RETRY_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Answers that another try may better."""
_ABSENT_STATUS = frozenset({502, 503, 504})
"""Answers of a proxy whose server is not there."""
_WRONG_STATUS = frozenset({401, 403, 404})
"""Answers that every request would get: wrong key, address or model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """How to reach a server."""

    url: str
    """Where the protocol begins, such as ``http://127.0.0.1:8000/v1``."""
    model: str | None = None
    """Name of the model there; None takes the only one it serves."""
    api_key: str | None = field(default=None, repr=False)
    """Sent as bearer token."""
    concurrency: int = 64
    """Requests in flight at once, >= 1."""
    timeout_s: float = 600.0
    """Seconds until a request that was not answered is tried again."""
    retries: int = 6
    """Further tries of a request that failed in a way that may pass, >= 0."""
    backoff_s: float = 0.5
    """Mean delay before the first of them; each next one doubles it, up to 30 s, and half of it is jitter drawn from the request's seed."""
    stop: Literal["server", "client"] = "server"
    """``server`` has the server stop at the end of a step and show the token it stopped at (vLLM, SGLang). ``client`` cuts the answer here:
    for servers that hide that token (llama.cpp); what they sample behind the step is lost."""


class _RequestFailed(Exception):
    """A request that is given up; the message goes to its sample."""


class CompletionServer:
    """A connection to a server: a client and an event loop on a thread of their own."""

    def __init__(self, settings: ServerSettings) -> None:
        """Connect, and ask which model is served.

        Raises:
            BackendError: If the server does not answer, or does not serve the model.
        """
        self.settings = settings
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        self._gate = asyncio.Semaphore(settings.concurrency)
        headers = {} if settings.api_key is None else {"Authorization": f"Bearer {settings.api_key}"}
        self._client = httpx2.AsyncClient(
            base_url=settings.url,
            headers=headers,
            timeout=httpx2.Timeout(settings.timeout_s, pool=None),
            limits=httpx2.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
        )
        self._hang_up = weakref.finalize(self, _hang_up, self._loop, thread, self._client)
        try:
            served = self.run(self._models()).result()
            self.model, self.context = self._choose(served)
        except BaseException:
            self.close()
            raise

    def run(self, coroutine: Any) -> "Future[Any]":
        """Start a coroutine on the connection's thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        """Drop open requests and end the thread; also done when the connection is forgotten and when the process ends."""
        self._hang_up()

    async def complete(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a completions request.

        Raises:
            BackendError: If the server is not there, or refuses every request.
            _RequestFailed: If it refuses this one.
        """
        async with self._gate:
            return await self._ask("POST", "completions", payload, seed=payload["seed"])

    async def _models(self) -> list[dict[str, Any]]:
        try:
            answer = await self._ask("GET", "models", None, seed=0)
            return list(answer["data"])
        except (_RequestFailed, KeyError, TypeError) as error:
            raise BackendError(f"{self.settings.url}/models: must list the served models: {error} -- check the address") from error

    def _choose(self, served: list[dict[str, Any]]) -> tuple[str, int | None]:
        """Return the model's name and its context in tokens, None where the server does not say."""
        names = [entry["id"] for entry in served]
        wanted = self.settings.model
        if (wanted is None and len(names) != 1) or (wanted is not None and wanted not in names):
            raise BackendError(f"{self.settings.url}: must serve the model {wanted!r}: it serves {names} -- set policy.openai.model")
        entry = served[0 if wanted is None else names.index(wanted)]
        context = entry.get("max_model_len", (entry.get("meta") or {}).get("n_ctx_train"))
        return entry["id"], context

    async def _ask(self, verb: str, path: str, payload: dict[str, Any] | None, *, seed: int) -> dict[str, Any]:
        """Send a request until it is answered or the tries are spent."""
        absent, told = True, ""
        for attempt in range(self.settings.retries + 1):
            if attempt:
                await asyncio.sleep(self._delay(attempt - 1, seed))
            try:
                response = await self._client.request(verb, path, json=payload)
            except (httpx2.ReadTimeout, httpx2.WriteTimeout):
                absent, told = False, f"no answer within {self.settings.timeout_s:g} s"
                continue
            except httpx2.TransportError as error:
                absent, told = True, f"{type(error).__name__} {error}".strip()
                continue
            if response.status_code == 200:
                return _json(response)
            told = f"status {response.status_code}: {response.text[:_MESSAGE_CHARACTERS]}"
            if response.status_code in _WRONG_STATUS:
                raise BackendError(f"{self.settings.url}/{path}: must accept our requests: {told} -- check address, key and model")
            if response.status_code not in _RETRY_STATUS:
                raise _RequestFailed(f"the server refused the request: {told}")
            absent = response.status_code in _ABSENT_STATUS
        tries = self.settings.retries + 1
        if absent:
            raise BackendError(
                f"{self.settings.url}: the server must be there: {told} in the last of {tries} tries -- start it again and repeat the "
                "command: what is finished is kept"
            )
        raise _RequestFailed(f"the server did not answer in {tries} tries: {told}")

    def _delay(self, attempt: int, seed: int) -> float:
        """Return the seconds before try ``attempt + 1``: the jitter keeps requests that failed together from returning together."""
        jitter = 0.5 + derive_seed("retry", seed, attempt) / 2.0**63
        return min(self.settings.backoff_s * 2.0**attempt * jitter, _MAX_DELAY_S)


def _hang_up(loop: asyncio.AbstractEventLoop, thread: threading.Thread, client: Any) -> None:
    """Cancel what runs on a loop, close its client and end its thread."""

    async def shut() -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.aclose()

    if threading.current_thread() is thread:
        # The garbage collector found a forgotten connection while its own thread was running; nothing is in flight then.
        loop.call_soon(loop.stop)
        return
    asyncio.run_coroutine_threadsafe(shut(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@dataclass(kw_only=True, slots=True, eq=False)
class _Job:
    """An open request."""

    request: StepRequest
    samples: list[OpenSample]
    open_samples: int
    tasks: list[Future[Any]] = field(default_factory=list)


class OpenAIPolicy:
    """A ``Policy`` on a completions server.

    The tokenizer must be the served model's. Token ids come from the server where it gives them; else its text is tokenised here and must
    give as many tokens, and the same text back.
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
            raise BackendError(f"{server.settings.url}: the context must be known: the server does not tell it -- give it")
        self._server, self._context = server, min(known)
        self._tokenizer = tokenizer
        self._rules = StepRules(tokenizer, step_format, *settings, vocab_size=vocab_size)
        self._fixed = _fixed_fields(server, self._rules)
        self._jobs: dict[int, _Job] = {}
        self._arrived: queue.SimpleQueue[tuple[_Job, BaseException | None]] = queue.SimpleQueue()
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
            self._take(*self._arrived.get())
        done, self._done = self._done, []
        for result in done:
            del self._jobs[result.ticket]
        return done

    def _take(self, job: _Job, error: BaseException | None) -> None:
        """Note that a sample of a job is over."""
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
                # A signed 64-bit number, of its own for every request: a step does not depend on how the ones before it were asked for.
                "seed": derive_seed(request.seed, number, len(sample.token_ids)),
            }
            try:
                self._feed(sample, await self._server.complete(payload), len(prefix))
            except _RequestFailed as failure:
                sample.fail(str(failure))

    def _feed(self, sample: OpenSample, answer: dict[str, Any], num_prefix: int) -> None:
        """Take an answer's tokens into a sample, up to where the sample ends."""
        try:
            choice = answer["choices"][0]
            tokens = _tokens(choice, self._tokenizer)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _RequestFailed(f"the server's answer cannot be read: {type(error).__name__}: {error}") from error
        self._count(answer.get("usage") or {}, num_prefix)
        for token, logp in tokens:
            if not 0 <= token < self._rules.vocab_size:
                raise _RequestFailed(f"the server's ids must be below {self._rules.vocab_size}: got {token}")
            self.generated_tokens += 1
            if sample.feed(token, logp):
                return
        if choice.get("finish_reason") == "stop" and sample.open_step and self._server.settings.stop == "client":
            sample.end_here()
        elif not tokens or (choice.get("finish_reason") == "stop" and sample.open_step):
            raise _RequestFailed("the server must show the token it stopped at: it does not -- try policy.openai.stop=client")

    def _count(self, usage: dict[str, Any], num_prefix: int) -> None:
        details = usage.get("prompt_tokens_details") or {}
        self._answered += 1
        self._server_tells |= "cached_tokens" in details
        self.prefix_tokens += num_prefix
        self.cached_tokens += details.get("cached_tokens") or 0


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
        fields |= {"stop": [rules.format.step_end], "include_stop_str_in_output": True, "no_stop_trim": True}
    return fields


def _tokens(choice: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, float]]:
    """Return the sampled ids of an answer with their log-probabilities.

    Raises:
        ValueError: If the answer does not hold them, or its text does not give them back.
    """
    logprobs = choice["logprobs"]
    if isinstance(content := logprobs.get("content"), list) and all("id" in entry for entry in content):
        return [(int(entry["id"]), float(entry["logprob"])) for entry in content]
    pieces, logps = logprobs["tokens"], logprobs["token_logprobs"]
    if choice.get("token_ids") is not None:
        ids = choice["token_ids"]
    elif all(piece.startswith("token_id:") for piece in pieces):
        ids = [int(piece.removeprefix("token_id:")) for piece in pieces]
    else:
        ids = _retokenised(choice["text"], pieces, tokenizer)
    return [(int(i), float(logp)) for i, logp in zip(ids, logps, strict=True)]


def _retokenised(text: str, pieces: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if len(ids) != len(pieces) or back != text:
        raise ValueError(f"{len(pieces)} tokens, {text!r}, must come back from the local tokenizer: got {len(ids)}, {back!r}")
    return ids


def _json(response: Any) -> dict[str, Any]:
    try:
        return response.json()
    except ValueError as error:
        raise _RequestFailed(f"the server's answer must be JSON: {error}") from error


def _error(task: "Future[Any]") -> BaseException | None:
    return BackendError("the connection was closed while requests were in flight") if task.cancelled() else task.exception()
