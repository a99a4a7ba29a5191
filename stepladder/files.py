"""Atomic files and directories, which appear whole or not at all, and one boundary for all errors of reading them."""

import errno
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stepladder.errors import CheckpointError, StepladderError

_MAX_REASON = 240
"""Characters of a library's message that are shown."""
_STRUCTURE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, EOFError, AssertionError, ImportError)
"""What standard types raise where a file holds something else than what is looked for."""


@contextmanager
def reading(path: str | Path, *, what: str, remedy: str, raises: type[StepladderError] = CheckpointError) -> Iterator[None]:
    """Turn whatever a missing, damaged, foreign or unreadable file makes the block raise into one sentence; our own errors pass.

    The block reads, and takes what it needs out of what it read. It does no other work, so that no mistake of ours is blamed on a file.

    Args:
        path: The file or directory.
        what: What it must be, for people: ``a shard of trees``.
        remedy: What to do about one that is something else.
        raises: The error.

    Raises:
        StepladderError: Of the class that ``raises`` names.
    """
    try:
        yield
    except StepladderError:
        raise
    except BaseException as error:
        if (reason := file_fault(error, path)) is None:
            raise
        raise raises(f"{_place(error, path)}: must be {what}: {reason} -- {_remedy(error, remedy)}") from error


def read_json(path: Path, *, what: str, remedy: str, raises: type[StepladderError] = CheckpointError) -> Any:
    """Return what a JSON file holds; arguments and errors as for ``reading``."""
    with reading(path, what=what, remedy=remedy, raises=raises):
        return json.loads(path.read_text(encoding="utf-8-sig"))


def read_json_object(path: Path, *, what: str, remedy: str, raises: type[StepladderError] = CheckpointError) -> dict[str, Any]:
    """Return what a JSON file holds that must be one object; arguments and errors as for ``reading``."""
    found = read_json(path, what=what, remedy=remedy, raises=raises)
    if not isinstance(found, dict):
        raise raises(f"{path}: must be {what}: it holds no JSON object, but {type(found).__name__} -- {remedy}")
    return found


def too_large(plain: object, name: str = "") -> str | None:
    """Return the name of the first integer in plain containers that is outside 64 bits; None without one.

    Nothing that stepladder writes or computes with is so large, and libraries fail on it with errors that name no file: Python can turn
    a long integer neither into a float nor always into text.
    """
    if isinstance(plain, dict):
        inside = plain.items()
    elif isinstance(plain, list):
        inside = enumerate(plain)
    else:
        return (name or "the whole") if isinstance(plain, int) and abs(plain) >= 1 << 63 else None
    return next((found for key, value in inside if (found := too_large(value, f"{name}.{key}" if name else str(key))) is not None), None)


def file_fault(error: BaseException, path: str | Path | None = None) -> str | None:
    """Return a clause that says what is wrong with a file, or None for errors that no file causes.

    Args:
        error: What reading it raised.
        path: The file; an error that names another one says so.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return _os_reason(error)
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8: byte {error.object[error.start]:#04x} at position {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return "it is empty" if not error.doc.strip() else f"it is not JSON: {_first_line(error)}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, KeyError) and type(error) is KeyError:
        return f"{error.args[0] if error.args else ''!r} is missing"
    if type(error).__name__ == "UnpicklingError":
        return "it is a pickle of more than weights, or a damaged one: a pickle can run any code, and is never loaded"
    if isinstance(error, (OSError, *_STRUCTURE)) or _is_library_error(error):
        return _first_line(error)
    return None


def _is_library_error(error: BaseException) -> bool:
    """Say whether an error's class belongs to a library; none is imported for this. Rust libraries raise bare exceptions and panics."""
    top = type(error).__module__.partition(".")[0]
    if not isinstance(error, Exception):
        return top == "pyo3_runtime"
    return type(error) is Exception or top not in ("builtins", "stepladder")


def _os_reason(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "you may not read it"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a directory"
    if isinstance(error, NotADirectoryError):
        return "a part of its path is a file"
    return error.strerror or _first_line(error)


def _place(error: BaseException, path: str | Path) -> str | Path:
    """Return the file that an error names, where that lies in the directory that was read."""
    named = error.filename if isinstance(error, OSError) else None
    if isinstance(named, str) and Path(path) in Path(named).parents:
        return named
    return path


def _remedy(error: BaseException, remedy: str) -> str:
    return "change its rights, or ask its owner" if isinstance(error, PermissionError) else remedy


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    line = lines[0].strip().rstrip(".:") if lines else ""
    if not line or isinstance(error, AttributeError | IndexError | TypeError | AssertionError):
        line = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]}..."


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``. Rename it into place on success, and remove it on failure.

    Raises:
        CheckpointError: If the disk is full, or ``path`` is not writable or is a directory.
    """
    temporary = _temporary(path)
    with _explained(path, temporary):
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        _apply_umask(temporary)
        os.replace(temporary, path)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary directory next to ``path``. On success, rename it into place; it replaces an earlier directory.

    Raises:
        CheckpointError: If the disk is full, or ``path`` is not writable or is a file.
    """
    temporary = _temporary(path)
    with _explained(path, temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for written in (temporary, *temporary.rglob("*")):
            _apply_umask(written)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)


def _temporary(path: Path) -> Path:
    # Workers of several machines may write to one directory.
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def atomic_write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically.

    Raises:
        CheckpointError: If the disk is full or ``path`` is not writable.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_temporaries(directory: Path) -> None:
    """Remove the temporary files that killed processes left below a directory. Hold a lock, so that nobody else is writing there."""
    for path in sorted(directory.rglob(".*.tmp"), reverse=True):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _apply_umask(path: Path) -> None:
    """Give a file or directory the permissions that ``open`` or ``mkdir`` would give it. Some libraries write for their own user only."""
    if not path.is_symlink():
        path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


_umask_lock = threading.Lock()


def _umask() -> int:
    # The umask can only be read by setting it. Without the lock, another thread could read the mask of this moment, and leave it in place.
    with _umask_lock:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask


@contextmanager
def _explained(path: Path, temporary: Path) -> Iterator[None]:
    """Turn a failed write into one sentence; on any failure remove the temporary file, and directories that were made for it."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CheckpointError(
                f"{path}: could not be written: the disk is full ({error.strerror}) -- free space, then run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise CheckpointError(f"{path}: could not be written: {error.strerror} -- choose a place that you may write") from error
        if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
            found = error.filename2 or error.filename
            raise CheckpointError(f"{path}: could not be written: {error.strerror}: {str(found)!r} -- choose another place") from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.exists():
            temporary.unlink()
        for parent in missing:
            # Directories that hold something stay: the file itself, or what somebody else put there meanwhile.
            with suppress(OSError):
                parent.rmdir()
