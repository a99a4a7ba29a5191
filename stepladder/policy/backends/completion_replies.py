"""Reading of a completions server's replies: JSON of any shape becomes typed values or one sentence.

The reader is strict. If a value has a wrong type, is out of range or is missing, the whole reply is a failure, because training would learn
from a wrong id or log-probability. Fields that are not used here are not looked at.
"""

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from stepladder.errors import DataFormatError
from stepladder.lm.encoding import Span, TextEncoder

Json = Any
"""Result of ``json.loads``: None, bool, int, float, str, list or dict."""

_LOGP_ROUNDING = 1e-3
"""Servers compute logits minus a log-sum-exp, which rounding can lift above 0 by that much."""
_TOKEN_CHARACTERS = 256
"""More characters than a token has."""
_SHOWN_CHARACTERS = 60


class ReplyError(ValueError):
    """A reply that breaks the protocol."""


class ServedModel(NamedTuple):
    """An entry of the list of models."""

    name: str
    context: int | None
    """Its context in tokens; None if the server does not say."""


class Completion(NamedTuple):
    """The reply to a request for one sample."""

    tokens: list[tuple[int, float]]
    """Sampled ids with their log-probabilities, in nats, finite, at most ``_LOGP_ROUNDING``."""
    stopped: bool
    """Whether the server stopped by itself; False if the cap on tokens cut the sample."""
    cached_tokens: int | None
    """Tokens of the prompt that the server found in its cache; None if it does not say."""


def read_json(body: bytes) -> Json:
    """Return the value that JSON in UTF-8 holds.

    Raises:
        ReplyError: If it is not JSON, repeats a key, contains NaN or infinity, or is nested too deeply.
    """
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except ReplyError:
        raise
    except UnicodeDecodeError as error:
        raise ReplyError(f"it must be UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise ReplyError("it must be JSON that is not nested so deeply") from error
    except ValueError as error:
        raise ReplyError(f"it must be JSON: {error}: got {_shown(body[:200].decode(errors='replace'))}") from error


def read_models(reply: Json) -> list[ServedModel]:
    """Return the served models of a list of models.

    Raises:
        ReplyError: If it is no such list.
    """
    entries = _list(_field(_dict(reply, "the list of models"), "data"), "data")
    return [_served_model(_dict(entry, f"data[{i}]"), f"data[{i}]") for i, entry in enumerate(entries)]


def read_completion(reply: Json, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int, num_prompt: int, max_tokens: int) -> Completion:
    """Return the content of a reply to a completions request for one sample.

    Args:
        reply: The reply.
        tokenizer: Encodes the text if the server sends only text.
        vocab_size: Ids that the model knows.
        num_prompt: Tokens of the request's prompt.
        max_tokens: The request's cap on sampled tokens.

    Raises:
        ReplyError: If a value is absent, of another type, or impossible.
    """
    reply = _dict(reply, "the answer")
    if reply.get("error") and "choices" not in reply:
        error = reply["error"]
        raise ReplyError(f"it holds an error instead of choices: {_shown(error.get('message') if isinstance(error, dict) else error)}")
    choices = _list(_field(reply, "choices"), "choices")
    if len(choices) != 1:
        raise ReplyError(f"choices must have one entry, as requested: got {len(choices)}")
    choice = _dict(choices[0], "choices[0]")
    if _int(choice.get("index", 0), "index") != 0:
        raise ReplyError(f"index must be 0: got {_shown(choice['index'])}")
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        raise ReplyError(f"finish_reason must be 'stop' or 'length': got {_shown(reason)}")
    tokens = _tokens(choice, tokenizer, vocab_size=vocab_size, max_tokens=max_tokens)
    cached = _cached_tokens(reply.get("usage"), num_prompt + len(tokens))
    return Completion(tokens, reason == "stop", cached)


def _served_model(entry: dict[str, Json], place: str) -> ServedModel:
    name = _text(_field(entry, "id", place), f"{place}.id")
    context = entry.get("max_model_len")
    if context is None and entry.get("meta") is not None:
        context = _dict(entry["meta"], f"{place}.meta").get("n_ctx_train")
    if context is not None and _int(context, f"{place}: the context") < 1:
        raise ReplyError(f"{place}: the context must be at least one token: got {_shown(context)}")
    return ServedModel(name, context)


def _tokens(choice: dict[str, Json], tokenizer: PreTrainedTokenizerBase, *, vocab_size: int, max_tokens: int) -> list[tuple[int, float]]:
    """Return the sampled ids of a choice with their log-probabilities, from any of the servers' forms."""
    logprobs = _dict(_field(choice, "logprobs"), "logprobs")
    content = logprobs.get("content")
    if isinstance(content, list) and all(isinstance(entry, dict) and "id" in entry for entry in content):
        # llama.cpp.
        _check_count(content, max_tokens)
        ids = [entry["id"] for entry in content]
        logps = [_field(entry, "logprob") for entry in content]
    else:
        pieces = [_text(piece, "tokens") for piece in _list(_field(logprobs, "tokens"), "logprobs.tokens")]
        logps = _list(_field(logprobs, "token_logprobs"), "logprobs.token_logprobs")
        _check_count(logps, max_tokens)
        _check_count(pieces, max_tokens)
        ids = _ids(choice, pieces, tokenizer)
    if len(ids) != len(logps):
        raise ReplyError(f"every token must have a log-probability: got {len(ids)} tokens and {len(logps)} log-probabilities")
    return [(_token(i, vocab_size), _logp(logp)) for i, logp in zip(ids, logps, strict=True)]


def _check_count(entries: list[Json], max_tokens: int) -> None:
    if len(entries) > max_tokens:
        raise ReplyError(f"it must have at most the {max_tokens} requested tokens: got {len(entries)}")


def _ids(choice: dict[str, Json], pieces: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Json]:
    given = choice.get("token_ids")
    if given is not None:
        return _list(given, "token_ids")
    if all(piece.startswith("token_id:") for piece in pieces):
        return [_written_id(piece.removeprefix("token_id:")) for piece in pieces]
    return _retokenised(_text(_field(choice, "text"), "text"), pieces, tokenizer)


def _written_id(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) < 12):
        raise ReplyError(f"token_id: must be followed by an id: got {_shown(digits)}")
    return int(digits)


def _retokenised(text: str, pieces: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # Tokenising a long text takes long, and a token is a few characters.
    if len(text) > _TOKEN_CHARACTERS * len(pieces):
        raise ReplyError(f"text of {len(text)} characters must not be {len(pieces)} tokens")
    encoder = _encoder(tokenizer)
    try:
        ids = encoder.encode(text, controls=_control_spans(text, pieces, encoder))
    except DataFormatError as error:
        raise ReplyError(" ".join(str(error).split())[:200]) from error
    back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if len(ids) != len(pieces) or back != text:
        raise ReplyError(f"{len(pieces)} tokens, {_shown(text)}, must come back from the local tokenizer: got {len(ids)}, {_shown(back)}")
    return ids


@lru_cache(maxsize=2)
def _encoder(tokenizer: PreTrainedTokenizerBase) -> TextEncoder:
    return TextEncoder(tokenizer)


def _control_spans(text: str, pieces: Sequence[str], encoder: TextEncoder) -> list[Span]:
    """Return the places of control tokens: a piece that is the name of one is that token. The same text in several pieces is text."""
    if "".join(pieces) != text:
        return encoder.find_controls(text)
    spans = zip(accumulate(map(len, pieces), initial=0), accumulate(map(len, pieces)), strict=False)
    return [span for span, piece in zip(spans, pieces, strict=True) if encoder.find_controls(piece) == [(0, len(piece))]]


def _token(value: Json, vocab_size: int) -> int:
    token = _int(value, "a token's id")
    if not 0 <= token < vocab_size:
        raise ReplyError(f"a token's id must be in [0, {vocab_size}), below the vocabulary: got {_shown(token)}")
    return token


def _logp(value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReplyError(f"a log-probability must be a number: got {_shown(value)}")
    # An integer may be too large for a float, and 1e999 is read as infinity.
    if not (-1e9 < value <= _LOGP_ROUNDING):
        raise ReplyError(f"a log-probability must be finite and at most 0: got {_shown(value)}")
    return float(value)


def _cached_tokens(usage: Json, most: int) -> int | None:
    if usage is None:
        return None
    details = _dict(usage, "usage").get("prompt_tokens_details")
    if details is None or _dict(details, "prompt_tokens_details").get("cached_tokens") is None:
        return None
    cached = _int(details["cached_tokens"], "cached_tokens")
    if not 0 <= cached <= most:
        raise ReplyError(f"cached_tokens must be in [0, {most}]: got {_shown(cached)}")
    return cached


def _unique_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for key, value in pairs:
        if key in found:
            raise ReplyError(f"every key must stand once: {_shown(key)} is repeated")
        found[key] = value
    return found


def _refuse_constant(name: str) -> None:
    raise ReplyError(f"every number must be finite: got {name}")


def _field(value: dict[str, Json], name: str, place: str = "") -> Json:
    if name not in value:
        raise ReplyError(f"{place}{'.' if place else ''}{name} must be there: it is missing")
    return value[name]


def _dict(value: Json, name: str) -> dict[str, Json]:
    return _typed(value, dict, "an object", name)


def _list(value: Json, name: str) -> list[Json]:
    return _typed(value, list, "a list", name)


def _text(value: Json, name: str) -> str:
    text: str = _typed(value, str, "text", name)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ReplyError(f"{name} must be text without lone surrogates: got {_shown(text)}")
    return text


def _int(value: Json, name: str) -> int:
    if isinstance(value, bool):
        raise ReplyError(f"{name} must be a whole number: got {value}")
    return _typed(value, int, "a whole number", name)


def _typed(value: Json, kind: type, named: str, name: str) -> Any:
    if not isinstance(value, kind):
        raise ReplyError(f"{name} must be {named}: got {_shown(value)}")
    return value


def _shown(value: Json) -> str:
    """Return a value for a message, cut to a few characters; an integer may be too long to be written out, and a list too deep."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return f"a number of {math.ceil(value.bit_length() * math.log10(2))} digits"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
