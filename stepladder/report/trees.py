"""Searched trees for the page: which ones are shown, and their form as JSON.

Test problems are searched without answers, so a test tree has no outcomes. A node's verdict is looked up among the answers that the
evaluation of the same problem graded afterwards, and is None if nobody graded that answer.
"""

from collections import defaultdict
from collections.abc import Mapping
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from stepladder.data.store import read_trees
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.evaluation_rows import SolvedRow, evaluation_shards, read_pools, read_solved, solved_problems
from stepladder.tree_paths import action_of, most_visited, observation_text
from stepladder.types import TreeRecord

NUM_TEST_TREES = 6
NUM_TRAINING_TREES = 2
MAX_NODES = 160
"""Maximum nodes of one tree on the page. The least visited other nodes are left out, and the page says how many."""
MAX_TEXT = 4000
"""Characters of a question or step on the page."""


def trees_for_page(run: RunDir, last_round: int, *, most: int = NUM_TEST_TREES) -> list[dict[str, Any]]:
    """Return the trees that the page shows, as plain JSON containers: test problems of the last round, training problems of round 1.

    Args:
        run: The run.
        last_round: Its last finished round.
        most: Most trees of test problems, >= 0.
    """
    return _test_trees(run, last_round, most) + _training_trees(run)


def _test_trees(run: RunDir, number: int, most: int) -> list[dict[str, Any]]:
    """Show problems of every kind in turn: search and policy right, one of them right, none right."""
    folder = run.evaluation(number, "test")
    greedy = solved_problems(folder / "greedy")
    kinds: dict[tuple[bool, bool | None], list[tuple[Path, SolvedRow]]] = defaultdict(list)
    for path in evaluation_shards(folder / "search"):
        for row in read_solved(path):
            kinds[row.correct, greedy.get(row.problem_id)].append((path, row))
    in_order = [kinds[kind] for kind in sorted(kinds, key=lambda kind: (not kind[0], kind[1] is True))]
    picked = [entry for entry in chain.from_iterable(zip_longest(*in_order)) if entry is not None][:most]
    records = _records({path for path, _ in picked}, {row.problem_id for _, row in picked})
    graded = _graded_answers(folder, set(records))
    return [
        tree_to_json(
            records[row.problem_id],
            answer=row.answer,
            correct=row.correct,
            graded=graded[row.problem_id],
            split="test",
            note=_kind_note(row.correct, greedy.get(row.problem_id)),
        )
        for _, row in sorted(picked, key=lambda entry: not entry[1].correct)
        if row.problem_id in records
    ]


def _kind_note(search: bool, greedy: bool | None) -> str:
    if greedy is None:
        return ""
    alone = f"the policy alone gets it {'right' if greedy else 'wrong'}"
    return f"{alone} too" if search == greedy else f"{alone}"


def _records(paths: set[Path], problem_ids: set[str]) -> dict[str, TreeRecord]:
    """Return the wanted trees of the shards; a shard of rows without its trees has none to show."""
    files = [path.with_suffix(".parquet") for path in sorted(paths)]
    return {tree.problem_id: tree for file in files if file.exists() for tree in read_trees(file) if tree.problem_id in problem_ids}


def _graded_answers(folder: Path, problem_ids: set[str]) -> dict[str, dict[str, bool]]:
    """Return problem -> answer -> verdict, of every answer that the round's evaluation graded."""
    graded: dict[str, dict[str, bool]] = {problem_id: {} for problem_id in problem_ids}
    for path in sorted(folder.glob("*/shard-*.json")):
        for problem_id, answer, correct in _verdicts(path):
            if answer is not None and problem_id in graded:
                graded[problem_id][answer] = correct
    return graded


def _verdicts(path: Path) -> list[tuple[str, str | None, bool]]:
    """Return problem, answer and verdict of everything that a shard graded."""
    if path.parent.name in ("greedy", "search"):
        return [(row.problem_id, row.answer, row.correct) for row in read_solved(path)]
    return [(row.problem_id, sample.answer_key, sample.correct) for row in read_pools(path) for sample in row.samples]


def _training_trees(run: RunDir) -> list[dict[str, Any]]:
    """Show trees of round 1 that training rows come from: first those in which some solutions are right and some wrong."""
    shards = run.shards("trees", rounds=[1])
    records = read_trees(shards[0]) if shards else []
    records = sorted(records, key=lambda tree: not {0.0, 1.0} <= set(tree.outcomes))[:NUM_TRAINING_TREES]
    trees = []
    for tree in records:
        right = [node for node, outcome in enumerate(tree.outcomes) if outcome == 1.0]
        best = max(right, key=lambda node: _rank(tree, node), default=None)
        trees.append(
            tree_to_json(
                tree,
                answer=None if best is None else tree.answers[best],
                correct=best is not None,
                graded={},
                split="training",
                note="shown path: the right solution of the highest value" if right else "no solution is right",
            )
        )
    return trees


def tree_to_json(
    tree: TreeRecord,
    *,
    answer: str | None,
    correct: bool | None,
    graded: Mapping[str, bool],
    split: str,
    note: str = "",
    max_nodes: int = MAX_NODES,
) -> dict[str, Any]:
    """Return a tree as plain JSON containers, cut to its most visited nodes.

    Args:
        tree: The tree.
        answer: The answer that the search gave; the path to its best-scored terminal is marked.
        correct: Verdict on that answer; None when unknown.
        graded: Verdicts on answers, for trees without outcomes.
        split: Word for the split of the tree's problem.
        note: Remark next to the verdict.
        max_nodes: Largest number of nodes, >= 1; the marked path is always kept.

    Returns:
        The facts and ``nodes``, parents first; a node's ``hidden`` counts the descendants that were left out directly below it.
    """
    path = _path(tree, _answer_node(tree, answer))
    kept = most_visited(tree, path, max_nodes)
    place = {node: index for index, node in enumerate(kept)}
    hidden = _hidden_below(tree, place)
    return {
        "problem_id": tree.problem_id,
        "question": _cut(tree.question),
        "split": split,
        "round": tree.provenance.round,
        "policy_version": tree.provenance.policy_version,
        "scorer_version": tree.provenance.scorer_version,
        "method": tree.method,
        "answer": answer,
        "correct": correct,
        "note": note,
        "tokens": tree.generated_tokens,
        "simulations": tree.num_simulations,
        "total_nodes": len(tree.parents),
        "nodes": [
            {
                "parent": place.get(tree.parents[node], -1),
                "text": _cut(tree.texts[node]),
                "observation": _cut(observation_text(tree, node)),
                "action": action_of(tree, node),
                "score": _short(tree.scores[node]),
                "visits": tree.visits[node],
                "value": _short(tree.values[node]),
                "prior": _short(tree.priors[node]),
                "stop": str(tree.stop_reasons[node]),
                "answer": tree.answers[node],
                "right": _verdict(tree, node, graded),
                "chosen": node in path,
                "hidden": hidden[node],
            }
            for node in kept
        ],
    }


def _answer_node(tree: TreeRecord, answer: str | None) -> int | None:
    """The terminal that represents the answer: its best-scored one, as in ``SearchResult.answer_node``."""
    supporters = [node for node, given in enumerate(tree.answers) if answer is not None and given == answer]
    return max(supporters, key=lambda node: _rank(tree, node), default=None)


def _rank(tree: TreeRecord, node: int) -> tuple[float, float, int, int]:
    """Sort key of terminals: score, then value, then visits, then the first. A missing figure comes last."""
    score, value = tree.scores[node], tree.values[node]
    return (-1.0 if score is None else score, -1.0 if value is None else value, tree.visits[node], -node)


def _path(tree: TreeRecord, node: int | None) -> set[int]:
    path: set[int] = set()
    while node is not None and node >= 0:
        path.add(node)
        node = tree.parents[node]
    return path


def _hidden_below(tree: TreeRecord, place: Mapping[int, int]) -> list[int]:
    """Return for every kept node the number of left-out nodes directly below it, including their descendants."""
    hidden, owner = [0] * len(tree.parents), list(range(len(tree.parents)))
    for node, parent in enumerate(tree.parents):
        if node not in place:
            owner[node] = owner[parent]
            hidden[owner[node]] += 1
    return hidden


def _verdict(tree: TreeRecord, node: int, graded: Mapping[str, bool]) -> bool | None:
    if (outcome := tree.outcomes[node]) is not None:
        return outcome == 1.0
    answer = tree.answers[node]
    return None if answer is None else graded.get(answer)


def _short(value: float | None) -> float | None:
    # JSON has no NaN; a figure that is none was not measured.
    return None if value is None or value != value else round(value, 4)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"
