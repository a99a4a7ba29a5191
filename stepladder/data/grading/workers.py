"""Processes that grade and can be killed: by algebra, or with the function of a task.

An answer that runs out of time gets a verdict. Its worker gets a successor, which starts while the worker is still busy. A slow answer will
most likely be killed, and by then the successor is ready. Nothing else waits for either.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeAlias

from stepladder.errors import BackendError

_PACKAGES = Path(__file__).parents[3]
_START_DEADLINE_S = 120.0
_END_DEADLINE_S = 5.0
# The deadline counts the worker's CPU time and the kernel enforces it there. This wall time only ends a worker that waits for ever
# instead of computing, so it is generous: a crowded machine must not change a verdict.
_WALL_FACTOR = 20.0
_SLOW_S = 0.3
"""Seconds after which a busy worker gets a successor, just in case."""

TIMEOUT, CRASHED = "timeout", "crashed"
"""Reasons of verdicts on answers whose worker ended."""

Message: TypeAlias = dict[str, Any]
"""A request to a worker, or its reply, as JSON. A worker that ends instead of replying gives ``{"correct": False, "reason": ...}``."""


@dataclass(slots=True)
class _Running:
    """A request that a worker is busy with."""

    index: int
    """Place of the request in the call."""
    since: float
    """Monotonic time at which it was sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerCommand:
    """How to start a worker."""

    script: Path
    """The script, run by its path in a fresh interpreter."""
    arguments: tuple[str, ...] = ()
    """Its arguments."""
    check: str = "import mpmath"
    """A statement that works where the worker starts, for the message if it does not."""


class WorkerPool:
    """Worker processes that reply to requests, one request at a time each."""

    def __init__(self, command: WorkerCommand, num_workers: int, *, deadline_s: float) -> None:
        """Remember how to start workers; the first request starts the first one.

        Args:
            command: Starts one.
            num_workers: Workers that are busy at the same time at most, >= 1.
            deadline_s: CPU seconds for one request, > 0. A worker that waits has 20 times as many seconds.
        """
        self._command, self._num_workers, self._deadline_s = command, num_workers, deadline_s
        self._idle: list[_Worker] = []
        self._starting: list[_Worker] = []

    def ask(self, requests: Sequence[Message]) -> list[Message]:
        """Send requests, and return the replies in the order of the requests.

        Raises:
            BackendError: If a worker process does not start.
        """
        waiting, running = deque(range(len(requests))), dict[_Worker, _Running]()
        replies: dict[int, Message] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._num_workers and (worker := self._idle_worker()):
                    index = waiting.popleft()
                    running[worker] = _Running(index, time.monotonic())
                    worker.send({**requests[index], "deadline_s": self._deadline_s})
                self._start_workers(waiting, running)
                replies.update(self._collect(running))
        except BaseException:
            # A worker that is busy for a call that nobody waits for must not answer the next one.
            for worker in running:
                worker.kill()
            raise
        return [replies[index] for index in range(len(requests))]

    def close(self) -> None:
        """End all workers."""
        for workers in (self._idle, self._starting):
            while workers:
                workers.pop().kill()

    def _idle_worker(self) -> "_Worker | None":
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                return worker
            worker.kill()
        return None

    def _start_workers(self, waiting: "deque[int]", running: dict["_Worker", _Running]) -> None:
        """Start as many workers as there is work for, and the successors of slow ones while something waits."""
        slow = sum(time.monotonic() - task.since > _SLOW_S for task in running.values())
        wanted = min(len(waiting), self._num_workers - len(running) + slow)
        for _ in range(wanted - len(self._starting) - len(self._idle)):
            self._starting.append(_Worker(self._command))

    def _collect(self, running: dict["_Worker", _Running]) -> dict[int, Message]:
        """Wait until a worker replies, gets ready or has run too long; return the finished replies."""
        now = time.monotonic()
        give_up_after = _WALL_FACTOR * self._deadline_s
        ends = [task.since + give_up_after - now for task in running.values()] + [worker.give_up_at - now for worker in self._starting]
        ends += [task.since + _SLOW_S - now for task in running.values() if now - task.since <= _SLOW_S]
        ready = wait([worker.fileno() for worker in (*running, *self._starting)], max(0.0, min(ends) + 0.001))
        now = time.monotonic()
        self._welcome(ready, now)
        done = {}
        for worker in [worker for worker, task in running.items() if worker.fileno() in ready or task.since + give_up_after <= now]:
            done[running.pop(worker).index] = worker.receive() if worker.fileno() in ready else worker.give_up()
            if worker.alive:
                self._idle.append(worker)
        return done

    def _welcome(self, ready: Sequence[Any], now: float) -> None:
        """Take in workers that have started."""
        for worker in [worker for worker in self._starting if worker.fileno() in ready or worker.give_up_at <= now]:
            self._starting.remove(worker)
            if worker.fileno() not in ready or not worker.has_started():
                worker.kill()
                raise BackendError(
                    "grading: the worker process must start: it ended or hung instead "
                    f"-- check that '{sys.executable} -c \"{self._command.check}\"' works"
                )
            self._idle.append(worker)


class _Worker:
    """One worker process."""

    def __init__(self, command: WorkerCommand) -> None:
        """Start the process; it takes requests after ``has_started``."""
        # A fresh interpreter, not a fork: a fork would copy a process that may hold models, threads and locks. It runs the script by
        # path (-P keeps this package's folder off its import path), so the caller's main module is not run again in it.
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-P", os.fspath(command.script), *command.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Processes that the code of a task starts are in the worker's group and end with it.
            start_new_session=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join([os.fspath(_PACKAGES), *(path for path in sys.path if path)])},
        )
        self._killed = False
        self.give_up_at = time.monotonic() + _START_DEADLINE_S
        """Monotonic time at which a worker that has not started never will."""

    @property
    def alive(self) -> bool:
        """Whether it can take another request."""
        return not self._killed and self._process.poll() is None

    def fileno(self) -> int:
        """File descriptor of its replies, to wait on."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def has_started(self) -> bool:
        """Read its first line; call it when its file descriptor is readable."""
        return self._reply() is not None

    def send(self, request: Message) -> None:
        """Hand it a request; a worker that has died in the meantime is noticed by ``receive``."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return

    def receive(self) -> Message:
        """Return its reply; call it when its file descriptor is readable."""
        reply = self._reply()
        if reply is not None:
            return reply
        # Its output has ended, so it is ending; the exit status gives the reason.
        self._await_end()
        self.kill()
        status = self._process.returncode
        return _ended(TIMEOUT if status == -signal.SIGPROF else CRASHED)

    def give_up(self) -> Message:
        """Kill it in the middle of its work."""
        self.kill()
        return _ended(TIMEOUT)

    def kill(self) -> None:
        """End the process with everything that it started, and free its pipes."""
        self._killed = True
        # Until it is waited for, its id and that of its group are nobody else's.
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def _await_end(self) -> None:
        """Wait for the end of the process, without freeing its id."""
        give_up_at = time.monotonic() + _END_DEADLINE_S
        while time.monotonic() < give_up_at:
            if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            time.sleep(0.005)

    def _reply(self) -> dict[str, Any] | None:
        """Return its next line, or None at the end."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None


def _ended(reason: str) -> Message:
    return {"correct": False, "reason": reason}
