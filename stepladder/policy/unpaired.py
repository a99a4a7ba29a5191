"""Policy training on completions that are good or bad by themselves: steps, or whole solutions.

The layers are those of ``fine_tuning.py``: ``UnpairedRow`` is made from ``GradedRow``s, ``collate_unpaired`` and
``collate_packed_unpaired`` lay out rows, and ``UnpairedObjective`` turns logits into a loss.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stepladder.errors import DataFormatError
from stepladder.lm.completions import IGNORE, CompletionRow, collate_completions, read_at
from stepladder.lm.packing import PackedRow, lay_out
from stepladder.lm.settings import TrainSettings
from stepladder.lm.training import Batch, ProgressCallback, TrainReport, identity_of, run_training
from stepladder.lm.training_rows import check_provenance, fit_context, vocabulary_size
from stepladder.policy.fine_tuning import (
    SAMPLER,
    completion_row,
    load_policy,
    reference_rows,
    saver,
)
from stepladder.policy.objectives import UnpairedObjective
from stepladder.types import GradedRow


@dataclass(frozen=True, kw_only=True, slots=True)
class UnpairedRow:
    """A completion with its verdict, and optionally the completion of another row after the same prompt."""

    completion: CompletionRow
    """The graded completion."""
    good: bool
    """The verdict."""
    prompt_value: float
    """Value of the node that it continues, in [0, 1]."""
    mismatched: CompletionRow | None = None
    """A completion of another prompt after this prompt, used to estimate the reference point; None if not needed."""
    ref_logps: tuple[float, ...] = (0.0, 0.0)
    """Reference log-probability of the completion, and of the mismatched one if there is one, in nats."""
    sampler_logps: tuple[float, ...] | None = None
    """Log-probability of the completion under the policy that sampled it; None if unknown. Mismatched completions have none."""

    @property
    def completions(self) -> tuple[CompletionRow, ...]:
        """What is forwarded."""
        return (self.completion,) if self.mismatched is None else (self.completion, self.mismatched)

    @property
    def group(self) -> str:
        """Problem of the completion."""
        return self.completion.group

    @property
    def sequences(self) -> tuple[list[int], ...]:
        """Token sequences of the completions."""
        return tuple(sequence for row in self.completions for sequence in row.sequences)

    @property
    def length(self) -> int:
        """Positions of the longest sequence."""
        return max(row.length for row in self.completions)

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded."""
        return sum(row.num_tokens for row in self.completions)

    def with_reference(self, logps: Sequence[float]) -> "UnpairedRow":
        """Return the row with the reference's log-probability of each of its completions."""
        return replace(self, ref_logps=tuple(logps))


def train_unpaired(
    model_dir: str | Path,
    graded: Sequence[GradedRow],
    out_dir: str | Path,
    settings: TrainSettings,
    *,
    renderer_hash: str,
    objective: UnpairedObjective | None = None,
    reference: str | Path | None = None,
    trust_remote_code: bool = False,
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train a policy towards good completions and away from bad ones, and save it to ``out_dir`` as a Hugging Face directory.

    Args:
        model_dir: Start model, a directory or hub id.
        graded: Steps or solutions with verdicts.
        out_dir: Directory of the trained model, written completely or not at all; replaced if it exists.
        settings: Training settings; ``batch_size`` counts completions. KTO estimates its reference point on each forward pass, so there
            ``micro_batch_size`` changes results, not only memory.
        renderer_hash: Hash that every row must carry.
        objective: The loss; None is KTO with its defaults.
        reference: As for ``train_preference``. Losses with mismatched completions, which nobody sampled, cannot take ``SAMPLER``.
        trust_remote_code: Run code that ships with a hub model.
        on_progress: Called after every update.

    Returns:
        The result of the training.

    Raises:
        BackendError: If the loss stops being finite.
        CheckpointError: If a model cannot be read or written, or ``<out_dir>.work`` belongs to another training.
        ConfigError: If the device does not exist.
        DataFormatError: If there are no rows, one comes from another renderer or vocabulary, one has an empty prompt or completion, all
            are longer than the model's context, or the reference is ``SAMPLER`` and one lacks the sampler's log-probabilities.
    """
    objective = objective or UnpairedObjective()
    check_provenance((row.provenance for row in graded), renderer_hash=renderer_hash, what="graded rows")
    model = load_policy(model_dir, settings, trust_remote_code)
    save = saver(model_dir, trust_remote_code)
    dropped: dict[str, int] = {}
    rows = unpaired_rows(graded, vocabulary=vocabulary_size(model), mismatched=objective.needs_mismatched)
    rows = fit_context(rows, model, dropped, what="graded rows")
    if reference == SAMPLER:
        _check_sampler(rows)
    identity = identity_of(settings, task="unpaired", start=str(model_dir), rows=rows, objective=objective, reference=str(reference))
    return run_training(
        model,
        reference_rows(
            model,
            rows,
            settings,
            reference=reference,
            trust_remote_code=trust_remote_code,
            collate=collate_unpaired,
            collate_packed=collate_packed_unpaired,
        ),
        collate=collate_unpaired,
        collate_packed=collate_packed_unpaired,
        objective=objective,
        settings=settings,
        out_dir=Path(out_dir),
        identity=identity,
        save=save,
        on_progress=on_progress,
        dropped=dropped,
    )


def unpaired_rows(graded: Sequence[GradedRow], *, vocabulary: int, mismatched: bool) -> list[UnpairedRow]:
    """Return one row per record.

    Args:
        graded: The records.
        vocabulary: Number of token ids of the model.
        mismatched: Also pair every prompt with the completion of another record, of another problem if there are enough. Every completion
            is used once.

    Raises:
        DataFormatError: If a prompt or completion is empty, or an id is outside the vocabulary.
    """
    completions = [
        completion_row(
            row, row.completion_ids, row.completion_given, vocabulary=vocabulary, place=f"graded row {i} (problem {row.problem_id!r})"
        )
        for i, row in enumerate(graded)
    ]
    partners = _partners([row.problem_id for row in graded]) if mismatched else []
    return [
        UnpairedRow(
            completion=completion,
            good=row.good,
            prompt_value=row.prompt_value,
            mismatched=replace(completions[partners[i]], prompt_ids=completion.prompt_ids, group=completion.group) if mismatched else None,
            sampler_logps=(sum(row.logps),) if not mismatched and len(row.logps) == len(row.completion_ids) else None,
        )
        for i, (row, completion) in enumerate(zip(graded, completions, strict=True))
    ]


def _partners(problems: list[str]) -> list[int]:
    """Return a permutation that maps every row to another one, of another problem unless one problem has more than half of the rows.

    If the rows are sorted by problem, a shift by the size of the largest problem moves every row to another problem.
    """
    order = sorted(range(len(problems)), key=lambda i: problems[i])
    shift = max(Counter(problems).values(), default=0)
    if 2 * shift > len(problems):
        shift = 1
    partners = [0] * len(problems)
    for place, index in enumerate(order):
        partners[index] = order[(place + shift) % len(order)]
    return partners


def collate_unpaired(rows: Sequence[UnpairedRow]) -> Batch:
    """Lay out the B completions, then the mismatched ones if there are any.

    Returns:
        The batch of ``collate_completions`` with these additions. ``contrast``, bool, shaped like ``targets``: whether there is a target.
        ``ref_logps``, float32 ``[B]`` or ``[2B]``: the reference's sums over the targets. ``good``, bool ``[B]``. ``prompt_values``,
        float32 ``[B]``.
    """
    batch = collate_completions(_in_order(rows))
    return {**batch, **_terms(rows, batch)}


def collate_packed_unpaired(trees: Sequence[PackedRow[UnpairedRow]], *, width: int = 0) -> Batch:
    """Lay out trees of rows, in the order of ``collate_unpaired``.

    Returns:
        The batch of ``collate_packed_completions`` with the additions of ``collate_unpaired``.
    """
    layout = lay_out([tree.tree for tree in trees], width=width)
    paths = [path + offset for tree, offset in zip(trees, layout.offsets, strict=True) for path in tree.tree.paths]
    rows = [row for tree in trees for row in tree.rows]
    kinds = len(rows[0].completions)
    batch = read_at(layout, [path for kind in range(kinds) for path in paths[kind::kinds]], _in_order(rows))
    return {**batch, **_terms(rows, batch)}


def _in_order(rows: Sequence[UnpairedRow]) -> list[CompletionRow]:
    return [completion for kind in zip(*(row.completions for row in rows), strict=True) for completion in kind]


def _terms(rows: Sequence[UnpairedRow], batch: Batch) -> Batch:
    ref_logps = [logp for kind in zip(*(row.ref_logps[: len(row.completions)] for row in rows), strict=True) for logp in kind]
    return {
        "contrast": batch["targets"] != IGNORE,
        "ref_logps": torch.tensor(ref_logps, dtype=torch.float32),
        "good": torch.tensor([row.good for row in rows]),
        "prompt_values": torch.tensor([row.prompt_value for row in rows], dtype=torch.float32),
    }


def _check_sampler(rows: Sequence[UnpairedRow]) -> None:
    if missing := sum(row.sampler_logps is None for row in rows):
        raise DataFormatError(
            f"preference training: the reference {SAMPLER!r} needs the sampler's log-probabilities of every completion: {missing} have "
            "none -- label the trees again, or, with kto, choose another reference"
        )
