"""Many clients, clients that go away, deadlines, a full queue, a failing engine, and a stop."""

import asyncio
import threading
import time

import httpx
import openai
import pytest

from stepladder.errors import BackendError
from stepladder.serve.exchange import ClientGone, Exchange
from stepladder.serve.search_service import Answer, Pending
from stepladder.testing import ScriptedPolicy
from tests.searches import propose
from tests.served import GatedPolicy, ScriptedSession, serving


def body(question="q1", *, seed=3, **fields):
    """Return the body of a chat request."""
    return {"model": "demo", "messages": [{"role": "user", "content": question}], "seed": seed, **fields}


def post(served, **fields):
    """Ask, and return the reply."""
    return httpx.post(f"{served.url}/v1/chat/completions", json=body(**fields), timeout=300)


def until(condition, *, seconds=300.0):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.005)


class Asking(threading.Thread):
    """A request on a thread of its own."""

    def __init__(self, served, **fields):
        super().__init__()
        self.served, self.fields, self.reply = served, fields, None
        self.start()

    def run(self):
        """Ask."""
        self.reply = post(self.served, **self.fields)

    def result(self):
        """Return the reply."""
        self.join()
        return self.reply


def test_two_hundred_clients_at_once():
    """200 concurrent requests of several methods all get what each gets alone, streams included."""
    methods = ("demo@mcts-4", "demo@beam-3", "demo@best-of-n-4", "demo@uct-5")

    async def all_at_once(url):
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
            asked = [
                client.post("/v1/chat/completions", json={**body(f"q{i % 3}", seed=i % 2, stream=i % 10 == 9), "model": methods[i % 4]})
                for i in range(200)
            ]
            return await asyncio.gather(*asked)

    with serving() as served:
        replies = asyncio.run(all_at_once(served.url))
        assert [reply.status_code for reply in replies] == [200] * 200
        alone = {}
        for i, reply in enumerate(replies):
            if i % 10 == 9:
                assert reply.text.endswith("data: [DONE]\n\n")
                continue
            key = i % 3, i % 2, i % 4
            if key not in alone:
                alone[key] = post(served, question=f"q{i % 3}", seed=i % 2, model=methods[i % 4]).json()["choices"][0]
            choice = reply.json()["choices"][0]
            for each in (choice["stepladder"], alone[key]["stepladder"]):
                each.pop("seconds", None)
            assert choice == alone[key]
        assert served.service.num_open == 0


def test_a_deadline_returns_the_best_answer_so_far():
    """At the deadline the reply has what was found, marked as incomplete; the samples in flight are cancelled."""
    policy = GatedPolicy(open_for=1000)
    with serving(lambda: ScriptedSession(policy)) as served:
        # The first search may have to compile the engine's loops.
        assert post(served).json()["choices"][0]["stepladder"]["complete"]
        policy.gate = threading.Semaphore(8)
        reply = post(served, stepladder={"seconds": 2})
        facts = reply.json()["choices"][0]["stepladder"]
        assert reply.status_code == 200
        assert (facts["complete"], facts["stop_reason"], facts["simulations"]) == (False, "seconds", 9)
        assert facts["generated_tokens"] == reply.json()["usage"]["completion_tokens"] > 0
        assert policy.in_flight == set()
        until(lambda: served.service.num_open == 0)


def test_a_deadline_in_the_queue_is_an_error():
    """A search that never began has nothing to return."""
    policy = GatedPolicy()
    with serving(lambda: ScriptedSession(policy, max_trees=1)) as served:
        first = Asking(served)
        until(lambda: policy.in_flight)
        reply = post(served, stepladder={"seconds": 0.1})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "deadline_exceeded")
        policy.release(1000)
        assert first.result().status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_budget_at_once(stream):
    """The searches of a closed connection end, those that wait included, and their samples are cancelled."""
    policy = GatedPolicy()
    with serving(lambda: ScriptedSession(policy, max_trees=2)) as served:
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{served.url}/v1/chat/completions", json=body(n=4, stream=stream), timeout=httpx.Timeout(10, read=0.5))
        until(lambda: served.service.num_open == 0)
        assert policy.in_flight == set()
        policy.release(1000)
        assert post(served).status_code == 200


def test_a_client_that_goes_away_leaves_no_task_behind():
    """After the request nothing waits on the event loop any more."""

    class Gone:
        async def receive(self):
            await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

    class Idle:
        def ask(self, asks, deliver):
            return []

    async def leave():
        exchange = Exchange(Idle(), [], seconds=60)
        exchange._pendings = [None]
        with pytest.raises(ClientGone):
            await exchange.answers(Gone())
        exchange._pendings = []
        exchange.close()
        # A cancelled task ends with the next turn of the loop.
        await asyncio.sleep(0)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(leave()) == set()


def test_a_client_that_reads_late_gets_all_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that came in time are no sign of an engine that hangs, however long after the deadline the client takes them."""
    monkeypatch.setattr("stepladder.serve.exchange.PATIENCE_S", 0.05)

    class Here:
        async def receive(self):
            await asyncio.sleep(60)

    class Quick:
        def ask(self, asks, deliver):
            self.deliver = deliver
            return [Pending(ask=ask, deliver=lambda event: None, is_over=True) for ask in asks]

    async def read_late():
        service, asks = Quick(), [None, None]
        exchange = Exchange(service, asks, seconds=0.05)
        service.deliver(0, Answer(None, (), (), 0.1))
        numbers = []
        async for number, _ in exchange.events(Here()):
            numbers.append(number)
            service.deliver(1, Answer(None, (), (), 0.1))
            await asyncio.sleep(0.3)
        exchange.close()
        return numbers

    assert asyncio.run(read_late()) == [0, 1]


def test_a_full_queue_says_when_to_come_back():
    """Beyond its bound the queue refuses with 429 and ``Retry-After``, and those that wait are served."""
    policy = GatedPolicy()
    with serving(lambda: ScriptedSession(policy, max_trees=1), max_waiting=2) as served:
        first = Asking(served)
        until(lambda: policy.in_flight)
        waiting = [Asking(served, seed=seed) for seed in (4, 5)]
        until(lambda: served.service.num_open == 3)
        reply = post(served)
        assert reply.status_code == 429
        assert reply.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        with (
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
            pytest.raises(openai.RateLimitError, match="the queue is full: 2 searches wait"),
        ):
            client.chat.completions.create(**body())
        many = post(served, n=3)
        assert (many.status_code, many.json()["error"]["code"]) == (400, "too_many_searches")
        policy.release(1000)
        assert [each.result().status_code for each in (first, *waiting)] == [200] * 3


def test_a_failing_engine_fails_its_requests_and_comes_back():
    """When the models fail as a whole, open requests get 503; health says so; then they are loaded again and work."""
    sessions, may_open = [], threading.Event()
    may_open.set()

    def open_session():
        if sessions and not may_open.is_set():
            raise BackendError("the engine does not start")
        broken = not sessions
        sessions.append(ScriptedSession(ScriptedPolicy(propose, raise_after=20 if broken else None)))
        return sessions[-1]

    with serving(open_session) as served:
        may_open.clear()
        reply = post(served, n=4, model="demo@mcts-64")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_failed")
        assert "raises after 20 results" in reply.json()["error"]["message"]
        assert int(reply.headers["retry-after"]) >= 1
        health = httpx.get(f"{served.url}/health")
        assert health.status_code == 503
        assert "the search engine failed" in health.json()["reason"]
        assert sessions[0].has_closed
        refused = post(served)
        assert refused.status_code == 503
        may_open.set()
        until(lambda: httpx.get(f"{served.url}/health").status_code == 200)
        assert post(served).status_code == 200
        assert len(sessions) == 2


def test_a_failure_is_explained_only_to_those_who_have_a_key():
    """The health check needs no key, but a message may name directories and servers of this machine."""
    sessions = []

    def open_session():
        if sessions:
            raise BackendError("/home/me/model: must be there")
        sessions.append(ScriptedSession(ScriptedPolicy(propose, raise_after=0)))
        return sessions[0]

    with serving(open_session, keys=("one-key",)) as served:
        key = {"Authorization": "Bearer one-key"}
        assert httpx.post(f"{served.url}/v1/chat/completions", json=body(), headers=key, timeout=300).status_code == 503
        until(lambda: "/home/me/model" in str(served.service.complaint))
        assert set(httpx.get(f"{served.url}/health").json()) == {"status", "open_searches"}
        assert "reason" not in httpx.get(f"{served.url}/health", headers={"Authorization": "Bearer one-ke"}).json()
        reply = httpx.get(f"{served.url}/health", headers=key)
        assert "/home/me/model" in reply.json()["reason"]


def test_a_stream_of_a_failing_engine_ends_with_the_error():
    """A client that reads a stream gets the error as an event, and its library raises it."""
    sessions = iter([ScriptedSession(ScriptedPolicy(propose, raise_after=5)), ScriptedSession()])
    with (
        serving(lambda: next(sessions)) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIError, match="the search engine failed"),
    ):
        list(client.chat.completions.create(**body(), stream=True))


def test_a_bug_in_a_search_does_not_end_the_server():
    """Any exception on the search thread fails the open searches only."""

    class Odd(ScriptedPolicy):
        def collect(self):
            raise ZeroDivisionError("odd")

    sessions = iter([ScriptedSession(Odd(propose)), ScriptedSession()])
    with serving(lambda: next(sessions)) as served:
        reply = post(served)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_failed")
        until(lambda: httpx.get(f"{served.url}/health").status_code == 200)
        assert post(served).status_code == 200


def test_a_stop_lets_open_searches_finish():
    """After a stop no search begins, and those that run are answered in full."""
    policy = GatedPolicy()
    with serving(lambda: ScriptedSession(policy), grace_s=30.0) as served:
        asking = Asking(served)
        until(lambda: policy.in_flight)
        served.server.should_exit = True
        until(lambda: served.service.problem == "the server is stopping")
        policy.release(1000)
        reply = asking.result()
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["stepladder"]["complete"]


def test_a_stop_ends_searches_after_its_grace():
    """When the grace is over, searches end with what they found."""
    policy = GatedPolicy(open_for=5)
    with serving(lambda: ScriptedSession(policy), grace_s=0.3) as served:
        asking = Asking(served)
        until(lambda: len(policy.requests) == 6)
        served.server.should_exit = True
        reply = asking.result()
    assert reply.status_code == 200
    assert not reply.json()["choices"][0]["stepladder"]["complete"]


def test_a_slow_reader_delays_nobody():
    """A client that does not read its stream holds back neither the search nor other clients."""
    with serving() as served, httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body(n=64, stream=True), timeout=300) as slow:
        assert post(served).status_code == 200
        until(lambda: served.service.num_open == 0)
        assert sum(1 for line in slow.iter_lines() if '"votes"' in line) == 64
