"""The reader of server replies against replies that chance has changed: typed values or one sentence, and nothing else."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from stepladder.policy.backends.completion_replies import Completion, ReplyError, read_completion, read_json, read_models
from tests.servers import FakeServer

ODD = (
    *(None, True, False, 0, -1, 1, 7, 10**30, -(10**400), 0.5, -0.5, 1e308, float("inf"), float("nan")),
    *("", "7", "-1.0", "stop", "token_id:7", "\ud800", "\x1b]52;c;\x07", [], [7], [[]], {}, {"id": 7}, {"cached_tokens": "7"}),
)
"""What may stand in the place of any value."""
PROMPT = [5, 6, 7]
MAX_TOKENS = 8


def _reply(form: str) -> tuple[FakeServer, dict[str, Any]]:
    fake = FakeServer(form=form)  # pyright: ignore[reportArgumentType]
    request = {"prompt": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 1.0, "seed": 1}
    return fake, fake.complete(request)[1]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value inside a value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _changed(reply: Any, path: tuple[Any, ...], value: Any, *, remove: bool = False) -> Any:
    reply = copy.deepcopy(reply)
    place = reply
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return reply


def _check(fake: FakeServer, reply: Any) -> None:
    size = len(fake.model.tokenizer)
    try:
        done = read_completion(reply, fake.model.tokenizer, vocab_size=size, num_prompt=len(PROMPT), max_tokens=MAX_TOKENS)
    except ReplyError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return
    assert isinstance(done, Completion) and len(done.tokens) <= MAX_TOKENS
    assert all(type(token) is int and 0 <= token < size for token, _ in done.tokens)
    assert all(type(logp) is float and -1e9 < logp <= 1e-3 for _, logp in done.tokens)
    assert done.cached_tokens is None or 0 <= done.cached_tokens <= len(PROMPT) + MAX_TOKENS


@pytest.mark.parametrize("form", ["vllm", "token_id", "llama.cpp", "text"])
def test_every_value_in_every_place_is_read_or_refused(form: str) -> None:
    """Each field of a reply is in turn replaced by each odd value, and removed."""
    fake, reply = _reply(form)
    _check(fake, reply)
    for path in _places(reply):
        _check(fake, _changed(reply, path, None, remove=True))
        for value in ODD:
            _check(fake, _changed(reply, path, value))
    for value in ODD:
        _check(fake, value)


@pytest.mark.parametrize("form", ["vllm", "text"])
def test_bytes_that_chance_changed_are_read_or_refused(form: str) -> None:
    """A few bytes of a reply are changed, doubled or lost, 2,000 times."""
    fake, reply = _reply(form)
    body, rng = json.dumps(reply).encode(), random.Random(0)
    for _ in range(2000):
        torn = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(torn))
            torn[at : at + rng.randint(0, 3)] = rng.choice(
                [b"", bytes([rng.randrange(256)]), torn[at : at + 9] * 2, b'"', b"[", b"}", b"9" * 9]
            )
        try:
            value = read_json(bytes(torn))
        except ReplyError:
            continue
        _check(fake, value)


def test_every_list_of_models_is_read_or_refused() -> None:
    """Each field of a list of models is in turn replaced by each odd value, and removed."""
    reply = {"data": [{"id": "table", "max_model_len": 256, "meta": {"n_ctx_train": 256}}, {"id": "b", "meta": {"n_ctx_train": 9}}]}
    assert [tuple(entry) for entry in read_models(reply)] == [("table", 256), ("b", 9)]
    changed = [_changed(reply, path, value) for path in _places(reply) for value in ODD]
    for one in [*changed, *(_changed(reply, path, None, remove=True) for path in _places(reply)), *ODD]:
        try:
            entries = read_models(one)
        except ReplyError:
            continue
        assert all(type(entry.name) is str for entry in entries)
        assert all(entry.context is None or (type(entry.context) is int and entry.context > 0) for entry in entries)
