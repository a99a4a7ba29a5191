"""A Ray cluster for a run: a given one, or one on the loopback address of this machine; and the checks of its nodes before any work.

Ray is imported in functions here and in ``ray_workers``, and only when a run asks for it.
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from stepladder.errors import BackendError, CheckpointError, ConfigError
from stepladder.files import atomic_write_text
from stepladder.locks import locked
from stepladder.loops.config.run import RayConfig, flatten_keys
from stepladder.loops.runs.directory import software
from stepladder.loops.runs.run_places import CACHE_VARIABLE
from stepladder.loops.runs.store_copy import url_of

_TCP_S, _CONNECT_S, _NODE_S = 5.0, 60.0, 120.0
"""Seconds to wait for an address, for the cluster there, and for the answer of every node."""
_STARTS, _SLOW_START = 3, "timed out during startup"
"""Attempts to start a cluster, and what Ray says when its own limit of 30 s has passed, as on a busy machine."""
_END_S = 10.0
"""Seconds within which killed processes end."""
_STORE_BYTES = 100 << 20
"""Ray's memory for large objects. Shards travel through files, so that little is needed."""
_FOLDER, _LOCK = "stepladder-ray-", ".lock"
_LONGEST_FOLDER = 42
"""Characters of a directory below which Ray's sockets have names that the system takes."""
_NEW_S = 60.0
"""Age in seconds below which a directory may belong to a process that has not locked it yet."""
_SHARED = "put it on storage that all nodes share"
_PATIENT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600"}
"""Ray Train ends processes that need more than a minute to start, which many of them do on few cores, and starts them again without end."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}
"""No report to anybody, and no lines of Ray on standard output, which is for results."""
_CONNECT = "import logging, ray, sys; ray.init(address=sys.argv[1], logging_level=logging.ERROR, log_to_driver=False)"


def check_ray(section: RayConfig) -> None:
    """Check that Ray is installed, and that a given address answers within about a minute.

    Raises:
        ConfigError: If not.
    """
    if find_spec("ray") is None:
        raise ConfigError("run.cluster: 'ray' needs the package ray: it is not installed -- pip install 'stepladder[ray]'")
    if section.address:
        _check_answer(section.address)


def _check_answer(address: str) -> None:
    """Connect from another process, because Ray waits for minutes and may end the process that asks."""
    place = f"run.ray.address: {address!r} must be a Ray cluster that answers"
    remedy = "start one with 'ray start --head', or leave run.ray.address empty for a cluster on this machine"
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_TCP_S).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(f"{place}: {getattr(error, 'strerror', None) or error} -- {remedy}") from None
    try:
        command = [sys.executable, "-c", _CONNECT, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CONNECT_S, env={**os.environ, **_QUIET})
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{place}: it did not within {_CONNECT_S:.0f} s -- {remedy}") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
        raise ConfigError(f"{place}: {lines[-1].rstrip('.')} -- {remedy}")


@contextmanager
def connected(section: RayConfig, *, num_cpus: int, say: Callable[[str], None]) -> Iterator[bool]:
    """Connect this process to Ray while the block runs; a process that is connected already stays connected.

    A cluster that is started here listens on the loopback address only, takes a token that this process makes up, and ends with the block,
    or when this process is killed.

    Args:
        section: Which cluster.
        num_cpus: CPUs of a cluster that is started here.
        say: Takes a sentence when a start took too long and is repeated.

    Yields:
        Whether the cluster was started here.

    Raises:
        BackendError: If Ray does not start or connect.
    """
    own = not section.address
    patient = {name: os.environ.get(name, seconds) for name, seconds in _PATIENT.items()}
    with _environment({**_QUIET, **patient, **(_loopback() if own else {})}):
        import ray

        if ray.is_initialized():
            yield False
        elif own:
            with _started(num_cpus, say):
                yield True
        else:
            with _initialised(address=section.address):
                yield False


@cache
def _loopback() -> dict[str, str]:
    # Ray's switch against firewall windows makes all parts of a cluster listen on the loopback address; Ray reads it when it is imported.
    # Without a given token, Ray writes one to the home directory. It keeps the first one for as long as the process lives, and so do we.
    return {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables while the block runs; what Ray itself sets is taken back, too."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


def _started(num_cpus: int, say: Callable[[str], None]) -> ExitStack:
    """Start a cluster, again if Ray's limit was too short; the returned context ends it."""
    for left in reversed(range(_STARTS)):
        try:
            return _start(num_cpus)
        except BackendError as error:
            if not left or _SLOW_START not in str(error):
                raise
            say("run.cluster: Ray did not start within its 30 s, as happens on a busy machine; it is started again")
    raise AssertionError("the last start returns or raises")


def _start(num_cpus: int) -> ExitStack:
    with ExitStack() as stack:
        folder = stack.enter_context(_folder())
        options = {"include_dashboard": False, "object_store_memory": _STORE_BYTES, "_temp_dir": str(folder)}
        stack.enter_context(_initialised(address="local", num_cpus=num_cpus, _node_ip_address="127.0.0.1", **options))
        return stack.pop_all()


@contextmanager
def _initialised(**options: Any) -> Iterator[None]:
    import ray

    handler, here = signal.getsignal(signal.SIGTERM), psutil.Process()
    earlier, parts = set(here.children()), list[psutil.Process]()
    try:
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
        except Exception as error:
            # Ray raises bare exceptions here.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise BackendError(
                f"run.cluster: Ray must start or answer: {reason} -- run the same command again, or free the machine"
            ) from error
        finally:
            parts = [child for child in here.children() if child not in earlier]
            # Ray replaces the handler with one that ends the process at once.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
        yield
    finally:
        processes = list(_with_descendants(parts))
        ray.shutdown()
        _end(processes)


def _with_descendants(parts: Sequence[psutil.Process]) -> Iterator[psutil.Process]:
    for part in parts:
        yield part
        with suppress(psutil.NoSuchProcess):
            yield from part.children(recursive=True)


def _end(processes: Sequence[psutil.Process]) -> None:
    """End processes of Ray: it does not wait for them, and leaves them running after a start that failed. They write to its directory."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=_END_S)


@contextmanager
def _folder() -> Iterator[Path]:
    """Yield a directory for Ray's logs and sockets that is removed at the end. Remove those that killed processes left."""
    place = Path(tempfile.gettempdir())
    if len(str(place / _FOLDER)) + 8 > _LONGEST_FOLDER:
        place = Path("/tmp")
    for left in place.glob(f"{_FOLDER}*"):
        _remove_unused(left)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=place))
    try:
        with locked(folder / _LOCK, place=folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_unused(folder: Path) -> None:
    try:
        if time.time() - folder.stat().st_mtime > _NEW_S:
            with locked(folder / _LOCK, place=folder):
                shutil.rmtree(folder, ignore_errors=True)
    except (CheckpointError, OSError):
        # Another process uses it, or another user owns it.
        return


class Room(NamedTuple):
    """Where the workers of a cluster have room."""

    cpus: float
    """CPUs of each worker."""
    gpus: float
    """GPUs of each worker."""
    workers: dict[str, int]
    """Number of workers that each node can hold, by its id; nodes without room are left out."""

    @property
    def num_workers(self) -> int:
        """Number of workers that the cluster can hold."""
        return sum(self.workers.values())


def measured_room(cpus: float, gpus: float | None) -> Room:
    """Return where workers have room on the nodes that are alive.

    Args:
        cpus: CPUs of each worker, > 0.
        gpus: GPUs of each worker; None is 1, or 0 on a cluster without GPUs.

    Raises:
        ConfigError: If no node can hold one.
    """
    import ray

    resources = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    if gpus is None:
        gpus = float(any(found.get("GPU", 0) for found in resources.values()))
    wanted = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    # Shares such as 0.1 are not exact.
    fits = {node: min(int(found.get(name, 0) / amount + 1e-6) for name, amount in wanted.items()) for node, found in resources.items()}
    room = Room(cpus, gpus, {node: count for node, count in fits.items() if count})
    if not room.workers:
        largest = max((found.get("CPU", 0), found.get("GPU", 0)) for found in resources.values())
        raise ConfigError(
            f"run.ray: a node must have room for a worker of {cpus:g} CPUs and {gpus:g} GPUs: the largest has {largest[0]:g} and "
            f"{largest[1]:g} -- lower run.ray.cpus or run.ray.gpus, or start other nodes"
        )
    return room


def check_nodes(nodes: Sequence[str], root: Path | None, inputs: Mapping[str, Path]) -> None:
    """Check that nodes have the software of this process, and see the run directory and the inputs of the run.

    Args:
        nodes: Ids of the nodes.
        root: Absolute path of the run directory, which exists; None if the nodes write nothing.
        inputs: Absolute paths of the inputs by their settings' names.

    Raises:
        ConfigError: If a node does not answer, or has other versions.
        CheckpointError: If it cannot write to the directory, or misses an input.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with _probe(root) as probe:
        ask, paths = ray.remote(_question()), {name: str(path) for name, path in inputs.items()}
        answers = {
            node: ask.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(probe, paths)
            for node in nodes
        }
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        for node, answer in answers.items():
            place = f"run.cluster: node {addresses.get(node, node)}"
            try:
                found = ray.get(answer, timeout=_NODE_S)
            except RayError as error:
                reason = str(error).strip().splitlines()[-1].rstrip(".")
                raise ConfigError(
                    f"{place} must answer within {_NODE_S:.0f} s: {reason} -- restart Ray there, or remove the node"
                ) from None
            _check_node(place, found, root)


@contextmanager
def _probe(root: Path | None) -> Iterator[str | None]:
    """Yield the path of a file in a directory for as long as the block runs; None without a directory."""
    if root is None:
        yield None
        return
    probe = root / f".ray-{secrets.token_hex(8)}.tmp"
    atomic_write_text(probe, probe.name)
    try:
        yield str(probe)
    finally:
        probe.unlink(missing_ok=True)


class _Node(NamedTuple):
    """What a node found, as a plain tuple: it may have another stepladder."""

    software: dict[str, Any] | None
    """Versions; None without stepladder, or with one that cannot tell."""
    sees_run: bool
    """Whether it can read and write in the run directory."""
    missing: list[tuple[str, str]]
    """Names and paths of inputs that are not there."""


def _question() -> Callable[[str | None, dict[str, str]], tuple]:
    """Return the function that a node runs. As a nested function it travels whole, since the node may have another stepladder, or none."""

    def ask(probe: str | None, inputs: dict[str, str]) -> tuple:
        import os

        try:
            from dataclasses import asdict

            from stepladder.loops.runs.directory import software

            found = asdict(software())
        except (ImportError, AttributeError):
            found = None
        sees = probe is None or (os.path.exists(probe) and os.access(os.path.dirname(probe), os.W_OK))
        return found, sees, [(name, path) for name, path in inputs.items() if not os.path.exists(path)]

    return ask


def _check_node(place: str, found: tuple, root: Path | None) -> None:
    node, ours = _Node(*found), flatten_keys(asdict(software()))
    if node.software is None:
        raise ConfigError(f"{place} must have stepladder {ours['stepladder']}: it has none, or another one -- install it there")
    theirs = flatten_keys(node.software)
    differ = [
        f"{name.removeprefix('packages.')} {theirs.get(name)} != {ours.get(name)}"
        for name in ours | theirs
        if theirs.get(name) != ours.get(name)
    ]
    if differ:
        raise ConfigError(f"{place} must have the software of this process: {', '.join(differ)} -- install the same versions there")
    where = place.removeprefix("run.cluster: ")
    if not node.sees_run:
        assert root is not None, "without a directory there is nothing to see"
        remedy = _SHARED if url_of(root) is None else f"set {CACHE_VARIABLE} to a directory that all nodes share"
        raise CheckpointError(f"{root}: every node of the cluster must see it and write to it: {where} does not -- {remedy}")
    for name, path in node.missing:
        raise CheckpointError(f"{name}: every node of the cluster must see {path}: {where} does not -- {_SHARED}")
