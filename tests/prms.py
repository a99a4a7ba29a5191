"""Process reward models opened for tests, as every command opens them."""

from pathlib import Path
from typing import Any

from stepladder.lm.loaded_models import LoadedModels
from stepladder.lm.settings import EngineSettings
from stepladder.loops.assembly.prms import MemberAccess
from stepladder.prm.families import FAMILIES
from stepladder.prm.sources import PRMSource
from stepladder.prm.specs import PRMSpec


def open_directory(
    directory: str | Path,
    spec: PRMSpec | None = None,
    *,
    models: LoadedModels | None = None,
    settings: EngineSettings | None = None,
    **source: Any,
) -> Any:
    """Open a model under a spec, its own where none is given, on the CPU unless ``source`` says something else."""
    chosen = {"device": "cpu", **{name: str(value) for name, value in source.items()}}
    spec = PRMSpec.load(directory) if spec is None else spec
    access = MemberAccess(models or LoadedModels(), settings or EngineSettings())
    return FAMILIES[spec.family].open_with()(PRMSource(model=str(directory), **chosen), spec, access)


def load_reader(directory: str | Path, spec: PRMSpec | None = None, **options: Any) -> Any:
    """Load a model that reads text; options as for ``open_directory``."""
    return open_directory(directory, spec, **options).load()


def load_step_scorer(directory: str | Path, spec: PRMSpec | None = None, *, prompt_length: Any = len, **options: Any) -> Any:
    """Load a model of a policy's tokens; options as for ``open_directory``."""
    return open_directory(directory, spec, **options).load(prompt_length)
