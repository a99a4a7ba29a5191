"""Scores of laid-out solutions: the part of a reader that depends on the family.

Axes: T tokens, F outputs of a token, S steps that are read.
"""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
from jaxtyping import Float

from stepladder.prm.layout import Layout
from stepladder.prm.outputs import check_entropy_penalty, scores_of, transform_outputs
from stepladder.prm.served import ServedModel, TokenLogps, TokenOutputs
from stepladder.prm.specs import PRMSpec

_ModelT = TypeVar("_ModelT", bound=ServedModel)


class Reading(Protocol):
    """Scores laid-out solutions."""

    @property
    def max_positions(self) -> int:
        """Tokens that a sequence can have."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids that the model knows."""
        ...

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far."""
        ...

    def scores(self, layouts: Sequence[Layout]) -> list[Float[np.ndarray, "S"]]:
        """Return the scores in [0, 1] of every solution's steps that have a read token; NaN if an output is not a number.

        Args:
            layouts: Solutions that have tokens and fit into the model's context.
        """
        ...

    def clear(self) -> None:
        """Drop the cache and free its memory."""
        ...


class _OfOneModel(Generic[_ModelT]):
    """A reading of one served model."""

    def __init__(self, model: _ModelT) -> None:
        self._model = model

    @property
    def max_positions(self) -> int:
        """Tokens that a sequence can have."""
        return self._model.max_positions

    @property
    def vocab_size(self) -> int:
        """Ids that the model knows."""
        return self._model.vocab_size

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far."""
        return self._model.forwarded_tokens

    def clear(self) -> None:
        """Drop the cache and free its memory."""
        self._model.clear()


class HeadReading(_OfOneModel[TokenOutputs]):
    """Reads a head's output at one token of every step."""

    def __init__(self, model: TokenOutputs, spec: PRMSpec, *, entropy_penalty: float = 0.0) -> None:
        """Read a model that is served.

        Args:
            model: A model with ``spec.num_outputs`` outputs per token.
            spec: How scores are read.
            entropy_penalty: As for ``scores_of``.

        Raises:
            ConfigError: If there are no bins with an entropy.
        """
        check_entropy_penalty(entropy_penalty, spec)
        super().__init__(model)
        self._spec, self._entropy_penalty = spec, entropy_penalty

    def scores(self, layouts: Sequence[Layout]) -> list[Float[np.ndarray, "S"]]:
        """Return the scores of every solution's steps that are read."""
        indices = [np.array(layout.read_indices, dtype=np.int64) for layout in layouts]
        outputs = self._model.outputs([layout.token_ids for layout in layouts], indices)
        return [scores_of(each, self._spec, entropy_penalty=self._entropy_penalty) for each in outputs]


class SurprisalReading(_OfOneModel[TokenLogps]):
    """Reads how close the mean -log p of every step under a language model is to a wanted one.

        score = exp(-(s - center)^2 / (2 width^2)), s = mean over the step's sampled tokens of -log p, in nats

    The score is 1 at the wanted surprisal and falls to both sides: what is obvious is as little worth as what is noise.

    Source: Materzok 2025, "COS(M+O)S: curiosity and RL-enhanced MCTS for exploring story space via language models" (arXiv 2501.17104): an
        inverted U over surprisal. The form and its two settings are ours.
    """

    def __init__(self, model: TokenLogps, spec: PRMSpec, *, entropy_penalty: float = 0.0) -> None:
        """Read a model that is served.

        Args:
            model: The model.
            spec: How scores are read.
            entropy_penalty: 0, since there are no bins.

        Raises:
            ConfigError: If there is a penalty.
        """
        check_entropy_penalty(entropy_penalty, spec)
        super().__init__(model)
        self._spec = spec

    def scores(self, layouts: Sequence[Layout]) -> list[Float[np.ndarray, "S"]]:
        """Return the scores of every solution's steps that are read; NaN for a step without sampled tokens."""
        starts = [first_token(layout) for layout in layouts]
        logps = self._model.logps([layout.token_ids for layout in layouts], starts)
        return [self._step_scores(layout, each, start) for layout, each, start in zip(layouts, logps, starts, strict=True)]

    def _step_scores(self, layout: Layout, logps: Float[np.ndarray, "T"], start: int) -> Float[np.ndarray, "S"]:
        sums, counts = (sums_of_steps(each, layout, start) for each in (-logps, np.ones(len(logps))))
        with np.errstate(invalid="ignore"):
            distance = (sums / counts - self._spec.center) / self._spec.width
        return np.exp(-0.5 * distance**2)


def first_token(layout: Layout) -> int:
    """Return the first token whose log-probability is read: the first of a sequence has none."""
    return max(1, layout.begin)


def sums_of_steps(values: Float[np.ndarray, "T"], layout: Layout, start: int) -> Float[np.ndarray, "S"]:
    """Return the sums over the sampled tokens of every step that is read, given numbers of the tokens from ``start`` on."""
    sampled = values.copy()
    for first, end in layout.observations:
        sampled[max(first - start, 0) : max(end - start, 0)] = 0.0
    ends = np.array(layout.read_indices, dtype=np.int64) + 1 - start
    return np.diff(np.concatenate([[0.0], np.cumsum(sampled)])[np.concatenate([[0], ends])])


class RatioReading:
    """Reads the log-ratio of two language models over every step: an implicit reward model and its reference."""

    def __init__(self, model: TokenLogps, reference: TokenLogps, spec: PRMSpec, *, entropy_penalty: float = 0.0) -> None:
        """Read models that are served.

        Args:
            model: The model.
            reference: The model that it was trained from.
            spec: How scores are read.
            entropy_penalty: 0, since there are no bins.

        Raises:
            ConfigError: If there is a penalty.
        """
        check_entropy_penalty(entropy_penalty, spec)
        self._models, self._spec = (model, reference), spec

    @property
    def max_positions(self) -> int:
        """Tokens that a sequence can have in both models."""
        return min(each.max_positions for each in self._models)

    @property
    def vocab_size(self) -> int:
        """Ids that both models know."""
        return min(each.vocab_size for each in self._models)

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far; as many went through its reference."""
        return self._models[0].forwarded_tokens

    def scores(self, layouts: Sequence[Layout]) -> list[Float[np.ndarray, "S"]]:
        """Return the scores of every solution's steps that are read."""
        paths = [layout.token_ids for layout in layouts]
        starts = [first_token(layout) for layout in layouts]
        own, other = (model.logps(paths, starts) for model in self._models)
        ratios = [mine - theirs for mine, theirs in zip(own, other, strict=True)]
        return [self._step_scores(layout, each, start) for layout, each, start in zip(layouts, ratios, starts, strict=True)]

    def _step_scores(self, layout: Layout, ratios: Float[np.ndarray, "T"], start: int) -> Float[np.ndarray, "S"]:
        """Return the scores of steps whose tokens, from ``start`` on, have these log-ratios, in nats."""
        by_step = sums_of_steps(ratios, layout, start)
        by_step = np.cumsum(by_step) if self._spec.accumulate else by_step
        return transform_outputs(self._spec.beta * by_step, self._spec.transform)

    def clear(self) -> None:
        """Drop the cache and free its memory."""
        for model in self._models:
            model.clear()
