"""One thread that searches for all clients: a bounded queue in front of a ``SearchSession``.

The thread owns the models. Others hand it a search with ``ask`` and take results from callbacks; ``end`` ends a search before its time. If
a backend fails as a whole, every open search fails, and the models are loaded again before the next one.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from stepladder.errors import ConfigError, DataFormatError, StepladderError
from stepladder.mcts.live_searches import LiveResult, SearchView
from stepladder.mcts.search_method import SearchMethod
from stepladder.serve.errors import ApiError
from stepladder.serve.metrics import Metrics
from stepladder.tree_paths import path_to
from stepladder.types import Budget, Problem, SearchResult, Step, StopReason

if TYPE_CHECKING:
    from stepladder.policy.prompts import PromptRenderer

_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 30.0
"""Delays before failed models are loaded again; each is twice the one before."""
_STUCK_S = 120.0
"""Seconds of one turn after which the engine counts as stuck."""
_SICK_S = 30.0
"""Seconds for which a search without any sample speaks against the server."""


class Session(Protocol):
    """What the thread needs of a ``SearchSession``."""

    @property
    def renderer(self) -> "PromptRenderer":
        """Makes prompts."""
        ...

    @property
    def context(self) -> int | None:
        """Tokens that the policy can hold; None if unknown."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether another search may begin."""
        ...

    def __len__(self) -> int: ...

    def begin(self, question: str, *, method: SearchMethod, budget: Budget, seed: int, prompt_ids: tuple[int, ...] | None) -> int:
        """Begin a search."""
        ...

    def turn(self) -> list[LiveResult]:
        """Advance all searches."""
        ...

    def end(self, ticket: int, reason: StopReason) -> SearchResult:
        """End a search before its time."""
        ...

    def settled(self) -> list[int]:
        """Return the searches without a wave in flight."""
        ...

    def view(self, ticket: int) -> SearchView:
        """Return the state of a search."""
        ...

    def interrupt(self) -> None:
        """Make a turn that waits return soon."""
        ...

    def close(self) -> None:
        """End processes of the session's own."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What a search is about: exactly one of its fields is set."""

    messages: Sequence[dict[str, str]] = ()
    """A conversation."""
    text: str | None = None
    """A whole prompt as text."""
    ids: tuple[int, ...] | None = None
    """A whole prompt as token ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A search to make."""

    prompt: Prompt
    """The prompt."""
    method: SearchMethod
    """How to search."""
    budget: Budget
    """Its caps."""
    seed: int
    """Its seed, >= 0."""
    wants_progress: bool = False
    """Whether settled steps are reported while it runs."""
    wants_pieces: bool = False
    """Whether the text of each token of the solution is wanted."""


class Snapshot(NamedTuple):
    """A search in progress."""

    steps: tuple[Step, ...]
    """Steps that every solution still possible begins with."""
    answer: str | None
    """The answer so far."""
    generated_tokens: int
    """Tokens so far."""
    simulations: int
    """Simulations so far."""


class Answer(NamedTuple):
    """A search that is over."""

    result: SearchResult
    """What it found."""
    pieces: tuple[str, ...]
    """Text of each token of the solution, if wanted."""
    path: tuple[int, ...]
    """Nodes of the solution; without an answer those of the most promising path."""
    seconds: float
    """Seconds from its arrival to its end."""


Event = Snapshot | Answer | ApiError


@dataclass(kw_only=True, eq=False, slots=True)
class Pending:
    """A requested search."""

    ask: Ask
    deliver: Callable[[Event], None]
    arrived: float = field(default_factory=time.monotonic)
    ticket: int | None = None
    num_shown: int = 0
    is_over: bool = False


class SearchService:
    """The queue and the thread. A context manager: it loads the models at its begin and frees them at its end."""

    def __init__(
        self, open_session: Callable[[], Session], release: Callable[[], None], *, max_waiting: int = 512, metrics: Metrics | None = None
    ) -> None:
        """Describe a service; ``start`` loads the models.

        Args:
            open_session: Loads the models.
            release: Frees them.
            max_waiting: Searches that may wait for room, >= 1.
            metrics: Counts what happens.
        """
        self._open, self._release, self._max_waiting = open_session, release, max_waiting
        self.metrics = metrics or Metrics()
        self._wake = threading.Condition()
        self._waiting: deque[Pending] = deque()
        self._ended: list[tuple[Pending, StopReason | None]] = []
        self._running: dict[int, Pending] = {}
        self._session: Session | None = None
        self._failure: str | None = None
        self._retry_at, self._retry_s = 0.0, _FIRST_RETRY_S
        self._is_draining, self._is_stopping = False, False
        self._turn_began: float | None = None
        """When the turn began that runs now; None between two turns."""
        self._sick: tuple[float, str] | None = None
        """When a search last got no sample at all, and why; None if the search after it got some."""
        self._mean_s = 1.0
        """Moving average of the seconds that a search takes, for ``Retry-After``."""
        self._thread = threading.Thread(target=self._work, name="stepladder-search", daemon=True)

    def start(self) -> None:
        """Load the models and begin to search.

        Raises:
            StepladderError: If they cannot be loaded.
        """
        self._session = self._open()
        self._thread.start()

    def stop(self) -> None:
        """End every search with what it found so far, end the thread, and free the models."""
        with self._wake:
            self._is_draining = self._is_stopping = True
            self._poke()
        if self._thread.is_alive():
            self._thread.join()
        self._forget_session()

    def drain(self) -> None:
        """Take no more searches; those that were taken go on."""
        with self._wake:
            self._is_draining = True

    def finish_early(self) -> None:
        """End every search with what it found so far."""
        with self._wake:
            for pending in (*self._running.values(), *self._waiting):
                self._ended.append((pending, StopReason.SECONDS))
            self._poke()

    @property
    def problem(self) -> str | None:
        """Why no search can be taken now; None if it can."""
        return "the server is stopping" if self._is_draining else self._failure

    @property
    def complaint(self) -> str | None:
        """Why the server should not be asked now, even if it would try: for ``/health``. None if all is well.

        The policy's server may be gone: a search without any sample counts for half a minute, or until another one gets some. Or the engine
        may be stuck.
        """
        began, sick = self._turn_began, self._sick
        if self.problem is not None:
            return self.problem
        if began is not None and time.monotonic() - began > _STUCK_S:
            return f"the search engine has not answered for {time.monotonic() - began:.0f} s"
        return sick[1] if sick is not None and time.monotonic() - sick[0] < _SICK_S else None

    @property
    def num_open(self) -> int:
        """Searches that run or wait."""
        return len(self._running) + len(self._waiting)

    def ask(self, asks: Sequence[Ask], deliver: Callable[[int, Event], None]) -> list[Pending]:
        """Queue the searches of one request, all or none. Safe from any thread.

        Args:
            asks: The searches.
            deliver: Called on the search thread with the number of the search and what happened to it; the last event of a search is an
                ``Answer`` or an ``ApiError``.

        Raises:
            ApiError: If the server is stopping or has failed, or the queue is full.
        """
        with self._wake:
            if self._is_draining:
                raise ApiError(503, "the server is stopping -- ask another one", code="stopping", headers={"Retry-After": "5"})
            if self._failure is not None and time.monotonic() < self._retry_at:
                seconds = self._retry_at - time.monotonic()
                raise _unavailable(self._failure, seconds)
            if len(self._waiting) + len(asks) > self._max_waiting:
                self.metrics.add("stepladder_rejected_total", reason="queue_full")
                raise self._too_many(len(asks))
            pendings = [Pending(ask=ask, deliver=_numbered(deliver, number)) for number, ask in enumerate(asks)]
            self._waiting.extend(pendings)
            self._poke()
        return pendings

    def end(self, pending: Pending, reason: StopReason | None) -> None:
        """End a search before its time; with a reason its best answer so far is delivered, without one nothing is."""
        with self._wake:
            self._ended.append((pending, reason))
            self._poke()

    def _poke(self) -> None:
        self._wake.notify_all()
        session = self._session
        if session is not None:
            session.interrupt()

    def _too_many(self, wanted: int) -> ApiError:
        if wanted > self._max_waiting:
            return ApiError(400, f"n: a request may have at most {self._max_waiting} searches: got {wanted}", code="too_many_searches")
        room = max(len(self._running), 1)
        seconds = min(max(self._mean_s * (1 + len(self._waiting) / room), 1.0), 60.0)
        message = f"the queue is full: {len(self._waiting)} searches wait -- ask again in {seconds:.0f} s"
        return ApiError(429, message, code="queue_full", headers={"Retry-After": f"{seconds:.0f}"})

    # The search thread.

    def _work(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._ended or self._running or self._is_stopping or self._is_due()):
                    self._wake.wait(None if self._failure is None else max(self._retry_at - time.monotonic(), 0.01))
                ended, self._ended = self._ended, []
                stops = self._is_stopping
            # Whatever a backend raises must not end the thread: clients would wait for ever.
            try:
                for pending, reason in ended:
                    self._end(pending, reason)
                if stops:
                    self._end_all()
                else:
                    self._begin_waiting()
                    self._advance()
            except Exception as error:
                self._fail(error)
            if stops:
                return

    def _is_due(self) -> bool:
        """Whether failed models are to be loaded again now."""
        return self._failure is not None and time.monotonic() >= self._retry_at

    def _begin_waiting(self) -> None:
        if self._session is None:
            if not self._is_due():
                return
            self._session = self._open()
            self._failure, self._retry_s = None, _FIRST_RETRY_S
            self.metrics.add("stepladder_engine_restarts_total")
        while self._session.has_room:
            with self._wake:
                pending = self._waiting.popleft() if self._waiting else None
            if pending is None:
                return
            if not pending.is_over:
                self._begin(self._session, pending)

    def _begin(self, session: Session, pending: Pending) -> None:
        ask = pending.ask
        try:
            question, ids = _written(session, ask.prompt)
            ticket = session.begin(question, method=ask.method, budget=ask.budget, seed=ask.seed, prompt_ids=ids)
        except ApiError as error:
            self._close(pending, error)
        except (ConfigError, DataFormatError) as error:
            self._close(pending, ApiError(400, str(error), code="invalid_prompt"))
        else:
            pending.ticket = ticket
            self._running[ticket] = pending

    def _advance(self) -> None:
        session = self._session
        if session is None or not len(session):
            return
        self._turn_began = time.monotonic()
        try:
            results = session.turn()
        finally:
            self._turn_began = None
        for ticket, result in results:
            pending = self._running.pop(ticket)
            self._close(pending, self._answered(session, pending, result))
        if any(pending.ask.wants_progress for pending in self._running.values()):
            for ticket in session.settled():
                self._show(session, self._running[ticket])

    def _show(self, session: Session, pending: Pending) -> None:
        """Deliver the settled steps of a search, if there are new ones."""
        if not pending.ask.wants_progress or pending.ticket is None:
            return
        view = session.view(pending.ticket)
        path = view.common_path()
        if len(path) > pending.num_shown:
            pending.num_shown = len(path)
            steps = tuple(view.steps_to(path[-1]))
            pending.deliver(Snapshot(steps, view.choice().answer, view.generated_tokens, view.num_simulations))

    def _end(self, pending: Pending, reason: StopReason | None) -> None:
        if pending.is_over:
            return
        session, result = self._session, None
        if pending.ticket is not None and session is not None:
            result = session.end(pending.ticket, reason or StopReason.ERROR)
            # Only now: a search whose end fails is still among those that fail with the engine.
            del self._running[pending.ticket]
        with self._wake:
            if pending in self._waiting:
                self._waiting.remove(pending)
        if reason is None:
            pending.is_over = True
            spent = 0 if result is None else result.tree.generated_tokens
            self.metrics.add("stepladder_searches_total", method=pending.ask.method.name, ended="cancelled")
            self.metrics.add("stepladder_generated_tokens_total", spent)
        elif result is not None and session is not None:
            self._close(pending, self._answered(session, pending, result))
        else:
            message = "the deadline passed before the search could begin -- ask again, or allow more seconds"
            self._close(pending, ApiError(503, message, code="deadline_exceeded", headers={"Retry-After": "1"}))

    def _end_all(self) -> None:
        for pending in [*self._running.values(), *self._waiting]:
            self._end(pending, StopReason.SECONDS)

    def _fail(self, error: Exception) -> None:
        """Fail every open search; the models are loaded again before the next one."""
        told = str(error) if isinstance(error, StepladderError) else f"{type(error).__name__}: {error}"
        with self._wake:
            self._failure = f"the search engine failed: {' '.join(told.split())[:500]}"
            self._retry_at = time.monotonic() + self._retry_s
            failed = [*self._running.values(), *self._waiting]
            self._running.clear()
            self._waiting.clear()
            delay, self._retry_s = self._retry_s, min(2 * self._retry_s, _LAST_RETRY_S)
        # A dead engine may not even close. The error above is the one to tell.
        with suppress(Exception):
            self._forget_session()
        self.metrics.add("stepladder_engine_failures_total")
        for pending in failed:
            self._close(pending, _unavailable(self._failure, delay))

    def _forget_session(self) -> None:
        session, self._session = self._session, None
        try:
            if session is not None:
                session.close()
        finally:
            self._release()

    def _answered(self, session: Session, pending: Pending, result: SearchResult) -> Event:
        seconds = time.monotonic() - pending.arrived
        self._mean_s = 0.9 * self._mean_s + 0.1 * seconds
        tree, ended = result.tree, str(result.stop_reason)
        self.metrics.add("stepladder_searches_total", method=tree.method, ended=ended)
        self.metrics.add("stepladder_generated_tokens_total", tree.generated_tokens)
        self.metrics.add("stepladder_simulations_total", tree.num_simulations)
        self.metrics.observe("stepladder_search_seconds", seconds)
        if result.failures.all_failed:
            said = result.failures.sentence()
            self._sick = time.monotonic(), f"the policy gives no sample: {said}"
            return ApiError(502, f"the policy gave no sample: {said}", code="policy_failed")
        self._sick = None
        path = tuple(path_to(tree, _end_of_solution(result)))
        pieces: tuple[str, ...] = ()
        if pending.ask.wants_pieces:
            pieces = tuple(session.renderer.decode([token]) for node in path for token in tree.token_ids[node])
        return Answer(result, pieces, path, seconds)

    def _close(self, pending: Pending, event: Event) -> None:
        pending.is_over = True
        pending.deliver(event)


def _numbered(deliver: Callable[[int, Event], None], number: int) -> Callable[[Event], None]:
    return lambda event: deliver(number, event)


def _unavailable(message: str, seconds: float) -> ApiError:
    return ApiError(503, f"{message} -- ask again", code="engine_failed", headers={"Retry-After": f"{max(seconds, 1.0):.0f}"})


def _written(session: Session, prompt: Prompt) -> tuple[str, tuple[int, ...] | None]:
    """Return the question of a prompt, and its tokens unless the renderer makes them from the question.

    Raises:
        ApiError: If it does not fit the model.
        DataFormatError: If it cannot be written as tokens.
    """
    renderer: Any = session.renderer
    if prompt.ids is not None:
        vocab = len(renderer.tokenizer)
        if max(prompt.ids) >= vocab:
            raise ApiError(400, f"prompt: token ids must be below {vocab}: got {max(prompt.ids)}", code="invalid_prompt", param="prompt")
        question, ids = renderer.decode(prompt.ids), prompt.ids
    elif prompt.text is not None:
        question, ids = prompt.text, renderer.text_ids(prompt.text)
    else:
        question = "\n\n".join(message["content"] for message in prompt.messages)
        alone = len(prompt.messages) == 1 and prompt.messages[0]["role"] == "user"
        # A lone question gets the prompt that the policy was trained with.
        ids = renderer.prompt_ids(Problem(id="question", question=question)) if alone else renderer.conversation_ids(prompt.messages)
    if session.context is not None and len(ids) >= session.context:
        raise ApiError(
            400,
            f"the prompt must leave room in the model's context of {session.context} tokens: got {len(ids)} -- shorten it",
            code="context_length_exceeded",
        )
    return question, ids


def _end_of_solution(result: SearchResult) -> int:
    """Return the last node of the shown solution: that of the answer, else the end of the most visited path."""
    if result.answer_node is not None:
        return result.answer_node
    tree, children = result.tree, {}
    for node, parent in enumerate(result.tree.parents[1:], start=1):
        children.setdefault(parent, []).append(node)
    at = 0
    while at in children:
        at = max(children[at], key=lambda node: (tree.visits[node], -1.0 if tree.scores[node] is None else tree.scores[node]))
    return at
