"""``solve --interactive``: models are loaded once, and questions are asked one after the other."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from stepladder.commands.solve_report import Detail, answer_row, readable
from stepladder.commands.solve_settings import SolveSettings
from stepladder.errors import DataFormatError, check
from stepladder.lm.loaded_models import LoadedModels
from stepladder.loops.assembly.search_session import SearchSession
from stepladder.terminal import echo
from stepladder.types import SearchResult, StopReason

_PROMPT = "question> "


def converse(settings: SolveSettings, *, detail: Detail, ask: Callable[[], str | None] | None = None) -> None:
    """Ask for questions and print their answers until there are no more.

    Ctrl-C ends a search with the best answer so far. At the prompt it ends the conversation, as Ctrl-D does.

    Args:
        settings: Models, method and budget.
        detail: How much to print.
        ask: Returns the next question, or None at the end; None reads standard input, with a prompt on a terminal.

    Raises:
        ConfigError: If a second model is to review the answers.
    """
    check(settings.discriminator is None, "--interactive: answers without a second model: got --discriminator -- leave one of them out")
    ask = ask or _next_question
    with LoadedModels() as models:
        session = SearchSession(settings.config, models, policy=settings.policy, prm=settings.prm)
        try:
            if detail is not Detail.QUIET and sys.stdin.isatty():
                echo(f"{settings.policy} with {settings.method.name}; Ctrl-D ends, Ctrl-C stops a search", err=True)
            with suppress(KeyboardInterrupt):
                while (question := ask()) is not None:
                    if question.strip():
                        _answer(session, settings, question.strip(), detail)
        finally:
            session.close()


def _answer(session: SearchSession, settings: SolveSettings, question: str, detail: Detail) -> None:
    """Search one question and print the answer."""
    begin = time.monotonic()
    try:
        ticket = session.begin(question, method=settings.method, budget=settings.budget, seed=settings.seed)
    except DataFormatError as error:
        echo(f"error: {error}", err=True)
        return
    with _stoppable(session) as is_stopped:
        result = _until_over(session, ticket, is_stopped)
    row, seconds = answer_row(result, question, discriminator_tokens=None), time.monotonic() - begin
    ended = "stopped, so this is the best answer so far" if is_stopped() else None
    echo(readable(row, result, settings.budget, seconds=seconds, detail=detail, ended=ended))
    if detail is not Detail.QUIET:
        echo("")


def _until_over(session: SearchSession, ticket: int, is_stopped: Callable[[], bool]) -> SearchResult:
    while True:
        for done, result in session.turn():
            if done == ticket:
                return result
        if is_stopped():
            return session.end(ticket, StopReason.SECONDS)


@contextmanager
def _stoppable(session: SearchSession) -> Iterator[Callable[[], bool]]:
    """Yield the function that says whether Ctrl-C was pressed: a search ends between two turns, never inside one."""
    pressed = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        # Not here: the search may be inside the queue that an interrupt goes through.
        threading.Thread(target=session.interrupt, daemon=True).start()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _next_question() -> str | None:
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    with suppress(ImportError):
        import readline  # noqa: F401 - input() then edits lines and remembers them
    try:
        return input(_PROMPT)
    except EOFError:
        echo("")
        return None
