"""Common parts of a round's trainings: their summaries, which mark them as finished, and their progress."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from stepladder.files import atomic_write_text, read_json
from stepladder.loops.runs.results import FailedTraining, TrainingSummary
from stepladder.loops.runs.trained_models import digest_file, seal_model
from stepladder.loops.runs.workers import Progress, report_progress
from stepladder.types import derive_seed

if TYPE_CHECKING:
    from stepladder.lm.training import TrainReport
    from stepladder.lm.training_rows import Replay


class _Summary(Protocol):
    def to_dict(self) -> dict: ...


SummaryT = TypeVar("SummaryT", bound=_Summary)
RowT = TypeVar("RowT")


def finished_training(
    summary: Path, models: Sequence[Path], *, train: Callable[[], SummaryT], read: Callable[[object, Path], SummaryT]
) -> SummaryT:
    """Return the summary of a training. If the summary or a model is missing, train first.

    The summary is written after the models. So a model without one comes from a stopped training and is trained again. The result is the
    same, and the round's figures stay complete. The leftovers of a stopped training are removed when the summary exists.

    Args:
        summary: JSON file of the summary.
        models: Directories of the models; an ensemble has several.
        train: Trains, and returns the summary.
        read: Makes the summary from the content of the file; it also gets the file, for messages.

    Raises:
        CheckpointError: If the file is no summary.
    """
    done, trained = _kept(summary, read), summary.with_suffix("")
    if done is None or not (isinstance(done, FailedTraining) or all(model.exists() for model in models)):
        for model in models:
            shutil.rmtree(model, ignore_errors=True)
        digest_file(trained).unlink(missing_ok=True)
        done = train()
        if trained.exists() and not isinstance(done, FailedTraining):
            seal_model(trained)
        atomic_write_text(summary, json.dumps(done.to_dict(), indent=2) + "\n")
    for model in models:
        shutil.rmtree(model.with_name(f"{model.name}.work"), ignore_errors=True)
    return done


def _kept(summary: Path, read: Callable[[object, Path], SummaryT]) -> SummaryT | None:
    if not summary.exists():
        return None
    return read(read_json(summary, what="the summary of a training", remedy="remove the file and run evolve again"), summary)


def summary_of(report: "TrainReport") -> TrainingSummary:
    """Return the summary of a training report without its wall-clock time, which belongs to the events."""
    return TrainingSummary(**{name: value for name, value in asdict(report).items() if name != "seconds"})


def replayed(replay: "Replay[RowT]", *, num_rows: int, seed: int) -> list[RowT]:
    """Return replayed rows for one pass, for trainings that take the same ones in every pass.

    Args:
        replay: The rows and their share.
        num_rows: The other rows.
        seed: Seed of the draw. Each row is drawn once before any is drawn twice.
    """
    examples, wanted = replay.rows, replay.per_pass(num_rows)
    rng = np.random.default_rng(derive_seed(seed, "replay"))
    passes = [rng.permutation(len(examples)) for _ in range(math.ceil(wanted / len(examples)))]
    return [examples[index] for index in (np.concatenate(passes)[:wanted] if passes else [])]


class TrainingProgress:
    """A trainer's callback that reports the updates and tokens since its last call."""

    def __init__(self, stage: str, report: Callable[[Progress], None] = report_progress) -> None:
        """Report under the name of a stage, by default to the process that started this one."""
        self._stage, self._report = stage, report
        self._updates = self._seen = 0

    def __call__(self, step: int, total: int, loss: float, tokens: int) -> None:
        """Report updates. Those before a killed training was continued count as done in the first call."""
        self._report(Progress(stage=self._stage, items=step - self._updates, tokens=tokens - self._seen, total=total))
        self._updates = step
        self._seen = tokens
