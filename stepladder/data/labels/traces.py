"""Rules that choose traces for imitation from searched trees.

``select_traces`` takes right solutions, ``revision_traces`` ways back from a wrong step. ``within_window`` says which trees are recent
enough to be used at all.
"""

from collections import Counter
from collections.abc import Collection, Sequence

from stepladder.data.labels.candidates import JudgedTree, Ranked, Solution, best_of_sides, find_solutions, judge_trees
from stepladder.data.labels.selection import Selection
from stepladder.data.labels.values import ValueTarget
from stepladder.tree_paths import join_prompt, path_to
from stepladder.types import StopReason, Trace, TreeRecord


def within_window(records: Sequence[TreeRecord], *, versions: int | None) -> Selection[TreeRecord]:
    """Return the trees that one of the newest policy versions sampled.

    A round that was not accepted leaves the version as it is, so this is not the same as a number of rounds.

    Args:
        records: Searched trees of any rounds.
        versions: How many distinct policy versions count as recent, newest first, >= 1; None is all.

    Dropped by reason: ``outside the policy window``.
    """
    found = sorted({record.provenance.policy_version for record in records}, reverse=True)
    recent = set(found[:versions])
    rows = [record for record in records if record.provenance.policy_version in recent]
    dropped = len(records) - len(rows)
    return Selection(rows=rows, considered=len(records), dropped_by_reason={"outside the policy window": dropped} if dropped else {})


def select_traces(
    records: Sequence[TreeRecord],
    *,
    per_problem: int = 2,
    min_value: float = 0.0,
    target: ValueTarget | str = ValueTarget.TREE_VALUE,
) -> Selection[Trace]:
    """Return the best right solutions of every problem: by mean value along the path, then by its smallest value.

    Candidates are the terminals with outcome 1.0. The values of a path are those of its steps. Steps without a value are left out of both
    figures, and a path without any value is dropped.

    Args:
        records: Searched trees with outcomes.
        per_problem: Solutions kept per problem, >= 1; they differ in their tokens.
        min_value: Smallest value that every step with a value must have, in [0, 1]; 0 keeps all.
        target: What the value of a step is.

    Dropped by reason: ``no value``, ``failed step``, ``below value``, ``same tokens``, ``over problem cap``.

    Source: Guan et al. 2025, "rStar-Math": the two right trajectories of highest mean value, then of highest smallest value. The threshold
        is that of Zhang et al. 2024, "ReST-MCTS*", who take right trajectories with values of at least 0.2.
    """
    dropped: Counter[str] = Counter()
    considered = sum(record.outcomes.count(1.0) for record in records)
    right = [solution for tree in judge_trees(records, target=target) for solution in find_solutions(tree, right=True, dropped=dropped)]
    valued = [solution for solution in right if solution.least >= min_value]
    dropped["below value"] += len(right) - len(valued)
    return best_of_sides([[Ranked(rank=solution.rank, row=_trace(solution)) for solution in valued]], considered, dropped, per_problem)


def revision_traces(
    records: Sequence[TreeRecord],
    *,
    revision_ids: Sequence[int],
    revision: str,
    of_solution: bool = False,
    end_ids: Collection[int] = (),
    per_problem: int = 2,
    target: ValueTarget | str = ValueTarget.TREE_VALUE,
) -> Selection[Trace]:
    """Return ways back from a mistake: what went wrong as context, then a sentence that says so, then a right continuation.

    The mistake is the first wrong step: everything below it is wrong, although its siblings lead to a right answer. The best right path
    through a sibling follows it. With ``of_solution`` it is a whole wrong solution, followed by the best right one of its tree from the
    beginning. Nothing is learned of the mistake itself. Candidates are the first wrong steps, or the wrong solutions, of the trees that
    hold a right one. Solutions whose right path is better by mean value go first.

    Args:
        records: Searched trees with outcomes.
        revision_ids: Tokens of the sentence, steps like others; may be empty.
        revision: The sentence.
        of_solution: Show the whole wrong solution instead of the way to its first wrong step.
        end_ids: Tokens that end a sequence; behind a mistake the solution goes on, so they are taken off its end.
        per_problem: Rows kept per problem, >= 1.
        target: What the value of a step is.

    Dropped by reason: ``failed step``, ``no value`` (of the right path), ``same tokens``, ``over problem cap``.

    Source: Yuan et al. 2025, "Agent-R: Training Language Model Agents to Reflect via Iterative Self-Training": bad prefix,
        revision signal, good suffix; the first wrong step is found by the leaves below it, not by asking the model. ``of_solution`` is Qu
        et al. 2024, "Recursive Introspection: Teaching Language Model Agents How to Self-Improve" (RISE), with one turn back.
    """
    dropped: Counter[str] = Counter()
    considered = 0
    candidates: list[Ranked[Trace]] = []
    for tree in judge_trees(records, target=target):
        right = find_solutions(tree, right=True, dropped=Counter())
        for parent, wrong in _mistakes(tree, of_solution=of_solution):
            considered += 1
            below = [solution for solution in right if parent == 0 or parent in solution.path]
            if not tree.record.token_ids[wrong[-1]]:
                dropped["failed step"] += 1
            elif not below:
                dropped["no value"] += 1
            else:
                best = max(below, key=lambda solution: solution.rank)
                row = _revision(best, wrong, after=parent, revision_ids=revision_ids, revision=revision, end_ids=end_ids)
                candidates.append(Ranked(rank=best.rank, row=row))
    return best_of_sides([candidates], considered, dropped, per_problem)


def _mistakes(tree: JudgedTree, *, of_solution: bool) -> list[tuple[int, list[int]]]:
    """Return pairs (start node of a right path, wrong path) in the order of the nodes."""
    right, wrong = tree.evidence.right, tree.evidence.wrong
    if not right[0]:
        return []
    if of_solution:
        # A truncated solution is not a wrong attempt: it would continue with the rest of its last step.
        ended = [
            leaf
            for leaf, outcome in enumerate(tree.record.outcomes)
            if outcome == 0.0 and tree.record.stop_reasons[leaf] in (StopReason.END, StopReason.ERROR)
        ]
        return [(0, path_to(tree.record, leaf)) for leaf in ended if leaf]
    parents = tree.record.parents
    first_wrong = [node for node in range(1, len(parents)) if wrong[node] and not right[node] and right[parents[node]]]
    return [(parents[node], path_to(tree.record, node)) for node in first_wrong]


def _trace(solution: Solution) -> Trace:
    record = solution.tree.record
    return Trace(
        problem_id=record.problem_id,
        prompt_ids=record.prompt_ids,
        completion_ids=solution.token_ids,
        prompt=record.question,
        completion=solution.text,
        mean_value=solution.mean,
        provenance=record.provenance,
    )


def _revision(
    best: Solution, wrong: list[int], *, after: int, revision_ids: Sequence[int], revision: str, end_ids: Collection[int]
) -> Trace:
    record = best.tree.record
    mistake = [token for node in wrong for token in record.token_ids[node]]
    while mistake and mistake[-1] in end_ids:
        mistake.pop()
    rest = best.path[best.path.index(after) + 1 :] if after else best.path
    return Trace(
        problem_id=record.problem_id,
        prompt_ids=[*record.prompt_ids, *mistake],
        completion_ids=[*revision_ids, *(token for node in rest for token in record.token_ids[node])],
        prompt=join_prompt(record.question, [record.texts[node] for node in wrong]),
        completion=revision + "".join(record.texts[node] for node in rest),
        mean_value=best.mean,
        provenance=record.provenance,
    )
