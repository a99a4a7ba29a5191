"""Where does search train better than sampling? The arms of ``benchmarks.evidence`` by depth, noise of outcomes and quality of the PRM.

    depth   moves from a test problem to the goal, in three bands
    noise   wrong solutions that state the goal and are graded as right in training: none, 1 in 10, all (only the last row is read)
    PRM     trained, trained with a tenth of the updates, random

    python -m benchmarks.regime_map --seeds 0,1,2 --jobs 2

All cells have the same generated tokens, the same updates of the policy and the same test problems, which are graded exactly. Run
directories are those of ``benchmarks.evidence`` at the same ``--root``; a stopped call continues. ``--tables`` prints the map of what is
finished. The map and a picture of it are also written to ``--root``.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.evidence import Size, places, run_all
from benchmarks.evidence_picture import mean_point, percents
from benchmarks.evidence_tables import (
    Cell,
    difference,
    finished,
    greedy,
    markdown_table,
    problem_rows,
    processor,
)
from benchmarks.many_runs import end, names_among, numbers, share
from stepladder.data.store import read_traces
from stepladder.embedded.puzzle import grade
from stepladder.files import atomic_write_text
from stepladder.report.charts import Axis, Series, line_chart, standalone
from stepladder.report.page import chart_style
from stepladder.terminal import echo

REFERENCE = "star-single"
"""Samples one at a time, the strongest rival of the search."""
ARMS = {REFERENCE: "samples", "search": "search", "search-weak": "search, weak PRM", "search-random": "search, random scores"}
"""The arms and their names in the map."""
BANDS = {"near": (5, 7), "middle": (8, 10), "far": (11, 13), "all": (5, 13)}
"""Moves to the goal, from and to, of the bands of depth."""
_STYLES = dict(zip(ARMS, ("line-1", "line-0", "line-2", "line-3"), strict=True))


class Place(NamedTuple):
    """A place of the map that some seeds have reached."""

    noise: float
    """Share of the wrong solutions that pass."""
    arm: str
    """A name of ``ARMS``."""
    by_seed: dict[int, dict[str, dict[str, float]]]
    """By seed and band, whether the greedy solution of each test problem is right."""
    wrong: float
    """Share of wrong solutions among those that the policy learned from."""


def place_of(noise: float, arm: str, cells: Sequence[Cell], number: int) -> Place:
    """Return the accuracies of the seeds of an arm after a round."""
    by_seed = {}
    for cell in cells:
        moves = {row["id"]: row["distance"] for row in problem_rows(cell.run.config().problems.test)}
        right = greedy(cell, number)
        by_seed[cell.seed] = {
            band: {problem: each for problem, each in right.items() if low <= moves[problem] <= high} for band, (low, high) in BANDS.items()
        }
    verdicts = [each for cell in cells for each in _verdicts(cell, number)]
    return Place(noise, arm, by_seed, 1.0 - sum(verdicts) / len(verdicts))


def _verdicts(cell: Cell, number: int) -> list[bool]:
    """Return the exact verdicts on the solutions that the policy of a round learned from."""
    questions = {row["id"]: row["question"] for row in problem_rows(cell.run.config().problems.train)}
    traces = (trace for shard in cell.run.shards("traces", rounds=[number]) for trace in read_traces(shard))
    return [grade(questions[trace.problem_id], trace.completion)[0] for trace in traces]


def table(found: Sequence[Place]) -> str:
    """Return one row per noise and arm: greedy accuracy in per cent by band, and the lead over the reference with its intervals.

    The last column has the share of wrong solutions among those that the last round's policy learned from.
    """
    references = {place.noise: place for place in found if place.arm == REFERENCE}
    heads = ["wrong solutions that pass", "arm", "seeds", *(_head(band) for band in BANDS), "lead", "over seeds", "over problems"]
    heads.append("learned and wrong %")
    body = []
    for place in found:
        accuracies = [f"{100 * _mean(by_band[band] for by_band in place.by_seed.values()):.1f}" for band in BANDS]
        lead = _lead(place, references.get(place.noise))
        body.append([_share(place.noise), ARMS[place.arm], str(len(place.by_seed)), *accuracies, *lead, f"{100 * place.wrong:.1f}"])
    return markdown_table(heads, body)


def _head(band: str) -> str:
    low, high = BANDS[band]
    return f"{band} ({low} to {high})"


def _share(noise: float) -> str:
    if noise in (0.0, 1.0):
        return "all" if noise else "none"
    return f"1 in {1 / noise:.0f}"


def _mean(seeds: Iterable[dict[str, float]]) -> float:
    means = [sum(each.values()) / len(each) for each in seeds]
    return sum(means) / len(means)


def _lead(place: Place, reference: Place | None) -> list[str]:
    shared = sorted(set(place.by_seed) & set(reference.by_seed)) if reference and reference is not place else []
    if reference is None or not shared:
        return ["–"] * 3
    pairs = [(place.by_seed[seed]["all"], reference.by_seed[seed]["all"]) for seed in shared]
    return difference([[ours[problem] - theirs[problem] for problem in sorted(ours)] for ours, theirs in pairs])


def draw(found: Sequence[Place]) -> str:
    """Return an SVG with a panel per band: greedy accuracy of the arms by noise, with whiskers from the lowest to the highest seed."""
    noises = sorted({place.noise for place in found})
    ticks = [(float(number), _share(noise)) for number, noise in enumerate(noises)]
    axis = Axis(label="wrong solutions that pass in training", low=-0.4, high=len(noises) - 0.6, ticks=ticks)
    panels = []
    for band in BANDS:
        lines = []
        for arm, style in _STYLES.items():
            own = [place for place in found if place.arm == arm]
            points = [
                mean_point(noises.index(place.noise), [_mean([each[band]]) for each in place.by_seed.values()])
                for place in sorted(own, key=lambda place: place.noise)
            ]
            if points:
                lines.append(Series(name=ARMS[arm].removeprefix("search, ").removesuffix(" scores"), style=style, points=points))
        low, high = BANDS[band]
        panels.append(
            line_chart(
                lines,
                x=axis,
                y=percents(f"greedy, {low} to {high} moves (%)", lines),
                label=f"Greedy accuracy on problems {low} to {high} moves from the goal, by share of wrong solutions that pass",
                x_name="wrong solutions that pass:",
            )
        )
    return standalone(panels, style=chart_style(), title="Search and samples by depth, noise and PRM")


def main() -> None:
    """Run the arms at every noise and print the map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="seeds, with commas")
    parser.add_argument("--arms", type=names_among(list(ARMS)), default=list(ARMS), help="arms, with commas, the most important first")
    parser.add_argument("--noises", type=_shares, default=[0.0, 0.1, 1.0], help="shares of wrong solutions that pass, with commas")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, each on one core")
    parser.add_argument("--tables", action="store_true", help="run nothing, print the map of what is finished")
    parser.add_argument("--root", type=Path, default=Path("runs/evidence"))
    given = parser.parse_args()
    root, failed, found = given.root.resolve(), list[str](), list[Place]()
    for noise in given.noises:
        size = replace(Size(rounds=given.rounds), noise=noise)
        if not given.tables:
            failed += run_all(root, size, seeds=given.seeds, chosen=given.arms, more=[], jobs=given.jobs)
        for arm in given.arms:
            cells = finished(places(root, size, seeds=given.seeds, chosen=[arm]), rounds=given.rounds)
            if cells:
                found.append(place_of(noise, arm, cells, given.rounds))
    if found:
        text = f"{Size(rounds=given.rounds).sentence()}; {processor()}.\n\n{table(found)}\n"
        atomic_write_text(root / f"regime-map-{given.rounds}.md", text)
        atomic_write_text(root / f"regime-map-{given.rounds}.svg", draw(found))
        echo(text)
    end(failed)


def _shares(text: str) -> list[float]:
    return [share(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
