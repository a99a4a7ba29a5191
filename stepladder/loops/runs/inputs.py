"""Inputs of a run: files and models that must not change after it began."""

from pathlib import Path
from typing import get_args

from stepladder.digests import current_digest, file_stats
from stepladder.errors import CheckpointError
from stepladder.files import reading
from stepladder.loops.config.paths import named_paths, preset_file
from stepladder.loops.config.run import PLUG_KEYS, Config
from stepladder.loops.config.search import CODE_TOOL
from stepladder.plugs import is_source, load_plug, plug_file
from stepladder.settings import RuleName

_FREE = {"training.accelerate_config"}
"""Paths of settings that may change when a run is continued."""
_SOURCES = {"problems.train", "problems.held_out", "problems.test"}
"""Settings that name a function or something else."""


def input_paths(config: Config) -> dict[str, Path]:
    """Return the problem files, solved examples, given models and source files of functions on this machine, by their settings' names."""
    named = {name: preset_file(value)[1] for name, value in named_paths(config.model_dump(mode="json")).items()}
    return {name: Path(value) for name, value in named.items() if name not in _FREE and Path(value).exists()} | _sources(config)


def imported_paths(place: Path) -> dict[str, Path]:
    """Return the folders of a run's imported rows, by their paths in its directory; once round 1 has begun also of rows made of them."""
    return {folder.relative_to(place).as_posix(): folder for folder in sorted(place.glob("imported/*/*")) if folder.is_dir()}


def _sources(config: Config) -> dict[str, Path]:
    """Return the files of the functions that settings name; without those that have none, such as builtins."""
    named = {f"{section}.{key}": getattr(getattr(config, section), key) for section, key in PLUG_KEYS}
    functions = {setting: name for setting, name in named.items() if name and name != CODE_TOOL}
    functions = {setting: name for setting, name in functions.items() if setting not in _SOURCES or is_source(name)}
    if config.format.steps in get_args(RuleName):
        del functions["format.steps"]
    files = {setting: plug_file(load_plug(name, setting=setting)) for setting, name in functions.items()}
    return {setting: file for setting, file in files.items() if file is not None}


def input_digests(config: Config, place: Path | None = None) -> dict[str, str]:
    """Return the digest of every input that lies on this machine, by the name of its setting, and of imported rows, by their folder.

    Args:
        config: The configuration of the run.
        place: The run directory before the run begins; None for a run without imported rows.

    Raises:
        CheckpointError: If one cannot be read.
    """
    paths = input_paths(config) | ({} if place is None else imported_paths(place))
    return {name: _digest(path, name) for name, path in paths.items()}


def _digest(path: Path, name: str) -> str:
    with reading(path, what=f"readable, as {name}", remedy="restore it"):
        return current_digest(path)


def check_inputs(config: Config, expected: dict[str, str], *, place: Path) -> None:
    """Check that the inputs of a run have not changed since it began. Hub ids are not checked.

    Args:
        config: The configuration of the run.
        expected: The result of ``input_digests`` at that time.
        place: The run directory.

    Raises:
        CheckpointError: If one has changed or is gone.
    """
    paths = input_paths(config) | imported_paths(place)
    for name, digest in expected.items():
        if name not in paths or _digest(paths[name], name) != digest:
            found = f"{paths[name]} has changed" if name in paths else "it is gone"
            raise CheckpointError(f"{place}: {name} must stay what it was when the run began: {found} -- restore it, or start another run")


class InputGuard:
    """Notices between stages that an input has changed: cheap as long as nothing was written."""

    def __init__(self, config: Config, expected: dict[str, str], *, place: Path) -> None:
        """Check the inputs, and remember when they were written; arguments and errors as for ``check_inputs``."""
        self._config, self._expected, self._place = config, expected, place
        self._stats = self._all_stats()
        check_inputs(config, expected, place=place)

    def check(self) -> None:
        """Check that the inputs have not changed; errors as for ``check_inputs``."""
        if (stats := self._all_stats()) != self._stats:
            check_inputs(self._config, self._expected, place=self._place)
            self._stats = stats

    def _all_stats(self) -> dict[str, tuple[tuple[str, int, int], ...]]:
        with reading(self._place, what="a run with readable inputs", remedy="restore it"):
            paths = input_paths(self._config) | imported_paths(self._place)
            return {name: file_stats(path) for name, path in paths.items()}
