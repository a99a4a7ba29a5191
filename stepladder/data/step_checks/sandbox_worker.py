"""The processes that run model-written Python; nothing of stepladder is imported.

This file is run as a script in a fresh interpreter, the server, with a socket as standard input. For every piece of code the server gets
four descriptors over it, forks a supervisor, and returns its process id. It reads no code itself, so that no piece finds anything of
another one in its memory. It may import some modules before, so that code need not. It ends when the caller does.

The supervisor works in an empty directory, with a socket of its own as standard input. It reads a request from the socket and forks the
process that runs the code. It ends after that process, and writes its status to a pipe that the code does not have. When the caller shuts
the socket or dies, the supervisor kills the code and deletes the working directory.

The forked process drops its rights, writes "R" and its process id to the socket, or "U" if a lock does not hold, and
runs the code. The request's mark at the end of the output says that the code ran to its end; nothing else is a success.

- Resource limits: CPU time, address space, size of a file, open files, no core file, no new processes (root is exempt from that one).
- Capabilities: root drops all of them.
- Landlock: files can be opened only in the installed Python and its libraries, to read, and in the working directory. Whether another file
  exists, its size, its dates and the target of a link can still be queried. No directories can be made, so that the working directory stays
  flat. All rights that the kernel's version knows are taken away: truncation, ioctl on devices, TCP, abstract sockets and signals, too.
- seccomp: of the system calls only those listed below; the rest fail with "operation not permitted". Not among them: sockets, new processes
  and threads, other programs, signals to others, tracing, changing owners or modes, namespaces, mounting, and limits. Files are opened
  only with the flags and modes that Landlock judges rightly in every version.
- The supervisor measures all files before each new one, including those without a name. It ends code with too many files. It lowers the
  limit on the size of a file until the existing files cannot grow past the cap on the disk.

The locks are the kernel's, hold for native code as well, need no privileges and cannot be taken off. The remaining risk is the kernel
itself: an exploitable bug in one of the listed system calls. If that risk is too high, run stepladder in a virtual machine.

The mark stays in the socket until the code is about to start. Then it is only on the interpreter's evaluation stack, which no frame, module
or garbage collector shows to Python. Code that reads its own memory natively (ctypes, the array interface of numpy) can find it.
"""

from __future__ import annotations

import _signal  # pyright: ignore[reportMissingImports]
import _socket
import atexit
import ctypes
import fcntl
import gc
import marshal
import os
import resource
import select
import signal
import stat
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Only checkers of types need these; importing them takes as long as the rest of this file.
    from types import FrameType
    from typing import Any, NoReturn

_MARK_BYTES, _LOOK_EVERY_MS = 16, 50
_STATUS = 200
"""Descriptor of the pipe of a supervisor's status, out of the way of the others."""
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, _CAPABILITY_VERSION_3 = 24, 47, 4, 0x20080522
_NO_CAPABILITIES = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT, _LANDLOCK_PATH_BENEATH = 444, 445, 446, 1
_LANDLOCK_VERSION = 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8, 1 << 14
_READ = _READ_FILE | _READ_DIR
_DEVICE = _READ_FILE | _WRITE_FILE | _TRUNCATE
_SCRATCH = _DEVICE | _READ_DIR | _REMOVE_FILE | _MAKE_REG
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""Number of file rights from a version of Landlock on: 2 adds moving between directories, 3 truncation, 5 ioctl on devices."""
_NET_RIGHTS, _SCOPES = {4: 0b11}, {6: 0b11}
"""TCP (bind, connect), and ways to reach outside processes (abstract Unix sockets, signals)."""
_QUIET = {7: 1}
"""The flag that keeps the code's attempts out of the machine's audit log."""

# System call numbers of x86-64. Without ioctl(TIOCSTI), fcntl(F_SETOWN), prlimit, chmod and their like, by default refusal.
_CALLS = {
    "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10,
    "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "pwrite64": 18, "readv": 19,
    "writev": 20, "access": 21, "sched_yield": 24, "mremap": 25, "dup": 32, "dup2": 33, "nanosleep": 35, "getpid": 39,
    "exit": 60, "uname": 63, "fsync": 74, "ftruncate": 77, "getcwd": 79, "rename": 82, "unlink": 87, "readlink": 89, "gettimeofday": 96,
    "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110,
    "sigaltstack": 131, "arch_prctl": 158, "gettid": 186, "futex": 202, "sched_getaffinity": 204, "getdents64": 217, "restart_syscall": 219,
    "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "newfstatat": 262,
    "unlinkat": 263, "renameat": 264, "readlinkat": 267, "faccessat": 269, "set_robust_list": 273, "dup3": 292,
    "getrandom": 318, "statx": 332, "rseq": 334, "faccessat2": 439,
}  # fmt: skip
_OPEN, _IOCTL, _MADVISE, _KILL, _FCNTL, _TGKILL, _OPENAT, _RENAMEAT2 = 2, 16, 28, 62, 72, 234, 257, 316
_OPEN_FLAGS = (
    os.O_ACCMODE | os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC | os.O_APPEND | os.O_NONBLOCK | os.O_SYNC
    | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | 0o100000
)  # fmt: skip
"""Flags with which files can be opened, including O_LARGEFILE (its number). Not O_PATH or O_TMPFILE, whose file no directory shows."""
_OPEN_MODES = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_TRUNC)
"""Access modes, with truncation. Landlock requires no right for mode 3, and before version 3 none to truncate."""
_ADVICE = (0, 1, 2, 3, 4, 8, 14, 15, 16, 17)
"""Advice about memory that only concerns the process's own: how it is read, that it is free, huge pages, and core files."""
_RENAMINGS = (0, 1, 2)
"""Flags of a renaming: none, never over a file, and exchange. Not the one that leaves a device node in the old place."""
_TERMINAL_ATTRIBUTES, _CLOSE_ON_EXEC, _KEEP_ON_EXEC = 0x5401, 0x5451, 0x5450
_DUP, _GET_FLAGS, _SET_FLAGS, _GET_STATUS, _DUP_CLOSE_ON_EXEC = 0, 1, 2, 3, 1030
_AUDIT_ARCH_X86_64 = 0xC000003E
_LOAD, _AND, _ANY_OF, _EQUALS, _RETURN = 0x20, 0x54, 0x45, 0x15, 0x06
_ALLOW, _REFUSE, _ASK, _KILL_PROCESS = 0x7FFF0000, 0x00050001, 0x7FC00000, 0x80000000
"""Return values of a filter: a refused call fails with EPERM, and a notified call waits for the supervisor's answer."""
_SECCOMP, _SET_FILTER, _NEW_LISTENER, _INSTRUCTION_BYTES = 317, 1, 8, 8
_ALLOWED, _REFUSED = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
"""Requests of a seccomp listener, for its structures of 80 and 24 bytes, and the answer that lets a call continue."""
_UNSEEN = frozenset({"sys.settrace", "sys.monitoring.register_callback", "gc.get_objects", "gc.get_referrers", "gc.get_referents"})
"""Audit events of functions that could move a frame past the rest of its code, or find what refuses them."""


def limit_resources(limits: dict[str, int]) -> None:
    """Set hard limits, or lower ones if the surrounding limits are lower."""
    wanted = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_NPROC: 0,
    }
    for name, value in wanted.items():
        _, hard = resource.getrlimit(name)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))
    # The signal of the soft limit identifies the reason; code that ignores it is killed a second later.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + 1))


def leave_no_core() -> None:
    """Let a crash leave nothing: with a limit of one byte the kernel neither writes a core file nor starts the machine's crash handler.

    With a limit of none it still starts the handler, and hands it the memory of the process.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    value = 1 if hard == resource.RLIM_INFINITY else min(1, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (value, value))


def bound_capabilities(libc: Any) -> None:
    """Make sure that dropped rights do not come back, here and in all forks. Only root can clear the bounding set, or needs to."""
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def drop_capabilities(libc: Any) -> bool:
    """Drop root's special rights permanently; say whether that worked."""
    return libc.capset(_NO_CAPABILITIES, bytes(24)) == 0


def landlock_version(libc: Any) -> int:
    """Return the version of Landlock that the kernel has, less than 1 without one."""
    return libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)


def lock_files(libc: Any, readable: list[str], scratch: str) -> bool:
    """Let the process open only files below some paths; say whether the kernel enforces that."""
    version = landlock_version(libc)
    if version < 1:
        return False
    handled = (1 << _of_version(_FILE_RIGHTS, version)) - 1
    attributes = struct.pack("QQQ", handled, _of_version(_NET_RIGHTS, version), _of_version(_SCOPES, version))
    # An older kernel accepts a longer structure if the rest of it is zero.
    ruleset = libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    rights = {path: _READ for path in readable} | {"/dev/null": _DEVICE, scratch: _SCRATCH}
    for path, allowed in rights.items():
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        allowed &= handled if stat.S_ISDIR(os.fstat(handle).st_mode) else handled & _DEVICE
        rule = struct.pack("=Qi", allowed, handle)
        failed = libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_PATH_BENEATH, rule, 0)
        os.close(handle)
        if failed:
            return False
    locked = libc.syscall(_LANDLOCK_RESTRICT, ruleset, _of_version(_QUIET, version)) == 0
    os.close(ruleset)
    return locked


def _of_version(since: dict[int, int], version: int) -> int:
    """Return the entry of the newest version that is not newer than the kernel's; 0 without one."""
    return next((since[known] for known in sorted(since, reverse=True) if known <= version), 0)


def _guarded(number: int, argument: int, bits: int, values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Return the instructions that allow a call by one of its arguments, an int.

    It may have no other bits than the given ones (0: any), and must be one of the values. Flags of ``open`` that change nothing are no part
    of the value.
    """
    body = [(_LOAD, 0, 0, 16 + 8 * argument)]
    if bits:
        body += [(_ANY_OF, 0, 1, ~bits & 0xFFFFFFFF), _REFUSED, (_AND, 0, 0, os.O_ACCMODE | os.O_TRUNC)]
    for value in values:
        body += [(_EQUALS, 0, 1, value), _ALLOWED]
    body.append(_REFUSED)
    return [(_EQUALS, 0, len(body), number), *body]


def _pack(program: list[tuple[int, int, int, int]]) -> bytes:
    """Pack instructions (code, jump if true, jump if false, operand)."""
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _common_filter() -> bytes:
    """Return the part of the seccomp filter that is the same in every process. What it does not decide falls through its end."""
    program = [(_LOAD, 0, 0, 4), (_EQUALS, 1, 0, _AUDIT_ARCH_X86_64), (_RETURN, 0, 0, _KILL_PROCESS), (_LOAD, 0, 0, 0)]
    for number in _CALLS.values():
        program += [(_EQUALS, 0, 1, number), _ALLOWED]
    program += _guarded(_IOCTL, 1, 0, (_TERMINAL_ATTRIBUTES, _CLOSE_ON_EXEC, _KEEP_ON_EXEC))
    program += _guarded(_FCNTL, 1, 0, (_DUP, _GET_FLAGS, _SET_FLAGS, _GET_STATUS, _DUP_CLOSE_ON_EXEC))
    program += _guarded(_MADVISE, 2, 0, _ADVICE)
    program += _guarded(_RENAMEAT2, 4, 0, _RENAMINGS)
    program += _guarded(_OPEN, 1, _OPEN_FLAGS, _OPEN_MODES)
    program += _guarded(_OPENAT, 2, _OPEN_FLAGS, _OPEN_MODES)
    return _pack(program)


_COMMON_FILTER = _common_filter()
"""Made before the forks, in each of which making it would take longer than running a line of code."""


def lock_calls(libc: Any) -> bool:
    """Refuse every system call that is not listed; say whether the kernel enforces that, and the list is for this machine."""
    if os.uname().machine != "x86_64":
        return False
    # A process may send signals to itself alone.
    own = (os.getpid(),)
    return _filter(libc, _COMMON_FILTER + _pack([*_guarded(_KILL, 0, 0, own), *_guarded(_TGKILL, 0, 0, own), _REFUSED]), 0) == 0


def _listening_filter() -> bytes:
    """Return the filter that asks about every call that may create a file."""
    program = [(_LOAD, 0, 0, 0)]
    for number, argument in ((_OPEN, 1), (_OPENAT, 2)):
        program += [(_EQUALS, 0, 4, number), (_LOAD, 0, 0, 16 + 8 * argument), (_ANY_OF, 0, 1, os.O_CREAT), (_RETURN, 0, 0, _ASK)]
        program += [_ALLOWED]
    return _pack([*program, _ALLOWED])


_LISTENING_FILTER = _listening_filter()


def listen_to_new_files(libc: Any) -> int:
    """Make every call that may create a file wait for an answer; return the descriptor of its notifications, or -1 without one."""
    if sys.platform != "linux" or os.uname().machine != "x86_64" or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return -1
    return _filter(libc, _LISTENING_FILTER, _NEW_LISTENER)


def _filter(libc: Any, packed: bytes, flags: int) -> int:
    # The address of bytes, as long as they live.
    address = ctypes.cast(ctypes.c_char_p(packed), ctypes.c_void_p).value
    described = struct.pack("HxxxxxxQ", len(packed) // _INSTRUCTION_BYTES, address)
    return libc.syscall(_SECCOMP, _SET_FILTER, flags, described)


def restrict(libc: Any, limits: dict[str, int], readable: list[str]) -> bool:
    """Drop the rights that the code must not have; say whether all locks hold."""
    limit_resources(limits)
    if sys.platform != "linux":
        return False
    if not drop_capabilities(libc) or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    # Both are tried: one alone is better than none if the user accepts that.
    files = lock_files(libc, readable, os.getcwd())
    return lock_calls(libc) and files


def refuse_tracing() -> None:
    """Refuse what ``_UNSEEN`` lists. The hook has no name that code could find, and cannot be removed."""

    def hook(event: str, _: object, unseen: frozenset[str] = _UNSEEN) -> None:
        if event in unseen:
            raise PermissionError(f"{event} is refused in a sandbox")

    sys.addaudithook(hook)


def run(code: str) -> NoReturn:
    """Run the code, write the mark if it ran to its end, and end this process. Names used afterwards are bound before the code runs."""
    write, read, leave = os.write, os.read, os._exit
    namespace = {"__name__": "__main__", "__builtins__": __builtins__}
    try:
        # This file's future imports are not the code's.
        program = compile(code, "<code>", "exec", dont_inherit=True)
        # Evaluated from the left: the mark is read before the code runs, has no name, and is written only if ``exec`` returns.
        write(1, read(0, _MARK_BYTES) + _finished(exec(program, namespace)))
        leave(0)
    except BaseException as error:
        _report(error)
    finally:
        leave(1)


def _finished(_: None) -> bytes:
    """Finish a program: run its exit functions, whose errors count, and write the rest of its output."""
    errors: list[Any] = []
    sys.unraisablehook = errors.append
    atexit._run_exitfuncs()
    # Code may have put another stream in the place of the first.
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None:
            stream.flush()
    if errors:
        raise errors[0].exc_value
    return b""


def _report(error: BaseException) -> None:
    """Print an error with the last line of its traceback, if the code left the means to."""
    try:
        # The first entry is that of this file.
        trace = error.__traceback__ and error.__traceback__.tb_next
        while trace and trace.tb_next:
            trace = trace.tb_next
        # What it printed comes before its error.
        sys.stdout.flush()
        sys.__excepthook__(type(error), error.with_traceback(trace), None)
        sys.stderr.flush()
    except BaseException:
        # The verdict stands without it.
        return


def start(libc: Any, request: dict[str, Any]) -> NoReturn:
    """Be the process that runs the code."""
    try:
        supervisor = os.getppid()
        if sys.platform == "linux":
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == supervisor == request["supervisor"]:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGCHLD):
                _signal.signal(number, _signal.SIG_DFL)
            os.closerange(3, 256)
            sys.path += request["packages"]
            safe = restrict(libc, request["limits"], request["readable"])
            os.write(0, struct.pack("=cI", b"R" if safe else b"U", os.getpid()))
            if safe or request["trusting"]:
                refuse_tracing()
                run(request["code"])
    finally:
        os._exit(1)


def supervise(child: int, listener: int, wakeup: int, limits: dict[str, int]) -> tuple[int, str | None]:
    """Wait for the end of the code, or for a reason to end it: ``alone`` (without a caller) or ``overfull``; return its status and that."""
    poll = select.poll()
    # The caller has shut its sending half; only the end of the other half is of interest.
    poll.register(0, 0)
    poll.register(wakeup, select.POLLIN)
    if listener >= 0:
        poll.register(listener, select.POLLIN)
    reason = None
    while not reason:
        happened = dict(poll.poll(None if listener >= 0 else _LOOK_EVERY_MS))
        if 0 in happened or (wakeup in happened and signal.SIGTERM in os.read(wakeup, 64)):
            reason = "alone"
        elif os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        elif listener in happened or listener < 0:
            may_go_on = _answer(listener, child, limits) if listener >= 0 else _bound_files(child, limits)
            reason = None if may_go_on else "overfull"
    # The code is not reaped yet, so that its group is still its own; until it leads one it has no children.
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    return os.waitpid(child, 0)[1], reason


def _answer(listener: int, child: int, limits: dict[str, int]) -> bool:
    """Decide whether a waiting call may create a file, and return the decision. Until then the code's only thread waits."""
    asked = bytearray(80)
    try:
        fcntl.ioctl(listener, _RECEIVE, asked)
        if not _bound_files(child, limits):
            return False
        fcntl.ioctl(listener, _SEND, struct.pack("=QqiI", int.from_bytes(asked[:8], sys.byteorder), 0, 0, _CONTINUE))
    except (FileNotFoundError, InterruptedError):
        # The code was killed, or a signal interrupted its call, which then comes again.
        return True
    return True


def _bound_files(child: int, limits: dict[str, int]) -> bool:
    """Limit the size of the code's files so that they and one more stay within the disk's cap; say whether one more is allowed."""
    try:
        sizes = [*_sizes(child, unknown=limits["file_bytes"]), 0]
        room = largest_size(sizes, limits["disk_bytes"])
        if len(sizes) > limits["files"] or room < 0:
            return False
        if sys.platform == "linux":
            _, hard = resource.prlimit(child, resource.RLIMIT_FSIZE)
            resource.prlimit(child, resource.RLIMIT_FSIZE, (min(room, limits["file_bytes"], hard if hard >= 0 else room), hard))
    except (FileNotFoundError, ProcessLookupError):
        # The process has ended.
        return True
    return True


def largest_size(sizes: list[int], total: int) -> int:
    """Return the size to which each file may grow within a total, given that larger files keep their sizes; negative if none fits."""
    sizes, share = sorted(sizes, reverse=True), -1
    for index, size in enumerate(sizes):
        share = (total - sum(sizes[:index])) // (len(sizes) - index)
        if share >= size:
            return share
    return share


def _sizes(child: int, *, unknown: int) -> list[int]:
    """Return the sizes of the code's files: those in the working directory, and deleted ones that are still open or mapped.

    Args:
        child: The code's process.
        unknown: Assumed size of a file that is only mapped, whose size the kernel does not report.
    """
    with os.scandir(".") as entries:
        sizes = [entry.stat(follow_symlinks=False).st_size for entry in entries]
    if sys.platform != "linux":
        return sizes
    deleted = {}
    with os.scandir(f"/proc/{child}/fd") as links:
        for link in links:
            state = link.stat()
            if stat.S_ISREG(state.st_mode) and not state.st_nlink:
                deleted[state.st_ino] = state.st_size
    with open(f"/proc/{child}/maps", "rb") as maps:
        for line in maps:
            # Shared memory without a file has that name, and counts as memory.
            if line.endswith(b" (deleted)\n") and not line.endswith(b" /dev/zero (deleted)\n"):
                deleted.setdefault(int(line.split()[4]), unknown)
    return [*sizes, *deleted.values()]


def _read(num_bytes: int) -> bytes:
    """Read this many bytes of the socket, or fewer at its end. Never read more: the rest is for another reader."""
    parts = b""
    while num_bytes > len(parts) and (part := os.read(0, num_bytes - len(parts))):
        parts += part
    return parts


def _catch_signals() -> int:
    """Return a descriptor from which the signals can be read that end the supervisor's waiting."""

    def nothing(number: int, frame: FrameType | None) -> None:
        """Do nothing; the wake-up descriptor gets the signal's number."""

    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        # That of ``signal`` looks up the name of what it replaces.
        _signal.signal(number, nothing)
    return ours


def _delete_scratch() -> None:
    """Delete the working directory for a caller that may be unable to."""
    import shutil

    shutil.rmtree(os.getcwd(), ignore_errors=True)


def serve(libc: Any) -> NoReturn:
    """Fork a supervisor for every four descriptors that the caller sends: its socket, output, working directory, and pipe of its status."""
    control, own = _socket.socket(fileno=0), os.getpid()
    # Supervisors are not waited for: what is to be known of them stands in their pipes.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, sent, _, _ = control.recvmsg(1, _socket.CMSG_SPACE(16))
        if not data:
            os._exit(0)
        descriptors = struct.unpack("4i", sent[0][2])
        pid = os.fork()
        if not pid:
            try:
                _take(*descriptors)
                supervise_code(libc, server=own)
            finally:
                os._exit(1)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(struct.pack("=I", pid))


def _take(channel: int, output: int, folder: int, status: int) -> None:
    """Make descriptors those of a supervisor, and close all others."""
    os.setsid()
    os.dup2(status, _STATUS)
    os.fchdir(folder)
    for source, target in ((channel, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.closerange(3, _STATUS)


def supervise_code(libc: Any, *, server: int) -> None:
    """Serve one request: ``{"code", "limits", "trusting", "readable", "packages"}``. ``trusting`` runs code even without some lock."""
    wakeup = _catch_signals()
    if sys.platform == "linux":
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    size = int.from_bytes(_read(8), "little")
    packed = _read(size)
    if not packed or len(packed) < size or os.getppid() != server:
        return _delete_scratch()
    request = marshal.loads(packed)
    request["supervisor"] = os.getpid()
    listener = listen_to_new_files(libc)
    child = os.fork()
    if not child:
        start(libc, request)
    status, reason = supervise(child, listener, wakeup, request["limits"])
    if reason == "alone" or os.getppid() != server:
        _delete_scratch()
    # The signal of files that are too large also speaks of files that are too many.
    code = -signal.SIGXFSZ if reason == "overfull" else os.waitstatus_to_exitcode(status)
    os.write(_STATUS, struct.pack("=i", code))


def main() -> None:
    """Import the modules that the arguments name, from the folders of the first one, and serve."""
    folders, *modules = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    leave_no_core()
    if sys.platform == "linux":
        bound_capabilities(libc)
    # The first call makes the types of syntax trees, which takes longer than all the rest of a fork.
    compile("", "<code>", "exec")
    before = list(sys.path)
    sys.path += folders.split(os.pathsep)
    for name in modules:
        __import__(name)
    sys.path[:] = before
    # Garbage collection in a fork would touch, and so copy, everything that was imported.
    gc.collect()
    gc.freeze()
    serve(libc)


if __name__ == "__main__":
    main()
