"""A public process reward model as the scorer of a search: tokens of the policy become text, and text the model's own tokens."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from stepladder.interfaces import ScoreRequest, ScoreResult
from stepladder.prm.reader import Scores, Solution
from stepladder.prm.requests import next_branches

Split = Callable[[tuple[int, ...]], tuple[str, tuple[str, ...]] | None]
"""From the tokens of a prompt and the steps behind it to question and steps; None where they are not of any known problem."""


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
        """Return the scores of every solution's steps; where not ``strict``, a solution that does not fit the spec has none."""
        ...


class TextStepScorer:
    """A ``StepScorer`` on a ``StepReader`` or a ``Judge``.

    Only new steps, with their markers, are forwarded: what solutions share is in the reader's cache. A step that the reader cannot score,
    or that comes behind text which does not fit the spec, is None.
    """

    def __init__(self, reader: SolutionReader, *, split: Split, decode: Callable[[Sequence[int]], str]) -> None:
        """Serve a reader.

        Args:
            reader: Scores written solutions.
            split: Finds question and earlier steps of a prefix.
            decode: Text of a step, as ``split`` gives it for earlier ones.
        """
        self._reader, self._split, self._decode = reader, split, decode
        self._waiting: deque[ScoreRequest] = deque()

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far."""
        return self._reader.forwarded_tokens

    def reset(self) -> None:
        """Forget everything cached and give the memory back, so that what follows is computed as in a fresh process."""
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
        known = self._split(request.prefix_ids)
        if known is None:
            return []
        question, steps = known
        return [Solution(question=question, steps=(*steps, *map(self._decode, branch))) for branch in request.branches]


def _tail(scores: Scores, branch: Sequence[Sequence[int]]) -> Scores:
    """Return the scores of the branch's own steps; a step without tokens has none."""
    own = scores[len(scores) - len(branch) :]
    return tuple(score if step else None for score, step in zip(own, branch, strict=True))
