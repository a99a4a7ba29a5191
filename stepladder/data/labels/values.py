"""From searched trees to labels: the evidence of graded leaves, the values of nodes, and value targets.

Values are in [0, 1]; ``unit_values`` maps those of searches whose returns leave that range.

All rows are made of the token ids that the tree stores; nothing is tokenised again. Evidence is the outcome of leaves: terminal and
truncated nodes carry 1.0 (right) or less (wrong: 0.0, or partial credit), and a node is judged by the leaves at and below it. Every tree
counts each of its leaves once, however often it was visited.

``pair_rules`` and ``traces.py`` choose what the policy learns from. Each choice is a ``Selection``: the rows that were kept and how many
were dropped, by reason. Caps are per problem, over all trees of that problem that are given. All ties are broken by node index, so the rows
depend on the trees alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from stepladder.errors import DataFormatError
from stepladder.types import StopReason, TreeRecord


class ValueTarget(StrEnum):
    """Definition of a node's value."""

    MONTE_CARLO = "monte-carlo"
    """Share of right ones among the distinct graded leaves at and below the node, or their mean with partial credit; none without such a
    leaf. Plain counting, not weighted by visits: visits favour what the search already believed."""
    TREE_VALUE = "tree-value"
    """The node's backed-up return, mapped into [0, 1] by ``unit_values``; none while unvisited."""
    Q = "q"
    """The worth of the step into the node: the reward of its edge plus the discounted return, mapped likewise; the tree value where a
    search has neither rewards nor discount."""
    SCORE = "score"
    """The PRM's score of the step; none without one."""
    HARD_MAX = "hard-max"
    """1 if a right leaf is at or below the node, 0 if only wrong leaves are; none without a graded leaf."""
    DISTANCE = "distance"
    """ReST-MCTS*: rises by equal parts on the shortest way to a right leaf and falls with wrong steps; see ``distance_values``."""
    DISCOUNTED = "discounted"
    """0.85 to the power of the fewest steps to a right leaf, 0 where only wrong leaves are below; see ``discounted_values``."""
    BOOTSTRAPPED = "bootstrapped"
    """The same where a right leaf is below; elsewhere 0.85 times the best step that follows, as the PRM sees it; see
    ``bootstrapped_values``."""
    OUTCOME = "outcome"
    """Whether a graded leaf is right; none for other nodes. This judges whole solutions, like an outcome reward model."""
    PROGRESS = "progress"
    """Monte Carlo value plus the step's gain for the best of several attempts from there; see ``progress_values``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Graded leaves at and below every node of a tree; entry i belongs to node i."""

    right: list[int]
    """Leaves with outcome 1.0."""
    wrong: list[int]
    """Leaves with a smaller outcome."""
    credit: list[float]
    """Sum of all outcomes."""


def is_wrong(outcome: float | None) -> bool:
    """Say whether a node is graded and not right; partial credit is not enough."""
    return outcome is not None and outcome < 1.0


def gather_evidence(record: TreeRecord) -> Evidence:
    """Count the right and wrong leaves at and below every node.

    Raises:
        DataFormatError: If an outcome is outside [0, 1], or a parent does not come before its child.
    """
    right, wrong = ([0] * len(record.parents) for _ in range(2))
    credit = [0.0] * len(record.parents)
    for node in range(len(record.parents) - 1, -1, -1):
        outcome, parent = record.outcomes[node], record.parents[node]
        if outcome is not None:
            if not 0.0 <= outcome <= 1.0:
                raise DataFormatError(f"tree of {record.problem_id!r}: outcome of node {node} must be in [0, 1] or none: got {outcome!r}")
            right[node] += outcome == 1.0
            wrong[node] += is_wrong(outcome)
            credit[node] += outcome
        if node == 0:
            break
        if not 0 <= parent < node:
            raise DataFormatError(f"tree of {record.problem_id!r}: parent of node {node} must be in [0, {node}): got {parent}")
        right[parent] += right[node]
        wrong[parent] += wrong[node]
        credit[parent] += credit[node]
    return Evidence(right=right, wrong=wrong, credit=credit)


def node_values(record: TreeRecord, target: ValueTarget | str) -> list[float | None]:
    """Return the value of every node under a definition, in [0, 1]; None without one.

    Raises:
        DataFormatError: If a stored value is not finite, or an outcome is impossible.
    """
    chosen = ValueTarget(target)
    if chosen is ValueTarget.DISTANCE:
        return distance_values(record)
    if chosen is ValueTarget.DISCOUNTED:
        return discounted_values(record)
    if chosen is ValueTarget.BOOTSTRAPPED:
        return bootstrapped_values(record)
    if chosen is ValueTarget.OUTCOME:
        gather_evidence(record)
        return list(record.outcomes)
    if chosen is ValueTarget.PROGRESS:
        values = node_values(record, ValueTarget.MONTE_CARLO)
        return progress_values(values, best_of_values(values), record.parents)
    if chosen in _RETURNS:
        return unit_values(_finite(record, "values" if chosen is ValueTarget.Q and not record.qvalues else _RETURNS[chosen]))
    evidence = gather_evidence(record)
    counts = [right + wrong for right, wrong in zip(evidence.right, evidence.wrong, strict=True)]
    if chosen is ValueTarget.MONTE_CARLO:
        return [credit / count if count else None for credit, count in zip(evidence.credit, counts, strict=True)]
    return [float(right > 0) if count else None for right, count in zip(evidence.right, counts, strict=True)]


_RETURNS = {ValueTarget.TREE_VALUE: "values", ValueTarget.Q: "qvalues", ValueTarget.SCORE: "scores"}
"""Fields of a tree that hold the values under a definition."""


def _finite(record: TreeRecord, field: str) -> list[float | None]:
    values: list[float | None] = list(getattr(record, field))
    for node, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise DataFormatError(f"tree of {record.problem_id!r}: {field} of node {node} must be a finite number: got {value!r}")
    return values


def unit_values(values: Sequence[float | None]) -> list[float | None]:
    """Return the values of a tree in [0, 1].

        v -> (v - low) / (high - low),   low = min(0, smallest value),   high = max(1, largest value)

    Values that are in [0, 1] stay what they are. Returns that add up the gains of steps leave that range; their order stays, and the
    differences of a tree are divided by high - low.

    Args:
        values: Finite values of the nodes of one tree; None if unknown, which stays None.

    Source: ours.
    """
    known = [value for value in values if value is not None]
    low, high = min(0.0, *known, 0.0), max(1.0, *known, 1.0)
    if (low, high) == (0.0, 1.0):
        return list(values)
    return [None if value is None else (value - low) / (high - low) for value in values]


def valued_trees(records: Sequence[TreeRecord], target: ValueTarget | str) -> list[TreeRecord]:
    """Return trees whose ``values`` are those of a definition, for the rules that choose training rows.

    A graded leaf that has no value under the definition, because the search never came back to it or nothing scored it, is worth its
    outcome. So every graded solution has a value, whatever the search backs up.

    Raises:
        DataFormatError: If a tree breaks its own rules.
    """
    return [replace(record, values=_with_outcomes(node_values(record, target), record.outcomes)) for record in records]


def _with_outcomes(values: list[float | None], outcomes: Sequence[float | None]) -> list[float | None]:
    return [outcome if value is None else value for value, outcome in zip(values, outcomes, strict=True)]


def distance_values(record: TreeRecord) -> list[float | None]:
    """Return the ReST-MCTS* value of every node: its progress on the shortest way to a right leaf.

        v_k = max(0, v_{k-1} + (1 - v_{k-1}) (+-1) / (m_k + 1)),   v_0 = 0

    m is the fewest steps from a node to a right leaf, 0 at one. The sign is minus for a wrong node, below which no graded leaf is right; it
    takes m of its nearest ancestor that has one. A node without a graded leaf at or below it has no value, and in a tree without a right
    leaf none has.

    Source: Zhang et al. 2024, "ReST-MCTS*: LLM self-training via process reward guided tree search", equations 2 and 3. The paper leaves
    m of a wrong node open; this is what the released code does, whose m is counted from 1.
    """
    evidence = gather_evidence(record)
    count = len(record.parents)
    distances = _steps_to_right(record)
    values: list[float | None] = [None] * count
    if distances[0] is None:
        return values
    values[0] = 0.0
    for node in range(1, count):
        before, inherited = values[record.parents[node]], distances[record.parents[node]]
        if before is None or not evidence.right[node] + evidence.wrong[node]:
            continue
        own = distances[node]
        if own is None:
            # A parent with a value always has a distance: its own, or the one it inherited here.
            assert inherited is not None
            distances[node] = inherited
            values[node] = max(0.0, before - (1.0 - before) / (inherited + 1))
        else:
            values[node] = before + (1.0 - before) / (own + 1)
    return values


def discounted_values(record: TreeRecord, *, discount: float = 0.85) -> list[float | None]:
    """Return the discounted outcome of every node: the nearer a right leaf, the higher.

        v = discount^m

    m is the fewest steps from the node to a right leaf. A node with wrong leaves only is worth 0, and one without a graded leaf at or below
    it has no value. Unlike ``distance_values``, the value of a node does not depend on the way to it, and trees without a right leaf count.

    Args:
        record: A searched tree with outcomes.
        discount: Factor per step, in (0, 1).
    """
    evidence = gather_evidence(record)
    return [
        discount**steps if steps is not None else 0.0 if wrong else None
        for steps, wrong in zip(_steps_to_right(record), evidence.wrong, strict=True)
    ]


def bootstrapped_values(record: TreeRecord, *, discount: float = 0.85) -> list[float | None]:
    """Return the discounted value of every node, bootstrapped from the PRM's scores where no right leaf is below.

        v = discount^m                                                  with a right leaf m steps below
        v = discount max_c max(v_c, s_c)                                else; c are its children, s_c their scores
        v = 0                                                           at a leaf that ended wrong, or was cut within a step

    A search ends long before it has tried everything, so a step above failed attempts alone is not worthless: it is worth at least what
    its best continuation is. A step from which nothing was tried, or which the depth limit cut, has no value of its own. In a tree without
    scores nothing is known beyond outcomes; its values are ``discounted_values``.

    Args:
        record: A searched tree with outcomes. Scores beyond [0, 1] are mapped into it by ``unit_values``.
        discount: Factor per step, in (0, 1).

    Raises:
        DataFormatError: If a score is not finite, or an outcome is impossible.

    Source: value iteration with fitted values (Bellman 1957), on the part of the tree that was searched.
    """
    values, scores = discounted_values(record, discount=discount), node_values(record, ValueTarget.SCORE)
    if all(score is None for score in scores):
        return values
    best: list[float | None] = [None] * len(values)
    for node in range(len(values) - 1, -1, -1):
        worth, below = values[node], best[node]
        if worth is None or (worth == 0.0 and record.stop_reasons[node] in _GOES_ON):
            values[node] = None if below is None else discount * below
            worth = _larger(values[node], scores[node])
        if node:
            best[record.parents[node]] = _larger(best[record.parents[node]], worth)
    return values


_GOES_ON = (StopReason.STEP, StopReason.DEPTH)
"""Why a step ended that could be followed by another."""


def _larger(one: float | None, other: float | None) -> float | None:
    return max((each for each in (one, other) if each is not None), default=None)


def _steps_to_right(record: TreeRecord) -> list[int | None]:
    """Return the fewest steps from every node to a right leaf, 0 at one; None without one below."""
    distances: list[int | None] = [0 if outcome == 1.0 else None for outcome in record.outcomes]
    for node in range(len(record.parents) - 1, 0, -1):
        below, parent = distances[node], record.parents[node]
        above = distances[parent]
        if below is not None and (above is None or below + 1 < above):
            distances[parent] = below + 1
    return distances


def best_of_values(values: Sequence[float | None], *, attempts: int = 4) -> list[float | None]:
    """Return the values under a policy that tries several times and keeps the best: 1 - (1 - V)^attempts.

    Args:
        values: Values under one attempt, in [0, 1]; None if unknown.
        attempts: Tries, >= 1. With 1 try it is the policy itself; with many tries, every node that can succeed is worth 1.

    Source: Setlur et al. 2024, "Rewarding progress: scaling automated process verifiers for LLM reasoning": best-of-4 of the base policy is
        a good prover, because it is better than the base and still separates steps.
    """
    return [None if value is None else 1.0 - (1.0 - value) ** attempts for value in values]


def progress_values(
    values: Sequence[float | None], prover_values: Sequence[float | None], parents: Sequence[int], *, alpha: float = 1.0
) -> list[float | None]:
    """Return the value of every node plus its step's gain for another policy.

        min(1, max(0, Q_base + alpha * (V_prover(node) - V_prover(parent))))

    Args:
        values: Values under the search's policy, in [0, 1]; None if unknown.
        prover_values: Values under the prover, which is a different policy, in [0, 1]; None if unknown.
        parents: Parent of every node, -1 for the root.
        alpha: Weight of the advantage, >= 0.

    Returns:
        None for the root and wherever one of the three numbers is.

    Source: Setlur et al. 2024, "Rewarding progress: scaling automated process verifiers for LLM reasoning", equation 5. Clipped to [0, 1],
    the range of our scores.
    """
    out: list[float | None] = []
    for node, parent in enumerate(parents):
        base, own = values[node], prover_values[node]
        above = prover_values[parent] if parent >= 0 else None
        if base is None or own is None or above is None:
            out.append(None)
        else:
            out.append(min(1.0, max(0.0, base + alpha * (own - above))))
    return out
