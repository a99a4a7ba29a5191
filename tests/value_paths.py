"""Rows of a toy world in which one token is good, and how well a model tells it."""

from pathlib import Path

import numpy as np

from stepladder.interfaces import ScoreRequest
from stepladder.types import Provenance, ValueRow
from tests.prms import load_step_scorer

HASH = "renderer-a"


PROVENANCE = Provenance(round=1, policy_version=0, scorer_version=None, seed=0, config_hash="0" * 16, renderer_hash=HASH)


GOOD = 10
"""The token that makes a step good in the toy task."""


def value_row(
    prompt_ids: list[int], step_ids: list[list[int]], targets: list[float | None], provenance: Provenance = PROVENANCE
) -> ValueRow:
    """Return a path with targets."""
    steps = ["" for _ in step_ids]
    return ValueRow(
        problem_id="p1", prompt_ids=prompt_ids, step_ids=step_ids, targets=targets, prompt="", steps=steps, provenance=provenance
    )


def toy_rows(num_rows: int, seed: int) -> list[ValueRow]:
    """Return paths of three steps; a step's target is 0.9 where the path so far holds the good token and 0.1 elsewhere."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        steps = [rng.integers(11, 50, int(rng.integers(2, 6))).tolist() for _ in range(3)]
        if rng.random() < 0.7:
            steps[int(rng.integers(3))][0] = GOOD
        good = np.cumsum([GOOD in step for step in steps]) > 0
        rows.append(value_row(rng.integers(11, 50, 4).tolist(), steps, np.where(good, 0.9, 0.1).tolist()))
    return rows


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the share of (positive, negative) pairs that are ranked right, ties counting half."""
    gaps = scores[positive][:, None] - scores[~positive][None]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def scores_of(directory: Path, rows: list[ValueRow]) -> np.ndarray:
    """Return the scores that a search would see, one per step."""
    scorer = load_step_scorer(directory)
    branches = [tuple(tuple(step) for step in row.step_ids) for row in rows]
    requests = [ScoreRequest(ticket=i, prefix_ids=tuple(row.prompt_ids), branches=(branches[i],)) for i, row in enumerate(rows)]
    scorer.submit(requests)
    found = {}
    while results := scorer.collect():
        found.update({result.ticket: result.scores[0] for result in results})
    return np.array([score for i in range(len(rows)) for score in found[i]], dtype=float)


def tree_paths(seed: int, num_problems: int = 3) -> list[ValueRow]:
    """Return all root-to-leaf paths of trees of depth 4 and branching 2; a node has its target in the first path through it only."""
    rng = np.random.default_rng(seed)
    steps = {
        (p, *node): rng.integers(11, 50, int(rng.integers(1, 6))).tolist()
        for p in range(num_problems)
        for depth in range(1, 5)
        for node in np.ndindex(*[2] * depth)
    }
    rows, taken = [], set()
    for problem in range(num_problems):
        for leaf in np.ndindex(2, 2, 2, 2):
            path = [(problem, *leaf[:depth]) for depth in range(1, 5)]
            targets = [None if node in taken else float(rng.random()) for node in path]
            taken.update(path)
            row = {"problem_id": f"p{problem}", "prompt_ids": [5, 6, 7 + problem], "prompt": "", "steps": [""] * 4}
            rows.append(ValueRow(step_ids=[steps[node] for node in path], targets=targets, provenance=PROVENANCE, **row))
    return rows
