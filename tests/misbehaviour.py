"""What a completions server may do wrong, by kind, and how a search must take it. Used against the backend and the command line.

Each behaviour ends in one of three ways: an *answer* (it does no harm), a failed *sample* with its reason, or the end of the *command* with
one sentence, where every other request would meet the same.
"""

import copy
import gzip
import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tests.servers import FakeServer, http_reply

Ends = Literal["answer", "sample", "command"]
Reply = dict[str, Any]
KEY = "sk-the-key-that-nobody-may-see"
"""The key that clients send; a server may repeat it."""
DEADLINE_S = 0.4
"""The clients' deadline; what stalls, stalls for longer."""


@dataclass(frozen=True, kw_only=True)
class Misbehaviour:
    """One thing that a server does wrong."""

    kind: str
    name: str
    pieces: Callable[[Reply], Iterable[bytes]]
    """From the right reply, what is sent."""
    ends: Ends
    says: str = ""
    """Regular expression that the sample's message or the command's sentence holds."""
    lists: bool = False
    """Whether it is the list of models that is wrong, and not a completion."""


def _sent(data: bytes) -> Callable[[Reply], Iterable[bytes]]:
    return lambda good: [data]


def _changed(change: Callable[[Reply], Any]) -> Callable[[Reply], Iterable[bytes]]:
    """Send the right reply after a change; what the change returns, if anything, is sent in its place."""

    def pieces(good: Reply) -> Iterable[bytes]:
        reply = copy.deepcopy(good)
        instead = change(reply)
        return [http_reply(reply if instead is None else instead)]

    return pieces


def _choice(**fields: Any) -> Callable[[Reply], Iterable[bytes]]:
    return _changed(lambda reply: reply["choices"][0].update(fields))


def _without(name: str) -> Callable[[Reply], Iterable[bytes]]:
    return _changed(lambda reply: {**reply, "choices": [{key: value for key, value in reply["choices"][0].items() if key != name}]})


def _first_id(value: Any) -> Callable[[Reply], Iterable[bytes]]:
    return _changed(lambda reply: reply["choices"][0]["token_ids"].__setitem__(0, value))


def _first_logp(value: Any) -> Callable[[Reply], Iterable[bytes]]:
    return _changed(lambda reply: reply["choices"][0]["logprobs"]["token_logprobs"].__setitem__(0, value))


def _literal_logp(literal: str) -> Callable[[Reply], Iterable[bytes]]:
    """Send the right reply with another literal as its first log-probability: JSON of Python cannot write all that a server may send."""

    def pieces(good: Reply) -> Iterable[bytes]:
        reply = copy.deepcopy(good)
        reply["choices"][0]["logprobs"]["token_logprobs"][0] = "LITERAL"
        return [http_reply(json.dumps(reply).replace('"LITERAL"', literal))]

    return pieces


def _pieces_of_text(*tokens: str) -> Callable[[Reply], Iterable[bytes]]:
    def change(reply: Reply) -> None:
        del reply["choices"][0]["token_ids"]
        reply["choices"][0]["logprobs"] = {"tokens": list(tokens), "token_logprobs": [-1.0] * len(tokens)}
        reply["choices"][0]["text"] = "".join(tokens)

    return _changed(change)


def _usage(value: Any) -> Callable[[Reply], Iterable[bytes]]:
    return _changed(lambda reply: {**reply, "usage": value})


def _cached(value: Any) -> Callable[[Reply], Iterable[bytes]]:
    return _usage({"prompt_tokens_details": {"cached_tokens": value}})


def _status(status: str, body: Any = "as it was told to", *headers: str) -> Callable[[Reply], Iterable[bytes]]:
    return _sent(http_reply(body, status=status, headers=headers))


def _written_as(old: str, new: str) -> Callable[[Reply], Iterable[bytes]]:
    """Send the right reply's JSON with one piece of its text replaced."""

    def pieces(good: Reply) -> Iterable[bytes]:
        text = json.dumps(good)
        assert old in text
        return [http_reply(text.replace(old, new, 1))]

    return pieces


def _chunked(good: Reply, *, whole: bool) -> Iterator[bytes]:
    body = json.dumps(good).encode()
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for begin in range(0, len(body), 50):
        piece = body[begin : begin + 50]
        yield f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
        if not whole and begin:
            return
    yield b"0\r\n\r\n"


def _drops(good: Reply) -> Iterator[bytes]:
    """Send one byte at a time, each soon enough for a deadline between bytes, and never come to an end."""
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    for _ in range(100):
        yield b" "
        time.sleep(DEADLINE_S / 4)


def _stalls(*pieces: bytes) -> Callable[[Reply], Iterator[bytes]]:
    def stall(good: Reply) -> Iterator[bytes]:
        yield from pieces
        time.sleep(2 * DEADLINE_S)

    return stall


def _endless(good: Reply) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    for _ in range(1000):
        yield b" " * 2**20


def _repeated(first: bytes, piece: bytes, times: int) -> Callable[[Reply], Iterator[bytes]]:
    def pieces(good: Reply) -> Iterator[bytes]:
        yield first
        for _ in range(times):
            yield piece

    return pieces


def _packed(coding: str, pack: Callable[[bytes], bytes]) -> Callable[[Reply], Iterable[bytes]]:
    return lambda good: [http_reply(pack(json.dumps(good).encode()), headers=[f"Content-Encoding: {coding}"])]


def _bomb() -> bytes:
    packer, blank = zlib.compressobj(1, zlib.DEFLATED, 31), b" " * 2**20
    return b"".join(packer.compress(blank) for _ in range(64)) + packer.flush()


def _listed(*entries: Any) -> Callable[[Reply], Iterable[bytes]]:
    return _sent(http_reply({"data": list(entries)}))


def _rows(
    kind: str, ends: Ends, table: dict[str, tuple[Callable[[Reply], Iterable[bytes]], str]], *, lists: bool = False
) -> list[Misbehaviour]:
    return [Misbehaviour(kind=kind, name=name, pieces=pieces, ends=ends, says=says, lists=lists) for name, (pieces, says) in table.items()]


_DEEP = b"[" * 200_000 + b"]" * 200_000
_TABLE_MODEL = {"id": "table", "max_model_len": 256}

MISBEHAVIOURS = [
    *_rows(
        "refuses",
        "sample",
        {
            "400": (_status("400 Bad Request", {"error": {"message": "no such field"}}), "refused the request: status 400.*no such field"),
            "501": (_status("501 Not Implemented"), "status 501"),
            "418": (_status("418 I'm a teapot"), "status 418"),
            "413": (_status("413 Too Large"), "status 413"),
            "204 without a body": (_sent(b"HTTP/1.1 204 No Content\r\n\r\n"), "status 204"),
            "a status that does not exist": (_status("799 Odd"), "status 799"),
            "400 with ten megabytes": (_status("400 Bad Request", "x" * 10**7), "status 400: x{200}"),
            "400 with bytes that are no text": (_status("400 Bad Request", b"\xff\xfe\x00\x1b]52;c;aGk=\x07"), "status 400"),
            "400 that repeats the key": (_status("400 Bad Request", f"bad key {KEY}"), r"bad key \*\*\*"),
        },
    ),
    *_rows(
        "fails and never recovers",
        "sample",
        {
            "429": (_status("429 Too Many Requests"), "2 tries: status 429"),
            "429 that asks for no time": (_status("429 Too Many Requests", "", "Retry-After: 0"), "status 429"),
            "429 with a nonsense time": (_status("429 Too Many Requests", "", "Retry-After: soon"), "status 429"),
            "429 with a negative time": (_status("429 Too Many Requests", "", "Retry-After: -5"), "status 429"),
            "429 with a time long past": (
                _status("429 Too Many Requests", "", "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"),
                "status 429",
            ),
            "429 with a date that does not exist": (
                _status("429 Too Many Requests", "", "Retry-After: Wed, 99 Oct 99999 07:28:00 GMT"),
                "status 429",
            ),
            "500": (_status("500 Internal Server Error"), "2 tries: status 500"),
            "408": (_status("408 Request Timeout"), "2 tries: status 408"),
        },
    ),
    *_rows(
        "would refuse every request",
        "command",
        {
            "401": (_status("401 Unauthorized", f"the key {KEY} is wrong"), r"check address, key and model"),
            "403": (_status("403 Forbidden"), "check address, key and model"),
            "404": (_status("404 Not Found"), "check address, key and model"),
            "a redirect to another host": (_status("302 Found", "", "Location: http://192.0.2.1/v1"), "redirects to http://192.0.2.1/v1"),
            "a redirect to itself": (_status("307 Temporary Redirect", "", "Location: /v1/completions"), "redirects to"),
            "a redirect without a place": (_status("301 Moved Permanently"), "redirects to nowhere"),
            "503": (_status("503 Service Unavailable"), "must be there: status 503"),
            "a proxy without a server": (_status("502 Bad Gateway", "<html>"), "must be there: status 502"),
        },
    ),
    *_rows(
        "is no JSON",
        "sample",
        {
            "nothing": (_sent(http_reply("")), "must be JSON"),
            "a page": (_sent(http_reply("<html>hello</html>", headers=["Content-Type: text/html"])), "must be JSON.*<html>.*text/html"),
            "events": (
                _sent(http_reply('data: {"choices": []}\n\n', headers=["Content-Type: text/event-stream"])),
                "must be JSON.*event-stream",
            ),
            "cut JSON": (lambda good: [http_reply(json.dumps(good)[:-30])], "must be JSON"),
            "two values": (lambda good: [http_reply(json.dumps(good) * 2)], "must be JSON"),
            "bytes that are not UTF-8": (lambda good: [http_reply(json.dumps(good).encode() + b"\xff")], "UTF-8"),
            "UTF-16": (lambda good: [http_reply(json.dumps(good).encode("utf-16"))], "UTF-8"),
            "200,000 lists in each other": (_sent(http_reply(_DEEP)), "nested"),
            "200,000 open lists": (_sent(http_reply(b"[" * 200_000)), "nested"),
            "200,000 objects in each other": (_sent(http_reply(b'{"a":' * 200_000)), "nested"),
            "NaN": (_written_as('"index": 0', '"index": NaN'), "finite: got NaN"),
            "infinity": (_written_as('"index": 0', '"index": -Infinity'), "finite: got -Infinity"),
            "a key twice": (_written_as('"index": 0', '"index": 0, "index": 0'), "'index' is repeated"),
            "a number of 5,000 digits": (_written_as('"index": 0', f'"index": {"9" * 5000}'), "must be JSON"),
        },
    ),
    *_rows(
        "has another shape",
        "sample",
        {
            "a list": (_sent(http_reply([])), "must be an object: got a list"),
            "null": (_sent(http_reply("null")), "must be an object: got None"),
            "text": (_sent(http_reply('"done"')), "must be an object: got 'done'"),
            "a number": (_sent(http_reply("7")), "must be an object: got 7"),
            "no choices": (_sent(http_reply({})), "choices must be there"),
            "an error in place of choices": (_sent(http_reply({"error": {"message": "out of memory"}})), "error.*out of memory"),
            "choices null": (_changed(lambda reply: {**reply, "choices": None}), "choices must be a list"),
            "choices an object": (_changed(lambda reply: {**reply, "choices": {"0": 1}}), "choices must be a list"),
            "no choice": (_changed(lambda reply: {**reply, "choices": []}), "one entry.*got 0"),
            "two choices": (_changed(lambda reply: {**reply, "choices": reply["choices"] * 2}), "one entry.*got 2"),
            "a choice null": (_changed(lambda reply: {**reply, "choices": [None]}), r"choices\[0\] must be an object"),
            "another index": (_choice(index=1), "index must be 0"),
            "an index of text": (_choice(index="0"), "index must be a whole number"),
            "an index true": (_choice(index=True), "index must be a whole number"),
            "everything null": (_changed(lambda reply: dict.fromkeys(reply)), "choices must be a list"),
            "every field of the choice null": (_changed(lambda reply: {"choices": [dict.fromkeys(reply["choices"][0])]}), "must be"),
            "no reason": (_without("finish_reason"), "finish_reason must be"),
            "an odd reason": (_choice(finish_reason="abort"), "finish_reason.*'abort'"),
            "a reason that is a number": (_choice(finish_reason=1), "finish_reason"),
            "a reason that is a list": (_choice(finish_reason=["stop"]), "finish_reason"),
        },
    ),
    *_rows(
        "gives wrong log-probabilities",
        "sample",
        {
            "none": (_without("logprobs"), "logprobs must be there"),
            "null": (_choice(logprobs=None), "logprobs must be an object"),
            "a list": (_choice(logprobs=[]), "logprobs must be an object"),
            "above 0": (_first_logp(0.5), "at most 0: got 0.5"),
            "text": (_first_logp("-1.0"), "must be a number: got '-1.0'"),
            "one null": (_first_logp(None), "must be a number: got None"),
            "one false": (_first_logp(False), "must be a number: got False"),
            "one too large for a float": (_first_logp(-(10**400)), "must be finite.*401 digits"),
            "one infinite": (_literal_logp("-1e999"), "must be finite.*-inf"),
            "one NaN": (_literal_logp("NaN"), "finite: got NaN"),
            "fewer than tokens": (_changed(lambda reply: reply["choices"][0]["logprobs"]["token_logprobs"].clear()), "every token"),
            "more than tokens": (_changed(lambda reply: reply["choices"][0]["logprobs"]["token_logprobs"].append(-1.0)), "every token"),
        },
    ),
    *_rows(
        "gives wrong tokens",
        "sample",
        {
            "an id beyond the vocabulary": (_first_id(10**6), "below the vocabulary: got 1000000"),
            "a negative id": (_first_id(-1), "got -1"),
            "an id of 31 digits": (_first_id(10**30), "31 digits"),
            "an id with a fraction": (_first_id(5.0), "whole number: got 5.0"),
            "an id of text": (_first_id("5"), "whole number: got '5'"),
            "an id true": (_first_id(True), "whole number: got True"),
            "an id null": (_first_id(None), "whole number: got None"),
            "an id in a list": (_first_id([5]), "whole number: got a list"),
            "ids of text": (_choice(token_ids="5, 6"), "token_ids must be a list"),
            "no ids": (_choice(token_ids=[]), "every token"),
            "more than were asked for": (
                _choice(token_ids=[5] * 99, logprobs={"tokens": ["a"] * 99, "token_logprobs": [-1.0] * 99}),
                "at most the 8 requested tokens",
            ),
            "no tokens at all": (_choice(token_ids=[], logprobs={"tokens": [], "token_logprobs": []}), "must show the token it stopped at"),
            "a written id below 0": (_pieces_of_text("token_id:-1"), "must be followed by an id"),
            "a written id that is none": (_pieces_of_text("token_id:x"), "must be followed by an id"),
            "a written id of 5,000 digits": (_pieces_of_text("token_id:" + "9" * 5000), "must be followed by an id"),
            "a written id beyond the vocabulary": (_pieces_of_text("token_id:99999"), "below the vocabulary"),
            "text that the tokenizer does not know": (_pieces_of_text("a", "~"), "must come back from the local tokenizer"),
            "a megabyte of text for two tokens": (_pieces_of_text("a", "b" * 10**6), "text of 1000001 characters must not be 2 tokens"),
            "text with half a character": (_pieces_of_text("\ud800"), "lone surrogates"),
            "tokens that are numbers": (_choice(logprobs={"tokens": [5], "token_logprobs": [-1.0]}), "tokens must be text"),
            "tokens null": (_choice(logprobs={"tokens": None, "token_logprobs": [-1.0]}), "tokens must be a list"),
        },
    ),
    *_rows(
        "counts wrongly",
        "sample",
        {
            "usage of text": (_usage("12"), "usage must be an object"),
            "usage a list": (_usage([12]), "usage must be an object"),
            "details of text": (_usage({"prompt_tokens_details": "none"}), "prompt_tokens_details must be an object"),
            "cached tokens of text": (_cached("12"), "cached_tokens must be a whole number: got '12'"),
            "cached tokens below 0": (_cached(-1), "cached_tokens must be in"),
            "more cached tokens than there are": (_cached(10**6), "cached_tokens must be in"),
            "cached tokens with a fraction": (_cached(0.5), "cached_tokens must be a whole number"),
            "cached tokens true": (_cached(True), "cached_tokens must be a whole number"),
        },
    ),
    *_rows(
        "breaks the line",
        "sample",
        {
            "hangs up": (_sent(b""), "2 tries: the connection broke"),
            "hangs up in the headers": (_sent(b"HTTP/1.1 200 OK\r\nContent-Le"), "the connection broke"),
            "hangs up in the body": (lambda good: [http_reply(good, length=10**5)], "the connection broke"),
            "hangs up in a chunk": (lambda good: _chunked(good, whole=False), "the connection broke"),
            "a chunk of no size": (_sent(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"), "the connection broke"),
            "says too little length": (lambda good: [http_reply(good, length=20)], "must be JSON"),
            "says a negative length": (lambda good: [http_reply(good, length=-5)], "the connection broke"),
            "says two lengths": (lambda good: [http_reply(good, headers=["Content-Length: 3"])], "the connection broke"),
            "says a length of text": (lambda good: [http_reply(good, length="many")], "the connection broke"),
            "speaks another protocol": (_sent(b"SSH-2.0-OpenSSH_9.6\r\n"), "the connection broke"),
            "a header of 200 kB": (_sent(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n"), "the connection broke"),
            "headers without end": (
                _repeated(b"HTTP/1.1 200 OK\r\n", b"X-Header: value\r\n" * 1000, 1000),
                "the connection broke",
            ),
            "a header with a line break": (_sent(b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n{}"), "the connection broke"),
        },
    ),
    *_rows(
        "is slow",
        "sample",
        {
            "never answers": (_stalls(), "2 tries: no whole answer within 0.4 s"),
            "stops after the headers": (_stalls(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n"), "no whole answer within"),
            "stops in the headers": (_stalls(b"HTTP/1.1 200"), "no whole answer within"),
            "sends a byte now and then": (_drops, "no whole answer within"),
            "only says that it will answer": (_stalls(b"HTTP/1.1 100 Continue\r\n\r\n" * 50), "no whole answer within"),
            "refuses slowly": (_stalls(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 50\r\n\r\nno"), "no whole answer within"),
        },
    ),
    *_rows(
        "sends too much",
        "sample",
        {
            "a gigabyte": (_endless, "at most [0-9]+ bytes"),
            "64 megabytes in gzip": (_sent(http_reply(_bomb(), headers=["Content-Encoding: gzip"])), "must not be compressed.*'gzip'"),
            "gzip": (_packed("gzip", gzip.compress), "must not be compressed"),
            "deflate": (_packed("deflate", zlib.compress), "must not be compressed"),
            "a coding that nobody knows": (_packed("zzz", bytes), "must not be compressed.*'zzz'"),
        },
    ),
    *_rows(
        "is odd without harm",
        "answer",
        {
            "nothing wrong": (_changed(lambda reply: None), ""),
            "text/plain": (lambda good: [http_reply(good, headers=["Content-Type: text/plain"])], ""),
            "another character set": (lambda good: [http_reply(good, headers=["Content-Type: application/json; charset=utf-16"])], ""),
            "HTTP/1.0": (lambda good: [b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps(good).encode()], ""),
            "neither length nor chunks": (lambda good: [b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(good).encode()], ""),
            "small chunks": (lambda good: _chunked(good, whole=True), ""),
            "an interim answer first": (lambda good: [b"HTTP/1.1 102 Processing\r\n\r\n", http_reply(good)], ""),
            "identity as coding": (lambda good: [http_reply(good, headers=["Content-Encoding: identity"])], ""),
            "broken cookies": (lambda good: [http_reply(good, headers=["Set-Cookie: =;;;=\x07", "Set-Cookie: a=b; Max-Age=x"])], ""),
            "usage null": (_usage(None), ""),
            "no usage": (_changed(lambda reply: {"choices": reply["choices"]}), ""),
            "cached tokens null": (_cached(None), ""),
            "fields that nobody knows": (_changed(lambda reply: {**reply, "\x1b[31m": [{}], "id": 7, "model": None}), ""),
            "an error null": (_changed(lambda reply: {**reply, "error": None}), ""),
            "a log-probability above 0 by rounding": (_first_logp(1e-7), ""),
            "a log-probability that is a whole number": (_first_logp(-1), ""),
        },
    ),
    *_rows(
        "lists its models wrongly",
        "command",
        {
            "404": (_status("404 Not Found"), "check address, key and model"),
            "400": (_status("400 Bad Request"), "must list the served models"),
            "a page": (_sent(http_reply("<html>")), "must list the served models"),
            "nothing": (_sent(http_reply("")), "must list the served models"),
            "a list": (_sent(http_reply([_TABLE_MODEL])), "must list the served models.*an object"),
            "no data": (_sent(http_reply({"models": []})), "data must be there"),
            "data of text": (_sent(http_reply({"data": "table"})), "data must be a list"),
            "no model": (_listed(), r"it serves \[\]"),
            "two models": (_listed(_TABLE_MODEL, {"id": "other"}), r"it serves \['table', 'other'\]"),
            "an entry of text": (_listed("table"), r"data\[0\] must be an object"),
            "an entry without id": (_listed({"max_model_len": 256}), r"data\[0\]\.id must be there"),
            "an id that is a number": (_listed({"id": 7}), r"data\[0\]\.id must be text"),
            "a context of text": (_listed({"id": "table", "max_model_len": "256"}), "context must be a whole number: got '256'"),
            "a context below 0": (_listed({"id": "table", "max_model_len": -1}), "at least one token: got -1"),
            "a context of 0": (_listed({"id": "table", "max_model_len": 0}), "at least one token: got 0"),
            "a context true": (_listed({"id": "table", "max_model_len": True}), "whole number: got True"),
            "a context with a fraction": (_listed({"id": "table", "max_model_len": 256.5}), "whole number: got 256.5"),
            "meta of text": (_listed({"id": "table", "meta": "n_ctx"}), "meta must be an object"),
            "a context of text in meta": (_listed({"id": "table", "meta": {"n_ctx_train": "256"}}), "whole number: got '256'"),
            "no context": (_listed({"id": "table"}), "the context must be known"),
            "200,000 lists in each other": (_sent(http_reply(_DEEP)), "nested"),
            "a redirect": (_status("301 Moved Permanently", "", "Location: https://192.0.2.1/"), "redirects to https://192.0.2.1/"),
            "never": (_stalls(), "must list the served models.*no whole answer"),
            "a gigabyte": (_endless, "at most [0-9]+ bytes"),
            "gzip": (_sent(http_reply(_bomb(), headers=["Content-Encoding: gzip"])), "must not be compressed"),
            "the key, repeated": (_status("401 Unauthorized", f"the key {KEY} is wrong"), r"the key \*\*\* is wrong"),
        },
        lists=True,
    ),
]
"""All of them."""


def misbehave(behaviour: Misbehaviour, fake: FakeServer) -> None:
    """Have a server misbehave from now on."""

    def raw(path: str, request: Reply | None) -> Iterable[bytes] | None:
        if (request is None) != behaviour.lists:
            return None
        return behaviour.pieces({} if request is None else fake.complete(request)[1])

    fake.raw = raw
