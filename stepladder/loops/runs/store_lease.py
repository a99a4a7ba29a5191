"""The lock of a run in an object store: it holds across machines, and ends by itself when its holder dies.

Locks are numbered objects, ``.stepladder/lock-00000001.json`` and so on; the newest one counts. A number is taken by writing an object that
must not exist, so that one process alone gets it. The holder writes its object again every few seconds. A lock is free if it says so, if
its holder was a process of this machine that has died, or if it was not written for ``LEASE_S`` seconds by the clock of the store. A holder
that could not write for as long stops by itself. Numbers only rise, so that whatever a former holder still writes is older than the new
holder's (see ``store_copy``).
"""

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from stepladder.errors import BackendError, CheckpointError
from stepladder.locks import process_lives
from stepladder.loops.runs.object_store import ObjectStore

FOLDER = ".stepladder"
"""Folder of a run in a store for what is not part of its directory."""
LEASE_S = 120.0
"""Seconds without a sign of life after which a lock is free."""
_BEAT_S = 15.0
"""Seconds between two signs of life."""
_held: set[str] = set()
"""Tokens of the locks that this process holds. A store that did not answer may name it as the holder of one that it gave up."""
_LOCK = re.compile(rf"{re.escape(FOLDER)}/lock-(\d+)\.json")


class _Lock(NamedTuple):
    """A lock object."""

    number: int
    """Its number, >= 1."""
    name: str
    """Its name."""
    facts: dict[str, Any]
    """Its holder: token, host, pid, machine, and whether it was released."""

    @property
    def holder(self) -> str:
        """Its holder, for people."""
        return f"process {self.facts.get('pid')} on {self.facts.get('host')}"


class Lease:
    """A lock that this process holds."""

    def __init__(self, store: ObjectStore, number: int, copy: Path) -> None:
        """Describe the lock of a number; nothing is written.

        Args:
            store: The run.
            number: Number of the lock.
            copy: Directory with everything that is finished, for messages.
        """
        self.number = number
        self._store, self._copy, self._token = store, copy, secrets.token_hex(8)
        self._written, self._lost, self._reason = time.monotonic(), "", "it was silent"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, daemon=True)

    def take(self) -> bool:
        """Take the number; return whether this process got it. From then on it is written again and again."""
        if not self._store.create(_name(self.number), self._content()):
            return False
        _held.add(self._token)
        self._thread.start()
        return True

    def check(self) -> None:
        """Check that this process still holds the lock.

        Raises:
            BackendError: If another process took it over, or the store has not answered for so long that one may.
        """
        rest = f"everything finished here is in {self._copy}"
        if self._lost:
            raise BackendError(f"{self._store.url}: this process must hold its lock: {self._lost} -- let that one go on; {rest}")
        if not self.holds():
            raise BackendError(
                f"{self._store.url}: the object store must answer within {LEASE_S:.0f} s: {self._reason} -- when it does, the same command "
                f"continues; {rest}"
            )

    def holds(self) -> bool:
        """Say whether this process still holds the lock."""
        return not self._lost and time.monotonic() - self._written <= LEASE_S

    def beat(self) -> None:
        """Give a sign of life, and notice whether another process took the lock over."""
        began = time.monotonic()
        try:
            newest = _newest(self._store)
            if newest is None or newest.facts.get("token") != self._token:
                self._lost = "it is gone" if newest is None else f"{newest.holder} took it over"
                return
            self._store.write(_name(self.number), self._content())
        except BackendError as error:
            self._reason = str(error.__cause__ or error).strip().splitlines()[0]
        else:
            self._written = began

    def release(self) -> None:
        """Free the lock, if it is still held; a store that does not answer frees it in time."""
        self._stop.set()
        self._thread.join()
        _held.discard(self._token)
        with suppress(BackendError):
            self.beat()
            if not self._lost:
                self._store.write(_name(self.number), self._content(released=True))

    def _beat_on(self) -> None:
        while not self._stop.wait(_BEAT_S) and not self._lost:
            self.beat()

    def _content(self, *, released: bool = False) -> bytes:
        facts = {"token": self._token, "host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "released": released}
        return json.dumps(facts).encode()


def check_free(store: ObjectStore) -> None:
    """Check that no process holds the lock of a run; nothing is taken.

    Raises:
        CheckpointError: If one does.
        BackendError: If the store does not answer.
    """
    if (lock := _newest(store)) is not None and not lock.facts.get("released"):
        _why_free(store, lock)


@contextmanager
def leased(store: ObjectStore, copy: Path, *, say: Callable[[str], None]) -> Iterator[Lease]:
    """Hold the lock of a run while the block runs.

    Args:
        store: The run.
        copy: Directory with everything that is finished, for messages.
        say: Takes a sentence if a dead process held the lock.

    Raises:
        CheckpointError: If another process holds it.
        BackendError: If the store does not answer.
    """
    earlier = _newest(store)
    if earlier is not None and not earlier.facts.get("released"):
        say(f"{store.url}: {earlier.holder} did not free the lock: {_why_free(store, earlier)}; it is taken over")
    lease = Lease(store, 1 if earlier is None else earlier.number + 1, copy)
    if not lease.take():
        newest = _newest(store)
        raise _refusal(store, "another process" if newest is None else newest.holder, "it has just begun")
    try:
        for number in _numbers(store):
            if number < lease.number:
                store.remove(_name(number))
        yield lease
    finally:
        lease.release()


def _why_free(store: ObjectStore, lock: _Lock) -> str:
    """Return why a lock that was not released is free, in a few words.

    Raises:
        CheckpointError: If it is not.
    """
    if lock.facts.get("machine") == _machine():
        is_given_up = lock.facts["pid"] == os.getpid() and lock.facts["token"] not in _held
        if process_lives(lock.facts["pid"]) and not is_given_up:
            raise _refusal(store, lock.holder, "it lives")
        return "this process gave it up" if is_given_up else "there is no such process any more"
    # Two writings of the store are compared: clocks of two machines may differ.
    probe = f"{FOLDER}/clock-{secrets.token_hex(8)}"
    store.write(probe, b"")
    try:
        silent = (store.modified(probe) - store.modified(lock.name)).total_seconds()
    finally:
        store.remove(probe)
    if silent < LEASE_S:
        raise _refusal(store, lock.holder, f"its last sign of life is {silent:.0f} s old")
    return f"its last sign of life is {silent:.0f} s old"


def _refusal(store: ObjectStore, holder: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{store.url}: only one process may write here at a time: {holder} is at work: {why} -- wait for it, or end it; the lock of a dead "
        f"one is free after {LEASE_S:.0f} s"
    )


def _name(number: int) -> str:
    return f"{FOLDER}/lock-{number:08d}.json"


def _newest(store: ObjectStore) -> _Lock | None:
    """Return the lock that counts; None if there never was one."""
    for number in sorted(_numbers(store), reverse=True):
        if (content := store.read(_name(number))) is not None:
            try:
                facts = json.loads(content)
            except ValueError:
                facts = {}
            return _Lock(number, _name(number), facts if isinstance(facts, dict) else {})
    return None


def _numbers(store: ObjectStore) -> list[int]:
    return [int(found[1]) for name in store.names(FOLDER) if (found := _LOCK.fullmatch(name))]


def _machine() -> str:
    """Return what processes have in common that see each other's ids: host, boot and process namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)
