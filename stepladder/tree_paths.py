"""Walks through a stored tree: children, the path from the root to a node, and the tokens and text of a path."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stepladder.types import TreeRecord


def children_of(record: TreeRecord) -> list[list[int]]:
    """Return the children of every node, in the order of their indices."""
    children: list[list[int]] = [[] for _ in record.parents]
    for node, parent in enumerate(record.parents[1:], 1):
        children[parent].append(node)
    return children


def path_to(record: TreeRecord, node: int) -> list[int]:
    """Return the nodes from the root's child down to ``node``; an empty list for the root."""
    return path_below_root(record.parents, node)


def path_below_root(parents: Sequence[int], node: int) -> list[int]:
    """Return the same, given the parent of every node; the root is node 0."""
    path = []
    while node:
        path.append(node)
        node = parents[node]
    return path[::-1]


def most_visited(record: TreeRecord, path: Iterable[int], most: int) -> list[int]:
    """Return the nodes to which a tree is cut to be shown: the root, a path, and the most visited others, each with all its ancestors.

    Args:
        record: The tree.
        path: Nodes that are kept whatever ``most`` is, each with all its ancestors.
        most: Nodes to keep.

    Returns:
        The nodes, ascending, so parents come first.
    """
    kept = {0, *path}
    for node in sorted(range(len(record.parents)), key=lambda node: (-record.visits[node], record.depths[node], node)):
        if len(kept) >= most:
            break
        if record.parents[node] in kept:
            kept.add(node)
    return sorted(kept)


class PathTokens(NamedTuple):
    """The steps of a path and the observations between them; an observation after the last step is left out."""

    ids: list[int]
    """All tokens."""
    given: list[bool]
    """Whether each token belongs to an observation; empty if none does."""
    logps: list[float]
    """Log-probability of each token under the policy that sampled it; 0 for a given one."""
    text: str
    """The path as text."""


def observation_ids(record: TreeRecord, node: int) -> list[int]:
    """Return the given tokens after a node's step."""
    return record.given_ids[node] if record.given_ids else []


def observation_text(record: TreeRecord, node: int) -> str:
    """Return the observation after a node's step as text."""
    return record.given_texts[node] if record.given_texts else ""


def action_of(record: TreeRecord, node: int) -> str:
    """Return the kind of a node's step; empty without actions."""
    return record.actions[node] if record.actions else ""


def ids_along(record: TreeRecord, path: Sequence[int]) -> list[int]:
    """Return the tokens of some nodes with all their observations: what a model sees before the next step."""
    return [token for node in path for ids in (record.token_ids[node], observation_ids(record, node)) for token in ids]


def observations_along(record: TreeRecord, path: Sequence[int], *, start: int = 0) -> list[tuple[int, int]]:
    """Return the ranges of the observations in ``ids_along``, as (begin, end) counted from ``start``."""
    found = []
    for node in path:
        begin = start + len(record.token_ids[node])
        start = begin + len(observation_ids(record, node))
        if start > begin:
            found.append((begin, start))
    return found


def text_along(record: TreeRecord, path: Sequence[int]) -> str:
    """Return the text of some nodes with all their observations."""
    return "".join(record.texts[node] + observation_text(record, node) for node in path)


def path_tokens(record: TreeRecord, path: Sequence[int]) -> PathTokens:
    """Return the tokens of some nodes as a policy learns them: a continuation that ends with a sampled token."""
    if not any(observation_ids(record, node) for node in path[:-1]):
        ids = [token for node in path for token in record.token_ids[node]]
        logps = [logp for node in path for logp in record.logps[node]]
        return PathTokens(ids, [], logps, "".join(record.texts[node] for node in path))
    ids, given, logps, texts = list[int](), list[bool](), list[float](), list[str]()
    for place, node in enumerate(path, 1):
        observed = observation_ids(record, node) if place < len(path) else []
        ids += [*record.token_ids[node], *observed]
        given += [False] * len(record.token_ids[node]) + [True] * len(observed)
        logps += [*record.logps[node], *([0.0] * len(observed))]
        texts += [record.texts[node], observation_text(record, node) if place < len(path) else ""]
    return PathTokens(ids, given, logps, "".join(texts))


def join_prompt(question: str, steps: Sequence[str]) -> str:
    """Return a question and its steps as one text: the question, a line break, then the steps as decoded."""
    return f"{question}\n{''.join(steps)}"
