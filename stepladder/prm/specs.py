"""What a process reward model is, as data: how its output becomes a score, and which prompts it was trained on."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from stepladder.errors import CheckpointError, ConfigError
from stepladder.files import atomic_write_text

SPEC_FILE = "stepladder_prm.json"
"""Where a model directory keeps its ``PRMSpec``."""

SPEC_VERSION = 1

Family = Literal["value-head"]
Read = Literal["step-end"]
Transform = Literal["sigmoid", "tanh01", "identity"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PRMSpec:
    """How to read scores off a model; stored beside it, so that training and serving agree."""

    family: Family = "value-head"
    """``value-head``: one linear output on every token of a causal transformer."""
    read: Read = "step-end"
    """``step-end``: the score of a step is read at its last token."""
    transform: Transform = "sigmoid"
    """From output x to score: ``sigmoid`` 1 / (1 + exp(-x)); ``tanh01`` (tanh(x) + 1) / 2; ``identity`` x, clipped to [0, 1]."""
    renderer_hash: str
    """Hash of the renderer whose prompts it was trained on."""

    def __post_init__(self) -> None:
        for name, allowed in (("family", Family), ("read", Read), ("transform", Transform)):
            if getattr(self, name) not in get_args(allowed):
                raise ConfigError(f"PRM spec: {name} must be one of {list(get_args(allowed))}: got {getattr(self, name)!r}")

    def save(self, directory: str | Path) -> None:
        """Write the spec into a model directory."""
        atomic_write_text(Path(directory) / SPEC_FILE, json.dumps({"schema_version": SPEC_VERSION, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> "PRMSpec":
        """Read the spec of a model directory.

        Raises:
            CheckpointError: If it is missing, malformed or of another version.
        """
        path = Path(directory) / SPEC_FILE
        try:
            row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = row.pop("schema_version")
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: must say how scores are read: not found -- use a directory that PRM training wrote") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: must be a JSON object with a schema_version: {error!r} -- save the PRM again") from error
        if version != SPEC_VERSION or set(row) != {field.name for field in fields(cls)}:
            raise CheckpointError(f"{path}: must be of version {SPEC_VERSION} with all its fields: got {version!r} with {sorted(row)}")
        return cls(**row)
