"""The file of a stopped command's finished work, next to its output: one line for every finished part, below one line of settings.

The first line holds everything that the parts depend on, every other line a part and its digest. Work of other settings, or that was
changed since, is never mixed with new work. An incomplete last line, as a kill leaves it, is dropped.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stepladder.errors import CheckpointError, DataFormatError
from stepladder.files import reading

Settings = Callable[[], dict[str, Any]]
"""Returns everything that decides the results, as plain values under the names that messages show."""
START_OVER = "remove the file to start over"
_BEGINNING = '{"schema_version": '
"""What the file begins with, also where a kill cut its first line."""


def part_of(output: Path) -> Path:
    """Return the file that keeps the finished work of an output until it is complete."""
    return Path(f"{output}.part")


class Part(NamedTuple):
    """A finished part of the work."""

    place: str
    """File and line."""
    values: dict[str, Any]
    """What was kept."""


@dataclass(kw_only=True, slots=True)
class KeptWork:
    """The finished parts of a command that was stopped."""

    path: Path
    """Where they are kept; the file need not exist."""
    version: int
    """Version of the stored form."""
    noun: str
    """What the parts are, for messages: ``answers``."""
    is_begun: bool = False
    """Whether the file holds a part, or the first line of this call."""

    def read(self, settings: Settings) -> list[Part]:
        """Return the parts of an earlier call.

        Args:
            settings: Those of this call; called only if there are parts.

        Raises:
            CheckpointError: If the parts belong to other settings.
            DataFormatError: If the file is not one that the command left, or was changed since.
        """
        with reading(self.path, what=f"the finished {self.noun} of a stopped call", remedy=START_OVER):
            text = self.path.read_bytes().decode() if self.path.exists() else ""
        lines = text.split("\n")[:-1]
        if not lines:
            # A foreign file is not replaced, although it may look like a first line that was cut.
            if not (text.startswith(_BEGINNING) or _BEGINNING.startswith(text)):
                raise DataFormatError(
                    f"{self.path}: must hold the finished {self.noun} of a stopped call: got {text[:80]!r} -- {START_OVER}"
                )
            return []
        self._check_settings(self._object(1, lines[0]), settings())
        parts = [self._part(number, self._object(number, line)) for number, line in enumerate(lines[1:], start=2)]
        if not text.endswith("\n"):
            # Cut in place: writing the file again would lose all lines if this process is killed meanwhile.
            os.truncate(self.path, len(text[: text.rindex("\n") + 1].encode()))
        self.is_begun = bool(parts)
        return parts

    def begin(self, settings: Settings) -> None:
        """Write the first line, unless it is there with parts below it.

        Call it after the models are loaded: only then the local cache knows the commit of a hub model.
        """
        if not self.is_begun:
            header = json.dumps({"schema_version": self.version, "settings": settings()})
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(f"{header}\n", encoding="utf-8")
            self.is_begun = True

    def keep(self, parts: Sequence[dict[str, Any]]) -> None:
        """Write finished parts with one write, so that a kill seldom parts them."""
        lines = [json.dumps({**values, "digest": _digest(values)}) for values in parts]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def _part(self, number: int, line: dict[str, Any]) -> Part:
        digest = line.pop("digest", None)
        if digest != _digest(line):
            raise DataFormatError(f"{self.path}:{number}: must be as it was written: it was changed since -- {START_OVER}")
        return Part(f"{self.path}:{number}", line)

    def _object(self, number: int, line: str) -> dict[str, Any]:
        """Return the JSON object of a line."""
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise DataFormatError(f"{self.path}:{number}: must hold {self.noun} of an earlier call: got {line[:80]!r} -- {START_OVER}")
        return value

    def _check_settings(self, header: dict[str, Any], settings: dict[str, Any]) -> None:
        """Refuse parts of other settings; the message names the first setting that differs."""
        kept = header.get("settings")
        if header.get("schema_version") != self.version or not isinstance(kept, dict):
            raise CheckpointError(f"{self.path}: does not say which settings its {self.noun} belong to -- {START_OVER}")
        for name in [*settings, *(name for name in kept if name not in settings)]:
            if kept.get(name) != settings.get(name):
                raise CheckpointError(
                    f"{self.path}: holds {self.noun} of other settings: {name} was {kept.get(name)!r} and is {settings.get(name)!r} -- "
                    f"repeat the earlier settings, or {START_OVER}"
                )


def _digest(values: dict[str, Any]) -> str:
    """Return a digest of the values of a part; it is the same before they are written and after they are read."""
    return hashlib.sha256(json.dumps([*values.values()]).encode()).hexdigest()[:16]
