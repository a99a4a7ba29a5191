"""One process at a time writes to a place."""

import os
import signal
import subprocess
import sys

import pytest

from stepladder.errors import CheckpointError
from stepladder.locks import locked

HOLD = """
import sys, time
from pathlib import Path
from stepladder.locks import locked
with locked(Path(sys.argv[1]), place=Path("run")):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_with_the_first_ones_name(tmp_path, holder):
    """The sentence has host and process, and what to do."""
    named = rf"^run: only one process .*: process {holder.pid} on {os.uname().nodename} is at work -- wait"
    with pytest.raises(CheckpointError, match=named), locked(tmp_path / ".lock", place=type(tmp_path)("run")):
        raise AssertionError("unreachable")


def test_a_killed_holder_leaves_no_lock(tmp_path, holder):
    """The kernel gives the lock back; the file that stays locks nothing, and is gone after the next use."""
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path / ".lock", place=tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_free_after_an_exception_and_not_held_by_children(tmp_path):
    """An error inside gives it back; a child started while it is held does not keep it."""
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "new" / ".lock", place=tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        1 / 0  # noqa: B018
    with locked(tmp_path / "new" / ".lock", place=tmp_path):
        pass
    child.kill()
    child.wait()


def test_directories_that_were_made_for_the_lock_go_with_it(tmp_path):
    """Unless something else is in them; those that were there before stay."""
    for kept in (False, True):
        with locked(tmp_path / "new" / "run" / ".lock", place=tmp_path):
            if kept:
                (tmp_path / "new" / "file").touch()
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "new"] * kept
    with locked(tmp_path / "new" / "run" / ".lock", place=tmp_path):
        (tmp_path / "new" / "file").unlink()
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    """A file where the directory should be."""
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match=r"must be a directory: .* is a file"), locked(place / ".lock", place=place):
            pass
