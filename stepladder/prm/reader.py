"""One reader for every family whose scores are numbers that a model computes: value heads, two classes, vocabulary tokens, implicit models.

Solutions are laid out as the spec says, and whatever two of them share is forwarded once: scoring a solution again with one more step
forwards that step and its marker. What cannot be scored is None and is counted by whoever asked; what breaks the spec is an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepladder.errors import ConfigError, DataFormatError
from stepladder.lm.flat import FlatModel
from stepladder.lm.loading import load_tokenizer
from stepladder.lm.prefix_cache import PathGroup, PrefixCache
from stepladder.prm.layout import Layout, SolutionLayout
from stepladder.prm.loading import load_bare_lm, load_reward_model
from stepladder.prm.outputs import check_entropy_penalty, scores_of, transform_outputs
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


class _CachedModel:
    """A model and the outputs that it gave so far."""

    def __init__(self, model: PreTrainedModel, *, num_outputs: int, pass_tokens: int, cache_tokens: int | None) -> None:
        self.flat = FlatModel(model)
        self.cache = PrefixCache(self.flat, max_tokens=cache_tokens, pass_tokens=pass_tokens, num_outputs=num_outputs)

    def outputs(self, paths: Sequence[tuple[int, ...]], indices: Sequence[np.ndarray]) -> list[Float[np.ndarray, "T F"]]:
        """Return the outputs of every path at some of its tokens."""
        placed = self.cache.extend([PathGroup(prefix_ids=(), branches=(path,)) for path in paths])
        return [self.cache.outputs(group[0].slots[index]) for group, index in zip(placed, indices, strict=True)]


class StepReader:
    """Scores the steps of written solutions.

    A step is None when it has no tokens, when it ends beyond the model's context, or when the model's output is not a number.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: PRMSpec,
        *,
        head: nn.Module | None = None,
        reference: tuple[PreTrainedModel, nn.Module] | None = None,
        entropy_penalty: float = 0.0,
        max_batch_tokens: int = 4096,
        cache_tokens: int | None = None,
    ) -> None:
        """Serve a model.

        Args:
            model: A model with ``spec.num_outputs`` logits per token; for an implicit spec, one whose logits are its hidden states.
            tokenizer: Its tokenizer.
            spec: How scores are read.
            head: The language head of an implicit model.
            reference: The reference of an implicit model, in the same form, with its head.
            entropy_penalty: As for ``scores_of``.
            max_batch_tokens: Tokens of the solutions scored together, >= 1; more where one is longer.
            cache_tokens: Tokens that each prefix cache keeps; None takes a share of the memory.

        Raises:
            BackendError: If the model's attention cannot be served from a cache.
            CheckpointError: If the tokenizer is not the one that the spec means.
            ConfigError: If the spec reads the policy's tokens at a head, is a judge's, or is implicit without a reference; or there are
                no bins whose entropy could count.
        """
        if spec.family == "judge":
            raise ConfigError("PRM spec: a judge writes its verdicts and has no output to read -- use stepladder.prm.judge")
        if (spec.family == "implicit") != (reference is not None and head is not None):
            raise ConfigError("PRM spec: an implicit model, and no other, is read against a reference model -- give --reference")
        check_entropy_penalty(entropy_penalty, spec)
        self.spec = spec
        # The policy's own tokens need no layout: ``read`` takes them as they are.
        self.layout = None if (spec.family, spec.prompt) == ("implicit", "tokens") else SolutionLayout(tokenizer, spec)
        self._entropy_penalty = entropy_penalty
        self._max_batch_tokens = max_batch_tokens
        self._heads = [head, None if reference is None else reference[1]]
        models = [model] if reference is None else [model, reference[0]]
        # Log-probabilities of whatever comes next are made from the hidden states, which are kept like keys and values.
        widths = [spec.num_outputs if layer is None else int(layer.in_features) for layer in self._heads[: len(models)]]  # type: ignore[arg-type]
        self._models = [
            _CachedModel(each, num_outputs=width, pass_tokens=max_batch_tokens, cache_tokens=cache_tokens)
            for each, width in zip(models, widths, strict=True)
        ]

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
        parts = load_parts(source, spec, reference=reference, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        return cls(spec=spec, **parts)

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model so far; through an implicit model's reference go as many."""
        return self._models[0].flat.forwarded_tokens

    def knows(self, token_ids: Sequence[int]) -> bool:
        """Say whether the model, and its reference, have an embedding for every id."""
        size = min(each.flat.vocab_size for each in self._models)
        return not token_ids or (min(token_ids) >= 0 and max(token_ids) < size)

    def reset(self) -> None:
        """Forget everything cached and give the memory back, so that what follows is computed as in a fresh process."""
        for model in self._models:
            model.cache.clear()

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
        room = min(each.flat.max_positions for each in self._models)
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
        indices = [np.arange(start - 1, len(path) - 1) for start, path in zip(starts, paths, strict=True)]
        logps = [
            [
                self._logps(hidden, head, path, start)
                for hidden, path, start in zip(model.outputs(paths, indices), paths, starts, strict=True)
            ]
            for model, head in zip(self._models, self._heads, strict=True)
        ]
        ratios = iter(own - other for own, other in zip(*logps, strict=True))
        return [_spread(layout, self._step_scores(layout, next(ratios)) if layout.token_ids else np.zeros(0)) for layout in layouts]

    def _logps(self, hidden: Float[np.ndarray, "T F"], head: nn.Module | None, path: tuple[int, ...], start: int) -> Float[np.ndarray, "T"]:
        assert head is not None, "an implicit spec has two heads"
        weight = next(head.parameters())
        targets = torch.tensor(path[start:], device=weight.device)
        logps = []
        # The logits of a whole batch of solutions over a large vocabulary would outweigh the model.
        for states, ids in zip(torch.from_numpy(hidden).split(256), targets.split(256), strict=True):
            logits = head(states.to(device=weight.device, dtype=weight.dtype)).float()
            logps.append(logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0].double().cpu().numpy())
        return np.concatenate([np.zeros(0), *logps])

    def _step_scores(self, layout: Layout, ratios: Float[np.ndarray, "T"]) -> Float[np.ndarray, "S"]:
        ends = np.array([read for read in layout.reads if read is not None], dtype=np.int64) + 1 - max(1, layout.begin)
        sums = np.concatenate([[0.0], np.cumsum(ratios)])[np.concatenate([[0], ends])]
        ratios = sums[1:] if self.spec.accumulate else np.diff(sums)
        return transform_outputs(self.spec.beta * ratios, self.spec.transform)


def load_parts(source: str | Path, spec: PRMSpec, *, reference: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Load what a ``StepReader`` is made of, by the names of its arguments: everything that costs memory, and no caches.

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
    other = resolve_reference(source, spec, None if reference is None else str(reference))
    if other is None:
        return {"model": load_reward_model(source, spec, tokenizer, **options), "tokenizer": tokenizer}
    model, head = load_bare_lm(source, **options)
    return {"model": model, "head": head, "tokenizer": tokenizer, "reference": load_bare_lm(other, **options)}


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
