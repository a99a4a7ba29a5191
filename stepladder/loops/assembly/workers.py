"""Opens the workers of a configuration: processes of this machine, or actors on a Ray cluster."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stepladder.errors import ConfigError
from stepladder.loops.assembly.devices import gpus_per_worker, num_workers
from stepladder.loops.config.run import Config
from stepladder.loops.runs.inputs import input_paths
from stepladder.loops.runs.machine import num_cores
from stepladder.loops.runs.ray_cluster import Room, check_nodes, connected, measured_room
from stepladder.loops.runs.ray_training import gpus_of_training
from stepladder.loops.runs.ray_workers import ray_workers
from stepladder.loops.runs.workers import Workers, worker_pool


@contextmanager
def open_workers(
    config: Config, root: Path | None, *, say: Callable[[str], None], inputs: Mapping[str, Path] | None = None
) -> Iterator[Workers]:
    """Open the workers of ``run.cluster`` for as long as the block runs.

    Args:
        config: The configuration.
        root: The directory that the workers write to; None if they write nothing.
        say: Takes sentences about a slow start, and lost and slow workers.
        inputs: Files and directories that the workers read, by their names in messages; None is those of the configuration.

    Raises:
        ConfigError, CheckpointError: If there are too few GPUs, or the cluster cannot be used, as for ``measured_room`` and
            ``check_nodes``.
    """
    if config.run.cluster == "local":
        with worker_pool(num_workers(config), threads=config.run.threads, gpus_each=gpus_per_worker(config)) as pool:
            yield pool
    else:
        paths = input_paths(config) if inputs is None else inputs
        absolute = {name: path.absolute() for name, path in paths.items()}
        with _on_ray(config, None if root is None else root.absolute(), say=say, inputs=absolute) as pool:
            yield pool


def wants_workers(config: Config) -> bool:
    """Say whether work that this process can do alone is to be done by workers: they are counted, or a cluster is named."""
    section = config.policy.vllm
    return config.run.cluster != "local" or config.run.workers > 0 or (config.policy.backend == "vllm" and section.data_parallel > 1)


def existing_paths(named: Mapping[str, str | None]) -> dict[str, Path]:
    """Return those of some models that are directories or files of this machine, by their names; the others are ids of the hub."""
    return {name: Path(source) for name, source in named.items() if source is not None and Path(source).exists()}


@contextmanager
def _on_ray(config: Config, root: Path | None, *, say: Callable[[str], None], inputs: Mapping[str, Path]) -> Iterator[Workers]:
    run = config.run
    cpus = run.threads if run.ray.cpus is None else run.ray.cpus
    num_cpus = max(run.workers, config.training.num_processes) * cpus
    with connected(run.ray, num_cpus=max(num_cores(), math.ceil(num_cpus)), say=say) as is_own:
        room = measured_room(cpus, gpus_of_worker(config))
        if not is_own:
            check_nodes(list(room.workers), root, inputs)
        check_training_room(config, room)
        if run.workers > room.num_workers:
            say(f"run.workers: {run.workers} are wanted, and the Ray cluster has room for {room.num_workers}; the others wait for nodes")
        workers = ray_workers(
            run.workers or room.num_workers,
            room=room,
            threads=run.threads,
            retries=run.ray.retries,
            say=say,
            check_node=lambda node: check_nodes([node], root, inputs),
        )
        with workers as pool:
            yield pool


def check_training_room(config: Config, room: Room) -> None:
    """Check that the connected cluster has room for the processes of trainings.

    Raises:
        ConfigError: If it has not.
    """
    wanted = config.training.num_processes
    found = measured_room(room.cpus, gpus_of_training(room.gpus)).num_workers if config.training.launched else wanted
    if wanted > found:
        raise ConfigError(
            f"training.num_processes: must be at most the number of processes for which the Ray cluster has room: got {wanted} > {found} "
            "-- lower it, or run.ray.cpus, or start other nodes"
        )


def gpus_of_worker(config: Config) -> float | None:
    """Return the GPUs of a Ray worker; None leaves the choice to the cluster.

    A worker lies on one node, and Ray shows it these GPUs alone. vLLM spreads the parts of a model over them in processes of its own.
    """
    if config.run.ray.gpus is not None:
        return config.run.ray.gpus
    if config.policy.device == "cpu":
        return 0
    return config.policy.vllm.tensor_parallel if config.policy.backend == "vllm" else None


def workers_words(config: Config) -> str:
    """Return the number and the place of the workers, for people."""
    if config.run.cluster == "local" or config.run.workers:
        count = num_workers(config)
        words = f"{count} worker{'' if count == 1 else 's'}"
    else:
        words = "as many workers as have room"
    if config.run.cluster == "local":
        return words
    return f"{words} on Ray ({config.run.ray.address or 'this machine'})"
