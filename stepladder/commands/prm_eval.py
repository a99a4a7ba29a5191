"""``stepladder prm eval``: every figure that a file of graded or labelled solutions allows, as a table, JSON and plots."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stepladder.commands.prm_scoring import ScoreAll, open_scoring, solution_split, worker_settings
from stepladder.data.datasets.labelled_solutions import StepwiseSolution, load_stepwise
from stepladder.data.datasets.problems import check_source
from stepladder.data.metrics import step_scores as prm_metrics
from stepladder.data.metrics.answers import pooled_auc, within_problem_auc
from stepladder.errors import ConfigError, DataFormatError
from stepladder.files import atomic_file, atomic_write_text
from stepladder.loops.runs.progress import ProgressDisplay
from stepladder.mcts.qvalues import AGGREGATIONS, aggregate_scores
from stepladder.prm.sources import PRMSource, check_backend

Scored = tuple[StepwiseSolution, tuple[float | None, ...]]
"""A solution and the scores of its steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationJob:
    """Settings of an evaluation."""

    source: PRMSource
    """The model."""
    aggregation: str = "last"
    """Aggregation of step scores to the score of a solution."""
    threshold: float = 0.5
    """A step is wrong below it."""
    tune_on: Path | None = None
    """File whose solutions with known first errors choose the threshold; it must have other problems than the evaluated files."""
    neutral: str = "good"
    """Meaning of a PRM800K rating of 0."""
    overrides: Sequence[str] = ()
    """Where the work is done, as for ``worker_settings``."""


def evaluate_files(
    files: Sequence[Path], job: EvaluationJob, *, json_path: Path | None = None, plots: Path | None = None, display: ProgressDisplay
) -> str:
    """Score the solutions of some files and return the table to print.

    Args:
        files: Files in a form that ``load_stepwise`` reads.
        job: Settings of the evaluation.
        json_path: JSON file for the figures; None writes none.
        plots: Directory for reliability, best-of-n and depth plots; None draws none.
        display: Shows progress.

    Raises:
        ConfigError: If the aggregation is unknown.
        DataFormatError: If a file is malformed, has nothing that can be measured, or shares problems with the tuning file.
        CheckpointError: If the model cannot be read.
    """
    if job.aggregation not in AGGREGATIONS:
        raise ConfigError(f"--aggregation: must be one of {', '.join(AGGREGATIONS)}: got {job.aggregation!r}")
    for path in files:
        check_source(path)
    split = solution_split(job.source)
    check_backend(job.source)
    config = worker_settings(job.source, job.overrides)
    loaded = [load_stepwise(path, neutral=job.neutral, split=split) for path in files]
    solutions = [solution for file in loaded for solution in file.solutions]
    with open_scoring(job.source, config, display=display) as score_all:
        threshold = job.threshold if job.tune_on is None else _tuned_threshold(score_all, job, path=job.tune_on, solutions=solutions)
        scored = list(zip(solutions, score_all(solutions), strict=True))
    figures = evaluate_scores(scored, aggregation=job.aggregation, threshold=threshold)
    for reason, count in ((reason, count) for file in loaded for reason, count in file.dropped_by_reason.items()):
        figures["dropped_by_reason"][reason] = figures["dropped_by_reason"].get(reason, 0) + count
    if not any(figures[name] for name in ("first_error", "ranking", "best_of_n", "steps")):
        raise DataFormatError(
            f"{', '.join(map(str, files))}: must hold something to measure scores against: found no first errors, no graded solutions and "
            "no step labels -- use ProcessBench, RewardMATH or labelled files"
        )
    if json_path is not None:
        atomic_write_text(json_path, json.dumps(figures, indent=2) + "\n")
    drawn = draw_plots(figures, plots) if plots is not None else []
    return "\n".join([*table(figures), *(f"plot: {path}" for path in drawn)])


def _tuned_threshold(score_all: ScoreAll, job: EvaluationJob, *, path: Path, solutions: Sequence[StepwiseSolution]) -> float:
    """Return the best threshold on a file of other problems."""
    tuning = load_stepwise(path, neutral=job.neutral, split=solution_split(job.source)).solutions
    _check_disjoint(tuning, solutions, path)
    known = [(each, each.first_error) for each in tuning if each.first_error is not None]
    scores = score_all([solution for solution, _ in known])
    return prm_metrics.best_threshold(scores, [first_error for _, first_error in known])


def _check_disjoint(tuning: Sequence[StepwiseSolution], solutions: Sequence[StepwiseSolution], path: Path) -> None:
    shared = {each.problem_id for each in tuning} & {each.problem_id for each in solutions}
    if shared:
        raise DataFormatError(
            f"{path}: the threshold must be chosen on other problems than are evaluated: {len(shared)} are in both, such as "
            f"{min(shared)!r} -- remove them from one side"
        )


def evaluate_scores(scored: Sequence[Scored], *, aggregation: str = "last", threshold: float = 0.5) -> dict[str, Any]:
    """Return every figure that scored solutions allow. A part that they do not allow is None.

    ``first_error``: ProcessBench, over solutions whose first wrong step is known. ``ranking``: RewardMATH, over problems with exactly one
    right solution. ``best_of_n``: over problems with several graded solutions. ``steps``: over labelled steps. ``outcomes``: how the
    solutions' scores tell right from wrong.
    """
    groups = graded_groups(scored, aggregation=aggregation)
    return {
        "solutions": len(scored),
        "aggregation": aggregation,
        "unscored_steps": sum(score is None for _, scores in scored for score in scores),
        "dropped_by_reason": {},
        "first_error": _first_error(scored, threshold),
        "ranking": _ranking(groups),
        "best_of_n": _best_of_n(groups),
        "outcomes": _outcomes(groups),
        "steps": _steps(scored),
    }


def _first_error(scored: Sequence[Scored], threshold: float) -> dict[str, Any] | None:
    known = [(solution.first_error, scores) for solution, scores in scored if solution.first_error is not None]
    if not known:
        return None
    predicted = [prm_metrics.predicted_first_error(scores, threshold=threshold) for _, scores in known]
    return {"threshold": threshold, **asdict(prm_metrics.first_error_figures(predicted, [truth for truth, _ in known]))}


@dataclass(frozen=True, kw_only=True, slots=True)
class GradedGroup:
    """The graded solutions of one problem, in the order of the files."""

    scores: tuple[float | None, ...]
    """The score of each; None if it has none."""
    right: tuple[bool, ...]
    """Whether each is right."""

    @property
    def scored(self) -> tuple[list[float], list[bool]]:
        """Scores and verdicts of the solutions that have a score: a solution without one is never chosen."""
        known = [(score, right) for score, right in zip(self.scores, self.right, strict=True) if score is not None]
        return [score for score, _ in known], [right for _, right in known]


def graded_groups(scored: Sequence[Scored], *, aggregation: str) -> list[GradedGroup]:
    """Return one group per problem that has graded solutions."""
    scores: dict[str, list[float | None]] = {}
    right: dict[str, list[bool]] = {}
    for solution, steps in scored:
        if solution.correct is not None:
            scores.setdefault(solution.problem_id, []).append(aggregate_scores(steps, rule=aggregation))
            right.setdefault(solution.problem_id, []).append(solution.correct)
    return [GradedGroup(scores=tuple(scores[problem]), right=tuple(right[problem])) for problem in scores]


def _ranking(groups: Sequence[GradedGroup]) -> dict[str, Any] | None:
    """Return the rank of the right solution among wrong ones, over the problems with exactly one right solution."""
    contests = []
    for group in groups:
        if len(group.right) > 1 and sum(group.right) == 1:
            winner = group.right.index(True)
            contests.append((group.scores[winner], [score for i, score in enumerate(group.scores) if i != winner]))
    figures = prm_metrics.rank_figures(contests)
    return None if figures is None else asdict(figures)


def _best_of_n(groups: Sequence[GradedGroup]) -> list[dict[str, Any]] | None:
    """Return the curve of best-of-n over the problems with several solutions."""
    return [asdict(point) for point in prm_metrics.best_of_n_curve(_choices(groups))] or None


def _outcomes(groups: Sequence[GradedGroup]) -> dict[str, Any] | None:
    """Return the AUC of the solutions' scores, within problems and over all of them."""
    pools = [group.scored for group in groups]
    scores = [score for known, _ in pools for score in known]
    if not scores:
        return None
    right = [verdict for _, verdicts in pools for verdict in verdicts]
    return {"within_problem_auc": within_problem_auc(_choices(groups)), "pooled_auc": pooled_auc(scores, right)}


def _choices(groups: Sequence[GradedGroup]) -> list[tuple[list[float], list[bool]]]:
    """Return scores and verdicts of the problems with at least two scored solutions."""
    return [(scores, right) for scores, right in (group.scored for group in groups) if len(scores) > 1]


def _steps(scored: Sequence[Scored]) -> dict[str, Any] | None:
    steps = [
        (depth, score, label)
        for solution, scores in scored
        for depth, (score, label) in enumerate(zip(scores, solution.labels, strict=True), 1)
        if score is not None and label is not None
    ]
    if not steps:
        return None
    scores, labels = [score for _, score, _ in steps], [label for _, _, label in steps]
    bins = prm_metrics.reliability(scores, labels)
    sided = [(score, label > 0.5) for _, score, label in steps if label != 0.5]
    return {
        "count": len(steps),
        "brier": sum((score - label) ** 2 for score, label in zip(scores, labels, strict=True)) / len(steps),
        "calibration_error": prm_metrics.calibration_error(bins),
        "auc": pooled_auc([score for score, _ in sided], [good for _, good in sided]),
        "reliability": [asdict(each) for each in bins],
        "auc_by_depth": [{"depth": depth, "auc": auc, "count": count} for depth, (auc, count) in prm_metrics.auc_by_depth(steps).items()],
    }


def table(figures: dict[str, Any]) -> list[str]:
    """Return the figures as lines of text."""
    rows: list[tuple[str, str]] = [
        ("solutions", str(figures["solutions"])),
        ("steps without a score", str(figures["unscored_steps"])),
        *((f"dropped: {reason}", str(count)) for reason, count in sorted(figures["dropped_by_reason"].items())),
    ]
    if first := figures["first_error"]:
        rows += [
            ("first error: F1", _four_digits(first["f1"])),
            ("  on wrong solutions", f"{_four_digits(first['wrong_accuracy'])} of {first['num_wrong']}"),
            ("  on right solutions", f"{_four_digits(first['right_accuracy'])} of {first['num_right']}"),
            ("  threshold", _four_digits(first["threshold"])),
        ]
    if ranking := figures["ranking"]:
        low, high = ranking["num_wrong"]
        against = f"{low}" if low == high else f"{low} to {high}"
        rows += [
            (f"right against {against} wrong: accuracy", f"{_four_digits(ranking['accuracy'])} of {ranking['num_problems']}"),
            ("  mean reciprocal rank", _four_digits(ranking["mrr"])),
        ]
    if outcomes := figures["outcomes"]:
        rows += [
            ("solutions: AUC within problems", _four_digits(outcomes["within_problem_auc"])),
            ("  pooled", _four_digits(outcomes["pooled_auc"])),
        ]
    for point in figures["best_of_n"] or []:
        rows.append(
            (f"best of {point['n']} (KL {point['kl']:.2f}): accuracy", f"{_four_digits(point['accuracy'])}, score {point['score']:.4f}")
        )
    if steps := figures["steps"]:
        rows += [
            ("steps: AUC", f"{_four_digits(steps['auc'])} of {steps['count']}"),
            ("  Brier score", _four_digits(steps["brier"])),
            ("  calibration error", _four_digits(steps["calibration_error"])),
            *((f"  AUC at step {row['depth']}", f"{_four_digits(row['auc'])} of {row['count']}") for row in steps["auc_by_depth"]),
        ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _four_digits(value: float | None) -> str:
    """Return a figure as text; a dash without one."""
    return "-" if value is None else f"{value:.4f}"


def draw_plots(figures: dict[str, Any], directory: Path) -> list[Path]:
    """Draw the plots that the figures allow as SVG files, which depend only on the figures, and return their paths."""
    drawn = []
    if steps := figures["steps"]:
        bins = [each for each in steps["reliability"] if each["count"]]
        drawn.append(
            _plot(
                directory / "reliability.svg",
                "mean score",
                "mean label",
                diagonal=True,
                lines={f"{steps['count']} steps": ([each["mean_score"] for each in bins], [each["mean_label"] for each in bins])},
            )
        )
        depths = [row for row in steps["auc_by_depth"] if row["auc"] is not None]
        if depths:
            drawn.append(
                _plot(
                    directory / "auc-by-depth.svg",
                    "step",
                    "AUC",
                    lines={"steps": ([row["depth"] for row in depths], [row["auc"] for row in depths])},
                )
            )
    if curve := figures["best_of_n"]:
        distances = [point["kl"] for point in curve]
        drawn.append(
            _plot(
                directory / "best-of-n.svg",
                "KL of best-of-n from the sampler, nats",
                "mean over problems",
                lines={
                    "right answers": (distances, [point["accuracy"] for point in curve]),
                    "score": (distances, [point["score"] for point in curve]),
                },
            )
        )
    return drawn


def _plot(path: Path, x_label: str, y_label: str, *, lines: dict[str, tuple[list[float], list[float]]], diagonal: bool = False) -> Path:
    # The figure is made without pyplot, because a command does not need its windows and global state.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "stepladder"}):
        figure = Figure(figsize=(5, 4), layout="constrained")
        axes = figure.subplots()
        if diagonal:
            axes.plot([0, 1], [0, 1], color="0.7", linestyle="--")
        for name, (x, y) in lines.items():
            axes.plot(x, y, marker="o", label=name)
        axes.set(xlabel=x_label, ylabel=y_label, ylim=(-0.02, 1.02))
        axes.legend()
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
    return path
