"""Finished trees: as networkx graphs, through plain containers, and against the stored golden ones."""

import json

import networkx
import pytest

from stepladder.mcts import to_networkx
from stepladder.types import TreeRecord
from tests.golden.regenerate import CASES, PATH, search
from tests.searches import ANSWERS, one


def test_graph_holds_the_tree(tmp_path):
    """An arborescence with one node per record entry, its figures as attributes, writable as GraphML."""
    record = one(answers=ANSWERS).tree
    graph = to_networkx(record)
    assert networkx.is_arborescence(graph)
    assert sorted(graph.edges) == sorted((parent, node) for node, parent in enumerate(record.parents) if node)
    for node, attributes in graph.nodes(data=True):
        assert attributes["visits"] == record.visits[node] and attributes["text"] == record.texts[node]
        assert attributes.get("value") == record.values[node] and attributes.get("outcome") == record.outcomes[node]
    assert graph.graph["problem_id"] == "p0"
    path = tmp_path / "tree.graphml"
    networkx.write_graphml(graph, path)
    assert networkx.read_graphml(path).number_of_nodes() == len(record.parents)


def test_records_survive_json():
    """A record equals itself after a round trip through text."""
    record = one(answers=ANSWERS).tree
    assert TreeRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


@pytest.mark.parametrize("case", CASES)
def test_searches_grow_the_golden_trees(case):
    """The stored trees of each kind of search, node for node; see ``tests/golden/regenerate.py``."""
    assert json.loads(json.dumps(search(case))) == json.loads(PATH.read_text())[case]
