"""One reader for every family whose scores are numbers that a model computes: value heads, two classes, vocabulary tokens, implicit models.

Solutions are laid out as the spec says, and whatever two of them share is forwarded once: scoring a solution again with one more step
forwards that step and its marker. What cannot be scored is None and is counted by whoever asked; what breaks the spec is an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepladder.errors import ConfigError, DataFormatError
from stepladder.lm.flat import FlatModel
from stepladder.lm.loading import load_tokenizer
from stepladder.lm.prefix_cache import PathGroup, PrefixCache
from stepladder.prm.checkpoints import load_bare_lm, load_reward_model
from stepladder.prm.layout import Layout, SolutionLayout
from stepladder.prm.outputs import check_entropy_penalty, scores_of, transform_outputs
from stepladder.prm.requests import known_ids
from stepladder.prm.specs import PRMSpec, resolve_reference

Scores = tuple[float | None, ...]
"""One score in [0, 1] per step; None where the step could not be scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """A question and steps that are to be scored."""

    question: str
    """The question."""
    steps: tuple[str, ...]
    """The steps, in order."""
    place: str = "solution"
    """Where it comes from, such as file and line, for messages."""


class ServedModel(Protocol):
    """A model that reads sequences of tokens."""

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

    def clear(self) -> None:
        """Forget everything cached and give its memory back."""
        ...

    def close(self) -> None:
        """Give everything back that was started for the model, if anything was."""
        ...


class TokenOutputs(ServedModel, Protocol):
    """A model with outputs at every token."""

    def outputs(self, paths: Sequence[tuple[int, ...]], indices: Sequence[np.ndarray]) -> list[Float[np.ndarray, "T F"]]:
        """Return the outputs of every path at some of its tokens."""
        ...


class TokenLogps(ServedModel, Protocol):
    """A language model."""

    def logps(self, paths: Sequence[tuple[int, ...]], starts: Sequence[int]) -> list[Float[np.ndarray, "T"]]:
        """Return the log-probability, in nats, of every path's tokens from ``starts`` on, each >= 1, given all tokens before."""
        ...


class CachedModel:
    """``TokenOutputs`` and ``TokenLogps`` of a transformers model; what paths share, now or later, is forwarded once."""

    def __init__(self, model: PreTrainedModel, *, num_outputs: int, head: nn.Module | None = None) -> None:
        """Serve a model.

        Args:
            model: A model with ``num_outputs`` logits per token; with ``head``, one whose logits are its hidden states.
            num_outputs: Numbers that are kept for every token.
            head: The language head, where log-probabilities are asked for.

        Raises:
            BackendError: If the model's attention cannot be served from a cache.
        """
        self._flat, self._head = FlatModel(model), head
        self._cache = PrefixCache(self._flat, num_outputs=num_outputs)

    @classmethod
    def of_language_model(cls, bare: PreTrainedModel, head: nn.Module) -> "CachedModel":
        """Serve a language model whose logits are its hidden states: these are kept, as whatever comes next is made from them."""
        return cls(bare, num_outputs=int(head.in_features), head=head)  # type: ignore[arg-type]

    @property
    def max_positions(self) -> int:
        """Tokens that a sequence can have."""
        return self._flat.max_positions

    @property
    def vocab_size(self) -> int:
        """Ids that the model knows."""
        return self._flat.vocab_size

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far."""
        return self._flat.forwarded_tokens

    @torch.inference_mode()
    def outputs(self, paths: Sequence[tuple[int, ...]], indices: Sequence[np.ndarray]) -> list[Float[np.ndarray, "T F"]]:
        """Return the outputs of every path at some of its tokens."""
        placed = self._cache.extend([PathGroup(prefix_ids=(), branches=(path,)) for path in paths])
        return [self._cache.outputs(group[0].slots[index]) for group, index in zip(placed, indices, strict=True)]

    @torch.inference_mode()
    def logps(self, paths: Sequence[tuple[int, ...]], starts: Sequence[int]) -> list[Float[np.ndarray, "T"]]:
        """Return the log-probability, in nats, of every path's tokens from ``starts`` on, each >= 1, given all tokens before."""
        indices = [np.arange(start - 1, len(path) - 1) for start, path in zip(starts, paths, strict=True)]
        hidden = self.outputs(paths, indices)
        return [self._next_logps(states, path[start:]) for states, path, start in zip(hidden, paths, starts, strict=True)]

    def clear(self) -> None:
        """Forget everything cached and give its memory back."""
        self._cache.clear()

    def close(self) -> None:
        """Do nothing: the model is the caller's."""

    def _next_logps(self, hidden: Float[np.ndarray, "T F"], targets: Sequence[int]) -> Float[np.ndarray, "T"]:
        assert self._head is not None, "log-probabilities are asked of language models"
        weight = next(self._head.parameters())
        wanted = torch.tensor(targets, device=weight.device)
        logps = []
        # The logits of a whole batch of solutions over a large vocabulary would outweigh the model.
        for states, ids in zip(torch.from_numpy(hidden).split(256), wanted.split(256), strict=True):
            logits = self._head(states.to(device=weight.device, dtype=weight.dtype)).float()
            logps.append(logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0].double().cpu().numpy())
        return np.concatenate([np.zeros(0), *logps])


class StepReader:
    """Scores the steps of written solutions.

    A step is None when it has no tokens, when it ends beyond the model's context, or when the model's output is not a number.
    """

    def __init__(
        self,
        models: Sequence[TokenOutputs] | Sequence[TokenLogps],
        tokenizer: PreTrainedTokenizerBase,
        spec: PRMSpec,
        *,
        entropy_penalty: float = 0.0,
        max_batch_tokens: int = 4096,
    ) -> None:
        """Read scores off models that are served already.

        Args:
            models: The model, with ``spec.num_outputs`` outputs per token; for an implicit spec, language model and reference.
            tokenizer: The model's tokenizer.
            spec: How scores are read.
            entropy_penalty: As for ``scores_of``.
            max_batch_tokens: Tokens of the solutions scored together, >= 1; more where one is longer.

        Raises:
            CheckpointError: If the tokenizer is not the one that the spec means.
            ConfigError: If the spec reads the policy's tokens at a head, is a judge's, or is implicit without a reference; or there are
                no bins whose entropy could count.
        """
        if spec.family == "judge":
            raise ConfigError("PRM spec: a judge writes its verdicts and has no output to read -- use stepladder.prm.judge")
        if (spec.family == "implicit") != (len(models) == 2):
            raise ConfigError("PRM spec: an implicit model, and no other, is read against a reference model -- give --reference")
        check_entropy_penalty(entropy_penalty, spec)
        self.spec = spec
        # The policy's own tokens need no layout: ``read`` takes them as they are.
        self.layout = None if (spec.family, spec.prompt) == ("implicit", "tokens") else SolutionLayout(tokenizer, spec)
        self._entropy_penalty = entropy_penalty
        self._max_batch_tokens = max_batch_tokens
        self._models: list[Any] = list(models)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        spec: PRMSpec,
        *,
        reference: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
    ) -> "StepReader":
        """Load a model, its tokenizer and, for an implicit spec, its reference.

        Raises:
            BackendError: If the model cannot be served; otherwise as for ``load_parts``.
        """
        return cls.on_transformers(
            load_parts(source, spec, reference=reference, device=device, dtype=dtype, trust_remote_code=trust_remote_code), spec
        )

    @classmethod
    def on_transformers(cls, parts: "ReaderParts", spec: PRMSpec, *, entropy_penalty: float = 0.0) -> "StepReader":
        """Serve loaded parts with caches of their own; errors as for the class.

        Raises:
            BackendError: If a model's attention cannot be served from a cache.
        """
        models = [
            CachedModel(model, num_outputs=spec.num_outputs) if head is None else CachedModel.of_language_model(model, head)
            for model, head in parts.models
        ]
        return cls(models, parts.tokenizer, spec, entropy_penalty=entropy_penalty)

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far; through an implicit model's reference go as many."""
        return self._models[0].forwarded_tokens

    def knows(self, token_ids: Sequence[int]) -> bool:
        """Say whether the model, and its reference, have an embedding for every id."""
        return known_ids(token_ids, min(each.vocab_size for each in self._models))

    def reset(self) -> None:
        """Forget everything cached and give the memory back, so that what follows is computed as in a fresh process."""
        for model in self._models:
            model.clear()

    def close(self) -> None:
        """Stop engines, where the models run on some."""
        for model in self._models:
            model.close()

    def score(self, solutions: Sequence[Solution], *, strict: bool = True) -> list[Scores]:
        """Return the scores of every solution's steps, in order.

        Args:
            solutions: The solutions.
            strict: Refuse a solution that does not fit the spec: it holds the marker, or the tokenizer merges it with a step. Otherwise
                none of its steps has a score, as befits text that a policy made up.

        Raises:
            DataFormatError: If ``strict`` and a solution does not fit the spec.
        """
        return self.read([self._laid_out(each, strict) for each in solutions])

    @torch.inference_mode()
    def read(self, layouts: Sequence[Layout]) -> list[Scores]:
        """Return the scores of the steps of solutions that are laid out, in order; one that ends beyond the context has none."""
        layouts = [self._fitting(layout) for layout in layouts]
        scores: list[Scores] = []
        for batch in _batches(layouts, self._max_batch_tokens):
            scores += self._implicit_scores(batch) if self.spec.family == "implicit" else self._read_scores(batch)
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
        room = min(each.max_positions for each in self._models)
        if len(layout.token_ids) <= room:
            return layout
        reads = tuple(read if read is not None and read < room else None for read in layout.reads)
        stop = max((read + 1 for read in reads if read is not None), default=0)
        return Layout(token_ids=layout.token_ids[:stop], begin=layout.begin, reads=reads)

    def _read_scores(self, layouts: Sequence[Layout]) -> list[Scores]:
        readable = [layout for layout in layouts if layout.token_ids]
        indices = [np.array([read for read in layout.reads if read is not None], dtype=np.int64) for layout in readable]
        outputs = iter(self._models[0].outputs([layout.token_ids for layout in readable], indices))
        return [
            _spread(layout, scores_of(next(outputs), self.spec, entropy_penalty=self._entropy_penalty) if layout.token_ids else np.zeros(0))
            for layout in layouts
        ]

    def _implicit_scores(self, layouts: Sequence[Layout]) -> list[Scores]:
        readable = [layout for layout in layouts if layout.token_ids]
        paths = [layout.token_ids for layout in readable]
        # The first token of a sequence has no probability.
        starts = [max(1, layout.begin) for layout in readable]
        logps = [model.logps(paths, starts) for model in self._models]
        ratios = iter(own - other for own, other in zip(*logps, strict=True))
        return [_spread(layout, self._step_scores(layout, next(ratios)) if layout.token_ids else np.zeros(0)) for layout in layouts]

    def _step_scores(self, layout: Layout, ratios: Float[np.ndarray, "T"]) -> Float[np.ndarray, "S"]:
        ends = np.array([read for read in layout.reads if read is not None], dtype=np.int64) + 1 - max(1, layout.begin)
        sums = np.concatenate([[0.0], np.cumsum(ratios)])[np.concatenate([[0], ends])]
        ratios = sums[1:] if self.spec.accumulate else np.diff(sums)
        return transform_outputs(self.spec.beta * ratios, self.spec.transform)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderParts:
    """What a reader on transformers costs in memory, without caches."""

    models: tuple[tuple[PreTrainedModel, nn.Module | None], ...]
    """The model whose logits are the spec's outputs, and no head; of an implicit spec model and reference, whose logits are their hidden
    states, with their language heads."""
    tokenizer: PreTrainedTokenizerBase
    """The model's tokenizer."""


def load_parts(source: str | Path, spec: PRMSpec, *, reference: str | Path | None = None, **options: Any) -> ReaderParts:
    """Load what ``StepReader.on_transformers`` serves.

    Args:
        source: Model directory or hub id.
        spec: How it is read.
        reference: Reference of an implicit model; None takes the one that the spec names.
        options: Device, dtype and trust_remote_code, as for ``load_causal_lm``.

    Raises:
        CheckpointError: If a part is missing or does not fit the spec.
        ConfigError: If device, dtype or reference do not fit.
    """
    tokenizer = load_tokenizer(source, trust_remote_code=options.get("trust_remote_code", False))
    other = resolve_reference(source, spec, reference)
    if other is None:
        return ReaderParts(models=((load_reward_model(source, spec, tokenizer, **options), None),), tokenizer=tokenizer)
    return ReaderParts(models=tuple(load_bare_lm(each, **options) for each in (source, other)), tokenizer=tokenizer)


def _spread(layout: Layout, scores: Float[np.ndarray, "S"]) -> Scores:
    """Put the scores of the steps that were read back among those that were not."""
    values = iter(scores.tolist())
    return tuple(None if read is None or (score := next(values)) != score else score for read in layout.reads)


def _batches(layouts: Sequence[Layout], max_tokens: int) -> list[list[Layout]]:
    batches: list[list[Layout]] = []
    room = 0
    for layout in layouts:
        room -= len(layout.token_ids)
        if not batches or room < 0:
            batches.append([])
            room = max_tokens - len(layout.token_ids)
        batches[-1].append(layout)
    return batches
