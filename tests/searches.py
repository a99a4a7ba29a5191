"""A scripted policy and scorer, some problems, and one-line searches with them."""

import random

from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import resolve_method
from stepladder.testing import CharRenderer, ExactVerifier, ScriptedPolicy, TableScorer, make_step
from stepladder.types import Budget, Problem, Provenance, StopReason, derive_seed

PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=0, seed=3, config_hash="0" * 16, renderer_hash="r")


PROBLEMS = [Problem(id=f"p{i}", question=f"q{i}") for i in range(50)]


ANSWERS = {problem.id: "123"[i % 3] for i, problem in enumerate(PROBLEMS)}


def propose(prefix_ids, index, seed):
    """Return a random step of one to three letters; one in five ends with an answer."""
    rng = random.Random(derive_seed(str(prefix_ids), index, seed))
    text = "".join(rng.choice("abc") for _ in range(rng.randint(1, 3)))
    if rng.random() < 0.2:
        return make_step(f"{text}={rng.choice('123')}", stop_reason=StopReason.END, logp=-rng.random())
    return make_step(text + "\n", logp=-rng.random())


def score(prefix_ids):
    """Return a score that depends on every token."""
    return derive_seed("score", str(prefix_ids)) % 1009 / 1009


def engine(
    method="mcts",
    *,
    policy=propose,
    scorer=score,
    answers=None,
    budget=None,
    max_trees=256,
    arrival_seed=None,
    key_of=str,
    tree_number=0,
    **overrides,
):
    """Return an engine over fakes."""
    return SearchEngine(
        policy=policy if hasattr(policy, "collect") else ScriptedPolicy(policy, shuffle_seed=arrival_seed),
        scorer=scorer if scorer is None or hasattr(scorer, "collect") else TableScorer(scorer, shuffle_seed=arrival_seed),
        verifier=None if answers is None else ExactVerifier(answers),
        renderer=CharRenderer(),
        method=resolve_method(method, **overrides),
        budget=budget or Budget(num_simulations=16, max_depth=6),
        provenance=PROVENANCE,
        key_of=key_of,
        max_trees=max_trees,
        tree_number=tree_number,
    )


def run(*args, problems=PROBLEMS[:6], first_samples=None, **kwargs):
    """Search problems and return the results by id."""
    return {result.problem_id: result for result in engine(*args, **kwargs).search(problems, first_samples=first_samples)}


def one(*args, **kwargs):
    """Search one problem."""
    return run(*args, problems=PROBLEMS[:1], **kwargs)["p0"]
