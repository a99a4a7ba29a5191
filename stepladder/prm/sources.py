"""Source and backend of a process reward model. This imports no model library, so that mistakes show at once."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from stepladder.errors import ConfigError, check, right_name
from stepladder.prm.families import FAMILIES
from stepladder.prm.specs import SPEC_FILE, PRMSpec, resolve_spec

VALUE_HEAD_FOLDER = "value_head"
"""Folder of a two-head model with the head that reads its hidden states."""
BACKENDS = ("transformers", "vllm")
"""What can forward a model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PRMSource:
    """Which model scores, and how."""

    model: str
    """Model directory, directory of an ensemble, or hub id."""
    spec: str | None = None
    """Name of a spec; None takes the directory's own, or the hub id's."""
    spec_options: tuple[tuple[str, bool | int | float | str | None], ...] = ()
    """Fields of the spec with other values."""
    reference: str | None = None
    """Reference of an implicit model; None takes the one that its spec names."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    dtype: str = "auto"
    """``auto``, ``float32``, ``bfloat16`` or ``float16``."""
    trust_remote_code: bool = False
    """Run code that ships with a hub model; the public ones named in ``prm specs`` need none."""
    seed: int = 0
    """Seed of a judge's verdicts."""
    backend: str = "transformers"
    """One of ``BACKENDS``; a judge runs on the embedded engine only."""
    entropy_penalty: float = 0.0
    """Penalty of a head of bins at maximum entropy, >= 0; as for ``outputs.scores_of``."""

    def resolve(self) -> PRMSpec:
        """Return the spec of the model; for an ensemble, that of its first model.

        Raises:
            ConfigError: Also if an option is no field of a spec; otherwise errors are those of ``resolve_spec``.
        """
        spec = resolve_spec(prm_members(self.model)[0], self.spec)
        known = [each.name for each in fields(spec)]
        for name, _ in self.spec_options:
            check(name in known, f"prm.spec_options: {name!r} is no field of a spec -- {right_name(name, known)}")
        return replace(spec, **dict(self.spec_options))


def prm_members(directory: str) -> list[str]:
    """Return the directories of an ensemble's models, in order; for a single model, its own directory, or that of its value head."""
    members = sorted(str(path) for path in Path(directory).glob("member-[0-9][0-9]"))
    if not members and has_value_head(directory) and not Path(directory, SPEC_FILE).is_file():
        return [str(Path(directory, VALUE_HEAD_FOLDER))]
    return members or [directory]


def has_value_head(directory: str) -> bool:
    """Say whether a directory holds a two-head model: a policy with a value head on its own hidden states."""
    return Path(directory, VALUE_HEAD_FOLDER, SPEC_FILE).is_file()


def reads_policy_body(model: str) -> bool:
    """Say whether a member of a PRM is a value head on the hidden states of a policy.

    Raises:
        CheckpointError: If its spec is malformed.
    """
    return Path(model, SPEC_FILE).is_file() and PRMSpec.load(model).family == "probe"


def check_backend(source: PRMSource) -> None:
    """Refuse a backend that cannot forward the model; nothing is loaded.

    Raises:
        ConfigError: If the backend is unknown, does not fit the device, or cannot forward the model's family.
    """
    if source.backend not in BACKENDS:
        raise ConfigError(f"--backend: must be one of {', '.join(BACKENDS)}: got {source.backend!r}")
    if source.backend == "transformers":
        return
    if source.device != "auto":
        raise ConfigError(f"--device: vLLM takes the GPU where there is one: got {source.device!r} -- leave it out with --backend vllm")
    family = source.resolve().family
    if source.backend not in FAMILIES[family].backends:
        what = "a judge writes its verdicts" if family == "judge" else f"a PRM of the family {family} runs"
        raise ConfigError(f"--backend: {what} on the embedded engine: got {source.backend!r} -- use 'transformers'")
