"""A generative judge: a language model writes a verdict on every step, several times, and the verdicts vote."""

import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal, NamedTuple, Protocol

from stepladder.errors import ConfigError
from stepladder.interfaces import Policy, StepRequest, collect_all
from stepladder.prm.layout import filled
from stepladder.prm.reader import Scores, Solution
from stepladder.prm.specs import PRMSpec
from stepladder.remembered import forget_oldest
from stepladder.types import Step, derive_seed

Vote = Literal["mean", "majority"]
_MAX_KNOWN = 1 << 16
"""Steps whose verdicts are remembered from one call to the next."""


class Thought(NamedTuple):
    """A run of neighbouring steps with the same verdict."""

    begin: int
    """Index of its first step."""
    end: int
    """Index after its last step."""
    good: bool | None
    """The verdict; None if it could not be read."""


def judge_prompt(spec: PRMSpec, question: str, steps: Sequence[str]) -> str:
    """Return the prompt of a judge on the last of some steps, given those before it."""
    *previous, step = steps
    return filled(spec.question, question=question, previous="\n\n".join(previous), step=step)


def read_verdict(text: str, spec: PRMSpec) -> bool | None:
    """Read the verdict of a judge's text: True for the spec's good word, False for the bad one, None for neither. The last match counts."""
    words = re.findall(spec.verdict, text)
    word = words[-1] if words else None
    return True if word == spec.good else False if word == spec.bad else None


def vote(verdicts: Sequence[bool | None], *, rule: Vote = "mean") -> float | None:
    """Return the score of a step from its verdicts, in [0, 1]. Unreadable verdicts do not vote; None if all are unreadable.

    Args:
        verdicts: The verdicts.
        rule: ``mean`` is the share of good ones, ``majority`` 1 or 0 for most of them and 0.5 for a tie.
    """
    known = [verdict for verdict in verdicts if verdict is not None]
    if not known:
        return None
    share = sum(known) / len(known)
    return share if rule == "mean" else 0.5 if share == 0.5 else float(share > 0.5)


def merge_runs(scores: Sequence[float | None], *, threshold: float = 0.5) -> list[Thought]:
    """Merge the steps of a solution into thoughts: neighbours with the same verdict become one.

    Args:
        scores: Scores of the steps.
        threshold: A step is good from this score on.
    """
    thoughts, at = [], 0
    for good, run in groupby(None if score is None else score >= threshold for score in scores):
        length = sum(1 for _ in run)
        thoughts.append(Thought(at, at + length, good))
        at += length
    return thoughts


class Verdict(NamedTuple):
    """A verdict on a step, as a judge wrote it."""

    prompt_ids: tuple[int, ...]
    """The question, and the forced opening."""
    completion_ids: tuple[int, ...]
    """What the judge wrote, its word included."""
    text: str
    """The same as text, without a word that is only read."""
    good: bool | None
    """What it says; None if that could not be read."""


class ReadWord(Protocol):
    """Reads the word that a judge would say after what it has written: a ``WordJudge``."""

    def after(self, paths: Sequence[tuple[int, ...]]) -> list[float | None]:
        """Return the probability of the good word after written verdicts, given their tokens with the prompt."""
        ...

    def closing(self, good: bool) -> tuple[int, ...]:
        """Return the tokens of the forced closing and of the word."""
        ...


class _Asked(NamedTuple):
    prompt: str
    opening: str


class _Judged(NamedTuple):
    score: float | None
    critique: str


class Judge:
    """Scores the steps of written solutions by verdicts; ``score`` has the form of ``StepReader.score``."""

    def __init__(
        self,
        policy: Policy,
        spec: PRMSpec,
        prompt_ids: Callable[[str], tuple[int, ...]],
        *,
        seed: int = 0,
        rule: Vote = "mean",
        max_tokens: int = 1024,
        temperature: float = 1.0,
        encode: Callable[[str], tuple[int, ...]] = lambda text: (),
        word: ReadWord | None = None,
    ) -> None:
        """Serve a judge.

        Args:
            policy: Writes the verdicts; its solution ends where the spec's verdict pattern matches.
            spec: A judge's spec.
            prompt_ids: Returns the tokens of a prompt, including the chat template.
            seed: Seed of the samples; each verdict's depends on it, the solution's text and the step alone.
            rule: How verdicts vote.
            max_tokens: Cap on the tokens of one line of a verdict, >= 1.
            temperature: Of the samples, >= 0.
            encode: Returns the tokens of the opening of a verdict.
            word: Reads the word after a written verdict; None finds the words in the texts and has them vote.

        Raises:
            ConfigError: If the spec is no judge's.
        """
        if spec.family != "judge":
            raise ConfigError(f"judge: needs a judge's spec: got {spec.family!r} -- use stepladder.prm.reader")
        self.spec = spec
        self._policy, self._prompt_ids = policy, prompt_ids
        self._seed, self._max_tokens, self._temperature = seed, max_tokens, temperature
        self._rule: Vote = rule
        self._encode, self._word = encode, word
        self._known: dict[_Asked, _Judged] = {}
        self.forwarded_tokens = 0
        """Tokens of the prompts and the verdicts so far."""

    def reset(self) -> None:
        """Forget the verdicts given so far."""
        self._known.clear()

    def score(self, solutions: Sequence[Solution], *, strict: bool = True) -> list[Scores]:
        """Return the scores of every solution's steps, in order; None if no verdict could be read.

        Verdicts are remembered: they depend on the prompt alone, so the same step after the same beginning gets the same ones.

        Args:
            solutions: The solutions.
            strict: Without meaning here: a judge reads any text.
        """
        # Before the work, so that ``critique`` finds every verdict of this call.
        forget_oldest(self._known, _MAX_KNOWN)
        prompts = [[self._asked(solution, step) for step in range(len(solution.steps))] for solution in solutions]
        new = [prompt for prompt in dict.fromkeys(prompt for steps in prompts for prompt in steps) if prompt not in self._known]
        for asked, verdicts in zip(new, self._written(new, self.spec.num_verdicts), strict=True):
            texts = [verdict.text for verdict, _ in sorted(verdicts, key=lambda each: each[0].good is not False)]
            self._known[asked] = _Judged(self._score(verdicts), texts[0])
        return [tuple(self._known[prompt].score for prompt in steps) for steps in prompts]

    def critique(self, solution: Solution) -> str:
        """Return a verdict on the last step of a scored solution as text: the first one that says that it is wrong, if any does."""
        return self._known[self._asked(solution, len(solution.steps) - 1)].critique

    def verdicts(self, solutions: Sequence[Solution], *, num_verdicts: int) -> list[list[Verdict]]:
        """Return new verdicts on the last step of every solution.

        Args:
            solutions: Solutions of at least one step.
            num_verdicts: Verdicts on each, >= 1.
        """
        asked = [self._asked(solution, len(solution.steps) - 1) for solution in solutions]
        return [[verdict for verdict, _ in verdicts] for verdicts in self._written(asked, num_verdicts)]

    def _written(self, prompts: Sequence["_Asked"], num_verdicts: int) -> list[list[tuple[Verdict, float | None]]]:
        """Have the policy write verdicts on some prompts, and return them with the probabilities of their good words."""
        requests = [self._request(ticket, asked, num_verdicts) for ticket, asked in enumerate(prompts)]
        found = []
        for request, result in zip(requests, collect_all(self._policy, requests), strict=True):
            self.forwarded_tokens += sum(len(step.token_ids) for sample in result.samples for step in sample)
            found.append(self._read(request.prefix_ids, result.samples))
        return found

    def _read(self, prefix_ids: tuple[int, ...], samples: Sequence[Sequence[Step]]) -> list[tuple[Verdict, float | None]]:
        texts = ["".join(step.text for step in sample) for sample in samples]
        written = [tuple(token for step in sample for token in step.token_ids) for sample in samples]
        if self._word is None:
            said = [read_verdict(text, self.spec) for text in texts]
            scores = [None if good is None else float(good) for good in said]
        else:
            scores = self._word.after([(*prefix_ids, *ids) for ids in written])
            said = [None if score is None else score > 0.5 for score in scores]
            written = [ids if good is None else (*ids, *self._word.closing(good)) for ids, good in zip(written, said, strict=True)]
        return [(Verdict(prefix_ids, ids, text, good), score) for ids, text, good, score in zip(written, texts, said, scores, strict=True)]

    def _score(self, verdicts: Sequence[tuple[Verdict, float | None]]) -> float | None:
        """Return the score of a step from verdicts on it."""
        if self._word is None:
            return vote([verdict.good for verdict, _ in verdicts], rule=self._rule)
        known = [score for _, score in verdicts if score is not None]
        return sum(known) / len(known) if known else None

    def _asked(self, solution: Solution, step: int) -> "_Asked":
        opening = filled(self.spec.opening, number=str(step + 1))
        return _Asked(judge_prompt(self.spec, solution.question, solution.steps[: step + 1]), opening)

    def _request(self, ticket: int, asked: "_Asked", num_verdicts: int) -> StepRequest:
        prompt = asked.prompt
        prefix_ids = (*self._prompt_ids(prompt), *(self._encode(asked.opening) if asked.opening else ()))
        self.forwarded_tokens += len(prefix_ids)
        return StepRequest(
            ticket=ticket,
            prefix_ids=prefix_ids,
            num_samples=1 if self._temperature == 0 else num_verdicts,
            seed=derive_seed(self._seed, "judge", prompt),
            temperature=self._temperature,
            max_step_tokens=self._max_tokens,
            max_steps=self._max_tokens,
        )
