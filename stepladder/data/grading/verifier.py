"""The grader: it holds the reference answers, outside the search.

Texts and plain numbers are compared in this process. What needs symbolic algebra goes to worker processes, which can be killed: an answer
that runs out of time gets a verdict and its worker a successor, and nothing else waits.
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
from types import TracebackType
from typing import Any

from stepladder.data.grading.answers import AnswerRule, exact_match, math_readable, math_source, number_match, parse_number
from stepladder.errors import BackendError, ConfigError, DataFormatError
from stepladder.types import LabelledProblem, Verdict

_WORKER = Path(__file__).with_name("math_worker.py")
_START_DEADLINE_S = 120.0
_END_DEADLINE_S = 5.0
# The deadline counts the worker's CPU time and the kernel enforces it there. This wall time only ends a worker that waits for ever
# instead of computing, so it is generous: a crowded machine must not change a verdict.
_WALL_FACTOR = 20.0
_MAX_REMEMBERED = 65_536

_EXACT = Verdict(correct=True, reason="exact match")
_EQUIVALENT = Verdict(correct=True, reason="equivalent")
_DIFFERS = Verdict(correct=False, reason="differs")
_UNREADABLE = Verdict(correct=False, reason="unreadable")
_TIMEOUT = Verdict(correct=False, reason="timeout")
_CRASHED = Verdict(correct=False, reason="crashed")

_Pair = tuple[str, str]
"""(answer, reference)."""


class AnswerVerifier:
    """A ``Verifier`` for the rules ``exact``, ``number`` and ``math``; close it, or use it in a ``with`` statement."""

    def __init__(
        self, problems: Sequence[LabelledProblem], rule: AnswerRule | str, *, num_workers: int = 1, deadline_s: float = 5.0
    ) -> None:
        """Hold the reference answers. Worker processes start with the first answer that needs one.

        Args:
            problems: What may be graded.
            rule: When an answer counts as right.
            num_workers: Processes for rule ``math``, >= 1; the other rules need none.
            deadline_s: CPU seconds after which an answer counts as wrong, with reason ``timeout``, > 0.

        Raises:
            DataFormatError: If a reference answer is empty, or no number under rule ``number``.
            ConfigError: If the rule is unknown, or a number is out of range.
        """
        if rule not in list(AnswerRule):
            raise ConfigError(f"rule: must be one of {', '.join(AnswerRule)}: got {rule!r} -- choose one of these")
        if num_workers < 1 or not deadline_s > 0:
            raise ConfigError(f"grading: needs num_workers >= 1 and deadline_s > 0: got {num_workers!r} and {deadline_s!r} -- raise them")
        self._rule = AnswerRule(rule)
        self._references = {labelled.problem.id: labelled.answer for labelled in problems}
        for problem_id, reference in self._references.items():
            _check_reference(problem_id, reference, self._rule)
        self._pool = _MathPool(num_workers, deadline_s=deadline_s)
        self._remembered: dict[_Pair, Verdict] = {}

    def grade(self, answers: Sequence[tuple[str, str | None]]) -> list[Verdict]:
        """Grade (problem id, final answer or None) pairs, in order.

        Reasons: ``exact match``, ``equivalent``, ``differs``, ``unreadable``, ``timeout``, and ``crashed`` when an answer took its worker
        process down.

        Raises:
            DataFormatError: If a problem id is unknown.
            BackendError: If a worker process does not start.
        """
        pairs = [(answer, self._reference(problem_id)) for problem_id, answer in answers]
        verdicts = [_UNREADABLE if answer is None else self._at_once(answer, reference) for answer, reference in pairs]
        open_pairs = [(answer, reference) for (answer, reference), verdict in zip(pairs, verdicts, strict=True) if answer and not verdict]
        self._remember([pair for pair in dict.fromkeys(open_pairs) if pair not in self._remembered])
        # Read in a second pass, and before anything is forgotten: an answer given twice was sent once.
        done = [verdict or self._remembered[answer or "", reference] for (answer, reference), verdict in zip(pairs, verdicts, strict=True)]
        while len(self._remembered) > _MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return done

    def close(self) -> None:
        """End the worker processes; grading again starts new ones."""
        self._pool.close()

    def __enter__(self) -> "AnswerVerifier":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _reference(self, problem_id: str) -> str:
        try:
            return self._references[problem_id]
        except KeyError:
            raise DataFormatError(
                f"grading: problem id must be one that the verifier holds: got {problem_id!r} -- give it the problems that are searched"
            ) from None

    def _at_once(self, answer: str, reference: str) -> Verdict | None:
        """Return the verdict where no algebra is needed, else None."""
        if exact_match(answer, reference):
            return _EXACT
        if self._rule is AnswerRule.EXACT:
            return _DIFFERS if answer.strip() else _UNREADABLE
        # Under ``math`` 50% is also 1/2, so a per cent sign is left to math-verify.
        if self._rule is AnswerRule.NUMBER or not ("%" in answer or "%" in reference):
            same = number_match(answer, reference)
            if same is not None:
                return _EQUIVALENT if same else _DIFFERS
        for_algebra = self._rule is AnswerRule.MATH and answer.strip() and math_readable(answer) and math_readable(reference)
        return None if for_algebra else _UNREADABLE

    def _remember(self, pairs: list[_Pair]) -> None:
        if pairs:
            self._remembered.update(zip(pairs, self._pool.grade(pairs), strict=True))


def _check_reference(problem_id: str, reference: str, rule: AnswerRule) -> None:
    if not reference.strip():
        raise DataFormatError(f"problem {problem_id!r}: must have a reference answer to be graded: got {reference!r} -- drop the problem")
    if rule is AnswerRule.NUMBER and parse_number(reference) is None:
        raise DataFormatError(
            f"problem {problem_id!r}: reference answer must be a number under rule 'number': got {reference!r} "
            "-- set answer_pattern to read the number out of it, or use rule 'math'"
        )


@dataclass(slots=True)
class _Running:
    """A pair that a worker is busy with."""

    index: int
    """Place of the pair in the call."""
    give_up_at: float
    """Monotonic time at which the worker is killed whatever it does."""


class _MathPool:
    """Worker processes that grade pairs by math-verify; one pair at a time each."""

    def __init__(self, num_workers: int, *, deadline_s: float) -> None:
        self._num_workers = num_workers
        self._deadline_s = deadline_s
        self._idle: list[_Worker] = []

    def grade(self, pairs: Sequence[_Pair]) -> list[Verdict]:
        """Grade pairs in any order of completion; the verdicts come in the order of the pairs."""
        waiting, running = deque(range(len(pairs))), dict[_Worker, _Running]()
        verdicts: dict[int, Verdict] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._num_workers:
                    worker = self._free_worker()
                    index = waiting.popleft()
                    running[worker] = _Running(index, time.monotonic() + _WALL_FACTOR * self._deadline_s)
                    worker.send(pairs[index], deadline_s=self._deadline_s)
                verdicts.update(self._collect(running))
        except BaseException:
            # A worker that is busy for a call that nobody waits for must not answer the next one.
            for worker in running:
                worker.kill()
            raise
        return [verdicts[index] for index in range(len(pairs))]

    def _free_worker(self) -> "_Worker":
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                return worker
            worker.kill()
        return _Worker()

    def _collect(self, running: dict["_Worker", _Running]) -> dict[int, Verdict]:
        """Wait for at least one worker, take it out of ``running`` and return the verdicts."""
        patience = max(0.0, min(task.give_up_at for task in running.values()) - time.monotonic())
        ready = wait([worker.fileno() for worker in running], patience)
        now = time.monotonic()
        done = {}
        for worker in [worker for worker, task in running.items() if worker.fileno() in ready or task.give_up_at <= now]:
            done[running.pop(worker).index] = worker.receive() if worker.fileno() in ready else worker.give_up()
            if worker.alive:
                self._idle.append(worker)
        return done

    def close(self) -> None:
        """End all workers."""
        while self._idle:
            self._idle.pop().kill()


class _Worker:
    """One worker process."""

    def __init__(self) -> None:
        """Start the process and wait until it can grade.

        Raises:
            BackendError: If it does not start, most likely because math-verify is not installed.
        """
        # A fresh interpreter, not a fork: a fork would copy a process that may hold models, threads and locks. It runs the script by
        # path (-P keeps this package's folder off its import path), so the caller's main module is not run again in it.
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-P", os.fspath(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self._killed = False
        if not wait([self.fileno()], _START_DEADLINE_S) or self._reply() is None:
            self.kill()
            raise BackendError(
                "grading: the math-verify worker process must start: it ended or hung instead "
                f"-- check that '{sys.executable} -c \"import math_verify\"' works"
            )

    @property
    def alive(self) -> bool:
        """Whether it can take another pair."""
        return not self._killed and self._process.poll() is None

    def fileno(self) -> int:
        """File descriptor of its replies, to wait on."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, pair: _Pair, *, deadline_s: float) -> None:
        """Hand it a pair; a worker that has died in the meantime is noticed by ``receive``."""
        answer, reference = pair
        request = {"answer": math_source(answer), "reference": math_source(reference), "deadline_s": deadline_s}
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
        # Its output has ended, so it is ending; the exit status says what of.
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
        """Return its next line, or None if there is none to come."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None
