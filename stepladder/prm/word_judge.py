"""A judge that says one word at once: the score of a step is the probability of its word for right, and nothing is sampled."""

from collections.abc import Callable, Sequence

import numpy as np

from stepladder.errors import CheckpointError, ConfigError
from stepladder.prm.judge import judge_prompt
from stepladder.prm.outputs import transform_outputs
from stepladder.prm.reader import Scores, Solution
from stepladder.prm.requests import batches, known_ids
from stepladder.prm.served import TokenOutputs
from stepladder.prm.specs import PRMSpec
from stepladder.remembered import forget_oldest

_MAX_BATCH_TOKENS = 4096
_MAX_KNOWN = 1 << 16
"""Prompts whose scores are remembered from one call to the next."""


class VerdictPrompts:
    """The prompts of a judge that says one word, and the tokens of its two words."""

    def __init__(self, spec: PRMSpec, prompt_ids: Callable[[str], tuple[int, ...]], encode: Callable[[str], Sequence[int]]) -> None:
        """Find the tokens of the words.

        Args:
            spec: A judge's spec with ``verdict_after``.
            prompt_ids: Returns the tokens of a prompt, including the chat template.
            encode: Returns the tokens of a text that follows a prompt.

        Raises:
            ConfigError: If the spec is another.
            CheckpointError: If the tokenizer does not tell the words apart by a token.
        """
        if spec.family != "judge" or not spec.verdict_after or spec.good is None or spec.bad is None:
            raise ConfigError(f"judge: needs a judge's spec with verdict_after: got {spec.family!r} and {spec.verdict_after!r}")
        self.spec, self._prompt_ids = spec, prompt_ids
        good, bad = (tuple(encode(spec.verdict_after + word)) for word in (spec.good, spec.bad))
        shared = next((at for at, pair in enumerate(zip(good, bad, strict=False)) if pair[0] != pair[1]), min(len(good), len(bad)))
        if shared == min(len(good), len(bad)):
            raise CheckpointError(
                f"tokenizer: the words {spec.good!r} and {spec.bad!r} after {spec.verdict_after!r} must differ in a token of each: got "
                f"{good} and {bad} -- use other words"
            )
        self.tail = good[:shared]
        """The tokens before the word."""
        self.words: dict[bool, tuple[int, ...]] = {True: good[shared:], False: bad[shared:]}
        """The tokens of the word for a right step and of that for a wrong one; their first tokens differ."""

    def prompt(self, question: str, steps: Sequence[str]) -> tuple[int, ...]:
        """Return the tokens that ask for the verdict on the last of some steps."""
        return (*self._prompt_ids(judge_prompt(self.spec, question, steps)), *self.tail)


class WordJudge:
    """Scores written solutions by the probability of a word; ``score`` has the form of ``StepReader.score``.

        score = p(good) / (p(good) + p(bad)), p of the first token in which the two words differ

    Source: Xie et al. 2024, "Monte Carlo tree search boosts reasoning via iterative preference learning": self-evaluation.
    """

    def __init__(self, model: TokenOutputs, prompts: VerdictPrompts) -> None:
        """Serve a judge.

        Args:
            model: A language model with two outputs per token: the logits of the first tokens of the bad and of the good word.
            prompts: Ask for verdicts.
        """
        self._model, self._prompts = model, prompts
        self._known: dict[tuple[int, ...], float | None] = {}

    @property
    def spec(self) -> PRMSpec:
        """How verdicts are requested."""
        return self._prompts.spec

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far."""
        return self._model.forwarded_tokens

    def reset(self) -> None:
        """Drop the cache and free its memory, so that later results are those of a fresh process."""
        self._known.clear()
        self._model.clear()

    def score(self, solutions: Sequence[Solution], *, strict: bool = True) -> list[Scores]:
        """Return the scores of every solution's steps, in order; None for a step whose prompt exceeds the model's context.

        Args:
            solutions: The solutions.
            strict: Without meaning here: a judge reads any text.
        """
        forget_oldest(self._known, _MAX_KNOWN)
        prompts = [
            [self._prompts.prompt(each.question, each.steps[: number + 1]) for number in range(len(each.steps))] for each in solutions
        ]
        new = [prompt for prompt in dict.fromkeys(prompt for some in prompts for prompt in some) if prompt not in self._known]
        self._known |= dict(zip(new, self._probabilities(new), strict=True))
        return [tuple(self._known[prompt] for prompt in some) for some in prompts]

    def after(self, paths: Sequence[tuple[int, ...]]) -> list[float | None]:
        """Return the scores of verdicts that were written up to the word, given their tokens with the prompt."""
        return self._probabilities([(*path, *self._prompts.tail) for path in paths])

    def closing(self, good: bool) -> tuple[int, ...]:
        """Return the tokens of the forced closing and of the word."""
        return (*self._prompts.tail, *self._prompts.words[good])

    def critique(self, solution: Solution) -> str:
        """Return nothing: a word is no critique."""
        return ""

    def _probabilities(self, paths: Sequence[tuple[int, ...]]) -> list[float | None]:
        """Return the probability of the good word after every path; None for one that exceeds the context, or holds unknown ids."""
        found: dict[tuple[int, ...], float | None] = dict.fromkeys(paths)
        readable = [ids for ids in found if len(ids) <= self._model.max_positions and known_ids(ids, self._model.vocab_size)]
        for batch in batches(readable, most=_MAX_BATCH_TOKENS, work=len):
            outputs = self._model.outputs(batch, [np.array([len(ids) - 1]) for ids in batch])
            for ids, each in zip(batch, outputs, strict=True):
                score = float(transform_outputs(each[0, 1] - each[0, 0], "sigmoid"))
                found[ids] = score if score == score else None
        return [found[path] for path in paths]
