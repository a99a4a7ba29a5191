"""Running Python that a model wrote: fresh processes per piece, sandboxed by the kernel, killed when its time is up.

``sandbox_worker`` says what the code cannot do and which lock sees to it. From outside come an environment of a few fixed variables, a
working directory that is deleted afterwards, a cap on the output, and a deadline. Where a lock is missing (other systems than Linux,
kernels before 5.13, processors other than x86-64, containers that forbid Landlock or seccomp) nothing runs, unless the caller allows it.
Then a misbehaving piece has the user's own rights until the deadline.

The same code gives the same result, as far as code can: hash seed and environment are fixed, but not clocks and random numbers.
"""

import atexit
import marshal
import os
import re
import secrets
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

from stepladder.data.step_checks.scratch import scratch_directory
from stepladder.errors import BackendError, ConfigError
from stepladder.remembered import forget_oldest

_WORKER = Path(__file__).with_name("sandbox_worker.py")
_MEMORY_BYTES = 1 << 30
_DISK_BYTES, _FILES, _FILE_BYTES, _OPEN_FILES = 64 << 20, 256, 16 << 20, 64
_OUTPUT_BYTES, _PRINTED_BYTES = 8192, 4 << 20
_MARK_BYTES = 16
_LOOK_EVERY_S = 0.05
# The deadline counts CPU time, so that a crowded machine does not change a result. What waits instead of computing is ended when it has
# waited for as long, and everything by a generous wall time.
_WALL_FACTOR = 20.0
_START_S, _END_S = 120.0, 10.0
_MAX_REMEMBERED = 65_536
_PRELOADED = ("numpy", "sympy")
"""Modules that take long to import; code that names one is run where it is imported already."""
_UNSAFE = (
    "code that a model wrote must be sandboxed before it runs: that needs Linux 5.13 or later on x86-64 with Landlock and seccomp: one is "
    "missing here, or forbidden in this container -- allow them, or set allow_unsandboxed if it may run with your own rights"
)
# Isolated mode (-I) would ignore the hash seed; -P and -s, and an environment without anything else, are the same isolation. Without
# ``site`` (-S) the start takes half the time, and the folders of editable installs, which are the user's, stay unknown.
_FLAGS = ("-P", "-s", "-S", "-B")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")


class CodeRun(NamedTuple):
    """Result of a piece of code."""

    passed: bool
    """Whether it ran to its end. Code that exits earlier has not, whatever its status."""
    reason: str
    """``ran``, ``failed`` (an error or an exit), ``timeout``, ``killed`` (by a signal), or ``overfull`` (it wrote or printed too much)."""
    output: str
    """Its output, including errors, cut after 8192 bytes."""


class CodeSandbox:
    """Runs pieces of Python, some at a time, and remembers the results."""

    def __init__(self, *, deadline_s: int = 5, num_workers: int = 4, allow_unsandboxed: bool = False) -> None:
        """Check that code can be sandboxed here.

        Args:
            deadline_s: CPU seconds after which code counts as failed, >= 1. Code that waits has as many seconds for that.
            num_workers: Pieces run at once, >= 1.
            allow_unsandboxed: Run code even if it cannot be sandboxed.

        Raises:
            ConfigError: If it cannot be sandboxed and that is not allowed, or a number is out of range.
        """
        if deadline_s < 1 or num_workers < 1:
            raise ConfigError(f"sandbox: needs deadline_s and num_workers >= 1: got {deadline_s!r} and {num_workers!r} -- raise them")
        if not allow_unsandboxed:
            check_sandbox()
        self.deadline_s, self._num_workers, self._trusting = deadline_s, num_workers, allow_unsandboxed
        self._remembered: dict[str, CodeRun] = {}

    def run(self, codes: Sequence[str]) -> list[CodeRun]:
        """Run pieces of code and return their results, in order. Equal pieces run once.

        Raises:
            BackendError: If a process does not start.
        """
        new = [code for code in dict.fromkeys(codes) if code not in self._remembered]
        if new:
            with ThreadPoolExecutor(self._num_workers) as pool:
                runs = pool.map(lambda code: run_code(code, deadline_s=self.deadline_s, allow_unsandboxed=self._trusting), new)
                self._remembered.update(zip(new, runs, strict=True))
        done = [self._remembered[code] for code in codes]
        forget_oldest(self._remembered, _MAX_REMEMBERED)
        return done


@cache
def check_sandbox() -> None:
    """Check that code can be sandboxed on this machine.

    Raises:
        ConfigError: If a lock is missing.
        BackendError: If the process that looks does not start.
    """
    if not _run("", deadline_s=5, allow_unsandboxed=False)[0]:
        raise ConfigError(f"sandbox: {_UNSAFE}")


def landlock_version() -> int:
    """Return the version of Landlock that the kernel has, less than 1 without one."""
    if sys.platform != "linux":
        return 0
    import ctypes

    from stepladder.data.step_checks import sandbox_worker

    return sandbox_worker.landlock_version(ctypes.CDLL(None))


def run_code(code: str, *, deadline_s: int, allow_unsandboxed: bool = False) -> CodeRun:
    """Run one piece of code in a process of its own.

    Args:
        code: Python source.
        deadline_s: CPU seconds that it may take, and seconds that it may wait, >= 1.
        allow_unsandboxed: Run it even if it cannot be sandboxed.

    Raises:
        BackendError: If the process does not start, or the code cannot be sandboxed and that is not allowed.
    """
    safe, run = _run(code, deadline_s=deadline_s, allow_unsandboxed=allow_unsandboxed)
    if not (safe or allow_unsandboxed):
        raise BackendError(f"sandbox: {_UNSAFE}")
    return run


def _run(code: str, *, deadline_s: int, allow_unsandboxed: bool) -> tuple[bool, CodeRun]:
    """Return whether the code was sandboxed, and its result. Code that cannot be sandboxed runs only if that is allowed."""
    mark = secrets.token_bytes(_MARK_BYTES)
    server = server_for(code)
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        supervisor = stack.enter_context(server.supervisor(scratch))
        sandboxed, pid = _send(supervisor.channel, _request(code, deadline_s=deadline_s, trusting=allow_unsandboxed), mark) or (None, 0)
        if sandboxed is None:
            raise BackendError(server.startup_error())
        ending, output, tail = _watch(supervisor.output, pid, deadline_s=deadline_s)
        status = supervisor.end()
    reason = ending or ("ran" if tail == mark else _reason(status))
    return sandboxed, CodeRun(reason == "ran", reason, output.removesuffix(mark)[:_OUTPUT_BYTES].decode(errors="replace"))


def _request(code: str, *, deadline_s: int, trusting: bool) -> bytes:
    packages, readable = _installed()
    limits = {"cpu_s": deadline_s, "memory_bytes": _MEMORY_BYTES, "disk_bytes": _DISK_BYTES}
    limits |= {"files": _FILES, "file_bytes": _FILE_BYTES, "open_files": _OPEN_FILES}
    # Both ends are the same interpreter. A larger format would slow down its start.
    return marshal.dumps({"code": code, "limits": limits, "trusting": trusting, "packages": packages, "readable": readable})


@cache
def _installed() -> tuple[list[str], list[str]]:
    """Return the paths of installed packages, and all paths that code may read."""
    packages = [path for path in site.getsitepackages() if os.path.isdir(path)]
    added = [path for path in sys.path if path.startswith(tuple(package + os.sep for package in packages))]
    library = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.join(sys.base_prefix, "lib")]
    return packages + added, _outermost([*_LIBRARIES, *packages, *library])


def _outermost(paths: Sequence[str]) -> list[str]:
    """Return existing paths without links, and without those below another one, which may be read with it."""
    real = {os.path.realpath(path) for path in paths if os.path.exists(path)}
    return sorted(path for path in real if not any(path.startswith(other.rstrip(os.sep) + os.sep) for other in real - {path}))


class _Supervisor:
    """The supervisor of one piece of code, seen from outside."""

    def __init__(self, pid: int, channel: socket.socket, output: int, status: int) -> None:
        self._pid, self.channel, self.output, self._status = pid, channel, output, status
        self._ended: int | None = None

    def end(self) -> int:
        """Make the supervisor kill the code and end, and return the status; if that takes long, kill the supervisor itself."""
        if self._ended is None:
            with suppress(OSError):
                self.channel.shutdown(socket.SHUT_RDWR)
            if not wait([self._status], _END_S):
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._pid, signal.SIGKILL)
            told = os.read(self._status, 4)
            self._ended = int.from_bytes(told, sys.byteorder, signed=True) if len(told) == 4 else -signal.SIGKILL
        return self._ended


class CodeServer:
    """A process that forks a supervisor for every piece of code, so that no interpreter has to start."""

    def __init__(self, modules: Sequence[str] = ()) -> None:
        """Start it.

        Args:
            modules: Modules of installed packages that it imports before, so that pieces find them imported.
        """
        self._lock = threading.Lock()
        self._fault: str | None = None
        self._control, theirs = socket.socketpair()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *_FLAGS, os.fspath(_WORKER), os.pathsep.join(_installed()[0]), *modules],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=_ENVIRONMENT,
                cwd=os.sep,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether it can still fork."""
        return self._process.poll() is None

    @contextmanager
    def supervisor(self, scratch: Path) -> Iterator[_Supervisor]:
        """Fork a supervisor that works in a directory, and end it in the end.

        Raises:
            BackendError: If the server has ended.
        """
        with ExitStack() as stack:
            pairs = [os.pipe(), os.pipe()]
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            for read, _ in pairs:
                stack.callback(os.close, read)
            (output, output_end), (status, status_end) = pairs
            folder = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
            try:
                pid = self._fork([theirs.fileno(), output_end, folder, status_end])
            finally:
                theirs.close()
                for descriptor in (folder, output_end, status_end):
                    os.close(descriptor)
            supervisor = _Supervisor(pid, ours, output, status)
            stack.callback(supervisor.end)
            yield supervisor

    def _fork(self, descriptors: list[int]) -> int:
        with self._lock, suppress(OSError):
            socket.send_fds(self._control, [b"f"], descriptors)
            if len(pid := self._control.recv(4)) == 4:
                return int.from_bytes(pid, sys.byteorder)
        raise BackendError(self.startup_error())

    def startup_error(self) -> str:
        """End it, and return the sentence about a server or a supervisor that did not start: the same to every thread that uses it."""
        with self._lock:
            if self._fault is None:
                self._end()
                self._errors.seek(0)
                output = self._errors.read()[-200:].decode(errors="replace")
                self._errors.close()
                told = f"it ended with status {self._process.returncode} and {output!r}"
                self._fault = f"sandbox: its process must start: {told} -- check {sys.executable!r}"
            return self._fault

    def close(self) -> None:
        """End it. Supervisors at work end by themselves."""
        self._end()
        self._errors.close()

    def _end(self) -> None:
        self._control.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            _kill(self._process)
            self._process.wait()


_SERVERS: dict[tuple[int, Path, tuple[str, ...]], CodeServer] = {}
"""The servers of this process, by its id (a fork must not use those of its parent), their script and their modules."""
_SERVERS_LOCK = threading.Lock()


def server_for(code: str) -> CodeServer:
    """Return the server whose imports fit a piece of code; it starts with the first such piece and ends with this process."""
    modules = tuple(name for name in _PRELOADED if re.search(rf"\b{name}\b", code) and find_spec(name) is not None)
    key = (os.getpid(), _WORKER, modules)
    with _SERVERS_LOCK:
        server = _SERVERS.get(key)
        if server is None or not server.alive:
            if not _SERVERS:
                atexit.register(close_servers)
            server = _SERVERS[key] = CodeServer(modules)
        return server


def close_servers() -> None:
    """End the servers of this process; the next piece of code starts new ones."""
    with _SERVERS_LOCK:
        own = [key for key in _SERVERS if key[0] == os.getpid()]
        for key in own:
            _SERVERS.pop(key).close()


def _send(channel: socket.socket, request: bytes, mark: bytes) -> tuple[bool, int] | None:
    """Send a request; return whether the code is sandboxed and its process id, None if the process ended before."""
    channel.settimeout(_START_S)
    with suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
        channel.sendall(len(request).to_bytes(8, "little") + request + mark)
        channel.shutdown(socket.SHUT_WR)
        if hello := channel.recv(5):
            return hello[:1] == b"R", int.from_bytes(hello[1:], sys.byteorder)
    return None


def _watch(channel: int, pid: int, *, deadline_s: float) -> tuple[str | None, bytes, bytes]:
    """Wait for the end of output, which the supervisor holds open to its own end.

    Returns:
        The reason to kill the code (None if it ended by itself), and the first and the last bytes of its output.
    """
    kept = tail = b""
    printed = 0
    idle, started = _Idle(pid), time.monotonic()
    while True:
        if wait([channel], _LOOK_EVERY_S):
            # Output after the cut is read and dropped, so that printing never blocks.
            part = os.read(channel, 65_536)
            if not part:
                return None, kept, tail
            kept, tail = kept + part[: _OUTPUT_BYTES + _MARK_BYTES - len(kept)], (tail + part)[-_MARK_BYTES:]
            printed += len(part)
        if printed > _PRINTED_BYTES:
            return "overfull", kept, tail
        if idle.seconds() > deadline_s or time.monotonic() - started > _WALL_FACTOR * deadline_s:
            return "timeout", kept, tail


class _Idle:
    """The time for which a process has waited for something else than a processor or a disk."""

    def __init__(self, pid: int) -> None:
        self._pid, self._seconds, self._looked_at, self._busy_s = pid, 0.0, time.monotonic(), 0.0

    def seconds(self) -> float:
        """Return the seconds up to now; looks at the process at most every ``_LOOK_EVERY_S``. Always 0 elsewhere than on Linux."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_EVERY_S:
            with suppress(OSError, ValueError):
                state = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0]
                busy_s = _busy_s(self._pid)
                if state in "StT":
                    self._seconds += max(0.0, now - self._looked_at - busy_s + self._busy_s)
                self._busy_s = busy_s
            self._looked_at = now
        return self._seconds


def _busy_s(pid: int) -> float:
    """Return the seconds that a child was on a processor, or in the queue for one where the kernel says so."""
    try:
        return sum(map(int, Path(f"/proc/{pid}/schedstat").read_text().split()[:2])) / 1e9
    except FileNotFoundError:
        return time.clock_gettime(~pid << 3 | 2)


def _reason(status: int) -> str:
    """Return the reason for which code did not run to its end, from the exit status of its process."""
    return {-signal.SIGXCPU: "timeout", -signal.SIGXFSZ: "overfull"}.get(status, "killed" if status < 0 else "failed")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
