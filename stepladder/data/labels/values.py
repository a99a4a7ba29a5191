"""From searched trees to labels: the evidence of graded leaves, the values of nodes, and value targets.

All rows are made of the token ids that the tree stores; nothing is tokenised again. Evidence is the outcome of leaves: terminal and
truncated nodes carry 1.0 (right) or 0.0 (wrong), and a node is judged by the leaves at and below it. Every tree counts each of its leaves
once, however often it was visited.

``pairs.py`` and ``traces.py`` choose what the policy learns from. Each choice is a ``Selection``: the rows that were kept and how many were
dropped, by reason. Caps are per problem, over all trees of that problem that are given. All ties are broken by node index, so the rows
depend on the trees alone.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar, runtime_checkable

from stepladder.data.datasets.problems import SeedSolution
from stepladder.errors import DataFormatError
from stepladder.types import Problem, Provenance, Trace, TreeRecord, ValueRow

RowT = TypeVar("RowT")


class ValueTarget(StrEnum):
    """Where the value of a node comes from."""

    MONTE_CARLO = "monte-carlo"
    """Share of right ones among the distinct graded leaves at and below the node; none without such a leaf. Plain counting, not weighted
    by visits: visits favour what the search already believed."""
    TREE_VALUE = "tree-value"
    """The node's mean backed-up return; none while unvisited."""
    HARD_MAX = "hard-max"
    """1 where a right leaf is at or below the node, 0 where only wrong ones are; none without a graded leaf."""
    DISTANCE = "distance"
    """ReST-MCTS*: rises by equal parts on the shortest way to a right leaf and falls with wrong steps; see ``distance_values``."""
    OUTCOME = "outcome"
    """Of a graded leaf, whether it is right; none elsewhere. Whole solutions are judged, as an outcome reward model does."""
    PROGRESS = "progress"
    """Monte Carlo value plus what the step achieves for the best of several attempts from there; see ``progress_values``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection(Generic[RowT]):
    """What was made of some trees; ``considered == kept + sum(dropped_by_reason.values())``."""

    rows: list[RowT]
    """The kept rows, in the order of the trees."""
    considered: int
    """Candidates looked at."""
    dropped_by_reason: dict[str, int]
    """Candidates not kept; only reasons that occurred."""

    @property
    def kept(self) -> int:
        """Number of kept rows."""
        return len(self.rows)


@runtime_checkable
class SolutionRenderer(Protocol):
    """What is needed of a renderer to write a solved problem as tokens."""

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """Return the prompt of a problem as token ids."""
        ...

    def encode_solution(self, text: str) -> Sequence[Sequence[int]]:
        """Return the steps of a written solution as token ids, ending as a sampled solution would."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Graded leaves at and below every node of a tree; entry i belongs to node i."""

    right: list[int]
    """Leaves with outcome 1.0."""
    wrong: list[int]
    """Leaves with outcome 0.0."""


def gather_evidence(record: TreeRecord) -> Evidence:
    """Count the right and wrong leaves at and below every node.

    Raises:
        DataFormatError: If an outcome is neither 0.0 nor 1.0, or a parent does not come before its child.
    """
    right, wrong = ([0] * len(record.parents) for _ in range(2))
    for node in range(len(record.parents) - 1, -1, -1):
        outcome, parent = record.outcomes[node], record.parents[node]
        if outcome not in (None, 0.0, 1.0):
            raise DataFormatError(f"tree of {record.problem_id!r}: outcome of node {node} must be 0.0, 1.0 or none: got {outcome!r}")
        right[node] += outcome == 1.0
        wrong[node] += outcome == 0.0
        if node == 0:
            break
        if not 0 <= parent < node:
            raise DataFormatError(f"tree of {record.problem_id!r}: parent of node {node} must be in [0, {node}): got {parent}")
        right[parent] += right[node]
        wrong[parent] += wrong[node]
    return Evidence(right=right, wrong=wrong)


def node_values(record: TreeRecord, target: ValueTarget | str) -> list[float | None]:
    """Return the value of every node under a definition, in [0, 1]; None where there is none.

    Raises:
        DataFormatError: If a stored value is outside [0, 1].
    """
    chosen = ValueTarget(target)
    if chosen is ValueTarget.DISTANCE:
        return distance_values(record)
    if chosen is ValueTarget.OUTCOME:
        gather_evidence(record)
        return list(record.outcomes)
    if chosen is ValueTarget.PROGRESS:
        values = node_values(record, ValueTarget.MONTE_CARLO)
        return progress_values(values, best_of_values(values), record.parents)
    if chosen is not ValueTarget.TREE_VALUE:
        evidence = gather_evidence(record)
        shares = [right / (right + wrong) if right + wrong else None for right, wrong in zip(evidence.right, evidence.wrong, strict=True)]
        return shares if chosen is ValueTarget.MONTE_CARLO else [None if share is None else float(share > 0) for share in shares]
    for node, value in enumerate(record.values):
        if value is not None and not 0.0 <= value <= 1.0:
            raise DataFormatError(f"tree of {record.problem_id!r}: value of node {node} must be in [0, 1]: got {value!r}")
    return list(record.values)


def distance_values(record: TreeRecord) -> list[float | None]:
    """Return the ReST-MCTS* value of every node: how far along the shortest way to a right leaf it is.

        v_k = max(0, v_{k-1} + (1 - v_{k-1}) (+-1) / (m_k + 1)),   v_0 = 0

    m is the fewest steps from a node to a right leaf, 0 at one. The sign is minus for a wrong node, below which no graded leaf is right; it
    takes m of its nearest ancestor that has one. A node without a graded leaf at or below it has no value, and in a tree without a right
    leaf none has.

    Source: Zhang et al. 2024, "ReST-MCTS*: LLM self-training via process reward guided tree search", equations 2 and 3. The paper leaves
    m of a wrong node open; this is what the released code does, whose m is counted from 1.
    """
    evidence = gather_evidence(record)
    count = len(record.parents)
    distances: list[int | None] = [0 if outcome == 1.0 else None for outcome in record.outcomes]
    for node in range(count - 1, 0, -1):
        below, parent = distances[node], record.parents[node]
        above = distances[parent]
        if below is not None and (above is None or below + 1 < above):
            distances[parent] = below + 1
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


def best_of_values(values: Sequence[float | None], *, attempts: int = 4) -> list[float | None]:
    """Return the values under the policy that tries several times and keeps the best: 1 - (1 - V)^attempts.

    Args:
        values: Values under one attempt, in [0, 1]; None where not known.
        attempts: Tries, >= 1. Of 1 it is the policy itself, of many everything that can succeed is worth 1.

    Source: Setlur et al. 2024, "Rewarding progress: scaling automated process verifiers for LLM reasoning": best-of-4 of the base policy is
    a good prover, since it is better than the base and still tells steps apart.
    """
    return [None if value is None else 1.0 - (1.0 - value) ** attempts for value in values]


def progress_values(
    values: Sequence[float | None], prover_values: Sequence[float | None], parents: Sequence[int], *, alpha: float = 1.0
) -> list[float | None]:
    """Return the value of every node plus what its step achieves for another policy.

        min(1, max(0, Q_base + alpha * (V_prover(node) - V_prover(parent))))

    Args:
        values: Values under the policy that is searched with, in [0, 1]; None where not known.
        prover_values: Values under the prover, which is a different policy, in [0, 1]; None where not known.
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


def value_rows(
    records: Sequence[TreeRecord],
    *,
    target: ValueTarget | str = ValueTarget.MONTE_CARLO,
    given: Sequence[Sequence[float | None]] | None = None,
    require_evidence: bool = False,
    drop_one_sided: bool = False,
) -> Selection[ValueRow]:
    """Return value targets as root-to-leaf paths; every node that has a target carries it in exactly one path.

    A path ends at its last node with a target, and a path without any is dropped. Steps that failed (no tokens) are no part of any path.
    Candidates are the root-to-leaf paths.

    Args:
        records: Searched trees; without outcomes only ``tree-value`` gives targets.
        target: What the targets are.
        given: The targets themselves, one list per record, instead of ``target``: where they were estimated elsewhere.
        require_evidence: Under ``tree-value``, give a target only to nodes with a graded leaf at or below them.
        drop_one_sided: Leave out problems whose graded leaves are all right or all wrong: they teach which problems are hard, not
            which steps are good.

    Dropped by reason: ``no target``, ``failed step``, ``one-sided problem``.
    """
    rows: list[ValueRow] = []
    dropped: Counter[str] = Counter()
    considered = 0
    one_sided = _one_sided_problems(records) if drop_one_sided else set()
    for number, record in enumerate(records):
        targets = node_values(record, target) if given is None else list(given[number])
        if require_evidence:
            evidence = gather_evidence(record)
            judged = [right + wrong > 0 for right, wrong in zip(evidence.right, evidence.wrong, strict=True)]
            targets = [value if known else None for value, known in zip(targets, judged, strict=True)]
        for leaf, path in untaken_paths(record, targets):
            considered += 1
            if record.problem_id in one_sided:
                dropped["one-sided problem"] += 1
            elif path:
                rows.append(_value_row(record, path))
            else:
                dropped["no target" if record.token_ids[leaf] or leaf == 0 else "failed step"] += 1
    return Selection(rows=rows, considered=considered, dropped_by_reason=dict(dropped))


def trace_from_solution(solution: SeedSolution, *, renderer: SolutionRenderer, provenance: Provenance) -> Trace:
    """Return a written solution as a trace; being the teacher's, its mean value is 1.

    Raises:
        DataFormatError: If no step can be read out of the solution.
    """
    steps = renderer.encode_solution(solution.solution)
    completion_ids = [token for step in steps for token in step]
    if not completion_ids:
        raise DataFormatError(f"solution {solution.id!r}: must hold at least one step: got {solution.solution[:80]!r} -- correct the row")
    return Trace(
        problem_id=solution.id,
        prompt_ids=list(renderer.prompt_ids(Problem(id=solution.id, question=solution.question))),
        completion_ids=completion_ids,
        prompt=solution.question,
        completion=solution.solution,
        mean_value=1.0,
        provenance=provenance,
    )


def children_of(record: TreeRecord) -> list[list[int]]:
    """Return the children of every node, in the order of their indices."""
    children: list[list[int]] = [[] for _ in record.parents]
    for node, parent in enumerate(record.parents[1:], 1):
        children[parent].append(node)
    return children


def path_to(record: TreeRecord, node: int) -> list[int]:
    """Return the nodes from the root's child down to ``node``; nothing for the root."""
    path = []
    while node:
        path.append(node)
        node = record.parents[node]
    return path[::-1]


def _one_sided_problems(records: Sequence[TreeRecord]) -> set[str]:
    sides: dict[str, set[float]] = {}
    for record in records:
        sides.setdefault(record.problem_id, set()).update(outcome for outcome in record.outcomes if outcome is not None)
    return {problem_id for problem_id, outcomes in sides.items() if len(outcomes) < 2}


def untaken_paths(record: TreeRecord, targets: list[float | None]) -> Iterator[tuple[int, list[tuple[int, float | None]]]]:
    """Yield every leaf with its path as (node, target) pairs; the target is None where an earlier path has it, and the tail is cut."""
    taken: set[int] = set()
    for leaf, children in enumerate(children_of(record)):
        if children:
            continue
        path: list[tuple[int, float | None]] = []
        for node in path_to(record, leaf):
            if record.token_ids[node]:
                path.append((node, None if node in taken else targets[node]))
                taken.add(node)
        while path and path[-1][1] is None:
            path.pop()
        yield leaf, path


def _value_row(record: TreeRecord, path: list[tuple[int, float | None]]) -> ValueRow:
    return ValueRow(
        problem_id=record.problem_id,
        prompt_ids=record.prompt_ids,
        step_ids=[record.token_ids[node] for node, _ in path],
        targets=[target for _, target in path],
        prompt=record.question,
        steps=[record.texts[node] for node, _ in path],
        provenance=record.provenance,
    )


def join_prompt(question: str, steps: Sequence[str]) -> str:
    """Return a question and the steps after it as one text: the question closed by a line break, the steps as they were decoded."""
    return f"{question}\n{''.join(steps)}"
