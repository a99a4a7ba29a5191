"""What the simulation of ``benchmarks.scale`` takes for granted, measured on this machine.

python -m benchmarks.scale_measure scheduling          seconds of a Ray driver for each shard
python -m benchmarks.scale_measure memory              memory of a driver with 100,000 shards of a million problems
python -m benchmarks.scale_measure listing             listing the shards of 1,000,000 trees, and counting their rows
python -m benchmarks.scale_measure agree RUN [TWO]     the simulation beside two Ray workers that wait as long as the shards of RUN took,
                                                       and beside TWO, the same run with two workers
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.scale import Cluster, measured_shards, simulate
from stepladder.data.store import TREES, write_trees
from stepladder.loops.config.run import RayConfig
from stepladder.loops.runs.directory import RunDir, load_run
from stepladder.loops.runs.ray_cluster import connected, measured_room
from stepladder.loops.runs.ray_workers import RayWorkers, ray_workers
from stepladder.loops.runs.stage_times import EVENTS_FILE, stage_times
from stepladder.loops.runs.workers import Task
from stepladder.terminal import echo
from stepladder.types import LabelledProblem, Problem, Provenance, TreeRecord

PROBLEMS, SHARDS, TREES_LISTED = 1_000_000, 100_000, 1_000_000


def nothing(*, problems: list[LabelledProblem]) -> int:
    """Do the work of a shard without any."""
    return len(problems)


def made_tree(name: str) -> TreeRecord:
    """Return a tree of a root and one step."""
    return TreeRecord(
        problem_id=name,
        question=f"question {name}",
        prompt_ids=[1, 2, 3],
        method="mcts",
        parents=[-1, 0],
        depths=[0, 1],
        token_ids=[[], [4, 5]],
        logps=[[], [-0.5, -0.5]],
        texts=["", "step"],
        priors=[1.0, 1.0],
        scores=[None, None],
        visits=[1, 1],
        values=[None, 1.0],
        stop_reasons=["step", "end"],
        answers=[None, "a"],
        outcomes=[None, 1.0],
        generated_tokens=2,
        policy_calls=1,
        scored_tokens=0,
        num_simulations=1,
        provenance=Provenance(round=1, policy_version=0, scorer_version=None, seed=0, config_hash="c" * 16, renderer_hash="r"),
    )


def wait(*, seconds: float) -> int:
    """Take as long as a measured shard; return the id of this process."""
    time.sleep(seconds)
    return os.getpid()


def made_problems(count: int) -> list[LabelledProblem]:
    """Return problems with questions of about 200 characters."""
    return [LabelledProblem(problem=Problem(id=f"p-{i}", question=f"{i} " + "word " * 40), answer=str(i)) for i in range(count)]


@contextmanager
def two_workers() -> Iterator[RayWorkers]:
    """Yield two workers that have started."""
    with connected(RayConfig(), num_cpus=2, say=print):
        room = measured_room(1, 0)
        with ray_workers(2, room=room, threads=1, retries=2, say=echo, check_node=lambda node: None) as pool:
            while len(set(pool.run([Task.of(wait, seconds=1.0)] * 2, on_progress=lambda progress: None))) < 2:
                continue
            yield pool


def scheduling(count: int = 2_000) -> None:
    """Print the time of a driver for a shard of 64 problems that does nothing."""
    with two_workers() as pool:
        tasks, begin, processor = [Task.of(nothing, problems=made_problems(64))] * count, time.perf_counter(), time.process_time()
        pool.run(tasks, on_progress=lambda progress: None)
        wall, processor = time.perf_counter() - begin, time.process_time() - processor
    echo(f"{count} shards: {1000 * wall / count:.2f} ms each on two workers, {1000 * processor / count:.2f} ms of the driver's processor")


def memory() -> None:
    """Print the memory that the tasks of 100,000 shards take in the driver."""
    before, begin = _resident(), time.perf_counter()
    problems = made_problems(PROBLEMS)
    loaded = _resident()
    size = PROBLEMS // SHARDS
    tasks = [Task.of(nothing, problems=problems[number * size : (number + 1) * size]) for number in range(SHARDS)]
    seconds, after = time.perf_counter() - begin, _resident()
    taken = f"{_mb(loaded - before)} for the problems, {_mb(after - loaded)} for the tasks"
    echo(f"{len(tasks):,} shards of {PROBLEMS:,} problems: {taken}, made in {seconds:.1f} s")


def listing() -> None:
    """Print the time that a driver takes to find the shards of a million trees, and to count their rows."""
    folder = Path(tempfile.mkdtemp(prefix="stepladder-scale-"))
    try:
        run, size = RunDir(root=folder), 64
        first = run.shard(1, TREES.name, 0)
        write_trees(first, [made_tree(f"p-{i}") for i in range(size)])
        paths = [run.shard(1, TREES.name, number) for number in range(TREES_LISTED // size)]
        for path in paths[1:]:
            os.link(first, path)
        begin = time.perf_counter()
        missing = [path for path in paths if not path.exists()]
        looked, listed = time.perf_counter(), run.shards(TREES.name)
        found = time.perf_counter()
        rows = sum(pq.read_metadata(path).num_rows for path in listed)
        end = time.perf_counter()
    finally:
        shutil.rmtree(folder)
    assert not missing and rows == TREES_LISTED
    echo(
        f"{len(listed):,} shards of {rows:,} trees: {looked - begin:.2f} s to look for missing ones, {found - looked:.2f} s to list, "
        f"{end - found:.2f} s to read the number of rows of each"
    )


def agree(run: Path, two: Path | None, *, number: int, seconds: float = 40.0) -> None:
    """Print simulated and measured times of two workers.

    Args:
        run: A run of one worker.
        two: The same run with two workers; None leaves it out.
        number: The round.
        seconds: Time that all shards together are stretched or shortened to, when workers wait in their place.
    """
    shards = [shard.seconds for shard in measured_shards(load_run(run), number)]
    factor = seconds / sum(shards)
    waits = [shard * factor for shard in shards]
    with two_workers() as pool:
        begin = time.perf_counter()
        pool.run([Task.of(wait, seconds=each) for each in waits], on_progress=lambda progress: None)
        measured = time.perf_counter() - begin
    _compare("workers that wait", simulate(waits, Cluster(workers=2)).makespan, measured)
    if two is not None:
        ours, theirs = (stage_times(path / EVENTS_FILE).seconds[number]["search"] for path in (run, two))
        # What the first shard took beyond the others is the loading of models, which every worker does.
        loading = ours - sum(shards)
        predicted = simulate(shards, Cluster(workers=2, start_s=loading)).makespan
        _compare(f"search of round {number} (one worker: {ours:.1f} s)", predicted, theirs)


def _compare(name: str, simulated: float, measured: float) -> None:
    echo(f"{name}: simulated {simulated:.2f} s, measured {measured:.2f} s ({100 * (measured / simulated - 1):+.1f}%)")


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def main() -> None:
    """Measure what the command line asks for, and say how busy the machine is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["scheduling", "memory", "listing", "agree"])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("two", type=Path, nargs="?")
    parser.add_argument("--round", type=int, default=1)
    args = parser.parse_args()
    echo(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if args.what == "agree":
        agree(args.run, args.two, number=args.round)
    else:
        {"scheduling": scheduling, "memory": memory, "listing": listing}[args.what]()


if __name__ == "__main__":
    main()
