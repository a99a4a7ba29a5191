"""A completions server on loopback whose model is a table, for tests of backends that speak HTTP.

The next token depends on the last one alone: a fixed random table gives its probabilities, so what the server says can be checked by hand.
Its random numbers depend on the request's seed and the position, as on a real server with per-request seeds.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import numpy as np

from stepladder.lm.sampling import stream_keys, uniforms
from tests.models import tiny_tokenizer

Form = Literal["vllm", "token_id", "llama.cpp", "text"]


class TableModel:
    """Next-token probabilities of the tiny tokenizer's vocabulary, by the last token; newlines are likely."""

    def __init__(self, *, seed: int = 0) -> None:
        self.tokenizer = tiny_tokenizer()
        size = len(self.tokenizer)
        logits = np.random.default_rng(seed).normal(0, 0.7, (size, size))
        logits[:, self.tokenizer.encode("\n")[0]] += 2
        logits[:, self.tokenizer.eos_token_id] += 1
        self.logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def sample(self, prompt: list[int], request: dict[str, Any], num_tokens: int) -> list[int]:
        """Return sampled ids, up to and with an end-of-sequence token or the stop text."""
        key, ids = stream_keys(request["seed"], 1), []
        bias = np.zeros(len(self.logps))
        for token, value in request.get("logit_bias", {}).items():
            bias[int(token)] = value
        stops = {self.tokenizer.encode(stop)[0] for stop in request.get("stop", [])} | {self.tokenizer.eos_token_id}
        while len(ids) < num_tokens and not stops & set(ids[-1:]):
            logits = self.logps[(prompt + ids)[-1]] + bias
            if request["temperature"] == 0:
                ids.append(int(logits.argmax()))
                continue
            probs = np.exp(logits / request["temperature"])
            cdf = np.cumsum(probs / probs.sum())
            ids.append(int(min((cdf <= uniforms(key, np.array([len(ids)]))[0]).sum(), len(cdf) - 1)))
        return ids


class FakeServer:
    """What a request handler needs: the model, the dialect, and what goes wrong."""

    def __init__(self, *, form: Form = "vllm", context: int = 256, show_end: bool = True) -> None:
        self.model, self.form, self.context, self.show_end = TableModel(), form, context, show_end
        self.requests: list[dict[str, Any]] = []
        """Every completions request, oldest first."""
        self.before: Callable[[int, dict[str, Any]], int | None] = lambda number, request: None
        """Called with the number of each request and its body: a status to answer with, 0 to hang up, or None to serve it."""
        self.raw: Callable[[str, dict[str, Any] | None], Iterable[bytes] | None] = lambda path, request: None
        """Called with the path of each request and its body: what to send before the connection is closed, with status line and headers; or
        None to serve the request."""
        self.lock = threading.Lock()
        self.in_flight, self.most_in_flight = 0, 0

    def complete(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Answer one request."""
        prompt = request["prompt"]
        if len(prompt) >= self.context:
            return 400, {"error": {"message": f"prompt of {len(prompt)} tokens is too long"}}
        ids = self.model.sample(prompt, request, min(request["max_tokens"], self.context - len(prompt)))
        stopped = self._stopped(ids, request)
        if stopped and not self.show_end:
            ids = ids[:-1]
        logps = [float(self.model.logps[before, token]) for before, token in zip((prompt + ids)[-len(ids) - 1 :], ids, strict=False)]
        choice = {"index": 0, "finish_reason": "stop" if stopped else "length", **self._choice(ids, logps)}
        usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": {"cached_tokens": len(prompt) // 32 * 32}}
        return 200, {"choices": [choice], "usage": usage}

    def _stopped(self, ids: list[int], request: dict[str, Any]) -> bool:
        text = self.model.tokenizer.decode(ids[-1:])
        return ids[-1] == self.model.tokenizer.eos_token_id or text in request.get("stop", [])

    def _choice(self, ids: list[int], logps: list[float]) -> dict[str, Any]:
        pieces = [self.model.tokenizer.decode([token]) for token in ids]
        text = "".join(pieces)
        if self.form == "llama.cpp":
            content = [{"id": i, "token": piece, "logprob": logp} for i, piece, logp in zip(ids, pieces, logps, strict=True)]
            return {"text": text, "logprobs": {"content": content}}
        if self.form == "token_id":
            pieces = [f"token_id:{i}" for i in ids]
        choice = {"text": text, "logprobs": {"tokens": pieces, "token_logprobs": logps}}
        return choice | ({"token_ids": ids} if self.form == "vllm" else {})


@contextmanager
def serving(fake: FakeServer, *, port: int = 0):
    """Serve on loopback while the context is open; yields the address, and a function that ends the server at once."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

    httpd = Server(("127.0.0.1", port), _handler(fake))
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def http_reply(body: bytes | str | Any, *, status: str = "200 OK", headers: Iterable[str] = (), length: object = None) -> bytes:
    """Return a whole reply: bytes and text as they are, anything else as JSON; ``length`` is what Content-Length says, if not the truth."""
    data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(data) if length is None else length}", "Connection: close"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            if not self._raw(None):
                self._answer(200, {"data": [{"id": "table", "max_model_len": fake.context}]})

        do_HEAD = do_GET

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with fake.lock:
                number = len(fake.requests)
                fake.requests.append(request)
                fake.in_flight += 1
                fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
            status = fake.before(number, request)
            if not self._raw(request) and status != 0:
                self._answer(*((status, {"error": "as it was told to"}) if status else fake.complete(request)))
            with fake.lock:
                fake.in_flight -= 1

        def _raw(self, request: dict[str, Any] | None) -> bool:
            pieces = fake.raw(self.path, request)
            if pieces is None:
                return False
            self.close_connection = True
            # A client that has heard enough hangs up.
            with contextlib.suppress(OSError):
                for piece in pieces:
                    self.wfile.write(piece)
            return True

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
