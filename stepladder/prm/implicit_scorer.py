"""An implicit process reward model, or a surprisal, on the policy's own tokens as the scorer of a search."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate

from stepladder.errors import ConfigError
from stepladder.interfaces import ScoreRequest, ScoreResult
from stepladder.prm.layout import Layout
from stepladder.prm.reader import StepReader
from stepladder.prm.requests import next_branches
from stepladder.prm.specs import PRMSpec


class ImplicitStepScorer:
    """A ``StepScorer`` that reads log-probabilities of steps: the log-ratio of two language models, or the surprisal under one.

    New tokens of a request alone are forwarded. A step without tokens scores as None; so does a step that ends beyond the context of
    either model, holds an id that they do not have, or comes after such a step.
    """

    def __init__(self, reader: StepReader, *, prompt_length: Callable[[tuple[int, ...]], int | None]) -> None:
        """Serve a reader.

        Args:
            reader: Reads an implicit or a surprisal spec with the prompt ``tokens``.
            prompt_length: Returns the number of prompt tokens of a prefix; sums begin after them. None means unknown,
                and nothing after such a prefix has a score.

        Raises:
            ConfigError: If the reader's spec is another.
        """
        if reader.spec.family not in ("implicit", "surprisal") or reader.spec.prompt != "tokens":
            raise ConfigError(f"PRM spec: must be implicit on the policy's tokens: got {reader.spec.family!r} on {reader.spec.prompt!r}")
        self._reader, self._prompt_length = reader, prompt_length
        self._waiting: deque[ScoreRequest] = deque()

    @property
    def spec(self) -> PRMSpec:
        """How scores are read."""
        return self._reader.spec

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far, and through its reference as many."""
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
        layouts = [self._layout(request, branch) for request in batch for branch in request.branches]
        scores = iter(self._reader.read(layouts))
        return [ScoreResult(ticket=request.ticket, scores=tuple(next(scores) for _ in request.branches)) for request in batch]

    def _layout(self, request: ScoreRequest, branch: Sequence[tuple[int, ...]]) -> Layout:
        """Lay out a branch after its prefix. From the first unknown id on nothing is read."""
        prompt = self._prompt_length(request.prefix_ids) if self._reader.knows(request.prefix_ids) else None
        if not prompt:
            return Layout(token_ids=(), begin=0, reads=(None,) * len(branch))
        known = next((i for i, step in enumerate(branch) if not self._reader.knows(step)), len(branch))
        ends = list(accumulate(map(len, branch[:known]), initial=len(request.prefix_ids)))[1:]
        read = tuple(end - 1 if step else None for step, end in zip(branch, ends, strict=False))
        reads = read + (None,) * (len(branch) - known)
        token_ids = (*request.prefix_ids, *(token for step in branch[:known] for token in step))
        if not any(read is not None for read in reads):
            token_ids = ()
        begin = prompt if self.spec.accumulate else len(request.prefix_ids)
        return Layout(token_ids=token_ids, begin=begin, reads=reads, observations=request.observations)
