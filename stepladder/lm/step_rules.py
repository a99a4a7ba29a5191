"""Rules for the end of a step, on token ids: a text, a sentence, a pattern, a number of tokens, an uncertain token, or a function.

Every rule has the members of ``StepBoundary``: ``closes`` and ``may_close`` classify tokens once, ``completes`` decides about an open step.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase

from stepladder.errors import ConfigError, DataFormatError
from stepladder.lm.text import StepBoundary, TokenText
from stepladder.plugs import load_plug, raised
from stepladder.settings import RuleName

_TAIL = 64
"""Tokens of an open step that are decoded to look for its end."""
_ANY_STEP = "1"
"""An open step on which a function is tried; a policy may write anything, so a function must answer to it."""
_REPLACEMENT = "\ufffd"
# A full stop after a digit or a single letter is a decimal point, a number in a list, or an abbreviation.
_SENTENCE = re.compile(r"(?:(?<!\d)(?<!\b[A-Za-z])\.|[!?\u3002\uff01\uff1f])[\"')\]]*\s*$|\n\s*$")
_WORD = re.compile(r"\w")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRule:
    """Where steps end."""

    name: str = "text"
    """The rule: one of ``RuleName``, or the name of a function for ``load_step_rule``."""
    text: str = "\n"
    """Closing text of rule ``text``, not empty."""
    pattern: str | None = None
    """Regular expression of rule ``pattern``: a step ends at the token with which its text first matches."""
    num_tokens: int = 64
    """Length of a step under ``tokens``, and the smallest one under ``surprise``, >= 1."""
    surprise: float = 3.0
    """Under ``surprise`` a step ends before a token with -log p of at least this many nats, > 0."""
    thinking_end: str | None = None
    """Text that ends a thinking block, and a step; None without such blocks."""


class Boundary(Protocol):
    """The end of steps."""

    closes: Bool[np.ndarray, "V"]
    """Tokens that always close a step."""
    may_close: Bool[np.ndarray, "V"]
    """Tokens for which ``completes`` decides."""

    def completes(self, token_ids: Int[np.ndarray, "T"]) -> bool:
        """Say whether the last token of a step closes it; the step must be open before that token."""
        ...


def boundary_of(tokenizer: PreTrainedTokenizerBase, rule: StepRule, *, vocab_size: int) -> Boundary:
    """Return the boundary of a rule for a tokenizer whose model produces ``vocab_size`` ids."""
    boundary: Boundary
    if rule.name == "text":
        boundary = StepBoundary(tokenizer, rule.text, vocab_size=vocab_size)
    elif rule.name == "surprise":
        # Nothing that a written solution shows; ``forks`` decides while tokens are sampled.
        boundary = _Never(vocab_size)
    elif rule.name not in get_args(RuleName):
        boundary = _Called(tokenizer, rule.name, vocab_size=vocab_size)
    else:
        boundary = _Decoded(tokenizer, rule, vocab_size=vocab_size)
    if rule.thinking_end is None:
        return boundary
    return _Either(boundary, StepBoundary(tokenizer, rule.thinking_end, vocab_size=vocab_size))


def load_step_rule(name: str) -> Callable[[str], object]:
    """Import a function that takes the text of an open step and says whether its last token closes it; nothing is called.

    Raises:
        ConfigError: If there is no such function, or it takes other arguments.
    """
    function = load_plug(name, setting="format.steps")
    try:
        inspect.signature(function).bind("text")
    except (TypeError, ValueError):
        raise ConfigError(f"format.steps: must take one argument, the text of a step: got {name!r} -- change its arguments") from None
    return function


def try_step_rule(name: str) -> None:
    """Import a function and call it once, so that one that answers anything but True or False is refused before any work.

    Raises:
        ConfigError: As ``load_step_rule``.
        DataFormatError: If it raises an exception, or returns something else.
    """
    _asked(name, load_step_rule(name), _ANY_STEP)


def _asked(name: str, function: Callable[[str], object], text: str) -> bool:
    """Return what a function says of an open step."""
    try:
        closes = function(text)
    # Somebody's code, which may raise anything.
    except Exception as error:
        raise DataFormatError(
            f"format.steps: {name!r} must say whether a step ends: it raised {raised(error)} for {text[-80:]!r} -- correct it"
        ) from error
    if not isinstance(closes, bool):
        raise DataFormatError(
            f"format.steps: {name!r} must return True or False: got {closes!r} of type {type(closes).__name__} -- correct it"
        )
    return closes


def forks(rule: StepRule, *, num_tokens: int, logp: float) -> bool:
    """Say whether a step ends before the token that was just sampled, so that the token begins the next step.

    Args:
        rule: The rule; only ``surprise`` ends steps so.
        num_tokens: Tokens of the open step before this one.
        logp: Log-probability of the token at temperature 1.

    Source: Hou et al. 2025, "TreeRL: LLM Reinforcement Learning with On-Policy Tree Search", who branch at the tokens of largest -log p;
    we take those above a threshold, at least ``num_tokens`` apart.
    """
    return rule.name == "surprise" and num_tokens >= rule.num_tokens and -logp >= rule.surprise


def cut_steps(boundary: Boundary, token_ids: Sequence[int]) -> list[tuple[int, ...]]:
    """Cut a solution's tokens into steps where a sampler would end each. The last step may be open."""
    steps, begin = [], 0
    ids = np.asarray(token_ids, dtype=np.int64)
    for end, token in enumerate(token_ids, 1):
        if boundary.closes[token] or (boundary.may_close[token] and boundary.completes(ids[begin:end])):
            steps.append(tuple(token_ids[begin:end]))
            begin = end
    return [*steps, tuple(token_ids[begin:])] if begin < len(token_ids) else steps


class _Never:
    def __init__(self, vocab_size: int) -> None:
        self.closes, self.may_close = np.zeros(vocab_size, dtype=bool), np.zeros(vocab_size, dtype=bool)

    def completes(self, token_ids: Int[np.ndarray, "T"]) -> bool:
        return False


class _Read(_Never):
    """Rules that read an open step as text after each token, any of which may close it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self._text = TokenText(tokenizer)
        self.may_close[[i for i in tokenizer.get_vocab().values() if i < vocab_size]] = True

    def _read(self, token_ids: Int[np.ndarray, "T"]) -> str | None:
        """Return tokens as text; None in the middle of a character, where no step ends, so that the texts of steps are whole."""
        text = self._text.decode_batch([token_ids.tolist()], skip_special=False)[0]
        return None if text.endswith(_REPLACEMENT) else text


class _Decoded(_Read):
    """Rules that look at the end of the text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rule: StepRule, *, vocab_size: int) -> None:
        super().__init__(tokenizer, vocab_size=vocab_size)
        self._rule = rule
        self._pattern = _SENTENCE if rule.pattern is None or rule.name != "pattern" else re.compile(rule.pattern)

    def completes(self, token_ids: Int[np.ndarray, "T"]) -> bool:
        if self._rule.name == "tokens" and len(token_ids) < self._rule.num_tokens:
            return False
        tail = self._read(token_ids[-_TAIL:])
        if tail is None:
            return False
        if self._rule.name == "tokens":
            return True
        return self._pattern.search(tail) is not None and (self._rule.name == "pattern" or _WORD.search(tail) is not None)


class _Called(_Read):
    """A function, which is called with the text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, *, vocab_size: int) -> None:
        super().__init__(tokenizer, vocab_size=vocab_size)
        self._name, self._function = name, load_step_rule(name)

    def completes(self, token_ids: Int[np.ndarray, "T"]) -> bool:
        text = self._read(token_ids)
        return text is not None and _asked(self._name, self._function, text)


class _Either:
    """Two boundaries at once."""

    def __init__(self, first: Boundary, second: Boundary) -> None:
        self._parts = (first, second)
        self.closes = first.closes | second.closes
        self.may_close = first.may_close | second.may_close

    def completes(self, token_ids: Int[np.ndarray, "T"]) -> bool:
        return any(part.may_close[token_ids[-1]] and part.completes(token_ids) for part in self._parts)
