"""A judge that says one word: its prompts, and its scores by plain forwards."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from stepladder.errors import CheckpointError, ConfigError
from stepladder.lm.loading import load_tokenizer
from stepladder.loops.assembly.prms import verdict_prompts
from stepladder.prm.reader import Solution
from stepladder.prm.specs import NAMED_SPECS, PRMSpec
from tests.models import save_tiny_policy
from tests.prms import load_reader


def judge_spec(**fields):
    options = {"question": "{question}|{previous}|{step}\n", "good": "yes", "bad": "yet", "verdict_after": "is it? ", **fields}
    return PRMSpec(family="judge", prompt="plain", **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("models") / "judge", hidden=32, layers=1, max_positions=64)


def test_scores_are_probabilities_of_the_words_by_plain_forwards(model):
    """p(s) / (p(s) + p(t)) after "is it? ye", where yes and yet differ; every step has a prompt with the steps before it alone."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), load_tokenizer(model)

    def plain(text):
        ids = [tokenizer.get_vocab()[character] for character in text]
        with torch.no_grad():
            logits = network(torch.tensor([ids])).logits[0, -1].double()
        good, bad = (logits[tokenizer.get_vocab()[character]] for character in "st")
        return torch.sigmoid(good - bad).item()

    reader = load_reader(model, judge_spec())
    solutions = [Solution(question="1+1", steps=("a", "b")), Solution(question="1+1", steps=("a", "c", "d" * 60))]
    first, second = (plain(f"1+1|{before}|{step}\nis it? ye") for before, step in (("", "a"), ("a", "b")))
    third = plain("1+1|a|c\nis it? ye")
    got = reader.score(solutions)
    assert got == [pytest.approx((first, second), abs=1e-5), (pytest.approx(first, abs=1e-5), pytest.approx(third, abs=1e-5), None)]
    forwarded = reader.forwarded_tokens
    assert reader.score(solutions) == got and reader.forwarded_tokens == forwarded, "a verdict is asked for once"


def test_words_must_differ_and_the_spec_be_a_judges(model):
    """The prompt ends where the words part; one word inside the other, or another family, is refused."""
    tokenizer = load_tokenizer(model)
    prompts = verdict_prompts(tokenizer, judge_spec())
    vocabulary = tokenizer.get_vocab()
    assert prompts.words == {True: (vocabulary["s"],), False: (vocabulary["t"],)}
    assert prompts.prompt("1", ["a", "b"]) == tuple(vocabulary[each] for each in "1|a|b\nis it? ye")
    with pytest.raises(CheckpointError, match="must differ in a token of each"):
        verdict_prompts(tokenizer, judge_spec(good="no", bad="not"))
    with pytest.raises(ConfigError, match="with verdict_after"):
        verdict_prompts(tokenizer, judge_spec(verdict_after="", verdict="(yes|no)"))
    assert NAMED_SPECS["self-evaluation"].spec.verdict_after
