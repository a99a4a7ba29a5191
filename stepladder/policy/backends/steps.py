"""What every policy backend must say alike: which tokens are sampled, which requests are refused, and where steps and solutions end.

Axes: V vocabulary.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool
from transformers import PreTrainedTokenizerBase

from stepladder.errors import BackendError
from stepladder.interfaces import StepRequest, StepResult
from stepladder.lm.chat import turn_end
from stepladder.lm.encoding import special_ids
from stepladder.lm.step_rules import Boundary, boundary_of, forks
from stepladder.lm.text import TokenText
from stepladder.policy.prompts import StepFormat
from stepladder.types import Step, StopReason


def end_tokens(tokenizer: PreTrainedTokenizerBase, *settings: Any, vocab_size: int) -> Bool[np.ndarray, "V"]:
    """Return which ids end a sequence: the tokenizer's end-of-sequence, and what ``eos_token_id`` of any of the settings names.

    Args:
        tokenizer: The tokenizer.
        settings: Configurations of the model, such as ``model.config`` and ``model.generation_config``; None is passed over.
        vocab_size: Ids that the model can produce.
    """
    named = [tokenizer.eos_token_id, *(getattr(entry, "eos_token_id", None) for entry in settings)]
    ids = {i for entry in named for i in (entry if isinstance(entry, list) else [entry]) if i is not None and i < vocab_size}
    ends = np.zeros(vocab_size, dtype=bool)
    ends[list(ids)] = True
    return ends


def sampled_tokens(tokenizer: PreTrainedTokenizerBase, boundary: Boundary, ends: Bool[np.ndarray, "V"]) -> Bool[np.ndarray, "V"]:
    """Return which ids may be sampled: those the tokenizer knows, without special tokens that neither end a sequence nor a step.

    A token is special if the tokenizer names it or marks it so among its added tokens; one that holds ``step_end`` closes steps.
    """
    sampled = np.zeros(len(ends), dtype=bool)
    sampled[[i for i in tokenizer.get_vocab().values() if i < len(ends)]] = True
    sampled[[i for i in special_ids(tokenizer) if i < len(ends)]] = False
    return sampled | ends | boundary.closes


def refusal(request: StepRequest, *, vocab_size: int, context: int) -> str | None:
    """Return why a request cannot be served, as one sentence, or None.

    Args:
        request: The request.
        vocab_size: Ids that the model knows.
        context: Tokens that the model can hold, prefix and sample together.
    """
    prefix = request.prefix_ids
    if not prefix or min(prefix) < 0 or max(prefix) >= vocab_size:
        return f"prefix must be one or more ids in [0, {vocab_size}): got {len(prefix)} ids"
    if len(prefix) >= context:
        return f"prefix must leave room in the model's context of {context} tokens: got {len(prefix)}"
    cap = 1 if request.max_tokens is None else request.max_tokens
    if min(request.num_samples, request.max_step_tokens, request.max_steps, cap) < 1:
        return "num_samples, max_step_tokens, max_steps and max_tokens must be at least 1"
    if not 0 <= request.temperature < float("inf"):
        return f"temperature must be at least 0 and finite: got {request.temperature!r}"
    return None


def room_of(request: StepRequest, *, context: int) -> int:
    """Return how many tokens a sample of a request may have: those that fit after the prefix, or its own cap."""
    left = context - len(request.prefix_ids)
    return left if request.max_tokens is None else min(left, request.max_tokens)


def failed_step(message: str) -> Step:
    """Return the step that stands for a failed sample."""
    return Step(token_ids=(), logps=(), text="", stop_reason=StopReason.ERROR, message=message)


def refused(request: StepRequest, message: str) -> StepResult:
    """Return the result of a request that cannot be served."""
    return StepResult(ticket=request.ticket, samples=((failed_step(message),),) * request.num_samples)


class StepRules:
    """What one tokenizer and format may sample, and where their steps and solutions end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, step_format: StepFormat, *settings: Any, vocab_size: int) -> None:
        """Read the rules off a tokenizer, a format and the model's settings, as for ``end_tokens``."""
        self.format = step_format
        self.text = TokenText(tokenizer)
        self.rule = step_format.rule
        """Where steps end."""
        self.boundary = boundary_of(tokenizer, self.rule, vocab_size=vocab_size)
        self.vocab_size = vocab_size
        """Ids that the model can produce."""
        self.ends = end_tokens(tokenizer, *settings, vocab_size=vocab_size)
        """Which ids end a sequence, [V]: with a chat template, what it closes the assistant's turn with is one of them."""
        closing = turn_end(tokenizer) if step_format.chat else None
        if closing is not None and closing < vocab_size:
            self.ends[closing] = True
        self.sampled = sampled = sampled_tokens(tokenizer, self.boundary, self.ends)
        """Which ids may be sampled, [V]."""
        specials = {i for i in special_ids(tokenizer) if i < vocab_size and not sampled[i]}
        self.forbidden = specials
        """Special tokens that must not be sampled."""
        self.never_sampled = [*sorted(specials), *(i for i in np.flatnonzero(~sampled).tolist() if i not in specials)]
        """Ids that must not be sampled, special tokens first."""
        self.stop_ids = np.flatnonzero(self.ends).tolist()
        """Ids that end a sequence, ascending."""
        plain = sampled & ~self.ends & ~self.boundary.closes & ~self.boundary.may_close
        if self.rule.name == "surprise":
            plain = np.zeros_like(plain)
        self.is_plain = plain.tobytes()
        """Per id, 1 if no rule has anything to say about it, else 0: a string of bytes, which Python indexes faster than an array."""

    def closes(self, step_ids: list[int]) -> bool:
        """Say whether the last token of an open step completes the text that closes it."""
        token = step_ids[-1]
        if self.boundary.closes[token] or not self.boundary.may_close[token]:
            return bool(self.boundary.closes[token])
        return self.boundary.completes(np.asarray(step_ids))

    def stop_reason(self, text: str, *, question: str, at_end: bool, closed: bool, starved: bool) -> StopReason:
        """Return why a step ended.

        Args:
            text: The step.
            question: The question, or nothing if it is not known.
            at_end: Whether its last token ends the sequence.
            closed: Whether its last token completes the text that closes it.
            starved: Whether more steps are wanted and the sample has no room for them.
        """
        if at_end or (closed and self.format.is_final(text, question)):
            return StopReason.END
        return StopReason.LENGTH if starved or not closed else StopReason.STEP


class OpenSample:
    """One sample while its tokens arrive."""

    def __init__(self, rules: StepRules, request: StepRequest, *, context: int) -> None:
        """Begin a sample of a request that is not refused; ``context`` is what the model can hold, in tokens."""
        self._rules = rules
        self._question = request.question
        self._step_cap, self._max_steps = request.max_step_tokens, request.max_steps
        self.room = room_of(request, context=context)
        """Tokens that the sample may have, >= 1."""
        self._ids: list[int] = []
        self._logps: list[float] = []
        self._count = 0
        self.steps: list[Step] = []
        """Finished steps."""

    @property
    def finished(self) -> bool:
        """Whether no more tokens are wanted."""
        return bool(self.steps) and (self.steps[-1].stop_reason != StopReason.STEP or len(self.steps) >= self._max_steps)

    @property
    def token_ids(self) -> list[int]:
        """All tokens so far."""
        return [*(token for step in self.steps for token in step.token_ids), *self._ids]

    @property
    def open_step(self) -> bool:
        """Whether the last token did not end a step."""
        return bool(self._ids)

    @property
    def tokens_left(self) -> int:
        """Tokens that the open step may still have, >= 1 while the sample is not finished."""
        return min(self.room - self._count, self._step_cap - len(self._ids))

    def feed(self, token: int, logp: float) -> bool:
        """Add a token, and say whether the sample is finished; a special token that must not be sampled is a failure.

        Args:
            token: The sampled id.
            logp: Its log-probability at temperature 1, in nats.

        Raises:
            BackendError: If the log-probability is not a number.
        """
        if not math.isfinite(logp):
            raise BackendError(f"log-probabilities must be finite: got {logp!r} -- check the weights, or use float32")
        if self._rules.is_plain[token]:
            return self._add(token, logp)
        if token in self._rules.forbidden:
            name = self._rules.text.decode_batch([[token]], skip_special=False)[0]
            self.fail(f"special tokens must not be sampled: the engine gave {name!r} ({token}) -- use one that takes a logit_bias")
            return True
        if self._ids and forks(self._rules.rule, num_tokens=len(self._ids), logp=logp):
            self._end_step(at_end=False, closed=True)
            if self.finished:
                # The next request begins with this token, or another one.
                return True
        return self._add(token, logp)

    def _add(self, token: int, logp: float) -> bool:
        """Add a token to the open step, and say whether the sample is finished."""
        rules = self._rules
        self._ids.append(token)
        # Engines compute logits minus a log-sum-exp, which rounding can lift above 0 by a hair.
        self._logps.append(min(logp, 0.0))
        self._count += 1
        at_end = closed = False
        if not rules.is_plain[token]:
            at_end = bool(rules.ends[token])
            closed = not at_end and rules.closes(self._ids)
        if not (at_end or closed or self.tokens_left <= 0):
            return False
        self._end_step(at_end=at_end, closed=closed)
        return self.finished

    def end_here(self) -> None:
        """End the solution after the tokens so far: the engine stopped by itself and did not show the token it stopped at."""
        self._end_step(at_end=True, closed=False)

    def fail(self, message: str) -> None:
        """End the sample with a failed step; tokens of the open step are dropped."""
        self.steps.append(failed_step(message))

    def _end_step(self, *, at_end: bool, closed: bool) -> None:
        text = self._rules.text.decode(self._ids)
        starved = len(self.steps) + 1 < self._max_steps and self._count >= self.room
        reason = self._rules.stop_reason(text, question=self._question, at_end=at_end, closed=closed, starved=starved)
        self.steps.append(Step(token_ids=tuple(self._ids), logps=tuple(self._logps), text=text, stop_reason=reason))
        self._ids, self._logps = [], []
