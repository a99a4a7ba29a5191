"""A pool of workers that is this process: jobs run at once, one after the other, with models that stay loaded."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from stepladder.loops.config.training import TrainingConfig
from stepladder.loops.runs.workers import Task, WorkClock, forget_result


class InlinePool:
    """Does every task here."""

    num_workers = 1

    def __init__(self) -> None:
        """Begin without tasks of the next round."""
        self.clock = WorkClock()
        self._ahead: Sequence[Task] = []

    def run(self, tasks: Sequence[Task], *, on_progress: Any, on_result: Any = forget_result) -> list[Any]:
        """Run tasks in order."""
        results = []
        for number, task in enumerate(tasks):
            results.append(task.function(**task.arguments))
            on_result(number, results[-1])
        return results

    def ahead(self, tasks: Sequence[Task]) -> None:
        """Take tasks of the next round."""
        self._ahead = tasks

    def finish_ahead(self, *, on_progress: Any) -> None:
        """Run the tasks of the next round."""
        self.run(self._ahead, on_progress=on_progress)
        self._ahead = []

    def drop_ahead(self) -> None:
        """Forget the tasks of the next round."""
        self._ahead = []

    def train(self, task: Task, section: TrainingConfig, *, on_progress: Any) -> Any:
        """Make the call here."""
        return task.function(**task.arguments)

    def rest(self) -> None:
        """Hold nothing back."""


@contextmanager
def inline_pool(*_: Any, **__: Any) -> Iterator[InlinePool]:
    """Stand in for ``worker_pool`` and ``open_workers``."""
    yield InlinePool()
