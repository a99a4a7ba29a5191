"""A round's own settings: what differs from the run's, and how rules came to their values.

``settings.json`` is written before the round's first stage, so that a continued round keeps them.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import with_config

from stepladder.files import atomic_write_text, read_json
from stepladder.loops.config.run import Config, flatten_keys
from stepladder.loops.runs.json_records import CLOSED, record_of

_WHAT, _REMEDY = "the settings of a round", "remove the round's directory and run evolve again"


@with_config(CLOSED)
@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSettings:
    """Settings of a round."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from those of the run, by name."""
    computed: dict[str, Any] = field(default_factory=dict)
    """Those of them that rules computed, by name."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """The figures that each rule's values come from, by the rule."""
    probe_tokens: int = 0
    """Tokens that were generated to find them."""

    @classmethod
    def load(cls, path: Path) -> "RoundSettings | None":
        """Read a ``settings.json``; None if there is none.

        Raises:
            CheckpointError: If the file is something else.
        """
        if not path.exists():
            return None
        return record_of(cls, read_json(path, what=_WHAT, remedy=_REMEDY), place=path, what=_WHAT, remedy=_REMEDY)

    def save(self, path: Path) -> None:
        """Write a ``settings.json``."""
        atomic_write_text(path, json.dumps(asdict(self), indent=2) + "\n")


NO_SETTINGS = RoundSettings()
"""A round with the settings of the run."""


def changed_settings(run: Config, own: Config) -> dict[str, Any]:
    """Return the settings of a round that differ from those of the run, by name; a setting that the round does not have is None."""
    ours, theirs = (flatten_keys(config.model_dump(mode="json", exclude={"rounds", "rules"})) for config in (own, run))
    return {key: ours.get(key) for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)}
