"""Observations in a search: context of what follows, and never the policy's own."""

import random

import pytest

from stepladder.interfaces import ScoreRequest, StepRequest
from stepladder.testing import CharRenderer, ScriptedPolicy, TableScorer, make_step
from stepladder.tree_paths import ids_along, observations_along, path_to, text_along
from stepladder.types import Budget, Step, StopReason, derive_seed
from tests.searches import ANSWERS, PROBLEMS, engine, one, score

RENDERER = CharRenderer()
METHODS = ("mcts", "beam", "best-of-n", "rest-mcts", "lats:code", "mcts-dpo")


def observed(prefix_ids: tuple[int, ...], index: int, seed: int) -> Step:
    """Return a random step; a step with a ``b`` calls a tool, whose observation depends on everything before it and on the step."""
    rng = random.Random(derive_seed(str(prefix_ids), index, seed))
    text = "".join(rng.choice("abc") for _ in range(rng.randint(1, 3)))
    if rng.random() < 0.2:
        return make_step(f"{text}={rng.choice('123')}", stop_reason=StopReason.END, logp=-rng.random())
    step = make_step(text + "\n", logp=-rng.random())
    # An observation may state what looks like an answer, in digits that no answer has.
    given = f"[{derive_seed(str(prefix_ids), text) % 90}=9]\n" if "b" in text else ""
    return Step(
        token_ids=step.token_ids,
        logps=step.logps,
        text=step.text,
        stop_reason=step.stop_reason,
        given_ids=RENDERER.encode(given),
        given_text=given,
    )


class Recorded(TableScorer):
    """A scorer that keeps its requests."""

    def __init__(self) -> None:
        super().__init__(score)
        self.requests: list[ScoreRequest] = []

    def submit(self, requests):
        """Keep and queue requests."""
        self.requests += requests
        super().submit(requests)


def search(method: str, **options):
    """Search some problems with observations; return results, step requests and score requests."""
    policy, scorer = ScriptedPolicy(observed, shuffle_seed=5), Recorded()
    found = engine(method, policy=policy, scorer=scorer, answers=ANSWERS, budget=Budget(num_simulations=12, max_depth=6), **options)
    return list(found.search(PROBLEMS[:6])), policy.requests, scorer.requests


def given_text(request: StepRequest) -> list[str]:
    return [RENDERER.decode(request.prefix_ids[begin:end]) for begin, end in request.given]


@pytest.mark.parametrize("method", METHODS)
def test_observations_are_context_and_nothing_else(method: str) -> None:
    """They stand in every later prefix, marked; they cost nothing, score nothing, and answer nothing."""
    results, asked, scored = search(method)
    for result in results:
        tree, prompt = result.tree, RENDERER.prompt_ids(PROBLEMS[int(result.problem_id[1:])])
        assert tree.given_ids == [list(RENDERER.encode(text)) for text in tree.given_texts]
        assert all(bool(ids) == ("b" in text and "=" not in text) for ids, text in zip(tree.given_ids, tree.texts, strict=True))
        assert all(len(ids) == len(logps) for ids, logps in zip(tree.token_ids, tree.logps, strict=True))
        assert set(tree.answers) <= {None, "1", "2", "3"}
        paths = {tuple(prompt) + tuple(ids_along(tree, path_to(tree, node))): node for node in range(len(tree.parents))}
        mine = [request for request in asked if request.question == PROBLEMS[int(result.problem_id[1:])].question]
        assert mine
        for request in mine:
            assert request.given[0] == (0, len(prompt))
            assert all(text.endswith("=9]\n") for text in given_text(request)[1:])
            if request.prefix_ids in paths:
                path = path_to(tree, paths[request.prefix_ids])
                assert list(request.given[1:]) == observations_along(tree, path, start=len(prompt))
                assert text_along(tree, path) == RENDERER.decode(request.prefix_ids[len(prompt) :])
    assert method == "best-of-n" or any(len(request.given) > 2 for request in asked)
    for request in scored:
        # Every observation before the scored steps is marked, and none is among them.
        marked = [RENDERER.decode(request.prefix_ids[begin:end]) for begin, end in request.observations]
        assert "".join(marked).count("[") == RENDERER.decode(request.prefix_ids).count("[")
        assert not any(ord("[") in step for branch in request.branches for step in branch)
    assert any(request.observations for request in scored)


@pytest.mark.parametrize("method", METHODS)
def test_every_step_is_scored_after_everything_before_it(method: str) -> None:
    """The score at a node is that of the prompt, all steps and observations before it, and its own step, without its own observation."""
    results, _, _ = search(method)
    for result in results:
        tree, prompt = result.tree, RENDERER.prompt_ids(PROBLEMS[int(result.problem_id[1:])])
        for node in range(1, len(tree.parents)):
            before = ids_along(tree, path_to(tree, tree.parents[node]))
            if tree.token_ids[node]:
                assert tree.scores[node] == score((*prompt, *before, *tree.token_ids[node]))


def test_generated_tokens_and_priors_leave_observations_out() -> None:
    """The same steps with observations cost what they cost without, and a certainty prior reads the sampled tokens alone."""
    options = {"prior": "mean-logp", "num_children": 3}
    tree = one("mcts", policy=observed, answers=ANSWERS, budget=Budget(num_simulations=1), **options).tree
    children = [node for node, parent in enumerate(tree.parents) if parent == 0]
    assert any(tree.given_ids[node] for node in children)
    assert tree.generated_tokens >= sum(map(len, tree.token_ids))
    assert tree.scored_tokens == sum(map(len, tree.token_ids))
    weights = [2.718281828459045 ** (sum(tree.logps[node]) / len(tree.logps[node])) for node in children]
    assert [tree.priors[node] for node in children] == pytest.approx([weight / sum(weights) for weight in weights])


def test_a_tree_without_observations_has_no_lists_of_them() -> None:
    """Nothing changes for a search without tools."""
    tree = one("mcts", answers=ANSWERS).tree
    assert tree.given_ids == [] and tree.given_texts == []
