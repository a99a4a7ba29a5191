"""The completions backend against a server on loopback whose model is a table."""

import re
import socket
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from fractions import Fraction

import pytest

from stepladder.errors import BackendError, ConfigError
from stepladder.lm.text import TokenText
from stepladder.policy.actions import Action, ActionPolicy
from stepladder.policy.backends.completion_server import CompletionServer, _retry_after
from stepladder.policy.backends.openai import OpenAIPolicy
from stepladder.policy.backends.server_settings import ServerSettings
from stepladder.policy.prompts import StepFormat
from stepladder.testing import check_policy
from stepladder.types import Step, StopReason
from tests.backends import samples_of, step_request
from tests.misbehaviour import DEADLINE_S, KEY, MISBEHAVIOURS, Misbehaviour, misbehave
from tests.servers import FakeServer, http_reply, serving

FORMAT = StepFormat(answer_pattern=r"=(\d)")
NEWLINE, EOS = 4, 2


class _Connected:
    """A policy on a fake server; closed with the context."""

    def __init__(self, fake, **settings):
        self._fake = fake
        self._settings = {"retries": 3, "backoff_s": 0.001, "timeout_s": 10.0, **settings}

    def __enter__(self):
        self._serving = serving(self._fake)
        url = self._serving.__enter__()
        self.server = CompletionServer(ServerSettings(url=url, **self._settings))
        tokenizer = self._fake.model.tokenizer
        return OpenAIPolicy(self.server, tokenizer, FORMAT, vocab_size=len(tokenizer))

    def __exit__(self, *error):
        self.server.close()
        self._serving.__exit__(*error)


@pytest.mark.parametrize("form", ["vllm", "token_id", "text"])
def test_the_policy_keeps_the_contract(form):
    """The shipped suite passes however the server tells the ids."""
    with _Connected(FakeServer(form=form)) as policy:
        decode = TokenText(policy._tokenizer).decode
        check_policy(lambda: policy, prefix_ids=[(5, 6, 7), (9,), (8,) * 40], decode=decode, over_long_prefix_ids=(5,) * 256)


@pytest.mark.parametrize("stop", ["server", "client"])
@pytest.mark.parametrize("form", ["vllm", "token_id", "llama.cpp", "text"])
def test_steps_are_the_same_in_every_dialect(form, stop):
    """Ids, log-probabilities of the table, boundaries and reasons, whoever cuts the step."""
    fake = FakeServer(form=form)
    with _Connected(fake, stop=stop) as policy:
        [samples] = samples_of(policy, [step_request(0, (5, 6), 40, max_step_tokens=12)])
    reasons = {step.stop_reason for (step,) in samples}
    assert reasons == {StopReason.STEP, StopReason.END, StopReason.LENGTH}
    for (step,) in samples:
        pairs = zip((6, *step.token_ids), step.token_ids, strict=False)
        assert step.logps == pytest.approx([fake.model.logps[pair] for pair in pairs])
        ends_at = {StopReason.STEP: [NEWLINE], StopReason.END: [NEWLINE, EOS]}.get(step.stop_reason)
        assert (step.token_ids[-1] in ends_at) if ends_at else len(step.token_ids) == 12
        assert not {NEWLINE, EOS} & set(step.token_ids[:-1])


def test_solutions_continue_behind_their_own_tokens():
    """Each step of a sample is one request whose prompt is the prefix and the steps before, with a seed of its own."""
    fake = FakeServer()
    with _Connected(fake) as policy:
        [[steps]] = samples_of(policy, [step_request(0, (5, 6), 1, max_step_tokens=30, max_steps=50)])
        assert policy.generated_tokens == sum(len(step.token_ids) for step in steps)
    assert len(steps) > 1 and len(fake.requests) == len(steps)
    prompt = [5, 6]
    for step, request in zip(steps, fake.requests, strict=True):
        assert request["prompt"] == prompt
        prompt += step.token_ids
    assert len({request["seed"] for request in fake.requests}) == len(steps)


def test_a_solution_within_a_cap_asks_for_no_more_than_is_left():
    """Of 12 tokens, every step's request asks for what the steps before it left; the last one is cut, or the solution is."""
    fake = FakeServer()
    with _Connected(fake) as policy:
        [samples] = samples_of(policy, [step_request(0, (5, 6), 20, max_step_tokens=9, max_steps=50, max_tokens=12)])
    for steps in samples:
        assert sum(len(step.token_ids) for step in steps) <= 12
        assert steps[-1].stop_reason in (StopReason.END, StopReason.LENGTH)
    assert max(len(steps) for steps in samples) > 1
    assert all(request["max_tokens"] <= min(9, 12 - (len(request["prompt"]) - 2)) for request in fake.requests)


def test_kinds_of_steps_are_sampled_after_their_own_prompts():
    """The server sees each kind's prompt and the tokens of the path; what it samples is that kind's, however many requests that takes."""
    prompts = {"step": (5, 6), "ask": (9, 8, 6), "finish": (10, 6)}
    shares = {"step": Fraction(1, 2), "ask": Fraction(1, 4), "finish": Fraction(1, 4)}
    kinds = [
        Action(name=name, share=shares[name], prompt=lambda _, ids=ids: ids, max_steps=50 if name == "finish" else 1)
        for name, ids in prompts.items()
    ]
    request = step_request(0, (5, 6, 7), 8, max_step_tokens=20, question="q", given=((0, 2),), parent_action="")
    found = []
    for _ in range(2):
        fake = FakeServer()
        with _Connected(fake) as policy:
            [samples] = samples_of(ActionPolicy(policy, lambda _: prompts["step"], kinds), [request])
        found.append([step for (step,) in samples])
    steps = found[0]
    assert found[1] == steps and [step.action for step in steps] == ["step"] * 4 + ["ask"] * 2 + ["finish"] * 2
    for step in steps:
        assert step.logps == pytest.approx([fake.model.logps[pair] for pair in zip((7, *step.token_ids), step.token_ids, strict=False)])
        whole = step.action == "finish"
        assert (step.stop_reason != StopReason.STEP) if whole else step.token_ids.count(NEWLINE) <= 1
    asked = [tuple(each["prompt"]) for each in fake.requests]
    assert [asked.count((*prompts[name], 7)) for name in prompts] == [4, 2, 2]
    rest = sorted(ids for ids in asked if ids[-1] == NEWLINE)
    assert len(rest) == sum(step.token_ids[:-1].count(NEWLINE) for step in steps[-2:]) and all(ids[:3] == (10, 6, 7) for ids in rest)


def test_special_tokens_are_never_sampled_and_the_cache_is_counted():
    """Padding, begin and unknown tokens are biased away; cached prefix tokens are those the server reports."""
    with _Connected(FakeServer()) as policy:
        [samples] = samples_of(policy, [step_request(0, (5,) * 40, 50, max_step_tokens=30)])
        assert (policy.prefix_tokens, policy.cached_tokens) == (2000, 1600)
    assert not {0, 1, 3} & {token for (step,) in samples for token in step.token_ids}


def test_a_server_that_hides_where_it_stopped_is_cut_here():
    """With stop=client, an end-of-sequence token that is not shown ends the solution; with stop=server it cannot be told from a step."""
    request = step_request(0, (5, 6), 40, max_step_tokens=12)
    with _Connected(FakeServer(form="llama.cpp", show_end=False), stop="client") as policy:
        [cut] = samples_of(policy, [request])
    with _Connected(FakeServer(form="llama.cpp", show_end=False), stop="server") as policy:
        [hidden] = samples_of(policy, [request])
    with _Connected(FakeServer()) as policy:
        [shown] = samples_of(policy, [request])
    for (step,), (other,), (full,) in zip(cut, hidden, shown, strict=True):
        if full.token_ids == (EOS,):
            assert step.stop_reason == StopReason.ERROR and "stopped at" in step.message
        elif full.token_ids[-1] == EOS:
            assert (step.token_ids, step.stop_reason) == (full.token_ids[:-1], StopReason.END)
        else:
            assert step == full
        assert other.stop_reason == (StopReason.LENGTH if full.stop_reason == StopReason.LENGTH else StopReason.ERROR)


def test_passing_failures_are_tried_again():
    """Two failures before each answer, by status or by a hung-up line, change nothing but the number of requests."""
    requests = [step_request(i, (5, 6 + i), 3, seed=i, max_step_tokens=8) for i in range(4)]
    with _Connected(FakeServer()) as policy:
        expected = samples_of(policy, requests)
    fake, seen = FakeServer(), {}

    def fail_twice(number, request):
        with fake.lock:
            tries = seen[request["seed"]] = seen.get(request["seed"], 0) + 1
        return {1: 503, 2: 0}.get(tries)

    fake.before = fail_twice
    with _Connected(fake) as policy:
        assert samples_of(policy, requests) == expected
    assert len(fake.requests) == 3 * 12


def test_a_request_that_fails_for_good_is_data():
    """A refused request, one that always fails, one too slow and one with a nonsense answer are ERROR steps; the others go on."""
    fake = FakeServer()
    slow = threading.Event()

    def trouble(number, request):
        if request["prompt"][0] == 12:
            slow.wait(5)
        return {10: 400, 11: 500}.get(request["prompt"][0])

    fake.before = trouble
    with _Connected(fake, timeout_s=0.3, retries=1) as policy:
        requests = [step_request(i, (10 + i, 6), 2, max_step_tokens=8) for i in range(4)]
        bad, broken, late, good = samples_of(policy, requests)
        slow.set()
    for samples, message in ((bad, "refused the request: status 400"), (broken, "2 tries: status 500"), (late, "within 0.3 s")):
        assert [step.stop_reason for (step,) in samples] == [StopReason.ERROR] * 2
        assert all(step.token_ids == () and message in step.message for (step,) in samples)
    assert all(step.stop_reason != StopReason.ERROR for (step,) in good)


def test_answers_that_cannot_be_read_are_data(monkeypatch):
    """No log-probabilities, ids beyond the vocabulary, and text that the tokenizer does not give back each say so."""
    answers = {
        10: {"choices": [{"text": "a", "finish_reason": "length"}]},
        11: {"choices": [{"token_ids": [999], "finish_reason": "length", "logprobs": {"tokens": ["a"], "token_logprobs": [-1.0]}}]},
        12: {"choices": [{"text": "a~", "finish_reason": "length", "logprobs": {"tokens": ["a", "~"], "token_logprobs": [-1.0, -1.0]}}]},
        13: {"choices": [{"text": "", "token_ids": [], "finish_reason": "length", "logprobs": {"tokens": [], "token_logprobs": []}}]},
    }
    fake = FakeServer()
    monkeypatch.setattr(fake, "complete", lambda request: (200, answers[request["prompt"][0]]))
    with _Connected(fake) as policy:
        results = samples_of(policy, [step_request(i, (10 + i,)) for i in range(4)])
    messages = [step.message for ((step,),) in results]
    for message, part in zip(messages, ["cannot be read", "below", "must come back", "stopped at"], strict=True):
        assert message is not None and part in message


def test_no_more_requests_than_allowed_are_in_flight():
    """The limit on concurrency holds, and is used."""
    fake = FakeServer()
    fake.before = lambda number, request: time.sleep(0.01)
    with _Connected(fake, concurrency=5) as policy:
        samples_of(policy, [step_request(i, (5,), 4, seed=i, max_step_tokens=2) for i in range(10)])
    assert fake.most_in_flight == 5


def test_a_server_that_dies_and_returns_loses_nothing():
    """Requests in flight when the server is killed are asked again at its successor, with the same seeds and thus the same answers."""
    requests = [step_request(i, (5, 6), 4, seed=i, max_step_tokens=10, max_steps=6) for i in range(6)]
    with _Connected(FakeServer()) as policy:
        expected = samples_of(policy, requests)
    fake, died = FakeServer(), threading.Event()
    fake.before = lambda number, request: died.set() if number == 20 else None
    first = serving(fake)
    url = first.__enter__()
    server = CompletionServer(ServerSettings(url=url, retries=8, backoff_s=0.05))
    try:
        tokenizer = fake.model.tokenizer
        policy = OpenAIPolicy(server, tokenizer, FORMAT, vocab_size=len(tokenizer))
        policy.submit(requests)
        assert died.wait(10)
        first.__exit__(None, None, None)
        with serving(FakeServer(), port=int(url.split(":")[2].split("/")[0])):
            results = {}
            while batch := policy.collect():
                results.update({result.ticket: result.samples for result in batch})
    finally:
        server.close()
    assert [results[request.ticket] for request in requests] == expected


def test_a_server_that_stays_away_is_an_error_of_the_backend():
    """Once the tries are spent, collect raises and says what to do; nothing hangs."""
    fake, started = FakeServer(), threading.Event()
    fake.before = lambda number, request: started.set() or time.sleep(0.05)
    context = serving(fake)
    server = CompletionServer(ServerSettings(url=context.__enter__(), retries=2, backoff_s=0.001))
    try:
        policy = OpenAIPolicy(server, fake.model.tokenizer, FORMAT, vocab_size=len(fake.model.tokenizer))
        policy.submit([step_request(i, (5,), 4, seed=i, max_steps=200) for i in range(20)])
        assert started.wait(10)
        context.__exit__(None, None, None)
        with pytest.raises(BackendError, match="the last of 3 tries -- start it"):
            while policy.collect():
                pass
    finally:
        server.close()


def test_what_every_request_would_get_is_an_error_at_once():
    """No server, a wrong model and a wrong address are named before any work."""
    with serving(FakeServer()) as url:
        with pytest.raises(BackendError, match=r"must serve the model 'other': it serves \['table'\]"):
            CompletionServer(ServerSettings(url=url, model="other"))
        fake = FakeServer()
        fake.before = lambda number, request: 404
        with _Connected(fake) as policy, pytest.raises(BackendError, match="check address, key and model"):
            samples_of(policy, [step_request()])
    with pytest.raises(BackendError, match="the server must be there"):
        CompletionServer(ServerSettings(url=url, retries=0))


def test_delays_double_and_differ_by_seed():
    """The delay before try k is backoff * 2^k times a jitter in [0.5, 1.5) that the seed fixes, and at most 30 s."""
    with serving(FakeServer()) as url:
        server = CompletionServer(ServerSettings(url=url, backoff_s=0.5))
        delays = [[server._delay(attempt, seed) for seed in range(200)] for attempt in (0, 3, 20)]
        again = [server._delay(3, seed) for seed in range(200)]
        server.close()
    assert 0.25 <= min(delays[0]) < 0.26 and 0.74 < max(delays[0]) < 0.75
    assert min(delays[1]) >= 2.0 and max(delays[1]) < 6.0 and set(delays[2]) == {30.0}
    assert again == delays[1]


def test_the_policy_refuses_what_the_others_refuse():
    """Bad requests are data, and a ticket is open once."""
    with _Connected(FakeServer(context=32)) as policy:
        bad = [step_request(0, ()), step_request(1, (10**6,)), step_request(2, (5,) * 32), step_request(3, max_step_tokens=0)]
        for ((step,),) in samples_of(policy, bad):
            assert step.stop_reason == StopReason.ERROR and step.message
        policy.submit([step_request(9)])
        with pytest.raises(BackendError, match="unique"):
            policy.submit([step_request(9)])
        assert len(policy.collect()) == 1
        cut = samples_of(policy, [replace(step_request(0, (5,) * 31), seed=seed) for seed in range(1)])[0][0][0]
        assert len(cut.token_ids) == 1


@pytest.mark.parametrize("behaviour", MISBEHAVIOURS, ids=lambda behaviour: f"{behaviour.kind}: {behaviour.name}")
def test_every_misbehaviour_ends_in_an_answer_a_failed_sample_or_one_sentence(behaviour: Misbehaviour):
    """Nothing else comes out, nothing waits longer than the tries' deadlines, and the key is in no message."""
    fake = FakeServer()
    with serving(fake) as url:
        misbehave(behaviour, fake)
        begin = time.monotonic()
        settings = ServerSettings(url=url, api_key=KEY, retries=1, backoff_s=0.001, timeout_s=DEADLINE_S)
        outcome = _outcome(settings, fake.model.tokenizer)
    assert time.monotonic() - begin < 5
    if behaviour.ends == "command":
        assert isinstance(outcome, BackendError)
        message = str(outcome)
    else:
        assert isinstance(outcome, Step), outcome
        assert (outcome.stop_reason == StopReason.ERROR) == (behaviour.ends == "sample"), outcome
        message = outcome.message or ""
    assert re.search(behaviour.says, message), message
    assert KEY not in message and "\n" not in message and len(message) < 600


def _outcome(settings, tokenizer) -> Step | BackendError:
    """Ask for one step, and return it or the end of the search."""
    server = None
    try:
        server = CompletionServer(settings)
        policy = OpenAIPolicy(server, tokenizer, FORMAT, vocab_size=len(tokenizer))
        [[(step,)]] = samples_of(policy, [step_request(0, (5, 6), 1, max_step_tokens=8)])
        return step
    except BackendError as error:
        return error
    finally:
        if server is not None:
            server.close()


@pytest.mark.parametrize("header", ["1", "date"])
def test_a_server_is_given_the_time_that_it_asks_for(header: str):
    """After 429 with Retry-After, as seconds or as a date, the next try comes no sooner, and then counts."""
    fake, arrivals = FakeServer(), []

    def busy(path, request):
        arrivals.append(time.monotonic())
        value = header if header == "1" else format_datetime(datetime.now(UTC) + timedelta(seconds=2.2), usegmt=True)
        return [http_reply("", status="429 Busy", headers=[f"Retry-After: {value}"])] if len(arrivals) == 2 else None

    fake.raw = busy
    with _Connected(fake, retries=1) as policy:
        [[(step,)]] = samples_of(policy, [step_request(0, (5, 6), 1, max_step_tokens=8)])
    assert step.stop_reason != StopReason.ERROR
    assert 0.95 < arrivals[2] - arrivals[1] < 2.9


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 0), ("2", 2), (" 7 ", 7), ("3600", 60), ("9" * 400, 60), ("-1", 0), ("1.5", 0), ("\u0663", 0), ("", 0), ("soon", 0)],
)
def test_the_time_a_server_asks_for_is_read_and_capped(header: str | None, seconds: float):
    """Whole seconds up to a minute; what is no number and no date is nothing."""
    assert _retry_after(header) == seconds


def test_dates_ahead_are_capped_and_dates_behind_are_nothing():
    """A date counts from now."""
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert _retry_after("Fri, 31 Dec 9999 23:59:59 GMT") == 60
    assert 1 < _retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=4), usegmt=True)) <= 4


def test_what_keeps_a_connection_from_standing_is_named_with_its_remedy(monkeypatch):
    """No such name, nobody at the port, no TLS, no address, and a key that no header can hold."""
    settings = {"retries": 1, "backoff_s": 0.001}
    with serving(FakeServer()) as url:
        with pytest.raises(BackendError, match=r"must speak TLS.*use http://"):
            CompletionServer(ServerSettings(url=url.replace("http:", "https:"), **settings))
        with pytest.raises(ConfigError, match="must be printable ASCII") as raised:
            CompletionServer(ServerSettings(url=url, api_key="secret\nkey", **settings))
        assert "secret" not in str(raised.value)
    with pytest.raises(BackendError, match="connection refused in the last of 2 tries -- start it"):
        CompletionServer(ServerSettings(url=url, **settings))
    for wrong in ("127.0.0.1:8000/v1", "ftp://127.0.0.1/v1", "http:///v1", "", "http://127.0.0.1:port/v1", "http://[::1/v1"):
        with pytest.raises(ConfigError, match=r"policy\.openai\.url: must"):
            CompletionServer(ServerSettings(url=wrong, **settings))

    def unknown(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(BackendError, match=r"its name is not known.*correct the name"):
        CompletionServer(ServerSettings(url="http://nobody.invalid/v1", **settings))


def test_passwords_in_an_address_are_sent_and_never_shown():
    """Neither the password, as written or as sent, nor a query reaches a message."""
    fake, seen = FakeServer(), []

    def echo(path, request):
        seen.append(path)
        return [http_reply("user:pa ss dXNlcjpwYSBzcw== pa%20ss token=q1w2", status="400 Bad")]

    fake.raw = echo
    with serving(fake) as url, pytest.raises(BackendError) as raised:
        CompletionServer(ServerSettings(url=url.replace("//", "//user:pa%20ss@") + "?token=q1w2", retries=0))
    for secret in ("pa ss", "pa%20ss", "dXNlcjpwYSBzcw", "q1w2"):
        assert secret not in str(raised.value)
    assert seen


def test_a_deadline_is_the_whole_of_a_try():
    """A byte every tenth of a second keeps nobody longer than timeout_s."""
    fake = FakeServer()

    def drip(path, request):
        if request is not None:
            yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
            for _ in range(40):
                yield b" "
                time.sleep(0.1)

    fake.raw = lambda path, request: drip(path, request) if request else None
    with _Connected(fake, timeout_s=1.0, retries=0) as policy:
        begin = time.monotonic()
        [[(step,)]] = samples_of(policy, [step_request(0, (5, 6), 1, max_step_tokens=8)])
        assert 0.9 < time.monotonic() - begin < 1.5
    assert step.message == "the server did not answer in 1 try: no whole answer within 1 s"
