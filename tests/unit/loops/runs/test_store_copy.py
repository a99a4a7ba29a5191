"""A run's directory and its mirror in an object store: whatever is killed whenever, the store holds a state of the directory."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from stepladder.errors import BackendError, CheckpointError
from stepladder.loops.runs import store_copy
from stepladder.loops.runs.directory import software
from stepladder.loops.runs.object_store import ObjectStore
from stepladder.loops.runs.ray_cluster import _check_node
from stepladder.loops.runs.run_places import find_run
from stepladder.loops.runs.store_copy import Mirror, StoreCopy, complete_models, name_of
from stepladder.loops.runs.store_lease import Lease


class Killed(BaseException):
    """The process ends here."""


class MortalStore(ObjectStore):
    """A store whose caller is killed before one of its writes; ``left`` counts down to it."""

    left = -1

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed

    def write(self, name: str, content: bytes) -> None:
        self._count()
        super().write(name, content)

    def upload(self, path: Path, name: str) -> bool:
        self._count()
        return super().upload(path, name)

    def create(self, name: str, content: bytes) -> bool:
        self._count()
        return super().create(name, content)

    def remove(self, name: str) -> None:
        self._count()
        super().remove(name)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MortalStore:
    monkeypatch.setattr(store_copy, "_in_parallel", lambda call, items: [call(item) for item in items])
    # Nobody pulls the plug; a slow disk would make these tests slow.
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return MortalStore(f"file://{tmp_path}/bucket/run")


def mirror_of(store: ObjectStore, root: Path, number: int = 1) -> Mirror:
    """Return a mirror of a copy that was just brought up to date, without its thread."""
    copy = StoreCopy(store, root)
    copy.pull()
    return Mirror(copy, Lease(store, number, root), say=lambda sentence: None)


def put(root: Path, **files: str | None) -> None:
    """Write files, whose names have ``__`` for ``/``, as a run does; None removes one."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        if content is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.tmp").write_text(content)
        os.replace(path.with_name(f".{path.name}.tmp"), path)


def content(root: Path) -> dict[str, str]:
    """Return what the files of a run hold, without those on which nothing depends."""
    paths = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".") and path.name not in store_copy.LOOSE]
    return {str(path.relative_to(root)): path.read_text() for path in paths}


def pulled(store: ObjectStore, root: Path) -> dict[str, str]:
    """Return what another machine finds, in a new copy of a given place."""
    shutil.rmtree(root.parent, ignore_errors=True)
    StoreCopy(ObjectStore(store.url), root).pull()
    return content(root)


STATES: list[dict[str, str | None]] = [
    {"run.json": "{}", "rounds__000__a.parquet": "rows", "metrics.jsonl": "1"},
    {"rounds__000__state.pt": "one", "rounds__000__b.parquet": "more rows", "metrics.jsonl": "12"},
    # A file written again, one gone, one new, and one whose content another path had.
    {"rounds__000__state.pt": "two", "rounds__000__a.parquet": None, "rounds__001__c.parquet": "rows"},
    {"rounds__000__state.pt": "three", "rounds__001__c.parquet": "two", "rounds__000__b.parquet": None},
]


def test_a_process_killed_before_any_write_leaves_a_state_of_the_directory(store: MortalStore, tmp_path: Path) -> None:
    """For every write of the mirror: another machine finds the state of the last manifest, or that before it; never a mixture."""
    moment, finished = 0, False
    while not finished:
        moment += 1
        for place in ("bucket", "here"):
            shutil.rmtree(tmp_path / place, ignore_errors=True)
        store.left, root = -1, tmp_path / "here" / "run"
        mirror, states = mirror_of(store, root), [{}]
        store.left = moment
        try:
            for files in STATES:
                put(root, **files)
                states.append(content(root))
                assert mirror.push()
            finished = True
        except Killed:
            pass
        assert pulled(store, tmp_path / "there" / "run") in states[-1 - (not finished) :]
        # The same machine goes on; a file that it had removed may be there again.
        store.left = -1
        StoreCopy(store, root).remove_leftovers()
        assert mirror_of(store, root, 2).push()
        assert states[-1].items() <= content(root).items()
        assert content(root) == pulled(store, tmp_path / "third" / "run")
    assert moment > 15


def test_leftovers_go_and_objects_of_the_manifest_stay(store: MortalStore, tmp_path: Path) -> None:
    """What was uploaded and is in no manifest is removed; the files of the run, loose ones and the lock are not."""
    root = tmp_path / "here" / "run"
    mirror = mirror_of(store, root)
    put(root, run__json="{}", state="one")
    mirror.push()
    put(root, state="two")
    mirror.push()
    (kept,) = [name for name in store.names() if "/objects/" in name]
    store.write("rounds/000/half.parquet", b"half")
    store.write(".stepladder/objects/0123", b"old")
    store.write(".stepladder/lock-00000001.json", b"{}")
    store.write("events.jsonl", b"{}")
    StoreCopy(store, root).remove_leftovers()
    manifest = next(name for name in store.names() if "manifest" in name)
    assert store.names() == sorted([".stepladder/lock-00000001.json", manifest, kept, "events.jsonl", "run/json"])


def test_weights_come_when_a_model_is_used(store: MortalStore, tmp_path: Path) -> None:
    """A new copy has the model's directory without its weights; they are fetched once, belong to the run meanwhile, and are checked."""
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    mirror = mirror_of(store, here)
    for name in ("policy/config.json", "policy/model.safetensors", "prm/member-00/model.safetensors", "sft.work/model.safetensors"):
        put(here, **{f"rounds__000__models__{name}".replace("/", "__"): name})
    mirror.push()
    models = there / "rounds/000/models"
    found = pulled(store, there)
    assert sorted(found) == ["rounds/000/models/policy/config.json", "rounds/000/models/sft.work/model.safetensors"]
    assert (models / "prm").exists()
    # Work that goes on there keeps them in the run, and loses those of a model that it removes.
    mirror = mirror_of(store, there, 2)
    shutil.rmtree(models / "prm")
    put(there, more="rows")
    assert mirror.push()
    listed = json.loads(store.read(max(name for name in store.names() if "manifest" in name)) or b"")["files"]
    assert "rounds/000/models/policy/model.safetensors" in listed
    assert "rounds/000/models/prm/member-00/model.safetensors" not in listed
    complete_models(there, models / "policy")
    assert (models / "policy/model.safetensors").read_text() == "policy/model.safetensors"
    (models / "policy/model.safetensors").unlink()
    store.write("rounds/000/models/policy/model.safetensors", b"something else")
    with pytest.raises(CheckpointError, match="must hold what the run trained: objects are missing or damaged"):
        complete_models(there, models / "policy")
    assert not (models / "policy/model.safetensors").exists()


def test_complete_models_leaves_ordinary_runs_alone(tmp_path: Path) -> None:
    """A directory without a store has its models; its name is its path."""
    complete_models(tmp_path, tmp_path / "rounds/000/models/policy")
    assert list(tmp_path.iterdir()) == []
    assert name_of(tmp_path) == str(tmp_path)


def test_cluster_nodes_that_do_not_see_the_copy_are_refused(store: MortalStore, tmp_path: Path) -> None:
    """With the way to share it; for a directory, the way is storage that all nodes share."""
    root = tmp_path / "here" / "run"
    mirror_of(store, root)
    for place, remedy in ((root, "set STEPLADDER_CACHE to a directory that all nodes share"), (tmp_path, "put it on storage that all")):
        with pytest.raises(CheckpointError, match=f"every node of the cluster must see it and write to it: node 1 does not -- {remedy}"):
            _check_node("run.cluster: node 1", (asdict(software()), False, []), place)


def test_a_copy_that_was_worked_on_stays_ahead_of_the_store(store: MortalStore, tmp_path: Path) -> None:
    """What this machine finished and could not upload is uploaded later; files that vanished from the copy come back."""
    root = tmp_path / "here" / "run"
    mirror = mirror_of(store, root)
    put(root, a="one", b="two", c="three")
    mirror.push()
    put(root, a="one, again", d="four")
    (root / "b").unlink()
    assert mirror_of(store, root, 2).push()
    assert pulled(store, tmp_path / "there" / "run") == {"a": "one, again", "b": "two", "c": "three", "d": "four"}


def test_the_store_wins_over_a_copy_that_another_machine_overtook(store: MortalStore, tmp_path: Path) -> None:
    """After another machine worked on the run, the copy becomes what the run is: other files go, folders without files too."""
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    put(here, models__sft__a="one")
    mirror_of(store, here).push()
    mirror = mirror_of(store, there, 2)
    put(there, b="two")
    shutil.rmtree(there / "models")
    mirror.push()
    put(here, late="three")
    StoreCopy(store, here).pull()
    assert content(here) == {"b": "two"}
    assert not (here / "models").exists()


def test_a_former_holder_of_the_lock_writes_nothing_that_counts(store: MortalStore, tmp_path: Path) -> None:
    """A process with an older number of the lock may still write: the manifest of the newer one stays the newest."""
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    former = mirror_of(store, here, 1)
    put(here, a="one")
    former.push()
    newer = mirror_of(store, there, 2)
    put(there, b="two")
    newer.push()
    put(here, a="late")
    with pytest.raises(BackendError, match="this process must hold its lock: another one took it over"):
        former.push()
    assert pulled(store, tmp_path / "third" / "run") == {"a": "one", "b": "two"}


def test_two_processes_with_one_number_do_not_both_write(store: MortalStore, tmp_path: Path) -> None:
    """A manifest is an object that must not exist: the second one is refused."""
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    first, second = mirror_of(store, here), mirror_of(store, there)
    put(here, a="one")
    put(there, a="two")
    first.push()
    with pytest.raises(BackendError, match=r"only one process may write here at a time: another one wrote .*manifest-00000001-00000001"):
        second.push()
    assert pulled(store, tmp_path / "third" / "run") == {"a": "one"}


def changing(root: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let a file change between any two looks, so many times."""
    look: Callable[[Path], Any] = store_copy._listing
    left = [times]

    def busy(place: Path) -> Any:
        if left[0]:
            left[0] -= 1
            put(root, **{f"new{left[0]}": "x"})
        return look(place)

    monkeypatch.setattr(store_copy, "_listing", busy)


def test_nothing_is_uploaded_while_files_appear(store: MortalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing counts when two in a row are equal; else the next attempt is made, and the last one ends with a sentence."""
    root = tmp_path / "here" / "run"
    mirror = mirror_of(store, root)
    put(root, a="one")
    changing(root, monkeypatch, 6)
    assert not mirror.push()
    assert store.names() == []
    assert mirror.push()
    assert set(pulled(store, tmp_path / "there" / "run")) == set(content(root))
    changing(root, monkeypatch, 100)
    with pytest.raises(BackendError, match="must not change after the work: something still writes there"):
        mirror.finish()


def test_a_file_that_changes_during_its_upload_is_not_listed(store: MortalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest never lists bytes that no file had."""
    root = tmp_path / "here" / "run"
    mirror = mirror_of(store, root)
    put(root, a="one")
    digest: Callable[[Path], str] = store_copy.digest_of

    def slow(path: Path) -> str:
        found = digest(path)
        put(root, a="two, meanwhile")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(store_copy, "digest_of", slow)
        assert not mirror.push()
    assert mirror.push()
    assert pulled(store, tmp_path / "there" / "run") == {"a": "two, meanwhile"}


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (b"{", "must be the manifest of a run: it is not JSON"),
        (b'{"files": {"../../a": {"size": 1, "digest": "", "object": "a"}}}', "it lists '../../a', which lies outside of the run"),
        (b'{"files": {"/a": {"size": 1, "digest": "", "object": "a"}}}', "it lists '/a', which lies outside of the run"),
        (b'{"files": {"a": {"size": 1}}}', "must be the manifest of a run: TypeError"),
        (b"[]", "must be the manifest of a run: TypeError"),
    ],
)
def test_damaged_manifests_are_refused(store: MortalStore, tmp_path: Path, manifest: bytes, words: str) -> None:
    """In one sentence, and nothing is written outside of the copy."""
    store.write(".stepladder/manifest-00000001-00000001.json", manifest)
    with pytest.raises(CheckpointError, match=words):
        StoreCopy(store, tmp_path / "here" / "run").pull()


def test_damaged_objects_are_refused(store: MortalStore, tmp_path: Path) -> None:
    """A file that differs from its digest is never taken."""
    root = tmp_path / "here" / "run"
    put(root, a="one")
    mirror_of(store, root).push()
    store.write("a", b"two")
    with pytest.raises(BackendError, match="its objects must be those of its manifest: they still differ"):
        StoreCopy(store, tmp_path / "there" / "run").pull()
    assert content(tmp_path / "there" / "run") == {}


def test_a_run_that_was_removed_from_the_store_is_not_made_again_from_a_copy(store: MortalStore, tmp_path: Path) -> None:
    """Whoever removes a run there does not want it back; who wants a new one removes the copy, too."""
    root = tmp_path / "here" / "run"
    put(root, a="one")
    mirror_of(store, root).push()
    shutil.rmtree(tmp_path / "bucket")
    with pytest.raises(
        CheckpointError, match=r"must hold the run of which .* is a copy: it was removed -- to begin a new one there, remove"
    ):
        StoreCopy(store, root).pull()


def test_readers_find_runs_and_nothing_else(store: MortalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place without a run, or with other objects, is refused; a run's copy lies in the directory for caches."""
    monkeypatch.setenv("STEPLADDER_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match="must be a run: there is none -- give the URL that evolve wrote to"):
        find_run(store.url)
    store.write("thesis.pdf", b"")
    with pytest.raises(CheckpointError, match=r"must be empty or a stepladder run: it holds other objects -- choose another --run-dir"):
        find_run(store.url, to_work=True)
    store.remove("thesis.pdf")
    put(tmp_path / "here" / "run", a="one")
    mirror_of(store, tmp_path / "here" / "run").push()
    place = find_run(store.url)
    assert place.root.is_relative_to(tmp_path / "cache" / "runs")
    assert (place.root / "a").read_text() == "one"
    assert name_of(place.root) == place.name == store.url
