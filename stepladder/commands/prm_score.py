"""``stepladder prm score`` and ``prm specs``: any process reward model on written solutions."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepladder.commands.kept_work import part_of
from stepladder.commands.prm_scoring import open_scoring, solution_split, worker_settings
from stepladder.data.datasets.labelled_solutions import StepwiseSolution, load_stepwise
from stepladder.data.datasets.problems import check_source
from stepladder.errors import ConfigError
from stepladder.files import atomic_write_text
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.mcts.qvalues import AGGREGATIONS, aggregate_scores
from stepladder.prm.compose import clip_bound, delta_bound, mix_with_verdict, par_bound
from stepladder.prm.sources import PRMSource, check_backend
from stepladder.prm.specs import NAMED_SPECS

REWARDS = ("clip", "delta", "par", "verdict")
"""Forms of reward that ``prm score`` writes."""


def score_files(
    paths: Sequence[Path],
    source: PRMSource,
    output: Path,
    *,
    aggregation: str,
    rewards: str | None = None,
    bound_at: float = 0.5,
    overrides: Sequence[str] = (),
    display: ProgressDisplay,
) -> str:
    """Score every solution of some files, write one JSON row each, and return the line to print.

    A row has ``place``, ``problem_id``, ``question``, ``steps``, ``scores`` (null if a step could not be scored) and ``score``, the
    aggregate. A judge adds ``thoughts``, its runs of equal verdicts. With ``rewards`` a row also has rewards for an RL trainer. During the
    work, finished scores are kept next to the output, so the same command continues a stopped one.

    Args:
        paths: Files of solutions.
        source: The model.
        output: File for the rows.
        aggregation: Aggregation of the step scores.
        rewards: ``clip``, ``delta`` or ``par``: bounded rewards of the steps; ``verdict``: one reward of the solution, in which no wrong
            solution outranks a right one; None writes none.
        bound_at: Bound of ``clip``, reference of ``par``.
        overrides: Where the work is done, as for ``worker_settings``.
        display: Shows progress.

    Raises:
        ConfigError: If aggregation or rewards are unknown; otherwise as for ``worker_settings``, ``open_scoring`` and ``load_stepwise``.
        CheckpointError: If the kept scores belong to other settings or solutions.
    """
    if aggregation not in AGGREGATIONS:
        raise ConfigError(f"--aggregation: must be one of {', '.join(AGGREGATIONS)}: got {aggregation!r}")
    if rewards not in (None, *REWARDS):
        raise ConfigError(f"--rewards: must be one of {', '.join(REWARDS)}: got {rewards!r}")
    # What is wrong first is said first: a file that is not there, then a model that is not.
    for path in paths:
        check_source(path)
    spec, split = source.resolve(), solution_split(source)
    check_backend(source)
    config = worker_settings(source, overrides)
    files = [load_stepwise(path, split=split) for path in paths]
    solutions = [solution for file in files for solution in file.solutions]
    with open_scoring(source, config, display=display, kept=part_of(output)) as score_all:
        scores = score_all(solutions)
    rows = []
    for solution, steps in zip(solutions, scores, strict=True):
        row = _row(solution, steps, aggregation=aggregation)
        if rewards is not None:
            row["rewards"] = _rewards(solution, steps, row["score"], rule=rewards, at=bound_at)
        if spec.family == "judge":
            from stepladder.prm.judge import merge_runs

            row["thoughts"] = [thought._asdict() for thought in merge_runs(steps)]
        rows.append(json.dumps(row, ensure_ascii=False))
    atomic_write_text(output, "".join(f"{row}\n" for row in rows))
    part_of(output).unlink(missing_ok=True)
    dropped = sum((Counter(file.dropped_by_reason) for file in files), Counter())
    counts = Counter(score is not None for steps in scores for score in steps)
    return (
        f"{output}: {counts[True]} steps of {len(rows)} solutions scored, {counts[False]} not scored (no tokens, beyond the context, or no "
        f"readable verdict){_dropped_sentence(dropped)}"
    )


def _row(solution: StepwiseSolution, scores: Sequence[float | None], *, aggregation: str) -> dict[str, Any]:
    """Return the row of every solution."""
    return {
        "place": solution.place,
        "problem_id": solution.problem_id,
        "question": solution.question,
        "steps": list(solution.steps),
        "scores": list(scores),
        "score": aggregate_scores(scores, rule=aggregation),
    }


def _rewards(
    solution: StepwiseSolution, scores: Sequence[float | None], score: float | None, *, rule: str, at: float
) -> float | list[float | None] | None:
    """Return the reward of every step, or of the solution; None if a score, or the verdict, is not known."""
    if rule == "verdict":
        return None if score is None or solution.correct is None else mix_with_verdict(score, solution.correct)
    # A step without a score has no reward; the difference is taken to the next step that has one.
    known = np.array([score for score in scores if score is not None], dtype=np.float64)
    values = iter(_bounded(known, rule=rule, at=at).tolist())
    return [None if score is None else next(values) for score in scores]


def _bounded(scores: np.ndarray, *, rule: str, at: float) -> np.ndarray:
    """Return the rewards of the steps of one solution."""
    if rule == "clip":
        return clip_bound(scores, bound=at)
    if rule == "par":
        return par_bound(scores, reference=at)
    return delta_bound(scores)


def _dropped_sentence(dropped: dict[str, int]) -> str:
    """Return the number of dropped rows with the reasons, as the end of a sentence; empty if none was dropped."""
    return f"; dropped {', '.join(f'{count} {reason}' for reason, count in sorted(dropped.items()))}" if dropped else ""


def explain_specs(*, as_json: bool = False) -> str:
    """Return the named specs as text, or as JSON with every field."""
    if as_json:
        from dataclasses import asdict

        return json.dumps({name: asdict(entry) for name, entry in NAMED_SPECS.items()}, indent=2, ensure_ascii=False)
    lines = []
    for name, entry in NAMED_SPECS.items():
        lines.append(f"{name:<20} {entry.summary}")
        lines += [f"{'':<20}   {hub_id}" for hub_id in entry.checkpoints]
    return "\n".join(lines)
