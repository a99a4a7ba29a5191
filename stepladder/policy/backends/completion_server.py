"""A connection to a server of OpenAI's completions protocol: retries, limits, and kinds of failures.

A server is not trusted: every try has one deadline, every reply has a cap on its bytes, and redirects are not followed. A failure of one
request is ``RequestFailed``, which becomes a failed sample. A failure of all requests (no server, a wrong key, address or model) is a
``BackendError``, which ends the search; finished work is kept.
"""

import asyncio
import base64
import math
import ssl
import threading
import time
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

import httpx2

from stepladder.errors import BackendError, ConfigError
from stepladder.policy.backends.completion_replies import Json, ReplyError, read_json, read_models
from stepladder.policy.backends.server_settings import ServerSettings
from stepladder.types import derive_seed

ResultT = TypeVar("ResultT")

_MAX_DELAY_S = 30.0
"""Longest delay before another try, unless the server requests one."""
_MAX_RETRY_AFTER_S = 60.0
"""Longest delay that a server may request."""
_CONNECT_S = 10.0
"""Longest time to connect."""
_LISTING_S = 30.0
"""Longest time until the list of models is there."""
_REPLY_BYTES = 4 * 2**20
"""Cap on a reply's bytes, and on those of the list of models."""
_TOKEN_BYTES = 2048
"""Bytes that each requested token adds to the cap; its text, log-probability and id take a tenth of it."""
_MESSAGE_CHARACTERS = 300
_MESSAGE_BYTES = 4096
"""Bytes of a refusal that are read."""

_RETRY_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Answers that another try may better."""
_ABSENT_STATUS = frozenset({502, 503, 504})
"""Status codes of a proxy whose server is not there."""
_WRONG_STATUS = frozenset({401, 403, 404})
"""Answers that every request would get: wrong key, address or model."""


class RequestFailed(Exception):
    """An abandoned request; the message goes to its sample."""


class _Passing(Exception):
    """A failure of one try that another try may better."""

    def __init__(self, told: str, *, absent: bool, remedy: str = "start it again", retry_after_s: float = 0.0) -> None:
        super().__init__(told)
        self.told, self.absent, self.remedy, self.retry_after_s = told, absent, remedy, retry_after_s


class _Limits(NamedTuple):
    """Limits of one try of a request."""

    seconds: float
    num_bytes: int


class CompletionServer:
    """A connection to a server: a client and an event loop on a thread of their own."""

    def __init__(self, settings: ServerSettings) -> None:
        """Connect, and query the served model.

        Raises:
            ConfigError: If the address or the key cannot be sent.
            BackendError: If the server does not answer, or does not serve the model.
        """
        self.settings = settings
        address = _address(settings.url)
        self.url = _without_secrets(address)
        """The address as messages show it: without user, password and query."""
        self._secrets = _secrets(address, settings.api_key)
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        self._gate = asyncio.Semaphore(settings.concurrency)
        self._client = httpx2.AsyncClient(
            base_url=address,
            # Uncompressed replies keep the cap on bytes honest: a megabyte of gzip may unpack to a gigabyte.
            headers={"Accept-Encoding": "identity", **_authorization(settings.api_key)},
            timeout=httpx2.Timeout(None, connect=_CONNECT_S),
            limits=httpx2.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
            follow_redirects=False,
        )
        self._hang_up = weakref.finalize(self, _hang_up, self._loop, thread, self._client)
        try:
            self.model, self.context = self.run(self._served_model()).result()
        except BaseException:
            self.close()
            raise

    def run(self, coroutine: Coroutine[Any, Any, ResultT]) -> "Future[ResultT]":
        """Start a coroutine on the connection's thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        """Drop open requests and end the thread; also done when the connection is forgotten and when the process ends."""
        self._hang_up()

    async def complete(self, payload: dict[str, Any]) -> Json:
        """Return the reply to a completions request, as JSON.

        Raises:
            BackendError: If the server is not there, or refuses every request.
            RequestFailed: If it refuses this one, or its reply cannot be read.
        """
        limits = _Limits(self.settings.timeout_s, _REPLY_BYTES + _TOKEN_BYTES * payload["max_tokens"])
        async with self._gate:
            return await self._ask("POST", "completions", payload, limits=limits, seed=payload["seed"])

    async def _served_model(self) -> tuple[str, int | None]:
        """Return the model's name and its context in tokens, None if the server does not say."""
        limits = _Limits(min(self.settings.timeout_s, _LISTING_S), _REPLY_BYTES)
        try:
            served = read_models(await self._ask("GET", "models", None, limits=limits, seed=0))
        except (RequestFailed, ReplyError) as error:
            raise BackendError(f"{self.url}/models: must list the served models: {self._clean(str(error))} -- check the address") from error
        names = [entry.name for entry in served]
        wanted = self.settings.model
        if (wanted is None and len(names) != 1) or (wanted is not None and wanted not in names):
            told = self._clean(str(names))
            raise BackendError(f"{self.url}: must serve the model {wanted!r}: it serves {told} -- set policy.openai.model")
        return served[0 if wanted is None else names.index(wanted)]

    async def _ask(self, verb: str, path: str, payload: dict[str, Any] | None, *, limits: _Limits, seed: int) -> Json:
        """Send a request until it is answered or the tries are spent."""
        last: _Passing | None = None
        for attempt in range(self.settings.retries + 1):
            try:
                return await self._try(verb, path, payload, limits)
            except _Passing as failure:
                last = failure
            if attempt < self.settings.retries:
                await asyncio.sleep(max(self._delay(attempt, seed), last.retry_after_s))
        tries = self.settings.retries + 1
        assert last is not None, "there is one try at least, and the last one failed"
        if last.absent:
            raise BackendError(
                f"{self.url}: the server must be there: {last.told} in the last of {tries} tries -- {last.remedy} and repeat the command: "
                "what is finished is kept"
            )
        raise RequestFailed(f"the server did not answer in {tries} {'try' if tries == 1 else 'tries'}: {last.told}")

    async def _try(self, verb: str, path: str, payload: dict[str, Any] | None, limits: _Limits) -> Json:
        """Send a request once, and return its reply.

        Raises:
            _Passing: If another try may help.
            RequestFailed: If none does.
            BackendError: If no other request would fare better.
        """
        try:
            async with asyncio.timeout(limits.seconds), self._client.stream(verb, path, json=payload) as response:
                if response.status_code != 200:
                    self._refuse(path, response, await _beginning(response))
                body = await _whole(response, limits.num_bytes)
        except TimeoutError:
            raise _Passing(f"no whole answer within {limits.seconds:g} s", absent=False) from None
        except httpx2.TransportError as error:
            raise self._classified(error) from error
        try:
            return read_json(body)
        except ReplyError as error:
            kind = response.headers.get("content-type", "no content type")
            raise RequestFailed(f"the server's answer cannot be read: {self._clean(f'{error} ({kind})')}") from error

    def _refuse(self, path: str, response: httpx2.Response, body: bytes) -> None:
        """Raise the error for a status other than 200."""
        status = response.status_code
        told = f"status {status}: {self._clean(body.decode(errors='replace'))}"
        if status in _RETRY_STATUS:
            raise _Passing(told, absent=status in _ABSENT_STATUS, retry_after_s=_retry_after(response.headers.get("retry-after")))
        if 300 <= status < 400:
            place = self._clean(response.headers.get("location", "nowhere"))
            raise BackendError(f"{self.url}/{path}: must answer by itself: it redirects to {place} -- give that address if you trust it")
        if status in _WRONG_STATUS:
            raise BackendError(f"{self.url}/{path}: must accept our requests: {told} -- check address, key and model")
        raise RequestFailed(f"the server refused the request: {told}")

    def _classified(self, error: httpx2.TransportError) -> _Passing | BackendError:
        """Return the error for a connection failure: a server that is not there, or a broken connection."""
        told = self._clean(str(error)) or type(error).__name__
        causes = _causes(error)
        if any(isinstance(cause, ssl.SSLError) for cause in causes):
            remedy = "use http:// for a server without TLS, or have its certificate trusted (SSL_CERT_FILE)"
            return BackendError(f"{self.url}: the server must speak TLS with a valid certificate: {told} -- {remedy}")
        if isinstance(error, httpx2.ConnectTimeout):
            return _Passing(f"no connection within {_CONNECT_S:g} s", absent=True, remedy="start it, or correct the address,")
        if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
            return _not_connected(told, causes)
        if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
            return BackendError(f"{self.url}: must be an address that can be asked: {told} -- check the address")
        # There was a connection, so there is a server. The next try notices a server that died.
        return _Passing(f"the connection broke: {told}", absent=False)

    def _clean(self, text: str) -> str:
        """Return a text of the server as one short line without the key, in case the server repeats it."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())[:_MESSAGE_CHARACTERS]

    def _delay(self, attempt: int, seed: int) -> float:
        """Return the seconds before try ``attempt + 1``: the jitter keeps requests that failed together from returning together."""
        jitter = 0.5 + derive_seed("retry", seed, attempt) / 2.0**63
        return min(self.settings.backoff_s * 2.0**attempt * jitter, _MAX_DELAY_S)


async def _whole(response: httpx2.Response, most: int) -> bytes:
    """Return a reply's body; never hold more than ``most`` bytes of it."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise RequestFailed(f"the server's answer must not be compressed, as requested: got {coding[:30]!r}")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > most:
            raise RequestFailed(f"the server's answer must have at most {most} bytes: it has more")
    return bytes(body)


async def _beginning(response: httpx2.Response) -> bytes:
    """Return the first bytes of a reply's body, and drop the connection with the rest."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) >= _MESSAGE_BYTES:
            break
    return bytes(body[:_MESSAGE_BYTES])


def _retry_after(value: str | None) -> float:
    """Return the delay that a server requests, in seconds in [0, 60]. It sends seconds or a date; anything else is 0."""
    if value is None:
        return 0.0
    text = value.strip()
    if text.isascii() and text.isdigit():
        # A longer number than that is above the cap, and might be too long to be read.
        return min(float(text[:6]) if len(text) <= 6 else math.inf, _MAX_RETRY_AFTER_S)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S)


def _not_connected(told: str, causes: list[BaseException]) -> _Passing:
    """Return the reason for a missing connection, with the remedy."""
    if any(isinstance(cause, OSError) and type(cause).__name__ == "gaierror" for cause in causes):
        return _Passing(f"its name is not known ({told})", absent=True, remedy="correct the name in the address, or the network,")
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return _Passing("connection refused", absent=True, remedy="start it, or correct the address,")
    return _Passing(told, absent=True, remedy="start it, or correct the address,")


def _causes(error: BaseException) -> list[BaseException]:
    """Return an exception, its causes, and the members of exception groups among them."""
    found, waiting = [], [error]
    while waiting and len(found) < 50:
        one = waiting.pop()
        found.append(one)
        waiting += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
        waiting += getattr(one, "exceptions", ())
    return found


def _address(url: str) -> httpx2.URL:
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"policy.openai.url: must be an address such as 'http://127.0.0.1:8000/v1': {error} -- correct it") from error
    if address.scheme not in ("http", "https") or not address.host:
        shown = _without_secrets(address)
        raise ConfigError(f"policy.openai.url: must begin with http:// or https:// and a host: got {shown!r} -- correct it")
    return address


def _without_secrets(address: httpx2.URL) -> str:
    return str(address.copy_with(userinfo=b"", query=None, fragment=None)).rstrip("/")


def _secrets(address: httpx2.URL, key: str | None) -> list[str]:
    """Return the secrets that no message may contain, longest first: key, password, and the sent forms of the address."""
    written, query = (part.decode(errors="replace") for part in (address.userinfo, address.query))
    user = unquote(written)
    found = {key, written, user, written.partition(":")[2], address.password, query}
    found.add(base64.b64encode(user.encode()).decode() if user else None)
    return sorted((secret for secret in found if secret), key=len, reverse=True)


def _authorization(key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError("policy.openai.api_key_env: the key must be printable ASCII without blanks: it is not -- export it again")
    return {"Authorization": f"Bearer {key}"}


def _hang_up(loop: asyncio.AbstractEventLoop, thread: threading.Thread, client: httpx2.AsyncClient) -> None:
    """Cancel the tasks of a loop, close its client and end its thread."""

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
