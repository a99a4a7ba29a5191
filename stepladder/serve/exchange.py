"""One request on the event loop: its searches on the search thread, their events, a deadline, and a client that may go away."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from starlette.requests import Request

from stepladder.serve.errors import ApiError
from stepladder.serve.search_service import Answer, Ask, Event, SearchService, Snapshot
from stepladder.types import StopReason

PATIENCE_S = 10.0
"""Seconds after its deadline within which a search must have ended."""


class ClientGone(Exception):
    """The client closed its connection."""


class Exchange:
    """The searches of one request. Only the newest snapshot of a search is kept, so a slow reader costs no memory."""

    def __init__(self, service: SearchService, asks: Sequence[Ask], *, seconds: float) -> None:
        """Queue the searches.

        Args:
            service: Searches.
            asks: The searches.
            seconds: Deadline, after which the answers so far are taken.

        Raises:
            ApiError: If they cannot be taken.
        """
        self._loop = asyncio.get_running_loop()
        self._service = service
        self._changed = asyncio.Event()
        self._fresh: dict[int, Snapshot] = {}
        self._answers: dict[int, Answer] = {}
        self._error: ApiError | None = None
        self._pendings = service.ask(asks, self._deliver)
        self._timer = self._loop.call_later(seconds, self._end_all, StopReason.SECONDS)
        self._last_timer = self._loop.call_later(seconds + PATIENCE_S, self._give_up)

    def close(self) -> None:
        """End the searches that still run; nobody wants their answers."""
        self._timer.cancel()
        self._last_timer.cancel()
        self._end_all(None)

    async def answers(self, request: Request) -> list[Answer]:
        """Return the answers in the order of the searches.

        Raises:
            ApiError: If a search failed.
            ClientGone: If the client went away.
        """
        async for _ in self.events(request):
            pass
        return [self._answers[number] for number in range(len(self._pendings))]

    async def events(self, request: Request, *, idle_s: float | None = None) -> AsyncGenerator[tuple[int, Snapshot | Answer] | None, None]:
        """Yield new snapshots and answers with the number of their search, until all are answered.

        Args:
            request: The request, whose connection is watched.
            idle_s: Yield None after so many seconds without an event.

        Raises:
            ApiError: If a search failed.
            ClientGone: If the client went away.
        """
        gone = asyncio.ensure_future(_until_gone(request))
        shown: set[int] = set()
        try:
            while len(shown) < len(self._pendings):
                self._changed.clear()
                if self._error is not None:
                    raise self._error
                fresh, self._fresh = self._fresh, {}
                for number, snapshot in sorted(fresh.items()):
                    if number not in self._answers:
                        yield number, snapshot
                for number in sorted(set(self._answers) - shown):
                    shown.add(number)
                    yield number, self._answers[number]
                is_over = len(shown) == len(self._pendings)
                if not is_over and not self._changed.is_set() and not await self._news(gone, idle_s):
                    yield None
        finally:
            gone.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await gone

    async def _news(self, gone: "asyncio.Future[None]", idle_s: float | None) -> bool:
        """Wait for an event, and say whether there was one in time.

        Raises:
            ClientGone: If the client went away first.
        """
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({changed, gone}, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            has_changed = changed.done()
            changed.cancel()
        if gone.done():
            raise ClientGone
        return has_changed

    def _end_all(self, reason: StopReason | None) -> None:
        for pending in self._pendings:
            if not pending.is_over:
                self._service.end(pending, reason)

    def _give_up(self) -> None:
        """Answer in the place of an engine that does not even end a search. A client that reads late has its answers here already."""
        if len(self._answers) == len(self._pendings):
            return
        message = "the search engine does not answer, not even to the end of the deadline -- ask another server"
        self._take(0, ApiError(503, message, code="engine_stuck", headers={"Retry-After": "60"}))

    def _deliver(self, number: int, event: Event) -> None:
        # The loop may be closed already when the last searches are ended.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take, number, event)

    def _take(self, number: int, event: Event) -> None:
        match event:
            case Snapshot():
                self._fresh[number] = event
            case Answer():
                self._answers[number] = event
            case ApiError():
                self._error = self._error or event
        self._changed.set()


async def _until_gone(request: Request) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return
