"""Rules that choose traces for imitation from searched trees.

``select_traces`` takes right solutions, ``revision_traces`` ways back from a wrong step. ``within_window`` says which trees are recent
enough to be used at all.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from enum import StrEnum

from stepladder.data.labels.candidates import DECIMALS, JudgedTree, Ranked, Solution, best_of_sides, find_solutions, judge_trees
from stepladder.data.labels.selection import Selection
from stepladder.data.labels.values import is_wrong
from stepladder.tree_paths import ids_along, join_prompt, path_to, path_tokens, text_along
from stepladder.types import StopReason, Trace, TreeRecord, derive_seed


class TraceOrder(StrEnum):
    """Order in which the right solutions of a problem are preferred as traces."""

    VALUE = "value"
    """Highest mean value of the steps first, then highest smallest value."""
    SCORE = "score"
    """Highest mean PRM score of the steps first, then highest smallest score; solutions without a score come last, by value."""
    SHORTEST = "shortest"
    """Fewest steps first, then fewest tokens, then by value."""
    RANDOM = "random"
    """At random among the distinct solutions, by a seed of the run, the round and the solution."""


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
    min_reward: float | None = None,
    by: TraceOrder | str = TraceOrder.VALUE,
) -> Selection[Trace]:
    """Return the best right solutions of every problem: by mean value along the path, then by its smallest value, or in another order.

    Candidates are the terminals with outcome 1.0. The values of a path are those of its steps. Steps without a value are left out of both
    figures, and a path without any value is dropped.

    Args:
        records: Searched trees with outcomes.
        per_problem: Solutions kept per problem, >= 1; they differ in their tokens.
        min_value: Smallest value that every step with a value must have, in [0, 1]; 0 keeps all.
        min_reward: Keep only solutions whose ``solution_reward`` is larger; None keeps all.
        by: Order in which solutions are preferred.

    Dropped by reason: ``no value``, ``failed step``, ``below value``, ``below reward``, ``same tokens``, ``over problem cap``.

    Source: Guan et al. 2025, "rStar-Math": the two right trajectories of highest mean value, then of highest smallest value. The threshold
        is that of Zhang et al. 2024, "ReST-MCTS*", who take right trajectories with values of at least 0.2. By ``score``: Yang et al.
        2024, "Qwen2.5-Math", who rank right samples with a reward model; at ``random``: Zelikman et al. 2022, "STaR".
    """
    dropped: Counter[str] = Counter()
    considered = sum(record.outcomes.count(1.0) for record in records)
    right = [solution for tree in judge_trees(records) for solution in find_solutions(tree, right=True, dropped=dropped)]
    valued = [solution for solution in right if solution.least >= min_value]
    dropped["below value"] += len(right) - len(valued)
    if min_reward is not None:
        rewarded = [each for each in valued if solution_reward([each.tree.record.scores[node] for node in each.path]) > min_reward]
        dropped["below reward"] += len(valued) - len(rewarded)
        valued = rewarded
    return best_of_sides(
        [[Ranked(rank=_RANKS[TraceOrder(by)](solution), row=_trace(solution)) for solution in valued]], considered, dropped, per_problem
    )


def _score_rank(solution: Solution) -> tuple[float, ...]:
    scores = [score for node in solution.path if (score := solution.tree.record.scores[node]) is not None]
    mean, least = (round(sum(scores) / len(scores), DECIMALS), min(scores)) if scores else (-1.0, -1.0)
    return mean, least, *solution.rank


def _length_rank(solution: Solution) -> tuple[float, ...]:
    return -len(solution.path), -len(solution.tokens.ids), *solution.rank


def _random_rank(solution: Solution) -> tuple[float, ...]:
    record, tokens = solution.tree.record, ",".join(map(str, solution.tokens.ids))
    return (float(derive_seed(record.provenance.seed, record.provenance.round, "trace", record.problem_id, tokens)),)


_RANKS: dict[TraceOrder, Callable[[Solution], tuple[float, ...]]] = {
    TraceOrder.VALUE: lambda solution: solution.rank,
    TraceOrder.SCORE: _score_rank,
    TraceOrder.SHORTEST: _length_rank,
    TraceOrder.RANDOM: _random_rank,
}
"""Rank of a solution in every order; the highest comes first."""


def solution_reward(scores: Sequence[float | None], *, right: bool = True) -> float:
    """Return the reward of a solution: 1 if it is right, plus a fifth of the smallest PRM score of its steps.

    Args:
        scores: The scores of its steps; None for an unscored one. Without any score, the PRM adds nothing.
        right: Whether its answer is right.

    Source: Zeng et al. 2024, "B-STaR: Monitoring and Balancing Exploration and Exploitation in Self-Taught Reasoners", and its code.
    """
    known = [score for score in scores if score is not None]
    return float(right) + (min(known) / 5 if known else 0.0)


def revision_traces(
    records: Sequence[TreeRecord],
    *,
    revision_ids: Sequence[int],
    revision: str,
    of_solution: bool = False,
    end_ids: Collection[int] = (),
    per_problem: int = 2,
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
        end_ids: Tokens that end a sequence; after a mistake the solution goes on, so they are taken off its end.
        per_problem: Rows kept per problem, >= 1.

    Dropped by reason: ``failed step``, ``no value`` (of the right path), ``same tokens``, ``over problem cap``.

    Source: Yuan et al. 2025, "Agent-R: Training Language Model Agents to Reflect via Iterative Self-Training": bad prefix,
        revision signal, good suffix; the first wrong step is found by the leaves below it, not by asking the model. ``of_solution`` is Qu
        et al. 2024, "Recursive Introspection: Teaching Language Model Agents How to Self-Improve" (RISE), with one turn back.
    """
    dropped: Counter[str] = Counter()
    considered = 0
    candidates: list[Ranked[Trace]] = []
    for tree in judge_trees(records):
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
            if is_wrong(outcome) and tree.record.stop_reasons[leaf] in (StopReason.END, StopReason.ERROR)
        ]
        return [(0, path_to(tree.record, leaf)) for leaf in ended if leaf]
    parents = tree.record.parents
    first_wrong = [node for node in range(1, len(parents)) if wrong[node] and not right[node] and right[parents[node]]]
    return [(parents[node], path_to(tree.record, node)) for node in first_wrong]


def _trace(solution: Solution) -> Trace:
    record, tokens = solution.tree.record, solution.tokens
    return Trace(
        problem_id=record.problem_id,
        prompt_ids=record.prompt_ids,
        completion_ids=tokens.ids,
        prompt=record.question,
        completion=tokens.text,
        mean_value=solution.mean,
        provenance=record.provenance,
        completion_given=tokens.given,
    )


def _revision(
    best: Solution, wrong: list[int], *, after: int, revision_ids: Sequence[int], revision: str, end_ids: Collection[int]
) -> Trace:
    record = best.tree.record
    mistake = ids_along(record, wrong)
    while mistake and mistake[-1] in end_ids:
        mistake.pop()
    rest = path_tokens(record, best.path[best.path.index(after) + 1 :] if after else best.path)
    return Trace(
        problem_id=record.problem_id,
        prompt_ids=[*record.prompt_ids, *mistake],
        completion_ids=[*revision_ids, *rest.ids],
        prompt=join_prompt(record.question, [text_along(record, wrong)]),
        completion=revision + rest.text,
        mean_value=best.mean,
        provenance=record.provenance,
        completion_given=[*([False] * len(revision_ids)), *rest.given] if rest.given else [],
    )
