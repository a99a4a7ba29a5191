"""From searched trees to training rows: value targets, preference pairs and traces.

All rows are made of the token ids that the tree stores; nothing is tokenised again. Evidence is the outcome of leaves: terminal and
truncated nodes carry 1.0 (right) or 0.0 (wrong), and a node is judged by the leaves at and below it. Every tree counts each of its leaves
once, however often it was visited.

Each function returns a ``Selection``: the rows it kept and how many it dropped, by reason. Caps are per problem, over all trees of that
problem that are given. All ties are broken by node index, so the rows depend on the trees alone.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar, runtime_checkable

from stepladder.data.problems import SeedSolution
from stepladder.errors import DataFormatError
from stepladder.types import PreferencePair, Problem, Provenance, Trace, TreeRecord, ValueRow

RowT = TypeVar("RowT")
LabelT = TypeVar("LabelT", Trace, PreferencePair)

# Differences and means of floats are rounded to so many decimals before they are compared: 0.7 - 0.5 must reach a margin of 0.2, and what
# is equal but for the last bit must tie.
_DECIMALS = 12


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
class _Ranked(Generic[LabelT]):
    """A row that competes with the others of its problem."""

    rank: tuple[float, ...]
    """Higher is better."""
    row: LabelT
    """The row."""


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
        known = base is not None and own is not None and above is not None
        out.append(min(1.0, max(0.0, base + alpha * (own - above))) if known else None)
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
        for leaf, path in _untaken_paths(record, targets):
            considered += 1
            if record.problem_id in one_sided:
                dropped["one-sided problem"] += 1
            elif path:
                rows.append(_value_row(record, path))
            else:
                dropped["no target" if record.token_ids[leaf] or leaf == 0 else "failed step"] += 1
    return Selection(rows=rows, considered=considered, dropped_by_reason=dict(dropped))


def preference_pairs(
    records: Sequence[TreeRecord],
    *,
    min_margin: float = 0.2,
    pairs_per_node: int = 2,
    pairs_per_problem: int = 8,
    best_and_worst: int = 2,
    rejected_must_fail: bool = True,
    target: ValueTarget | str = ValueTarget.TREE_VALUE,
) -> Selection[PreferencePair]:
    """Return pairs of sibling steps of which one is clearly better, with outcomes as evidence on both sides.

    Candidates are all ordered pairs of children of one node in which the first has a right leaf at or below it and the second a wrong one
    (and no right one, if ``rejected_must_fail``). The chosen ones come from the children with the highest values among the first, the
    rejected ones from those with the lowest among the second. Within a cap, larger margins go first.

    Args:
        records: Searched trees with outcomes.
        min_margin: Smallest value difference, in [0, 1]; it must also be above zero.
        pairs_per_node: Cap per node, >= 1.
        pairs_per_problem: Cap per problem, >= 1.
        best_and_worst: How many children of each side may take part, >= 1.
        rejected_must_fail: Accept a rejected step only if nothing below it is right.
        target: What the value of a step is.

    Dropped by reason: ``no value``, ``failed step``, ``same tokens``, ``not among best and worst``, ``below margin``, ``over node cap``,
    ``over problem cap``.

    Source: Guan et al. 2025, "rStar-Math", section 3.3 and appendix: evidence on both sides, best 2 against worst 2 by value. We use the
    nodes' own values for the margin, keep several pairs per node under a cap, and by default ask that the rejected step fails.
    """
    dropped: Counter[str] = Counter()
    considered = 0
    candidates: list[_Ranked[PreferencePair]] = []
    for record in records:
        values, evidence = node_values(record, target), gather_evidence(record)
        for children in _children(record):
            chosen = [child for child in children if evidence.right[child]]
            rejected = [child for child in children if evidence.wrong[child] and not (rejected_must_fail and evidence.right[child])]
            pairs = [(first, second) for first in chosen for second in rejected if first != second]
            considered += len(pairs)
            margins = _margins(record, values, pairs, best_and_worst=best_and_worst, dropped=dropped)
            wide = [pair for pair in margins if pair[0] > 0 and pair[0] >= min_margin]
            wide.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
            dropped["below margin"] += len(margins) - len(wide)
            dropped["over node cap"] += max(0, len(wide) - pairs_per_node)
            candidates += [
                _Ranked(rank=(margin,), row=_pair(record, values, first, second)) for margin, first, second in wide[:pairs_per_node]
            ]
    rows = _best_per_problem(candidates, pairs_per_problem)
    dropped["over problem cap"] += len(candidates) - len(rows)
    return Selection(rows=rows, considered=considered, dropped_by_reason=dict(+dropped))


def select_traces(
    records: Sequence[TreeRecord], *, per_problem: int = 2, target: ValueTarget | str = ValueTarget.TREE_VALUE
) -> Selection[Trace]:
    """Return the best right solutions of every problem: by mean value along the path, then by its smallest value.

    Candidates are the terminals with outcome 1.0. The values of a path are those of its steps; a step without one is left out of both
    figures, and a path without any is dropped.

    Args:
        records: Searched trees with outcomes.
        per_problem: Solutions kept per problem, >= 1; they differ in their tokens.
        target: What the value of a step is.

    Dropped by reason: ``no value``, ``same tokens``, ``over problem cap``.

    Source: Guan et al. 2025, "rStar-Math": the two right trajectories of highest mean value, then of highest smallest value.
    """
    dropped: Counter[str] = Counter()
    considered = 0
    candidates: list[_Ranked[Trace]] = []
    for record in records:
        values = node_values(record, target)
        for leaf in (node for node, outcome in enumerate(record.outcomes) if outcome == 1.0):
            considered += 1
            path = _path(record, leaf)
            known = [value for node in path if (value := values[node]) is not None]
            if known:
                mean = round(sum(known) / len(known), _DECIMALS)
                candidates.append(_Ranked(rank=(mean, min(known)), row=_trace(record, path, mean)))
            else:
                dropped["no value"] += 1
    distinct = _distinct_completions(candidates)
    rows = _best_per_problem(distinct, per_problem)
    dropped["same tokens"] += len(candidates) - len(distinct)
    dropped["over problem cap"] += len(distinct) - len(rows)
    return Selection(rows=rows, considered=considered, dropped_by_reason=dict(+dropped))


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


def _children(record: TreeRecord) -> list[list[int]]:
    children: list[list[int]] = [[] for _ in record.parents]
    for node, parent in enumerate(record.parents[1:], 1):
        children[parent].append(node)
    return children


def _path(record: TreeRecord, node: int) -> list[int]:
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


def _untaken_paths(record: TreeRecord, targets: list[float | None]) -> Iterator[tuple[int, list[tuple[int, float | None]]]]:
    """Yield every leaf with its path as (node, target) pairs; the target is None where an earlier path has it, and the tail is cut."""
    taken: set[int] = set()
    for leaf, children in enumerate(_children(record)):
        if children:
            continue
        path: list[tuple[int, float | None]] = []
        for node in _path(record, leaf):
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


def _margins(
    record: TreeRecord,
    values: list[float | None],
    pairs: list[tuple[int, int]],
    *,
    best_and_worst: int,
    dropped: Counter[str],
) -> list[tuple[float, int, int]]:
    """Return (margin, chosen, rejected) of the pairs of the best and the worst children that can be compared; count the others."""
    comparable = {node: value for pair in pairs for node in pair if (value := values[node]) is not None and record.token_ids[node]}
    best = sorted({first for first, _ in pairs} & comparable.keys(), key=lambda node: (-comparable[node], node))[:best_and_worst]
    worst = sorted({second for _, second in pairs} & comparable.keys(), key=lambda node: (comparable[node], node))[:best_and_worst]
    margins = []
    for first, second in pairs:
        if not record.token_ids[first] or not record.token_ids[second]:
            dropped["failed step"] += 1
        elif first not in comparable or second not in comparable:
            dropped["no value"] += 1
        elif record.token_ids[first] == record.token_ids[second]:
            dropped["same tokens"] += 1
        elif first not in best or second not in worst:
            dropped["not among best and worst"] += 1
        else:
            margins.append((round(comparable[first] - comparable[second], _DECIMALS), first, second))
    return margins


def _pair(record: TreeRecord, values: list[float | None], chosen: int, rejected: int) -> PreferencePair:
    shared = _path(record, record.parents[chosen])
    chosen_value, rejected_value = values[chosen], values[rejected]
    assert chosen_value is not None and rejected_value is not None, "usable pairs have values"
    return PreferencePair(
        problem_id=record.problem_id,
        prompt_ids=[*record.prompt_ids, *(token for node in shared for token in record.token_ids[node])],
        chosen_ids=record.token_ids[chosen],
        rejected_ids=record.token_ids[rejected],
        prompt=join_prompt(record.question, [record.texts[node] for node in shared]),
        chosen=record.texts[chosen],
        rejected=record.texts[rejected],
        chosen_value=chosen_value,
        rejected_value=rejected_value,
        depth=record.depths[chosen],
        provenance=record.provenance,
        chosen_visits=record.visits[chosen],
        rejected_visits=record.visits[rejected],
    )


def join_prompt(question: str, steps: Sequence[str]) -> str:
    """Return a question and the steps after it as one text: the question closed by a line break, the steps as they were decoded."""
    return f"{question}\n{''.join(steps)}"


def _trace(record: TreeRecord, path: list[int], mean_value: float) -> Trace:
    return Trace(
        problem_id=record.problem_id,
        prompt_ids=record.prompt_ids,
        completion_ids=[token for node in path for token in record.token_ids[node]],
        prompt=record.question,
        completion="".join(record.texts[node] for node in path),
        mean_value=mean_value,
        provenance=record.provenance,
    )


def _distinct_completions(candidates: list[_Ranked[Trace]]) -> list[_Ranked[Trace]]:
    """Keep the best-ranked one of each problem's candidates with the same tokens, in the original order."""
    best: dict[tuple[str, tuple[int, ...]], int] = {}
    for index, candidate in enumerate(candidates):
        key = (candidate.row.problem_id, tuple(candidate.row.completion_ids))
        if key not in best or candidate.rank > candidates[best[key]].rank:
            best[key] = index
    return [candidates[index] for index in sorted(best.values())]


def _best_per_problem(candidates: list[_Ranked[LabelT]], cap: int) -> list[LabelT]:
    """Keep the ``cap`` highest-ranked candidates of each problem, ties to the earlier one, in the original order."""
    by_problem: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        by_problem.setdefault(candidate.row.problem_id, []).append(index)
    # Sorting is stable in reverse as well, so equal ranks stay in order.
    kept = [index for group in by_problem.values() for index in sorted(group, key=lambda index: candidates[index].rank, reverse=True)[:cap]]
    return [candidates[index].row for index in sorted(kept)]
