"""Runs side by side: what differs in their settings, and their best policies on the test problems that they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stepladder.data.metrics.answers import PairedComparison, paired_comparison
from stepladder.errors import ConfigError
from stepladder.loops.config.run import flatten_keys
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.evaluation_rows import all_solved, searched_questions
from stepladder.loops.runs.results import RoundRow

_SPEED_ONLY = ("run.workers", "policy.max_batch")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRun:
    """A run of a comparison."""

    name: str
    """Its directory, as far as it tells the runs apart."""
    rows: Sequence[RoundRow]
    """Its finished rounds."""
    updates: int
    """Updates of its policies, the warm-up included."""
    against_first: PairedComparison | None
    """Its best policy against that of the first run, on the test problems of both; None for the first, or without common problems."""
    num_shared: int
    """Those problems."""

    @property
    def best(self) -> RoundRow:
        """The round of its best policy."""
        return self.rows[self.rows[-1].best_policy]

    @property
    def generated_tokens(self) -> int:
        """All tokens that it generated."""
        return sum(row.generated_tokens for row in self.rows)

    @property
    def seconds(self) -> float:
        """Wall-clock time of its rounds."""
        return sum(row.seconds or 0.0 for row in self.rows)


def compare_runs(runs: Sequence[RunDir]) -> list[ComparedRun]:
    """Return runs with their figures, each set against the first.

    Raises:
        ConfigError: If there are fewer than two, one is given twice, or one has no finished round.
        CheckpointError: If a directory is no run, or one of its files is damaged.
    """
    roots = [run.root.resolve() for run in runs]
    if len(set(roots)) < max(len(roots), 2):
        raise ConfigError(f"report: runs to compare must be two or more different ones: got {', '.join(map(str, roots))}")
    rounds = {root: run.rows() for root, run in zip(roots, runs, strict=True)}
    if empty := [root for root, rows in rounds.items() if not rows]:
        raise ConfigError(f"{empty[0]}: must have a finished round to be compared: it has none -- let evolve finish at least the warm-up")
    solved = [_solved(run, rounds[root]) for root, run in zip(roots, runs, strict=True)]
    return [
        ComparedRun(
            name=name,
            rows=rounds[root],
            updates=sum(summary.updates for row in rounds[root] for summary in row.training.policy.stages.values()),
            against_first=_paired(solved[0], ours) if number else None,
            num_shared=len(set(solved[0]) & set(ours)),
        )
        for number, (root, name, ours) in enumerate(zip(roots, _names(roots), solved, strict=True))
    ]


def differing_settings(runs: Sequence[RunDir]) -> dict[str, list[Any]]:
    """Return the settings that are not the same in all runs, by name; a run without a setting has None."""
    plain = [flatten_keys(run.config().model_dump(mode="json")) for run in runs]
    keys = sorted(set().union(*plain) - set(_SPEED_ONLY))
    values = {key: [each.get(key) for each in plain] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


_Solved = dict[tuple[str, str], bool]
"""Id and question of a test problem -> whether it is solved. Other problems may have the same ids, as with another seed of a task."""


def _solved(run: RunDir, rows: Sequence[RoundRow]) -> _Solved:
    """Return by test problem whether the best policy's greedy answer is right."""
    folder = run.evaluation(rows[-1].best_policy, "test")
    questions = searched_questions(folder / "search")
    return {(row.problem_id, questions.get(row.problem_id, "")): row.correct for row in all_solved(folder / "greedy")}


def _paired(first: _Solved, second: _Solved) -> PairedComparison | None:
    shared = [problem for problem in first if problem in second]
    if not shared:
        return None
    # The generator resamples problems for an interval only; its seed is fixed so that the same runs give the same figures.
    ours, theirs = ([side[problem] for problem in shared] for side in (first, second))
    return paired_comparison(ours, theirs, rng=np.random.default_rng(0))


def _names(roots: Sequence[Path]) -> list[str]:
    """Return the shortest ends of some paths that differ."""
    for length in range(1, max(len(root.parts) for root in roots) + 1):
        names = ["/".join(root.parts[-length:]) for root in roots]
        if len(set(names)) == len(names):
            return names
    return [str(root) for root in roots]
