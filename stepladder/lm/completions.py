"""Completions: rows of tokens in which only the tokens after the prompt are learned, and their log-probabilities under a model.

Axes: B sequences, T positions, V vocabulary; on trees S completions of at most L tokens, P positions with logits, C columns with logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stepladder.lm.chunked_head import CHUNK_BYTES, Head, choice_logps, head_left_out, head_of
from stepladder.lm.packing import Layout, PackedRow, lay_out
from stepladder.lm.trainer import Batch
from stepladder.lm.training_rows import pad, pad_flat
from stepladder.lm.tree_attention import logits_at, run_rows, tree_inputs

IGNORE = -100
"""Target of a position whose prediction is not learned: prompt, given tokens and padding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRow:
    """A prompt and its completion."""

    prompt_ids: list[int]
    """Context, not empty; no loss on it."""
    completion_ids: list[int]
    """Tokens after the prompt, not empty; all but the given ones are learned."""
    group: str = ""
    """Problem of the row."""
    weight: float = 1.0
    """Weight of its tokens in a weighted likelihood, > 0."""
    completion_given: list[bool] = field(default_factory=list)
    """Whether each token of ``completion_ids`` was given instead of sampled; such a token is context. Empty if none was."""

    @property
    def targets(self) -> list[int]:
        """The tokens to learn, with ``IGNORE`` in place of the given ones."""
        if not self.completion_given:
            return self.completion_ids
        return [IGNORE if given else token for token, given in zip(self.completion_ids, self.completion_given, strict=True)]

    @property
    def sequences(self) -> tuple[list[int], ...]:
        """The forwarded tokens: all but the last, which predicts nothing."""
        return ([*self.prompt_ids, *self.completion_ids][:-1],)

    @property
    def length(self) -> int:
        """Positions forwarded."""
        return len(self.prompt_ids) + len(self.completion_ids) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded."""
        return self.length


RowT = TypeVar("RowT", bound=CompletionRow)


def collate_completions(rows: Sequence[CompletionRow]) -> Batch:
    """Lay out one row per sequence, padded on the right.

    Returns:
        ``inputs``: the model's arguments. ``targets``, int64 ``[B, T']``: the token that each of the last T' positions predicts, or
        ``IGNORE`` on prompt, given tokens and padding. T' begins at the first completion token of the row with the shortest prompt.
    """
    start = min(len(row.prompt_ids) for row in rows) - 1
    input_ids = pad([(*row.prompt_ids, *row.completion_ids)[:-1] for row in rows], value=0)
    prompt_targets = [[IGNORE] * (len(row.prompt_ids) - 1 - start) for row in rows]
    targets = [(*ignored, *row.targets) for ignored, row in zip(prompt_targets, rows, strict=True)]
    return {"inputs": {"input_ids": input_ids}, "targets": pad(targets, value=IGNORE)}


def collate_packed_completions(trees: Sequence[PackedRow[RowT]], *, width: int = 0) -> Batch:
    """Lay out trees of completions.

    Returns:
        ``inputs``: arguments of ``run_rows``. ``targets``, int64 ``[S, L]``: the tokens of each of the S completions, ``IGNORE`` in place
        of given ones and after the last.
        ``columns``, ``[C]``: the columns whose logits predict one of these tokens. ``sources``, ``[S, L]``: the index of each token's
        prediction in the B x C logits of these columns. ``positions``, ``choices``, ``[P]``: every distinct pair of such a
        position, counted in the B x T tokens, and a token that it predicts. ``places``, ``[S, L]``: the pair of each token.
    """
    layout = lay_out([tree.tree for tree in trees], width=width)
    paths = [path + offset for tree, offset in zip(trees, layout.offsets, strict=True) for path in tree.tree.paths]
    return read_at(layout, paths, [row for tree in trees for row in tree.rows])


def read_at(layout: Layout, paths: list[np.ndarray], sides: Sequence[CompletionRow]) -> Batch:
    """Return the batch that reads completions along paths. The last prompt token predicts the first completion token."""
    read = [path[len(side.prompt_ids) - 1 :] for path, side in zip(paths, sides, strict=True)]
    positions, lengths = np.concatenate(read), np.array([len(each) for each in read])
    targets = np.fromiter(chain.from_iterable(side.targets for side in sides), dtype=np.int64, count=len(positions))
    tokens = np.maximum(targets, 0)
    # One number stands for a position and a token: numbers sort ten times faster than pairs.
    vocabulary = int(tokens.max()) + 1
    pairs, entries = np.unique(positions * vocabulary + tokens, return_inverse=True)
    return {
        "inputs": tree_inputs(layout),
        "targets": pad_flat(targets, lengths, value=IGNORE),
        **read_columns(positions, lengths, layout.ends.shape[1]),
        "positions": torch.from_numpy(pairs // vocabulary),
        "choices": torch.from_numpy(pairs % vocabulary),
        "places": pad_flat(entries, lengths, value=0),
    }


def read_columns(positions: Int[np.ndarray, " N"], lengths: Int[np.ndarray, " S"], width: int) -> Batch:
    """Return ``columns`` and ``sources`` of ``collate_packed_completions``.

    Args:
        positions: What predicts the tokens of all completions, counted in the B x T tokens, one completion after the other.
        lengths: Tokens of each of the S completions; they sum to N.
        width: T, the tokens of a row.
    """
    rows, places = np.divmod(positions, width)
    columns, indices = np.unique(places, return_inverse=True)
    return {"columns": torch.from_numpy(columns), "sources": pad_flat(rows * len(columns) + indices, lengths, value=0)}


def completion_logps(model: nn.Module, batch: Batch) -> Float[Tensor, "S L"]:
    """Return the log-probability of every completion token of a batch, packed or not; 0 on given tokens and padding.

    If the logits of all positions would be large, they are made a chunk of positions at a time.
    """
    targets, rows = batch["targets"], len(batch["inputs"]["input_ids"])
    columns = len(batch["columns"]) if "sources" in batch else targets.shape[1]
    head = head_of(model)
    if head is not None and 4 * rows * columns * head.linear.out_features > CHUNK_BYTES:
        return _chunked_logps(model, batch, head)
    if "sources" not in batch:
        return token_logps(logits_at(model, batch["inputs"], targets.shape[1]), targets)
    return gathered_logps(logits_at(model, batch["inputs"], batch["columns"]).flatten(0, 1), batch["sources"], targets)


def _chunked_logps(model: nn.Module, batch: Batch, head: Head) -> Float[Tensor, "S L"]:
    targets = batch["targets"]
    with head_left_out(head) as kept:
        run_rows(model, batch["inputs"])
    hidden, computed = kept[0]
    if "sources" in batch:
        logps = choice_logps(hidden.flatten(0, 1)[batch["positions"]], batch["choices"], head, computed=computed)[batch["places"]]
    else:
        read = hidden[:, -targets.shape[1] :].flatten(0, 1)
        logps = choice_logps(read, targets.clamp(min=0).flatten(), head, computed=computed).view(targets.shape)
    return torch.where(targets == IGNORE, 0.0, logps)


def contrast_sums(logps: Float[Tensor, "S L"], batch: Batch) -> Float[Tensor, " S"]:
    """Sum the log-probabilities of every completion over the tokens that the loss compares.

    In a pair, these are the tokens from the first difference on.
    """
    return torch.where(batch["contrast"], logps, 0.0).sum(-1)


def token_logps(logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return the log-probability of every target token.

        logp[b, t] = log softmax(logits[b, t])[targets[b, t]]

    Args:
        logits: Unnormalised, any floating type; the softmax is taken in float32.
        targets: ``targets[b, t]`` is the token that ``logits[b, t]`` predicts (already shifted), or ``IGNORE``.

    Returns:
        Values <= 0; exactly 0, without gradient, where the target is ``IGNORE``.
    """
    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return -flat.view(targets.shape)


def gathered_logps(logits: Float[Tensor, "P V"], sources: Int[Tensor, "S L"], targets: Int[Tensor, "S L"]) -> Float[Tensor, "S L"]:
    """Return the log-probability of target tokens predicted at any positions. Where a tree branches, one position predicts several.

        logp[s, l] = log softmax(logits[sources[s, l]])[targets[s, l]]

    Args:
        logits: Unnormalised, any floating type, one line per position; the softmax is taken in float32.
        sources: The position that predicts each target.
        targets: The token predicted there, or ``IGNORE``.

    Returns:
        Values <= 0; exactly 0, without gradient, where the target is ``IGNORE``.
    """
    chosen = logits[sources, targets.clamp(min=0)].float()
    return torch.where(targets == IGNORE, 0.0, chosen - logits.float().logsumexp(-1)[sources])
