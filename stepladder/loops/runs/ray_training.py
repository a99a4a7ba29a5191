"""A training in several processes on a Ray cluster: Ray Train starts them wherever there is room, and gives each its rank.

Every process makes the same call, as under ``accelerate launch`` (``launch``), with the variables by which accelerate would pass its
configuration on. Result, progress and failure are files beside the model, which all nodes see. When a process dies, alone or with its node,
Ray Train starts all of them again, and the training continues from its newest checkpoint.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from stepladder.errors import BackendError, StepladderError
from stepladder.loops.config.training import TrainingConfig
from stepladder.loops.runs.launch import FAILURE, do_job, failure_of, follow, job_folder, launch_environment, result_of
from stepladder.loops.runs.workers import Progress, ResultT, Task, prepare_worker


class Processes(NamedTuple):
    """The processes of a training."""

    cpus: float
    """CPUs of each."""
    gpus: float
    """GPUs of each."""
    threads: int
    """CPU threads of each."""
    retries: int
    """How often they are started again after one of them died."""


def gpus_of_training(gpus: float) -> float:
    """Return the GPUs of each process, given those of a worker that searches: processes that train together share none."""
    return float(gpus > 0)


def train_on_ray(task: Task[ResultT], section: TrainingConfig, processes: Processes, *, on_progress: Callable[[Progress], None]) -> ResultT:
    """Make a call in several processes that train together on the cluster, and return the result of the first one.

    Args:
        task: The call, whose argument ``out`` is the directory of the model; every process makes it.
        section: How many processes, and how they divide the model.
        processes: What each of them has.
        on_progress: Receives the reports of the first process.

    Raises:
        Exception: The exception of the call.
        BackendError: If processes died, or did not start, too often.
    """
    with job_folder(task) as folder:
        fit = _Fit(task, section, processes, folder)
        # In the main thread Ray Train would take Ctrl-C for itself, and end this process as if nothing had happened.
        fit.start()
        follow(fit.is_alive, folder, on_progress)
        found = result_of(folder)
        if found is None:
            raise BackendError(
                f"training: its processes died or did not start {processes.retries + 1} times on the Ray cluster, most likely for memory "
                f"-- lower micro_batch_size or training.num_processes; Ray said: {fit.reason}"
            )
        return found.value


class _Fit(threading.Thread):
    """Waits for Ray Train; it ends with the processes, or when this process leaves the cluster."""

    def __init__(self, task: Task, section: TrainingConfig, processes: Processes, folder: Path) -> None:
        super().__init__(daemon=True)
        self._settings = {
            "task": task,
            "folder": str(folder),
            "working_directory": os.getcwd(),
            "threads": processes.threads,
            "environment": launch_environment(section),
        }
        self._num_processes, self._processes, self._folder = section.num_processes, processes, folder
        self.reason = ""
        """Why they died."""

    def run(self) -> None:
        """Start the processes, and wait for their end."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        cpus, gpus, _, retries = self._processes
        resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
        scaling = ScalingConfig(num_workers=self._num_processes, use_gpu=gpus > 0, resources_per_worker=resources)
        # A start that takes too long counts apart, and is repeated without end by default.
        failure = FailureConfig(max_failures=retries, controller_failure_limit=retries)
        run = RunConfig(name="train", storage_path=str(self._folder), failure_config=failure)
        try:
            TorchTrainer(_train, train_loop_config=self._settings, scaling_config=scaling, run_config=run).fit()
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            self.reason = lines[0] if lines else type(error).__name__


def _train(settings: dict[str, Any]) -> None:
    """Do the job of one process."""
    folder = Path(settings["folder"])
    failure = failure_of(folder)
    if failure is not None and isinstance(failure[0], StepladderError):
        # Ray Train starts all of them again when one has raised, as if it had died.
        return
    # Another error may come of the death of another process, which was one attempt.
    (folder / FAILURE).unlink(missing_ok=True)
    os.environ.update(settings["environment"])
    # Relative paths count from there; Ray Train has chosen another place.
    with suppress(OSError):
        os.chdir(settings["working_directory"])
    prepare_worker(settings["threads"])
    do_job(folder, settings["task"])
