"""Tasks that workers of any kind do in tests; workers import them by their module."""

import os

from stepladder.errors import DataFormatError
from stepladder.loops.runs.workers import Progress, report_progress


def square(*, number: int) -> int:
    """Return the square of a number, and report one item."""
    report_progress(Progress(stage="squares", items=1, tokens=number))
    return number * number


def where() -> str:
    """Return the working directory."""
    return os.getcwd()


def fail(*, message: str) -> None:
    """Fail with an error of the package."""
    raise DataFormatError(message)
