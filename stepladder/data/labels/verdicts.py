"""Rows that teach a model to judge: the question whether a step is right, and the word for it."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from stepladder.data.labels.candidates import JudgedTree, Ranked, best_of_sides, judge_trees
from stepladder.data.labels.selection import Selection
from stepladder.tree_paths import path_to
from stepladder.types import Trace, TreeRecord, derive_seed


class WrittenVerdict(NamedTuple):
    """A question about a step, and its answer, as tokens."""

    prompt_ids: tuple[int, ...]
    """The question. It carries no loss."""
    verdict_ids: tuple[int, ...]
    """The word."""
    word: str
    """The word as text."""


Write = Callable[[str, Sequence[str], bool], WrittenVerdict]
"""Returns the tokens of a verdict, given a question, the steps up to the judged one, and whether that is right."""


def verdict_traces(records: Sequence[TreeRecord], write: Write, *, per_side: int) -> Selection[Trace]:
    """Return verdicts on steps of graded trees, right ones and wrong ones of the same problems.

    A step is right if a leaf at or below it is right, and wrong if all graded leaves there are wrong. Candidates are the steps with a
    graded leaf; which of them are kept is drawn by a seed of the run, the round and the step's path.

    Args:
        records: Searched trees with outcomes.
        write: Makes tokens of a verdict.
        per_side: Right steps kept per problem, and as many wrong ones at most, >= 1.

    Dropped by reason: ``failed step``, ``one-sided problem``, ``same tokens``, ``over problem cap``.

    Source: Yuan et al. 2024, "Self-Rewarding Language Models", whose policy learns from judged answers first, and Zhao et al. 2025,
        "GenPRM" (arXiv 2504.00891), whose judge learns from graded steps. The verdict alone is learned, without reasons.
    """
    dropped: Counter[str] = Counter()
    trees = judge_trees(records)
    found = [(tree, node, right) for tree in trees for node, right in _judged_steps(tree)]
    known = [each for each in found if each[0].record.token_ids[each[1]]]
    dropped["failed step"] += len(found) - len(known)
    sides = [{tree.record.problem_id for tree, _, right in known if right is side} for side in (True, False)]
    mixed = [each for each in known if all(each[0].record.problem_id in side for side in sides)]
    dropped["one-sided problem"] += len(known) - len(mixed)
    rows = [[_ranked(tree, node, right, write) for tree, node, right in mixed if right is side] for side in (True, False)]
    return best_of_sides(rows, len(found), dropped, per_side)


def _judged_steps(tree: JudgedTree) -> list[tuple[int, bool]]:
    """Return the steps that have a graded leaf at or below them, and whether one of these is right."""
    right, wrong = tree.evidence.right, tree.evidence.wrong
    return [(node, bool(right[node])) for node in range(1, len(tree.record.parents)) if right[node] or wrong[node]]


def _ranked(tree: JudgedTree, node: int, right: bool, write: Write) -> Ranked[Trace]:
    record = tree.record
    steps = [record.texts[each] for each in path_to(record, node)]
    written = write(record.question, steps, right)
    seed = derive_seed(record.provenance.seed, record.provenance.round, "verdict", record.problem_id, "".join(steps))
    row = Trace(
        problem_id=record.problem_id,
        prompt_ids=list(written.prompt_ids),
        completion_ids=list(written.verdict_ids),
        prompt=record.question,
        completion=written.word,
        mean_value=float(right),
        provenance=record.provenance,
    )
    return Ranked(rank=(float(seed),), row=row)
