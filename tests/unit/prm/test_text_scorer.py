"""A public PRM in a search: the contract, the reader's own scores, and new tokens only."""

import pytest

from stepladder.interfaces import ScoreRequest
from stepladder.prm.reader import Solution
from stepladder.prm.requests import SplitPrefix
from stepladder.prm.specs import NAMED_SPECS
from stepladder.prm.text_scorer import TextStepScorer
from stepladder.testing import check_scorer
from tests.prm_models import qwen_tokenizer, save_head_model
from tests.prms import load_reader

SPEC = NAMED_SPECS["qwen2.5-math-prm"].spec
STEP = 10
"""Token that ends a step of the policy; other tokens are characters."""


def decode(ids):
    return "".join(chr(token) for token in ids).removesuffix(chr(STEP))


def split(prefix_ids, observations):
    """A prefix is a question and steps, each closed by a line break; one that begins with 'X' is of no known problem."""
    begin, end = observations[0] if observations else (len(prefix_ids), len(prefix_ids))
    question, *steps = "".join(map(chr, prefix_ids[:begin])).removesuffix("\n").split("\n")
    return None if question.startswith("X") else SplitPrefix(question, tuple(steps), "".join(map(chr, prefix_ids[begin:end])))


def ids(text):
    return tuple(map(ord, text))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_head_model(tmp_path_factory.mktemp("model"), qwen_tokenizer(), head="mlp", num_outputs=2)


def test_the_scorer_keeps_the_contract(model_dir):
    """The shipped contract suite passes for a model that reads text."""

    def build():
        return TextStepScorer(load_reader(model_dir, SPEC), split=split, decode=decode)

    check_scorer(
        build, prefix_ids=[ids("Q\n"), ids("R\na\n")], steps=[ids("b\n"), ids("cd\n"), ids("e\n")], over_long_step_ids=ids("x" * 600)
    )


def test_scores_are_the_readers_and_cost_new_tokens_only(model_dir):
    """Siblings, then children of one cost the distinct tokens of all layouts; text with the marker, and foreign prefixes, are None."""
    reader = load_reader(model_dir, SPEC)
    scorer = TextStepScorer(reader, split=split, decode=decode)
    requests = [
        ScoreRequest(ticket=0, prefix_ids=ids("Q\n"), branches=((ids("a\n"),), (ids("b\n"), ids("c\n")), (ids("<extra_0>\n"),), ((),))),
        ScoreRequest(ticket=1, prefix_ids=ids("Q\nb\n"), branches=((ids("d\n"),),)),
        ScoreRequest(ticket=2, prefix_ids=ids("X\n"), branches=((ids("a\n"),),)),
    ]
    got = []
    for request in requests:
        scorer.submit([request])
        got += [result.scores for result in scorer.collect()]
    assert scorer.collect() == []
    forwarded = scorer.forwarded_tokens
    paths = [("a",), ("b", "c"), ("",), ("b", "d")]
    a, bc, _, bd = load_reader(model_dir, SPEC).score([Solution(question="Q", steps=steps) for steps in paths])
    assert got == [
        (pytest.approx(a, abs=1e-6), pytest.approx(bc, abs=1e-6), (None,), (None,)),
        (pytest.approx(bd[1:], abs=1e-6),),
        ((None,),),
    ]
    laid = [reader.layout.lay_out("Q", steps).token_ids for steps in paths]
    assert forwarded == len({path[: i + 1] for path in laid for i in range(len(path))})
    scorer.reset()
    scorer.submit(requests[:1])
    assert scorer.collect()[0].scores[0] == pytest.approx(a, abs=1e-6)
    assert scorer.forwarded_tokens > forwarded


def test_a_step_begins_with_the_observation_before_it(model_dir):
    """The first step of every branch after an observation is read with it; the second is not."""
    scorer = TextStepScorer(load_reader(model_dir, SPEC), split=split, decode=decode)
    branches = ((ids("b\n"), ids("c\n")), (ids("d\n"),))
    scorer.submit([ScoreRequest(ticket=0, prefix_ids=ids("Q\na\n<>"), branches=branches, observations=((4, 6),))])
    (result,) = scorer.collect()
    paths = [("a", "<>b", "c"), ("a", "<>d")]
    expected = load_reader(model_dir, SPEC).score([Solution(question="Q", steps=steps) for steps in paths])
    assert result.scores == tuple(pytest.approx(scores[1:], abs=1e-6) for scores in expected)
