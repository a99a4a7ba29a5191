"""Workers on a Ray cluster: the interface of ``WorkerPool``, with actors in the place of processes.

Every actor does one task at a time and keeps its models from one to the next, as a worker process does. An idle actor takes the next task.
Tasks go to actors that have started, never to one that still waits for room. An actor that dies, alone or with its node, is replaced, and
its task is done again: results are files that are written whole or not at all, so that nothing of the lost attempt remains.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import median
from traceback import format_exc
from typing import Any, NamedTuple

from stepladder.errors import BackendError
from stepladder.loops.config.training import TrainingConfig
from stepladder.loops.runs.ray_cluster import Room
from stepladder.loops.runs.ray_training import Processes, gpus_of_training, train_on_ray
from stepladder.loops.runs.workers import Batch, BatchWorkers, Progress, ResultT, Task, connect, prepare_worker

_POLL_S = 1.0
_REPORT_S = 0.5
"""Seconds for which an actor collects reports before it sends them."""
_LEAVE_S = 30.0
"""Seconds for which workers may take leave."""
_NO_WORKER_S = 600.0
"""Seconds without any worker after which a run gives up."""
_FAILED_STARTS = 3
"""Workers that may fail to start, one after the other."""
_SLOW, _SLOW_S, _SLOW_SAMPLE = 3.0, 30.0, 3
"""A task is slow if it takes so many times the median, and at least so many seconds, once so many others are finished."""


class _Done(NamedTuple):
    """A task returned."""

    result: Any
    """What it returned."""


class _Failed(NamedTuple):
    """A task raised."""

    error: BaseException
    """What it raised."""
    traceback: str
    """Where."""


class _Actor:
    """The part of a worker that lives on a node."""

    def __init__(self, threads: int, folder: str) -> None:
        """Prepare this process; reports of tasks go to the outbox.

        Args:
            threads: CPU threads of its computations.
            folder: Working directory of the driver, from which relative paths count. A node that lacks it keeps its own.
        """
        prepare_worker(threads)
        with suppress(OSError):
            os.chdir(folder)
        self._outbox: SimpleQueue[Progress | _Done | _Failed] = SimpleQueue()
        connect(self._outbox)
        # One thread for all tasks: some libraries keep a state per thread.
        self._thread = ThreadPoolExecutor(1)

    def place(self) -> tuple[str, str]:
        """Return the id and the address of the node."""
        import ray

        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()

    def run(self, task: Task) -> Iterator[list[Progress | _Done | _Failed]]:
        """Do a task; yield its reports in bundles, and how it ended at the end of the last one."""
        self._thread.submit(self._do, task)
        bundle: list[Progress | _Done | _Failed] = []
        while not bundle or isinstance(bundle[-1], Progress):
            bundle = self._bundle()
            yield bundle

    def _do(self, task: Task) -> None:
        try:
            self._outbox.put(_Done(task.function(**task.arguments)))
        except BaseException as error:
            self._outbox.put(_Failed(error, format_exc()))

    def _bundle(self) -> list[Progress | _Done | _Failed]:
        bundle = [self._outbox.get()]
        end = time.monotonic() + _REPORT_S
        while isinstance(bundle[-1], Progress):
            try:
                bundle.append(self._outbox.get(timeout=max(0.0, end - time.monotonic())))
            except Empty:
                break
        return bundle

    def leave(self) -> None:
        """End this process."""
        from ray.actor import exit_actor

        exit_actor()


class _Work(Batch[ResultT]):
    """The tasks of one call, with their losses and durations."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Arguments as for ``Batch``."""
        super().__init__(*arguments, **options)
        self.losses: Counter[int] = Counter()
        """How often tasks have lost their worker."""
        self.seconds: list[float] = []
        """Durations of the finished tasks."""
        self.slow: set[int] = set()
        """Tasks that were called slow."""

    def name(self, number: int) -> str:
        """Return a task for people: the file that it writes, or its number."""
        out = self.tasks[number].arguments.get("out")
        return str(out) if isinstance(out, Path) else f"task {number + 1} of {len(self.tasks)}"


class _Given(NamedTuple):
    """A task that a worker does."""

    work: _Work
    """The call that it belongs to."""
    number: int
    """Its number there."""
    stream: Any
    """What it yields."""
    began: float
    """When the worker took it."""
    reported: list[Progress]
    """Its reports, which do not count if it is lost."""

    @property
    def name(self) -> str:
        """Its name for people."""
        return self.work.name(self.number)


@dataclass(eq=False, slots=True)
class _Worker:
    """An actor as its owner sees it."""

    actor: Any
    """Its handle."""
    answer: Any
    """Where it is, as soon as it has started; None once that is known."""
    address: str | None = None
    """The address of its node; None before it has started for the first time."""
    task: _Given | None = None
    """Its task; None while it is idle."""


class RayWorkers(BatchWorkers[_Work[Any]]):
    """Workers on the Ray cluster to which this process is connected.

    ``run`` raises a ``BackendError`` if a task lost too many workers, workers do not start, or none has room for ten minutes.
    """

    def __init__(
        self, num_workers: int, *, room: Room, threads: int, retries: int, say: Callable[[str], None], check_node: Callable[[str], None]
    ) -> None:
        """Start nothing yet; the first task does.

        Args:
            num_workers: Actors, >= 1. Those without room wait for it while the others work.
            room: CPUs and GPUs of each, and the nodes that were checked.
            threads: CPU threads of each, >= 1.
            retries: How often a task is done again after its worker died, >= 0.
            say: Takes sentences about lost and slow workers.
            check_node: Checks a node that joined later, by its id, before it gets work.
        """
        import ray

        super().__init__(num_workers, _Work)
        make: Any = ray.remote(_Actor)
        self._new_actor = make.options(num_cpus=room.cpus, num_gpus=room.gpus)
        self._threads, self._retries, self._say, self._check_node = threads, retries, say, check_node
        self._training = Processes(room.cpus, gpus_of_training(room.gpus), threads, retries)
        self._checked = set(room.workers)
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._last_sign = 0.0

    def drop_ahead(self) -> None:
        """Forget the tasks of the next round, and wait for the end of those that have begun; raises as ``run`` does."""
        self._ahead.open.clear()
        self._until(self._is_idle, _ignore)
        self._ahead = _Work(ahead=True)

    def rest(self) -> None:
        """End the workers, when they are idle, to free their models, engines and GPU memory. The next task starts them again."""
        import ray

        self._until(self._is_idle, _ignore)
        if leaving := [worker.actor.leave.remote() for worker in self._workers]:
            ray.wait(leaving, num_returns=len(leaving), timeout=_LEAVE_S)
        self.close()

    def train(self, task: Task[ResultT], section: TrainingConfig, *, on_progress: Callable[[Progress], None]) -> ResultT:
        """Make a call in processes of the cluster that train one model together; see ``train_on_ray``."""
        return train_on_ray(task, section, self._training, on_progress=on_progress)

    def close(self) -> None:
        """End all workers at once, which is safe because results are written completely or not at all."""
        for worker in list(self._workers):
            self._drop(worker)

    def _finish(self, batch: _Work[Any], on_progress: Callable[[Progress], None]) -> None:
        """Do the tasks of a batch, and those of the next round beside them."""

        def is_finished() -> bool:
            left = batch.num_left
            if left:
                self._start(min(self.num_workers, left if batch is self._ahead else left + self._ahead.num_left) - len(self._workers))
                self._hand_out(batch)
            return not left

        for worker in self._workers:
            if worker.task is None:
                # One that died since its last task is replaced without a task lost.
                worker.answer = worker.actor.place.remote()
        self._until(is_finished, on_progress)

    def _until(self, is_finished: Callable[[], bool], on_progress: Callable[[Progress], None]) -> None:
        """Listen to the workers until something is finished."""
        self._last_sign = time.monotonic()
        try:
            while not is_finished():
                for worker in self._heard():
                    self._hear(worker, on_progress)
                self._check_progress()
        except BaseException:
            for worker in [each for each in self._workers if each.task is not None]:
                self._drop(worker)
            self._ahead = _Work(ahead=True)
            raise

    def _is_idle(self) -> bool:
        return all(worker.task is None for worker in self._workers)

    def _start(self, count: int) -> None:
        for _ in range(count):
            actor = self._new_actor.remote(self._threads, os.getcwd())
            self._workers.append(_Worker(actor=actor, answer=actor.place.remote()))

    def _drop(self, worker: _Worker) -> None:
        import ray

        self._workers.remove(worker)
        if worker.task is not None:
            self.clock.change(-1, ahead=worker.task.work.is_ahead)
        ray.kill(worker.actor)

    def _hand_out(self, work: _Work) -> None:
        """Give every idle worker a task of some work, or else one of the next round."""
        for worker in self._workers:
            source = work if work.open else self._ahead
            if source.open and worker.answer is None and worker.task is None:
                number = source.open.popleft()
                stream = worker.actor.run.options(num_returns="streaming").remote(source.tasks[number])
                worker.task = _Given(source, number, stream, time.monotonic(), [])
                self.clock.change(1, ahead=source.is_ahead)

    def _heard(self) -> list[_Worker]:
        """Wait for a sign of the workers for a moment, and return those that gave one."""
        import ray

        signs = [(worker.answer or (worker.task and worker.task.stream), worker) for worker in self._workers]
        waiting = {sign: worker for sign, worker in signs if sign}
        heard, _ = ray.wait(list(waiting), num_returns=1, timeout=_POLL_S)
        if heard:
            heard, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        return [waiting[sign] for sign in heard]

    def _hear(self, worker: _Worker, on_progress: Callable[[Progress], None]) -> None:
        from ray.exceptions import RayError, RayTaskError

        self._last_sign = time.monotonic()
        try:
            if worker.answer is not None:
                self._admit(worker)
            else:
                self._receive(worker, on_progress)
        except RayTaskError as error:
            asked = "a task" if worker.task is None else worker.task.name
            raise BackendError(f"a worker on {worker.address} could not take or return {asked}: {_reason(error)}") from error
        except RayError as error:
            self._lose(worker, _reason(error), on_progress)

    def _admit(self, worker: _Worker) -> None:
        """Note where a worker has started; it is idle from now on."""
        import ray

        node, address = ray.get(worker.answer)
        if node not in self._checked:
            self._check_node(node)
            self._checked.add(node)
        worker.answer, worker.address, self._failed_starts = None, address, 0

    def _receive(self, worker: _Worker, on_progress: Callable[[Progress], None]) -> None:
        """Take what a worker has to say of its task."""
        import ray

        task = worker.task
        assert task is not None, "only a worker with a task says anything"
        for said in ray.get(next(task.stream)):
            if isinstance(said, Progress):
                task.reported.append(said)
                on_progress(said)
                continue
            worker.task = None
            self.clock.change(-1, ahead=task.work.is_ahead)
            if isinstance(said, _Failed):
                said.error.add_note(said.traceback)
                raise said.error
            task.work.seconds.append(time.monotonic() - task.began)
            task.work.finish(task.number, said.result)

    def _lose(self, worker: _Worker, reason: str, on_progress: Callable[[Progress], None]) -> None:
        """Replace a worker that died, and give its task to another one."""
        task = worker.task
        self._drop(worker)
        if worker.address is None:
            self._failed_starts += 1
            if self._failed_starts == _FAILED_STARTS:
                raise BackendError(f"run.cluster: workers do not start on the Ray cluster: {reason} -- look into Ray's logs on that node")
        if task is None:
            return
        for said in task.reported:
            on_progress(Progress(stage=said.stage, items=-said.items, solved=-said.solved))
        task.work.losses[task.number] += 1
        times = task.work.losses[task.number]
        if times > self._retries:
            raise BackendError(
                f"{task.name}: {times} workers died of it, the last on {worker.address}: {reason} -- if memory is short, "
                f"{task.work.tasks[task.number].less_memory}, or raise run.ray.cpus"
            )
        self._say(f"{task.name}: the worker on {worker.address} died, and another one begins again: {reason}")
        task.work.open.appendleft(task.number)

    def _check_progress(self) -> None:
        """Tell of slow tasks once, and give up if there is no worker."""
        now, busy = time.monotonic(), [(worker.task, worker.address) for worker in self._workers if worker.task is not None]
        if not busy and now - self._last_sign > _NO_WORKER_S:
            raise BackendError(f"run.cluster: no worker had room on the Ray cluster for {_NO_WORKER_S:.0f} s -- look at 'ray status'")
        for task, address in busy:
            usual, seconds = task.work.seconds, now - task.began
            if len(usual) >= _SLOW_SAMPLE and seconds > max(_SLOW * median(usual), _SLOW_S) and task.number not in task.work.slow:
                task.work.slow.add(task.number)
                self._say(f"{task.name}: slow: {seconds:.0f} s so far on {address}, where others took {median(usual):.0f} s")


def _ignore(progress: Progress) -> None:
    pass


def _reason(error: Exception) -> str:
    """Return the sentence of Ray's explanation that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    because = next((line for line in reversed(lines) if "because" in line), lines[-1] if lines else type(error).__name__)
    return because.rstrip(".")


@contextmanager
def ray_workers(num_workers: int, **settings: Any) -> Iterator[RayWorkers]:
    """Yield workers that end with the block; arguments as for ``RayWorkers``."""
    pool = RayWorkers(num_workers, **settings)
    try:
        yield pool
    finally:
        pool.close()
