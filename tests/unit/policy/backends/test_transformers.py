import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from stepladder.errors import BackendError, CheckpointError
from stepladder.lm.sampling import stream_keys, uniforms
from stepladder.policy.backends.transformers import TransformersPolicy
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.testing import check_policy
from stepladder.types import Problem, StopReason
from tests.backends import samples_of, step_request
from tests.models import save_tiny_policy, tiny_policy

FORMAT = StepFormat(answer_pattern=r"=(\d)")


def _favour(model, ids, strength=6.0):
    """Make some ids likely, in every way the model is called."""
    bonus = torch.zeros(model.config.vocab_size)
    bonus[list(ids)] = strength
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + bonus)
    return model


def _twin_sample(model, tokenizer, step_format, request, sample):
    """Sample one token at a time with a full forward each, judging steps by their text: [(ids, reason)], and all log-probabilities."""
    banned = [i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id]
    key = stream_keys(request.seed, request.num_samples)[sample : sample + 1]
    ids, steps, step, logps = list(request.prefix_ids), [], [], []
    while True:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        choosable = logits.clone()
        choosable[banned] = -torch.inf
        u = uniforms(key, np.array([len(logps)]))[0]
        probs = (choosable / (request.temperature or 1)).softmax(-1).cumsum(-1)
        token = int(choosable.argmax()) if request.temperature == 0 else int((probs <= u).sum())
        logps.append(logits.log_softmax(-1)[token].item())
        ids.append(token)
        step.append(token)
        text = tokenizer.decode(step, skip_special_tokens=True)
        full = len(ids) >= model.config.max_position_embeddings
        reason = None
        if token == tokenizer.eos_token_id:
            reason = StopReason.END
        elif step_format.step_end in text:
            more = len(steps) + 1 < request.max_steps
            reason = (
                StopReason.END if re.search(step_format.answer_pattern, text) else StopReason.LENGTH if more and full else StopReason.STEP
            )
        elif len(step) == request.max_step_tokens or full:
            reason = StopReason.LENGTH
        if reason:
            steps.append((tuple(step), text, reason))
            step = []
            if reason != StopReason.STEP or len(steps) == request.max_steps:
                return steps, logps


CASES = {
    "one character": ("chars", "\n", "\nab=1", 4.0, {}),
    "two tokens": ("chars", "ab", "ab=1", 5.0, {}),
    "repeated tokens": ("chars", "\n\n", "\n0", 5.0, {}),
    "three bytes": ("bytes", "é\n", "é\n", 5.0, {}),
    "grouped queries": ("bytes", "\n", "\n=1", 5.0, {"kv_heads": 1}),
}


@pytest.mark.parametrize("arch", ["qwen2", "llama"])
@pytest.mark.parametrize("case", CASES)
def test_samples_equal_those_of_a_slow_twin(arch, case):
    """Tokens, step ends, texts and reasons are exactly, and log-probabilities within 1e-5, those of full forwards one token at a time."""
    vocab, step_end, favoured, strength, config = CASES[case]
    model, tokenizer = tiny_policy(arch=arch, vocab=vocab, max_positions=48, **config)
    _favour(model, [*tokenizer.encode(favoured, add_special_tokens=False)], strength=strength)
    _favour(model, [tokenizer.eos_token_id], strength=2.0)
    step_format = replace(FORMAT, step_end=step_end)
    prefix = tokenizer.encode("1+2\n")
    requests = [
        step_request(0, prefix, 3, seed=1, max_step_tokens=12),
        step_request(1, prefix, 10, seed=2, max_steps=4, max_step_tokens=9, temperature=0.7),
        step_request(2, prefix[:1], 2, seed=3, max_steps=50),
        step_request(5, prefix, 12, seed=6, max_step_tokens=5),
        step_request(3, [*prefix, *prefix], 1, seed=4, max_steps=3, temperature=0.0),
        step_request(4, prefix * 8, 2, seed=5, max_steps=5),
    ]
    policy = TransformersPolicy(model, tokenizer, step_format, max_batch=7)
    reasons = set()
    for request, samples in zip(requests, samples_of(policy, requests), strict=True):
        for index, sample in enumerate(samples):
            steps, logps = _twin_sample(model, tokenizer, step_format, request, index)
            assert [(step.token_ids, step.text, step.stop_reason) for step in sample] == steps
            np.testing.assert_allclose([logp for step in sample for logp in step.logps], logps, atol=1e-5)
            reasons.update(step.stop_reason for step in sample)
    assert reasons == {StopReason.STEP, StopReason.END, StopReason.LENGTH}


@pytest.mark.parametrize("arch", ["qwen2", "llama"])
@pytest.mark.parametrize("vocab", ["chars", "bytes"])
def test_the_backend_keeps_the_contract(arch, vocab):
    """The shipped contract suite passes."""
    model, tokenizer = tiny_policy(arch=arch, vocab=vocab, max_positions=128)
    prefixes = [tuple(tokenizer.encode(text)) for text in ("12+3\n", "abc\n", "9")]
    check_policy(
        lambda: TransformersPolicy(model, tokenizer, FORMAT, max_batch=16),
        prefix_ids=prefixes,
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        over_long_prefix_ids=(5,) * 128,
    )


@pytest.mark.parametrize("cache_tokens", [None, 1, 30])
def test_chains_of_steps_do_not_depend_on_the_cache(cache_tokens):
    """Steps sampled behind sampled steps are those of a fresh policy, whatever the cache can hold."""
    model, tokenizer = tiny_policy()
    _favour(model, tokenizer.encode("\n"), 3.0)
    cached = TransformersPolicy(model, tokenizer, FORMAT, cache_tokens=cache_tokens)
    prefixes = [(5, 6, 7), (9, 9)]
    for depth in range(4):
        requests = [step_request(i, prefix, 3, seed=10 * depth + i) for i, prefix in enumerate(prefixes)]
        got, expected = samples_of(cached, requests), samples_of(TransformersPolicy(model, tokenizer, FORMAT), requests)
        for one, other in zip(got, expected, strict=True):
            assert [sample[0].token_ids for sample in one] == [sample[0].token_ids for sample in other]
            for a, b in zip(one, other, strict=True):
                np.testing.assert_allclose(a[0].logps, b[0].logps, atol=1e-5)
        prefixes = [prefix + samples[depth % 3][0].token_ids for prefix, samples in zip(prefixes, got, strict=True)]


def test_a_sampled_step_is_continued_for_one_forwarded_token():
    """Prefix and step are cached but for the step's last token, which is forwarded once for all samples that follow it."""
    model, tokenizer = tiny_policy()
    policy = TransformersPolicy(model, tokenizer, FORMAT)
    _favour(model, tokenizer.encode("\n"), 3.0)
    step = samples_of(policy, [step_request(0, (5, 6, 7), 4, max_step_tokens=64)])[0][2][0]
    assert step.stop_reason == StopReason.STEP
    before = policy.forwarded_tokens
    samples = samples_of(policy, [step_request(1, (5, 6, 7, *step.token_ids), 4, max_step_tokens=64)])[0]
    # A token that ends its sample is never forwarded.
    assert policy.forwarded_tokens - before == 1 + sum(len(sample[0].token_ids) - 1 for sample in samples)


def test_a_cut_step_is_continued_for_one_forwarded_token():
    """What a step's cap cut is cached like a step: of prefix and cut step, the last token alone is forwarded again."""
    model, tokenizer = tiny_policy()
    policy = TransformersPolicy(model, tokenizer, replace(FORMAT, step_end="\n" * 5))
    step = samples_of(policy, [step_request(0, (5, 6, 7), 4, max_step_tokens=9)])[0][1][0]
    assert step.stop_reason == StopReason.LENGTH and len(step.token_ids) == 9
    before = policy.forwarded_tokens
    samples_of(policy, [step_request(1, (5, 6, 7, *step.token_ids), 4, max_step_tokens=1)])
    assert policy.forwarded_tokens - before == 1


def test_the_prefix_is_forwarded_once_for_its_samples_and_for_equal_requests():
    """Three requests of five samples behind one prefix of 20: 19 tokens once, the last one once per row of a request."""
    model, tokenizer = tiny_policy()
    policy = TransformersPolicy(model, tokenizer, FORMAT)
    samples_of(policy, [step_request(i, range(5, 25), 5, seed=i, max_step_tokens=1) for i in range(3)])
    assert policy.forwarded_tokens == 19 + 3
    assert policy.generated_tokens == 15
    counts = policy.token_counts
    assert (counts.prefix_tokens, counts.cached_tokens, counts.forwarded_tokens) == (15 * 20, 15 * 20 - 22, 22)


def test_a_token_that_closes_a_step_and_goes_on_ends_it():
    """With a token of newline and x, the step ends behind it and its text keeps the x."""
    model, tokenizer = tiny_policy()
    tokenizer.add_tokens(["\nx"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    _favour(model, [len(tokenizer) - 1], 50.0)
    [[step]] = samples_of(TransformersPolicy(model, tokenizer, FORMAT), [step_request()])[0]
    assert (step.token_ids, step.text, step.stop_reason) == ((len(tokenizer) - 1,), "\nx", StopReason.STEP)


def test_special_and_unknown_ids_are_never_sampled():
    """Padding, begin and unknown tokens, and ids beyond the tokenizer, do not come out even when the model wants them."""
    model, tokenizer = tiny_policy()
    model.resize_token_embeddings(len(tokenizer) + 5, mean_resizing=False)
    unwanted = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, *range(len(tokenizer), len(tokenizer) + 5)}
    _favour(model, unwanted, 8.0)
    samples = samples_of(TransformersPolicy(model, tokenizer, FORMAT), [step_request(num_samples=40, max_step_tokens=10)])[0]
    greedy = samples_of(TransformersPolicy(model, tokenizer, FORMAT), [step_request(temperature=0.0, max_step_tokens=10)])[0]
    assert not unwanted & {token for sample in (*samples, *greedy) for step in sample for token in step.token_ids}


@pytest.mark.parametrize("arch", ["qwen2", "llama"])
def test_greedy_decoding_equals_transformers_generate(arch):
    """Temperature 0 writes what ``generate(do_sample=False)`` writes."""
    model, tokenizer = tiny_policy(arch=arch, vocab="bytes")
    prefix = tokenizer.encode("Janet has 3 ducks – how many?\n")
    banned = [i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id]
    expected = model.generate(torch.tensor([prefix]), do_sample=False, max_new_tokens=40, suppress_tokens=banned)[0, len(prefix) :]
    policy = TransformersPolicy(model, tokenizer, FORMAT)
    [steps] = samples_of(policy, [step_request(prefix_ids=prefix, temperature=0.0, max_steps=99, max_step_tokens=40)])[0]
    assert [i for step in steps for i in step.token_ids][:40] == expected.tolist()


def test_a_reset_policy_repeats_itself_bit_for_bit():
    """After ``reset`` the same requests give the same log-probabilities exactly; with requests in flight it is refused."""
    model, tokenizer = tiny_policy()
    policy = TransformersPolicy(model, tokenizer, FORMAT, max_batch=8)
    requests = [step_request(i, (5, 6 + i), 3, seed=i, max_step_tokens=20, max_steps=2) for i in range(8)]
    first = samples_of(policy, requests)
    samples_of(policy, [step_request(0, (20,) * 100, 6, max_step_tokens=50)])
    policy.reset()
    assert samples_of(policy, requests) == first
    policy.submit(requests[:1])
    with pytest.raises(BackendError, match="in flight"):
        policy.reset()
    with pytest.raises(BackendError, match="unique"):
        policy.submit(requests[:1])


def test_requests_that_cannot_be_served_come_back_as_data():
    """Each reason is one sentence in an empty ERROR step per sample, and the others are served."""
    model, tokenizer = tiny_policy(max_positions=32)
    policy = TransformersPolicy(model, tokenizer, FORMAT)
    bad = [
        (step_request(0, (), 2), "one or more ids"),
        (step_request(1, (10**6,)), "one or more ids"),
        (step_request(2, (5,) * 32), "room in the model's context of 32"),
        (step_request(3, max_step_tokens=0), "at least 1"),
        (step_request(4, temperature=float("nan")), "temperature"),
    ]
    *refused, served = samples_of(policy, [*(request for request, _ in bad), step_request(5, max_step_tokens=3)])
    for (request, message), samples in zip(bad, refused, strict=True):
        assert len(samples) == request.num_samples
        for (step,) in samples:
            assert step.stop_reason == StopReason.ERROR and step.token_ids == () and message in (step.message or "")
    assert served[0][0].stop_reason != StopReason.ERROR


def test_the_last_token_of_the_context_is_used():
    """A prefix of 31 in a context of 32 leaves one token, and the step is cut there."""
    model, tokenizer = tiny_policy(max_positions=32)
    [[step]] = samples_of(TransformersPolicy(model, tokenizer, FORMAT), [step_request(prefix_ids=(5,) * 31, seed=1)])[0]
    assert len(step.token_ids) == 1 and step.stop_reason == StopReason.LENGTH


def test_broken_weights_raise():
    """Output that is not a number is the backend's failure, not a sample."""
    model, tokenizer = tiny_policy()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(BackendError, match="finite"):
        samples_of(TransformersPolicy(model, tokenizer, FORMAT), [step_request()])


def test_low_precision_models_decode():
    """bfloat16 weights give finite log-probabilities near those of float32."""
    model, tokenizer = tiny_policy()
    request = step_request(num_samples=4, max_step_tokens=8, temperature=0.0)
    full = samples_of(TransformersPolicy(model, tokenizer, FORMAT), [request])[0]
    half = samples_of(TransformersPolicy(model.to(torch.bfloat16), tokenizer, FORMAT), [request])[0]
    assert half[0][0].logps[0] == pytest.approx(full[0][0].logps[0], abs=0.1)


def test_many_rows_come_and_go():
    """Rows of all lengths in several blocks are filled, emptied and moved together; each sample equals the one taken alone."""
    model, tokenizer = tiny_policy(hidden=32, layers=1)
    _favour(model, tokenizer.encode("\n"), 2.0)
    rng = np.random.default_rng(0)
    requests = [
        step_request(
            i, rng.integers(4, 60, rng.integers(1, 120)).tolist(), int(rng.integers(1, 4)), seed=i, max_steps=int(rng.integers(1, 12))
        )
        for i in range(90)
    ]
    together = samples_of(TransformersPolicy(model, tokenizer, FORMAT, max_batch=150), requests)
    for i in range(0, 90, 9):
        alone = samples_of(TransformersPolicy(model, tokenizer, FORMAT), [requests[i]])[0]
        assert [[s.token_ids for s in sample] for sample in alone] == [[s.token_ids for s in sample] for sample in together[i]]


def test_a_saved_directory_samples_like_the_objects(tmp_path):
    """Model, tokenizer and format load together; without a format the directory is refused.

    Weights mapped from a file lie at other addresses than drawn ones, and some processors' matrix products then differ in the last bit.
    """
    save_tiny_policy(tmp_path, arch="qwen2")
    with pytest.raises(CheckpointError, match="stepladder_format"):
        TransformersPolicy.from_pretrained(tmp_path, device="cpu")
    FORMAT.save(tmp_path)
    model, tokenizer = tiny_policy(arch="qwen2")
    prefix = PromptRenderer(tokenizer, FORMAT).prompt_ids(Problem(id="p", question="1+2"))
    loaded = TransformersPolicy.from_pretrained(tmp_path, device="cpu")
    (((saved,),),) = samples_of(loaded, [step_request(prefix_ids=prefix)])
    (((drawn,),),) = samples_of(TransformersPolicy(model, tokenizer, FORMAT), [step_request(prefix_ids=prefix)])
    assert replace(saved, logps=()) == replace(drawn, logps=())
    assert saved.logps == pytest.approx(drawn.logps, abs=1e-6)


@pytest.mark.gpu
def test_a_gpu_samples_what_the_cpu_samples(tmp_path):
    """Greedy decoding in float32 gives the same tokens on both, with log-probabilities within 1e-3."""
    FORMAT.save(save_tiny_policy(tmp_path))
    requests = [step_request(i, (5 + i, 6), 2, seed=i, max_steps=3, temperature=0.0) for i in range(20)]
    cpu, gpu = (samples_of(TransformersPolicy.from_pretrained(tmp_path, device=d, dtype="float32"), requests) for d in ("cpu", "cuda"))
    for one, other in zip(cpu, gpu, strict=True):
        for a, b in zip(one, other, strict=True):
            assert [step.token_ids for step in a] == [step.token_ids for step in b]
            np.testing.assert_allclose([x for s in a for x in s.logps], [x for s in b for x in s.logps], atol=1e-3)


def three_token_grammar(temperature):
    """Return a policy with steps of at most three tokens out of "a", "b" and the newline that ends a step, and the law of its steps.

    There are fifteen: the newline alone, two of two tokens, and twelve of three. The law is that of full forwards in double precision.
    """
    model, tokenizer = tiny_policy()
    a, b, newline = (tokenizer.encode(text, add_special_tokens=False)[0] for text in "ab\n")
    _favour(model, [a, b], 40.0)
    _favour(model, [newline], 39.0)
    law = {}

    def follow(step, probability):
        if len(step) == 3 or step[-1:] == (newline,):
            law[step] = probability
            return
        with torch.no_grad():
            probs = (model(torch.tensor([[5, 6, 7, *step]])).logits[0, -1].double() / temperature).softmax(-1)
        for token in (a, b, newline):
            follow((*step, token), probability * probs[token].item())

    follow((), 1.0)
    return TransformersPolicy(model, tokenizer, FORMAT), law


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_distinct_samples_follow_the_exact_law(temperature):
    """Of two samples without replacement the first has P(x) and the second P(y) / (1 - P(x)): chi-square against the enumerated law.

    The steps keep the policy's own log-probabilities, and their probability when sampled is the one enumerated.
    """
    policy, law = three_token_grammar(temperature)
    assert len(law) == 15 and sum(law.values()) == pytest.approx(1, abs=1e-6)
    number = 2000
    asked = [step_request(i, num_samples=2, seed=i, max_step_tokens=3, temperature=temperature, excluded=()) for i in range(number)]
    counts = [dict.fromkeys(law, 0), dict.fromkeys(law, 0)]
    for samples in samples_of(policy, asked):
        (first,), (second,) = samples
        assert first.token_ids != second.token_ids
        counts[0][first.token_ids] += 1
        counts[1][second.token_ids] += 1
        assert first.probability == pytest.approx(law[first.token_ids], rel=1e-4)
        assert second.probability == pytest.approx(law[second.token_ids], rel=1e-4)
    seconds = {y: sum(law[x] * law[y] / (1 - law[x]) for x in law if x != y) for y in law}
    for found, expected in zip(counts, (law, seconds), strict=True):
        chi_square = sum((found[step] - number * p) ** 2 / (number * p) for step, p in expected.items())
        # 14 degrees of freedom: one in a thousand is above 36.1.
        assert chi_square < 36.1


def test_distinct_samples_exhaust_the_steps():
    """All fifteen come out once, whatever the seed. When fourteen are known, the last one comes, then an unlikely one of other tokens."""
    policy, law = three_token_grammar(1.0)
    asked = [step_request(i, num_samples=15, seed=i, max_step_tokens=3, excluded=()) for i in range(8)]
    for samples in samples_of(policy, asked):
        assert {step.token_ids for (step,) in samples} == set(law)
        excluded = tuple(step for (step,) in samples[:14])
        [[last], [again]] = samples_of(policy, [step_request(num_samples=2, seed=99, max_step_tokens=3, excluded=excluded)])[0]
        assert last.token_ids == samples[14][0].token_ids and again.token_ids not in law


def test_distinct_samples_do_not_depend_on_company():
    """Requests of both kinds in one batch give what each gives alone, and independent samples are untouched."""
    model, tokenizer = tiny_policy()
    policy = TransformersPolicy(model, tokenizer, FORMAT, max_batch=5)
    asked = [
        step_request(0, num_samples=4, seed=1, max_step_tokens=4, excluded=()),
        step_request(1, num_samples=6, seed=2, max_step_tokens=6),
        step_request(2, prefix_ids=(9, 9), num_samples=3, seed=3, max_step_tokens=4, excluded=()),
        step_request(3, num_samples=2, seed=4, max_steps=3, max_step_tokens=4, excluded=()),
    ]
    together = samples_of(policy, asked)
    for request, samples in zip(asked, together, strict=True):
        [alone] = samples_of(TransformersPolicy(model, tokenizer, FORMAT), [request])
        assert [[step.token_ids for step in sample] for sample in alone] == [[step.token_ids for step in sample] for sample in samples]
    assert all(step.sampling_logps is None for sample in together[1] for step in sample)
