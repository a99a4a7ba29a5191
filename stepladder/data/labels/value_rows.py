"""Value targets from the values of nodes: root-to-leaf paths with every target once."""

from collections import Counter
from collections.abc import Iterator, Sequence

from stepladder.data.labels.selection import Selection
from stepladder.data.labels.values import ValueTarget, gather_evidence, node_values
from stepladder.tree_paths import children_of, observation_ids, observation_text, path_to
from stepladder.types import TreeRecord, ValueRow


def value_rows(
    records: Sequence[TreeRecord],
    *,
    target: ValueTarget | str = ValueTarget.MONTE_CARLO,
    given: Sequence[Sequence[float | None]] | None = None,
    require_evidence: bool = False,
    drop_one_sided: bool = False,
) -> Selection[ValueRow]:
    """Return value targets as root-to-leaf paths. Every node with a target carries it in exactly one path.

    A path ends at its last node with a target, and a path without any is dropped. Steps that failed (no tokens) are no part of any path.
    Candidates are the root-to-leaf paths.

    Args:
        records: Searched trees; without outcomes only ``tree-value`` gives targets.
        target: Definition of the targets.
        given: Targets that were estimated elsewhere, one list per record, instead of ``target``.
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


def _one_sided_problems(records: Sequence[TreeRecord]) -> set[str]:
    sides: dict[str, set[float]] = {}
    for record in records:
        sides.setdefault(record.problem_id, set()).update(outcome for outcome in record.outcomes if outcome is not None)
    return {problem_id for problem_id, outcomes in sides.items() if len(outcomes) < 2}


def untaken_paths(record: TreeRecord, targets: list[float | None]) -> Iterator[tuple[int, list[tuple[int, float | None]]]]:
    """Yield every leaf with its path as (node, target) pairs; the target is None if an earlier path has it, and the tail is cut."""
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
    # An observation after the last step is context of nothing.
    earlier = [node for node, _ in path[:-1]]
    observed = any(observation_ids(record, node) for node in earlier)
    return ValueRow(
        problem_id=record.problem_id,
        prompt_ids=record.prompt_ids,
        step_ids=[record.token_ids[node] for node, _ in path],
        targets=[target for _, target in path],
        prompt=record.question,
        steps=[record.texts[node] for node, _ in path],
        provenance=record.provenance,
        given_ids=[*(observation_ids(record, node) for node in earlier), []] if observed else [],
        given_texts=[*(observation_text(record, node) for node in earlier), ""] if observed else [],
    )
