"""A lock on a place that only one process at a time may write."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from stepladder.errors import CheckpointError


class Holder(NamedTuple):
    """The process that a lock file names."""

    host: str
    """Its machine."""
    pid: int
    """Its id there."""


def process_lives(pid: int) -> bool:
    """Say whether a process of this machine lives, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def holder(path: Path) -> Holder | None:
    """Return the process that a lock file names, which may have died; None without one."""
    try:
        return _holder(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


@contextmanager
def locked(path: Path, *, place: Path) -> Iterator[None]:
    """Hold a lock file while the block runs.

    The kernel holds the lock for the process, so a killed process leaves none. The file names its holder for the error message. It is
    removed at the end, and so are the directories that were made for it, if nothing else is in them.

    Args:
        path: The lock file; its directory is created if it is missing.
        place: The guarded place, for messages.

    Raises:
        CheckpointError: If another process holds the lock, the file is not writable, or its directory is a file.
    """
    try:
        made = [folder for folder in path.parents if not folder.exists()]
        handle = _acquire(path, place)
    except (FileExistsError, NotADirectoryError) as error:
        raise CheckpointError(f"{place}: must be a directory: it, or one above it, is a file -- choose another place") from error
    except OSError as error:
        raise CheckpointError(f"{place}: must be writable: {error.strerror} -- choose a place that you may write") from error
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
        os.close(handle)
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


@contextmanager
def held(output: Path) -> Iterator[None]:
    """Let no other process write an output, or continue its kept work, while the block runs.

    Raises:
        CheckpointError: If another process is at work on it, or its directory is not writable.
    """
    with locked(output.with_name(f".{output.name}.lock"), place=output):
        yield


def _acquire(path: Path, place: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            # A holder that ends just now may remove the directory between our two calls.
            if path.parent.is_dir():
                raise
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = os.pread(handle, 1024, 0).decode(errors="replace")
            os.close(handle)
            raise CheckpointError(
                f"{place}: only one process may write here at a time: {_named(found)} is at work -- wait for it, or end it"
            ) from None
        # The last holder may have removed the file between our two calls. A lock on a removed file locks nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
                return handle
        os.close(handle)


def _named(text: str) -> str:
    found = _holder(text)
    return "another process" if found is None else f"process {found.pid} on {found.host}"


def _holder(text: str) -> Holder | None:
    try:
        facts = json.loads(text)
        return Holder(str(facts["host"]), int(facts["pid"]))
    except (ValueError, KeyError, TypeError):
        return None
