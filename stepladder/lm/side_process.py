"""Processes that work beside this one and never outlive it.

Such a process and all that it starts form a process group, which is ended as a whole. Its input is a pipe that stays open as long as this
process lives: if this one is killed, the input ends, and the process ends its group itself.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_PATIENCE_S = 5.0
"""Longest wait for a killed process. The system may take a while to give a GPU back."""


def start(command: Sequence[str], *, log: Path) -> "subprocess.Popen[bytes]":
    """Start Python with some arguments, in a group of its own; output goes to the file ``log``."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        )


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process of ``start`` that still runs, and all that it started, and wait a few seconds at most."""
    # The number of a process that has ended may be that of another one by now.
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE_S)
    if process.stdin is not None:
        process.stdin.close()


def end_with_parent() -> None:
    """Called in a process of ``start``: let its group end as soon as the process that started it is gone."""

    def watch() -> None:
        # Not through sys.stdin: Python aborts at its end if a thread still reads there.
        while os.read(0, 1):
            pass
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
