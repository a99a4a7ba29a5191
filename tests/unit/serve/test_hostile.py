"""Malformed and hostile requests: every one is refused in OpenAI's form, and the server goes on."""

import asyncio
import json
import random
import socket
from contextlib import suppress

import httpx
import pytest
from pydantic import ValidationError

from stepladder.serve import server
from stepladder.serve.guards import Guard, SlowReader
from stepladder.serve.metrics import Metrics
from stepladder.serve.requests import ChatRequest, CompletionRequest
from tests.served import serving

USER = {"role": "user", "content": "q1"}
GOOD = {"model": "demo", "messages": [USER]}


@pytest.fixture(scope="module")
def served():
    """Serve scripted models with tight limits."""
    with serving(max_body_bytes=20_000, read_s=0.3) as served:
        yield served


@pytest.fixture(scope="module")
def web(served):
    """Connect a client."""
    with httpx.Client(base_url=served.url, timeout=300) as web:
        yield web


def refused(reply, status, code):
    """Check that a reply is an error of the protocol."""
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, code), reply.text
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "Traceback" not in error["message"]
    return error


CHAT = [
    ({}, "invalid_request"),
    ({"model": "demo"}, "invalid_request"),
    ({"messages": [USER]}, "invalid_request"),
    ({**GOOD, "messages": []}, "invalid_request"),
    ({**GOOD, "messages": "hello"}, "invalid_request"),
    ({**GOOD, "messages": [{"role": "god", "content": "x"}]}, "invalid_request"),
    ({**GOOD, "messages": [{"role": "user"}]}, "invalid_request"),
    (
        {**GOOD, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
        "invalid_request",
    ),
    ({**GOOD, "messages": [USER, {"role": "assistant", "content": "x"}]}, "invalid_messages"),
    ({**GOOD, "messages": [{"role": "user", "content": " "}]}, "invalid_messages"),
    ({**GOOD, "messages": [USER, {"role": "user", "content": []}]}, "invalid_messages"),
    ({**GOOD, "messages": [{"role": "user", "content": "\ud800"}]}, "invalid_request"),
    ({**GOOD, "n": 0}, "invalid_request"),
    ({**GOOD, "n": 65}, "limit_exceeded"),
    ({**GOOD, "n": 10**30}, "limit_exceeded"),
    ({**GOOD, "n": "many"}, "invalid_request"),
    ({**GOOD, "n": True}, "invalid_request"),
    ({**GOOD, "stepladder": {"simulations": True}}, "invalid_request"),
    ({**GOOD, "stop": ["x"] * 65}, "invalid_request"),
    ({**GOOD, "stop": [""]}, "invalid_request"),
    ({**GOOD, "seed": 2**80}, "invalid_request"),
    ({**GOOD, "temperature": -1}, "invalid_request"),
    ({**GOOD, "max_tokens": -1}, "invalid_request"),
    ({**GOOD, "tools": [{"type": "function"}]}, "unsupported_parameter"),
    ({**GOOD, "response_format": {"type": "json_object"}}, "unsupported_parameter"),
    ({**GOOD, "model": "demo@mcts-0"}, "model_not_found"),
    ({**GOOD, "model": "gpt-4"}, "model_not_found"),
    ({**GOOD, "model": "demo@mcts-99999"}, "limit_exceeded"),
    ({**GOOD, "model": "demo@mcts-9999999999t"}, "limit_exceeded"),
    ({**GOOD, "stepladder": {"simulation": 4}}, "invalid_request"),
    ({**GOOD, "stepladder": {"method": "mtcs"}}, "invalid_search"),
    ({**GOOD, "stepladder": {"seconds": 0}}, "invalid_request"),
    ({**GOOD, "stepladder": {"options": {"num_children": 10**9}}}, "limit_exceeded"),
    ({**GOOD, "stepladder": {"options": {"num_children": -1}}}, "invalid_search"),
    ({**GOOD, "stepladder": {"options": {"wave": 600, "num_children": 600}}}, "limit_exceeded"),
    ({**GOOD, "stepladder": {"options": {"__class__": 1}}}, "invalid_search"),
    ({**GOOD, "stepladder": {"options": {"selection": "os.system"}}}, "invalid_search"),
    ({**GOOD, "messages": [{"role": "user", "content": "q" * 2001}]}, "context_length_exceeded"),
]


def test_an_unknown_field_of_the_search_gets_the_right_name(web):
    """It is refused, as it would otherwise change nothing without a word."""
    for field, remedy in (
        ("simulation", "did you mean 'simulations'"),
        ("zz", "known here: method, simulations, tokens, seconds, options, tree"),
    ):
        error = refused(web.post("/v1/chat/completions", json={**GOOD, "stepladder": {field: 4}}), 400, "invalid_request")
        assert error["message"].startswith(f"stepladder.{field}: unknown field -- {remedy}"), error
        assert error["param"] == "stepladder"


@pytest.mark.parametrize(("body", "code"), CHAT, ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else value)
def test_malformed_chats_are_refused(web, body, code):
    """A field of another form, or beyond its bounds, is named."""
    reply = web.post("/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"})
    refused(reply, 404 if code == "model_not_found" else 400, code)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": []}, "invalid_request"),
        ({"prompt": [[]]}, "invalid_request"),
        ({"prompt": [1, "x"]}, "invalid_request"),
        ({"prompt": [-1]}, "invalid_request"),
        ({"prompt": [2**30]}, "invalid_prompt"),
        ({"prompt": ["x"] * 257}, "invalid_request"),
        ({"prompt": ["x"] * 65}, "limit_exceeded"),
        ({"prompt": "x", "echo": True}, "unsupported_parameter"),
        ({"prompt": "x", "best_of": 3}, "unsupported_parameter"),
        ({"prompt": "x", "logprobs": 9}, "invalid_request"),
        ({"prompt": "x", "suffix": "y"}, "unsupported_parameter"),
        ({"prompt": "x", "n": 2**63}, "limit_exceeded"),
    ],
)
def test_malformed_completions_are_refused(web, fields, code):
    """The same for prompts."""
    refused(web.post("/v1/completions", json={"model": "demo", **fields}), 400, code)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"prompt": []}, "prompt", "prompt: List should have at least 1 item"),
        ({"prompt": 3}, "prompt", "prompt: Input should be a valid string"),
        ({"prompt": ["a", ""], "stop": [""]}, "stop", "stop.0: Value should have at least 1 item"),
        ({"stepladder": {"simulations": 0}, "prompt": "x"}, "stepladder", "stepladder.simulations: Input should be greater"),
        ({}, "prompt", "prompt: Field required"),
    ],
)
def test_what_is_wrong_is_named_by_its_place_in_the_request(web, body, param, said):
    """The place is that in the body, without the forms that a field may have, and a bound goes before another form."""
    error = web.post("/v1/completions", json={"model": "demo", **body}).json()["error"]
    assert (error["param"], error["message"][: len(said)]) == (param, said)


def test_broken_json_is_said_to_be_no_json(web):
    """It has no field that could be wrong."""
    reply = web.post("/v1/chat/completions", content=b"{broken", headers={"Content-Type": "application/json"})
    assert reply.json()["error"]["message"] == "body: JSON decode error" and reply.json()["error"]["param"] is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"[" * 5000,
        b'{"a":' * 3000,
        b"1" * 6000,
        b'{"model": NaN}',
        b'{"model":"demo","messages":1e999}',
    ],
)
def test_bodies_that_are_no_object_are_refused(web, content):
    """Whatever the bytes are, the reply is an error of the protocol."""
    refused(web.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}), 400, "invalid_request")


def faults(given):
    """Return the number of errors that a malformed body of chat or completions gets."""
    with pytest.raises(ValidationError) as caught:
        (ChatRequest if "messages" in given else CompletionRequest).model_validate({"model": "demo", **given})
    return caught.value.error_count()


@pytest.mark.parametrize(
    "many",
    [
        lambda count: {"prompt": [{}] * count},
        lambda count: {"prompt": [-1] * count},
        lambda count: {"prompt": [[{}] * count] * 3},
        lambda count: {"messages": [{}] * count},
        lambda count: {"messages": [{"role": "user", "content": [{}] * count}] * 3},
        lambda count: {"messages": [USER], "stop": [{}] * count},
        lambda count: {"messages": [USER], "stepladder": {"options": {str(number): {} for number in range(100 * count)}}},
    ],
)
def test_a_body_of_many_faults_is_refused_at_the_first_ones(many):
    """An error for each of a megabyte's items would hold up all other requests for seconds."""
    assert 1 <= faults(many(3)) == faults(many(50)) <= 12


def test_other_paths_and_verbs_are_refused(web):
    """Unknown paths and verbs have the same form of errors, and name what is served: a base_url without /v1 is the usual mistake."""
    message = refused(web.post("/chat/completions", json=GOOD), 404, "not_found")["message"]
    assert message.startswith("POST /chat/completions: no such path -- /v1/chat/completions, /v1/completions, ")
    assert message.endswith("are served; a client's base_url ends with /v1")
    assert refused(web.get("/v1/completions"), 405, "method_not_allowed")["message"] == "GET /v1/completions: this path takes POST"
    refused(web.get("/v1/other"), 404, "not_found")
    refused(web.get("/../../etc/passwd"), 404, "not_found")
    refused(web.get("/v1/chat/completions"), 405, "method_not_allowed")
    refused(web.delete("/v1/models"), 405, "method_not_allowed")


def test_a_body_that_is_too_large_is_refused(web):
    """Its declared size is enough; without one, reading stops at the bound."""
    refused(web.post("/v1/chat/completions", content=b"x" * 20_001, headers={"Content-Type": "application/json"}), 413, "body_too_large")

    def pieces():
        for _ in range(30):
            yield b"x" * 1000

    refused(web.post("/v1/chat/completions", content=pieces(), headers={"Content-Type": "application/json"}), 413, "body_too_large")


def test_a_page_of_another_site_cannot_ask(web):
    """Forms send other types than JSON, and a name that points here is not this server's."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        refused(web.post("/v1/chat/completions", content=json.dumps(GOOD), headers={"Content-Type": kind}), 415, "wrong_content_type")
    for name in ("evil.example:80", "[::1].evil.example", "localhost:80@evil.example", "[::1]evil", "localhost:", "[::1]:80"):
        reply = web.get("/v1/models", headers={"Host": name})
        if "evil" in name:
            refused(reply, 403, "wrong_host")
        else:
            assert reply.status_code == 200, name
    assert "access-control-allow-origin" not in web.get("/v1/models", headers={"Origin": "http://evil.example"}).headers


def raw(served, data, *, wait=True):
    """Send bytes, and return what comes back."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(data)
        received = b""
        # A server that hangs up before everything was read resets the connection.
        with suppress(ConnectionResetError):
            while wait and (piece := connection.recv(65536)):
                received += piece
        return received


def test_a_body_that_comes_too_slowly_is_refused(served):
    """A client that announces a body and does not send it is sent away."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    received = raw(served, head)
    assert received.startswith(b"HTTP/1.1 408")
    assert b'"slow_request"' in received


def test_headers_that_never_end_are_refused(served):
    """Headers have a bound."""
    assert raw(served, b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000)[:12] in (b"", b"HTTP/1.1 400")


def test_a_connection_whose_next_request_never_begins_is_dropped(monkeypatch):
    """A byte of the next headers now and then does not hold a connection, neither at first nor after a reply."""
    monkeypatch.setattr(server, "_HEADERS_S", 0.5)
    monkeypatch.setattr(server, "_PAUSE_S", 2.0)
    with serving() as served:
        for first in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
                connection.sendall(first)
                received = b""
                while first and not received.endswith(b"}"):
                    received += connection.recv(65536)
                assert received[:15] == (b"HTTP/1.1 200 OK" if first else b"")
                connection.sendall(b"G")
                connection.settimeout(10)
                assert connection.recv(1) == b""


def test_random_bytes_do_not_end_the_server(served, web):
    """Noise on the socket is refused, and the server goes on."""
    rng = random.Random(1)
    for _ in range(30):
        noise = rng.randbytes(rng.randint(1, 200)) + b"\r\n\r\n"
        assert raw(served, noise)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 403")
    for cut in (1, 20, 60):
        raw(served, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n"[:cut], wait=False)
    assert web.get("/health").json() == {"status": "ok", "open_searches": 0}


def test_a_key_is_needed_if_there_is_one():
    """With keys, every path but the health check needs one; wrong ones are refused alike."""
    with serving(keys=("one-key", "another")) as served, httpx.Client(base_url=served.url, timeout=30) as web:
        assert web.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/nothing"):
            refused(web.get(path), 401, "invalid_api_key")
        for value in ("one-key", "Bearer", "Bearer one-ke", "Bearer one-key2", "Basic one-key", "Bearer \xff"):
            refused(web.get("/v1/models", headers={"Authorization": value.encode("latin-1")}), 401, "invalid_api_key")
        for key in ("one-key", "another"):
            assert web.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert web.get("/v1/models", headers={"Authorization": "Bearer one-key", "Host": "a.name"}).status_code == 200


def test_a_reader_that_takes_nothing_is_dropped():
    """A piece of a reply that a client does not take in time ends the connection."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def stuck(message):
        await asyncio.sleep(60)

    async def received():
        return {"type": "http.request", "body": b"", "more_body": False}

    guard = Guard(app, keys=(), hosts=None, metrics=Metrics(), max_body_bytes=10, read_s=1, write_s=0.05)
    scope = {"type": "http", "method": "GET", "path": "/health", "headers": []}
    with pytest.raises(SlowReader):
        asyncio.run(guard(scope, received, stuck))


def test_everything_above_left_nothing_behind(served, web):
    """No search of a refused request runs on, and a good request is answered."""
    assert web.post("/v1/chat/completions", json=GOOD).status_code == 200
    assert served.service.num_open == 0
