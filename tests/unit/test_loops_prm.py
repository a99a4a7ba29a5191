"""Any PRM in a search: what the search's scorer gives is what the reader gives for the same text."""

import json

import pytest
from typer.testing import CliRunner

from stepladder.cli import app
from stepladder.errors import ConfigError
from stepladder.interfaces import ScoreRequest
from stepladder.loops import build
from stepladder.loops.config import Config
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.prm.reader import Solution, StepReader
from stepladder.prm.specs import NAMED_SPECS
from stepladder.types import Problem
from tests.models import save_tiny_policy, tiny_tokenizer
from tests.prm_models import llama3_tokenizer, save_language_model

SPEC = NAMED_SPECS["rlhflow-llama"].spec


def config():
    return Config.model_validate({"policy": {"model": "m", "device": "cpu"}, "problems": {"train": "t.jsonl", "test": "u.jsonl"}})


@pytest.fixture(scope="module")
def prm_dir(tmp_path_factory):
    directory = save_language_model(tmp_path_factory.mktemp("prm"), llama3_tokenizer(), arch="llama", max_positions=1024)
    SPEC.save(directory)
    return str(directory)


def test_a_prm_that_reads_text_scores_the_steps_of_a_policy_with_another_tokenizer(prm_dir):
    """Question and earlier steps are found in the prefix; a prompt of no known problem has no score; a judge cannot guide a search."""
    renderer = PromptRenderer(tiny_tokenizer("chars"), StepFormat())
    problems = [Problem(id="a", question="1+1"), Problem(id="b", question="1+12")]
    scorer = build.build_scorer(config(), prm_dir, renderer=renderer, problems=problems)
    prompt = renderer.prompt_ids(problems[1])
    first, second, third = renderer.encode_solution("is\nso\nend\n")
    scorer.submit(
        [
            ScoreRequest(ticket=0, prefix_ids=prompt, branches=((first, second), (third,))),
            ScoreRequest(ticket=1, prefix_ids=prompt + first, branches=((third,),)),
            ScoreRequest(ticket=2, prefix_ids=(5,), branches=((third,),)),
        ]
    )
    got = {}
    while results := scorer.collect():
        got |= {result.ticket: result.scores for result in results}
    solutions = [Solution(question="1+12", steps=steps) for steps in (("is", "so"), ("end",), ("is", "end"))]
    chain, one, two = StepReader.from_pretrained(prm_dir, SPEC, device="cpu").score(solutions)
    assert got[0] == (pytest.approx(chain, abs=1e-6), pytest.approx(one, abs=1e-6))
    assert got[1] == (pytest.approx(two[1:], abs=1e-6),)
    assert got[2] == ((None,),)


def test_solve_is_guided_by_a_prm_that_reads_text(tmp_path, prm_dir):
    """`solve --prm DIR` searches with it and every step of the tree has a score; an implicit one is refused in one line."""
    policy = save_tiny_policy(tmp_path / "policy")
    StepFormat().save(policy)
    words = ["solve", "1+1", "--policy", str(policy), "--prm", prm_dir, "--method", "mcts", "--simulations", "2"]
    result = CliRunner().invoke(app, [*words, "--json", "--tree", str(tmp_path / "tree.json")])
    assert result.exit_code == 0, result.output
    tree = json.loads((tmp_path / "tree.json").read_text())
    assert any(score is not None for score in tree["scores"])
    NAMED_SPECS["implicit"].spec.save(policy)
    refused = CliRunner().invoke(app, [*words[:5], str(policy), *words[6:]])
    assert refused.exit_code == 2
    assert "guided by a PRM with a head" in refused.output
    with pytest.raises(ConfigError, match="guided by"):
        build.build_scorer(config(), str(policy), renderer=None, problems=[])
