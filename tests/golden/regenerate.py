"""Write the golden trees of this folder anew: ``python -m tests.golden.regenerate``.

Only for a change that is meant to change trees, with the reason stated in the change.
"""

import json
from pathlib import Path

from tests.searches import ANSWERS, PROBLEMS, run

PATH = Path(__file__).with_name("search_trees.json")
CASES = {
    "mcts": {},
    "mcts wave 3, labelled": {"wave": 3, "answers": ANSWERS},
    "uct revisit": {"method": "uct", "terminals": "revisit"},
    "leaf, child-mean": {"evaluation": "leaf", "backup": "child-mean"},
    "puct-mctx": {"selection": "puct-mctx", "normalise": "siblings"},
    "beam": {"method": "beam"},
    "weighted-vote": {"method": "weighted-vote"},
}
"""Name -> how to search."""


def search(case):
    """Return the results of one case as plain containers."""
    options = dict(CASES[case])
    method = options.pop("method", "mcts")
    results = run(method, problems=PROBLEMS[:2], **options).values()
    return [
        {
            "answer": result.answer,
            "node": result.answer_node,
            "votes": result.votes,
            "stop": str(result.stop_reason),
            "tree": compact(result.tree),
        }
        for result in results
    ]


def compact(tree):
    """Return what identifies a tree, without the log-probabilities."""
    rounded = {name: [None if x is None else round(x, 5) for x in getattr(tree, name)] for name in ("values", "priors", "scores")}
    exact = {name: getattr(tree, name) for name in ("parents", "texts", "visits", "stop_reasons", "outcomes", "generated_tokens")}
    return {**exact, **rounded}


if __name__ == "__main__":
    PATH.write_text(json.dumps({case: search(case) for case in CASES}, separators=(",", ":")) + "\n")
