"""A backend's requests in flight: tickets, time, and the checks of its protocol."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from stepladder.errors import BackendError


class BackendStream:
    """A backend with its open tickets; keeps the time and checks the protocol."""

    def __init__(self, name: str, backend: Any) -> None:
        """Serve a policy or a scorer under a name for messages."""
        self._name = name
        self._backend = backend
        self._open: dict[int, Any] = {}
        self._next_ticket = 0
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
        """Return (job, result) pairs; at least one.

        Raises:
            BackendError: If there is none, or one for a request that is not in flight.
        """
        begin = time.perf_counter()
        results = self._backend.collect()
        self.seconds += time.perf_counter() - begin
        if not results:
            raise BackendError(
                f"{self._name}: collect() must return a result while requests are in flight: got none for {len(self)} requests"
            )
        pairs = []
        for result in results:
            job = self._open.pop(result.ticket, None)
            if job is None:
                raise BackendError(f"{self._name}: every result must carry the ticket of an open request: got {result.ticket}")
            pairs.append((job, result))
        return pairs
