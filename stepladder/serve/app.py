"""The routes: chat, completions, models, health and metrics."""

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from secrets import randbits
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from stepladder import __version__
from stepladder.errors import ConfigError, right_name
from stepladder.loops.assembly.search import choose_search
from stepladder.loops.config.run import Config
from stepladder.mcts.search_method import SearchMethod
from stepladder.serve.errors import ApiError
from stepladder.serve.exchange import ClientGone, Exchange
from stepladder.serve.guards import HAS_KEY, SERVED_PATHS
from stepladder.serve.model_names import all_model_names, read_model_name
from stepladder.serve.replies import (
    FINGERPRINT,
    Shown,
    before_stop,
    chat_logprobs,
    completion_logprobs,
    new_id,
    progress_facts,
    search_facts,
    shown_part,
    usage,
    within,
)
from stepladder.serve.requests import ChatRequest, CommonFields, CompletionRequest, SearchFields
from stepladder.serve.search_service import Answer, Ask, Prompt, SearchService, Snapshot
from stepladder.types import Budget, derive_seed

KEEP_ALIVE_S = 15.0
"""Seconds without an event after which a stream sends a comment, so that proxies keep it open."""

_MAX_SEARCHES = 256
"""Searches whose method and caps are remembered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds on what one request may ask for."""

    max_choices: int = 64
    """Searches of one request: prompts times ``n``."""
    max_simulations: int = 4096
    """Simulations of one search."""
    max_samples: int = 1024
    """Samples of one wave of a search, and largest whole number among a method's settings."""
    max_tokens: int = 1_000_000
    """Generated tokens of one search."""
    max_seconds: float = 600.0
    """Deadline of a request, which is also the default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """The search of requests that name none."""

    config: Config
    """Configuration of the models."""
    method: str | None = None
    """Search method; None is that of the configuration, as are the next three."""
    simulations: int | None = None
    """Cap on simulations."""
    tokens: int | None = None
    """Cap on generated tokens."""
    options: dict[str, Any] | None = None
    """Settings of the method."""


class Routes:
    """The handlers of the routes."""

    def __init__(self, service: SearchService, *, served: str, defaults: Defaults, limits: Limits) -> None:
        """Answer requests with a service.

        Args:
            service: Searches.
            served: Name of the model.
            defaults: The search of requests that name none.
            limits: Bounds on requests.
        """
        self._service, self._served, self._defaults, self._limits = service, served, defaults, limits
        self._created = int(time.time())
        self._searches: dict[str, tuple[SearchMethod, Budget]] = {}

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        prompt = Prompt(messages=[message.plain() for message in body.messages])
        if body.messages[-1].role != "user":
            raise ApiError(400, "messages: the last one must be the user's", code="invalid_messages", param="messages")
        if not prompt.messages[-1]["content"].strip():
            raise ApiError(400, "messages: the last one must have text: it is empty", code="invalid_messages", param="messages")
        return await self._respond(_ChatForm(), body, [prompt], request)

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """Continue prompts."""
        prompts = [Prompt(text=each) if isinstance(each, str) else Prompt(ids=each) for each in body.prompts()]
        return await self._respond(_CompletionForm(), body, prompts, request)

    async def models(self) -> Response:
        """List the names under which the model can be asked."""
        return JSONResponse({"object": "list", "data": [self._card(name) for name in all_model_names(self._served)]})

    async def model(self, name: str) -> Response:
        """Describe one name."""
        read_model_name(name, served=self._served)
        return JSONResponse(self._card(name))

    async def health(self, request: Request) -> Response:
        """Say whether searches can be taken, and why not to those who have a key: the reason may name directories and servers."""
        problem = self._service.complaint
        facts = {"status": "ok" if problem is None else "unavailable", "open_searches": self._service.num_open}
        if problem is not None and request.scope.get(HAS_KEY):
            facts["reason"] = problem
        return JSONResponse(facts, status_code=200 if problem is None else 503)

    async def metrics(self) -> Response:
        """Return the figures of the server."""
        return PlainTextResponse(self._service.metrics.render(), media_type="text/plain; version=0.0.4")

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "stepladder"}

    async def _respond(self, form: "_Form", body: CommonFields, prompts: Sequence[Prompt], request: Request) -> Response:
        body.check_supported()
        asks, seconds = self._asks(body, prompts)
        exchange = Exchange(self._service, asks, seconds=seconds)
        reply = _Reply(form, body, seeds=[ask.seed for ask in asks], num_prompts=len(prompts))
        if body.stream:
            return _EventStream(reply, exchange, request)
        try:
            answers = await exchange.answers(request)
        except ClientGone:
            # Nobody reads this.
            return Response(status_code=499)
        finally:
            exchange.close()
        return JSONResponse(reply.whole(answers))

    def _asks(self, body: CommonFields, prompts: Sequence[Prompt]) -> tuple[list[Ask], float]:
        """Return the searches of a request, and its deadline in seconds.

        Raises:
            ApiError: If it asks for more than it may, or for an unknown search.
        """
        limits, wanted = self._limits, body.stepladder
        count = len(prompts) * (body.n or 1)
        _check_most("n", count, limits.max_choices, "searches per request")
        named = read_model_name(body.model, served=self._served)
        choice = self._chosen(wanted.method or named.method)
        if wanted.simulations or wanted.tokens or named.simulations or named.tokens:
            choice |= {
                "simulations": wanted.simulations or (None if wanted.tokens else named.simulations),
                "tokens": wanted.tokens or (None if wanted.simulations else named.tokens),
            }
        choice["options"] = {**(choice["options"] or {}), **wanted.options}
        method, budget = self._search(choice)
        _check_most("simulations", budget.num_simulations, limits.max_simulations, "simulations", when=budget.max_tokens is None)
        _check_most("tokens", budget.max_tokens or 0, limits.max_tokens, "generated tokens")
        children = 1 if method.samples_solutions else max(method.growth.num_children, 1)  # pyright: ignore[reportAttributeAccessIssue]
        _check_most("options", method.selection.wave * children, limits.max_samples, "samples at once")
        _check_most("options", method.root_samples, limits.max_samples, "samples at once")
        for name, value in wanted.options.items():
            _check_most(name, int(value) if isinstance(value, int) else 0, limits.max_samples, "for a number of a method")
        first = randbits(63) if body.seed is None else body.seed % 2**63
        asks = [
            Ask(
                prompt=prompt,
                method=method,
                budget=budget,
                seed=first if number == 0 else derive_seed("choice", first, number),
                wants_progress=bool(body.stream),
                wants_pieces=body.wants_logprobs,
            )
            for prompt in prompts
            for number in range(body.n or 1)
        ]
        return asks, min(wanted.seconds or limits.max_seconds, limits.max_seconds)

    def _search(self, choice: dict[str, Any]) -> tuple[SearchMethod, Budget]:
        """Return the method and the caps of a choice; making a method takes milliseconds, so they are remembered."""
        # JSON tells 1 from true and from 1.0, which are equal as keys.
        key = json.dumps(choice, sort_keys=True)
        if key not in self._searches:
            try:
                found = choose_search(self._defaults.config, **choice)
            except ConfigError as error:
                raise ApiError(400, str(error), code="invalid_search", param="stepladder") from None
            if len(self._searches) >= _MAX_SEARCHES:
                self._searches.clear()
            self._searches[key] = found
        return self._searches[key]

    def _chosen(self, method: str | None) -> dict[str, Any]:
        """Return the default search, or the default budget for another method."""
        defaults = self._defaults
        own = method in (None, defaults.method or defaults.config.evaluate.method)
        return {
            "method": method or defaults.method,
            "simulations": defaults.simulations,
            "tokens": defaults.tokens,
            "options": defaults.options if own else None,
        }


def _check_most(name: str, value: int, most: int, what: str, *, when: bool = True) -> None:
    if when and value > most:
        raise ApiError(400, f"{name}: this server allows at most {most} {what}: got {value}", code="limit_exceeded", param=name)


class _Form:
    """What distinguishes the two kinds of replies."""

    kind = ""
    prefix = ""

    def choice(self, index: int, answer: Answer, shown: Shown, *, logprobs: bool) -> dict[str, Any]:
        """Return a choice of a whole reply."""
        raise NotImplementedError

    def delta(self, index: int, text: str, *, first: bool) -> dict[str, Any]:
        """Return a choice of a chunk with more text."""
        raise NotImplementedError

    def end(self, index: int, answer: Answer, shown: Shown, *, logprobs: bool) -> dict[str, Any]:
        """Return the last choice of a stream."""
        raise NotImplementedError


class _ChatForm(_Form):
    kind, prefix = "chat.completion", "chatcmpl"

    def choice(self, index: int, answer: Answer, shown: Shown, *, logprobs: bool) -> dict[str, Any]:
        message = {"role": "assistant", "content": shown.text, "refusal": None}
        kept = chat_logprobs(answer, shown) if logprobs else None
        return {"index": index, "message": message, "logprobs": kept, "finish_reason": shown.finish_reason}

    def delta(self, index: int, text: str, *, first: bool) -> dict[str, Any]:
        delta = {"role": "assistant", "content": text} if first else {"content": text}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def end(self, index: int, answer: Answer, shown: Shown, *, logprobs: bool) -> dict[str, Any]:
        kept = chat_logprobs(answer, shown) if logprobs else None
        return {"index": index, "delta": {}, "logprobs": kept, "finish_reason": shown.finish_reason}


class _CompletionForm(_Form):
    kind, prefix = "text_completion", "cmpl"

    def choice(self, index: int, answer: Answer, shown: Shown, *, logprobs: bool) -> dict[str, Any]:
        kept = completion_logprobs(answer, shown) if logprobs else None
        return {"index": index, "text": shown.text, "logprobs": kept, "finish_reason": shown.finish_reason}

    def delta(self, index: int, text: str, *, first: bool) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def end(self, index: int, answer: Answer, shown: Shown, *, logprobs: bool) -> dict[str, Any]:
        kept = completion_logprobs(answer, shown) if logprobs else None
        return {"index": index, "text": "", "logprobs": kept, "finish_reason": shown.finish_reason}


class _Reply:
    """The reply to one request, whole or in pieces."""

    def __init__(self, form: _Form, body: CommonFields, *, seeds: Sequence[int], num_prompts: int) -> None:
        self._form, self._body, self._seeds, self._num_prompts = form, body, seeds, num_prompts
        self._head = {"id": new_id(form.prefix), "created": int(time.time()), "model": body.model, "system_fingerprint": FINGERPRINT}
        self._sent: dict[int, str] = {}
        self._hold = max((len(stop) for stop in body.stops), default=1) - 1

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the whole reply."""
        shown = [self._shown(answer) for answer in answers]
        choices = [
            {**self._form.choice(index, answer, part, logprobs=self._body.wants_logprobs), "stepladder": self._facts(index, answer)}
            for index, (answer, part) in enumerate(zip(answers, shown, strict=True))
        ]
        return {
            **self._head,
            "object": self._form.kind,
            "choices": choices,
            "usage": usage(answers, shown, num_prompts=self._num_prompts),
        }

    def progress(self, index: int, snapshot: Snapshot) -> list[dict[str, Any]]:
        """Return the chunks for newly settled steps. The end of the text is held back where a stop text may begin in it."""
        steps = [(step.text, len(step.token_ids)) for step in snapshot.steps]
        text, _ = within(steps, self._body.most_tokens)
        kept = before_stop(text, self._body.stops)
        if len(kept) == len(text):
            kept = text[: len(text) - self._hold]
        return self._more(index, kept, progress_facts(snapshot))

    def last(self, index: int, answer: Answer) -> list[dict[str, Any]]:
        """Return the chunks that end a choice."""
        shown, tree = self._shown(answer), answer.result.tree
        chunks, text = [], ""
        for node in answer.path:
            text = (text + tree.texts[node])[: len(shown.text)]
            chunks += self._more(index, text)
        if index not in self._sent:
            chunks += self._more(index, "", always=True)
        end = self._form.end(index, answer, shown, logprobs=self._body.wants_logprobs)
        return [*chunks, self._chunk([{**end, "stepladder": self._facts(index, answer)}])]

    def spent(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the chunk with the usage."""
        shown = [self._shown(answer) for answer in answers]
        return self._chunk([], usage=usage(answers, shown, num_prompts=self._num_prompts))

    def _more(self, index: int, text: str, facts: dict[str, Any] | None = None, *, always: bool = False) -> list[dict[str, Any]]:
        sent = self._sent.get(index, "")
        if not always and not (len(text) > len(sent) and text.startswith(sent)):
            return []
        first = index not in self._sent
        self._sent[index] = text
        delta = self._form.delta(index, text[len(sent) :], first=first)
        return [self._chunk([delta if facts is None else {**delta, "stepladder": facts}])]

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._form.kind == "chat.completion" else self._form.kind
        return {**self._head, "object": kind, "choices": choices, **more}

    def _shown(self, answer: Answer) -> Shown:
        return shown_part(answer, stops=self._body.stops, most_tokens=self._body.most_tokens)

    def _facts(self, index: int, answer: Answer) -> dict[str, Any]:
        return search_facts(answer, seed=self._seeds[index], with_tree=self._body.stepladder.tree)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        options = self._body.stream_options
        return options is not None and bool(options.include_usage)


class _EventStream(Response):
    """A reply in pieces (server-sent events)."""

    media_type = "text/event-stream"

    def __init__(self, reply: _Reply, exchange: Exchange, request: Request) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._reply, self._exchange, self._request = reply, exchange, request
        del self.headers["content-length"]

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        """Send the pieces; the searches end with the connection."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ClientGone:
            pass
        finally:
            self._exchange.close()

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        reply, answers = self._reply, dict[int, Answer]()
        try:
            async with aclosing(self._exchange.events(self._request, idle_s=KEEP_ALIVE_S)) as events:
                async for event in events:
                    if event is None:
                        yield b": the search goes on\n\n"
                        continue
                    number, what = event
                    if isinstance(what, Answer):
                        answers[number] = what
                    chunks = reply.last(number, what) if isinstance(what, Answer) else reply.progress(number, what)
                    for chunk in chunks:
                        yield _event(chunk)
        except ApiError as error:
            yield _event(error.body())
            return
        if reply.wants_usage:
            yield _event(reply.spent([answers[number] for number in sorted(answers)]))
        yield b"data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(chunk, ensure_ascii=False, allow_nan=False)}\n\n".encode()


def build_app(service: SearchService, *, served: str, defaults: Defaults, limits: Limits) -> FastAPI:
    """Return the application, without guards.

    Args:
        service: Searches.
        served: Name of the model.
        defaults: The search of requests that name none.
        limits: Bounds on requests.
    """
    routes = Routes(service, served=served, defaults=defaults, limits=limits)
    app = FastAPI(title="stepladder", version=__version__, docs_url=None, redoc_url=None)
    app.add_api_route("/v1/chat/completions", routes.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", routes.completions, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", routes.models, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models/{name:path}", routes.model, methods=["GET"], response_model=None)
    app.add_api_route("/health", routes.health, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", routes.metrics, methods=["GET"], response_model=None)
    app.add_exception_handler(ApiError, _api_error)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(RequestValidationError, _invalid)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(HTTPException, _http_error)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(Exception, _bug)
    return app


async def _api_error(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    errors = error.errors()
    # A field of several forms has an error for each. One about the value says more than that it has another form.
    first = next((each for each in errors if not each["type"].endswith("_type")), errors[0])
    place = [] if first["type"] == "json_invalid" else _place(first["loc"], error.body, missing=first["type"] == "missing")
    name = ".".join(place) or "body"
    what = first["msg"][:300]
    if first["type"] == "extra_forbidden":
        # Only the field of the search refuses unknown names.
        what = f"unknown field -- {right_name(first['loc'][-1], SearchFields.model_fields)}"
    told = ApiError(400, f"{name}: {what}", code="invalid_request", param=place[0] if place else None)
    return await _api_error(request, told)


def _place(location: Sequence[str | int], body: Any, *, missing: bool) -> list[str]:
    """Return the part of an error's location that is in the body; the rest names forms that a field may have."""
    place = []
    for part in location[1:]:
        try:
            body = body[part]
        except (KeyError, IndexError, TypeError):
            continue
        place.append(str(part))
    return [*place, str(location[-1])] if missing else place


async def _http_error(request: Request, error: HTTPException) -> Response:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    asked = f"{request.method} {request.url.path}"[:200]
    told = {
        404: f"{asked}: no such path -- {', '.join(SERVED_PATHS)} are served; a client's base_url ends with /v1",
        405: f"{asked}: this path takes {(error.headers or {}).get('Allow', 'another method')}",
    }.get(error.status_code, str(error.detail))
    return await _api_error(request, ApiError(error.status_code, told, code=code, headers=error.headers))


async def _bug(request: Request, error: Exception) -> Response:
    told = f"this is a bug of stepladder: {type(error).__name__}"
    return await _api_error(request, ApiError(500, told, code="internal_error"))
