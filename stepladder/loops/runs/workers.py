"""Worker processes that search, train and evaluate.

A task is a module-level function of plain arguments that reads files and writes files; it returns a small summary. Workers are spawned once
per run and keep what they imported. A worker ends itself when its parent is gone, even when the parent was killed, so no orphan goes on
computing. Progress travels through one queue.
"""

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from stepladder.errors import BackendError, ConfigError
from stepladder.lm.loaded_models import LoadedModels
from stepladder.loops.runs.live import LiveTree

ResultT = TypeVar("ResultT")
MadeT = TypeVar("MadeT")
ArgumentsP = ParamSpec("ArgumentsP")

_PARENT_POLL_S = 1.0
_PROGRESS_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Progress of one task since its last report."""

    stage: str
    """Name of the stage, as shown."""
    items: int = 0
    """Problems or updates finished."""
    tokens: int = 0
    """Tokens sampled or trained on."""
    solved: int = 0
    """Problems of these with a right answer."""
    total: int | None = None
    """Items in the stage, if only the task knows."""
    tree: LiveTree | None = None
    """A tree that grows, to be shown."""


# One queue per worker process, set by the initializer: under spawn, a queue cannot be an argument of a task function.
_progress_queue: Any = None


# Models that this process has loaded for its tasks: a task cannot receive the models of an earlier task as an argument either.
_models = LoadedModels()


def worker_models() -> LoadedModels:
    """Return the models of this worker; they stay loaded from one task to the next."""
    return _models


def connect(progress_queue: Any) -> None:
    """Send the progress of this process to a queue, or to anything else that takes it with ``put``."""
    global _progress_queue
    _progress_queue = progress_queue


def report_progress(progress: Progress) -> None:
    """Send progress to the parent; in a process without a parent's queue it goes nowhere."""
    if _progress_queue is not None:
        _progress_queue.put(progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task(Generic[ResultT]):
    """A call to be made in a worker."""

    function: Callable[..., ResultT]
    """A module-level function."""
    arguments: dict[str, Any]
    """Its keyword arguments; they must be picklable."""

    @staticmethod
    def of(function: Callable[ArgumentsP, MadeT], *positional: ArgumentsP.args, **arguments: ArgumentsP.kwargs) -> "Task[MadeT]":
        """Return a call with keyword arguments, which a type checker compares with the function's."""
        assert not positional, "a job takes keyword arguments"
        return Task(function=function, arguments=dict(arguments))


def forget_result(number: int, result: Any) -> None:
    """Do nothing with a result that comes early: ``run`` returns it in the end."""


class Workers(Protocol):
    """Where the tasks of a run are done: in processes of this machine (``WorkerPool``) or on a cluster (``RayWorkers``)."""

    num_workers: int
    """Tasks done at once, at most."""

    def run(
        self,
        tasks: Sequence[Task[ResultT]],
        *,
        on_progress: Callable[[Progress], None],
        on_result: Callable[[int, ResultT], None] = forget_result,
    ) -> list[ResultT]:
        """Run tasks and return their results in order; the first failure cancels what has not started and is raised.

        Args:
            tasks: The tasks.
            on_progress: Takes the reports of the tasks.
            on_result: Called with a task's number and its result as soon as it is finished, so that nothing finished is lost with the rest.

        Raises:
            BackendError: If a worker died without a word (out of memory, killed).
        """
        ...

    def rest(self) -> None:
        """End the idle workers to free their models, engines and GPU memory. The next task starts them again."""
        ...


class WorkerPool:
    """A fixed number of worker processes."""

    def __init__(self, num_workers: int, *, threads: int, gpus_each: int | None = None) -> None:
        """Start no process yet; the first task does.

        Args:
            num_workers: Processes, >= 1.
            threads: CPU threads per process, >= 1.
            gpus_each: GPUs that each process sees, none of them shared; None shows all of them to all.
        """
        self._context = get_context("spawn")
        self._queue = self._context.Queue()
        self.num_workers, self._threads = num_workers, threads
        self._shares = None if gpus_each is None else gpu_shares(gpu_names(), num_workers, gpus_each)
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        shares = None if self._shares is None else self._context.Queue()
        for share in self._shares or []:
            assert shares is not None
            shares.put(share)
        arguments = (os.getpid(), self._threads, self._queue, shares)
        return ProcessPoolExecutor(self.num_workers, mp_context=self._context, initializer=_start_worker, initargs=arguments)

    def rest(self) -> None:
        """End the idle workers to free their models, engines and GPU memory. The next task starts them again."""
        self._pool.shutdown()
        self._pool = self._new_pool()

    def run(
        self,
        tasks: Sequence[Task[ResultT]],
        *,
        on_progress: Callable[[Progress], None],
        on_result: Callable[[int, ResultT], None] = forget_result,
    ) -> list[ResultT]:
        """Run tasks, as ``Workers`` says.

        Raises:
            BackendError: If a worker died without a word (out of memory, killed).
        """
        futures = [self._pool.submit(task.function, **task.arguments) for task in tasks]
        numbers = {future: number for number, future in enumerate(futures)}
        try:
            for future in self._finished(futures, on_progress):
                on_result(numbers[future], future.result())
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise BackendError("a worker process was killed, most likely for memory -- lower search.max_trees or run.workers") from None
        finally:
            for future in futures:
                future.cancel()

    def _finished(self, futures: list[Future], on_progress: Callable[[Progress], None]) -> Iterator[Future]:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_PROGRESS_POLL_S, return_when=FIRST_COMPLETED)
            self._drain(on_progress)
            # What is finished is handed on before a failure beside it ends everything.
            for future in sorted(done, key=_has_failed):
                future.result()
                yield future
        self._drain(on_progress)

    def _drain(self, on_progress: Callable[[Progress], None]) -> None:
        while True:
            try:
                on_progress(self._queue.get_nowait())
            except queue.Empty:
                return

    def close(self, *, kill: bool = False) -> None:
        """Stop the workers. ``kill`` ends running tasks at once, which is safe because results are written completely or not at all."""
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=not kill, cancel_futures=True)
        if kill:
            for process in processes:
                process.kill()
        self._queue.close()
        self._queue.cancel_join_thread()


def _has_failed(future: Future) -> bool:
    return future.exception() is not None


@contextmanager
def worker_pool(num_workers: int, *, threads: int, gpus_each: int | None = None) -> Iterator[WorkerPool]:
    """Yield a pool that is shut down in order on success and killed on any exception, Ctrl-C included."""
    pool = WorkerPool(num_workers, threads=threads, gpus_each=gpus_each)
    try:
        yield pool
    except BaseException:
        pool.close(kill=True)
        raise
    pool.close()


def gpu_names() -> list[str]:
    """Return the names of the NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them; nothing is initialised."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    devices = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number, _ in enumerate(devices.iterdir())] if devices.is_dir() else []


def gpu_shares(names: Sequence[str], num_workers: int, gpus_each: int) -> list[str]:
    """Return CUDA_VISIBLE_DEVICES for every worker.

    Raises:
        ConfigError: If there are too few.
    """
    if len(names) < num_workers * gpus_each:
        raise ConfigError(
            f"run.workers: {num_workers} workers of {gpus_each} GPUs each need {num_workers * gpus_each}: found {len(names)} -- lower "
            "policy.vllm.data_parallel or run.workers"
        )
    return [",".join(names[number * gpus_each : (number + 1) * gpus_each]) for number in range(num_workers)]


def _start_worker(parent_pid: int, threads: int, progress_queue: Any, gpu_queue: Any) -> None:
    connect(progress_queue)
    if gpu_queue is not None:
        # Before torch is imported, which looks only once.
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_queue.get()
    # Ctrl-C reaches the whole process group; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(parent_pid,), daemon=True).start()
    prepare_worker(threads)


def prepare_worker(threads: int) -> None:
    """Prepare this process for tasks.

    Args:
        threads: CPU threads of its computations, >= 1.
    """
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    from stepladder.lm.loading import silence_bars

    torch.set_num_threads(threads)
    silence_bars()


def _exit_with_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_PARENT_POLL_S)
    os._exit(1)
