"""Runs on a Ray cluster of this machine: the bytes of a run in one process, whatever dies; and what is refused before any work."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stepladder.commands import evolve as evolve_command
from stepladder.commands import prm_scoring, solve_search
from stepladder.commands.evolve import evolve
from stepladder.errors import BackendError, CheckpointError, ConfigError, DataFormatError
from stepladder.loops.assembly.checks import check_cluster
from stepladder.loops.assembly.workers import check_training_room, gpus_of_worker
from stepladder.loops.config.load import load_config
from stepladder.loops.config.run import Config, RayConfig
from stepladder.loops.config.training import TrainingConfig
from stepladder.loops.runs import ray_cluster
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.ray_cluster import Room, check_nodes, check_ray, connected, measured_room
from stepladder.loops.runs.ray_workers import RayWorkers, ray_workers
from stepladder.loops.runs.workers import Progress, Task, Workers, prepare_worker, report_progress
from tests.inline import InlinePool
from tests.integration.test_evolve import data_digests
from tests.launched import fail_with_environment, train_with_stops
from tests.models import save_tiny_policy
from tests.runs import write_tiny_config
from tests.spread_work import Place
from tests.worker_tasks import check_ahead, fail, square, visible_gpus, where

# Ray is imported where a cluster starts, not here: it reads its settings when it is imported.
pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'stepladder[ray]'"),
    # Nobody asks Ray's handles about the processes of a failed start, which are killed otherwise.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]

# Grades as the rule 'exact' does, and kills its process once for every file 'armed' that it finds beside itself.
_LETHAL = """
import os, signal
from pathlib import Path
from stepladder.types import Verdict

class Lethal:
    def __init__(self, references):
        self.references = references

    def grade(self, answers):
        try:
            Path(__file__).with_name("armed").unlink()
        except FileNotFoundError:
            return [Verdict(correct=answer == self.references[name], reason="compared") for name, answer in answers]
        os.kill(os.getpid(), signal.SIGKILL)

def lethal(problems):
    return Lethal({labelled.problem.id: labelled.answer for labelled in problems})
"""


class Said:
    """Collects what is said."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def __call__(self, sentence: str) -> None:
        self.sentences.append(sentence)


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    """A cluster of this machine, which says that it has four GPUs."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ray_cluster, "_initialised", partial(ray_cluster._initialised, num_gpus=4))
        with connected(RayConfig(), num_cpus=2, say=print):
            yield measured_room(1, 0)


@pytest.fixture(scope="module")
def said() -> Said:
    return Said()


@pytest.fixture(scope="module")
def pool(room: Room, said: Said) -> Iterator[RayWorkers]:
    """Two workers of that cluster, which all tests share since each imports torch."""
    workers = RayWorkers(2, room=room, threads=1, retries=1, say=said, check_node=lambda node: None)
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round whose verifier can kill its worker."""
    folder = tmp_path_factory.mktemp("ray")
    path = write_tiny_config(folder, rounds=1, num_train=12)
    (folder / "lethal.py").write_text(_LETHAL)
    path.write_text(path.read_text().replace('rule = "exact"', 'verifier = "lethal.py:lethal"'))
    return path


def run_on(workers: Workers, config: Path, name: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Path:
    """Run, or continue, a configuration on given workers; return the run's directory."""

    @contextmanager
    def given(*_: Any, **__: Any) -> Iterator[Workers]:
        yield workers

    monkeypatch.setattr(evolve_command, "open_workers", given)
    evolve(config, config.parent / name, **settings)
    return config.parent / name


@pytest.fixture(scope="module")
def reference(config: Path) -> dict[str, str]:
    """Digests of a run that one process made."""
    prepare_worker(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        return data_digests(run_on(InlinePool(), config, "alone", monkeypatch))


@pytest.mark.slow
def test_cluster_listens_on_loopback_only(room: Room) -> None:
    """No process of the cluster listens on an address that others reach, and no token is left in the home directory."""
    import psutil

    ports = [port for child in psutil.Process().children(recursive=True) for port in child.net_connections("tcp")]
    listening = [port.laddr.ip for port in ports if port.status == psutil.CONN_LISTEN]
    assert len(listening) > 2
    assert {address for address in listening if address not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")} == set()


@pytest.mark.slow
def test_workers_see_gpus_of_their_own(room: Room, said: Said, tmp_path: Path) -> None:
    """Two workers of two GPUs each, as vLLM takes them for a model in two parts, see the first pair and the second one."""
    pairs = measured_room(1, 2)
    assert list(pairs.workers.values()) == [2]
    with ray_workers(2, room=pairs, threads=1, retries=0, say=said, check_node=lambda node: None) as workers:
        tasks = [Task.of(visible_gpus, meeting=tmp_path, count=2)] * 2
        assert sorted(map(str, workers.run(tasks, on_progress=lambda progress: None))) == ["0,1", "2,3"]


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ({"backend": "vllm", "vllm": {"tensor_parallel": 2}}, 2),
        ({"backend": "vllm"}, 1),
        ({"device": "cpu"}, 0),
        ({}, None),
    ],
)
def test_gpus_of_a_worker_are_those_of_its_model(settings: dict[str, Any], gpus: float | None) -> None:
    """One for each part of a model; None is one if the cluster has any. ``run.ray.gpus`` decides if it is given."""
    plain = {"problems": {"train": "a", "test": "b"}, "policy": {"model": "m", **settings}}
    assert gpus_of_worker(Config.model_validate(plain)) == gpus
    assert gpus_of_worker(Config.model_validate({**plain, "run": {"ray": {"gpus": 0.5}}})) == 0.5


def test_too_few_gpus_for_the_parts_of_a_model_are_refused() -> None:
    """Before any work, and before Ray is asked; shares above one are no number of GPUs."""
    plain = {"problems": {"train": "a", "test": "b"}, "policy": {"model": "m", "backend": "vllm", "vllm": {"tensor_parallel": 2}}}
    with pytest.raises(ConfigError, match=r"run\.ray\.gpus: a worker must have as many GPUs .* = 2\): got 1 -- leave it out"):
        check_cluster(Config.model_validate({**plain, "run": {"cluster": "ray", "ray": {"gpus": 1}}}))
    with pytest.raises(ValueError, match=r"gpus: above 1 it must be a whole number: got 1\.5"):
        RayConfig(gpus=1.5)


@pytest.mark.slow
def test_relative_paths_count_from_the_driver(pool: RayWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start in the directory of the command, which need not be that in which the cluster was started."""
    pool.rest()
    monkeypatch.chdir(tmp_path)
    assert pool.run([Task.of(where)] * 2, on_progress=lambda progress: None) == [str(tmp_path)] * 2


def die() -> None:
    report_progress(Progress(stage="deaths", items=1))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_results_come_in_order_with_progress(pool: RayWorkers) -> None:
    """Results stand in the order of the tasks, and every report arrives."""
    seen: list[Progress] = []
    assert pool.run([Task.of(square, number=n) for n in range(5)], on_progress=seen.append) == [0, 1, 4, 9, 16]
    assert sum(progress.items for progress in seen) == 5
    assert sum(progress.tokens for progress in seen) == 10


@pytest.mark.slow
def test_failures_keep_their_type(pool: RayWorkers) -> None:
    """An error of a task is raised as it is, with the place in the worker as a note."""
    with pytest.raises(DataFormatError, match=r"^file\.jsonl:3: wrong") as caught:
        pool.run([Task.of(fail, message="file.jsonl:3: wrong")], on_progress=lambda progress: None)
    assert "in fail" in caught.value.__notes__[0]


@pytest.mark.slow
def test_two_workers_give_the_same_bytes(
    pool: RayWorkers, config: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two Ray workers write what one process writes."""
    assert data_digests(run_on(pool, config, "two", monkeypatch)) == reference


@pytest.mark.slow
def test_answers_and_scores_of_two_workers_are_those_of_one_process(
    pool: RayWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``solve --input``, ``prm score`` and ``prm eval`` write the same bytes; nothing is kept beside a finished output."""
    place = Place(tmp_path)
    for workers, name in ((InlinePool(), "one"), (pool, "ray")):

        @contextmanager
        def given(*_: Any, workers: Workers = workers, **__: Any) -> Iterator[Workers]:
            yield workers

        for module in (solve_search, prm_scoring):
            monkeypatch.setattr(module, "open_workers", given)
        for call in (place.solve, place.score, place.evaluate):
            done = call(f"{name}.{call.__name__}", "--set", "run.workers=2")
            assert done.exit_code == 0, done.output
    for command in ("solve", "score", "evaluate"):
        assert place.read(f"ray.{command}") == place.read(f"one.{command}")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
def test_idle_workers_do_tasks_of_the_next_round(pool: RayWorkers, tmp_path: Path) -> None:
    """As in processes of this machine."""
    check_ahead(pool, tmp_path)


@pytest.mark.slow
def test_overlapping_rounds_give_the_same_bytes(pool: RayWorkers, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two Ray workers that search while the warm-up is measured write what one process writes."""
    overrides = ["run.overlap=true"]
    alone = run_on(InlinePool(), config, "overlap alone", monkeypatch, overrides=overrides)
    two = run_on(pool, config, "overlap two", monkeypatch, overrides=overrides)
    assert data_digests(two) == data_digests(alone)
    assert '"event": "ahead", "round": 1' in (two / "events.jsonl").read_text()


class StoppedDisplay(ProgressDisplay):
    """Presses Ctrl-C when a stage of a round begins."""

    def enter(self, number: int, stage: str) -> None:
        if (number, stage) == (1, "train policy"):
            raise KeyboardInterrupt


@pytest.mark.slow
def test_killed_worker_and_changed_cluster_give_the_same_bytes(
    pool: RayWorkers, said: Said, config: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker dies in the middle of a shard and is replaced; the run is stopped, and continued on this machine: nothing differs."""
    (config.parent / "armed").touch()
    with pytest.raises(KeyboardInterrupt):
        run_on(pool, config, "killed", monkeypatch, display=StoppedDisplay())
    assert not (config.parent / "armed").exists()
    assert len(said.sentences) == 1
    assert "another one begins again" in said.sentences[0]
    assert data_digests(run_on(InlinePool(), config, "killed", monkeypatch)) == reference


@pytest.mark.slow
def test_deadly_task_ends_the_run_with_a_sentence(pool: RayWorkers) -> None:
    """A task that kills two workers in a row, with one retry, is reported; what it did before it died does not count."""
    seen: list[Progress] = []
    with pytest.raises(BackendError, match=r"task 1 of 1: 2 workers died of it, the last on 127\.0\.0\.1: .* -- if memory is short"):
        pool.run([Task.of(die)], on_progress=seen.append)
    assert sum(progress.items for progress in seen) == 0


@pytest.mark.slow
def test_nodes_are_checked(room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node must see the run directory and the inputs, and have the same software; the probe leaves nothing behind."""
    nodes = list(room.workers)
    check_nodes(nodes, tmp_path, {"policy.model": tmp_path})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match=r"^policy\.model: every node of the cluster must see .*gone: node 127\.0\.0\.1 does not"):
        check_nodes(nodes, tmp_path, {"policy.model": tmp_path / "gone"})
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="every node of the cluster must see it and write to it"):
        patch.setattr(ray_cluster, "atomic_write_text", lambda path, text: None)
        check_nodes(nodes, tmp_path, {})
    ours = ray_cluster.software()
    monkeypatch.setattr(ray_cluster, "software", lambda: type(ours)(stepladder="0.0", python=ours.python, packages={}, git_revision=None))
    with pytest.raises(
        ConfigError, match=r"^run\.cluster: node 127\.0\.0\.1 must have the software of this process: stepladder .* != 0\.0"
    ):
        check_nodes(nodes, tmp_path, {})


@pytest.mark.slow
def test_training_on_two_processes_survives_a_death(pool: RayWorkers, tmp_path: Path) -> None:
    """Ray Train's two processes learn what one does, to rounding, although one of them dies after the fifth of six updates."""
    start, armed, seen = tmp_path / "start", tmp_path / "armed", list[Progress]()
    save_tiny_policy(start)
    alone = train_with_stops(start=start, out=tmp_path / "alone", armed=armed)
    armed.touch()
    pool.rest()
    task = Task.of(train_with_stops, start=start, out=tmp_path / "two", armed=armed)
    two = pool.train(task, TrainingConfig(num_processes=2), on_progress=seen.append)
    assert not armed.exists()
    assert (two.updates, two.rows) == (alone.updates, alone.rows) == (6, 7)
    figures = ("first_loss", "last_loss", "mean_loss")
    assert [getattr(two, name) for name in figures] == pytest.approx([getattr(alone, name) for name in figures], abs=2e-6)
    # Four updates before the death, and from the checkpoint after the fourth the other two.
    assert sum(progress.items for progress in seen) == 6
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("alone", "two")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])
    assert {path.name for path in tmp_path.iterdir()} == {"start", "alone", "two"}


@pytest.mark.slow
def test_trainings_fail_as_they_are_and_have_accelerates_settings(room: Room, pool: RayWorkers, tmp_path: Path) -> None:
    """An error keeps its type and place. A file of accelerate reaches the process as under its own command, and paths stay."""
    section = TrainingConfig(accelerate_config=str(Path(__file__).parents[2] / "configs" / "accelerate" / "fsdp.yaml"))
    names = ["ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_STATE_DICT_TYPE", "WORLD_SIZE"]
    pool.rest()
    once = RayWorkers(1, room=room, threads=1, retries=0, say=print, check_node=lambda node: None)
    with pytest.raises(DataFormatError, match=f"^true 2 SHARDED_STATE_DICT 1 {re.escape(os.getcwd())}") as caught:
        once.train(Task.of(fail_with_environment, out=tmp_path / "out", names=names), section, on_progress=lambda progress: None)
    assert "in fail_with_environment" in caught.value.__notes__[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_trainings_without_room_are_refused(room: Room) -> None:
    """Three processes on two CPUs would wait for ever."""
    settings = ["problems.train=a", "problems.test=b", "policy.model=m", "policy.device=cpu", "run.cluster=ray", "training.num_processes=3"]
    check_training_room(load_config(None, [*settings[:-1], "training.num_processes=2"]), room)
    with pytest.raises(ConfigError, match=r"^training\.num_processes: must be at most .* has room: got 3 > 2 -- lower it"):
        check_training_room(load_config(None, settings), room)


@pytest.mark.slow
def test_room_is_measured(room: Room) -> None:
    """Two CPUs hold two workers of one, and four GPUs eight of a half; a worker that no node can hold is refused."""
    assert list(room.workers.values()) == [2]
    assert list(measured_room(0.1, 0.5).workers.values()) == [8]
    with pytest.raises(ConfigError, match="a worker of 1 CPUs and 5 GPUs: the largest has 2 and 4"):
        measured_room(1, 5)


class StandInForRay:
    """Stands in for Ray: some starts fail after they have begun processes, as Ray's do."""

    def __init__(self, failures: int, reason: str) -> None:
        self.failures, self.reason = failures, reason
        self.folders: list[Path] = []
        self.processes: list[subprocess.Popen] = []

    def is_initialized(self) -> bool:
        return False

    def init(self, *, _temp_dir: str, **_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.folders.append(Path(_temp_dir))
        self.processes.append(subprocess.Popen(["sh", "-c", "sleep 300; true"]))
        if len(self.folders) <= self.failures:
            raise Exception(f"{self.reason}. More.")

    def shutdown(self) -> None:
        pass

    def num_left(self) -> int:
        """Return the number of processes and directories that are left."""
        return sum(process.poll() is None for process in self.processes) + sum(folder.exists() for folder in self.folders)


_TIMED_OUT = "The current node timed out during startup"


@pytest.mark.parametrize(
    ("failures", "reason", "starts", "works"),
    [(0, _TIMED_OUT, 1, True), (2, _TIMED_OUT, 3, True), (3, _TIMED_OUT, 3, False), (1, "No space left", 1, False)],
)
def test_start_that_takes_too_long_is_repeated(
    monkeypatch: pytest.MonkeyPatch, failures: int, reason: str, starts: int, works: bool
) -> None:
    """Twice at most, and for no other failure. Nothing of a start is left, and SIGTERM keeps its handler."""
    stand_in, said, handler = StandInForRay(failures, reason), Said(), signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    refused = pytest.raises(BackendError, match=rf"^run\.cluster: Ray must start or answer: {reason}\. More -- run the same command")
    with nullcontext() if works else refused, connected(RayConfig(), num_cpus=2, say=said):
        assert stand_in.num_left() == 2
        assert signal.getsignal(signal.SIGTERM) == handler
    assert (len(stand_in.folders), stand_in.num_left()) == (starts, 0)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert len(said.sentences) == starts - 1


def test_missing_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package there is one sentence that says what to install."""
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'ray' needs the package ray: it is not installed -- pip install 'stepladder\[ray\]'"):
        check_ray(RayConfig())


@pytest.mark.slow
def test_silent_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens, or somebody listens who is no cluster: each is one sentence within a bounded time."""
    monkeypatch.setattr(ray_cluster, "_CONNECT_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"'127\.0\.0\.1:{port}' must be a Ray cluster that answers: it did not within 3 s"):
            check_ray(RayConfig(address=f"127.0.0.1:{port}"))
    with pytest.raises(ConfigError, match="must be a Ray cluster that answers: Connection refused -- start one"):
        check_ray(RayConfig(address=f"127.0.0.1:{port}"))
