"""The runs of a comparison, several at once: the warm-ups of all seeds, then the runs that begin with them."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.console import Console

from stepladder.commands.evolve import evolve
from stepladder.files import atomic_directory, atomic_write_text
from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import RunDir, open_run
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.workers import Task, WorkerPool, worker_pool
from stepladder.terminal import echo

KeyT = TypeVar("KeyT")


class Work(NamedTuple):
    """A run to make, in a process of its own."""

    name: str
    """Its name in messages."""
    task: Task[None]
    """The call that makes it."""


def run_all(warm_ups: Mapping[KeyT, Work], runs: Sequence[tuple[KeyT, Work]], *, jobs: int) -> list[str]:
    """Make the warm-ups, and then the runs in their order, ``jobs`` at once.

    Args:
        warm_ups: The warm-ups by key.
        runs: The key of the warm-up that a run begins with, and the run. It is left out if that warm-up failed.
        jobs: Processes, >= 1.

    Returns:
        A sentence about each that failed.
    """
    with worker_pool(jobs, threads=1) as pool:
        begun = dict(zip(warm_ups, _attempts(pool, warm_ups.values()), strict=True))
        ended = _attempts(pool, [work for key, work in runs if begun[key] is None])
    return [failure for failure in [*begun.values(), *ended] if failure is not None]


def _attempts(pool: WorkerPool, works: Iterable[Work]) -> list[str | None]:
    # Every run has a log; nothing of its progress is shown here.
    return pool.run([Task.of(_attempt, work=work) for work in works], on_progress=lambda _: None)


def _attempt(work: Work) -> str | None:
    """Make a run and say what time it took, of the clock and of processors; return what went wrong, or None."""
    begin, cpu = time.monotonic(), _cpu_seconds()
    try:
        work.task.function(**work.task.arguments)
    except Exception as error:
        # Whatever it is, the other runs go on.
        return f"{work.name}: {type(error).__name__}: {error}"
    echo(f"{work.name}: {time.monotonic() - begin:.0f} s, {_cpu_seconds() - cpu:.0f} CPU s", err=True)
    return None


def _cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


@contextmanager
def processor_time_added(path: Path) -> Iterator[None]:
    """Add the processor time of a block to the seconds in a file. A continued run adds up; what was killed is not counted."""
    begin = _cpu_seconds()
    try:
        yield
    finally:
        atomic_write_text(path, f"{(processor_time(path) or 0.0) + _cpu_seconds() - begin:.1f}\n")


def processor_time(path: Path) -> float | None:
    """Return the seconds in a file; None without one."""
    return float(path.read_text(encoding="utf-8")) if path.exists() else None


def run_rounds(config: Config, root: Path) -> None:
    """Run what is missing of a run, with its messages in a log beside its directory."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_name(f"{root.name}.log").open("a", encoding="utf-8") as log:
        evolve(config, root, display=ProgressDisplay(Console(file=log)))


def run_from(start: RunDir, config: Config, root: Path) -> None:
    """Run what is missing of a run that begins with the finished round 0 of another one."""
    if not (root / "rounds" / "000").exists():
        with atomic_directory(open_run(root, config).round(0)) as temporary:
            shutil.copytree(start.round(0), temporary, dirs_exist_ok=True)
    run_rounds(config, root)


def numbers(text: str) -> list[int]:
    """Read whole numbers with commas between them."""
    return [int(part) for part in text.split(",")]


def share(text: str) -> float:
    """Read a share, in [0, 1]."""
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1]: got {text}")
    return value


def names_among(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a reader of known names with commas between them."""

    def read(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = sorted(set(chosen) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"must be among {', '.join(known)}: got {', '.join(unknown)}")
        return chosen

    return read


def end(failed: Sequence[str]) -> None:
    """Print what failed, and exit with 1 if anything did."""
    for failure in failed:
        echo(failure, err=True)
    if failed:
        sys.exit(1)
