"""Walks through a stored tree: children, the path from the root to a node, and the text of a path."""

from collections.abc import Sequence

from stepladder.types import TreeRecord


def children_of(record: TreeRecord) -> list[list[int]]:
    """Return the children of every node, in the order of their indices."""
    children: list[list[int]] = [[] for _ in record.parents]
    for node, parent in enumerate(record.parents[1:], 1):
        children[parent].append(node)
    return children


def path_to(record: TreeRecord, node: int) -> list[int]:
    """Return the nodes from the root's child down to ``node``; an empty list for the root."""
    path = []
    while node:
        path.append(node)
        node = record.parents[node]
    return path[::-1]


def join_prompt(question: str, steps: Sequence[str]) -> str:
    """Return a question and its steps as one text: the question, a line break, then the steps as decoded."""
    return f"{question}\n{''.join(steps)}"
