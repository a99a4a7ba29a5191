"""A run that continues a round of another run, in a directory of its own, with other settings if wanted."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from stepladder.errors import CheckpointError, ConfigError
from stepladder.files import atomic_directory
from stepladder.loops.config.load import with_overrides
from stepladder.loops.config.paths import map_paths
from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import Branch, RunDir, load_run, write_run_json
from stepladder.loops.runs.store_copy import complete_models, url_of

_FIXED = ("problems.", "format.", "policy.model", "warmup.", "run.seed", "run.shard_size")
"""Settings that the finished rounds of a branch were made with, and that later rounds rely on."""


class PlannedBranch(NamedTuple):
    """A branch that may be made."""

    source: RunDir
    """The run that it leaves."""
    number: int
    """The last round that both have."""
    config: Config
    """Its settings, with the paths of its own directory."""
    root: Path
    """Its directory."""

    @property
    def origin(self) -> Branch:
        """Its origin, as run.json holds it."""
        root = self.source.root
        return Branch(run=url_of(root) or str(root.resolve()), round=self.number)


def plan_branch(source: str | Path, number: int, root: Path, overrides: list[str]) -> PlannedBranch:
    """Check that a run can be branched; nothing is written.

    Args:
        source: The run to leave: its directory or URL.
        number: The last round to keep, 0 for the warm-up alone.
        root: Directory of the branch: a new one, or that of the same branch, which then goes on.
        overrides: Each ``section.key=value``; they hold from round ``number + 1`` on.

    Raises:
        ConfigError: If a setting is unknown or impossible, or one that the finished rounds rely on.
        CheckpointError: If the source is no run, the round is not finished, or the directory holds something else.
    """
    run = load_run(source)
    if run.row(number) is None:
        raise CheckpointError(f"{source}: round {number} must be finished to leave from it: {len(run.rows())} rounds are, from 0 on")
    if root.resolve().is_relative_to(run.root.resolve()):
        raise CheckpointError(f"{root}: a branch must lie outside of its run: it is inside {source} -- choose another --run-dir")
    before = run.config()
    changed = with_overrides(before, overrides)
    fixed = [each for each in changed.differences(before) if each.startswith(_FIXED)]
    if fixed:
        raise ConfigError(f"--from-round: a branch keeps what its finished rounds were made with: {fixed[0]} -- start another run")
    planned = PlannedBranch(run, number, _moved(changed, run.root, root), root)
    if (root / "run.json").exists() and load_run(root).branch() != planned.origin:
        raise CheckpointError(f"{root}: must not exist, or be the same branch: it is another run -- choose another --run-dir")
    if not (root / "run.json").exists():
        RunDir(root=root).check_empty()
    return planned


def make_branch(planned: PlannedBranch) -> None:
    """Copy the rounds of a planned branch; a branch that exists is left as it is. Files are linked where the disk allows it.

    Raises:
        CheckpointError: If the directory cannot be written.
    """
    source, root = planned.source, planned.root
    if (root / "run.json").exists():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    for kept in range(planned.number + 1):
        complete_models(source.root, source.round(kept))
    with atomic_directory(root) as temporary:
        for name in ("start", "imported", *(f"rounds/{kept:03d}" for kept in range(planned.number + 1))):
            if (source.root / name).exists():
                shutil.copytree(source.root / name, temporary / name, copy_function=_link_or_copy)
        write_run_json(temporary, planned.config, place=root, inputs=source.inputs(), branch=planned.origin)
    RunDir(root=root).write_metrics()


def _moved(config: Config, source: Path, root: Path) -> Config:
    """Return settings whose paths inside one directory lie in another."""
    old, new = str(source.resolve()), str(root.resolve())
    plain = map_paths(config.model_dump(mode="json"), lambda path: new + path[len(old) :] if path.startswith(old + os.sep) else path)
    return Config.model_validate(plain)


def _link_or_copy(source: str, target: str) -> None:
    # What a run has written never changes, so that two runs can share it.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
