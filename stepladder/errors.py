"""Every exception that stepladder raises on purpose.

    StepladderError
    |-- ConfigError       a setting is unknown, impossible or contradicts another   (also ValueError)
    |-- DataFormatError   a file or row breaks its format                           (also ValueError)
    |-- ShapeError        an array or list has the wrong extent                     (also ValueError)
    |-- BackendError      a model engine failed or got a request it cannot serve    (also RuntimeError)
    `-- CheckpointError   a run directory or model directory cannot be used         (also RuntimeError)

A message is one sentence: place, rule, got, expected, remedy. A spent budget is a ``StopReason``, not an error. The command line maps
``ConfigError``, ``DataFormatError`` and ``CheckpointError`` to exit code 2 and the others to 1.
"""

import difflib
from collections.abc import Iterable


class StepladderError(Exception):
    """Base of every exception that stepladder raises on purpose."""


class ConfigError(StepladderError, ValueError):
    """A setting is unknown, out of range, or contradicts another setting."""


class DataFormatError(StepladderError, ValueError):
    """A problem file, trace file or shard breaks its format; the message names file and line."""


class ShapeError(StepladderError, ValueError):
    """The extents of two arrays or lists do not match."""


class BackendError(StepladderError, RuntimeError):
    """A model engine failed, or got a request that it cannot serve."""


class CheckpointError(StepladderError, RuntimeError):
    """A run directory or a model directory is incomplete, or belongs to something else or to another version."""


def check(holds: object, message: str) -> None:
    """Check one rule for a setting.

    Args:
        holds: Whether the setting keeps the rule; read as a truth value.
        message: The rule, the given value, and optionally the remedy.

    Raises:
        ConfigError: If it does not.
    """
    if not holds:
        raise ConfigError(message)


def right_name(given: object, names: Iterable[str], *, overview: Iterable[str] | None = None) -> str:
    """Return the remedy for a wrong name: the most similar known name, or an overview of them, which is all of them by default."""
    names = list(names)
    near = difflib.get_close_matches(str(given), names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names if overview is None else overview)}"
