"""The engine beneath dies or hangs: clients get an error in OpenAI's form, health turns red, and nobody waits for ever."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from stepladder.commands.solve_settings import choose_models
from stepladder.errors import BackendError
from stepladder.lm.loaded_models import LoadedModels
from stepladder.loops.assembly.search_session import SearchSession
from stepladder.policy.prompts import StepFormat
from stepladder.serve import exchange, search_service
from stepladder.testing import ScriptedPolicy
from stepladder.types import SearchResult, StopReason
from tests.models import save_tiny_policy
from tests.searches import propose
from tests.served import GatedPolicy, ScriptedSession, serving
from tests.servers import FakeServer
from tests.servers import serving as serving_policy
from tests.unit.serve.test_load import body, post, until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a policy whose tokenizer is that of the remote server's model."""
    folder = save_tiny_policy(tmp_path_factory.mktemp("policy"), max_positions=256)
    StepFormat(answer_pattern=r"(\d)").save(folder)
    return folder


def _session(model: Path, url: str) -> SearchSession:
    """Return a session whose policy is a remote server."""
    remote = (f"policy.openai.url={url}", "policy.openai.retries=0", "policy.openai.timeout_s=2", "search.max_step_tokens=8")
    config, policy, _ = choose_models(run=None, policy=str(model), prm=("none",), overrides=["policy.backend=openai", *remote])
    return SearchSession(config, LoadedModels(), policy=policy, prm=())


def _health(url: str) -> httpx.Response:
    return httpx.get(f"{url}/health")


def test_a_remote_server_that_dies_and_comes_back(model: Path) -> None:
    """In the middle of a search and before one: status 502 soon, with the reason; then the server is back, and so is this one."""
    fake = FakeServer()
    with serving_policy(fake) as address:
        session = _session(model, address)
        with serving(lambda: session) as served:
            assert post(served).status_code == 200
            assert _health(served.url).status_code == 200
            fake.before = lambda number, request: 0
            begin = time.monotonic()
            reply = post(served)
            assert time.monotonic() - begin < 60
            error = reply.json()["error"]
            assert (reply.status_code, error["code"]) == (502, "policy_failed") and "samples failed" in error["message"]
            assert _health(served.url).status_code == 503 and "the policy gives no sample" in _health(served.url).json()["reason"]
            with (
                openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
                pytest.raises(openai.APIError, match="the policy gave no sample"),
            ):
                list(client.chat.completions.create(**body(), stream=True))
            fake.before = lambda number, request: None
            assert post(served).status_code == 200
            assert _health(served.url).status_code == 200


def test_an_old_complaint_is_forgotten(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute after the last failure the server may be tried again, or nobody would ever find out that all is well."""
    fake = FakeServer()
    fake.before = lambda number, request: 0
    with serving_policy(fake) as url, serving(lambda: _session(model, url)) as served:
        assert post(served).status_code == 502
        assert _health(served.url).status_code == 503
        monkeypatch.setattr(search_service, "_SICK_S", 0.0)
        assert _health(served.url).status_code == 200


class StuckPolicy(ScriptedPolicy):
    """A policy whose engine has died without a word: it never returns, and hears nothing."""

    def __init__(self) -> None:
        super().__init__(propose)
        self.freed = threading.Event()

    def collect(self):
        self.freed.wait(60)
        return super().collect()


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[StuckPolicy]:
    """A policy that is stuck, and a server that has little patience with it."""
    monkeypatch.setattr(exchange, "PATIENCE_S", 0.3)
    monkeypatch.setattr(search_service, "_STUCK_S", 0.2)
    policy = StuckPolicy()
    yield policy
    policy.freed.set()


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_hangs_hangs_no_client(stuck: StuckPolicy, stream: bool) -> None:
    """After the deadline and some patience the client has its error; health is red, and green when the engine goes on."""
    with serving(lambda: ScriptedSession(stuck), grace_s=0.1) as served:
        try:
            reply = post(served, stream=stream, stepladder={"seconds": 0.2})
            if stream:
                assert "engine_stuck" in reply.text
            else:
                assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_stuck")
            until(lambda: _health(served.url).status_code == 503)
            assert "has not answered" in _health(served.url).json()["reason"]
        finally:
            stuck.freed.set()
        until(lambda: _health(served.url).status_code == 200)


class BrokenSession(ScriptedSession):
    """A session whose engine can neither end a search nor close, as after the death of its process."""

    def end(self, ticket: int, reason: StopReason) -> SearchResult:
        raise BackendError("the engine is dead")

    def close(self) -> None:
        raise RuntimeError("the engine is dead")


def test_an_engine_that_cannot_even_end_a_search_does_not_end_the_server() -> None:
    """The deadline ends the search, which fails: the client has its error at once, and a new engine answers the next one."""
    sessions = iter([BrokenSession(GatedPolicy()), ScriptedSession()])
    with serving(lambda: next(sessions)) as served:
        reply = post(served, stepladder={"seconds": 0.1})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_failed")
        until(lambda: _health(served.url).status_code == 200)
        assert post(served).status_code == 200
