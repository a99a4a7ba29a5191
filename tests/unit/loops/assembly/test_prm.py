"""Any PRM in a search: what the search's scorer gives is what the reader gives for the same text."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.errors import ConfigError
from stepladder.interfaces import ScoreRequest
from stepladder.lm.loaded_models import LoadedModels
from stepladder.lm.loading import load_tokenizer
from stepladder.loops.assembly.scorers import build_scorer
from stepladder.loops.config.load import with_overrides
from stepladder.loops.config.run import Config
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.prm.new_models import initialise_prm
from stepladder.prm.reader import Solution
from stepladder.prm.specs import NAMED_SPECS, PRMSpec
from stepladder.types import Problem
from tests.models import save_tiny_policy, tiny_tokenizer
from tests.prm_models import llama3_tokenizer, save_language_model
from tests.prms import load_reader

SPEC = NAMED_SPECS["rlhflow-llama"].spec


def config():
    return Config.model_validate({"policy": {"model": "m", "device": "cpu"}, "problems": {"train": "t.jsonl", "test": "u.jsonl"}})


@pytest.fixture(scope="module")
def prm_dir(tmp_path_factory):
    directory = save_language_model(tmp_path_factory.mktemp("prm"), llama3_tokenizer(), arch="llama", max_positions=1024)
    SPEC.save(directory)
    return str(directory)


def test_a_prm_that_reads_text_scores_the_steps_of_a_policy_with_another_tokenizer(prm_dir):
    """Question and earlier steps are found in the prefix; a prompt of no known problem has no score."""
    renderer = PromptRenderer(tiny_tokenizer("chars"), StepFormat())
    problems = [Problem(id="a", question="1+1"), Problem(id="b", question="1+12")]
    scorer = build_scorer(config(), LoadedModels(), prm=prm_dir, renderer=renderer, problems=problems)
    prompt = renderer.prompt_ids(problems[1])
    first, second, third = renderer.encode_steps("is\nso\nend\n")
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
    chain, one, two = load_reader(prm_dir, SPEC).score(solutions)
    assert got[0] == (pytest.approx(chain, abs=1e-6), pytest.approx(one, abs=1e-6))
    assert got[1] == (pytest.approx(two[1:], abs=1e-6),)
    assert got[2] == ((None,),)


def solve(tmp_path, policy, *words, code=0):
    """Search one question and return what was printed and the scores of the tree."""
    arguments = ["solve", "1+1", "--policy", str(policy), "--method", "mcts", "--simulations", "2", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--tree", str(tmp_path / "tree.json"), "--overwrite", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output, json.loads((tmp_path / "tree.json").read_text())["scores"] if not code else None


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    directory = save_tiny_policy(tmp_path_factory.mktemp("policy") / "model")
    StepFormat().save(directory)
    return directory


def save_value_prm(directory, seed, policy, bins=1):
    """Save a PRM with a random head on the policy's body, as training would."""
    renderer_hash = PromptRenderer(load_tokenizer(policy), StepFormat()).hash
    spec = PRMSpec(bins=bins, transform="sigmoid" if bins == 1 else "identity")
    model, spec = initialise_prm(policy, renderer_hash=renderer_hash, seed=seed, spec=spec, device="cpu")
    model.score.weight.data *= 10.0
    model.save_pretrained(directory)
    load_tokenizer(policy).save_pretrained(directory)
    spec.save(directory)
    return directory


def test_solve_is_guided_by_a_prm_that_reads_text(tmp_path, prm_dir, policy):
    """`solve --prm DIR` searches with it and every step of the tree has a score."""
    _, scores = solve(tmp_path, policy, "--prm", prm_dir)
    assert any(score is not None for score in scores)
    _, without = solve(tmp_path, policy, "--prm", "none")
    assert not any(score is not None for score in without)
    assert "leave the others out" in solve(tmp_path, policy, "--prm", "none", "--prm", prm_dir, code=2)[0]


def test_solve_is_guided_by_an_implicit_model_and_by_a_judge(tmp_path, policy):
    """An implicit model needs its reference, a judge the name of its spec; a spec in the directory goes first."""
    chat = save_language_model(tmp_path / "chat", llama3_tokenizer(), arch="llama", max_positions=512)
    assert "give --spec" in solve(tmp_path, policy, "--prm", chat, code=2)[0]
    missing, _ = solve(tmp_path, policy, "--prm", chat, "--prm-spec", "implicit", code=2)
    assert "prm.reference" in missing
    other = save_language_model(tmp_path / "other", llama3_tokenizer(), arch="llama", seed=1, max_positions=512)
    _, scores = solve(tmp_path, policy, "--prm", chat, "--prm-spec", "implicit", "--reference", other)
    assert any(score is not None for score in scores)
    spec = tmp_path / "judge.json"
    # A verdict that a random model gives now and then: which half of the alphabet a letter is of.
    judge = replace(NAMED_SPECS["judge"].spec, good="a", bad="b", verdict="([ab])", num_verdicts=4)
    judge.save(tmp_path)
    (tmp_path / "stepladder_prm.json").rename(spec)
    _, scores = solve(tmp_path, policy, "--prm", chat, "--prm-spec", spec)
    assert all(score is None or 0.0 <= score <= 1.0 for score in scores)


def test_a_policy_judges_its_own_steps(tmp_path, policy):
    """`--prm self` is the policy under a judge's spec: the named one wants a chat template, another can be told."""
    assert "chat template" in solve(tmp_path, policy, "--prm", "self", code=2)[0]
    judge = replace(NAMED_SPECS["judge"].spec, prompt="plain", good="a", bad="b", verdict="([ab])", num_verdicts=2)
    judge.save(tmp_path)
    (tmp_path / "stepladder_prm.json").rename(tmp_path / "judge.json")
    short = ("--prm-spec", tmp_path / "judge.json", "--set", "search.max_step_tokens=5", "--set", "search.max_depth=2")
    _, scores = solve(tmp_path, policy, "--prm", "self", *short)
    _, named = solve(tmp_path, policy, "--prm", policy, *short)
    assert scores == named and any(score is not None for score in scores)


def test_several_prms_are_one_scorer_as_the_settings_say(tmp_path, policy):
    """The worst of two and their mean are those of the members' own scores; bounds and checks come behind; settings are validated."""
    renderer = PromptRenderer(load_tokenizer(policy), StepFormat())
    prms = [str(save_value_prm(tmp_path / name, seed, policy)) for seed, name in enumerate(("a", "b"))]
    problem = Problem(id="p", question="1+1")
    steps = renderer.encode_steps("1+1=3\nso\n")

    def scores_with(prm, *overrides):
        chosen = with_overrides(config(), list(overrides))
        scorer = build_scorer(chosen, LoadedModels(), prm=prm, renderer=renderer, problems=[problem])
        scorer.submit([ScoreRequest(ticket=0, prefix_ids=renderer.prompt_ids(problem), branches=(tuple(steps),))])
        return scorer.collect()[0].scores[0]

    one, two = scores_with(prms[0]), scores_with(prms[1])
    assert abs(one[0] - two[0]) > 0.01
    assert scores_with(prms) == pytest.approx([(a + b) / 2 for a, b in zip(one, two, strict=True)])
    assert scores_with(prms, "evaluate.scores.ensemble=min") == pytest.approx([min(pair) for pair in zip(one, two, strict=True)])
    variance = [(a - b) ** 2 / 4 for a, b in zip(one, two, strict=True)]
    expected = [max(0, (a + b) / 2 - 3 * v) for a, b, v in zip(one, two, variance, strict=True)]
    assert scores_with(prms, "evaluate.scores.ensemble=mean-variance", "evaluate.scores.ensemble.penalty=3") == pytest.approx(expected)
    clipped = scores_with(prms[0], "evaluate.scores.bound=clip", f"evaluate.scores.bound.at={sum(one) / 2}")
    assert clipped == pytest.approx([min(score, sum(one) / 2) for score in one])
    checked = scores_with(prms[0], "evaluate.scores.check=arithmetic", "evaluate.scores.check.cap=0.01")
    assert one[0] > 0.01
    assert checked == pytest.approx([0.01, one[1]])
    (tmp_path / "both").mkdir()
    for number, name in enumerate("ab"):
        (tmp_path / name).rename(tmp_path / "both" / f"member-{number:02d}")
    assert scores_with(str(tmp_path / "both"), "evaluate.scores.ensemble=min") == pytest.approx(
        [min(pair) for pair in zip(one, two, strict=True)]
    ), "a directory of members is an ensemble"
    bins = str(save_value_prm(tmp_path / "bins", 2, policy, bins=4))
    sure, careful = scores_with(bins), scores_with(bins, "evaluate.scores.entropy_penalty=0.2")
    assert all(a > b for a, b in zip(sure, careful, strict=True))
    with pytest.raises(ConfigError, match="entropy_penalty"):
        scores_with(str(tmp_path / "both"), "evaluate.scores.entropy_penalty=0.2")
    with pytest.raises(ConfigError, match=r"scores\.ensemble"):
        scores_with(bins, "evaluate.scores.ensemble=median")


def test_a_prm_of_other_prompts_is_refused(tmp_path, policy):
    """A PRM that reads the policy's tokens was trained on one prompt and step format and guides no other."""
    prm = save_value_prm(tmp_path / "prm", 0, policy)
    assert solve(tmp_path, policy, "--prm", prm)[1]
    said, _ = solve(tmp_path, policy, "--prm", prm, "--set", "format.prompt_template=Q: {question}", code=2)
    assert "must have been trained on the prompts" in said
