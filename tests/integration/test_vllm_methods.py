"""Every search method on a real vLLM engine: one engine, a model with random weights, and scores drawn by prefix."""

import math

import pytest

from stepladder.lm.settings import EngineSettings
from stepladder.lm.vllm_engine import VLLMEngine
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import METHODS, resolve_method
from stepladder.policy.backends.vllm import VLLMPolicy
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.testing import TableScorer
from stepladder.types import Budget, Problem, Provenance, StopReason, derive_seed
from tests.models import save_tiny_policy, tiny_policy

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

# Random weights write a digit and a line end every few tokens, so that solutions come to an answer.
FORMAT = StepFormat(answer_pattern=r"(\d)")
MAX_STEP_TOKENS, MAX_DEPTH = 24, 4
PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="", renderer_hash="")
PROBLEMS = [Problem(id=f"p{i}", question=f"{i}+{i}") for i in range(2)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Hold one engine for all methods."""
    folder = save_tiny_policy(tmp_path_factory.mktemp("policy"), max_positions=256)
    engine = VLLMEngine(folder, task="generate", settings=EngineSettings(max_batch=64))
    yield engine
    engine.close()


def score(prefix_ids):
    return derive_seed("score", str(prefix_ids)) % 997 / 997


@pytest.mark.parametrize("name", METHODS)
def test_every_method_comes_to_a_result(engine, name):
    """Each preset searches both problems to the end of its budget, with no failed request, on steps as they were asked for."""
    engine.reset()
    tokenizer = tiny_policy()[1]
    search = SearchEngine(
        policy=VLLMPolicy(engine, tokenizer, FORMAT),
        scorer=TableScorer(score),
        renderer=PromptRenderer(tokenizer, FORMAT),
        method=resolve_method(name),
        budget=Budget(num_simulations=6, max_tokens=600, max_depth=MAX_DEPTH, max_step_tokens=MAX_STEP_TOKENS),
        provenance=PROVENANCE,
    )
    results = list(search.search(PROBLEMS))
    assert sorted(result.tree.problem_id for result in results) == ["p0", "p1"]
    for result in results:
        tree = result.tree
        assert tree.generated_tokens > 0 and len(tree.token_ids) > 1
        assert StopReason.ERROR not in tree.stop_reasons
        for ids, logps in list(zip(tree.token_ids, tree.logps, strict=True))[1:]:
            assert 0 < len(ids) == len(logps) and all(math.isfinite(logp) and logp <= 0 for logp in logps)
        assert result.answer is None or result.answer.isdigit()
    # The likeliest tokens of random weights may go round in a circle without a digit.
    assert name == "greedy" or any(result.answer is not None for result in results)
