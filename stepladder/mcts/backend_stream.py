"""A backend's requests in flight: tickets, time, and the checks of its protocol."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from stepladder.errors import BackendError
from stepladder.interfaces import cancel_requests


class BackendStream:
    """A backend with its open tickets; keeps the time and checks the protocol."""

    def __init__(self, name: str, backend: Any, *, first_ticket: int = 0, is_shared: bool = False) -> None:
        """Serve a policy or a scorer.

        Args:
            name: Its name in messages.
            backend: The policy or scorer.
            first_ticket: Ticket of the first request; those that share a backend have ranges of their own.
            is_shared: Whether ``collect`` may return nothing, because only results of others have arrived.
        """
        self._name = name
        self._backend = backend
        self._is_shared = is_shared
        self._open: dict[int, Any] = {}
        self._dropped: set[int] = set()
        """Tickets of dropped requests whose results are still to come."""
        self._next_ticket = first_ticket
        self.seconds = 0.0
        """Time inside the backend."""

    def __len__(self) -> int:
        """Return how many requests are in flight."""
        return len(self._open)

    def submit(self, jobs: Sequence[Any], make: Callable[[int, Any], Any]) -> None:
        """Submit one request per job, made from a ticket and the job."""
        tickets = range(self._next_ticket, self._next_ticket + len(jobs))
        self._next_ticket += len(jobs)
        requests = list(map(make, tickets, jobs))
        self._open.update(zip(tickets, jobs, strict=True))
        begin = time.perf_counter()
        self._backend.submit(requests)
        self.seconds += time.perf_counter() - begin

    def collect(self) -> list[tuple[Any, Any]]:
        """Return (job, result) pairs: at least one, unless the backend is shared.

        Raises:
            BackendError: If there is none, or one for a request that is not in flight.
        """
        begin = time.perf_counter()
        results = self._backend.collect()
        self.seconds += time.perf_counter() - begin
        if not results and not self._is_shared:
            raise BackendError(
                f"{self._name}: collect() must return a result while requests are in flight: got none for {len(self)} requests"
            )
        pairs = []
        for result in results:
            job = self._open.pop(result.ticket, None)
            if job is None and result.ticket in self._dropped:
                self._dropped.remove(result.ticket)
                continue
            if job is None:
                raise BackendError(f"{self._name}: every result must carry the ticket of an open request: got {result.ticket}")
            pairs.append((job, result))
        return pairs

    def drop(self, is_dropped: Callable[[Any], bool]) -> None:
        """Forget the open requests of some jobs. A backend with a method ``cancel`` stops working on them; else results are ignored."""
        tickets = [ticket for ticket, job in self._open.items() if is_dropped(job)]
        for ticket in tickets:
            del self._open[ticket]
        self._dropped.update(cancel_requests(self._backend, tickets))
