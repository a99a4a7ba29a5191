"""A server of searches on a thread, over scripted models or any other session."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stepladder.interfaces import StepResult
from stepladder.loops.config.run import Config
from stepladder.mcts.live_searches import LiveSearches, SearchJob
from stepladder.serve.app import Defaults
from stepladder.serve.search_service import SearchService
from stepladder.serve.server import SearchServer, ServeSettings, bound_socket, http_settings
from stepladder.testing import CharRenderer, ScriptedPolicy, TableScorer
from stepladder.types import Problem
from tests.searches import PROVENANCE, propose, score

CONFIG = Config.model_validate(
    {
        "problems": {"train": "", "test": ""},
        "policy": {"model": "scripted"},
        "evaluate": {"simulations": 16},
        "search": {"max_depth": 6},
    }
)
CONTEXT = 2000


class ServedRenderer(CharRenderer):
    """Characters as tokens, with the prompts that only a server needs."""

    tokenizer = range(0x110000)

    def text_ids(self, text: str, *, place: str = "prompt") -> tuple[int, ...]:
        """Return the code points of a text."""
        return self.encode(text)

    def conversation_ids(self, messages: Sequence[dict[str, str]], *, place: str = "messages") -> tuple[int, ...]:
        """Return the messages with their roles."""
        return self.encode("".join(f"{message['role']}: {message['content']}\n" for message in messages))


class ScriptedSession:
    """A ``SearchSession`` over scripted models."""

    context = CONTEXT

    def __init__(self, policy: Any = None, *, scorer: Any = score, max_trees: int = 256) -> None:
        self.renderer: Any = ServedRenderer()
        self.policy = policy or ScriptedPolicy(propose)
        self.live = LiveSearches(
            policy=self.policy,
            scorer=None if scorer is None else TableScorer(scorer),
            renderer=self.renderer,
            provenance=PROVENANCE,
            max_trees=max_trees,
        )
        self.has_closed = False

    def __len__(self) -> int:
        return len(self.live)

    @property
    def has_room(self) -> bool:
        return self.live.has_room

    def begin(self, question: str, *, method: Any, budget: Any, seed: int, prompt_ids: tuple[int, ...] | None) -> int:
        problem = Problem(id="question", question=question)
        renderer = ServedRenderer()
        if prompt_ids is not None:
            renderer.prompt_ids = lambda problem: prompt_ids
        return self.live.begin(SearchJob(problem=problem, method=method, budget=budget, seed=seed, renderer=renderer))

    def close(self) -> None:
        self.has_closed = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.live, name)


class GatedPolicy(ScriptedPolicy):
    """A policy that returns nothing while its gate is closed, and can be interrupted and cancelled."""

    def __init__(self, script: Any = propose, *, open_for: int = 0) -> None:
        """Begin with a gate that lets so many results through."""
        super().__init__(script)
        self.gate = threading.Semaphore(open_for)
        self.in_flight: set[int] = set()
        self._waiting: list[Any] = []
        self._interrupted = threading.Event()
        self._changed = threading.Event()

    def submit(self, requests: Sequence[Any]) -> None:
        self.requests.extend(requests)
        self._waiting.extend(requests)
        self.in_flight |= {request.ticket for request in requests}

    def release(self, count: int) -> None:
        """Let more results through."""
        for _ in range(count):
            self.gate.release()
        self._changed.set()

    def collect(self) -> list[StepResult]:
        while self._waiting and not self._interrupted.is_set():
            if self.gate.acquire(timeout=0.01):
                request = self._waiting.pop(0)
                self.in_flight.discard(request.ticket)
                return [StepResult(ticket=request.ticket, samples=self._answer(request))]
        self._interrupted.clear()
        return []

    def interrupt(self) -> None:
        self._interrupted.set()

    def cancel(self, tickets: Sequence[int]) -> None:
        dropped = set(tickets)
        self.in_flight -= dropped
        self._waiting = [request for request in self._waiting if request.ticket not in dropped]


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    """Address without ``/v1``."""
    port: int
    service: SearchService
    server: SearchServer


@contextmanager
def serving(
    open_session: Callable[[], Any] = ScriptedSession, *, method: str = "mcts", grace_s: float = 5.0, **changes: Any
) -> Iterator[Served]:
    """Serve while the block runs."""
    defaults = Defaults(config=CONFIG, method=method)
    settings = ServeSettings(defaults=defaults, policy="scripted", prm=(), name="demo", port=0, grace_s=grace_s, **changes)
    service = SearchService(open_session, lambda: None, max_waiting=settings.max_waiting)
    service.start()
    listener = bound_socket(settings.host, settings.port)
    port = listener.getsockname()[1]
    server, ready = SearchServer(http_settings(settings, service), service, grace_s), threading.Event()
    server.on_ready = ready.set
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(30)
        yield Served(f"http://127.0.0.1:{port}", port, service, server)
    finally:
        server.should_exit = True
        thread.join()
        service.stop()
        listener.close()
