"""A public process reward model as the scorer of a search: the policy's tokens become text, and the text becomes the model's tokens."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from stepladder.interfaces import Ranges, ScoreRequest, ScoreResult
from stepladder.prm.reader import Scores, Solution
from stepladder.prm.requests import SplitPrefix, begun, next_branches

Split = Callable[[tuple[int, ...], Ranges], SplitPrefix | None]
"""Maps the tokens of a prompt and its steps, and the ranges of observations in them, to text; None if they belong to no known problem."""


class SolutionReader(Protocol):
    """Scores written solutions: a ``StepReader`` or a ``Judge``."""

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far."""
        ...

    def reset(self) -> None:
        """Forget everything cached."""
        ...

    def score(self, solutions: Sequence[Solution], *, strict: bool = True) -> list[Scores]:
        """Return the scores of every solution's steps. Unless ``strict``, a solution that does not fit the spec has none."""
        ...


class TextStepScorer:
    """A ``StepScorer`` on a ``StepReader`` or a ``Judge``.

    Only new steps, with their markers, are forwarded: the reader's cache holds shared beginnings. A step scores as None if the reader
    cannot score it, or if it comes after text that does not fit the spec.
    """

    def __init__(self, reader: SolutionReader, *, split: Split, decode: Callable[[Sequence[int]], str]) -> None:
        """Serve a reader.

        Args:
            reader: Scores written solutions.
            split: Finds question and earlier steps of a prefix.
            decode: Returns the text of a step, in the form that ``split`` returns for earlier steps.
        """
        self._reader, self._split, self._decode = reader, split, decode
        self._waiting: deque[ScoreRequest] = deque()

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far."""
        return self._reader.forwarded_tokens

    def reset(self) -> None:
        """Drop the cache and free its memory, so that later results are those of a fresh process."""
        self._reader.reset()

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        """Queue requests."""
        self._waiting.extend(requests)

    def collect(self) -> list[ScoreResult]:
        """Return the results of the oldest requests; empty only when nothing is in flight."""
        batch = next_branches(self._waiting)
        solutions = [self._solutions(request) for request in batch]
        scores = iter(self._reader.score([solution for some in solutions for solution in some], strict=False))
        return [
            ScoreResult(
                ticket=request.ticket,
                scores=tuple(_tail(next(scores), branch) if some else (None,) * len(branch) for branch in request.branches),
            )
            for request, some in zip(batch, solutions, strict=True)
        ]

    def _solutions(self, request: ScoreRequest) -> list[Solution]:
        known = self._split(request.prefix_ids, request.observations)
        if known is None:
            return []
        return [
            Solution(question=known.question, steps=(*known.steps, *begun(known.observation, map(self._decode, branch))))
            for branch in request.branches
        ]


def _tail(scores: Scores, branch: Sequence[Sequence[int]]) -> Scores:
    """Return the scores of the branch's own steps; a step without tokens has none."""
    own = scores[len(scores) - len(branch) :]
    return tuple(score if step else None for score, step in zip(own, branch, strict=True))
