"""Scratch directories: each is empty and private, and none outlives its process."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from stepladder.data.step_checks import scratch
from stepladder.data.step_checks.scratch import PREFIX, delete_abandoned, scratch_directory
from tests.locks import needs_locks


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Temporary files are made in the test's own folder, which no process has searched yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    delete_abandoned.cache_clear()


def test_a_directory_is_private_and_deleted(tmp_path):
    """It is empty, only for its user, locked against other processes, and gone with its contents, also after an error."""
    with pytest.raises(KeyError), scratch_directory() as path:
        assert path.parent == tmp_path and path.name.startswith(PREFIX) and list(path.iterdir()) == []
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "folder").mkdir()
        (path / "folder" / "file").write_text("x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_directories_of_dead_processes_are_deleted_and_no_others(tmp_path):
    """Those that a process holds, files, links, what links point to, and other names stay."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    (tmp_path / f"{PREFIX}link").symlink_to(outside)
    (tmp_path / f"{PREFIX}file").write_text("x")
    abandoned = tmp_path / f"{PREFIX}abandoned"
    abandoned.mkdir()
    (abandoned / "link").symlink_to(outside)
    (abandoned / "file").write_text("x")
    with scratch_directory() as held:
        assert not abandoned.exists()
        delete_abandoned.cache_clear()
        delete_abandoned(str(tmp_path))
        assert {path.name for path in tmp_path.iterdir()} == {"outside", f"{PREFIX}link", f"{PREFIX}file", held.name}
    assert (outside / "file").read_text() == "x"


def test_directories_of_other_users_stay(tmp_path):
    """A process of root deletes only what root has left."""
    if os.geteuid():
        pytest.skip("only root can make a directory of another user's")
    other = tmp_path / f"{PREFIX}other"
    other.mkdir()
    os.chown(other, 65534, 65534)
    delete_abandoned(str(tmp_path))
    assert other.exists()


def test_a_directory_taken_for_abandoned_is_made_again(tmp_path, monkeypatch):
    """What another process deletes between making and locking is not used."""
    lock, taken = scratch._lock, []

    def late(handle: int, *, waits: bool) -> bool:
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].rmdir()
        return lock(handle, waits=waits)

    monkeypatch.setattr(scratch, "_lock", late)
    with scratch_directory() as path:
        assert path.exists() and path not in taken


@needs_locks
def test_nothing_stays_after_a_kill(tmp_path):
    """When stepladder is killed while code runs, the code ends and its directories go, without another start."""
    code = "from stepladder.data.step_checks.sandbox import CodeSandbox\n"
    code += 'CodeSandbox(deadline_s=50).run([f\'open("a", "w")\\nimport time\\ntime.sleep(50)\\n{i}\' for i in range(4)])'
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)})
    until(lambda: len(list(tmp_path.glob(f"{PREFIX}*/a"))) == 4)
    running = processes_in(tmp_path)
    process.kill()
    process.wait()
    until(lambda: not list(tmp_path.iterdir()) and not processes_in(tmp_path))
    assert len(running) == 8


def processes_in(folder: Path) -> list[str]:
    """Return the living processes that work in a folder: for each piece its supervisor, and the code."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink().is_relative_to(folder):
                found.append(link.parent.name)
        except OSError:
            continue
    return found


def until(condition, patience_s=60.0):
    """Wait for a condition."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
