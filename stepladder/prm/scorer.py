"""Step scores from a transformers model that reads the policy's own tokens, each step forwarded once."""

from collections import deque
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel

from stepladder.errors import BackendError
from stepladder.interfaces import ScoreRequest, ScoreResult
from stepladder.lm.flat import FlatModel
from stepladder.lm.prefix_cache import AttachedHead, PathGroup, PrefixCache
from stepladder.lm.slots import Placement
from stepladder.prm.outputs import check_entropy_penalty, scores_of
from stepladder.prm.requests import known_ids, next_batch
from stepladder.prm.specs import PRMSpec, check_reads_tokens

Scores = tuple[tuple[float | None, ...], ...]
"""The scores of a request's branches."""


class TransformersStepScorer:
    """A ``StepScorer`` that reads a value head, or two classes, at the last token of each step, or at the one before it.

    Siblings share the forward pass of their prefix, and a step that was scored before is read from the cache. A step without tokens
    scores as None, because it has no last token. So does a step that ends outside the model's context, contains an id that the model does
    not have, comes after such a step, or gets an output that is not a number.
    """

    def __init__(
        self,
        model: PreTrainedModel | AttachedHead,
        spec: PRMSpec,
        *,
        entropy_penalty: float = 0.0,
        max_batch_tokens: int = 4096,
        cache_tokens: int | None = None,
    ) -> None:
        """Serve a model.

        Args:
            model: A causal body with ``spec.num_outputs`` outputs per token, on its device; or a head on a body, whose cache is shared
                with others, such as the policy that samples the steps.
            spec: How scores are read.
            entropy_penalty: As for ``scores_of``.
            max_batch_tokens: New tokens forwarded in one pass, >= 1; a shared cache has its own number.
            cache_tokens: Tokens that the prefix cache keeps; None takes a share of the memory. A shared cache has its own number.

        Raises:
            BackendError: If the model's attention cannot be cached or its head has another number of outputs.
            ConfigError: If the spec reads text instead of the policy's tokens, or there are no bins with an entropy.
        """
        check_reads_tokens(spec)
        check_entropy_penalty(entropy_penalty, spec)
        self.spec = spec
        self._entropy_penalty = entropy_penalty
        self._lag = int(spec.read == "before-end")
        if isinstance(model, AttachedHead):
            found, (self._model, self._cache, self._columns, self._sampled) = model.columns.stop - model.columns.start, model
        else:
            found, self._model, self._sampled = model.config.num_labels, FlatModel(model), None
            self._columns = slice(0, spec.num_outputs)
            self._cache = PrefixCache(self._model, max_tokens=cache_tokens, pass_tokens=max_batch_tokens, num_outputs=spec.num_outputs)
        if found != spec.num_outputs:
            raise BackendError(f"{spec.family}: must have {spec.num_outputs} outputs per token: got {found}")
        self.forwarded_tokens = 0
        """Tokens that this scorer put through the model so far, prefixes included; not those of others that share the cache."""
        self._max_batch_tokens = max_batch_tokens
        self._waiting: deque[ScoreRequest] = deque()

    def reset(self) -> None:
        """Drop the cache and free its memory, so that later results are those of a fresh process."""
        self._cache.clear()

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        """Queue requests."""
        self._waiting.extend(requests)

    @torch.inference_mode()
    def collect(self) -> list[ScoreResult]:
        """Return the results of the oldest requests, as many as fill a pass, at least one; empty only when nothing is in flight."""
        batch = next_batch(self._waiting, most=self._max_batch_tokens, work=_num_new_tokens)
        found = [self._sampled_scores(request) for request in batch]
        read = iter(self._read([request for request, scores in zip(batch, found, strict=True) if scores is None]))
        return [
            ScoreResult(ticket=request.ticket, scores=next(read) if scores is None else scores)
            for request, scores in zip(batch, found, strict=True)
        ]

    def _sampled_scores(self, request: ScoreRequest) -> Scores | None:
        """Return the scores of steps whose outputs are there since they were sampled; None if one has to be looked for in the cache."""
        if self._sampled is None:
            return None
        outputs = []
        for branch in request.branches:
            path = request.prefix_ids
            for step in branch:
                path += step
                found = self._sampled.get(path) if step else None
                if found is None:
                    return None
                outputs.append(found[self._columns])
        scores = iter(self._scores_of(np.array(outputs))) if outputs else iter(())
        return tuple(tuple(next(scores) for _ in branch) for branch in request.branches)

    def _read(self, batch: Sequence[ScoreRequest]) -> list[Scores]:
        """Return scores from the cache, after whatever is missing there went through the model."""
        counts = [self._num_scorable(request) for request in batch]
        groups = [_path_group(request, numbers) for request, numbers in zip(batch, counts, strict=True)]
        before = self._model.forwarded_tokens
        placed = iter(self._cache.extend([group for group in groups if group is not None]))
        self.forwarded_tokens += self._model.forwarded_tokens - before
        return [
            self._scores(request, numbers, None if group is None else next(placed))
            for request, numbers, group in zip(batch, counts, groups, strict=True)
        ]

    def _num_scorable(self, request: ScoreRequest) -> list[int]:
        """Return how many leading steps of each branch the model can read."""
        room = self._model.max_positions - len(request.prefix_ids)
        if room < 0 or not request.prefix_ids or not known_ids(request.prefix_ids, self._model.vocab_size):
            return [0] * len(request.branches)
        return [self._num_readable(branch, room) for branch in request.branches]

    def _num_readable(self, branch: Sequence[Sequence[int]], room: int) -> int:
        steps = enumerate(zip(accumulate(map(len, branch)), branch, strict=True))
        return next((i for i, (end, step) in steps if end > room or not known_ids(step, self._model.vocab_size)), len(branch))

    def _scores(self, request: ScoreRequest, counts: Sequence[int], placed: Sequence[Placement] | None) -> Scores:
        if placed is None:
            return tuple((None,) * len(branch) for branch in request.branches)
        return tuple(
            self._branch_scores(branch, count, begin=len(request.prefix_ids), slots=placement.slots)
            for branch, count, placement in zip(request.branches, counts, placed, strict=True)
        )

    def _branch_scores(self, branch: Sequence[Sequence[int]], count: int, *, begin: int, slots: np.ndarray) -> tuple[float | None, ...]:
        """Return the scores of a branch: its first ``count`` steps are read, and its prefix has ``begin`` tokens."""
        ends = begin + np.cumsum([len(step) for step in branch[:count]], dtype=np.int64)
        scores = self._scores_of(self._cache.outputs(slots[ends - 1 - self._lag])[:, self._columns])
        read = [score if step else None for step, score in zip(branch, scores, strict=False)]
        return (*read, *(None,) * (len(branch) - count))

    def _scores_of(self, outputs: Float[np.ndarray, "S F"]) -> list[float | None]:
        """Return scores of outputs; None if one is not a number."""
        scores = scores_of(outputs, self.spec, entropy_penalty=self._entropy_penalty).tolist()
        return [score if score == score else None for score in scores]


def _num_new_tokens(request: ScoreRequest) -> int:
    """Return the tokens of a request's branches. They are the work, because prefixes are nearly always cached."""
    return sum(len(step) for branch in request.branches for step in branch)


def _path_group(request: ScoreRequest, counts: Sequence[int]) -> PathGroup | None:
    """Return the token paths of the steps that can be scored; None if there are none."""
    if not any(counts):
        return None
    branches = tuple(
        tuple(token for step in branch[:count] for token in step) for branch, count in zip(request.branches, counts, strict=True)
    )
    return PathGroup(prefix_ids=request.prefix_ids, branches=branches)
