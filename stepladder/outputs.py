"""What a command may replace: one rule for every ``--output``, checked before work starts; and what ``-`` stands for.

- A place that does not exist is free, and so is an empty file or an empty directory, where the output is one.
- An earlier result of the same command is replaced only with ``--overwrite``.
- Nothing else is ever replaced, and no input of the command is.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from stepladder.errors import CheckpointError

_HEAD_CHARACTERS, _ROW_CHARACTERS = 65_536, 1 << 26
"""Characters that are read of a text, and of the first of some rows, which may hold many long solutions."""
PAGE_MARK = '<meta name="generator" content="stepladder">'
"""Mark in the head of every HTML page that stepladder writes."""

STANDARD = "-"
"""Name of standard input and output on the command line."""

Recognise = Callable[[Path], bool]
"""Says whether the command wrote an existing file or directory."""


def named_file(name: str | None) -> Path | None:
    """Return the file that a word of the command line names; None for standard input or output, and without a word."""
    return None if name in (None, STANDARD) else Path(name)


def input_name(source: str) -> str:
    """Return the name of an input in messages: its file, or ``stdin``."""
    return "stdin" if source == STANDARD else source


def check_output(
    path: Path, *, option: str, ours: Recognise, overwrite: bool, inputs: Iterable[Path | None] = (), is_directory: bool = False
) -> None:
    """Check that a command may write a file or a directory.

    Args:
        path: The output path.
        option: The option that gave the path, for messages.
        ours: Says whether the existing output is a result of the same command. It is called only if the output exists and is not empty.
        overwrite: Whether the command may replace such a result.
        inputs: The files and directories that the command reads; None is none.
        is_directory: Whether the command writes a directory there, and not a file.

    Raises:
        CheckpointError: If the command may not write it.
    """
    target = path.resolve()
    for source in filter(None, inputs):
        if source.exists() and (target == source.resolve() or target in source.resolve().parents):
            raise CheckpointError(
                f"{option} {path}: must not be an input of the same command, or hold one: got {source} -- choose another place"
            )
    if Path.cwd().is_relative_to(target):
        raise CheckpointError(f"{option} {path}: must not be the working directory or one above it -- name a new file or directory")
    _check_writable(path, target, option)
    if not target.exists():
        return
    if _is_empty(target):
        if target.is_dir() == is_directory:
            return
        wanted, found = ("directory", "file") if is_directory else ("file", "directory")
        raise CheckpointError(f"{option} {path}: must be a {wanted}: it is a {found} -- choose another place")
    if not ours(target):
        raise CheckpointError(f"{option} {path}: must be new: it holds what this command did not write -- choose another place")
    if not overwrite:
        raise CheckpointError(f"{option} {path}: must be new: it holds an earlier result -- choose another place or pass --overwrite")


def _check_writable(path: Path, target: Path, option: str) -> None:
    """Check the nearest existing directory, in which the others are created."""
    nearest = next(parent for parent in target.parents if parent.exists())
    if not nearest.is_dir():
        raise CheckpointError(f"{option} {path}: must lie in a directory: {nearest} is a file -- choose another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise CheckpointError(f"{option} {path}: must be writable: you may not write to {nearest} -- choose another place")


def _is_empty(path: Path) -> bool:
    return not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0


def rows_with(*keys: str) -> Recognise:
    """Return a function that recognises a JSON lines file by the keys of its first row."""

    def ours(path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open(encoding="utf-8", errors="replace") as file:
            try:
                row = json.loads(file.readline(_ROW_CHARACTERS))
            except (ValueError, RecursionError):
                return False
        return isinstance(row, dict) and row.keys() >= set(keys)

    return ours


def text_with(mark: str) -> Recognise:
    """Return a function that recognises a text file by a mark near its beginning."""

    def ours(path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open(encoding="utf-8", errors="replace") as file:
            return mark in file.read(_HEAD_CHARACTERS)

    return ours


def directory_with(name: str) -> Recognise:
    """Return a function that recognises a directory by a file in it."""
    return lambda path: (path / name).is_file()
