"""Runs in an object store on the loopback address: the bytes of a run on a disk, whatever is killed, lost or silent meanwhile."""

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from stepladder.errors import CheckpointError
from stepladder.loops.runs import object_store, store_copy, store_lease
from stepladder.loops.runs.object_store import ObjectStore, opened
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.run_places import find_run
from stepladder.loops.runs.store_lease import leased
from tests.integration.test_evolve import run_facts
from tests.object_stores import BUCKET, LoopbackStore, evolving, loopback_store
from tests.runs import called, write_tiny_config

pytestmark = pytest.mark.skipif(
    find_spec("s3fs") is None or find_spec("moto") is None, reason="s3fs or moto is not installed: pip install 'stepladder[dev]'"
)

URL = f"s3://{BUCKET}/tiny"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_config(tmp_path_factory.mktemp("stored"), rounds=1, num_train=12)


@pytest.fixture(scope="module")
def reference(config: Path) -> dict[str, str]:
    """Digests of every file of the rounds of a run on this machine's disk."""
    done = called("evolve", config, "--run-dir", config.parent / "local")
    assert done.returncode == 0, done.stderr
    return run_facts(config.parent / "local")


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackStore]:
    with loopback_store() as store:
        yield store


@pytest.fixture
def cache(server: LoopbackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory for copies; every test finds another machine, so to say."""
    monkeypatch.setenv("STEPLADDER_CACHE", str(tmp_path / "cache"))
    opened.cache_clear()
    return tmp_path / "cache"


def listed(store: ObjectStore) -> list[str]:
    """Return the files that the newest manifest of a run lists."""
    names = [name for name in store.names(".stepladder") if "manifest" in name]
    content = store.read(max(names)) if names else None
    return [] if content is None else list(json.loads(content)["files"])


def test_killed_cut_off_and_moved_run_ends_with_the_same_bytes(
    config: Path, reference: dict[str, str], server: LoopbackStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill -9 in round 1, while files go up; another machine goes on, and loses the store in its last stage; the same command ends the run.

    The second machine has nothing but the URL. The third one sees the files of a run on a disk, under their own names.
    """
    store = ObjectStore(URL)
    with evolving(config, URL, cache / "first") as process:
        while process.poll() is None and not any("rounds/001/trees" in path for path in listed(store)):
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()[0]

    enter = ProgressDisplay.enter

    def cut_off(self: ProgressDisplay, number: int, stage: str) -> None:
        enter(self, number, stage)
        if (number, stage) == (1, "evaluate"):
            server.fall_silent()

    with monkeypatch.context() as patch:
        patch.setattr(ProgressDisplay, "enter", cut_off)
        # A slow machine reaches the end of the run, too.
        patch.setattr(store_lease, "LEASE_S", math.inf)
        failed = called("evolve", config, "--run-dir", URL)
    assert failed.returncode == 1
    assert "did not free the lock: there is no such process any more; it is taken over" in failed.stderr
    (error,) = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert error.startswith(f"error: {URL}: the object store must answer: Could not connect to the endpoint")
    assert f"everything is in {cache}" in error
    server.answer()

    done = called("evolve", config, "--run-dir", URL)
    assert done.returncode == 0, done.stderr
    assert f"report: {URL}/report.html" in done.stdout
    assert f"--run {URL}" in done.stdout
    assert run_facts(find_run(URL).root) == reference
    shutil.rmtree(cache)
    root = find_run(URL).root
    store_copy.complete_models(root, root / "rounds")
    assert run_facts(root) == reference
    names = {f"rounds/{path}" for path in reference if path.startswith("0")} or {path for path in reference if path.startswith("rounds/")}
    assert names <= set(store.names())


def test_every_command_takes_the_url(cache: Path, tmp_path: Path) -> None:
    """From an empty cache: watch, report, export, doctor, a branch, and solve, which alone fetches weights."""
    watched = called("watch", URL, "--once")
    assert watched.returncode == 0, watched.stderr
    assert URL in watched.stdout and "finished" in watched.stdout
    weights = list(cache.rglob("*.safetensors"))
    assert all("/models/policy" not in str(path) and "/models/prm" not in str(path) for path in weights)
    report = called("report", URL)
    assert report.stdout.startswith(f"report: {URL}/report.html ({cache}")
    exported = called("export", URL, "--format", "sft", "--to", tmp_path / "data")
    assert exported.returncode == 0, exported.stderr
    assert called("doctor", URL).returncode == 0
    solved = called("solve", "train 1 a", "--run", URL, "--simulations", "2", "--quiet")
    assert solved.returncode == 0, solved.stderr
    assert list(cache.rglob("models/policy/model.safetensors"))
    branch = called("evolve", URL, "--from-round", "0", "--run-dir", f"s3://{BUCKET}/branch", "--set", "run.rounds=0")
    assert branch.returncode == 0, branch.stderr
    assert f"s3://{BUCKET}/branch has its 0 rounds already" in branch.stderr
    origin = json.loads(ObjectStore(f"s3://{BUCKET}/branch").read("run.json") or b"")["branch"]
    assert origin == {"run": URL, "round": 0}


def test_a_second_driver_is_refused_before_any_work(config: Path, cache: Path, tmp_path: Path) -> None:
    """While one process works on a run, another one is refused with its name, and leaves nothing behind."""
    url = f"s3://{BUCKET}/busy"
    with leased(opened(url), tmp_path, say=lambda sentence: None):
        refused = called("evolve", config, "--run-dir", url)
    assert refused.returncode == 2
    assert f"error: {url}: only one process may write here at a time: process " in refused.stderr
    assert len(ObjectStore(url).names()) == 1
    assert not list(cache.rglob("run.json"))


def test_places_that_cannot_be_used_are_refused_before_any_work(
    config: Path, server: LoopbackStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence for a missing bucket, package, protocol, credential and server, and for foreign objects; nothing is written."""

    def refusal(url: str) -> str:
        done = called("evolve", config, "--run-dir", url)
        assert done.returncode == 2
        (sentence,) = done.stderr.splitlines()
        return sentence

    checked = "must be a place in an object store that answers"
    assert refusal("s3://nowhere/run") == (
        f"error: s3://nowhere/run: {checked}: The specified bucket does not exist -- check the name, the credentials and the endpoint"
    )
    assert "must begin with a protocol that fsspec has: Protocol not known: zz -- use s3:// or gs://" in refusal("zz://bucket/run")
    assert "s3://: must name a bucket and a place in it: got '' -- write s3://BUCKET/RUN" in refusal("s3://")
    assert "must name a bucket and a place in it: got 'runs/..'" in refusal("s3://runs/..")
    ObjectStore(f"s3://{BUCKET}/foreign").write("thesis.pdf", b"")
    assert "must be empty or a stepladder run: it holds other objects -- choose another --run-dir" in refusal(f"s3://{BUCKET}/foreign")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gcsfs", None)
        assert "needs the package gcsfs: it is not installed -- pip install 'stepladder[remote]'" in refusal("gs://bucket/run")
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(cache))
        patch.setenv("AWS_CONFIG_FILE", str(cache))
        assert f"{checked}: Unable to locate credentials" in refusal(f"s3://{BUCKET}/secret")
    server.fall_silent()
    assert f"{checked}: Could not connect to the endpoint URL" in refusal(f"s3://{BUCKET}/silent")
    server.answer()
    assert not cache.exists()


def test_reading_a_place_without_a_run_is_refused(cache: Path) -> None:
    """As for a directory."""
    with pytest.raises(CheckpointError, match="must be a run: there is none"):
        find_run(f"s3://{BUCKET}/nothing")
    done = called("report", f"s3://{BUCKET}/nothing")
    assert done.returncode == 2
    assert object_store.is_url(URL) and not object_store.is_url("runs/a") and not object_store.is_url(Path("s3:/x"))
