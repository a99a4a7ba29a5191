"""A searched tree as a piece of HTML for notebooks: nested lines that open and close, without a script."""

from collections import defaultdict
from typing import Any

from stepladder.report.markup import Markup, html
from stepladder.report.trees import tree_to_json
from stepladder.types import TreeRecord

_STYLE = (
    ".stepladder-tree{font:13px/1.5 ui-monospace,monospace;max-width:100%;overflow-x:auto}"
    ".stepladder-tree details,.stepladder-tree .leaf{margin-left:1.2em}"
    ".stepladder-tree summary{cursor:pointer;margin-left:-1.2em}"
    ".stepladder-tree .chosen{font-weight:700}"
    ".stepladder-tree .figures{opacity:.65;font-weight:400;margin-left:.8em}"
    ".stepladder-tree .text{white-space:pre-wrap}"
)
MAX_NODES = 160


def tree_html(tree: TreeRecord, *, answer: str | None, max_nodes: int = MAX_NODES) -> str:
    """Return a searched tree as an HTML element. The path to the answer is open and bold; all text is escaped.

    Args:
        tree: The tree.
        answer: The answer of the search; None marks no path.
        max_nodes: Most nodes shown, >= 1: the path to the answer and the most visited others.
    """
    plain = tree_to_json(tree, answer=answer, correct=None, graded={}, split="", max_nodes=max_nodes)
    children: dict[int, list[int]] = defaultdict(list)
    for index, node in enumerate(plain["nodes"]):
        children[node["parent"]].append(index)
    facts = f"{plain['method']}, {plain['simulations']} simulations, {plain['tokens']} tokens, {plain['total_nodes']} nodes"
    given = "no answer" if answer is None else f"answer {answer}"
    head = f'<div><span class="text">{html(plain["question"])}</span><br>{html(given)} <span class="figures">{html(facts)}</span></div>'
    return f'<div class="stepladder-tree"><style>{_STYLE}</style>{head}{_outline(plain["nodes"], children)}</div>'


def _outline(nodes: list[dict[str, Any]], children: dict[int, list[int]]) -> Markup:
    """Return the lines of the tree. A search may be deeper than Python's stack, so nodes are done from the last to the first."""
    lines: dict[int, str] = {}
    for index in range(len(nodes) - 1, -1, -1):
        node, line = nodes[index], _line(nodes[index])
        inside = "".join(lines.pop(child) for child in children[index])
        if node["hidden"]:
            inside += f'<div class="leaf figures">{node["hidden"]} more nodes</div>'
        opened = " open" if node["chosen"] or index == 0 else ""
        lines[index] = f"<details{opened}><summary>{line}</summary>{inside}</details>" if inside else f'<div class="leaf">{line}</div>'
    return Markup(lines[0])


def _line(node: dict[str, Any]) -> str:
    """Return the text of a node with its figures."""
    if node["parent"] < 0:
        return '<span class="figures">question</span>'
    figures = [f"{name} {node[key]:.3f}" for name, key in (("score", "score"), ("value", "value")) if node[key] is not None]
    figures.append(f"visits {node['visits']}")
    figures += [f"answer {node['answer']}"] if node["answer"] is not None else []
    style = "text chosen" if node["chosen"] else "text"
    return f'<span class="{style}">{html(node["text"].strip() or "(empty)")}</span><span class="figures">{html(", ".join(figures))}</span>'
