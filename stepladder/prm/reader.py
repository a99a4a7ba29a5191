"""Scores of written solutions: lay them out under a spec, read them with a model, and return one score per step.

Whatever two solutions share is forwarded once: scoring a solution again with one more step forwards that step and its marker. What cannot
be scored is None, and the caller counts it; a solution that breaks the spec is an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from stepladder.errors import ConfigError, DataFormatError
from stepladder.prm.layout import Layout, SolutionLayout
from stepladder.prm.readings import Reading
from stepladder.prm.requests import batches, known_ids
from stepladder.prm.specs import PRMSpec

Scores = tuple[float | None, ...]
"""One score in [0, 1] per step; None if the step could not be scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """A question and steps that are to be scored."""

    question: str
    """The question."""
    steps: tuple[str, ...]
    """The steps, in order."""
    place: str = "solution"
    """Its source, such as file and line, for messages."""


class StepReader:
    """Scores the steps of written solutions.

    A step is None when it has no tokens, when it ends beyond the model's context, or when the model's output is not a number.
    """

    def __init__(self, reading: Reading, tokenizer: PreTrainedTokenizerBase, spec: PRMSpec, *, max_batch_tokens: int = 4096) -> None:
        """Read scores off a model that is served already.

        Args:
            reading: The model, as its family reads it.
            tokenizer: The model's tokenizer.
            spec: Layout of solutions.
            max_batch_tokens: Tokens of the solutions scored together, >= 1; exceeded if one solution is longer.

        Raises:
            CheckpointError: If the tokenizer is not the one that the spec means.
        """
        self.spec = spec
        # The policy's own tokens need no layout: ``read`` takes them as they are.
        self.layout = None if spec.prompt == "tokens" else SolutionLayout(tokenizer, spec)
        self._reading, self._max_batch_tokens = reading, max_batch_tokens

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far; through an implicit model's reference go as many."""
        return self._reading.forwarded_tokens

    def knows(self, token_ids: Sequence[int]) -> bool:
        """Say whether the model, and its reference, have an embedding for every id."""
        return known_ids(token_ids, self._reading.vocab_size)

    def reset(self) -> None:
        """Drop the cache and free its memory, so that later results are those of a fresh process."""
        self._reading.clear()

    def score(self, solutions: Sequence[Solution], *, strict: bool = True) -> list[Scores]:
        """Return the scores of every solution's steps, in order.

        Args:
            solutions: The solutions.
            strict: Refuse a solution that does not fit the spec: it holds the marker, or the tokenizer merges it with a step. Otherwise
                none of its steps has a score, as befits text that a policy made up.

        Raises:
            DataFormatError: If ``strict`` and a solution does not fit the spec.
        """
        if self.spec.read != "text-end":
            return self.read([self._laid_out(each, strict) for each in solutions])
        texts = [replace(each, steps=each.steps[: number + 1]) for each in solutions for number in range(len(each.steps))]
        last = iter([scores[-1] for scores in self.read([self._laid_out(each, strict) for each in texts])])
        return [tuple(next(last) for _ in each.steps) for each in solutions]

    @torch.inference_mode()
    def read(self, layouts: Sequence[Layout]) -> list[Scores]:
        """Return the scores of the steps of laid-out solutions, in order. A step that ends outside the context has none."""
        layouts = [self._fitting(layout) for layout in layouts]
        scores: list[Scores] = []
        for batch in batches(layouts, most=self._max_batch_tokens, work=lambda layout: len(layout.token_ids)):
            read = iter(self._reading.scores([layout for layout in batch if layout.token_ids]))
            scores += [_spread(layout, next(read) if layout.token_ids else np.zeros(0)) for layout in batch]
        return scores

    def _laid_out(self, solution: Solution, strict: bool) -> Layout:
        if self.layout is None:
            raise ConfigError("PRM spec: the model reads the policy's tokens and no text -- use ImplicitStepScorer")
        try:
            return self.layout.lay_out(solution.question, solution.steps, place=solution.place)
        except DataFormatError:
            if strict:
                raise
            return Layout(token_ids=(), begin=0, reads=(None,) * len(solution.steps))

    def _fitting(self, layout: Layout) -> Layout:
        """Cut a layout after the last step that fits the model's context."""
        room = self._reading.max_positions
        if len(layout.token_ids) <= room:
            return layout
        reads = tuple(read if read is not None and read < room else None for read in layout.reads)
        stop = max((read + 1 for read in reads if read is not None), default=0)
        return replace(layout, token_ids=layout.token_ids[:stop], reads=reads)


def _spread(layout: Layout, scores: Float[np.ndarray, "S"]) -> Scores:
    """Put the scores of the steps that were read back among those that were not."""
    values = iter(scores.tolist())
    return tuple(None if read is None or (score := next(values)) != score else score for read in layout.reads)
