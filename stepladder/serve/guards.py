"""What stands before every request: the key, the host, the size and the speed of a body, and the speed of a reader."""

import asyncio
import hashlib
import hmac
import re
from collections.abc import Collection, Sequence

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepladder.serve.errors import ApiError
from stepladder.serve.metrics import Metrics

OPEN_PATHS = ("/health",)
"""Paths that need no key."""
HAS_KEY = "stepladder_has_key"
"""Entry of a request's scope: whether it has a key, or needs none."""
SERVED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
"""Paths that answer clients."""
_KNOWN_PATHS = (*SERVED_PATHS, "/openapi.json")
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::[0-9]*)?")
"""A Host header: a name or an address, and perhaps a port."""


class SlowReader(Exception):
    """A client did not take its reply in time; the connection is dropped."""


class Guard:
    """An ASGI application around another one."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[str],
        hosts: Collection[str] | None,
        metrics: Metrics,
        max_body_bytes: int,
        read_s: float,
        write_s: float,
    ) -> None:
        """Guard an application.

        Args:
            app: The application.
            keys: A request must have one of these keys; none lets everybody in.
            hosts: Names under which the server may be addressed; None allows any. Web pages of other names cannot reach it then.
            metrics: Counts requests.
            max_body_bytes: Largest body.
            read_s: Seconds within which a body must be there.
            write_s: Seconds within which a client must take each piece of a reply.
        """
        self._app, self._metrics = app, metrics
        # Digests have one length, so that a comparison takes the same time for any key.
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._hosts = None if hosts is None else frozenset(hosts)
        self._max_body, self._read_s, self._write_s = max_body_bytes, read_s, write_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status: list[int] = []

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])
            try:
                async with asyncio.timeout(self._write_s):
                    await send(message)
            except TimeoutError:
                raise SlowReader from None

        try:
            scope = {**scope, HAS_KEY: self._check(scope)}
            body = await self._body(scope, receive)
            await self._app(scope, _replayed(body, receive), sent)
        except ApiError as error:
            self._metrics.add("stepladder_rejected_total", reason=error.code)
            headers = {**error.headers, "Connection": "close"}
            await JSONResponse(error.body(), status_code=error.status, headers=headers)(scope, receive, sent)
        finally:
            path = scope["path"] if scope["path"] in _KNOWN_PATHS else "other"
            self._metrics.add("stepladder_requests_total", path=path, status=str(status[0]) if status else "none")

    def _check(self, scope: Scope) -> bool:
        """Say whether a request has a key, or needs none at all; refuse it if it may not be answered."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._hosts is not None and _without_port(host) not in self._hosts:
            raise ApiError(403, "the Host header must name this server -- use its address", code="wrong_host")
        has_key = not self._keys or self._has_key(headers.get(b"authorization", b""))
        if not has_key and scope["path"] not in OPEN_PATHS:
            raise ApiError(401, "a valid key is needed: send 'Authorization: Bearer KEY'", code="invalid_api_key")
        if scope["method"] == "POST" and headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            # A page of another site cannot send this type without asking first.
            raise ApiError(415, "the body must be JSON -- send 'Content-Type: application/json'", code="wrong_content_type")
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and (len(declared) > 12 or int(declared) > self._max_body):
            raise self._too_large()
        return has_key

    def _has_key(self, authorization: bytes) -> bool:
        kind, _, key = authorization.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        # All keys are compared, so that the time does not say which one is close.
        matches = [hmac.compare_digest(digest, known) for known in self._keys]
        return kind.lower() == b"bearer" and any(matches)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return b""
        body = bytearray()
        try:
            async with asyncio.timeout(self._read_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return bytes(body)
                    body += message.get("body", b"")
                    if len(body) > self._max_body:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise ApiError(408, f"the whole body must arrive within {self._read_s:g} s", code="slow_request") from None

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body must have at most {self._max_body} bytes -- send less", code="body_too_large")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives a body that was read already, and then waits for the client to go away."""
    given: list[bool] = []

    async def again() -> Message:
        if not given:
            given.append(True)
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


def _without_port(host: str) -> str:
    match = _HOST.fullmatch(host)
    return match[1] if match else host
