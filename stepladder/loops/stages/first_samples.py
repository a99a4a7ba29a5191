"""The graded samples with which a round began, as the first draws of its trees."""

from collections.abc import Sequence

from stepladder.loops.stages.graded_rows import draws_of
from stepladder.mcts.problem_search import Samples
from stepladder.types import Step, StopReason, TreeRecord


def first_samples(trees: Sequence[TreeRecord]) -> dict[str, Samples]:
    """Return the solutions in sampled trees by problem, in the order in which they were drawn. Those with a failed step are left out."""
    found: dict[str, Samples] = {}
    for tree in trees:
        drawn = [path for path in draws_of(tree) if tree.stop_reasons[path[-1]] != StopReason.ERROR]
        samples = tuple(tuple(_step(tree, node) for node in path) for path in drawn)
        if samples:
            found[tree.problem_id] = (*found.get(tree.problem_id, ()), *samples)
    return found


def _step(tree: TreeRecord, node: int) -> Step:
    reason = StopReason(tree.stop_reasons[node])
    return Step(
        token_ids=tuple(tree.token_ids[node]),
        logps=tuple(tree.logps[node]),
        text=tree.texts[node],
        # The step itself had ended where the depth limit cut the solution.
        stop_reason=StopReason.STEP if reason is StopReason.DEPTH else reason,
        given_ids=tuple(tree.given_ids[node]) if tree.given_ids else (),
        given_text=tree.given_texts[node] if tree.given_texts else "",
        action=tree.actions[node] if tree.actions else "",
    )
