"""Files and directories that appear whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stepladder.errors import CheckpointError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place on success and remove it on any failure.

    Raises:
        CheckpointError: If the disk is full, or the place cannot be written or is a directory.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _explained(path, temporary):
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        _apply_umask(temporary)
        os.replace(temporary, path)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary directory beside ``path``; rename it into place on success, replacing what stood there.

    Raises:
        CheckpointError: If the disk is full, or the place cannot be written or is a file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _explained(path, temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for written in (temporary, *temporary.rglob("*")):
            _apply_umask(written)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all.

    Raises:
        CheckpointError: If the disk is full or the place cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_temporaries(directory: Path) -> None:
    """Remove what killed processes left below a directory. Nobody else may be writing there: hold a lock."""
    for path in sorted(directory.rglob(".*.tmp"), reverse=True):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _apply_umask(path: Path) -> None:
    """Give a file or directory the rights of one that was made by ``open`` or ``mkdir``: some libraries write for their user alone."""
    if not path.is_symlink():
        path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


def _umask() -> int:
    # There is no way to ask without setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def _explained(path: Path, temporary: Path) -> Iterator[None]:
    """Turn a failed write into one sentence, and leave no temporary behind whatever went wrong."""
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
