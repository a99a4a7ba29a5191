"""Figures and Markdown tables of finished runs of ``benchmarks.evidence``: every arm, and what the reference arm is better by."""

import json
import math
import platform
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stepladder.data.metrics.answers import Interval
from stepladder.data.store import read_traces
from stepladder.loops.runs.directory import RunDir, load_run
from stepladder.loops.runs.evaluation_rows import all_pools, all_solved
from stepladder.loops.runs.results import RoundRow

REFERENCE = "search"
"""The arm with which the others are compared."""
MILESTONES = (0.5, 0.9)


class Cell(NamedTuple):
    """A run of an arm of which rounds are finished."""

    arm: str
    """Name of the arm."""
    seed: int
    """Seed of the run."""
    run: RunDir
    """Its directory."""
    rows: list[RoundRow]
    """Its finished rounds, from the warm-up on."""


def finished(places: Iterable[tuple[str, int, Path]], *, rounds: int = 1) -> list[Cell]:
    """Return the runs that have finished so many rounds after the warm-up.

    Args:
        places: Arm, seed and directory of each run; it need not exist.
        rounds: The rounds, >= 0.
    """
    return [
        Cell(arm, seed, run, rows)
        for arm, seed, place in places
        if place.exists() and len(rows := (run := load_run(place)).rows()) > rounds
    ]


# Figures


def greedy(cell: Cell, number: int) -> dict[str, float]:
    """Return whether the greedy solution of each test problem is right after a round."""
    folder = cell.run.evaluation(number, "test") / "greedy"
    return {row.problem_id: float(row.correct) for row in all_solved(folder)}


def sampled(cell: Cell, number: int) -> dict[str, float]:
    """Return the share of right samples of each test problem after a round."""
    folder = cell.run.evaluation(number, "test") / "samples"
    return {row.problem_id: sum(sample.correct for sample in row.samples) / len(row.samples) for row in all_pools(folder)}


def solved_once(cell: Cell, number: int) -> dict[str, float]:
    """Return whether any sample of each test problem is right after a round: pass@k with as many samples as there are."""
    folder = cell.run.evaluation(number, "test") / "samples"
    return {row.problem_id: float(any(sample.correct for sample in row.samples)) for row in all_pools(folder)}


def spent(row: RoundRow) -> int:
    """Return the generated tokens that a round learned from."""
    return 0 if row.search is None else row.search.generated_tokens + row.search.rollout_tokens


def tokens_to_reach(curve: Sequence[tuple[float, float]], share: float) -> float | None:
    """Return the tokens at which an accuracy is reached, between two rounds by a straight line; None if it never is.

    Args:
        curve: (tokens so far, accuracy) after each round, from the warm-up on.
        share: The accuracy.
    """
    if curve and curve[0][1] >= share:
        return curve[0][0]
    for (before, low), (after, high) in pairwise(curve):
        if low < share <= high:
            return before + (after - before) * (share - low) / (high - low)
    return None


T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5% points of Student's t by degrees of freedom."""


def interval_over_seeds(differences: Sequence[float]) -> Interval | None:
    """Return the 95% t-interval of a mean difference, one value per seed; None for fewer than two, or more than ten."""
    quantile = T_QUANTILES.get(len(differences) - 1)
    if quantile is None:
        return None
    mean = sum(differences) / len(differences)
    spread = math.sqrt(sum((each - mean) ** 2 for each in differences) / (len(differences) - 1) / len(differences))
    return Interval(mean - quantile * spread, mean + quantile * spread)


def interval_over_problems(differences: Sequence[Sequence[float]], *, num_resamples: int = 10_000) -> Interval:
    """Return the 95% bootstrap interval of a mean difference over the test problems, which are drawn anew within every seed.

    Args:
        differences: Per seed, the difference at every problem.
        num_resamples: Bootstrap samples, >= 1.
    """
    rng = np.random.default_rng(0)
    means = np.mean([rng.choice(each, (num_resamples, len(each))).mean(axis=1) for each in differences], axis=0)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(low), float(high))


def paired(cells: Sequence[Cell], arm: str, measure: Callable[[Cell], dict[str, float]]) -> list[list[float]]:
    """Return, per seed that both arms have, what the reference arm is better by at every problem."""
    ours = {cell.seed: cell for cell in cells if cell.arm == REFERENCE}
    theirs = {cell.seed: cell for cell in cells if cell.arm == arm}
    found = []
    for seed in sorted(set(ours) & set(theirs)):
        first, second = measure(ours[seed]), measure(theirs[seed])
        found.append([first[problem] - second[problem] for problem in sorted(first)])
    return found


def problem_rows(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a file of problems."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def overlap(cell: Cell) -> dict[int, tuple[int, int]]:
    """Return, by distance, how many test problems there are, and how many occur as rows in the traces that the arm learned from."""
    seen = {
        step.split(" ")[-1] for path in cell.run.shards("traces") for trace in read_traces(path) for step in trace.completion.splitlines()
    }
    counts: dict[int, tuple[int, int]] = {}
    for problem in problem_rows(cell.run.config().problems.test):
        total, met = counts.get(problem["distance"], (0, 0))
        counts[problem["distance"]] = (total + 1, met + (problem["question"] in seen))
    return dict(sorted(counts.items()))


# Tables


def render(cells: Sequence[Cell], about: str) -> str:
    """Return the tables of some runs, after a sentence about them."""
    parts = [f"{about}; {processor()}.", means_table(cells), differences_table(cells), rounds_table(cells), levels_table(cells)]
    return "\n\n".join(part for part in parts if part) + "\n"


def means_table(cells: Sequence[Cell]) -> str:
    """Return one row per arm and round, with means over the seeds that have finished it."""
    heads = ["arm", "round", "seeds", "solved", "pass@1 greedy", "pass@1 sampled", "pass@k", "unique / generated", "PRM AUC"]
    body = []
    for arm in _arms(cells):
        for number in range(1, max(len(cell.rows) for cell in cells)):
            rows = [cell.rows[number] for cell in cells if cell.arm == arm and len(cell.rows) > number]
            if not rows:
                continue
            pools = [row.test.pool for row in rows]
            figures = [
                _mean([None if row.search is None else row.search.solved for row in rows], "{:.1f}"),
                _mean([None if row.test.pass_at_1 is None else 100 * row.test.pass_at_1.value for row in rows], "{:.1f}"),
                _mean([None if pool.sampled_pass_at_1 is None else 100 * pool.sampled_pass_at_1 for pool in pools], "{:.1f}"),
                _mean([None if pool.pass_at_k is None else 100 * pool.pass_at_k for pool in pools], "{:.1f}"),
                _mean([None if row.search is None else row.search.unique_share for row in rows], "{:.2f}"),
                _mean([pool.prm_within_problem_auc for pool in pools], "{:.2f}"),
            ]
            body.append([arm, str(number), str(len(rows)), *figures])
    return markdown_table(heads, body) if body else ""


def _arms(cells: Sequence[Cell]) -> list[str]:
    """Return the arms of some cells in the order of the cells."""
    return list(dict.fromkeys(cell.arm for cell in cells))


def _mean(values: Sequence[float | None], form: str) -> str:
    """Return the mean of values in a written form; a dash if one is missing."""
    known = [value for value in values if value is not None]
    return form.format(sum(known) / len(known)) if known and len(known) == len(values) else "–"


def rounds_table(cells: Sequence[Cell]) -> str:
    """Return one row per arm and seed, with its figures after every round."""
    heads = ["arm", "seed", "round", "solved", "pass@1 greedy", "pass@1 sampled", "pass@k", "tokens", "unique / generated"]
    heads += ["traces", "updates", *(f"tokens to {100 * share:.0f}%" for share in MILESTONES)]
    body = []
    for cell in cells:
        total, curve = 0, []
        for row in cell.rows:
            total += spent(row)
            curve.append((float(total), 0.0 if row.test.pass_at_1 is None else row.test.pass_at_1.value))
            last = row is cell.rows[-1]
            reached = [tokens_to_reach(curve, share) if last else None for share in MILESTONES]
            sft = row.training.policy.stages
            body.append(
                [
                    cell.arm,
                    str(cell.seed),
                    str(row.round),
                    "–" if row.search is None else str(row.search.solved),
                    _percent(curve[-1][1]),
                    _percent(row.test.pool.sampled_pass_at_1),
                    _percent(row.test.pool.pass_at_k),
                    f"{total:,}",
                    _mean([None if row.search is None else row.search.unique_share], "{:.2f}"),
                    "–" if row.labels is None else str(row.labels.traces.kept),
                    str(sum(summary.updates for name, summary in sft.items() if name != "warmup")) if row.round else "–",
                    *("–" if tokens is None else f"{tokens:,.0f}" for tokens in reached),
                ]
            )
    return markdown_table(heads, body)


def differences_table(cells: Sequence[Cell]) -> str:
    """Return what the reference arm is better by after each round, with both intervals."""
    heads = ["search against", "round", "seeds", "greedy: difference", "over seeds", "over problems"]
    heads += ["sampled: difference", "over seeds", "over problems"]
    body = []
    for arm in (arm for arm in _arms(cells) if arm != REFERENCE):
        for number in range(1, max(len(cell.rows) for cell in cells)):
            usable = [cell for cell in cells if len(cell.rows) > number]
            found = [paired(usable, arm, partial(measure, number=number)) for measure in (greedy, sampled)]
            if found[0]:
                body.append([arm, str(number), str(len(found[0])), *(text for each in found for text in difference(each))])
    return markdown_table(heads, body) if body else ""


def pass_at_table(cells: Sequence[Cell], k: int) -> str:
    """Return pass@1 and pass@k of runs that only measure a policy, and what the reference arm is better by, with both intervals.

    Args:
        cells: Runs without a round after their first measurements, with k samples of each test problem.
        k: The samples.
    """
    heads = ["arm", "seeds", "pass@1 sampled", f"pass@{k}", f"pass@{k}: search is ahead by", "over seeds", "over problems"]
    body = []
    for arm in _arms(cells):
        own = [cell for cell in cells if cell.arm == arm]
        means = [
            _mean([100 * float(np.mean(list(measure(cell, 0).values()))) for cell in own], "{:.1f}") for measure in (sampled, solved_once)
        ]
        ahead = paired(cells, arm, partial(solved_once, number=0)) if arm != REFERENCE else []
        body.append([arm, str(len(own)), *means, *(difference(ahead) if ahead else ["–"] * 3)])
    return markdown_table(heads, body)


def levels_table(cells: Sequence[Cell]) -> str:
    """Return solved training problems, greedy accuracy and overlap by distance, as sums and means over the seeds of an arm."""
    levels = list(cells[0].rows[0].test.levels) if cells else []
    body = []
    for arm in _arms(cells):
        own = [cell for cell in cells if cell.arm == arm]
        for number in range(max(len(cell.rows) for cell in own)):
            rows = [cell.rows[number] for cell in own if len(cell.rows) > number]
            accuracy = [np.mean([row.test.levels[level].pass_at_1 or 0.0 for row in rows]) for level in levels]
            body.append([arm, str(number), "greedy %", *(f"{100 * each:.0f}" for each in accuracy)])
            searched = [row.search for row in rows if row.search is not None and row.search.levels]
            if searched:
                shares = [100 * np.mean([each.levels[level].solved / each.levels[level].problems for each in searched]) for level in levels]
                body.append([arm, str(number), "solved %", *(f"{share:.0f}" for share in shares)])
        met = [overlap(cell) for cell in own]
        body.append(
            [arm, "all", "met in traces %", *(f"{100 * np.mean([_share(each[int(level)]) for each in met]):.0f}" for level in levels)]
        )
    return markdown_table(["arm", "round", "figure", *(f"distance {level}" for level in levels)], body) if body else ""


def _share(counts: tuple[int, int]) -> float:
    return counts[1] / counts[0]


def difference(per_seed: Sequence[Sequence[float]]) -> list[str]:
    """Return a mean difference of shares in per cent, and its 95% intervals over seeds and over problems; a dash where there is none."""
    means = [sum(each) / len(each) for each in per_seed]
    over_seeds, over_problems = interval_over_seeds(means), interval_over_problems(per_seed)
    return [f"{100 * sum(means) / len(means):+.1f}", *("–" if each is None else _between(each) for each in (over_seeds, over_problems))]


def _between(interval: Interval) -> str:
    low, high = interval
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def markdown_table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *("| " + " | ".join(row) + " |" for row in body)])


def processor() -> str:
    """Return the name of the processor; results of training repeat exactly on one kind of processor only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    parts = [found.get("model name", platform.processor() or platform.machine())]
    parts += [f"{key} {found[key]}" for key in ("cpu family", "model") if key in found]
    return "processor " + ", ".join(parts)
