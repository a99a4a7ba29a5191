"""The place of a run: a directory, or a URL in an object store, whose copy on this machine is then the directory.

Copies lie under ``$STEPLADDER_CACHE/runs``; without that variable, under ``stepladder/runs`` in the user's directory for caches. They are
ordinary run directories (see ``store_copy``).
"""

import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from stepladder.errors import BackendError, CheckpointError, ConfigError, DataFormatError
from stepladder.locks import holder, locked, process_lives
from stepladder.loops.runs.object_store import is_url, opened
from stepladder.loops.runs.stage_times import EVENTS_FILE
from stepladder.loops.runs.store_copy import Mirror, StoreCopy
from stepladder.loops.runs.store_lease import FOLDER, check_free, leased

LOCK_FILE = ".lock"
"""Held by the process that works on a run."""
CACHE_VARIABLE = "STEPLADDER_CACHE"
"""Environment variable that names the directory for copies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlace:
    """Where a run is."""

    name: str
    """The directory or the URL, as it was given."""
    root: Path
    """The directory, or the copy."""
    copy: StoreCopy | None = None
    """The copy of a run in an object store; None for a directory."""

    def content(self) -> frozenset[str]:
        """Return the names of what is there; nothing if the directory does not exist."""
        return frozenset(path.name for path in self.root.iterdir()) if self.root.is_dir() else frozenset()

    @contextmanager
    def held(self, say: Callable[[str], None], *, before: frozenset[str] | None = None) -> Iterator[Callable[[], None]]:
        """Hold the lock of the run while the block works on it, and take what it writes to the store.

        If the block refuses its input before the work begins, what it made is removed.

        Args:
            say: Takes sentences about the store.
            before: What was there before this command; None is what is there now.

        Yields:
            A function to call now and then: it raises a ``BackendError`` if the lock was lost.

        Raises:
            CheckpointError: If another process holds the lock, or the directory cannot be written.
            BackendError: If the store does not answer when the work ends. Everything is in the directory then.
        """
        try:
            with (
                locked(self.root / LOCK_FILE, place=self.root),
                nullcontext(keeps_lock) if self.copy is None else _mirrored(self.copy, say) as check,
                self._unless_refused(before),
            ):
                yield check
        finally:
            # The lock removes the directory only if it made it.
            if before is not None and not before:
                with suppress(OSError):
                    self.root.rmdir()

    @contextmanager
    def _unless_refused(self, before: frozenset[str] | None) -> Iterator[None]:
        """Remove what was made if the block refuses its input before the work begins; the lock goes with its holder."""
        kept = {LOCK_FILE, *(self.content() if before is None else before)}
        try:
            yield
        except (ConfigError, DataFormatError, CheckpointError):
            for name in () if (self.root / EVENTS_FILE).exists() else self.content() - kept:
                path = self.root / name
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            raise

    def page_place(self, path: Path) -> str:
        """Return the place of a page about the run, for people."""
        return f"{self.name}/{path.name} ({path})" if self._has(path) else str(path)

    def publish(self, path: Path) -> None:
        """Take a page about the run to the store, if it lies in the copy; raises a ``BackendError`` as the store does."""
        if self._has(path) and self.copy is not None:
            self.copy.publish(path.name)

    def _has(self, path: Path) -> bool:
        return self.copy is not None and path.parent == self.root


def keeps_lock() -> None:
    """Raise nothing: a process cannot lose the lock of a directory."""


@contextmanager
def _mirrored(copy: StoreCopy, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    with leased(copy.store, copy.root, say=say) as lease:
        copy.pull()
        copy.remove_leftovers()
        mirror = Mirror(copy, lease, say=say)
        mirror.start()
        try:
            yield lease.check
        except BaseException:
            # The first failure is the one that counts.
            if lease.holds():
                try:
                    mirror.finish()
                except BackendError as error:
                    say(f"{error}; everything finished is in {copy.root}")
            raise
        try:
            mirror.finish()
        except BackendError as error:
            raise BackendError(f"{error}; everything is in {copy.root}") from error


def find_run(place: str | Path, *, to_work: bool = False) -> RunPlace:
    """Return where a run is, or is to be; the copy of a run in an object store is brought up to date.

    Args:
        place: Directory or URL.
        to_work: Whether the caller will work on it, and not only read it.

    Raises:
        ConfigError: If the URL cannot be used.
        CheckpointError: If there is no run to read, the place holds something else, or another process works on the run, for ``to_work``.
        BackendError: If the store does not answer.
    """
    if not is_url(place):
        return RunPlace(name=str(place), root=Path(place))
    store = opened(str(place))
    copy = StoreCopy(store, _copy_of(store.url))
    if to_work:
        check_free(store)
        if not store.is_empty() and not store.names(FOLDER):
            raise CheckpointError(f"{place}: must be empty or a stepladder run: it holds other objects -- choose another --run-dir")
    found = holder(copy.root / LOCK_FILE)
    # The copy of a process of this machine that works on the run is ahead of the store.
    is_busy = found is not None and found.host == socket.gethostname() and process_lives(found.pid)
    is_there = copy.root.exists() if is_busy else copy.pull()
    if not is_there and not to_work:
        raise CheckpointError(f"{place}: must be a run: there is none -- give the URL that evolve wrote to")
    return RunPlace(name=store.url, root=copy.root, copy=copy)


def _copy_of(url: str) -> Path:
    digest = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
    return cache_folder() / "runs" / digest / url.rpartition("/")[2]


def cache_folder() -> Path:
    """Return the directory for copies."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "stepladder"
