"""A run in an object store, and its copy on this machine.

All work is done in the copy, which is an ordinary run directory. A mirror takes what appears, changes and vanishes there to the store:

    URL/rounds/000/trees/shard-0000.parquet ...    the files of the run under their own names
    URL/events.jsonl, metrics.jsonl, report.html   files on which no result depends; replaced whenever they change
    URL/.stepladder/manifest-NUMBER-SERIAL.json    the files that belong to the run, with sizes and digests; the newest one counts
    URL/.stepladder/objects/DIGEST                 a file whose own name another version of it holds
    URL/.stepladder/lock-NUMBER.json               the lock

Files go up first, then a manifest that lists them, as one object. So the store always holds what the directory held at one moment: the
state that a process would have left that was killed at that moment, from which a run continues anyhow. A file of which no manifest knows
does not exist, such as a part of a model that was on its way. NUMBER is that of the lock, so that a process that lost it writes nothing
that counts. Objects of files are never written again, so that what a manifest lists stays what it is.
"""

import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from stepladder.digests import digest_of
from stepladder.errors import BackendError, CheckpointError, StepladderError
from stepladder.files import atomic_file, atomic_write_text, reading
from stepladder.loops.runs.live import LIVE_FILE
from stepladder.loops.runs.object_store import ObjectStore, opened
from stepladder.loops.runs.stage_times import EVENTS_FILE
from stepladder.loops.runs.store_lease import FOLDER, Lease

LOOSE = (EVENTS_FILE, "metrics.jsonl", "report.html", LIVE_FILE)
"""Files on which no result depends, and which change while a run goes on."""
_MANIFEST = re.compile(rf"{re.escape(FOLDER)}/manifest-(\d+)-(\d+)\.json")
_OBJECTS = f"{FOLDER}/objects"
_WEIGHTS = re.compile(r"rounds/\d+/models/(policy|prm)/.*\.(safetensors|bin)")
"""Files that are fetched when a model is used."""
_STREAMS = 8
"""Objects on their way at once."""
_TICK_S, _LOOSE_S = 2.0, 15.0
"""Seconds between two looks at the copy, and between two uploads of the loose files alone."""
_SHARE = 20
"""A look may take one part in so many of the time."""
_TRIES = 5


class StoredFile(NamedTuple):
    """A file of a run in the store."""

    size: int
    """Bytes."""
    digest: str
    """As of ``digest_of``."""
    object: str
    """Name of its object."""


class Stamp(NamedTuple):
    """What changes when a file is written."""

    size: int
    """Bytes."""
    time_ns: int
    """Time of the last change."""
    node: int
    """Number of the file."""


class KnownFile(NamedTuple):
    """A file that is in the store."""

    stored: StoredFile
    """Its object."""
    stamp: Stamp | None
    """Stamp of the copy's file; None if only the store has it."""


class _Manifest(NamedTuple):
    name: str
    files: dict[str, StoredFile]


class _State(NamedTuple):
    """How copy and store agreed last; it is kept beside the copy."""

    url: str
    """The run."""
    manifest: str | None
    """The manifest; None if the run has none yet."""
    attempt: str | None
    """A later one that this machine wrote, without knowing whether it arrived."""
    is_ours: bool
    """Whether this machine worked on the run since then."""
    files: dict[str, KnownFile]
    """The files of the manifest, by their paths in the run."""


class _Changed(Exception):
    """What was read has changed meanwhile."""


class StoreCopy:
    """The copy of a run on this machine."""

    def __init__(self, store: ObjectStore, root: Path) -> None:
        """Name a copy, which need not exist.

        Args:
            store: The run.
            root: Its directory.
        """
        self.store, self.root = store, root

    def pull(self) -> bool:
        """Bring the copy to the state of the run, without the weights of models, and return whether there is a run.

        A copy on which this machine worked last, and which is ahead of the store, stays ahead.

        Raises:
            BackendError: If the store does not answer, or holds damaged objects.
            CheckpointError: If the run was removed from the store.
        """
        with _alone(_beside(self.root, "pull.lock")):
            for _ in range(_TRIES):
                try:
                    return self._pull()
                except _Changed:
                    continue
        raise BackendError(
            f"{self.store.url}: its objects must be those of its manifest: they still differ after {_TRIES} attempts -- run the same "
            "command again; if it fails again, the run is damaged"
        )

    def _pull(self) -> bool:
        manifest, state = _newest_manifest(self.store), _read_state(self.root)
        if manifest is None:
            if state is not None and state.manifest is not None:
                raise CheckpointError(
                    f"{self.store.url}: must hold the run of which {self.root} is a copy: it was removed -- to begin a new one there, "
                    "remove the copy, too"
                )
            return self.root.exists()
        same = state is not None and manifest.name in (state.manifest, state.attempt)
        files, wanted = self._compared(manifest, state, same=same)
        if not same:
            # From here on the copy agrees with no manifest, also if this process is killed.
            _state_file(self.root).unlink(missing_ok=True)
            self._remove_others(manifest)
        files |= self._fetched(wanted)
        is_ours = same and state is not None and state.is_ours
        if not is_ours:
            _in_parallel(self._fetch_loose, LOOSE)
        _write_state(self.root, _State(self.store.url, manifest.name, None, is_ours, files))
        return True

    def _compared(self, manifest: _Manifest, state: _State | None, *, same: bool) -> tuple[dict[str, KnownFile], dict[str, StoredFile]]:
        """Return the files of a manifest that the copy has, or can do without, and those that it lacks."""
        files: dict[str, KnownFile] = {}
        wanted: dict[str, StoredFile] = {}
        for path, stored in manifest.files.items():
            target, known = self.root / path, None if state is None else state.files.get(path)
            stamp = _stamp(target)
            if stamp is None:
                if _WEIGHTS.fullmatch(path):
                    files[path] = KnownFile(stored, None)
                    target.parent.mkdir(parents=True, exist_ok=True)
                else:
                    wanted[path] = stored
            elif (known is not None and known.stored.digest == stored.digest and known.stamp == stamp) or (
                stamp.size == stored.size and digest_of(target) == stored.digest
            ):
                files[path] = KnownFile(stored, stamp)
            elif same:
                # This machine wrote it again after the manifest.
                files[path] = KnownFile(stored, None if known is None else known.stamp)
            else:
                wanted[path] = stored
        return files, wanted

    def _remove_others(self, manifest: _Manifest) -> None:
        """Remove what belongs to another state of the run."""
        for path in _listing(self.root).keys() - manifest.files.keys():
            (self.root / path).unlink(missing_ok=True)
        folders = {".", *(str(parent) for path in manifest.files for parent in Path(path).parents)}
        for folder, *_ in os.walk(self.root, topdown=False):
            if os.path.relpath(folder, self.root) not in folders:
                shutil.rmtree(folder, ignore_errors=True)

    def _fetched(self, wanted: dict[str, StoredFile]) -> dict[str, KnownFile]:
        def fetch(path: str) -> KnownFile:
            target = self.root / path
            fetch_file(self.store, wanted[path], target)
            return KnownFile(wanted[path], _stamp(target))

        return dict(zip(wanted, _in_parallel(fetch, wanted), strict=True))

    def _fetch_loose(self, name: str) -> None:
        with atomic_file(self.root / name) as temporary:
            found = self.store.download(name, temporary)
            if not found:
                temporary.touch()
        if not found:
            (self.root / name).unlink()

    def publish(self, name: str) -> None:
        """Upload one of the loose files; raises as the store does."""
        self.store.write(name, (self.root / name).read_bytes())

    def remove_leftovers(self) -> None:
        """Remove the objects that no manifest lists, which killed processes left. Hold the lock of the run."""
        manifest = _newest_manifest(self.store)
        kept = set() if manifest is None else {stored.object for stored in manifest.files.values()} | {manifest.name}
        for name in self.store.names():
            is_lock = name.startswith(f"{FOLDER}/") and not name.startswith(f"{_OBJECTS}/") and not _MANIFEST.fullmatch(name)
            if name not in kept and name not in LOOSE and not is_lock:
                self.store.remove(name)


def url_of(root: Path) -> str | None:
    """Return the URL if a directory is the copy of a run in an object store; None for a run of this machine."""
    return None if (state := _read_state(root)) is None else state.url


def name_of(root: Path) -> str:
    """Return the name of a run for people: its URL if a directory is the copy of a run in an object store, else the directory."""
    return url_of(root) or str(root)


def place_words(root: Path) -> str:
    """Return where a run is, for people."""
    return str(root) if (url := url_of(root)) is None else f"{url}, with a copy in {root}"


def complete_models(root: Path, folder: Path) -> None:
    """Fetch the weights of models that a copy of a run lacks; nothing for runs of this machine, and for models that are complete.

    Args:
        root: Directory of a run.
        folder: Directory of a model in it, or of several.

    Raises:
        BackendError: If the store does not answer.
        CheckpointError: If the weights there are damaged.
    """
    if (state := _read_state(root)) is None:
        return
    inside = f"{folder.relative_to(root).as_posix()}/"
    missing = {path: known.stored for path, known in state.files.items() if path.startswith(inside) and not (root / path).exists()}
    if not missing:
        return
    store = opened(state.url)
    try:
        _in_parallel(lambda path: fetch_file(store, missing[path], root / path), missing)
    except _Changed:
        raise CheckpointError(
            f"{store.url}: {inside} must hold what the run trained: objects are missing or damaged -- run the same command again, which "
            "looks at the run anew"
        ) from None


def fetch_file(store: ObjectStore, stored: StoredFile, target: Path) -> None:
    """Write a file of a run from its object."""
    with atomic_file(target) as temporary:
        if not store.download(stored.object, temporary) or digest_of(temporary) != stored.digest:
            raise _Changed


class Mirror:
    """Takes what happens in a copy to the store, in a thread of its own."""

    def __init__(self, copy: StoreCopy, lease: Lease, *, say: Callable[[str], None]) -> None:
        """Begin with what copy and store have in common; nothing is uploaded yet.

        Args:
            copy: The copy, which was brought to the state of the run.
            lease: The lock of the run.
            say: Takes sentences about a store that does not answer.
        """
        self._copy, self._store, self._root, self._lease, self._say = copy, copy.store, copy.root, lease, say
        state = _read_state(copy.root)
        self._manifest = None if state is None else state.manifest
        self._files = {} if state is None else dict(state.files)
        self._serial = 0 if self._manifest is None else _place(self._manifest)[1]
        self._sent: dict[str, KnownFile] = {}
        """Files that went up and are in no manifest yet."""
        self._loose: dict[str, Stamp | None] = {}
        self._loose_at = -_LOOSE_S
        self._looked_s = 0.0
        self._is_silent = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._note_state()

    def start(self) -> None:
        """Begin to upload."""
        self._thread.start()

    def finish(self) -> None:
        """Upload the rest; raises as the store does, or if the lock was lost."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for _ in range(_TRIES):
            if self.push():
                return
        raise BackendError(f"{self._root}: must not change after the work: something still writes there -- run the same command again")

    def _go_on(self) -> None:
        while not self._stop.wait(max(_TICK_S, _SHARE * self._looked_s)):
            if not self._lease.holds():
                # The process that works on the run notices it, too, and ends.
                return
            try:
                self.push()
            except (StepladderError, OSError) as error:
                if not self._is_silent:
                    self._say(f"{error}; the run goes on in {self._root} meanwhile")
                self._is_silent = True
            else:
                self._is_silent = False

    def push(self) -> bool:
        """Bring the store to a state of the copy; return False if files change too quickly just now. Raises as ``finish`` does."""
        self._lease.check()
        began = time.monotonic()
        listing = _settled_listing(self._root)
        self._looked_s = time.monotonic() - began
        if listing is None:
            return False
        files = {path: known for path, stamp in listing.items() if (known := self._known(path, stamp)) is not None}
        changed = [path for path in listing if path not in files]
        try:
            files |= zip(changed, _in_parallel(lambda path: self._send(path, listing[path]), changed), strict=True)
        except _Changed:
            return False
        # Weights that were never fetched belong to the run as long as their model does.
        files |= {
            path: known
            for path, known in self._files.items()
            if known.stamp is None and path not in files and (self._root / path).parent.is_dir()
        }
        if {path: known.stored for path, known in files.items()} != {path: known.stored for path, known in self._files.items()}:
            self._commit(files)
        self._files, self._sent = files, {}
        self._push_loose()
        return True

    def _known(self, path: str, stamp: Stamp) -> KnownFile | None:
        """Return a file as it is in the store; None for one that is new or has changed."""
        found = (files.get(path) for files in (self._files, self._sent))
        return next((known for known in found if known is not None and known.stamp == stamp), None)

    def _send(self, path: str, stamp: Stamp) -> KnownFile:
        """Upload a file, unless the store has the same bytes."""
        source = self._root / path
        try:
            digest = digest_of(source)
            if (known := self._files.get(path)) is not None and known.stored.digest == digest:
                return known._replace(stamp=stamp)
            # An object of this name may be one that a manifest lists. One of this digest has the same bytes.
            name = next((each for each in (path, f"{_OBJECTS}/{digest}") if self._store.upload(source, each)), None)
        except (FileNotFoundError, BackendError):
            if _stamp(source) == stamp:
                raise
            raise _Changed from None
        if _stamp(source) != stamp:
            if name is not None:
                self._store.remove(name)
            raise _Changed
        name = name or f"{_OBJECTS}/{digest}"
        self._sent[path] = KnownFile(StoredFile(stamp.size, digest, name), stamp)
        return self._sent[path]

    def _commit(self, files: dict[str, KnownFile]) -> None:
        """Write a manifest; afterwards remove the objects that it no longer lists, and earlier manifests."""
        self._lease.check()
        self._serial += 1
        name = f"{FOLDER}/manifest-{self._lease.number:08d}-{self._serial:08d}.json"
        listed = {path: known.stored._asdict() for path, known in files.items()}
        self._note_state(attempt=name)
        if not self._store.create(name, json.dumps({"schema_version": 1, "files": listed}).encode()):
            raise BackendError(
                f"{self._store.url}: only one process may write here at a time: another one wrote {name} -- wait for it, or end it"
            )
        before, now = (set(known.stored.object for known in each.values()) for each in (self._files, files))
        earlier, self._manifest, self._files = self._manifest, name, files
        self._note_state()
        if _newest_name(self._store) != name:
            raise BackendError(f"{self._store.url}: this process must hold its lock: another one took it over -- let that one go on")
        _in_parallel(self._store.remove, sorted(before - now))
        if earlier is not None:
            self._store.remove(earlier)

    def _note_state(self, *, attempt: str | None = None) -> None:
        _write_state(self._root, _State(self._store.url, self._manifest, attempt, True, self._files))

    def _push_loose(self) -> None:
        """Upload the loose files that have changed, and remove those that are gone: now and then, and at the end."""
        if not self._stop.is_set() and time.monotonic() - self._loose_at < _LOOSE_S:
            return
        self._loose_at = time.monotonic()
        for name in LOOSE:
            stamp = _stamp(self._root / name)
            if stamp == self._loose.get(name, Stamp(-1, -1, -1)):
                continue
            # It may be removed just now; then the next look finds that.
            with suppress(FileNotFoundError):
                self._store.remove(name) if stamp is None else self._copy.publish(name)
                self._loose[name] = stamp


def _listing(root: Path) -> dict[str, Stamp]:
    """Return the files below a directory that belong to a run, by their paths in it, in order."""
    found = {}
    for folder, folders, names in os.walk(root):
        # Temporary files, and the lock.
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(folder, root)
        for name in names:
            path = name if inside == "." else f"{inside}/{name}"
            if not name.startswith(".") and path not in LOOSE and (stamp := _stamp(Path(folder, name))) is not None:
                found[path] = stamp
    return dict(sorted(found.items()))


def _settled_listing(root: Path) -> dict[str, Stamp] | None:
    """Return a listing that held at one moment: two in a row that are equal. None if files change too quickly just now."""
    before = _listing(root)
    for _ in range(_TRIES):
        if (now := _listing(root)) == before:
            return now
        before = now
    return None


def _stamp(path: Path) -> Stamp | None:
    """Return the stamp of a file; None if there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino)


def _in_parallel(call: Callable[[str], Any], items: Iterable[str]) -> list[Any]:
    """Make a call for every item, several at once, and return the results in order."""
    with ThreadPoolExecutor(_STREAMS) as threads:
        return list(threads.map(call, items))


def _newest_manifest(store: ObjectStore) -> _Manifest | None:
    """Return the manifest that counts; None if the run has none yet."""
    for _ in range(_TRIES):
        if (name := _newest_name(store)) is None:
            return None
        # One that was replaced meanwhile is gone.
        if (content := store.read(name)) is not None:
            with reading(f"{store.url}/{name}", what="the manifest of a run", remedy="use the stepladder that wrote it"):
                return _Manifest(name, {_inside(path): StoredFile(**stored) for path, stored in json.loads(content)["files"].items()})
    raise BackendError(f"{store.url}: its manifest must be readable: it changed {_TRIES} times meanwhile -- run the same command again")


def _newest_name(store: ObjectStore) -> str | None:
    return max((name for name in store.names(FOLDER) if _MANIFEST.fullmatch(name)), key=_place, default=None)


def _inside(path: str) -> str:
    """Return the path of a file, which must lie in the run."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"it lists {path!r}, which lies outside of the run")
    return path


def _place(manifest: str) -> tuple[int, int]:
    found = _MANIFEST.fullmatch(manifest)
    assert found is not None, "only names of manifests are given"
    return int(found[1]), int(found[2])


def _beside(root: Path, what: str) -> Path:
    return root.with_name(f".{root.name}.{what}")


def _state_file(root: Path) -> Path:
    return _beside(root, "store.json")


def _write_state(root: Path, state: _State) -> None:
    atomic_write_text(_state_file(root), json.dumps(state))


def _read_state(root: Path) -> _State | None:
    """Return how a copy and its store agreed last; None for a run of this machine, and if they never did."""
    try:
        url, manifest, attempt, is_ours, files = json.loads(_state_file(root).read_text(encoding="utf-8"))
        known = {path: KnownFile(StoredFile(*stored), None if stamp is None else Stamp(*stamp)) for path, (stored, stamp) in files.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return _State(url, manifest, attempt, is_ours, known)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine brings the copy up to date, and keep them out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
