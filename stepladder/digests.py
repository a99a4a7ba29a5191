"""Digests of files and directories, to detect changes."""

import hashlib
from functools import lru_cache
from pathlib import Path

_BLOCK_BYTES = 1 << 20


def digest_of(path: Path) -> str:
    """Return 32 hexadecimal digits that identify the bytes of a file, or the names and bytes of all files below a directory.

    Raises:
        OSError: If something cannot be read.
    """
    state = hashlib.blake2b(digest_size=16)
    for file in [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file()):
        name = "" if file == path else file.relative_to(path).as_posix()
        # The lengths keep names and contents apart.
        state.update(f"{len(name)}:{name}:{file.stat().st_size}:".encode())
        with file.open("rb") as content:
            while block := content.read(_BLOCK_BYTES):
                state.update(block)
    return state.hexdigest()


def short_number(text: str) -> int:
    """Return a number in [0, 2**64) that stands for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def file_stats(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and modification time of a file, or of all files below a directory. Equal stats mean that nothing was written."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def current_digest(path: Path) -> str:
    """Return ``digest_of`` a path as it is now; what was not written since the last call in this process is not read again.

    Raises:
        OSError: If something cannot be read.
    """
    return _digest_at(path, file_stats(path))


@lru_cache(maxsize=256)
def _digest_at(path: Path, stats: tuple[tuple[str, int, int], ...]) -> str:
    return digest_of(path)
