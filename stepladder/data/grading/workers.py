"""Processes that decide by algebra and can be killed.

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
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from stepladder.data.grading.rules import MathOptions
from stepladder.errors import BackendError
from stepladder.types import Verdict

_PACKAGES = Path(__file__).parents[3]
_START_DEADLINE_S = 120.0
_END_DEADLINE_S = 5.0
# The deadline counts the worker's CPU time and the kernel enforces it there. This wall time only ends a worker that waits for ever
# instead of computing, so it is generous: a crowded machine must not change a verdict.
_WALL_FACTOR = 20.0
_SLOW_S = 0.3
"""Seconds after which a busy worker gets a successor, just in case."""

_TIMEOUT = Verdict(correct=False, reason="timeout")
_CRASHED = Verdict(correct=False, reason="crashed")

Pair = tuple[str, str]
"""(answer, reference)."""


@dataclass(slots=True)
class _Running:
    """A pair that a worker is busy with."""

    index: int
    """Place of the pair in the call."""
    since: float
    """Monotonic time at which it was sent."""


class WorkerPool:
    """Worker processes that grade pairs, one pair at a time each."""

    def __init__(self, script: Path, num_workers: int, *, deadline_s: float, options: MathOptions) -> None:
        """Remember how to start workers; the first pair starts the first one.

        Args:
            script: The script of each worker.
            num_workers: Workers that are busy at the same time at most, >= 1.
            deadline_s: CPU seconds for one pair, > 0.
            options: Of rule ``math``.
        """
        self._script, self._num_workers, self._deadline_s = script, num_workers, deadline_s
        self._options = asdict(options)
        self._idle: list[_Worker] = []
        self._starting: list[_Worker] = []

    def grade(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Grade pairs, and return the verdicts in the order of the pairs.

        Raises:
            BackendError: If a worker process does not start.
        """
        waiting, running = deque(range(len(pairs))), dict[_Worker, _Running]()
        verdicts: dict[int, Verdict] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._num_workers and (worker := self._idle_worker()):
                    index = waiting.popleft()
                    running[worker] = _Running(index, time.monotonic())
                    worker.send(pairs[index], options=self._options, deadline_s=self._deadline_s)
                self._start_workers(waiting, running)
                verdicts.update(self._collect(running))
        except BaseException:
            # A worker that is busy for a call that nobody waits for must not answer the next one.
            for worker in running:
                worker.kill()
            raise
        return [verdicts[index] for index in range(len(pairs))]

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
            self._starting.append(_Worker(self._script))

    def _collect(self, running: dict["_Worker", _Running]) -> dict[int, Verdict]:
        """Wait until a worker replies, gets ready or has run too long; return the finished verdicts."""
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
                    f"-- check that '{sys.executable} -c \"import mpmath\"' works"
                )
            self._idle.append(worker)


class _Worker:
    """One worker process."""

    def __init__(self, script: Path) -> None:
        """Start the process; it can grade after ``has_started``."""
        # A fresh interpreter, not a fork: a fork would copy a process that may hold models, threads and locks. It runs the script by
        # path (-P keeps this package's folder off its import path), so the caller's main module is not run again in it.
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-P", os.fspath(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join([os.fspath(_PACKAGES), *(path for path in sys.path if path)])},
        )
        self._killed = False
        self.give_up_at = time.monotonic() + _START_DEADLINE_S
        """Monotonic time at which a worker that has not started never will."""

    @property
    def alive(self) -> bool:
        """Whether it can take another pair."""
        return not self._killed and self._process.poll() is None

    def fileno(self) -> int:
        """File descriptor of its replies, to wait on."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def has_started(self) -> bool:
        """Read its first line; call it when its file descriptor is readable."""
        return self._reply() is not None

    def send(self, pair: Pair, *, options: dict[str, Any], deadline_s: float) -> None:
        """Hand it a pair; a worker that has died in the meantime is noticed by ``receive``."""
        answer, reference = pair
        request = {"answer": answer, "reference": reference, "options": options, "deadline_s": deadline_s}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return

    def receive(self) -> Verdict:
        """Return its verdict; call it when its file descriptor is readable."""
        reply = self._reply()
        if reply is not None:
            return Verdict(correct=reply["correct"], reason=reply["reason"])
        # Its output has ended, so it is ending; the exit status gives the reason.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_END_DEADLINE_S)
        status = self._process.returncode
        self.kill()
        return _TIMEOUT if status == -signal.SIGPROF else _CRASHED

    def give_up(self) -> Verdict:
        """Kill it in the middle of its work."""
        self.kill()
        return _TIMEOUT

    def kill(self) -> None:
        """End the process and free its pipes."""
        self._killed = True
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def _reply(self) -> dict[str, Any] | None:
        """Return its next line, or None at the end."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None
