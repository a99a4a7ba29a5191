"""The vLLM policy on a real engine, on models saved to disk; the transformers model is the oracle."""

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig

from stepladder.errors import CheckpointError, ConfigError
from stepladder.lm.settings import EngineSettings
from stepladder.lm.text import TokenText
from stepladder.lm.vllm_engine import VLLMEngine
from stepladder.lm.vllm_start import check_engine, engine_arguments
from stepladder.policy.actions import Action, ActionPolicy
from stepladder.policy.backends.transformers import TransformersPolicy
from stepladder.policy.backends.vllm import VLLMPolicy
from stepladder.policy.prompts import StepFormat
from stepladder.testing import check_policy
from stepladder.types import StopReason
from tests.backends import samples_of, step_request
from tests.models import save_tiny_policy, tiny_config, tiny_policy, tiny_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

FORMAT = StepFormat(answer_pattern=r"=(\d)")
CONTEXT = 256


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save a model and its format."""
    folder = save_tiny_policy(tmp_path_factory.mktemp("policy"), max_positions=CONTEXT)
    FORMAT.save(folder)
    return folder


class _Engines:
    """One engine at a time: closing one ends all engines of a process."""

    def __init__(self, folder):
        self._folder, self._engine = folder, None

    def get(self):
        if self._engine is None:
            self._engine = VLLMEngine(self._folder, task="generate", settings=EngineSettings(max_batch=64))
        self._engine.reset()
        return self._engine

    def close(self):
        if self._engine is not None:
            self._engine.close()
        self._engine = None


@pytest.fixture(scope="module")
def engines(saved):
    """Hold one engine for all tests."""
    engines = _Engines(saved)
    yield engines
    engines.close()


@pytest.fixture
def policy(engines):
    """Return a policy on an engine with an empty cache."""
    return VLLMPolicy(engines.get(), tiny_policy()[1], FORMAT)


def test_the_policy_keeps_the_contract(policy):
    """The shipped contract suite passes."""
    _, tokenizer = tiny_policy()
    prefixes = [(5, 6, 7), (9,), (8,) * 40, (5, 6, 10, 11)]
    check_policy(lambda: policy, prefix_ids=prefixes, decode=TokenText(tokenizer).decode, over_long_prefix_ids=(5,) * CONTEXT)


def test_logps_are_those_of_transformers(policy):
    """A plain forward of prefix and sample gives every log-probability within 1e-4, at any temperature and however much was cached."""
    model, _ = tiny_policy(max_positions=CONTEXT)
    requests = [
        step_request(i, (*range(5, 5 + 11 * i), 9), 3, seed=i, temperature=temperature, max_step_tokens=30, max_steps=3)
        for i, temperature in enumerate([1.0, 0.0, 0.3, 2.0])
    ]
    for _ in range(2):
        for request, samples in zip(requests, samples_of(policy, requests), strict=True):
            for steps in samples:
                ids = [*request.prefix_ids, *(token for step in steps for token in step.token_ids)]
                with torch.no_grad():
                    logps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
                begin = len(request.prefix_ids)
                expected = [logps[at - 1, ids[at]].item() for at in range(begin, len(ids))]
                np.testing.assert_allclose([logp for step in steps for logp in step.logps], expected, atol=1e-4)


def test_greedy_steps_are_those_of_the_transformers_backend(policy, saved):
    """Same ids, same boundaries, same reasons, for one step and for whole solutions that a cap cuts."""
    other = TransformersPolicy.from_pretrained(saved, device="cpu")
    requests = [
        step_request(i, (5 + i, 6), temperature=0.0, max_step_tokens=cap, max_steps=steps)
        for i, (cap, steps) in enumerate([(8, 1), (64, 1), (5, 9), (64, 99), (1, 4), (3, 2)])
    ]
    for got, expected in zip(samples_of(policy, requests), samples_of(other, requests), strict=True):
        assert [(s.token_ids, s.text, s.stop_reason) for s in got[0]] == [(s.token_ids, s.text, s.stop_reason) for s in expected[0]]


def test_kinds_of_steps_are_those_of_the_transformers_backend(policy, saved):
    """Greedy steps after the prompt of each kind, a finished solution as one step among them, have the same tokens, ends and kinds."""
    prompts = {"step": (5, 6), "ask": (9, 8, 6), "finish": (10, 6)}
    kinds = [
        Action(name=name, share=Fraction(1, 3), prompt=lambda _, ids=ids: ids, max_steps=9 if name == "finish" else 1)
        for name, ids in prompts.items()
    ]
    requests = [
        step_request(i, (5, 6, 7 + i), 3, temperature=0.0, max_step_tokens=20, question="q", given=((0, 2),), parent_action="")
        for i in range(3)
    ]
    other = TransformersPolicy.from_pretrained(saved, device="cpu")
    got, expected = (samples_of(ActionPolicy(inner, lambda _: prompts["step"], kinds), requests) for inner in (policy, other))
    for samples, others in zip(got, expected, strict=True):
        steps = [step for (step,) in samples]
        assert [step.action for step in steps] == ["step", "ask", "finish"]
        assert [(s.token_ids, s.text, s.stop_reason) for s in steps] == [(s.token_ids, s.text, s.stop_reason) for (s,) in others]
        for step, (same,) in zip(steps, others, strict=True):
            np.testing.assert_allclose(step.logps, same.logps, atol=1e-4)
    # The kinds follow different prompts, so that their steps differ.
    assert len({step.token_ids for samples in got for (step,) in samples}) > 3


def test_steps_follow_the_text_of_their_tokens(policy):
    """Whatever was sampled, a step is final where the answer pattern matches, ends at a newline, and was else cut or ended by the model."""
    _, tokenizer = tiny_policy()
    newline = tokenizer.encode("\n")[0]
    samples = samples_of(policy, [step_request(0, (5, 6), 64, max_step_tokens=40, max_steps=3)])[0]
    seen = set()
    for steps in samples:
        for step in steps:
            seen.add(step.stop_reason)
            assert newline not in step.token_ids[:-1] and tokenizer.eos_token_id not in step.token_ids[:-1]
            last = step.token_ids[-1]
            final = last == newline and FORMAT.is_final(step.text)
            if last == tokenizer.eos_token_id or final:
                assert step.stop_reason == StopReason.END
            elif last == newline:
                assert step.stop_reason == StopReason.STEP
            else:
                assert step.stop_reason == StopReason.LENGTH and len(step.token_ids) == 40
    assert seen == {StopReason.STEP, StopReason.END, StopReason.LENGTH}


def test_frequencies_are_the_models(policy):
    """One-token samples at temperature 1 are distributed as the model says: chi-square over 3,000 draws within five sigmas."""
    model, tokenizer = tiny_policy(max_positions=CONTEXT)
    samples = [step.token_ids[0] for (step,) in samples_of(policy, [step_request(0, (7, 8), 3000, max_step_tokens=1)])[0]]
    with torch.no_grad():
        logits = model(torch.tensor([[7, 8]])).logits[0, -1].double()
    logits[[i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id]] = -torch.inf
    expected = logits.softmax(-1).numpy() * 3000
    counts = np.bincount(samples, minlength=len(expected))
    assert not counts[expected == 0].any()
    cells = expected > 0
    statistic = ((counts - expected)[cells] ** 2 / expected[cells]).sum()
    freedom = cells.sum() - 1
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_samples_repeat_in_a_new_engine_that_is_short_of_memory(engines, saved):
    """Another engine, in other company, gives the same tokens though its cache is small: sequences are put off and computed again."""
    requests = [step_request(i, (5, 6 + i), 4, seed=i, max_step_tokens=60, max_steps=3) for i in range(8)]
    tokenizer = tiny_policy()[1]
    first = samples_of(VLLMPolicy(engines.get(), tokenizer, FORMAT), requests)
    engines.close()
    other = VLLMPolicy.from_pretrained(saved, settings=EngineSettings(max_batch=32, options={"num_gpu_blocks_override": 20}))
    got = samples_of(other, [*(step_request(100 + i, (9,), 3, seed=50 + i) for i in range(5)), *requests])[5:]
    other.close()
    ids = [[[[step.token_ids for step in steps] for steps in samples] for samples in results] for results in (first, got)]
    assert ids[0] == ids[1]
    # The cache has a block of 32 tokens for 19 sequences: a sequence that outgrows its block displaces another one.
    assert sum(sum(map(len, steps)) > 32 for samples in ids[0] for steps in samples) >= 4


def test_the_prefix_cache_serves_samples_and_continuations(engines):
    """Of a prefix of 100, the three whole blocks of 32 are forwarded once: 7 of 8 samples find them, and a continuation finds more."""
    policy = VLLMPolicy(engines.get(), tiny_policy()[1], FORMAT)
    assert policy.cached_share is None
    prefix = tuple(range(5, 55)) * 2
    samples = samples_of(policy, [step_request(0, prefix, 8, temperature=0.0, max_step_tokens=30)])[0]
    assert policy.refused_tokens == 0
    assert (policy.prefix_tokens, policy.cached_tokens) == (800, 7 * 96)
    assert policy.cached_share == pytest.approx(0.84)
    assert policy.generated_tokens == sum(len(step.token_ids) for (step,) in samples)
    assert policy.forwarded_tokens == 128 + policy.generated_tokens - 8
    assert policy.token_counts.forwarded_tokens == policy.forwarded_tokens
    [step] = samples[0]
    before = policy.cached_tokens
    samples_of(policy, [step_request(1, prefix + step.token_ids, 1, temperature=0.0, max_step_tokens=1)])
    assert policy.cached_tokens - before == (100 + len(step.token_ids) - 1) // 32 * 32
    engines.get()
    before = policy.cached_tokens
    samples_of(policy, [step_request(2, prefix, 1, temperature=0.0, max_step_tokens=1)])
    assert policy.cached_tokens == before


def test_a_token_that_must_not_be_sampled_is_drawn_again(policy):
    """Of 64 samples of 20 tokens, many meet a special token: none has one, and what takes over finds the prefix in the cache."""
    _, tokenizer = tiny_policy()
    samples = samples_of(policy, [step_request(0, (5, 6) * 20, 64, max_step_tokens=20)])[0]
    specials = set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}
    assert not any(specials & set(step.token_ids) for (step,) in samples)
    assert policy.refused_tokens >= 5
    assert policy.generated_tokens == policy.refused_tokens + sum(len(step.token_ids) for (step,) in samples)
    assert policy.prefix_tokens >= 40 * (64 + policy.refused_tokens)
    assert policy.cached_tokens >= 32 * (63 + policy.refused_tokens)


def test_more_prefixes_than_one_step_takes(policy):
    """Sixty different prefixes of 200 tokens, several times what vLLM forwards at once, are sampled as each is alone."""
    requests = [step_request(i, (5 + i % 50, 6 + i // 50) * 100, 1, seed=i, max_step_tokens=8) for i in range(60)]
    together = samples_of(policy, requests)
    for request in requests[::12]:
        [alone] = samples_of(policy, [request])
        assert alone[0][0].token_ids == together[request.ticket][0][0].token_ids


def test_samples_are_the_same_whenever_they_arrive(engines, monkeypatch):
    """Sequences of many lengths that arrive every fifth step, and one that is cancelled while it waits."""
    engine = engines.get()
    requests = [step_request(i, (5 + i, 6), 3, seed=i, max_steps=1 + i % 3, max_step_tokens=4 + i) for i in range(20)]
    at_once = samples_of(VLLMPolicy(engine, tiny_policy()[1], FORMAT), requests)
    monkeypatch.setattr(engine.arrivals, "steps", 5)
    policy = VLLMPolicy(engines.get(), tiny_policy()[1], FORMAT)
    policy.submit([step_request(100, (5, 6), 2, max_steps=9, max_step_tokens=9)])
    policy.cancel([100])
    later = samples_of(policy, requests)
    first, second = ([[[step.token_ids for step in sample] for sample in samples] for samples in found] for found in (at_once, later))
    assert first == second


def test_a_reset_drops_what_is_in_flight(engines):
    """Requests that were never collected are gone after a reset, and a policy on the same engine begins afresh."""
    tokenizer = tiny_policy()[1]
    VLLMPolicy(engines.get(), tokenizer, FORMAT).submit([step_request(i, (5, 6), 4, max_steps=9) for i in range(9)])
    fresh = VLLMPolicy(engines.get(), tokenizer, FORMAT)
    assert fresh.collect() == []
    assert len(samples_of(fresh, [step_request(0, (5, 6), 2)])[0]) == 2


def test_no_name_of_a_sequence_serves_twice(engines, monkeypatch):
    """Requests of the same tickets, on one engine before and after a reset: an engine that schedules ahead may still compute the first."""
    core, names = engines.get()._engine.engine_core, []
    ask = core.add_request
    monkeypatch.setattr(core, "add_request", lambda request: (names.append(request.request_id), ask(request)))
    for _ in range(2):
        samples_of(VLLMPolicy(engines.get(), tiny_policy()[1], FORMAT), [step_request(0, (5, 6), 3), step_request(1, (7,), 2)])
    assert len(names) >= 10
    assert len(names) == len(set(names))


def test_what_vllm_cannot_do_is_said_in_one_sentence(tmp_path, saved):
    """A context beyond the model's, unknown options, options that are not free, and an absent model."""
    with pytest.raises(CheckpointError, match=r"vLLM must be able to serve the model here: .*max_model_len"):
        VLLMEngine(saved, task="generate", settings=EngineSettings(max_context=100 * CONTEXT))
    with pytest.raises(ConfigError, match="EngineArgs"):
        VLLMEngine(saved, task="generate", settings=EngineSettings(options={"no_such_option": 1}))
    with pytest.raises(ConfigError, match="'seed'"):
        VLLMEngine(saved, task="generate", settings=EngineSettings(options={"seed": 1}))
    with pytest.raises(CheckpointError, match="absent"):
        VLLMPolicy.from_pretrained(tmp_path / "absent", FORMAT)


_REFUSED: dict[str, tuple[dict[str, Any], EngineSettings, str]] = {
    "heads of another size": ({"head_dim": 24}, EngineSettings(), r"CPU_ATTN\) takes heads of size 32, .*: got 24 -- "),
    "blocks of another size": ({}, EngineSettings(block_size=16), "takes blocks of multiples of 32 tokens: got 16 -- "),
    "a context without room": ({"max_positions": 9_000_000}, EngineSettings(), r"9000000 tokens take 8\.6 GiB, of 1\.0 -- "),
    "parts of heads": ({"hidden": 96}, EngineSettings(tensor_parallel=2), r"attention heads \(3\) must be divisible"),
    "quantised in a type without it": ({}, EngineSettings(options={"quantization": "fp8"}), "float32 is not supported for quantization"),
}


@pytest.mark.parametrize("task", ["generate", "embed"])
@pytest.mark.parametrize("what", _REFUSED)
def test_what_vllm_cannot_serve_is_refused_without_weights(tmp_path, monkeypatch, what, task):
    """From the configuration alone, for policies and for PRMs, by the check in advance and by an engine before it loads anything."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    changed, settings, said = _REFUSED[what]
    tiny_config(tiny_tokenizer(), architectures=["Qwen2ForCausalLM"], dtype="float32", **changed).save_pretrained(tmp_path)
    for start in (check_engine, VLLMEngine):
        with pytest.raises(CheckpointError, match=said):
            start(tmp_path, task=task, settings=settings)


def test_what_does_not_generate_is_refused_as_a_policy(tmp_path):
    """An encoder, and a name that vLLM does not know."""
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path / "encoder")
    tiny_config(tiny_tokenizer(), architectures=["NoSuchForCausalLM"]).save_pretrained(tmp_path / "unknown")
    for name, said in (("encoder", "do not support `--runner generate`"), ("unknown", "NoSuchForCausalLM.* are not supported")):
        with pytest.raises(CheckpointError, match=said):
            check_engine(tmp_path / name, task="generate", settings=EngineSettings())


def test_the_installed_vllm_knows_the_arguments_of_a_gpu_engine(saved):
    """What would start engines of policy and PRM on two GPUs is accepted by ``vllm.EngineArgs``, which does not look for the GPUs."""
    from vllm import EngineArgs

    settings = EngineSettings(memory_share=0.3, tensor_parallel=2, block_size=16, max_batch=64, options={"quantization": "fp8"})
    for task in ("generate", "embed"):
        resolved = EngineArgs(**engine_arguments(saved, task, settings, on_cpu=False, whole_graphs=True))
        graphs = resolved.compilation_config
        assert (graphs.cudagraph_mode is not None and graphs.cudagraph_mode.name == "FULL") == (task == "generate")
        assert (resolved.gpu_memory_utilization, resolved.tensor_parallel_size, resolved.block_size) == (0.3, 2, 16)
        assert (resolved.max_num_seqs, resolved.quantization, resolved.enable_prefix_caching) == (64, "fp8", True)


def test_a_closed_engine_gives_its_memory_back(saved):
    """Its cache of 1 GiB is the system's again, and a second engine leaves no more behind than the first did."""

    def resident_mib():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    left = []
    for _ in range(2):
        engine = VLLMEngine(saved, task="generate", settings=EngineSettings(max_batch=64))
        samples_of(VLLMPolicy(engine, tiny_policy()[1], FORMAT), [step_request(0, (5,) * 100, 32, max_step_tokens=99)])
        in_use = resident_mib()
        engine.close()
        left.append(resident_mib())
        assert in_use - left[-1] > 900
    assert left[1] - left[0] < 50
