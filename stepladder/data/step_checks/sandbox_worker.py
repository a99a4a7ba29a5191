"""The process that runs one piece of model-written Python, after shutting itself in; nothing of stepladder is imported.

It is run as a script in a fresh interpreter: a JSON request on standard input, then one mark, "R" or "U", on standard output, then whatever
the code prints. "R" says that both locks below hold; "U" that at least one does not. The exit status is the code's.

- Resource limits: CPU time, address space, size of a file, open files, no core file, no new processes (root is exempt from that one).
- Capabilities: root gives up all of them.
- Landlock: files can be opened only in the installed Python and its libraries, to read, and in the working directory. Whether another file
  exists, its size and its dates can still be asked for. No directories can be made, so that the working directory stays flat. All rights
  that the kernel's version knows are taken away: truncation, ioctl on devices, TCP, abstract sockets and signals, too.
- seccomp: of the system calls only those listed below; the rest fail with "operation not permitted". Not among them: sockets, new processes
  and threads, other programs, signals to others, tracing, changing owners or modes, namespaces, mounting, and limits. Files are opened
  only with the flags and modes that Landlock judges rightly in every version.

Both locks are the kernel's, hold for native code as well, need no privileges and cannot be taken off. What remains is the kernel itself: an
exploitable bug in one of the system calls listed. Where that is too much, run stepladder in a virtual machine.
"""

import ctypes
import json
import os
import resource
import signal
import site
import struct
import sys
import sysconfig
import traceback
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 1, 22, 38, 2
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, _CAPABILITY_VERSION_3 = 24, 47, 4, 0x20080522
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT, _LANDLOCK_PATH_BENEATH = 444, 445, 446, 1
_LANDLOCK_VERSION = 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8, 1 << 14
_READ = _READ_FILE | _READ_DIR
_DEVICE = _READ_FILE | _WRITE_FILE | _TRUNCATE
_SCRATCH = _DEVICE | _READ_DIR | _REMOVE_FILE | _MAKE_REG
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""Number of file rights from a version of Landlock on: 2 adds moving between directories, 3 truncation, 5 ioctl on devices."""
_NET_RIGHTS, _SCOPES = {4: 0b11}, {6: 0b11}
"""TCP (bind, connect), and what reaches processes outside (abstract Unix sockets, signals)."""
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")

# System call numbers of x86-64. Without ioctl(TIOCSTI), fcntl(F_SETOWN), prlimit, chmod and their like, by default refusal.
_CALLS = {
    "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10,
    "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "pwrite64": 18, "readv": 19,
    "writev": 20, "access": 21, "sched_yield": 24, "mremap": 25, "dup": 32, "dup2": 33, "nanosleep": 35, "getpid": 39,
    "exit": 60, "uname": 63, "fsync": 74, "ftruncate": 77, "getcwd": 79, "rename": 82, "unlink": 87, "readlink": 89, "gettimeofday": 96,
    "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110,
    "sigaltstack": 131, "arch_prctl": 158, "gettid": 186, "futex": 202, "sched_getaffinity": 204, "getdents64": 217, "restart_syscall": 219,
    "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "newfstatat": 262,
    "unlinkat": 263, "renameat": 264, "readlinkat": 267, "faccessat": 269, "set_robust_list": 273, "dup3": 292, "renameat2": 316,
    "getrandom": 318, "statx": 332, "rseq": 334, "faccessat2": 439,
}  # fmt: skip
_OPEN, _IOCTL, _MADVISE, _KILL, _FCNTL, _TGKILL, _OPENAT = 2, 16, 28, 62, 72, 234, 257
_OPEN_FLAGS = (
    os.O_ACCMODE | os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC | os.O_APPEND | os.O_NONBLOCK | os.O_SYNC
    | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | 0o100000
)  # fmt: skip
"""Flags with which files can be opened, O_LARGEFILE (its number) included. Not O_PATH, and not O_TMPFILE, whose file no directory shows."""
_OPEN_MODES = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_TRUNC)
"""Access modes, with truncation. Landlock asks for no right where the mode is 3, and before version 3 for none to truncate."""
_ADVICE = (0, 1, 2, 3, 4, 8, 14, 15)
"""Advice about memory that only concerns the process's own: how it will be read, that it is free, and huge pages."""
_TERMINAL_ATTRIBUTES, _CLOSE_ON_EXEC, _KEEP_ON_EXEC = 0x5401, 0x5451, 0x5450
_DUP, _GET_FLAGS, _SET_FLAGS, _GET_STATUS, _DUP_CLOSE_ON_EXEC = 0, 1, 2, 3, 1030
_AUDIT_ARCH_X86_64 = 0xC000003E
_LOAD, _AND, _ANY_OF, _EQUALS, _RETURN = 0x20, 0x54, 0x45, 0x15, 0x06
_ALLOW, _REFUSE, _KILL_PROCESS = 0x7FFF0000, 0x00050001, 0x80000000
"""What a filter returns; a refused call fails with EPERM."""


def limit_resources(limits: dict[str, int]) -> None:
    """Set hard limits, lower where the surrounding ones are."""
    wanted = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for name, value in wanted.items():
        _, hard = resource.getrlimit(name)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))
    # The signal of the soft limit says what ended the process; code that ignores it is killed a second later.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + 1))


def drop_capabilities(libc: Any) -> bool:
    """Give up root's special rights, for good; say whether that worked. Only root can, and need, clear the bounding set."""
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    return libc.capset(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)) == 0


def lock_files(libc: Any, readable: list[str], scratch: str) -> bool:
    """Let the process open only what lies beneath some paths; say whether the kernel does that."""
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    if version < 1:
        return False
    handled = (1 << _of_version(_FILE_RIGHTS, version)) - 1
    attributes = struct.pack("QQQ", handled, _of_version(_NET_RIGHTS, version), _of_version(_SCOPES, version))
    # An older kernel takes a longer structure where the rest of it is zero.
    ruleset = libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    rights = {path: _READ for path in readable} | {"/dev/null": _DEVICE, scratch: _SCRATCH}
    for path, allowed in rights.items():
        if not os.path.exists(path):
            continue
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed &= handled if os.path.isdir(path) else handled & _DEVICE
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, handle))
        failed = libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_PATH_BENEATH, rule, 0)
        os.close(handle)
        if failed:
            return False
    locked = libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return locked


def _of_version(since: dict[int, int], version: int) -> int:
    """Return the entry of the newest version that is not newer than the kernel's, 0 where there is none."""
    return next((since[known] for known in sorted(since, reverse=True) if known <= version), 0)


def filter_program() -> list[tuple[int, int, int, int]]:
    """Return the seccomp filter as instructions (code, jump if true, jump if false, operand)."""
    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)
    program = [(_LOAD, 0, 0, 4), (_EQUALS, 1, 0, _AUDIT_ARCH_X86_64), (_RETURN, 0, 0, _KILL_PROCESS), (_LOAD, 0, 0, 0)]
    for number in _CALLS.values():
        program += [(_EQUALS, 0, 1, number), allow]
    own = os.getpid()
    # (call, argument, bits, values): the call is allowed where the argument, an int, has no other bits than the given ones (0: any), and
    # is one of the values, for ``open`` but for the flags that change nothing.
    guarded = [
        (_IOCTL, 1, 0, (_TERMINAL_ATTRIBUTES, _CLOSE_ON_EXEC, _KEEP_ON_EXEC)),
        (_FCNTL, 1, 0, (_DUP, _GET_FLAGS, _SET_FLAGS, _GET_STATUS, _DUP_CLOSE_ON_EXEC)),
        (_MADVISE, 2, 0, _ADVICE),
        (_KILL, 0, 0, (own,)),
        (_TGKILL, 0, 0, (own,)),
        (_OPEN, 1, _OPEN_FLAGS, _OPEN_MODES),
        (_OPENAT, 2, _OPEN_FLAGS, _OPEN_MODES),
    ]
    for number, argument, bits, values in guarded:
        body = [(_LOAD, 0, 0, 16 + 8 * argument)]
        if bits:
            body += [(_ANY_OF, 0, 1, ~bits & 0xFFFFFFFF), refuse, (_AND, 0, 0, os.O_ACCMODE | os.O_TRUNC)]
        for value in values:
            body += [(_EQUALS, 0, 1, value), allow]
        body.append(refuse)
        program += [(_EQUALS, 0, len(body), number), *body]
    return [*program, refuse]


def lock_calls(libc: Any) -> bool:
    """Refuse every system call that is not listed; say whether the kernel does that, and the list is for this machine."""
    if os.uname().machine != "x86_64":
        return False
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in filter_program())
    instructions = ctypes.create_string_buffer(program)
    described = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(instructions)))
    return libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, described, 0, 0) == 0


def shut_in(limits: dict[str, int]) -> bool:
    """Take away what the code must not have; say whether both locks hold."""
    packages = [path for path in site.getsitepackages() if os.path.isdir(path)]
    # Other entries, such as those of editable installs, are folders of the user's.
    sys.path[:] = [path for path in sys.path if path.startswith((sysconfig.get_path("stdlib"), *packages)) or path.endswith(".zip")]
    limit_resources(limits)
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    # A parent that is killed takes the code with it.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if not drop_capabilities(libc) or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    own = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.join(sys.base_prefix, "lib")]
    readable = [*_LIBRARIES, *packages, *own]
    # Both are tried: one alone is better than none where the user accepts that.
    files = lock_files(libc, readable, os.getcwd())
    return lock_calls(libc) and files


def main() -> None:
    """Serve one request ``{"code", "limits", "trusting"}``; ``trusting`` runs the code where a lock does not hold."""
    request = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    safe = shut_in(request["limits"])
    os.write(1, b"R" if safe else b"U")
    if not (safe or request["trusting"]):
        return
    try:
        exec(compile(request["code"], "<code>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
        sys.stdout.flush()
    except Exception:
        traceback.print_exc(limit=-1)
        sys.exit(1)


if __name__ == "__main__":
    main()
