"""A pool of workers that is this process: jobs run at once, one after the other, with models that stay loaded."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from stepladder.loops.runs.workers import Task


class InlinePool:
    """Does every task here."""

    num_workers = 1

    def run(self, tasks: Sequence[Task], *, on_progress: Any) -> list[Any]:
        """Run tasks in order."""
        return [task.function(**task.arguments) for task in tasks]

    def rest(self) -> None:
        """Hold nothing back."""


@contextmanager
def inline_pool(*_: Any, **__: Any) -> Iterator[InlinePool]:
    """Stand in for ``worker_pool`` and ``open_workers``."""
    yield InlinePool()
