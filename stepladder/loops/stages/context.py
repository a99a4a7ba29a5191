"""Common parts of all stages of a run: the run itself, the models of a job, and the way of work to the workers."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from stepladder.loops.config.run import Config
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.inputs import InputGuard
from stepladder.loops.runs.machine import worker_memory_mb
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.loops.runs.run_places import keeps_lock
from stepladder.loops.runs.workers import Progress, Task, Workers
from stepladder.loops.stages.failures import check_stage
from stepladder.loops.stages.kinds import RowKind
from stepladder.types import Failures, LabelledProblem, Provenance

ResultT = TypeVar("ResultT")
_LESS_TRAINING_MEMORY = "lower this training's micro_batch_size, or set its gradient_checkpointing = true"


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """The models of a job."""

    policy: str
    """Directory or hub id of the policy."""
    prm: str | Sequence[str] | None
    """Directory or hub id of the PRM, or directory of an ensemble, or several of either; none searches without one."""
    provenance: Provenance
    """Versions, seed and hashes, stored with the job's results; the job fills in the renderer hash."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BestModels:
    """The models with which a round begins."""

    policy: int
    """Round whose training gave the best policy so far."""
    prm: int | None
    """Round whose training gave the best PRM so far, 0 for a given one; None without any."""


class StageEvent:
    """Data that a stage adds to its last event."""

    def __init__(self) -> None:
        """Begin without failures."""
        self.failures = Failures()

    def facts(self) -> dict[str, Any]:
        """Return the keys of the event; none if no sample failed."""
        if not self.failures.num_failed:
            return {}
        return {"failed_samples": self.failures.num_failed, "first_failure": self.failures.first_message}


class MissingShard(NamedTuple):
    """A shard of training problems whose rows of some kind are not there yet."""

    number: int
    """Number of the shard."""
    problems: list[LabelledProblem]
    """Its problems."""
    out: Path
    """Where the rows go."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundContext:
    """Common parts of all rounds of a run."""

    config: Config
    """The settings of the round."""
    run: RunDir
    """The run directory."""
    problems: dict[str, list[LabelledProblem]]
    """The splits ``train``, ``held_out`` and ``test``."""
    pool: Workers
    """Where jobs run."""
    display: ProgressDisplay
    """Where progress is shown."""
    guard: InputGuard | None = None
    """Stops the run before a stage when an input has changed; None where nothing watches them."""
    last: int = 0
    """Last round of this call, beyond which nothing begins early."""
    unscheduled: Config | None = None
    """The settings of the run, in a round that has settings of its own; None elsewhere."""
    check: Callable[[], None] = keeps_lock
    """Called now and then; raises if this process may no longer write to the run."""

    @property
    def run_config(self) -> Config:
        """The settings of the run."""
        return self.unscheduled or self.config

    @property
    def evaluation_config(self) -> Config:
        """The settings with which every round is measured: its own PRM, the limits of the run."""
        return self.config.model_copy(update={"search": self.run_config.search})

    def in_round(self, settings: Config) -> "RoundContext":
        """Return the run in a round with settings of its own."""
        return replace(self, config=settings, unscheduled=self.run_config)

    def models(self, number: int, policy_version: int, prm_version: int | None) -> Models:
        """Return the models of a job with their provenance."""
        return Models(
            policy=self.run.policy_source(policy_version, self.run_config),
            prm=None if prm_version is None else self.run.prm_source(prm_version, self.run_config),
            provenance=Provenance(
                round=number,
                policy_version=policy_version,
                scorer_version=prm_version,
                seed=self.config.run.seed,
                config_hash=self.run_config.hash(),
                renderer_hash="",
            ),
        )

    def newest_policy(self, number: int, best_policy: int) -> int:
        """Return the version of the policy that a round trained, or of the best policy if it trained none."""
        return number if self.run.policy(number).exists() else best_policy

    def shards(self, split: str) -> list[list[LabelledProblem]]:
        """Return a split cut into shards, in file order."""
        problems, size = self.problems[split], self.config.run.shard_size
        return [problems[begin : begin + size] for begin in range(0, len(problems), size)]

    def missing(self, number: int, kind: RowKind) -> list[MissingShard]:
        """Return the shards of training problems that have no rows of a kind in a round."""
        numbered = enumerate(zip(self.shards("train"), self.paths(number, kind), strict=True))
        return [MissingShard(index, problems, path) for index, (problems, path) in numbered if not path.exists()]

    def paths(self, number: int, kind: RowKind) -> list[Path]:
        """Return the files of a kind of rows for all shards of training problems in a round."""
        return [self.run.shard(number, kind.name, index) for index, _ in enumerate(self.shards("train"))]

    @contextmanager
    def stage(self, number: int, name: str) -> Iterator[StageEvent]:
        """Check the inputs, and log the start and duration of a stage, and the data that its body puts into the yielded event.

        Raises:
            CheckpointError: If an input of the run has changed.
            BackendError: If this process may no longer write to the run.
        """
        self.check()
        if self.guard is not None:
            self.guard.check()
        begin, event, worked = time.monotonic(), StageEvent(), self.pool.clock.read()
        self.run.log_event("stage_begin", round=number, stage=name)
        self.display.enter(number, name)
        yield event
        seconds, now = time.monotonic() - begin, self.pool.clock.read()
        self.run.log_event(
            "stage_end",
            round=number,
            stage=name,
            seconds=round(seconds, 2),
            workers=self.pool.num_workers,
            work_s=round(now.stage - worked.stage, 2),
            ahead_s=round(now.ahead - worked.ahead, 2),
            memory_mb=worker_memory_mb(),
            **event.facts(),
        )

    def check_samples(self, shards: Sequence[Path], place: str) -> Failures:
        """Show how many samples of a finished stage failed, and return the failures; raises as ``check_stage`` does."""
        failures = check_stage(shards, place)
        if failures.num_failed:
            self.display.say(f"{place}: {failures.num_failed} samples failed, the first with: {failures.first_message}")
        return failures

    @contextmanager
    def _shown(self, totals: Mapping[str, int | None]) -> Iterator[Callable[[Progress], None]]:
        """Show the progress of work while the block runs, and notice between two reports if it must stop."""
        with self.display.stages(totals) as show:

            def on_progress(progress: Progress) -> None:
                self.check()
                show(progress)

            yield on_progress

    def work(self, tasks: Sequence[Task[ResultT]], totals: Mapping[str, int | None]) -> list[ResultT]:
        """Run jobs in the workers under a progress display."""
        if not tasks:
            return []
        with self._shown(totals) as on_progress:
            return self.pool.run(tasks, on_progress=on_progress)

    def finish_ahead(self, totals: Mapping[str, int | None]) -> None:
        """Do the rest of a stage that began while the round before ended; nothing without ``run.overlap``."""
        if self.run_config.run.overlap:
            with self._shown(totals) as on_progress:
                self.pool.finish_ahead(on_progress=on_progress)

    def train(self, tasks: Sequence[Task[ResultT]], totals: Mapping[str, int | None]) -> list[ResultT]:
        """Run trainings: in workers, or one after the other in processes of their own, to which the workers leave the machine."""
        if not self.config.training.launched:
            return self.work([replace(task, less_memory=_LESS_TRAINING_MEMORY) for task in tasks], totals)
        self.pool.rest()
        # Nobody is idle: the workers have left the machine to the trainings.
        self.pool.clock.change(self.pool.num_workers)
        try:
            with self._shown(totals) as on_progress:
                return [self.pool.train(task, self.config.training, on_progress=on_progress) for task in tasks]
        finally:
            self.pool.clock.change(-self.pool.num_workers)
