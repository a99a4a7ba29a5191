"""Fakes with scripted answers and failures: a whole search runs on them in microseconds, without a model."""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from stepladder.errors import BackendError
from stepladder.interfaces import ScoreRequest, ScoreResult, StepRequest, StepResult
from stepladder.types import Problem, Step, StopReason, Verdict

RequestT = TypeVar("RequestT", StepRequest, ScoreRequest)

Propose = Callable[[tuple[int, ...], int, int], Step]
"""(prefix ids, sample index, seed) -> the next step. It is called once per step and must depend only on its arguments."""


def make_step(text: str, *, stop_reason: StopReason = StopReason.STEP, logp: float = -0.5) -> Step:
    """Return a step whose ids are the code points of ``text``, each with log-probability ``logp``."""
    return Step(token_ids=tuple(map(ord, text)), logps=(logp,) * len(text), text=text, stop_reason=stop_reason)


def error_step(message: str) -> Step:
    """Return the step of a failed sample: no tokens, reason ERROR."""
    return Step(token_ids=(), logps=(), text="", stop_reason=StopReason.ERROR, message=message)


class _Arrivals(Generic[RequestT]):
    """Open requests, released in order, or in a random order and in random portions."""

    def __init__(self, shuffle_seed: int | None, raise_after: int | None) -> None:
        self._open: list[RequestT] = []
        self._rng = None if shuffle_seed is None else random.Random(shuffle_seed)
        self._raise_after = raise_after
        self._released = 0

    def add(self, requests: Sequence[RequestT]) -> None:
        self._open.extend(requests)

    def release(self) -> list[RequestT]:
        if self._open and self._raise_after is not None and self._released >= self._raise_after:
            raise BackendError(f"scripted backend: raises after {self._raise_after} results, as scripted")
        if self._rng is None or not self._open:
            ready, self._open = self._open, []
        else:
            self._rng.shuffle(self._open)
            num_ready = self._rng.randint(1, len(self._open))
            ready, self._open = self._open[:num_ready], self._open[num_ready:]
        self._released += len(ready)
        return ready


_MOST_TRIES = 100
"""Entries that a sample goes through for a new step."""


class ScriptedPolicy:
    """A ``Policy`` that reads its steps from a function or a table.

    A table maps prefix ids to the steps that follow. Sample i takes entry i modulo their number. A prefix that is not in the table fails. A
    sample of several steps looks up the longer prefix for each further step. Greedy requests (temperature 0) take sample 0 of seed 0, so
    that they depend only on the prefix. If steps are excluded, a sample goes on through the next entries until its step is a new one.
    """

    samples_distinct = True

    def __init__(
        self,
        propose: Propose | Mapping[tuple[int, ...], Sequence[Step]],
        *,
        shuffle_seed: int | None = None,
        fail_when: Callable[[StepRequest], bool] | None = None,
        max_prefix_tokens: int | None = None,
        raise_after: int | None = None,
    ) -> None:
        """Script a policy.

        Args:
            propose: The steps.
            shuffle_seed: Deliver results in this seed's order and portions; None delivers everything at once, in order.
            fail_when: Says which requests come back as ERROR.
            max_prefix_tokens: Longer prefixes come back as ERROR, as from a model with that context.
            raise_after: Raise ``BackendError`` from ``collect`` after this many results, if more are requested.
        """
        self._propose = _from_table(propose) if isinstance(propose, Mapping) else propose
        self._arrivals = _Arrivals[StepRequest](shuffle_seed, raise_after)
        self._fail_when = fail_when
        self._max_prefix_tokens = max_prefix_tokens
        self.requests: list[StepRequest] = []
        """Every request that was submitted, oldest first."""

    def submit(self, requests: Sequence[StepRequest]) -> None:
        """Queue requests."""
        self.requests.extend(requests)
        self._arrivals.add(requests)

    def collect(self) -> list[StepResult]:
        """Return some or all of the queued requests' results."""
        return [StepResult(ticket=request.ticket, samples=self._answer(request)) for request in self._arrivals.release()]

    def _answer(self, request: StepRequest) -> tuple[tuple[Step, ...], ...]:
        message = self._refusal(request)
        if message is not None:
            return ((error_step(message),),) * request.num_samples
        if request.excluded is not None:
            return self._distinct(request, request.excluded)
        return tuple(self._sample(request, index) for index in range(request.num_samples))

    def _refusal(self, request: StepRequest) -> str | None:
        if self._fail_when is not None and self._fail_when(request):
            return "scripted failure"
        if self._max_prefix_tokens is not None and len(request.prefix_ids) > self._max_prefix_tokens:
            return f"prefix must have at most {self._max_prefix_tokens} tokens: got {len(request.prefix_ids)}"
        return None

    def _distinct(self, request: StepRequest, excluded: Sequence[Step]) -> tuple[tuple[Step, ...], ...]:
        """Let every sample go on through the next indices until its step is new, and give up after a hundred."""
        known = {step.token_ids for step in excluded}
        samples = []
        for index in range(request.num_samples):
            tries = (self._sample(request, at) for at in range(index, index + _MOST_TRIES))
            sample = next((steps for steps in tries if steps[0].token_ids not in known), None) or self._sample(request, index)
            known.add(sample[0].token_ids)
            samples.append(sample)
        return tuple(samples)

    def _sample(self, request: StepRequest, index: int) -> tuple[Step, ...]:
        greedy = request.temperature == 0
        prefix, steps, left = request.prefix_ids, [], math.inf if request.max_tokens is None else request.max_tokens
        while len(steps) < request.max_steps and (not steps or steps[-1].stop_reason == StopReason.STEP):
            step = _cut(self._propose(prefix, 0 if greedy else index, 0 if greedy else request.seed), min(request.max_step_tokens, left))
            left -= len(step.token_ids)
            if step.stop_reason == StopReason.STEP and len(steps) + 1 < request.max_steps and left <= 0:
                step = replace(step, stop_reason=StopReason.LENGTH)
            steps.append(step)
            prefix += step.token_ids + step.given_ids
        return tuple(steps)


def _from_table(table: Mapping[tuple[int, ...], Sequence[Step]]) -> Propose:
    def propose(prefix_ids: tuple[int, ...], index: int, seed: int) -> Step:
        steps = table.get(prefix_ids)
        return steps[index % len(steps)] if steps else error_step("prefix is not in the table")

    return propose


def _cut(step: Step, max_tokens: float) -> Step:
    """Return the step, cut to the token limit as an engine would cut it. Its text keeps one character per kept token."""
    if len(step.token_ids) <= max_tokens:
        return step
    kept = slice(int(max_tokens))
    return Step(token_ids=step.token_ids[kept], logps=step.logps[kept], text=step.text[kept], stop_reason=StopReason.LENGTH)


class TableScorer:
    """A ``StepScorer`` that looks up scores by all tokens from the prompt to the end of the step."""

    def __init__(
        self,
        score: Callable[[tuple[int, ...]], float | None] | Mapping[tuple[int, ...], float | None],
        *,
        shuffle_seed: int | None = None,
        raise_after: int | None = None,
    ) -> None:
        """Script a scorer.

        Args:
            score: The scores. A prefix that is not in the table gets none.
            shuffle_seed: Deliver results in this seed's order and portions; None delivers everything at once, in order.
            raise_after: Raise ``BackendError`` from ``collect`` once so many results were delivered and more are wanted.
        """
        self._score = score.get if isinstance(score, Mapping) else score
        self._arrivals = _Arrivals[ScoreRequest](shuffle_seed, raise_after)
        self.num_scored: Counter[tuple[int, ...]] = Counter()
        """How often each step was scored, by all tokens up to its end."""

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        """Queue requests."""
        self._arrivals.add(requests)

    def collect(self) -> list[ScoreResult]:
        """Return some or all of the queued requests' results."""
        return [
            ScoreResult(ticket=request.ticket, scores=tuple(self._branch(request.prefix_ids, branch) for branch in request.branches))
            for request in self._arrivals.release()
        ]

    def _branch(self, prefix_ids: tuple[int, ...], steps: tuple[tuple[int, ...], ...]) -> tuple[float | None, ...]:
        scores = []
        for step in steps:
            prefix_ids += step
            self.num_scored[prefix_ids] += 1
            scores.append(self._score(prefix_ids))
        return tuple(scores)


class ExactVerifier:
    """A ``Verifier`` that compares strings."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        """Hold the reference answer of every problem id."""
        self._answers = dict(answers)

    def grade(self, answers: Sequence[tuple[str, str | None]]) -> list[Verdict]:
        """Grade (problem id, final answer or None) pairs, in order."""
        return [self._verdict(problem_id, answer) for problem_id, answer in answers]

    def _verdict(self, problem_id: str, answer: str | None) -> Verdict:
        if answer is None:
            return Verdict(correct=False, reason="unreadable")
        correct = answer == self._answers[problem_id]
        return Verdict(correct=correct, reason="exact match" if correct else "differs")


class CharRenderer:
    """A ``Renderer`` whose tokens are characters: the id of a character is its code point."""

    def __init__(self, *, answer_pattern: str = r"=([^=\n]*)\n?\Z") -> None:
        """Read answers with ``answer_pattern``, whose first group is the answer. The default takes the text after the last ``=``."""
        self._answer = re.compile(answer_pattern)
        self.hash = f"char:{answer_pattern}"

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """Return the code points of the question and a newline."""
        return self.encode(problem.question + "\n")

    def extract_answer(self, text: str) -> str | None:
        """Return the final answer of a solution, or None."""
        match = self._answer.search(text)
        return match.group(1) if match else None

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the code points of a text."""
        return tuple(map(ord, text))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of some code points."""
        return "".join(map(chr, token_ids))
