"""The comparison of what trainers learn: with all pairs in every update nothing is left to differ, and its figures by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.learning import COMMON, OURS, TRL, Curve, Data, Point, by_seconds, by_updates, compare
from benchmarks.packing import Case, Setup, make_pairs, write_model


@pytest.mark.slow
def test_all_contestants_learn_the_same_from_whole_updates(tmp_path: Path) -> None:
    """With all pairs in every update the order does not matter: trees, separate sequences and TRL learn the same after every update."""
    setup = Setup(prompt_tokens=6, step_tokens=4)
    write_model(tmp_path, setup)
    pairs = make_pairs(Case(num_trees=6, depth=2, branching=3), setup)
    data = Data(policy=str(tmp_path), train=[pair for pair in pairs if pair.problem_id > "1"], held_out=pairs[:8])
    assert data.sentence() == "16 pairs of 4 problems to learn, 8 of 2 held out"
    common = replace(COMMON, learning_rate=1e-3, batch_size=16, updates=4)
    found = compare({0: data}, {name: (name, common) for name in (*OURS, TRL)}, every=1)
    first = found[TRL][0]
    assert [point.updates for point in first.points] == [0, 1, 2, 3, 4] and first.problems == 4
    # The warm-up's first update has a rate of 0.
    assert first.points[1].loss == pytest.approx(math.log(2), abs=1e-6)
    assert abs(first.points[3].loss - math.log(2)) > 1e-2
    for (curve,) in found.values():
        assert [point.loss for point in curve.points] == pytest.approx([point.loss for point in first.points], abs=1e-3)
        assert [point.seconds for point in curve.points] == sorted(point.seconds for point in curve.points)


def curve(problems: float, *points: tuple[int, float, float, float]) -> Curve:
    """Return a curve."""
    return Curve(problems, [Point(0, 0.0, 0.7, 0.5), *(Point(*point) for point in points)])


FOUND = {
    "trees": [curve(3, (5, 1.0, 0.6, 0.6), (10, 2.0, 0.4, 0.8)), curve(4, (5, 1.0, 0.65, 0.6), (10, 3.0, 0.55, 0.7))],
    TRL: [curve(9, (5, 4.0, 0.6, 0.6), (10, 8.0, 0.5, 0.9)), curve(9, (5, 2.0, 0.6, 0.65), (10, 8.0, 0.5, 0.9))],
}


def cells(table: str) -> list[list[str]]:
    """Return the body of a table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_equal_updates_have_means_and_extremes_over_seeds() -> None:
    """The first point, the middle one and the last."""
    trees, trl = cells(by_updates(FOUND))
    assert trees == [
        "trees",
        "3.5 (3.0–4.0)",
        "2.5 (2.0–3.0)",
        *["0.700 (0.700–0.700)"],
        "0.625 (0.600–0.650)",
        "0.475 (0.400–0.550)",
        "75.0 (70.0–80.0)",
    ]
    assert trl[-1] == "90.0 (90.0–90.0)"


def test_equal_seconds_take_what_was_learned_by_then() -> None:
    """When trees are done, after 2 and 3 s, TRL has made no update with the first seed and five with the second."""
    trees, trl = cells(by_seconds(FOUND))
    assert trees == ["trees", "0.475, 75.0%", "0.475, 75.0%", "2.0, never"]
    assert trl == [TRL, "0.650, 57.5%", "0.500, 90.0%", "8.0, 8.0"]
