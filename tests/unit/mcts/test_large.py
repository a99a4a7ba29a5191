"""Searches far larger than those of the other tests: nothing in them grows faster than the tree."""

import pytest

from stepladder.interfaces import ScoreRequest, ScoreResult, StepRequest, StepResult
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import resolve_method
from stepladder.testing import CharRenderer, make_step
from stepladder.types import Budget, Problem, Provenance, StopReason

PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=0, seed=3, config_hash="0" * 16, renderer_hash="r")


class InstantPolicy:
    """Answers with the same few steps, the last of which ends."""

    def __init__(self):
        self.open: list[StepRequest] = []

    def submit(self, requests):
        self.open += requests

    def collect(self):
        ready, self.open = self.open, []
        return [StepResult(ticket=request.ticket, samples=samples(request.num_samples)) for request in ready]


class InstantScorer:
    """Scores every branch by its place."""

    def __init__(self):
        self.open: list[ScoreRequest] = []

    def submit(self, requests):
        self.open += requests

    def collect(self):
        ready, self.open = self.open, []
        return [ScoreResult(ticket=r.ticket, scores=tuple(((1 + i % 7) / 10,) for i in range(len(r.branches)))) for r in ready]


def samples(count):
    """Return so many different steps; of several, the last ends."""
    steps = [make_step(chr(300 + i)) for i in range(count - 1)]
    return tuple((step,) for step in [*steps, make_step("=7", stop_reason=StopReason.END if count > 1 else StopReason.STEP)])


@pytest.mark.parametrize(
    ("num_simulations", "axes", "num_nodes", "depth"),
    [
        (2_000, {"num_children": 50}, 100_001, None),
        (25, {"num_children": 4, "root_num_children": 2_000}, 2_097, None),
        (1_000, {"num_children": 1}, 1_001, 1_000),
    ],
    ids=["100,000 nodes", "a wide root", "a chain"],
)
def test_large_trees_keep_their_identities(num_simulations, axes, num_nodes, depth):
    """All nodes are there, the root has every simulation, and the visits of an inner node are its own and its children's."""
    engine = SearchEngine(
        policy=InstantPolicy(),
        scorer=InstantScorer(),
        renderer=CharRenderer(),
        method=resolve_method("mcts", **axes),
        budget=Budget(num_simulations=num_simulations, max_depth=10**6),
        provenance=PROVENANCE,
    )
    (result,) = engine.search([Problem(id="p", question="q")])
    record = result.tree
    assert (len(record.parents), record.num_simulations, record.visits[0]) == (num_nodes, num_simulations, num_simulations)
    below = [0] * num_nodes
    for node, parent in enumerate(record.parents[1:], start=1):
        below[parent] += record.visits[node] - 1
    # With ``evaluation`` = "children" a node starts with one visit, and its expansion is another.
    inner = sorted(set(record.parents[1:]) - {0})
    assert all(record.visits[node] - 2 == below[node] for node in inner)
    assert all(value is not None and 0.1 <= value <= 0.7 for value in record.values)
    assert depth is None or max(record.depths) == depth
