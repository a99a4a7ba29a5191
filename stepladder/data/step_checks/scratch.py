"""Scratch directories that do not outlive their process, even if it is killed.

A directory is locked for as long as its process lives; the kernel takes the lock off when the process dies, however it dies. The first
directory that a process makes is preceded by a search for those that nobody has locked, which are deleted.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PREFIX = "stepladder-code-"


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Make an empty directory that only this user can enter, and delete it at the end."""
    parent = tempfile.gettempdir()
    delete_abandoned(parent)
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    handle = _locked(path)
    while handle is None:
        # Another process took it for abandoned in the moment before it was locked.
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        handle = _locked(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


@cache
def delete_abandoned(parent: str) -> None:
    """Delete this user's scratch directories that no living process holds, in one directory; once per process and directory."""
    try:
        paths = [path for path in Path(parent).iterdir() if path.name.startswith(PREFIX)]
    except PermissionError:
        # One can work in a directory without being allowed to list it.
        return
    for path in paths:
        try:
            # Somebody who places a link here must not choose what is deleted.
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if os.fstat(handle).st_uid == os.geteuid() and _lock(handle, waits=False):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(handle)


def _locked(path: Path) -> int | None:
    """Return a descriptor that keeps a directory locked; None if the directory is gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    _lock(handle, waits=True)
    # A deleted directory has no name left; its number of links tells.
    if os.fstat(handle).st_nlink:
        return handle
    os.close(handle)
    return None


def _lock(handle: int, *, waits: bool) -> bool:
    """Lock a directory; say whether that worked. On file systems without locks, the leftovers of a killed process stay."""
    # Windows has no such module, and no sandbox.
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
