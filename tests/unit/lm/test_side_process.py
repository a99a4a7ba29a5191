"""Processes beside a training: they end with it, with all that they started, whether it ends them or is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stepladder.lm.side_process import end, start

WORKER = """
import subprocess, sys, time
from stepladder.lm.side_process import end_with_parent
end_with_parent()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print(child.pid, flush=True)
time.sleep(100)
"""
PARENT = """
import sys, time
from pathlib import Path
from stepladder.lm.side_process import start
print(start(["-c", sys.argv[1]], log=Path(sys.argv[2])).pid, flush=True)
time.sleep(100)
"""


def until(true: Callable[[], bool]) -> bool:
    """Wait up to half a minute for something."""
    limit = time.monotonic() + 30
    while not true() and time.monotonic() < limit:
        time.sleep(0.02)
    return true()


def runs(pid: int) -> bool:
    """Say whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def grandchild(log: Path) -> int:
    """Return the process that the worker starts, once it has."""
    assert until(lambda: log.is_file() and log.read_text().endswith("\n"))
    return int(log.read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ending_reaches_what_the_process_started(tmp_path: Path) -> None:
    """Both are gone at once, and ending twice does no harm."""
    process = start(["-c", WORKER], log=tmp_path / "log")
    child = grandchild(tmp_path / "log")
    assert runs(process.pid) and runs(child)
    end(process)
    assert process.returncode == -signal.SIGKILL
    assert until(lambda: not runs(child))
    end(process)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_parent_leaves_nothing(tmp_path: Path) -> None:
    """Killed, it cannot end them; they notice that their input has ended."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, WORKER, str(tmp_path / "log")], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    process, child = int(parent.stdout.readline()), grandchild(tmp_path / "log")
    assert runs(process) and runs(child) and os.getpgid(child) == process
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert until(lambda: not runs(process) and not runs(child))


def test_a_process_that_has_done_its_work_ends_well(tmp_path: Path) -> None:
    """Nothing that still waits for the end of the input makes Python abort when it ends."""
    process = start(["-c", "from stepladder.lm.side_process import end_with_parent; end_with_parent()"], log=tmp_path / "log")
    assert process.wait(30) == 0, (tmp_path / "log").read_text()
    end(process)
