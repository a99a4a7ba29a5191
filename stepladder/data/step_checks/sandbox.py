"""Running Python that a model wrote: a fresh process per piece, shut in by the kernel, killed when its time is up.

``sandbox_worker`` says what the process cannot do and which lock sees to it. From outside come an environment of a few fixed variables, a
working directory that is deleted afterwards, a cap on what that directory and the output may hold, and a deadline. Where a lock is missing
(other systems than Linux, kernels before 5.13, processors other than x86-64, containers that forbid Landlock or seccomp) nothing is run,
unless the caller allows it; then a misbehaving piece has the user's own rights, for as long as the deadline lets it.

The same code gives the same result, as far as code can: hash seed and environment are fixed, but not clocks and random numbers.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

from stepladder.errors import BackendError, ConfigError

_WORKER = Path(__file__).with_name("sandbox_worker.py")
_MEMORY_BYTES = 1 << 30
_FILE_BYTES = 16 << 20
_OPEN_FILES = 64
_SCRATCH_BYTES, _SCRATCH_FILES = 64 << 20, 256
_OUTPUT_BYTES, _PRINTED_BYTES = 8192, 4 << 20
_LOOK_EVERY_S = 0.05
# The deadline counts CPU time, so that a crowded machine does not change a result. What waits instead of computing is ended when it has
# used no CPU time for so long, and by a generous wall time if it wakes now and then.
_IDLE_S = 5.0
_WALL_FACTOR = 20.0
_MAX_REMEMBERED = 65_536
_UNSAFE = (
    "code that a model wrote must be shut in before it runs: that needs Linux 5.13 or later on x86-64 with Landlock and seccomp: one is "
    "missing here, or forbidden in this container -- allow them, or set allow_unsandboxed if it may run with your own rights"
)
# Isolated mode (-I) would ignore the hash seed; -P and -s, and an environment without anything else, are the same isolation.
_FLAGS = ("-P", "-s", "-B")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class CodeRun(NamedTuple):
    """What became of a piece of code."""

    passed: bool
    """Whether it ran to its end, with exit status 0."""
    reason: str
    """``ran``, ``failed`` (an exception, or another exit status), ``timeout``, ``killed`` by a signal, or ``overfull`` (it wrote or printed
    too much)."""
    output: str
    """What it printed, errors included, cut after 8192 bytes."""


class CodeSandbox:
    """Runs pieces of Python, some at a time, and remembers what became of them."""

    def __init__(self, *, deadline_s: int = 5, num_workers: int = 4, allow_unsandboxed: bool = False) -> None:
        """Check that code can be shut in here.

        Args:
            deadline_s: CPU seconds after which code counts as failed, >= 1.
            num_workers: Pieces run at once, >= 1.
            allow_unsandboxed: Run code even where it cannot be shut in.

        Raises:
            ConfigError: If it cannot be shut in and that is not allowed, or a number is out of range.
        """
        if deadline_s < 1 or num_workers < 1:
            raise ConfigError(f"sandbox: needs deadline_s and num_workers >= 1: got {deadline_s!r} and {num_workers!r} -- raise them")
        if not allow_unsandboxed:
            check_sandbox()
        self._deadline_s, self._num_workers, self._trusting = deadline_s, num_workers, allow_unsandboxed
        self._remembered: dict[str, CodeRun] = {}

    def run(self, codes: Sequence[str]) -> list[CodeRun]:
        """Run pieces of code and return what became of each, in order; the same piece is run once.

        Raises:
            BackendError: If a process does not start.
        """
        new = [code for code in dict.fromkeys(codes) if code not in self._remembered]
        if new:
            with ThreadPoolExecutor(self._num_workers) as pool:
                runs = pool.map(lambda code: run_code(code, deadline_s=self._deadline_s, allow_unsandboxed=self._trusting), new)
                self._remembered.update(zip(new, runs, strict=True))
        done = [self._remembered[code] for code in codes]
        while len(self._remembered) > _MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return done


@cache
def check_sandbox() -> None:
    """Check that code can be shut in on this machine.

    Raises:
        ConfigError: If a lock is missing.
        BackendError: If the process that looks does not start.
    """
    if not _run("", deadline_s=5, allow_unsandboxed=False)[0]:
        raise ConfigError(f"sandbox: {_UNSAFE}")


def run_code(code: str, *, deadline_s: int, allow_unsandboxed: bool = False) -> CodeRun:
    """Run one piece of code in a process of its own.

    Args:
        code: Python source.
        deadline_s: CPU seconds that it may take, >= 1.
        allow_unsandboxed: Run it even where it cannot be shut in.

    Raises:
        BackendError: If the process does not start, or the code cannot be shut in and that is not allowed.
    """
    safe, run = _run(code, deadline_s=deadline_s, allow_unsandboxed=allow_unsandboxed)
    if not (safe or allow_unsandboxed):
        raise BackendError(f"sandbox: {_UNSAFE}")
    return run


def _run(code: str, *, deadline_s: int, allow_unsandboxed: bool) -> tuple[bool, CodeRun]:
    """Return whether the code was shut in, and what became of it; code that is not, and may not run otherwise, is not run."""
    limits = {"cpu_s": deadline_s, "memory_bytes": _MEMORY_BYTES, "file_bytes": _FILE_BYTES, "open_files": _OPEN_FILES}
    request = json.dumps({"code": code, "limits": limits, "trusting": allow_unsandboxed})
    with tempfile.TemporaryDirectory(prefix="stepladder-code-") as scratch:
        process = _start(scratch)
        try:
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin:
                process.stdin.write(request.encode())
            ending, output = _watch(process, Path(scratch), give_up_at=time.monotonic() + _WALL_FACTOR * deadline_s)
        finally:
            _kill(process)
    if output[:1] not in (b"R", b"U"):
        raise BackendError(
            f"sandbox: its process must start: it ended with status {process.returncode} and {output[-200:].decode(errors='replace')!r} "
            f"-- check {sys.executable!r}"
        )
    reason = ending or _reason(process.returncode)
    return output[:1] == b"R", CodeRun(reason == "ran", reason, output[1:].decode(errors="replace"))


def _start(scratch: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, *_FLAGS, os.fspath(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_ENVIRONMENT,
        cwd=scratch,
        start_new_session=True,
    )


def _watch(process: "subprocess.Popen[bytes]", scratch: Path, *, give_up_at: float) -> tuple[str | None, bytes]:
    """Wait for the process and return why it has to be killed, None where it ended by itself, and the first part of its output."""
    assert process.stdout is not None
    kept, printed, printing, looked_at = b"", 0, True, 0.0
    used_s, moved_at = -1.0, time.monotonic()
    while printing or not _ended(process):
        if not printing:
            time.sleep(_LOOK_EVERY_S)
        elif wait([process.stdout.fileno()], _LOOK_EVERY_S):
            # What is beyond the cut is read and dropped, so that printing never blocks.
            part = os.read(process.stdout.fileno(), 65_536)
            kept, printed, printing = kept + part[: 1 + _OUTPUT_BYTES - len(kept)], printed + len(part), bool(part)
        now = time.monotonic()
        if now - looked_at < _LOOK_EVERY_S:
            continue
        looked_at = now
        if (used := _cpu_s(process.pid, now)) > used_s:
            used_s, moved_at = used, now
        if now > give_up_at or now - moved_at > _IDLE_S:
            return "timeout", kept
        if printed > _PRINTED_BYTES or _overfull(scratch):
            return "overfull", kept
    return None, kept


def _ended(process: "subprocess.Popen[bytes]") -> bool:
    """Whether a process has ended. It is not reaped, so that its group, which is killed at the end, is still its own."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _cpu_s(pid: int, now: float) -> float:
    """Return the CPU seconds that a child has used; elsewhere than on Linux, whose clock ids these are, the time that always moves."""
    return time.clock_gettime(~pid << 3 | 2) if sys.platform == "linux" else now


def _overfull(scratch: Path) -> bool:
    """Whether the working directory, which has no folders, holds too much."""
    count = size = 0
    with os.scandir(scratch) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                count, size = count + 1, size + entry.stat(follow_symlinks=False).st_size
            if count > _SCRATCH_FILES or size > _SCRATCH_BYTES:
                return True
    return False


def _reason(status: int) -> str:
    if status == 0:
        return "ran"
    if status == -signal.SIGXCPU:
        return "timeout"
    return "killed" if status < 0 else "failed"


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the process and, where it was not shut in, its children."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
