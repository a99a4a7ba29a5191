"""Worker processes: order, progress, failures, and no orphans."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepladder.errors import BackendError, DataFormatError
from stepladder.loops.runs.workers import Progress, Task, WorkClock, WorkSeconds, report_progress, worker_pool
from tests.worker_tasks import check_ahead, fail, square


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_results_come_in_order_with_progress() -> None:
    """Results stand in the order of the tasks, and every report arrives."""
    seen: list[Progress] = []
    with worker_pool(2, threads=1) as pool:
        results = pool.run([Task(function=square, arguments={"number": n}) for n in range(5)], on_progress=seen.append)
        assert results == [0, 1, 4, 9, 16]
        assert sum(progress.items for progress in seen) == 5


class SlowToSend(str):
    """A text that takes half a second to be sent."""

    def __reduce__(self) -> tuple:
        """Return how to make an ordinary text of it, after a while."""
        time.sleep(0.5)
        return str, (str(self),)


def report_slowly() -> None:
    report_progress(Progress(stage=SlowToSend("slow"), items=1))


@pytest.mark.slow
def test_reports_that_come_after_the_result_are_not_lost() -> None:
    """The result of a task overtakes its report, which is waited for."""
    seen: list[Progress] = []
    with worker_pool(1, threads=1) as pool:
        pool.run([Task.of(report_slowly)], on_progress=seen.append)
    assert seen == [Progress(stage="slow", items=1)]


@pytest.mark.slow
def test_idle_workers_do_tasks_of_the_next_round(tmp_path: Path) -> None:
    """They are done after those of a stage, and counted apart; dropped ones are not done."""
    with worker_pool(1, threads=1) as pool:
        check_ahead(pool, tmp_path)


def test_clock_counts_the_seconds_of_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers work for 3 s, one of them for 2 s more, while another does 1 s for the next round: 8 s and 1 s."""
    now = 100.0
    monkeypatch.setattr("stepladder.loops.runs.workers.time.monotonic", lambda: now)
    clock = WorkClock()
    clock.change(2)
    now += 3
    clock.change(-1)
    clock.change(1, ahead=True)
    now += 1
    clock.change(-1, ahead=True)
    now += 1
    assert clock.read() == WorkSeconds(stage=8.0, ahead=1.0)


@pytest.mark.slow
def test_failures_keep_their_type() -> None:
    """An error of a task is raised as it is, and a worker that was killed is explained."""
    with pytest.raises(DataFormatError, match=r"file\.jsonl:3"), worker_pool(1, threads=1) as pool:
        pool.run([Task(function=fail, arguments={"message": "file.jsonl:3: wrong"})], on_progress=lambda progress: None)
    with pytest.raises(BackendError, match=r"a worker process was killed.* -- lower this and that"), worker_pool(1, threads=1) as pool:
        pool.run([Task(function=die, arguments={}, less_memory="lower this and that")], on_progress=lambda progress: None)


@pytest.mark.slow
def test_a_script_that_workers_cannot_import_is_told_its_remedy(tmp_path) -> None:
    """Workers import the script that made them; one that makes workers at import ends, and memory is not to blame."""
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from stepladder.loops.runs.workers import Task, worker_pool\n"
        "with worker_pool(1, threads=1) as pool:\n"
        "    pool.run([Task.of(print)], on_progress=print)\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert ran.returncode == 1 and "memory" not in ran.stderr
    assert 'a script must call stepladder below `if __name__ == "__main__":`' in ran.stderr.splitlines()[-1]


_PARENT = """
import time
from stepladder.loops.runs.workers import Task, worker_pool
from tests.unit.loops.runs.test_workers import wait_long
if __name__ == "__main__":
    with worker_pool(1, threads=1) as pool:
        pool.run([Task(function=wait_long, arguments={})], on_progress=lambda p: print(p.items, flush=True))
"""


def wait_long() -> None:
    report_progress(Progress(stage="pid", items=os.getpid()))
    time.sleep(120)


@pytest.mark.slow
def test_worker_ends_with_its_killed_parent(tmp_path) -> None:
    """When the parent is killed, its worker is gone within seconds."""
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(worker)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"
