"""The lock of a run in an object store."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stepladder.errors import BackendError, CheckpointError
from stepladder.loops.runs import store_lease
from stepladder.loops.runs.object_store import ObjectStore
from stepladder.loops.runs.store_lease import Lease, check_free, leased

LOCK = ".stepladder/lock-00000007.json"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"file://{tmp_path}/bucket/run")


def held(store: ObjectStore, **facts: object) -> None:
    """Write the lock of a process on another machine."""
    lock = {"token": "theirs", "host": "node-7", "pid": 4711, "machine": "node-7", "released": False, **facts}
    store.write(LOCK, json.dumps(lock).encode())


def never(sentence: str) -> None:
    raise AssertionError(sentence)


def test_a_second_process_is_refused_with_the_first_ones_name(store: ObjectStore, tmp_path: Path) -> None:
    """On the same machine, where the first lives, and on another one, which gave a sign of life just now; the lock stays theirs."""
    with leased(store, tmp_path, say=never):
        named = rf"at a time: process {os.getpid()} on {os.uname().nodename} is at work: it lives -- wait for it, or end it"
        with pytest.raises(CheckpointError, match=named), leased(store, tmp_path, say=never):
            raise AssertionError("unreachable")
    check_free(store)
    held(store)
    for take in (lambda: check_free(store), lambda: leased(store, tmp_path, say=never).__enter__()):
        with pytest.raises(CheckpointError, match=r"process 4711 on node-7 is at work: its last sign of life is \d+ s old"):
            take()
    assert json.loads(store.read(LOCK) or b"")["token"] == "theirs"
    assert len(store.names()) == 2


def test_the_lock_of_a_silent_machine_is_taken_over(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a sentence; the former holder notices it, and stops. Its sign of life does not bring its lock back."""
    former = Lease(store, 6, tmp_path)
    assert former.take()
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(store_lease, "LEASE_S", -1.0)
        patch.setattr(store_lease, "_machine", lambda: "another machine")
        with leased(store, tmp_path, say=said.append) as lease:
            patch.setattr(store_lease, "LEASE_S", 120.0)
            lease.check()
            former.beat()
            with pytest.raises(BackendError, match=rf"must hold its lock: process {os.getpid()} on .* took it over -- let that one go on"):
                former.check()
            former.release()
            assert [name for name in store.names() if "lock" in name] == [LOCK]
    assert len(said) == 1
    assert f"process {os.getpid()} on" in said[0]
    assert re.search(r"did not free the lock: its last sign of life is \d+ s old; it is taken over", said[0])
    with leased(store, tmp_path, say=never) as lease:
        assert lease.number == 8


def test_the_lock_of_a_dead_process_of_this_machine_is_free_at_once(store: ObjectStore, tmp_path: Path) -> None:
    """Nobody waits for the lease of a process that was killed here."""
    died = subprocess.Popen([sys.executable, "-c", ""])
    died.wait()
    held(store, pid=died.pid, machine=store_lease._machine())
    said: list[str] = []
    with leased(store, tmp_path, say=said.append) as lease:
        assert lease.number == 8
    assert "there is no such process any more" in said[0]


def test_a_lock_that_this_process_could_not_free_is_its_own(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that did not answer at the end still names this process; the next call takes the lock over."""
    lease, said = Lease(store, 1, tmp_path), list[str]()
    assert lease.take()
    with monkeypatch.context() as patch:
        for method in ("names", "write"):
            patch.setattr(ObjectStore, method, lambda *_: (_ for _ in ()).throw(BackendError("silent")))
        lease.release()
    with leased(store, tmp_path, say=said.append) as lease:
        assert lease.number == 2
    assert "did not free the lock: this process gave it up; it is taken over" in said[0]


def test_one_of_two_that_come_at_once_gets_the_lock(store: ObjectStore, tmp_path: Path) -> None:
    """Both saw the same lock; the number is taken by one alone."""
    first, second = Lease(store, 1, tmp_path), Lease(store, 1, tmp_path)
    assert first.take()
    assert not second.take()
    first.release()


def test_a_holder_that_cannot_write_stops_by_itself(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as another one may take the lock over; the reason is named, and where everything is."""
    with leased(store, tmp_path, say=never) as lease:
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, "names", lambda *_: (_ for _ in ()).throw(BackendError("no route to host")))
            lease.beat()
            lease.check()
            patch.setattr(store_lease, "LEASE_S", -1.0)
            with pytest.raises(BackendError, match=r"must answer within .*: no route to host -- when it does, .* is in /") as caught:
                lease.check()
            assert str(tmp_path) in str(caught.value)
        lease.beat()
        lease.check()


def test_a_damaged_lock_is_one_of_another_machine(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as held until it is old."""
    store.write(LOCK, b"{")
    with pytest.raises(CheckpointError, match="only one process may write here"):
        check_free(store)
    monkeypatch.setattr(store_lease, "LEASE_S", -1.0)
    with leased(store, tmp_path, say=lambda sentence: None) as lease:
        assert lease.number == 8
