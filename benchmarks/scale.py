"""A round on many GPUs, simulated from the shards of a measured run: makespan, utilisation, bytes, load of the driver, first bottleneck.

    python -m benchmarks.scale RUN [--picture docs/pictures/scale.svg]

prints the table of docs/scale.md and draws its picture. ``benchmarks.scale_measure`` measures what the simulation takes for granted.

RUN was made by one worker, so that the times at which its files were written say how long each shard took. A shard of a simulated cluster
takes the time of a measured one, drawn at random, times a factor that gives the mean of a GPU. A slow shard takes several times as long. A
worker fails at random moments; its shard is done again by the next idle worker. The driver hands out one shard at a time, and the storage
takes one after the other. Training follows the search, in one place.
"""

import argparse
import heapq
import json
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from stepladder.loops.runs.directory import RunDir, load_run
from stepladder.loops.runs.token_use import TokenUse, use_path
from stepladder.terminal import echo

HOUR = 3600.0


class Shard(NamedTuple):
    """A measured shard of trees."""

    seconds: float
    """Time of its worker."""
    tokens: int
    """Tokens of its trees, each once."""
    size: int
    """Bytes of its files."""


def measured_shards(run: RunDir, number: int) -> list[Shard]:
    """Return the shards of a round's search, in the order in which its only worker wrote them.

    The first one is left out: its time holds the loading of the models.
    """
    workers = {event["workers"] for event in _events(run) if event["event"] == "start"}
    assert workers == {1}, f"{run.root}: must be a run of one worker: got {workers} -- run it with --set run.workers=1"
    written = sorted((path.stat().st_mtime, path) for path in run.shards("trees", rounds=[number]))
    return [
        Shard(end - begin, TokenUse.load(use_path(path)).unique_tokens, path.stat().st_size + use_path(path).stat().st_size)
        for (begin, _), (end, path) in pairwise(written)
    ]


def _events(run: RunDir) -> list[dict]:
    return [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What the shards run on."""

    workers: int
    """Workers, >= 1."""
    start_s: float = 0.0
    """Seconds until a new worker can take a shard."""
    schedule_s: float = 0.0
    """Seconds of the driver for each shard; it does one at a time."""
    store_s: float = 0.0
    """Seconds of the shared storage for each shard; it does one at a time."""
    slow_share: float = 0.0
    """Share of the shards that are slow."""
    slow_factor: float = 1.0
    """How many times as long these take."""
    failure_s: float = math.inf
    """Mean seconds of work between two failures of one worker."""
    notice_s: float = 0.0
    """Seconds until a failure is noticed."""


class Outcome(NamedTuple):
    """Result of a simulation."""

    makespan: float
    """Seconds until the last shard is written."""
    useful: float
    """Seconds of work that counted, over all workers."""
    losses: int
    """Shards that were lost and done again."""
    tail: float
    """Seconds from the moment at which the first worker found no more work."""


_FREE, _END, _LOST = range(3)


class _Simulation:
    """Events in the order of their times; workers are numbers."""

    def __init__(self, seconds: Sequence[float], cluster: Cluster, seed: int) -> None:
        self.cluster, self.rng = cluster, random.Random(seed)
        self.open = deque(self._with_slow(seconds))
        self.idle: list[int] = []
        self.events = [(cluster.start_s, _FREE, worker, 0.0) for worker in range(cluster.workers)]
        self.driver = self.store = self.useful = 0.0
        self.losses, self.first_idle, self.last = 0, math.inf, 0.0

    def _with_slow(self, seconds: Sequence[float]) -> list[float]:
        cluster = self.cluster
        return [each * (cluster.slow_factor if self.rng.random() < cluster.slow_share else 1.0) for each in seconds]

    def run(self) -> Outcome:
        heapq.heapify(self.events)
        while self.events:
            now, kind, worker, shard = heapq.heappop(self.events)
            if kind == _FREE:
                self._free(now, worker)
            elif kind == _END:
                self.store = max(now, self.store) + self.cluster.store_s
                self.useful, self.last = self.useful + shard, self.store
                heapq.heappush(self.events, (self.store, _FREE, worker, 0.0))
            else:
                self._lose(now, worker, shard)
        return Outcome(self.last, self.useful, self.losses, self.last - min(self.first_idle, self.last))

    def _free(self, now: float, worker: int) -> None:
        if not self.open:
            self.idle.append(worker)
            self.first_idle = min(self.first_idle, now)
            return
        shard = self.open.popleft()
        self.driver = max(now, self.driver) + self.cluster.schedule_s
        failure = self.rng.expovariate(1 / self.cluster.failure_s) if self.cluster.failure_s < math.inf else math.inf
        if failure < shard:
            heapq.heappush(self.events, (self.driver + failure + self.cluster.notice_s, _LOST, worker, shard))
        else:
            heapq.heappush(self.events, (self.driver + shard, _END, worker, shard))

    def _lose(self, now: float, worker: int, shard: float) -> None:
        self.losses += 1
        self.open.appendleft(shard)
        heapq.heappush(self.events, (now + self.cluster.start_s, _FREE, worker, 0.0))
        if self.idle:
            heapq.heappush(self.events, (now, _FREE, self.idle.pop(), 0.0))


def simulate(seconds: Sequence[float], cluster: Cluster, *, seed: int = 0) -> Outcome:
    """Simulate shards on a cluster, in their order, each taken by the next free worker.

    Args:
        seconds: Work of every shard.
        cluster: The cluster.
        seed: Seed of slow shards and failures.
    """
    return _Simulation(seconds, cluster, seed).run()


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A round on GPUs; the defaults are figures of one H200 with a model of 0.5B parameters (RESULTS.md), and guesses."""

    problems: int = 1_000_000
    """Training problems."""
    shard_size: int = 64
    """Problems of a shard."""
    tokens: float = 20_000.0
    """Tokens that the search of a problem samples (a guess)."""
    search_rate: float = 14_505.0
    """Tokens a second of the search on one GPU (measured)."""
    trained: float = 2_000.0
    """Tokens of a problem's training rows, each once (a guess)."""
    train_rate: float = 48_000.0
    """Tokens a second of training on one GPU (measured, without compiled layers)."""
    train_gpus: int = 8
    """GPUs that train together: those of one machine."""
    token_bytes: float | None = None
    """Bytes of a stored token; None is that of the measured shards."""
    store_rate: float = 500e6
    """Bytes a second that the shared storage takes (a guess)."""


class Row(NamedTuple):
    """A line of the table."""

    gpus: int
    outcome: Outcome
    cluster: Cluster
    training: float
    """Seconds of the training, at the speed of the GPUs that train."""
    size: float
    """Bytes of all shards."""
    shards: int

    @property
    def utilisation(self) -> float:
        """Share of the GPU time of the search in which something useful was done."""
        return self.outcome.useful / (self.gpus * self.outcome.makespan)

    @property
    def driver_load(self) -> float:
        """Share of the search in which the driver was busy."""
        return self.shards * self.cluster.schedule_s / self.outcome.makespan

    def bottleneck(self) -> str:
        """Return what a faster round needs first: the largest of the parts that more GPUs do not shorten, or GPUs."""
        parts = {
            "training on one machine": self.training,
            "last shards": self.outcome.tail,
            "driver": self.shards * self.cluster.schedule_s,
            "storage": self.shards * self.cluster.store_s,
            "GPUs": self.outcome.useful / self.gpus,
        }
        return max(parts, key=parts.__getitem__)


def round_on(gpus: int, shards: Sequence[Shard], scenario: Scenario, cluster: Cluster, *, seed: int = 0) -> Row:
    """Simulate a round on so many GPUs.

    Args:
        gpus: Workers, one GPU each.
        shards: Measured shards: their spread of seconds, and their bytes per token.
        scenario: The sizes.
        cluster: Everything else; its number of workers and seconds of storage are replaced.
        seed: Seed of everything random.
    """
    count, rng = math.ceil(scenario.problems / scenario.shard_size), random.Random(seed)
    mean_s = scenario.shard_size * scenario.tokens / scenario.search_rate
    factor = mean_s / fmean(shard.seconds for shard in shards)
    token_bytes = scenario.token_bytes or sum(shard.size for shard in shards) / sum(shard.tokens for shard in shards)
    size = scenario.shard_size * scenario.tokens * token_bytes
    seconds = [rng.choice(shards).seconds * factor for _ in range(count)]
    cluster = replace(cluster, workers=gpus, store_s=size / scenario.store_rate)
    training = scenario.problems * scenario.trained / scenario.train_rate / min(gpus, scenario.train_gpus)
    return Row(gpus, simulate(seconds, cluster, seed=seed), cluster, training, count * size, count)


def table(rows: Sequence[Row]) -> str:
    """Return the table of the documentation."""
    lines = [
        "| GPUs | search | GPU time used | lost shards | last shards | driver busy | bytes | training | first bottleneck |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        search = _time(row.outcome.makespan)
        lines.append(
            f"| {row.gpus:,} | {search} | {100 * row.utilisation:.1f}% | {row.outcome.losses:,} | {_time(row.outcome.tail)} | "
            f"{100 * row.driver_load:.2f}% | {row.size / 1e9:,.0f} GB | {_time(row.training)} | {row.bottleneck()} |"
        )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds / HOUR:.1f} h" if seconds >= HOUR else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw hours of search and of training against the number of GPUs."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "scale"
    figure, axes = plt.subplots(figsize=(7, 4))
    gpus = [row.gpus for row in rows]
    axes.loglog(gpus, [row.outcome.makespan / HOUR for row in rows], "o-", label="search, simulated")
    axes.loglog(gpus, [row.outcome.useful / row.gpus / HOUR for row in rows], ":", label="search, if no time were lost")
    axes.loglog(gpus, [row.training / HOUR for row in rows], "s--", label="training, on one machine")
    axes.set(xlabel="GPUs", ylabel="hours", title="One round of a million problems")
    axes.set_xticks(gpus, [f"{count:,}" for count in gpus], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Simulate what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of one worker, whose shards give the spread of seconds and the bytes per token")
    parser.add_argument("--round", type=int, default=1, help="its round")
    parser.add_argument("--gpus", default="8,64,1000", help="numbers of GPUs")
    parser.add_argument(
        "--schedule-s", type=float, default=0.0022, help="seconds of the driver for each shard; scale_measure measures them"
    )
    parser.add_argument("--start-s", type=float, default=60.0, help="seconds until a worker has loaded its models")
    parser.add_argument("--slow", type=float, nargs=2, default=(0.01, 4.0), metavar=("SHARE", "FACTOR"), help="slow shards")
    parser.add_argument("--failure-h", type=float, default=50.0, help="mean hours between failures of one worker")
    parser.add_argument("--notice-s", type=float, default=30.0, help="seconds until a failure is noticed")
    parser.add_argument("--token-bytes", type=float, help="bytes of a stored token; default: that of the run")
    parser.add_argument("--picture", type=Path, help="draw the picture there")
    args = parser.parse_args()
    cluster = Cluster(
        workers=1,
        start_s=args.start_s,
        schedule_s=args.schedule_s,
        slow_share=args.slow[0],
        slow_factor=args.slow[1],
        failure_s=args.failure_h * HOUR,
        notice_s=args.notice_s,
    )
    shards = measured_shards(load_run(args.run), args.round)
    rows = [round_on(int(gpus), shards, Scenario(token_bytes=args.token_bytes), cluster) for gpus in args.gpus.split(",")]
    echo(table(rows))
    if args.picture is not None:
        draw(rows, args.picture)


if __name__ == "__main__":
    main()
