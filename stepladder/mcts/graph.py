"""A finished tree as a networkx graph, for analysis, drawing and GraphML."""

from typing import TYPE_CHECKING

from stepladder.tree_paths import action_of, observation_text
from stepladder.types import TreeRecord

if TYPE_CHECKING:
    import networkx


def to_networkx(record: TreeRecord) -> "networkx.DiGraph":
    """Return the tree as a directed graph from the root down.

    Nodes are the indices of the record and carry ``depth``, ``text``, ``observation``, ``action``, ``prior``, ``score``, ``visits``,
    ``value``, ``stop_reason``, ``answer``, ``outcome`` and ``num_tokens``; attributes that are None are left out, so that every graph can
    be written as GraphML. The graph carries ``problem_id``, ``question`` and ``method``.
    """
    import networkx

    graph = networkx.DiGraph(problem_id=record.problem_id, question=record.question, method=record.method)
    for node, parent in enumerate(record.parents):
        attributes = {
            "depth": record.depths[node],
            "text": record.texts[node],
            "observation": observation_text(record, node) or None,
            "action": action_of(record, node) or None,
            "prior": record.priors[node],
            "score": record.scores[node],
            "visits": record.visits[node],
            "value": record.values[node],
            "stop_reason": str(record.stop_reasons[node]),
            "answer": record.answers[node],
            "outcome": record.outcomes[node],
            "num_tokens": len(record.token_ids[node]),
        }
        graph.add_node(node, **{name: value for name, value in attributes.items() if value is not None})
        if parent >= 0:
            graph.add_edge(parent, node)
    return graph
