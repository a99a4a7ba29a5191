"""The vLLM scorer on a real engine; the transformers model is the oracle."""

import numpy as np
import pytest
import torch
from transformers import LlamaForTokenClassification

from stepladder.errors import BackendError, CheckpointError
from stepladder.interfaces import ScoreRequest, StepRequest
from stepladder.lm.loaded_models import LoadedModels
from stepladder.lm.settings import EngineSettings
from stepladder.lm.vllm_engine import VLLMEngine
from stepladder.policy.backends.vllm import VLLMPolicy
from stepladder.policy.prompts import StepFormat
from stepladder.prm.specs import PRMSpec
from stepladder.testing import check_scorer
from tests.models import save_tiny_policy, save_tiny_scorer, tiny_config, tiny_policy, tiny_scorer, tiny_tokenizer
from tests.prms import load_step_scorer

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

SPEC = PRMSpec(renderer_hash="0" * 16)
PREFIXES = [(5, 6, 7), (8,), (5, 6, 9, 10) * 12]
STEPS = [(11, 12), (13,), (14, 15, 16, 17), (11, 20)]
CONTEXT = 128


def _load(folder, models, max_batch=256):
    return load_step_scorer(folder, models=models, backend="vllm", settings=EngineSettings(max_batch=max_batch))


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def served(request, tmp_path_factory):
    """Start one engine per model family; the head's bias is not zero, so that a lost bias would show."""
    folder = save_tiny_scorer(tmp_path_factory.mktemp("scorer"), arch=request.param, max_positions=CONTEXT)
    model, _ = tiny_scorer(arch=request.param, max_positions=CONTEXT)
    with torch.no_grad():
        model.score.bias.fill_(0.4)
    model.save_pretrained(folder)
    SPEC.save(folder)
    with LoadedModels() as models:
        yield model, _load(folder, models, max_batch=32), folder


def _scores(scorer, requests):
    scorer.submit(requests)
    results = {}
    while batch := scorer.collect():
        results.update({result.ticket: result.scores for result in batch})
    return [results[request.ticket] for request in requests]


def _plain(model, ids):
    with torch.no_grad():
        return torch.sigmoid(model(torch.tensor([ids])).logits[0, -1, 0].double()).item()


def test_the_scorer_keeps_the_contract(served):
    """The shipped contract suite passes."""
    _, scorer, _ = served
    check_scorer(lambda: scorer, prefix_ids=PREFIXES, steps=STEPS, over_long_step_ids=(5,) * CONTEXT)


def test_scores_are_those_of_transformers(served):
    """Branches of several steps and siblings score as a plain forward read at each step's end, within 1e-5."""
    model, scorer, _ = served
    branches = ((STEPS[0], STEPS[1], STEPS[2]), (STEPS[0], STEPS[3]), (STEPS[1],))
    requests = [ScoreRequest(ticket=i, prefix_ids=prefix, branches=branches) for i, prefix in enumerate(PREFIXES)]
    for request, scores in zip(requests, _scores(scorer, requests), strict=True):
        for branch, got in zip(branches, scores, strict=True):
            ends = [request.prefix_ids + sum(branch[: i + 1], ()) for i in range(len(branch))]
            np.testing.assert_allclose(got, [_plain(model, ids) for ids in ends], atol=1e-5)


def test_what_cannot_be_scored_is_none_and_disturbs_nothing_else(served):
    """Empty steps, unknown ids, steps beyond the context and everything behind those are None."""
    model, scorer, _ = served
    long = (5,) * (CONTEXT - 3)
    branches = (((), (11,)), ((11,), (10**6,), (12,)), ((11, 12), long, (16,)), (long,), ())
    requests = [
        ScoreRequest(ticket=0, prefix_ids=(5, 6, 7), branches=branches),
        ScoreRequest(ticket=1, prefix_ids=(5,) * (CONTEXT + 1), branches=(((11,),),)),
        ScoreRequest(ticket=2, prefix_ids=(-1,), branches=(((11,),),)),
        ScoreRequest(ticket=3, prefix_ids=(5,), branches=()),
    ]
    scores, *rest = _scores(scorer, requests)
    one, two, full = (_plain(model, (5, 6, 7, *ids)) for ids in ((11,), (11, 12), long))
    expected = [(None, one), (one, None, None), (two, None, None), (full,), ()]
    for got, want in zip(scores, expected, strict=True):
        assert got == tuple(None if value is None else pytest.approx(value, abs=1e-5) for value in want)
    assert rest == [((None,),), ((None,),), ()]


def test_siblings_share_the_blocks_of_their_prefix(served):
    """Behind a prefix of 100 tokens, three whole blocks of 32 are forwarded once for four siblings of two tokens."""
    _, scorer, _ = served
    model = scorer._model
    before = model.read_tokens, model.cached_tokens
    prefix = (*range(5, 55), *range(54, 4, -1))
    _scores(scorer, [ScoreRequest(ticket=0, prefix_ids=prefix, branches=tuple(((20 + i, 30),) for i in range(4)))])
    assert (model.read_tokens - before[0], model.cached_tokens - before[1]) == (4 * 102, 3 * 96)


def test_a_ticket_is_open_once(served):
    """The same ticket again, before it was collected, is the caller's mistake."""
    _, scorer, _ = served
    request = ScoreRequest(ticket=0, prefix_ids=(5,), branches=(((6,),),))
    scorer.submit([request])
    with pytest.raises(BackendError, match="unique"):
        scorer.submit([request])
    assert len(scorer.collect()) == 1


@pytest.mark.parametrize("served", ["qwen2"], indirect=True)
def test_policy_and_scorer_share_a_process(served, tmp_path):
    """An engine that samples and one that scores take turns; either can be closed and used again, and results stay what they were."""
    model, scorer, folder = served
    engine = VLLMEngine(save_tiny_policy(tmp_path, max_positions=CONTEXT), task="generate", settings=EngineSettings(max_batch=8))
    policy = VLLMPolicy(engine, tiny_policy()[1], StepFormat())

    def samples():
        policy.submit([StepRequest(ticket=0, prefix_ids=(5, 6, 7), num_samples=3, seed=0, max_step_tokens=8)])
        return policy.collect()[0].samples

    first = samples()
    branches = tuple((step.token_ids,) for (step,) in first)
    request = ScoreRequest(ticket=0, prefix_ids=(5, 6, 7), branches=branches)
    expected = [_plain(model, (5, 6, 7, *step)) for (step,) in branches]
    np.testing.assert_allclose([score for (score,) in _scores(scorer, [request])[0]], expected, atol=1e-5)
    assert samples() == first
    scorer._model._engine.close()
    models = LoadedModels()
    other = _load(folder, models, max_batch=4)
    assert samples() == first
    np.testing.assert_allclose([score for (score,) in _scores(other, [request])[0]], expected, atol=1e-5)
    models.release()
    assert samples() == first
    engine.close()
    np.testing.assert_allclose([score for (score,) in _scores(scorer, [request])[0]], expected, atol=1e-5)


def test_two_classes_and_bins_are_read_as_the_embedded_engine_reads_them(tmp_path):
    """Heads of two and of four outputs on the policy's tokens: the scores of the transformers scorer within 1e-5."""
    for spec in (PRMSpec(family="two-class"), PRMSpec(bins=4, transform="identity")):
        folder = tmp_path / spec.family
        save_tiny_scorer(folder, max_positions=CONTEXT)
        model = LlamaForTokenClassification(tiny_config(tiny_tokenizer(), arch="llama", num_labels=spec.num_outputs, max_positions=CONTEXT))
        model.save_pretrained(folder)
        spec.save(folder)
        requests = [ScoreRequest(ticket=i, prefix_ids=prefix, branches=(tuple(STEPS), (STEPS[1],))) for i, prefix in enumerate(PREFIXES)]
        with LoadedModels() as models:
            got = _scores(_load(folder, models, max_batch=32), requests)
        expected = _scores(load_step_scorer(folder), requests)
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose([s for branch in one for s in branch], [s for branch in other for s in branch], atol=1e-5)


def test_a_head_that_does_not_fit_its_spec_is_refused(tmp_path):
    """One output is no pair of classes."""
    PRMSpec(family="two-class").save(save_tiny_scorer(tmp_path))
    with pytest.raises(CheckpointError, match="must have 2 outputs per token: got 1"):
        _load(tmp_path, LoadedModels())
