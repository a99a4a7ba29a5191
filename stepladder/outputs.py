"""What a command may replace: one rule for every ``--output``, checked before the work.

- A place that does not exist, an empty file and an empty directory are free.
- What the same command wrote earlier is replaced only with ``--overwrite``.
- Anything else is never replaced, nor is one of the command's own inputs.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from stepladder.errors import CheckpointError

_HEAD_CHARACTERS = 65_536
PAGE_MARK = '<meta name="generator" content="stepladder">'
"""What every HTML page of ours holds in its head."""

Recognise = Callable[[Path], bool]
"""Says whether an existing file or directory is one that the command wrote."""


def check_output(path: Path, *, option: str, ours: Recognise, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Check that a command may write a file or a directory.

    Args:
        path: Where it is to be written.
        option: The option that named it, for messages.
        ours: Whether what stands there is a result of the same command; asked only of what exists and is not empty.
        overwrite: Whether such a result may be replaced.
        inputs: What the command reads.

    Raises:
        CheckpointError: If it may not.
    """
    target = path.resolve()
    for source in inputs:
        if source.exists() and (target == source.resolve() or target in source.resolve().parents):
            raise CheckpointError(
                f"{option} {path}: must not be an input of the same command, or hold one: got {source} -- choose another place"
            )
    if Path.cwd().is_relative_to(target):
        raise CheckpointError(f"{option} {path}: must not be the working directory or one above it -- name a new file or directory")
    _check_writable(path, target, option)
    if not target.exists() or _is_empty(target):
        return
    if not ours(target):
        raise CheckpointError(f"{option} {path}: must be new: it holds what this command did not write -- choose another place")
    if not overwrite:
        raise CheckpointError(f"{option} {path}: must be new: it holds an earlier result -- choose another place or pass --overwrite")


def _check_writable(path: Path, target: Path, option: str) -> None:
    """Check the nearest directory that exists: the others are made there."""
    nearest = next(parent for parent in target.parents if parent.exists())
    if not nearest.is_dir():
        raise CheckpointError(f"{option} {path}: must lie in a directory: {nearest} is a file -- choose another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise CheckpointError(f"{option} {path}: must be writable: you may not write to {nearest} -- choose another place")


def _is_empty(path: Path) -> bool:
    return not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0


def rows_with(*keys: str) -> Recognise:
    """Recognise JSON lines by the keys of the first row."""

    def ours(path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open(encoding="utf-8", errors="replace") as file:
            try:
                row = json.loads(file.readline(_HEAD_CHARACTERS))
            except (ValueError, RecursionError):
                return False
        return isinstance(row, dict) and row.keys() >= set(keys)

    return ours


def text_with(mark: str) -> Recognise:
    """Recognise a text file by something near its beginning."""

    def ours(path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open(encoding="utf-8", errors="replace") as file:
            return mark in file.read(_HEAD_CHARACTERS)

    return ours


def directory_with(name: str) -> Recognise:
    """Recognise a directory by a file in it."""
    return lambda path: (path / name).is_file()
