"""Graph colouring: give every node one of three colours, and neighbours different ones. Partial credit, no answer key."""

import random
import re

import networkx as nx

COLOURS = "rgb"


def problems(split: str) -> list[dict[str, str]]:
    """Draw graphs that can be coloured: every edge joins two of three hidden groups."""
    rng, rows = random.Random(split), []
    for number in range({"train": 1000, "held_out": 100, "test": 100}[split]):
        groups = [rng.randrange(3) for _ in range(6)]
        pairs = [(a, b) for a in range(6) for b in range(a) if groups[a] != groups[b]]
        edges = ", ".join(f"{a}-{b}" for a, b in rng.sample(pairs, min(6, len(pairs))))
        rows.append({"id": f"{split}-{number}", "question": f"edges: {edges}"})
    return rows


def grade(question: str, answer: str) -> tuple[float, str]:
    """Return the share of the edges whose ends have different colours; a node without a colour has none of its edges."""
    graph = nx.Graph(re.findall(r"(\d)-(\d)", question))
    colours = dict(re.findall(rf"(\d)=([{COLOURS}])", answer))
    fine = [edge for edge in graph.edges if len({colours.get(node, node) for node in edge} & set(COLOURS)) == 2]
    return len(fine) / max(graph.number_of_edges(), 1), f"{len(fine)} of {graph.number_of_edges()} edges"


grade.answer_key = lambda answer: " ".join(sorted(re.findall(rf"\d=[{COLOURS}]", answer)))
