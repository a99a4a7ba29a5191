"""A training in several processes: a job that ``accelerate launch`` starts once per process.

The job and what comes of it are files in a temporary directory beside the model, the progress of the first process among them, a line
each. Every process makes the same call; the trainers share the work out and let the first one write. A process ends itself when the one
that launched it is gone.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from traceback import format_exc
from typing import Any, NamedTuple

from stepladder.errors import BackendError
from stepladder.locks import process_lives
from stepladder.loops.config.training import TrainingConfig
from stepladder.loops.runs import workers
from stepladder.loops.runs.workers import Progress, ResultT, Task

FAILURE = "failure.pickle"
"""File of the exception of a process."""
_JOB, _RESULT, _PROGRESS, _LOG = "job.pickle", "result.pickle", "progress.jsonl", "log.txt"
_POLL_S = 1.0
_PROGRESS_POLL_S = 0.2
_LOG_LINES = 8


def run_launched(task: Task[ResultT], section: TrainingConfig, *, threads: int, on_progress: Callable[[Progress], None]) -> ResultT:
    """Make a call in several processes that train together, and return the result of the first process.

    Args:
        task: The call, whose argument ``out`` is the directory of the model; every process makes it.
        section: How many processes, and how they divide the model.
        threads: CPU threads of each process, >= 1.
        on_progress: Receives the reports of the first process.

    Raises:
        Exception: The exception of the call.
        BackendError: If a process died otherwise; the message ends with its last lines.
    """
    with job_folder(task) as folder:
        (folder / _JOB).write_bytes(pickle.dumps((task.function, task.arguments, os.getpid())))
        with (folder / _LOG).open("w") as log:
            process = subprocess.Popen(
                [*launch_command(section), "-m", "stepladder.loops.runs.launch", str(folder)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
                # Ctrl-C reaches the whole process group; only this process decides what it means.
                start_new_session=True,
            )
            try:
                follow(lambda: process.poll() is None, folder, on_progress)
            finally:
                _end(process)
        found = result_of(folder)
        if process.returncode or found is None:
            lines = [line.strip() for line in (folder / _LOG).read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            raise BackendError(
                f"training: a launched process ended with code {process.returncode}, most likely for memory -- lower micro_batch_size; it "
                "said: " + " | ".join(lines[-_LOG_LINES:])
            )
        return found.value


def launch_command(section: TrainingConfig) -> list[str]:
    """Return the command that starts a module in every process: ``accelerate launch`` with the section's settings."""
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--num_processes={section.num_processes}", "--main_process_port=0"]
    if section.accelerate_config is not None:
        return [*command, f"--config_file={section.accelerate_config}"]
    # Also on a CPU: the launched process takes the device of its own settings, and "--cpu" would require MPI.
    return [*command, "--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]


def launch_environment(section: TrainingConfig) -> dict[str, str]:
    """Return the variables by which ``accelerate launch`` passes the section's settings on to every process."""
    # Not all of them are public: a test reads the shipped files with them.
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    arguments = launch_command_parser().parse_args([*launch_command(section)[3:], "-m", "stepladder"])
    arguments, file, _ = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        fields = getattr(file, "deepspeed_config", None) or ()
        arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)
        found = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        found = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in found.items() if os.environ.get(name) != value and name != "PYTHONPATH"}


@contextmanager
def job_folder(task: Task) -> Iterator[Path]:
    """Yield a directory for the files of a job, beside the model that it makes. A killed run removes it when it continues."""
    place = Path(task.arguments["out"]).absolute().parent
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".training-", suffix=".tmp", dir=place) as name:
        folder = Path(name)
        (folder / _PROGRESS).touch()
        yield folder


def follow(is_running: Callable[[], bool], folder: Path, on_progress: Callable[[Progress], None]) -> None:
    """Pass the progress of a job on until it has ended; a line that is still being written waits for its end."""
    rest = ""
    with (folder / _PROGRESS).open(encoding="utf-8") as lines:
        running = True
        while running:
            running = is_running()
            *whole, rest = (rest + lines.read()).split("\n")
            for line in whole:
                on_progress(Progress(**json.loads(line)))
            if running:
                time.sleep(_PROGRESS_POLL_S)


def _end(process: subprocess.Popen) -> None:
    """Leave no process running: started processes end themselves when their parent is gone."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def failure_of(folder: Path) -> tuple[Exception, str] | None:
    """Return the exception of a job with its traceback; None without one."""
    return pickle.loads((folder / FAILURE).read_bytes()) if (folder / FAILURE).exists() else None


class Found(NamedTuple):
    """What a job left."""

    value: Any
    """What the first process returned."""


def result_of(folder: Path) -> Found | None:
    """Return the result of a job that has ended; None if it left none. An exception of the job is raised."""
    if (failure := failure_of(folder)) is not None:
        error, traceback = failure
        # A debugger needs the place of the exception in the other process.
        error.add_note(traceback)
        raise error
    return Found(pickle.loads((folder / _RESULT).read_bytes())) if (folder / _RESULT).exists() else None


class _Lines:
    """The part of a queue that ``report_progress`` uses; it writes lines to a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def put(self, progress: Progress) -> None:
        self._file.write(json.dumps(asdict(progress)) + "\n")
        self._file.flush()


def main(folder: Path) -> None:
    """Do the job of a directory as one of several processes."""
    function, arguments, launcher = pickle.loads((folder / _JOB).read_bytes())
    threading.Thread(target=_exit_with, args=(os.getppid(), launcher), daemon=True).start()
    try:
        do_job(folder, Task(function=function, arguments=arguments))
    except Exception:
        sys.exit(1)
    # Not at the top: a process that only starts others needs no model library.
    from stepladder.lm.processes import leave_group

    leave_group()


def do_job(folder: Path, task: Task) -> None:
    """Make the call of a job in one of its processes, and leave what comes of it in its directory."""
    first = os.environ.get("RANK", "0") == "0"
    if first:
        workers.connect(_Lines(folder / _PROGRESS))
    try:
        result = task.function(**task.arguments)
    except Exception as error:
        # As in the workers, the caller raises the exception again. All processes may fail in the same way at the same time, or because one
        # has failed: the first message is enough.
        if not (folder / FAILURE).exists():
            temporary = folder / f"{FAILURE}.{os.getpid()}"
            temporary.write_bytes(pickle.dumps((error, format_exc())))
            os.replace(temporary, folder / FAILURE)
        raise
    if first:
        (folder / _RESULT).write_bytes(pickle.dumps(result))


def _exit_with(parent: int, launcher: int) -> None:
    """End this process when accelerate's, its parent, is gone, or the one that called accelerate."""
    while os.getppid() == parent and process_lives(launcher):
        time.sleep(_POLL_S)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
