"""The process around the application: sockets, signals, and a stop that loses nothing."""

import asyncio
import gc
import ipaddress
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from stepladder.errors import ConfigError
from stepladder.files import file_fault
from stepladder.lm.loaded_models import LoadedModels
from stepladder.loops.assembly.search import choose_search
from stepladder.loops.assembly.search_session import SearchSession
from stepladder.mcts.warm_up import compile_loops
from stepladder.serve.app import Defaults, Limits, build_app
from stepladder.serve.guards import Guard
from stepladder.serve.search_service import SearchService

KEY_VARIABLE = "STEPLADDER_API_KEY"
_HEADERS_S = 20.0
"""Seconds within which a request must have sent its headers: from the connection on, or from the longest pause after a reply on."""
_PAUSE_S = 30.0
"""Longest pause between a reply and the next request of a connection."""
_MAX_CONNECTIONS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """Everything that a server needs."""

    defaults: Defaults
    """The search of requests that name none, with the configuration of the models."""
    policy: str
    """Directory or hub id of the policy."""
    prm: tuple[str, ...]
    """Directories or hub ids of the PRMs; none searches without."""
    name: str
    """Name of the model."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port; 0 takes a free one."""
    keys: tuple[str, ...] = field(default=(), repr=False)
    """A request must have one of these keys; none lets everybody in."""
    limits: Limits = field(default_factory=Limits)
    """Bounds on requests."""
    max_waiting: int = 512
    """Searches that may wait for room."""
    max_body_bytes: int = 1 << 20
    """Largest body of a request."""
    read_s: float = 30.0
    """Seconds within which a body must arrive."""
    write_s: float = 60.0
    """Seconds within which a client must take each piece of a reply."""
    grace_s: float = 30.0
    """Seconds that open searches may still take after a stop; then they end with what they found."""


def read_keys(path: Path | None) -> tuple[str, ...]:
    """Return the keys of a file, one a line, or the key of the environment variable ``STEPLADDER_API_KEY``; empty without both.

    Raises:
        ConfigError: If the file is not readable or has no key.
    """
    if path is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        return (key,) if key else ()
    try:
        keys = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--api-key-file: must be a text file of keys: {path}: {file_fault(error)} -- correct it") from None
    if not keys:
        raise ConfigError(f"--api-key-file: must hold a key on a line: {path} has none -- write one")
    return keys


def check_address(host: str, keys: tuple[str, ...], *, anonymous: bool) -> None:
    """Refuse an address that others can reach without a key.

    Raises:
        ConfigError: If it is one.
    """
    if not is_loopback(host) and not keys and not anonymous:
        raise ConfigError(
            f"--host: an address that others can reach needs a key: got {host!r} without one -- give --api-key-file FILE, set "
            f"{KEY_VARIABLE}, or allow everybody with --anonymous"
        )


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def serve(settings: ServeSettings, *, on_ready: Callable[[str], None], on_stop: Callable[[], None] = lambda: None) -> None:
    """Load the models and serve until a signal stops it.

    Args:
        settings: What to serve, and how.
        on_ready: Called with the address when requests are taken.
        on_stop: Called when the stop begins.

    Raises:
        ConfigError: If settings are impossible, or the address cannot be used.
        StepladderError: If the models cannot be loaded.
    """
    listener = bound_socket(settings.host, settings.port)
    models = LoadedModels()
    config = settings.defaults.config

    def load() -> SearchSession:
        session = SearchSession(config, models, policy=settings.policy, prm=settings.prm)
        # Else the collector walks everything that was imported and loaded now and then, and all searches wait for a third of a second.
        gc.freeze()
        return session

    def release() -> None:
        gc.unfreeze()
        models.release()

    service = SearchService(load, release, max_waiting=settings.max_waiting)
    try:
        service.start()
        service.metrics.gauge("stepladder_open_searches", "Searches that run or wait.", lambda: service.num_open)
        service.metrics.gauge("process_resident_memory_bytes", "Resident memory of the server.", _resident_bytes)
        service.metrics.counter("process_cpu_seconds_total", "CPU seconds of the server.", time.process_time)
        defaults = settings.defaults
        method, _ = choose_search(config, method=defaults.method, options=defaults.options)
        compile_loops(method, scored=bool(settings.prm))
        port = listener.getsockname()[1]
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        server = SearchServer(http_settings(settings, service), service, settings.grace_s, on_stop=on_stop)
        server.on_ready = lambda: on_ready(f"http://{shown}:{port}")
        # The signal that stopped the server is raised again when everything is answered.
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    finally:
        listener.close()
        service.stop()


def http_settings(settings: ServeSettings, service: SearchService) -> uvicorn.Config:
    """Return the settings of the HTTP server, with the guarded application."""
    app = build_app(service, served=settings.name, defaults=settings.defaults, limits=settings.limits)
    open_to_all = not is_loopback(settings.host) or bool(settings.keys)
    guard = Guard(
        app,
        keys=settings.keys,
        # Without a key, a web page that calls its own name this machine's must not get through.
        hosts=None if open_to_all else ("localhost", "127.0.0.1", "[::1]", settings.host),
        metrics=service.metrics,
        max_body_bytes=settings.max_body_bytes,
        read_s=settings.read_s,
        write_s=settings.write_s,
    )
    return uvicorn.Config(
        guard,
        http=_PromptHeaders,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=int(_PAUSE_S),
        timeout_graceful_shutdown=int(settings.grace_s) + 10,
        h11_max_incomplete_event_size=64 * 1024,
    )


class _PromptHeaders(H11Protocol):
    """HTTP/1.1 with a deadline for the headers of every request."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._headers_timer = self.loop.call_later(_HEADERS_S, self._drop_silent, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._headers_timer.cancel()
        # The next request may be here already, and then begins at once.
        self._headers_timer = self.loop.call_later(_PAUSE_S + _HEADERS_S, self._drop_silent, self.cycle)
        super().on_response_complete()

    def _drop_silent(self, last: Any) -> None:
        """Close the connection if no request came after the last one."""
        if self.cycle is last and not self.transport.is_closing():
            self.transport.close()


class SearchServer(uvicorn.Server):
    """A server whose stop lets open searches finish, for a while."""

    def __init__(
        self, config: uvicorn.Config, service: SearchService, grace_s: float, *, on_stop: Callable[[], None] = lambda: None
    ) -> None:
        """Serve a service; open searches have ``grace_s`` seconds after a stop."""
        super().__init__(config)
        self._service, self._grace_s, self._on_stop = service, grace_s, on_stop
        self.on_ready: Callable[[], None] = lambda: None
        """Called when requests are taken."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and let the open ones finish."""
        self._service.drain()
        self._on_stop()
        timer = asyncio.get_running_loop().call_later(self._grace_s, self._service.finish_early)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        ConfigError: If it cannot be used.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host: must be an address of this machine: got {host!r}: {error} -- correct it") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(f"--port: must be free: {host}:{port}: {error.strerror} -- choose another --port") from None
    return listener


def _resident_bytes() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * float(os.sysconf("SC_PAGE_SIZE"))
