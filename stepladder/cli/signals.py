"""Handling of Ctrl-C and SIGTERM: the first signal ends the work in order, the second at once."""

import os
import signal
from types import FrameType

import typer


class Terminated(KeyboardInterrupt):
    """SIGTERM: the work stops as after Ctrl-C, with an exit code of its own."""


def handle_signals() -> None:
    """Let Ctrl-C and SIGTERM stop this process: once in order, a second time without waiting for anything.

    Ending at once is safe: results are written completely or not at all, and workers end when their parent is gone.
    """
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


def stopped(stop: KeyboardInterrupt) -> typer.Exit:
    """Return the exit of a command that a signal stopped: 130 after Ctrl-C, 143 after SIGTERM."""
    return typer.Exit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)
