"""Small trees for tests of labels and of the rules that choose training rows."""

import random

from stepladder.types import Provenance, TreeRecord

PROVENANCE = Provenance(round=2, policy_version=1, scorer_version=None, seed=7, config_hash="c" * 16, renderer_hash="r")


def tree(
    *nodes: tuple[int, float | None, float | None],
    problem_id: str = "p",
    tokens: dict[int, list[int]] | None = None,
    prompt: tuple[int, ...] = (1,),
) -> TreeRecord:
    """A tree of (parent, value, outcome); node 0 is the root, and node i's step is the token 100 + i unless ``tokens`` says otherwise."""
    count = len(nodes)
    depths = [0] * count
    for node in range(1, count):
        depths[node] = depths[nodes[node][0]] + 1
    ids = [[], *([100 + node] for node in range(1, count))]
    for node, given in (tokens or {}).items():
        ids[node] = given
    return TreeRecord(
        problem_id=problem_id,
        question="Q?",
        prompt_ids=list(prompt),
        method="mcts",
        parents=[parent for parent, _, _ in nodes],
        depths=depths,
        token_ids=ids,
        logps=[[-0.5] * len(step) for step in ids],
        texts=["", *(f"s{node}\n" for node in range(1, count))],
        priors=[1.0] * count,
        scores=[None] * count,
        visits=[1] * count,
        values=[value for _, value, _ in nodes],
        stop_reasons=["step" if outcome is None else "end" for _, _, outcome in nodes],
        answers=[None] * count,
        outcomes=[outcome for _, _, outcome in nodes],
        generated_tokens=count - 1,
        policy_calls=1,
        scored_tokens=0,
        num_simulations=1,
        provenance=PROVENANCE,
    )


def random_tree(seed: int) -> TreeRecord:
    """Up to 40 nodes, leaves graded or not, some values missing, some steps failed or equal to a sibling's."""
    rng = random.Random(seed)
    count = rng.randint(1, 40)
    parents = [-1, *(rng.randrange(max(0, node - 8), node) for node in range(1, count))]
    leaves = set(range(count)) - set(parents)
    nodes = [
        (
            parents[node],
            rng.choice([None, *(i / 8 for i in range(9))]),
            rng.choice([None, 0.0, 1.0, 1.0]) if node in leaves and node else None,
        )
        for node in range(count)
    ]
    tokens = {node: rng.choice([[], [7], [8], [100 + node]]) for node in range(1, count) if rng.random() < 0.3 and node in leaves}
    return tree(*nodes, tokens=tokens, problem_id=f"p{rng.randrange(3)}")


# Two halves. Below 1 two of three leaves are right, below 2 none of two, and 3 was never followed to an end.
#
#   0 -- 1 (.6) -- 4 (.9) -- 7 right (1.0)
#     |         |         `- 8 right (.8)
#     |         `- 5 wrong (.1)
#     |- 2 (.2) -- 6 wrong (.0)
#     |         `- 9 truncated, wrong (.3)
#     `- 3 (.5)
HAND = tree(
    (-1, 0.5, None),
    (0, 0.6, None),
    (0, 0.2, None),
    (0, 0.5, None),
    (1, 0.9, None),
    (1, 0.1, 0.0),
    (2, 0.0, 0.0),
    (4, 1.0, 1.0),
    (4, 0.8, 1.0),
    (2, 0.3, 0.0),
)


def path_to(record: TreeRecord, node: int) -> list[int]:
    return [] if node <= 0 else [*path_to(record, record.parents[node]), node]
