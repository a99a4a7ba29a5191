"""``stepladder --version``: the versions of stepladder and of the parts that decide what it can do."""

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files

from stepladder import __version__

PARTS = ("torch", "transformers", "accelerate", "peft", "datasets", "numpy", "numba", "pydantic")
"""Packages that are always there."""
EXTRAS = {"serve": ("fastapi", "uvicorn"), "vllm": ("vllm",), "ray": ("ray",), "remote": ("s3fs", "gcsfs")}
"""Packages of optional parts."""


def versions() -> str:
    """Return one line per part: its name, its version, and what to install if it is missing. Nothing is imported."""
    place = files("stepladder")
    lines = [
        f"stepladder {__version__}",
        f"python {platform.python_version()} ({platform.system()} {platform.machine()})",
        f"installed in {place}",
    ]
    lines += [f"{name} {version_of(name) or 'missing'}" for name in PARTS]
    for extra, names in EXTRAS.items():
        missing = f"not installed -- pip install 'stepladder[{extra}]'"
        lines += [f"{name} {version_of(name) or missing}" for name in names]
    return "\n".join(lines)


def version_of(name: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
