"""How well the PRM ranks steps, by their depth in the searched trees of a round."""

from itertools import islice

from stepladder.data.metrics.step_scores import auc_by_depth
from stepladder.data.store import read_trees
from stepladder.loops.runs.directory import RunDir
from stepladder.types import TreeRecord

_MOST_TREES = 2000
"""Trees of a round that are read; more change no digit that is shown."""
_FEWEST_STEPS = 20
"""Fewest steps of a depth whose figure means anything."""

DepthAuc = dict[int, float]
"""Depth -> AUC."""


def depth_aucs(run: RunDir, number: int) -> DepthAuc:
    """Return by depth how well the PRM that guided a round's search told good steps from bad ones.

    A step is good if most graded ends below it are right, and bad if most are wrong.

    Raises:
        CheckpointError, DataFormatError: If a file of trees is damaged.
    """
    trees = (tree for path in run.shards("trees", rounds=[number]) for tree in read_trees(path))
    steps = [step for tree in islice(trees, _MOST_TREES) for step in _judged_steps(tree)]
    return {depth: auc for depth, (auc, count) in auc_by_depth(steps).items() if auc is not None and count >= _FEWEST_STEPS}


def _judged_steps(tree: TreeRecord) -> list[tuple[int, float, float]]:
    """Return depth, score and share of right ends of every step that has both."""
    right, ends = [0.0] * len(tree.parents), [0] * len(tree.parents)
    for node in range(len(tree.parents) - 1, 0, -1):
        if (outcome := tree.outcomes[node]) is not None:
            right[node] += float(outcome == 1.0)
            ends[node] += 1
        right[tree.parents[node]] += right[node]
        ends[tree.parents[node]] += ends[node]
    return [
        (tree.depths[node], score, right[node] / ends[node])
        for node, score in enumerate(tree.scores)
        if node and score is not None and score == score and ends[node]
    ]
