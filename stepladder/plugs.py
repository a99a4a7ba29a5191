"""Functions of other packages that settings name: a task's verifier, problems and prompt, and a search's tool.

A name has one of three forms:

    package.module:function     importable, that is installed or on PYTHONPATH
    folder/task.py:function     a file
    name                        an entry point of the group ``stepladder.tasks``

An entry point may be a function, or a module or an object with one function per role.
"""

import hashlib
import inspect
import os
import sys
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from stepladder.errors import ConfigError, right_name

GROUP = "stepladder.tasks"
"""The group of entry points."""
ROLES = {
    "problems.verifier": "grade",
    "problems.train": "problems",
    "problems.held_out": "problems",
    "problems.test": "problems",
    "format.prompt": "prompt",
    "format.steps": "ends",
    "search.tool": "tool",
}
"""Settings that may name a function, with the function of an entry point's module."""


def load_plug(name: str, *, setting: str) -> Any:
    """Import the function that a setting names.

    Args:
        name: As above.
        setting: The setting, one of ``ROLES``.

    Raises:
        ConfigError: If it cannot be imported, or cannot be called.
    """
    rule = f"{setting}: must name a function that can be imported, as package.module:function or file.py:function"
    place, _, function = name.rpartition(":")
    try:
        plug = getattr(_module(place), function) if place else _from_entry_point(name, setting=setting)
    except ConfigError:
        raise
    # The code is somebody's: importing it may raise anything.
    except Exception as error:
        raise ConfigError(f"{rule}: got {name!r}: {raised(error)} -- {_remedy(place, error)}") from None
    if not callable(plug):
        raise ConfigError(f"{rule}: got {name!r} of type {type(plug).__name__}, which cannot be called -- name a function")
    return plug


def is_source(name: str) -> bool:
    """Say whether a source of problems is a function: ``package.module:function`` or ``file.py:function``, and not a file or data set."""
    place, _, function = name.rpartition(":")
    return bool(place) and function.isidentifier() and place != "preset" and (place.endswith(".py") or "/" not in place)


def names_function(name: str) -> bool:
    """Say whether a setting that may also be a plain word names a function: it has a colon, or is an entry point."""
    return ":" in name or name in {point.name for point in entry_points(group=GROUP)}


def plug_file(plug: Any) -> Path | None:
    """Return the file that defines a loaded function, class or object; None if it has none, such as a builtin."""
    defined = plug if isinstance(plug, ModuleType) or inspect.isroutine(plug) or inspect.isclass(plug) else type(plug)
    try:
        found = inspect.getsourcefile(inspect.unwrap(defined) if callable(defined) else defined)
    except (TypeError, OSError):
        return None
    return None if found is None or not Path(found).is_file() else Path(found).resolve()


def at_place(name: str, base: Path) -> str:
    """Return a name whose file is relative to a folder with the absolute path of the file; other names stay."""
    place, colon, function = name.rpartition(":")
    if not place.endswith(".py") or Path(place).is_absolute() or not (base / place).is_file():
        return name
    return f"{(base / place).resolve()}{colon}{function}"


def without_folder(name: str) -> str:
    """Return a name without the folder of its file, so that it is the same on another machine."""
    place, colon, function = name.rpartition(":")
    return f"{Path(place).name}{colon}{function}" if place.endswith(".py") else name


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return import_module(place)
    path = Path(place).resolve()
    name = f"stepladder_task_{hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "the suffix has a loader"
    # Other files beside it can be imported, but do not hide installed packages.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_entry_point(name: str, *, setting: str) -> Any:
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name not in known:
        remedy = right_name(name, known) if known else "none is installed: write package.module:function or file.py:function"
        raise ConfigError(f"{setting}: must name an entry point of the group {GROUP}: got {name!r} -- {remedy}")
    loaded, role = known[name].load(), ROLES[setting]
    if isinstance(loaded, ModuleType) or hasattr(loaded, role):
        return getattr(loaded, role)
    return loaded


def raised(error: Exception) -> str:
    """Return an exception of somebody's code as a phrase: its type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"


def _remedy(place: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "correct the path"
    if isinstance(error, ModuleNotFoundError):
        return f"install it, or set PYTHONPATH (looked in {os.pathsep.join(sys.path[:3])} and others)"
    return f"see the code of {place}" if place else "see its code"
