"""Worker processes that search, train and evaluate.

A task is a module-level function of plain arguments that reads files and writes files; it returns a small summary. Workers are spawned once
per run and keep what they imported. A worker ends itself when its parent is gone, even when the parent was killed, so no orphan goes on
computing. Progress travels through one queue; after the last report of a task its number follows, since results take another way and
may come first.

Besides the tasks that a stage waits for, a pool takes tasks of the next round (``ahead``). Workers do them when the stage has none for
them.
"""

import itertools
import os
import queue
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol, TypeVar

from stepladder.errors import BackendError, ConfigError
from stepladder.lm.loaded_models import LoadedModels
from stepladder.loops.config.training import TrainingConfig
from stepladder.loops.runs.live import LiveTree

ResultT = TypeVar("ResultT")
MadeT = TypeVar("MadeT")
ArgumentsP = ParamSpec("ArgumentsP")

_PARENT_POLL_S = 1.0
_PROGRESS_POLL_S = 0.2
# The reports of a finished task are still in a pipe for a moment, and never leave a process that was killed just then.
_LAST_REPORT_S = 10.0


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
    less_memory: str = "lower search.max_trees or run.workers"
    """What helps if its process was killed for memory."""

    @staticmethod
    def of(function: Callable[ArgumentsP, MadeT], *positional: ArgumentsP.args, **arguments: ArgumentsP.kwargs) -> "Task[MadeT]":
        """Return a call with keyword arguments, which a type checker compares with the function's."""
        assert not positional, "a job takes keyword arguments"
        return Task(function=function, arguments=dict(arguments))


def forget_result(number: int, result: Any) -> None:
    """Do nothing with a result that comes early: ``run`` returns it in the end."""


class Batch(Generic[ResultT]):
    """The tasks of one call, and how far they are."""

    def __init__(
        self,
        tasks: Sequence[Task[ResultT]] = (),
        on_result: Callable[[int, ResultT], None] = forget_result,
        *,
        ahead: bool = False,
    ) -> None:
        """Begin with all tasks open.

        Args:
            tasks: The tasks.
            on_result: Called with the number and the result of each as soon as it is finished.
            ahead: Whether they are of the next round.
        """
        self.tasks, self._on_result, self.is_ahead = tasks, on_result, ahead
        self.open = deque(range(len(tasks)))
        """Tasks that nobody does."""
        self.results: dict[int, ResultT] = {}
        """Results of finished tasks, by number."""

    @property
    def num_left(self) -> int:
        """Tasks that are not finished."""
        return len(self.tasks) - len(self.results)

    def finish(self, number: int, result: ResultT) -> None:
        """Take the result of a task."""
        self.results[number] = result
        self._on_result(number, result)

    def in_order(self) -> list[ResultT]:
        """Return the results of all tasks in their order."""
        return [self.results[number] for number in range(len(self.tasks))]


class WorkSeconds(NamedTuple):
    """Seconds of work, summed over the workers."""

    stage: float
    """Work that a stage waited for."""
    ahead: float
    """Work of the next round."""


class WorkClock:
    """Measures how long workers work, from any thread."""

    def __init__(self) -> None:
        """Begin at 0, with nobody working."""
        self._lock = threading.Lock()
        self._working, self._seconds, self._last = [0, 0], [0.0, 0.0], time.monotonic()

    def change(self, count: int, *, ahead: bool = False) -> None:
        """Note that so many workers begin a task, or end one if ``count`` is negative.

        Args:
            count: Workers.
            ahead: Whether the tasks are of the next round.
        """
        with self._lock:
            self._advance()
            self._working[ahead] += count

    def read(self) -> WorkSeconds:
        """Return the seconds so far, those of running tasks included."""
        with self._lock:
            self._advance()
            return WorkSeconds(*self._seconds)

    def _advance(self) -> None:
        now = time.monotonic()
        for kind, count in enumerate(self._working):
            self._seconds[kind] += count * (now - self._last)
        self._last = now


class Workers(Protocol):
    """Where the tasks of a run are done: in processes of this machine (``WorkerPool``) or on a cluster (``RayWorkers``)."""

    num_workers: int
    """Tasks done at once, at most."""
    clock: WorkClock
    """Measures their work."""

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

    def ahead(self, tasks: Sequence[Task[Any]]) -> None:
        """Take tasks of the next round; a worker does one when ``run`` has none for it. A failure is raised by the call that notices it.

        Args:
            tasks: Tasks that write files; their results are not kept. Those of an earlier call must be finished or dropped.
        """
        ...

    def finish_ahead(self, *, on_progress: Callable[[Progress], None]) -> None:
        """Do the rest of the tasks of the next round; raises as ``run`` does."""
        ...

    def drop_ahead(self) -> None:
        """Forget the tasks of the next round, and wait for the end of those that have begun; raises as ``run`` does."""
        ...

    def rest(self) -> None:
        """End the workers, when they are idle, to free their models, engines and GPU memory. The next task starts them again."""
        ...

    def train(self, task: Task[ResultT], section: TrainingConfig, *, on_progress: Callable[[Progress], None]) -> ResultT:
        """Make a call in several processes that train one model together, while the workers rest; return the first one's result.

        Args:
            task: The call, whose argument ``out`` is the directory of the model.
            section: How many processes, and how they divide the model.
            on_progress: Receives the reports of the first process.

        Raises:
            Exception: The exception of the call.
            BackendError: If a process died.
        """
        ...


BatchT = TypeVar("BatchT", bound=Batch[Any])


class BatchWorkers(ABC, Generic[BatchT]):
    """What both kinds of ``Workers`` share: every call is a batch, and there is one of the next round."""

    def __init__(self, num_workers: int, new_batch: Callable[..., BatchT]) -> None:
        """Begin without tasks.

        Args:
            num_workers: Tasks done at once, at most, >= 1.
            new_batch: Makes a batch; arguments as for ``Batch``.
        """
        self.num_workers, self._new_batch = num_workers, new_batch
        self.clock = WorkClock()
        self._ahead = new_batch(ahead=True)

    def run(
        self,
        tasks: Sequence[Task[ResultT]],
        *,
        on_progress: Callable[[Progress], None],
        on_result: Callable[[int, ResultT], None] = forget_result,
    ) -> list[ResultT]:
        """Run tasks, as ``Workers`` says; the class says which errors are raised."""
        batch = self._new_batch(tasks, on_result)
        self._finish(batch, on_progress)
        return batch.in_order()

    def ahead(self, tasks: Sequence[Task[Any]]) -> None:
        """Take tasks of the next round; a worker does one when ``run`` has none for it."""
        assert not self._ahead.num_left, "those of an earlier call are finished or dropped"
        # Not handed out yet: the next stage goes first.
        self._ahead = self._new_batch(tasks, ahead=True)

    def finish_ahead(self, *, on_progress: Callable[[Progress], None]) -> None:
        """Do the rest of the tasks of the next round; raises as ``run`` does."""
        self._finish(self._ahead, on_progress)

    @abstractmethod
    def _finish(self, batch: BatchT, on_progress: Callable[[Progress], None]) -> None:
        """Do the tasks of a batch, and those of the next round beside them."""


class _Begun(NamedTuple):
    """A task that a worker has."""

    batch: Batch[Any]
    number: int
    """Its number in the batch."""
    key: int
    """Its number in the pool, which follows its last report."""


class WorkerPool(BatchWorkers[Batch[Any]]):
    """A fixed number of worker processes.

    ``run`` raises a ``BackendError`` if a worker died without a word (out of memory, killed).
    """

    def __init__(self, num_workers: int, *, threads: int, gpus_each: int | None = None) -> None:
        """Start no process yet; the first task does.

        Args:
            num_workers: Processes, >= 1.
            threads: CPU threads per process, >= 1.
            gpus_each: GPUs that each process sees, none of them shared; None shows all of them to all.
        """
        super().__init__(num_workers, Batch)
        self._context = get_context("spawn")
        self._queue = self._context.Queue()
        self._threads = threads
        self._shares = None if gpus_each is None else gpu_shares(gpu_names(), num_workers, gpus_each)
        self._started = self._context.Event()
        """Whether any worker has begun."""
        self._pool = self._new_pool()
        self._begun: dict[Future, _Begun] = {}
        """Tasks that workers do, and those whose end was not noticed yet."""
        self._keys = itertools.count()
        self._reported: set[int] = set()
        """Tasks whose last report has come, by key."""

    def _new_pool(self) -> ProcessPoolExecutor:
        shares = None if self._shares is None else self._context.Queue()
        for share in self._shares or []:
            assert shares is not None
            shares.put(share)
        arguments = (os.getpid(), self._threads, self._queue, shares, self._started)
        return ProcessPoolExecutor(self.num_workers, mp_context=self._context, initializer=_start_worker, initargs=arguments)

    def rest(self) -> None:
        """End the workers, when they are idle, to free their models, engines and GPU memory. The next task starts them again."""
        self._pool.shutdown()
        self._pool = self._new_pool()

    def drop_ahead(self) -> None:
        """Forget the tasks of the next round, and wait for the end of those that have begun; raises as ``run`` does."""
        self._ahead.open.clear()
        begun = [future for future, place in self._begun.items() if place.batch is self._ahead]
        self._ahead = Batch(ahead=True)
        for future in begun:
            del self._begun[future]
            future.result()

    def train(self, task: Task[ResultT], section: TrainingConfig, *, on_progress: Callable[[Progress], None]) -> ResultT:
        """Make a call in processes of this machine that train one model together; see ``run_launched``."""
        # Not at the top: a launched process imports this module.
        from stepladder.loops.runs.launch import run_launched

        return run_launched(task, section, threads=self._threads, on_progress=on_progress)

    def _finish(self, batch: Batch[Any], on_progress: Callable[[Progress], None]) -> None:
        finished: set[int] = set()
        try:
            while batch.num_left:
                self._hand_out(batch)
                done, _ = wait(self._begun, timeout=_PROGRESS_POLL_S, return_when=FIRST_COMPLETED)
                self._drain(on_progress)
                # What is finished is handed on before a failure beside it ends everything.
                for future in sorted(done, key=_has_failed):
                    place = self._begun.pop(future)
                    place.batch.finish(place.number, future.result())
                    finished.add(place.key)
            self._drain(on_progress, finished)
        except BrokenProcessPool:
            reason = f"was killed, most likely for memory -- {batch.tasks[0].less_memory}"
            if not self._started.is_set():
                reason = 'ended before it began, as it printed -- a script must call stepladder below `if __name__ == "__main__":`'
            raise BackendError(f"a worker process {reason}") from None
        finally:
            # After a failure nobody asks for the tasks that still run.
            self._begun = {future: place for future, place in self._begun.items() if place.batch is not batch}

    def _hand_out(self, batch: Batch[Any]) -> None:
        """Give every idle worker a task of a batch, or else one of the next round."""
        idle = self.num_workers - sum(not future.done() for future in self._begun)
        for source in (batch, self._ahead):
            while source.open and idle > 0:
                number, idle = source.open.popleft(), idle - 1
                self.clock.change(1, ahead=source.is_ahead)
                place = _Begun(source, number, next(self._keys))
                future = self._pool.submit(_do, source.tasks[number], place.key)
                future.add_done_callback(partial(self._note_end, source.is_ahead))
                self._begun[future] = place

    def _note_end(self, is_ahead: bool, future: Future) -> None:
        self.clock.change(-1, ahead=is_ahead)

    def _drain(self, on_progress: Callable[[Progress], None], finished: Set[int] = frozenset()) -> None:
        """Hand on what has been reported, and all that some finished tasks have to report."""
        while True:
            try:
                said = self._queue.get(not finished <= self._reported, _LAST_REPORT_S)
            except queue.Empty:
                return
            if isinstance(said, Progress):
                on_progress(said)
            else:
                self._reported.add(said)

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


def _do(task: Task[ResultT], key: int) -> ResultT:
    try:
        return task.function(**task.arguments)
    finally:
        _progress_queue.put(key)


def _start_worker(parent_pid: int, threads: int, progress_queue: Any, gpu_queue: Any, started: Any) -> None:
    started.set()
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
