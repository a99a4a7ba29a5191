"""The shipped fakes keep the contracts, and the contract suites catch backends that do not."""

import dataclasses
import random

import pytest
from tokenizers import normalizers

from stepladder.errors import BackendError
from stepladder.interfaces import ScoreRequest, StepRequest
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.testing import (
    CharRenderer,
    ExactVerifier,
    ScriptedPolicy,
    TableScorer,
    check_policy,
    check_renderer,
    check_scorer,
    check_tokenizer,
    make_step,
)
from stepladder.types import Problem, Step, StopReason, derive_seed
from tests.tokenizer_families import FAMILIES

PREFIXES = [(1, 2), (3,), (4, 5, 6)]
STEPS = [(7,), (8, 9, 10)]


def propose(prefix_ids: tuple[int, ...], index: int, seed: int) -> Step:
    """Return a step of one to eight digits that ends the solution one time in three."""
    rng = random.Random(derive_seed(str(prefix_ids), index, seed))
    text = "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 8)))
    return make_step(text, stop_reason=rng.choice([StopReason.STEP, StopReason.STEP, StopReason.END]), logp=-rng.random())


def decode(ids):
    """Return the text of code points."""
    return "".join(map(chr, ids))


def score(prefix_ids):
    """Return a score that depends on every token."""
    return (derive_seed(str(prefix_ids)) % 1000) / 1000


@pytest.mark.parametrize("shuffle_seed", [None, 0, 1])
def test_scripted_policy_passes_the_contract_suite(shuffle_seed):
    """The scripted policy is itself a valid backend, in order and out of order."""
    check_policy(
        lambda: ScriptedPolicy(propose, shuffle_seed=shuffle_seed, max_prefix_tokens=50),
        prefix_ids=PREFIXES,
        decode=decode,
        over_long_prefix_ids=(1,) * 51,
    )


class _Broken(ScriptedPolicy):
    """A policy that spoils every result in a chosen way."""

    def __init__(self, spoil):
        super().__init__(propose)
        self._spoil = spoil

    def collect(self):
        return [self._spoil(result) for result in super().collect()]


def _edit(result, **changes):
    samples = tuple(tuple(dataclasses.replace(step, **changes) for step in steps) for steps in result.samples)
    return dataclasses.replace(result, samples=samples)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: dataclasses.replace(r, ticket=r.ticket + 1), "never submitted|twice|nothing"),
        (lambda r: dataclasses.replace(r, samples=r.samples[:-1]), "samples"),
        (lambda r: dataclasses.replace(r, samples=r.samples[::-1] + r.samples[:1]), "samples"),
        (lambda r: _edit(r, logps=(0.1,)), "log-prob"),
        (lambda r: _edit(r, stop_reason=StopReason.END), "only the last step"),
        (lambda r: _edit(r, stop_reason=StopReason.STEP), "must have all"),
        (lambda r: _edit(r, text="?"), "must decode"),
        (lambda r: _edit(r, token_ids=tuple(range(99)), logps=(-1.0,) * 99), "1 to 24 tokens"),
    ],
)
def test_check_policy_names_the_broken_rule(spoil, message):
    """A backend that breaks one rule fails with a sentence about it."""
    with pytest.raises(AssertionError, match=message):
        check_policy(lambda: _Broken(spoil), prefix_ids=PREFIXES, decode=decode)


@pytest.mark.parametrize(
    ("propose_badly", "message"),
    [
        (lambda prefix, index, seed: propose(prefix, index, 0), "two seeds"),
        (lambda prefix, index, seed: propose(prefix, 0, seed), "streams of their own"),
        (lambda prefix, index, seed, calls=[]: (calls.append(0), propose(prefix, index, seed + len(calls)))[1], "same samples"),
    ],
)
def test_check_policy_catches_wrong_randomness(propose_badly, message):
    """Ignoring the seed, sharing one stream and drifting with the call count are all found."""
    with pytest.raises(AssertionError, match=message):
        check_policy(lambda: ScriptedPolicy(propose_badly), prefix_ids=PREFIXES)


def test_check_policy_catches_samples_that_are_longer_than_their_cap():
    """A policy that knows nothing of a sample's cap on tokens is found."""

    class Deaf(ScriptedPolicy):
        def submit(self, requests):
            super().submit([dataclasses.replace(request, max_tokens=None) for request in requests])

    with pytest.raises(AssertionError, match="must have at most max_tokens=3 tokens: got"):
        check_policy(lambda: Deaf(propose), prefix_ids=PREFIXES)


def test_check_policy_catches_repeated_and_excluded_steps():
    """A policy that says it samples without replacement and ignores what is excluded, or repeats itself, is found."""

    class Ignorant(ScriptedPolicy):
        def submit(self, requests):
            super().submit([dataclasses.replace(r, excluded=self.changed(r.excluded)) for r in requests])

        def changed(self, excluded):
            return None if self.repeats else () if excluded else excluded

    for repeats, message in ((True, "must all be different"), (False, "excluded steps must not be sampled again")):
        Ignorant.repeats = repeats
        with pytest.raises(AssertionError, match=message):
            check_policy(
                lambda: Ignorant(lambda prefix, index, seed: make_step("abcdefghij"[(index // 2 + seed) % 10])), prefix_ids=PREFIXES
            )


@pytest.mark.parametrize("shuffle_seed", [None, 0, 1])
def test_table_scorer_passes_the_contract_suite(shuffle_seed):
    """The table scorer is itself a valid backend, in order and out of order."""
    table = TableScorer(lambda ids: None if 99 in ids else score(ids), shuffle_seed=shuffle_seed)
    check_scorer(lambda: table, prefix_ids=PREFIXES, steps=STEPS, over_long_step_ids=(99,))


def test_check_scorer_catches_scores_out_of_range():
    """A score above 1 is refused."""
    with pytest.raises(AssertionError, match=r"in \[0, 1\]"):
        check_scorer(lambda: TableScorer(lambda ids: 1.5), prefix_ids=PREFIXES, steps=STEPS)


def test_check_scorer_catches_scores_that_depend_on_the_batch():
    """A scorer whose answer depends on how often it was asked is found."""
    calls = iter(range(10_000))
    with pytest.raises(AssertionError, match="must not depend"):
        check_scorer(lambda: TableScorer(lambda ids: next(calls) / 10_000), prefix_ids=PREFIXES, steps=STEPS, score_tolerance=1e-5)


def test_scripted_failures_are_data_or_exceptions_as_asked():
    """One failing request leaves its neighbours alone; a backend that is gone raises."""
    requests = [StepRequest(ticket=i, prefix_ids=(i,), num_samples=2, seed=i) for i in range(3)]
    policy = ScriptedPolicy(propose, fail_when=lambda request: request.ticket == 1)
    policy.submit(requests)
    reasons = {result.ticket: {steps[-1].stop_reason for steps in result.samples} for result in policy.collect()}
    assert reasons[1] == {StopReason.ERROR}
    assert StopReason.ERROR not in reasons[0] | reasons[2]
    gone = ScriptedPolicy(propose, raise_after=0)
    gone.submit(requests)
    with pytest.raises(BackendError, match="raises after 0"):
        gone.collect()


def test_tables_are_read_by_prefix_and_sample():
    """Sample i takes entry i modulo the row; an unknown prefix is a failed request; unknown scores are None."""
    policy = ScriptedPolicy({(1,): [make_step("a"), make_step("b", stop_reason=StopReason.END)]})
    policy.submit(
        [StepRequest(ticket=0, prefix_ids=(1,), num_samples=3, seed=0), StepRequest(ticket=1, prefix_ids=(2,), num_samples=1, seed=0)]
    )
    known, unknown = policy.collect()
    assert [steps[0].text for steps in known.samples] == ["a", "b", "a"]
    assert unknown.samples[0][0].stop_reason == StopReason.ERROR
    scorer = TableScorer({(1, 2): 0.25})
    scorer.submit([ScoreRequest(ticket=0, prefix_ids=(1,), branches=(((2,), (3,)),))])
    assert scorer.collect()[0].scores == ((0.25, None),)
    assert scorer.num_scored == {(1, 2): 1, (1, 2, 3): 1}


def test_verifier_and_renderer():
    """Answers are compared as strings; the character renderer reads the last ``=``."""
    verdicts = ExactVerifier({"p": "4"}).grade([("p", "4"), ("p", "5"), ("p", None)])
    assert [verdict.correct for verdict in verdicts] == [True, False, False]
    renderer = CharRenderer()
    assert renderer.decode(renderer.prompt_ids(Problem(id="p", question="2+2"))) == "2+2\n"
    assert renderer.extract_answer("2+1=3\n3+1=4\n") == "4"
    assert renderer.extract_answer("nothing") is None


def _controls(tokenizer):
    return {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special and i != tokenizer.unk_token_id}


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes_the_contracts_of_tokenizers_and_renderers(name, chat):
    """Text comes back, prompts and solutions hold no control token but their own, and steps are cut as sampled ones."""
    tokenizer = FAMILIES[name]()
    check_tokenizer(tokenizer)
    begin_id = None if name == "phi3" else tokenizer.bos_token_id
    step_format = StepFormat(chat=chat, step_end="\n\n")
    check_renderer(lambda: PromptRenderer(FAMILIES[name](), step_format), controls=_controls(tokenizer), begin_id=begin_id)


class _NaivePrompts(PromptRenderer):
    def prompt_ids(self, problem):
        return tuple(self.tokenizer.encode(f"{problem.question}\n"))


class _NaiveSolutions(PromptRenderer):
    def encode_steps(self, text, *, place="solution"):
        return self.cut(self.tokenizer.encode(text, add_special_tokens=False))


class _Uncut(PromptRenderer):
    def encode_steps(self, text, *, place="solution"):
        return [tuple(i for step in super().encode_steps(text) for i in step)]


class _Open(PromptRenderer):
    def encode_solution(self, text, *, place="solution"):
        return self.encode_steps(text)


class _Forgetful(PromptRenderer):
    def prompt_ids(self, problem):
        return super().prompt_ids(Problem(id="", question=""))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_NaivePrompts, "must add no control token"),
        (_NaiveSolutions, "must hold no control token"),
        (_Uncut, "must be cut at the same tokens"),
        (_Open, "must end with one end token"),
        (_Forgetful, "must stand in the prompt"),
    ],
)
def test_check_renderer_names_the_broken_rule(broken, message):
    """Control tokens out of questions or solutions, steps cut by text, no end, and a lost question are found."""
    tokenizer = FAMILIES["qwen"]()
    with pytest.raises(AssertionError, match=message):
        check_renderer(lambda: broken(FAMILIES["qwen"](), StepFormat()), controls=_controls(tokenizer))


def test_check_renderer_counts_begin_tokens():
    """One that is doubled or missing is found."""
    tokenizer = FAMILIES["llama3"]()
    twice = StepFormat(prompt_template=f"{tokenizer.bos_token}{tokenizer.bos_token}{{question}}")
    for step_format, begin_id in ((twice, tokenizer.bos_token_id), (StepFormat(), tokenizer.eos_token_id)):
        with pytest.raises(AssertionError, match="must hold the begin token"):
            check_renderer(lambda f=step_format: PromptRenderer(tokenizer, f), controls=_controls(tokenizer), begin_id=begin_id)


def test_check_tokenizer_names_the_broken_rule():
    """Text that does not come back, and a special token whose name is several ids, are found."""
    lossy = FAMILIES["qwen"]()
    lossy._tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(AssertionError, match=r"'Is 12345 .*must come back from its ids"):
        check_tokenizer(lossy)
    torn = FAMILIES["qwen"]()
    torn._tokenizer.encode_special_tokens = True
    torn.split_special_tokens = True
    with pytest.raises(AssertionError, match=r"special token '<\|endoftext\|>' must be the one id"):
        check_tokenizer(torn)
