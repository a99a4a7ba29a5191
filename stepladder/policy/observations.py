"""Observations by path: what a tool returned is kept, so that the same path has the same observation after a restart."""

import hashlib
import json
import os
from array import array
from collections.abc import Sequence
from pathlib import Path

from stepladder.errors import CheckpointError
from stepladder.interfaces import Observation


def path_key(token_ids: Sequence[int]) -> str:
    """Return the key of a path: of all tokens from the beginning of the prompt to the end of the step."""
    return hashlib.blake2b(array("q", token_ids).tobytes(), digest_size=16).hexdigest()


class ObservationStore:
    """Observations by the key of their path, in memory and, with a file, on disk.

    The file has one JSON object per line, and one process writes it. A line that a killed process did not finish is dropped.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Read the file, if there is one.

        Raises:
            CheckpointError: If it cannot be read, or holds something else.
        """
        self._path = path
        self._known: dict[str, Observation | None] = {}
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        whole = path.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        if len(kept) < len(whole):
            os.truncate(path, len(kept))
        for number, line in enumerate(kept.splitlines(), 1):
            try:
                key, text, failed = json.loads(line)
                self._known[key] = None if text is None else Observation(text, bool(failed))
            except (ValueError, TypeError, RecursionError):
                raise CheckpointError(f"{path}:{number}: must be an observation: got {line[:60]!r} -- remove the file") from None

    def __contains__(self, key: str) -> bool:
        """Say whether a path's observation is known."""
        return key in self._known

    def __getitem__(self, key: str) -> Observation | None:
        """Return a path's observation; None if the tool gave none."""
        return self._known[key]

    def add(self, key: str, observation: Observation | None) -> None:
        """Keep an observation; it is on disk when this returns."""
        self._known[key] = observation
        if self._path is None:
            return
        text, failed = (None, False) if observation is None else observation
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write((json.dumps([key, text, failed]) + "\n").encode())

    def remove(self) -> None:
        """Forget everything, and delete the file: its work is done."""
        self._known.clear()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
