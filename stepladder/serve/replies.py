"""Replies in the form of OpenAI's protocol, with a field ``stepladder`` about the search."""

import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from stepladder import __version__
from stepladder.serve.search_service import Answer, Snapshot
from stepladder.types import StopReason

FINGERPRINT = f"stepladder-{__version__}"
_DEADLINE = StopReason.SECONDS


class Shown(NamedTuple):
    """The part of a solution that a reply shows."""

    text: str
    """The text."""
    num_tokens: int
    """Its tokens."""
    finish_reason: str
    """``stop`` if the solution came to its end or to a stop text, ``length`` if it was cut."""


def new_id(kind: str) -> str:
    """Return the id of a reply."""
    return f"{kind}-{uuid.uuid4().hex}"


def shown_part(answer: Answer, *, stops: Sequence[str], most_tokens: int | None) -> Shown:
    """Return the part of a solution that is shown: up to a stop text, and at most a number of tokens, in whole steps."""
    tree = answer.result.tree
    steps = [(tree.texts[node], len(tree.token_ids[node])) for node in answer.path]
    text, num_tokens = within(steps, most_tokens)
    kept = before_stop(text, stops)
    if len(kept) < len(text):
        return Shown(kept, num_tokens, "stop")
    ended = bool(steps) and tree.stop_reasons[answer.path[-1]] == StopReason.END
    return Shown(text, num_tokens, "stop" if ended and num_tokens == sum(size for _, size in steps) else "length")


def within(steps: Sequence[tuple[str, int]], most_tokens: int | None) -> tuple[str, int]:
    """Return the text and the tokens of the first steps, given by text and size, that have at most a number of tokens together."""
    text, num_tokens = "", 0
    for piece, size in steps:
        if most_tokens is not None and num_tokens + size > most_tokens:
            break
        text, num_tokens = text + piece, num_tokens + size
    return text, num_tokens


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop text."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(places)] if places else text


def usage(answers: Sequence[Answer], shown: Sequence[Shown], *, num_prompts: int) -> dict[str, Any]:
    """Return the tokens of a request: of each prompt once, and all that its searches generated."""
    spent = sum(answer.result.tree.generated_tokens for answer in answers)
    per_prompt = max(len(answers) // max(num_prompts, 1), 1)
    prompts = sum(len(answer.result.tree.prompt_ids) for answer in answers[::per_prompt])
    return {
        "prompt_tokens": prompts,
        "completion_tokens": spent,
        "total_tokens": prompts + spent,
        "completion_tokens_details": {"reasoning_tokens": max(spent - sum(each.num_tokens for each in shown), 0)},
    }


def search_facts(answer: Answer, *, seed: int, with_tree: bool) -> dict[str, Any]:
    """Return the field ``stepladder`` of a choice."""
    result, tree = answer.result, answer.result.tree
    end = answer.path[-1] if answer.path else None
    facts: dict[str, Any] = {
        "answer": result.answer,
        "score": None if end is None else tree.scores[end],
        "confidence": result.confidence,
        "votes": result.votes,
        "complete": result.stop_reason != _DEADLINE,
        "stop_reason": str(result.stop_reason),
        "method": tree.method,
        "seed": seed,
        "simulations": tree.num_simulations,
        "generated_tokens": tree.generated_tokens,
        "policy_calls": tree.policy_calls,
        "failed_samples": result.failures.num_failed,
        "seconds": round(answer.seconds, 3),
        "steps": [{"text": tree.texts[node], "score": tree.scores[node], "value": tree.values[node]} for node in answer.path],
    }
    if with_tree:
        facts["tree"] = tree.to_dict()
    return facts


def progress_facts(snapshot: Snapshot) -> dict[str, Any]:
    """Return the field ``stepladder`` of a chunk while the search runs."""
    return {
        "answer": snapshot.answer,
        "generated_tokens": snapshot.generated_tokens,
        "simulations": snapshot.simulations,
        "complete": False,
    }


def chat_logprobs(answer: Answer, shown: Shown) -> dict[str, Any]:
    """Return the log-probabilities of the shown tokens, as ``/v1/chat/completions`` has them."""
    content = [
        {"token": piece, "logprob": logp, "bytes": list(piece.encode()), "top_logprobs": []} for piece, logp in _shown_tokens(answer, shown)
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(answer: Answer, shown: Shown) -> dict[str, Any]:
    """Return the log-probabilities of the shown tokens, as ``/v1/completions`` has them."""
    pairs, offsets, at = _shown_tokens(answer, shown), [], 0
    for piece, _ in pairs:
        offsets.append(at)
        at += len(piece)
    return {
        "tokens": [piece for piece, _ in pairs],
        "token_logprobs": [logp for _, logp in pairs],
        "top_logprobs": None,
        "text_offset": offsets,
    }


def _shown_tokens(answer: Answer, shown: Shown) -> list[tuple[str, float]]:
    """Return the text and log-probability of each token of the shown steps that begins before the end of the shown text."""
    tree = answer.result.tree
    logps = [logp for node in answer.path for logp in tree.logps[node]]
    pairs, length = [], 0
    for piece, logp in zip(answer.pieces[: shown.num_tokens], logps[: shown.num_tokens], strict=True):
        if length >= len(shown.text) and piece:
            break
        pairs.append((piece, logp))
        length += len(piece)
    return pairs
