"""A value head on the policy's own hidden states: its scores come from the passes that sampled the steps."""

import numpy as np
import pytest
import torch

from stepladder.errors import BackendError
from stepladder.interfaces import ScoreRequest, StepRequest, collect_all
from stepladder.lm.decoding import DecodeRows
from stepladder.policy.backends.transformers import TransformersPolicy
from stepladder.policy.prompts import StepFormat
from stepladder.prm.scorer import TransformersStepScorer
from stepladder.prm.specs import PRMSpec
from stepladder.testing import check_policy, check_scorer
from stepladder.types import StopReason
from tests.backends import samples_of, step_request
from tests.models import tiny_policy

SPEC = PRMSpec(renderer_hash="0" * 16)
PREFIXES = [(5, 6, 7), (5, 6, 9, 10, 11), (8,)]


def _head(model, outputs=1, seed=3):
    head = torch.nn.Linear(model.config.hidden_size, outputs)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        head.weight.normal_(0, 0.5)
        head.bias.normal_()
    return head


def _plain(model, head, ids):
    """The slow twin: one whole forward of the model without any cache, and the head at its last token."""
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        return torch.sigmoid(head(hidden).double()[0]).item()


def _score_requests(requests, samples):
    return [
        ScoreRequest(
            ticket=request.ticket,
            prefix_ids=request.prefix_ids,
            branches=tuple(tuple(step.token_ids for step in steps) for steps in each),
        )
        for request, each in zip(requests, samples, strict=True)
    ]


def _check_scores(model, head, scored, scores, *, lag):
    for request, result in zip(scored, scores, strict=True):
        for branch, found in zip(request.branches, result.scores, strict=True):
            ends = [request.prefix_ids + sum(branch[: i + 1], ()) for i in range(len(branch))]
            np.testing.assert_allclose(found, [_plain(model, head, ids[: len(ids) - lag]) for ids in ends], atol=1e-5)


def test_rows_that_move_keep_their_lanes(monkeypatch):
    """Samples are those without a head, and scores the twin's.

    In blocks of four rows, every fourth of 40 samples is long. When the others have ended, the rows move, and new samples take the places.
    """
    monkeypatch.setattr("stepladder.lm.decoding._BLOCK", 4)
    moves, tidy = [], DecodeRows.tidy

    def counted(self):
        order = tidy(self)
        moves.append(order is not None)
        return order

    monkeypatch.setattr(DecodeRows, "tidy", counted)
    model, tokenizer = tiny_policy()
    head, found = _head(model), []
    requests = [step_request(i, (5, 6, 7), seed=i, max_step_tokens=2 if i % 4 else 8 + i // 4) for i in range(80)]
    for attaches in (False, True):
        policy = TransformersPolicy(model, tokenizer, StepFormat(answer_pattern=r"=(\d)"), max_batch=40)
        scorer = TransformersStepScorer(policy.attach(head, 1), SPEC) if attaches else None
        moves.clear()
        policy.submit(requests[:40])
        results = []
        while not any(moves):
            results += policy.collect()
        assert len(results) < 40
        policy.submit(requests[40:])
        while done := policy.collect():
            results += done
        samples = [result.samples for result in sorted(results, key=lambda result: result.ticket)]
        found.append([steps[0].token_ids for (steps,) in samples])
        if scorer is not None:
            scored = _score_requests(requests, samples)
            _check_scores(model, head, scored, collect_all(scorer, scored), lag=0)
    assert found[0] == found[1]


@pytest.mark.parametrize("arch", ["qwen2", "llama"])
@pytest.mark.parametrize(("cache_tokens", "read"), [(None, "step-end"), (None, "before-end"), (16, "before-end")])
def test_scores_are_those_of_a_whole_forward_and_cost_no_pass_of_their_own(arch, cache_tokens, read):
    """Each score equals the twin's: of steps, steps after steps, whole solutions and cut steps.

    With a cache that holds them, nothing is forwarded for them.
    """
    model, tokenizer = tiny_policy(arch=arch, kv_heads=1)
    # Line breaks, which end steps, become likely; the hidden states stay what they are.
    bonus = torch.nn.functional.one_hot(torch.tensor(tokenizer.encode("\n", add_special_tokens=False)[0]), model.config.vocab_size) * 3.0
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + bonus)
    policy = TransformersPolicy(model, tokenizer, StepFormat(answer_pattern=r"=(\d)"), max_batch=6, cache_tokens=cache_tokens)
    head = _head(model)
    spec, lag = PRMSpec(family="probe", body="policy", read=read, renderer_hash="0" * 16), int(read == "before-end")
    scorer = TransformersStepScorer(policy.attach(head, 1, at_end=not lag), spec)
    first = [step_request(i, prefix, 9, seed=i, max_step_tokens=7) for i, prefix in enumerate(PREFIXES)]
    samples = samples_of(policy, first)
    scored = _score_requests(first, samples)
    _check_scores(model, head, scored, collect_all(scorer, scored), lag=lag)
    longer = [
        step_request(10 + i, request.prefix_ids + each[0][0].token_ids, 3, seed=7, max_step_tokens=5, max_steps=3)
        for i, (request, each) in enumerate(zip(first, samples, strict=True))
        if each[0][0].stop_reason != StopReason.END
    ]
    assert longer
    scored = _score_requests(longer, samples_of(policy, longer))
    assert max(len(branch) for request in scored for branch in request.branches) > 1
    _check_scores(model, head, scored, collect_all(scorer, scored), lag=lag)
    if cache_tokens is None:
        assert scorer.forwarded_tokens == 0
    # Steps that nobody sampled here are forwarded, after what the cache holds.
    written = [ScoreRequest(ticket=0, prefix_ids=PREFIXES[1], branches=(((20, 21, 22), (23,)), ((20, 24),), ((25,),)))]
    _check_scores(model, head, written, collect_all(scorer, written), lag=lag)
    assert scorer.forwarded_tokens > 0


def test_an_attached_head_changes_no_sample():
    """The same requests give the same tokens, texts and reasons with and without a head, drawn with and without replacement."""
    model, tokenizer = tiny_policy()
    requests = [step_request(i, prefix, 5, seed=i, max_step_tokens=6) for i, prefix in enumerate(PREFIXES)]
    requests += [
        step_request(9, (5, 6), 4, seed=4, max_step_tokens=3, excluded=()),
        step_request(10, (7, 9), 3, max_steps=4, max_step_tokens=4),
    ]
    found = []
    for attaches in (False, True):
        policy = TransformersPolicy(model, tokenizer, StepFormat(answer_pattern=r"=(\d)"), max_batch=4)
        if attaches:
            policy.attach(_head(model), 1)
        samples = samples_of(policy, requests)
        found.append([[[(step.token_ids, step.text, step.stop_reason) for step in steps] for steps in each] for each in samples])
    assert found[0] == found[1]


def test_a_head_at_the_end_of_steps_costs_a_token_per_sample_and_one_before_it_none():
    """Two samples of n and m tokens after a prefix of 3: 3 + (n - 1) + (m - 1) tokens, and 3 + n + m with a head that reads the last."""
    model, tokenizer = tiny_policy()
    forwarded = []
    for at_end in (None, False, True):
        policy = TransformersPolicy(model, tokenizer, StepFormat(answer_pattern=r"=(\d)"))
        if at_end is not None:
            policy.attach(_head(model), 1, at_end=at_end)
        (samples,) = samples_of(policy, [step_request(0, (5, 6, 7), 2, max_step_tokens=6)])
        lengths = [len(steps[0].token_ids) for steps in samples]
        forwarded.append(policy.forwarded_tokens)
        assert policy.token_counts.cached_tokens == 3
    assert forwarded == [3 + sum(lengths) - 2, 3 + sum(lengths) - 2, 3 + sum(lengths)]


def test_two_heads_share_a_body():
    """Each of two scorers reads its own head: five bins beside one number."""
    model, tokenizer = tiny_policy()
    policy = TransformersPolicy(model, tokenizer, StepFormat(answer_pattern=r"=(\d)"))
    bins = PRMSpec(renderer_hash="0" * 16, bins=5, transform="identity")
    heads = _head(model), _head(model, 5, seed=4)
    scorers = [TransformersStepScorer(policy.attach(head, spec.num_outputs), spec) for head, spec in zip(heads, (SPEC, bins), strict=True)]
    request = step_request(0, (5, 6, 7), 2, max_step_tokens=6)
    samples = samples_of(policy, [request])
    (scored,) = _score_requests([request], samples)
    alone, binned = (collect_all(scorer, [scored])[0].scores for scorer in scorers)
    for (steps,), own, mean in zip(samples[0], alone, binned, strict=True):
        ids = request.prefix_ids + steps.token_ids
        with torch.no_grad():
            weights = heads[1](model.model(torch.tensor([ids])).last_hidden_state[0, -1]).double().softmax(-1)
        assert own[0] == pytest.approx(_plain(model, heads[0], ids), abs=1e-5)
        assert mean[0] == pytest.approx(float(weights @ torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)), abs=1e-5)


def test_both_parts_keep_their_contracts():
    """The policy with a head, and the scorer on its cache, pass the shipped contract suites."""
    model, tokenizer = tiny_policy(max_positions=64)

    def policy():
        made = TransformersPolicy(model, tokenizer, StepFormat(answer_pattern=r"=(\d)"))
        made.attach(_head(model), 1)
        return made

    check_policy(policy, prefix_ids=PREFIXES, decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True))

    def scorer():
        made = TransformersPolicy(model, tokenizer, StepFormat(answer_pattern=r"=(\d)"))
        return TransformersStepScorer(made.attach(_head(model), 1), SPEC)

    check_scorer(scorer, prefix_ids=PREFIXES, steps=[(11, 12), (13,), (14, 15, 16, 17), (11, 20)], over_long_step_ids=(5,) * 62)


def test_a_head_is_attached_before_the_first_request():
    """With a request in flight there are samples whose outputs nobody kept."""
    model, tokenizer = tiny_policy()
    policy = TransformersPolicy(model, tokenizer, StepFormat(answer_pattern=r"=(\d)"))
    policy.submit([StepRequest(ticket=0, prefix_ids=(5,), num_samples=1, seed=0)])
    with pytest.raises(BackendError, match="attach: nothing may be in flight"):
        policy.attach(_head(model), 1)
