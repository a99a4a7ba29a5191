"""Training the policy: supervised fine-tuning on traces, and step-level preference training on sibling steps.

Token ids are trained on as they were sampled: nothing is tokenised again and no end-of-sequence is appended. The loss is on completion
tokens only.

Three layers, of which only the first two know how tokens lie in a batch:

- ``CompletionRow`` and ``PreferenceRow`` are made from the stored records (``completion_rows``, ``preference_rows``);
- ``collate_completions`` and ``collate_preferences`` lay rows out: ``inputs`` for the model, and ``targets`` aligned with its last logits;
- ``CompletionObjective`` and ``PreferenceObjective`` turn logits and targets into the losses of ``losses.py``.

Rows that pack a tree, every shared token once, are another row and another collator with the same batch keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepladder.errors import ConfigError, DataFormatError
from stepladder.lm.loading import load_causal_lm, load_tokenizer, resolve_device
from stepladder.lm.rows import check_ids, check_provenance, fit_context, pad
from stepladder.lm.training import (
    Batch,
    ProgressCallback,
    TrainReport,
    TrainSettings,
    autocast,
    identity_of,
    last_logits,
    quiet,
    run_training,
    save_model,
    training_dtype,
)
from stepladder.policy.losses import IGNORE, preference_loss, sequence_logps, sft_loss, token_logps
from stepladder.types import PreferencePair, Trace


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRow:
    """A prompt and its completion."""

    prompt_ids: list[int]
    """Context, not empty; no loss on it."""
    completion_ids: list[int]
    """Learned tokens, not empty."""

    @property
    def length(self) -> int:
        """Positions forwarded: all tokens but the last, which predicts nothing."""
        return len(self.prompt_ids) + len(self.completion_ids) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded."""
        return self.length


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceRow:
    """Two completions of one prompt, with what the reference model says about them."""

    chosen: CompletionRow
    """The preferred completion."""
    rejected: CompletionRow
    """The other completion of the same prompt."""
    num_shared: int
    """Tokens that both completions begin with; they cancel in the preference loss and are left out of its sums."""
    ref_chosen_logp: float = 0.0
    """Reference log-probability of the preferred completion from the first differing token on, in nats."""
    ref_rejected_logp: float = 0.0
    """The same for the other completion."""

    @property
    def length(self) -> int:
        """Positions of the longer sequence."""
        return max(self.chosen.length, self.rejected.length)

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded for both sequences."""
        return self.chosen.num_tokens + self.rejected.num_tokens


def train_sft(
    model_dir: str | Path,
    traces: Sequence[Trace],
    out_dir: str | Path,
    settings: TrainSettings,
    *,
    renderer_hash: str,
    trust_remote_code: bool = False,
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Fine-tune a policy on full solutions and save it to ``out_dir`` as a Hugging Face directory.

    Args:
        model_dir: Start model, a directory or hub id.
        traces: Solutions to imitate; the mean negative log-likelihood of their completion tokens is minimised.
        out_dir: Where the trained model goes, whole or not at all; replaced if it exists.
        settings: How to train.
        renderer_hash: Hash that every trace must carry.
        trust_remote_code: Run code that ships with a hub model.
        on_progress: Called after every update.

    Returns:
        What the training came to.

    Raises:
        BackendError: If the loss stops being finite.
        CheckpointError: If a model cannot be read or written, or ``<out_dir>.work`` belongs to another training.
        ConfigError: If the device cannot be had.
        DataFormatError: If there are no traces, one comes from another renderer or vocabulary, one has an empty prompt or completion,
            or all are longer than the model's context.
    """
    check_provenance((trace.provenance for trace in traces), renderer_hash=renderer_hash, what="traces")
    model = _load(model_dir, settings, trust_remote_code)
    dropped: dict[str, int] = {}
    rows = fit_context(completion_rows(traces, vocabulary=_vocabulary(model)), model, dropped, what="traces")
    tokenizer = load_tokenizer(model_dir, trust_remote_code=trust_remote_code)
    return run_training(
        model,
        rows,
        collate=collate_completions,
        objective=CompletionObjective(),
        settings=settings,
        out_dir=Path(out_dir),
        identity=identity_of(settings, task="sft", start=str(model_dir), rows=rows),
        save=partial(save_model, source=model_dir, tokenizer=tokenizer, trust_remote_code=trust_remote_code),
        on_progress=on_progress,
        dropped=dropped,
    )


def train_preference(
    model_dir: str | Path,
    pairs: Sequence[PreferencePair],
    out_dir: str | Path,
    settings: TrainSettings,
    *,
    renderer_hash: str,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
    trust_remote_code: bool = False,
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train a policy to prefer the chosen sibling steps and save it to ``out_dir`` as a Hugging Face directory.

    The reference is the start model; its log-probabilities are computed once, before the first update, so there is never a second model in
    memory. To fine-tune on traces first, give this the directory that ``train_sft`` wrote.

    Args:
        model_dir: Start and reference model, a directory or hub id.
        pairs: Sibling steps; a pair whose two steps are equal is dropped and counted.
        out_dir: Where the trained model goes, whole or not at all; replaced if it exists.
        settings: How to train; ``batch_size`` counts pairs.
        renderer_hash: Hash that every pair must carry.
        beta: Strength of the pull to the reference, > 0.
        label_smoothing: Assumed share of flipped pairs, in [0, 0.5).
        sft_weight: Weight of the chosen steps' mean negative log-likelihood, >= 0.
        trust_remote_code: Run code that ships with a hub model.
        on_progress: Called after every update.

    Returns:
        What the training came to.

    Raises:
        BackendError: If the loss stops being finite.
        CheckpointError: If a model cannot be read or written, or ``<out_dir>.work`` belongs to another training.
        ConfigError: If the device cannot be had, or a loss setting is out of range.
        DataFormatError: If there are no pairs, one comes from another renderer or vocabulary, one has an empty prompt or step, or none
            is left after dropping.
    """
    objective = PreferenceObjective(beta=beta, label_smoothing=label_smoothing, sft_weight=sft_weight)
    check_provenance((pair.provenance for pair in pairs), renderer_hash=renderer_hash, what="preference pairs")
    model = _load(model_dir, settings, trust_remote_code)
    dropped: dict[str, int] = {}
    rows = preference_rows(pairs, vocabulary=_vocabulary(model), dropped=dropped)
    rows = fit_context(rows, model, dropped, what="preference pairs")
    identity = identity_of(settings, task="preference", start=str(model_dir), rows=rows, objective=objective)
    tokenizer = load_tokenizer(model_dir, trust_remote_code=trust_remote_code)
    return run_training(
        model,
        add_reference(model, rows, settings),
        collate=collate_preferences,
        objective=objective,
        settings=settings,
        out_dir=Path(out_dir),
        identity=identity,
        save=partial(save_model, source=model_dir, tokenizer=tokenizer, trust_remote_code=trust_remote_code),
        on_progress=on_progress,
        dropped=dropped,
    )


def completion_rows(traces: Sequence[Trace], *, vocabulary: int) -> list[CompletionRow]:
    """Return one row per trace.

    Raises:
        DataFormatError: If a prompt or completion is empty, or an id is outside the vocabulary.
    """
    rows = []
    for i, trace in enumerate(traces):
        place = f"trace {i} (problem {trace.problem_id!r})"
        rows.append(_completion_row(trace.prompt_ids, trace.completion_ids, vocabulary=vocabulary, place=place))
    return rows


def preference_rows(pairs: Sequence[PreferencePair], *, vocabulary: int, dropped: dict[str, int]) -> list[PreferenceRow]:
    """Return one row per pair whose steps differ; the others, which teach nothing, are counted in ``dropped``.

    Raises:
        DataFormatError: If a prompt or step is empty, or an id is outside the vocabulary.
    """
    rows = []
    for i, pair in enumerate(pairs):
        place = f"pair {i} (problem {pair.problem_id!r})"
        chosen = _completion_row(pair.prompt_ids, pair.chosen_ids, vocabulary=vocabulary, place=place)
        rejected = _completion_row(pair.prompt_ids, pair.rejected_ids, vocabulary=vocabulary, place=place)
        if chosen == rejected:
            dropped["equal steps"] = dropped.get("equal steps", 0) + 1
        else:
            rows.append(PreferenceRow(chosen=chosen, rejected=rejected, num_shared=_num_shared(pair.chosen_ids, pair.rejected_ids)))
    return rows


def collate_completions(rows: Sequence[CompletionRow]) -> Batch:
    """Lay rows out one below the other.

    Returns:
        ``inputs``: the model's arguments. ``targets``, int64 ``[B, T']``: the token that each of the last T' positions predicts,
        ``IGNORE`` on prompt and padding; T' begins at the first completion token of the row with the shortest prompt.
    """
    start = min(len(row.prompt_ids) for row in rows) - 1
    input_ids = pad([(*row.prompt_ids, *row.completion_ids)[:-1] for row in rows], value=0)
    prompt_targets = [[IGNORE] * (len(row.prompt_ids) - 1 - start) for row in rows]
    targets = [(*ignored, *row.completion_ids) for ignored, row in zip(prompt_targets, rows, strict=True)]
    return {"inputs": {"input_ids": input_ids}, "targets": pad(targets, value=IGNORE)}


def collate_preferences(rows: Sequence[PreferenceRow]) -> Batch:
    """Lay pairs out as the B preferred completions, then the B others.

    Returns:
        What ``collate_completions`` returns, and ``contrast``, bool ``[2B, T']``: targets from the first differing token on; ``ref_logps``,
        float32 ``[2B]``: the reference's sums over them.
    """
    sides = [row.chosen for row in rows] + [row.rejected for row in rows]
    batch = collate_completions(sides)
    learned = batch["targets"] != IGNORE
    num_shared = torch.tensor([row.num_shared for row in rows] * 2)
    ref_logps = torch.tensor([row.ref_chosen_logp for row in rows] + [row.ref_rejected_logp for row in rows], dtype=torch.float32)
    return {**batch, "contrast": learned & (learned.cumsum(1) > num_shared[:, None]), "ref_logps": ref_logps}


class CompletionObjective:
    """Mean negative log-likelihood of the completion tokens."""

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of completion tokens."""
        return (batch["targets"] != IGNORE).sum()[None]

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the token mean."""
        logits = last_logits(model, batch["inputs"], positions=batch["targets"].shape[1])
        return sft_loss(sequence_logps(logits, batch["targets"]), counts[0].float())


@dataclass(frozen=True, kw_only=True)
class PreferenceObjective:
    """Preference loss on sibling steps, with a likelihood term on the chosen ones."""

    beta: float = 0.1
    """Strength of the pull to the reference, > 0."""
    label_smoothing: float = 0.0
    """Assumed share of flipped pairs, in [0, 0.5)."""
    sft_weight: float = 0.0
    """Weight of the likelihood term, >= 0."""

    def __post_init__(self) -> None:
        rules = {"beta": self.beta > 0, "label_smoothing": 0 <= self.label_smoothing < 0.5, "sft_weight": self.sft_weight >= 0}
        for name, holds in rules.items():
            if not holds:
                raise ConfigError(
                    f"preference training: {name} is out of range: got {getattr(self, name)!r} -- see the range in the settings"
                )

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of pairs and of tokens in the preferred completions."""
        targets = batch["targets"]
        num_pairs = len(targets) // 2
        return torch.stack([targets.new_tensor(num_pairs), (targets[:num_pairs] != IGNORE).sum()])

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the mean preference loss and of the likelihood term."""
        logits = last_logits(model, batch["inputs"], positions=batch["targets"].shape[1])
        logps = token_logps(logits, batch["targets"])
        chosen, rejected = _contrast_sums(logps, batch).chunk(2)
        ref_chosen, ref_rejected = batch["ref_logps"].chunk(2)
        return preference_loss(
            chosen,
            rejected,
            ref_chosen_logps=ref_chosen,
            ref_rejected_logps=ref_rejected,
            full_chosen_logps=logps[: len(chosen)].sum(-1),
            num_tokens=counts[1].float(),
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            sft_weight=self.sft_weight,
            num_pairs=counts[0].float(),
        )


@torch.no_grad()
def add_reference(model: PreTrainedModel, rows: Sequence[PreferenceRow], settings: TrainSettings) -> list[PreferenceRow]:
    """Return the rows, in order, with the log-probabilities that the model gives them as it stands."""
    device = resolve_device(settings.device)
    model.to(device)  # pyright: ignore[reportArgumentType]
    model.eval()
    size = settings.micro_batch_size or settings.batch_size
    order = sorted(range(len(rows)), key=lambda i: -rows[i].length)
    found: dict[int, PreferenceRow] = {}
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        batch = collate_preferences([rows[i] for i in indices])
        inputs, targets = {name: value.to(device) for name, value in batch["inputs"].items()}, batch["targets"].to(device)
        with autocast(settings, device):
            logits = last_logits(model, inputs, positions=targets.shape[1])
        chosen, rejected = _contrast_sums(token_logps(logits, targets).cpu(), batch).chunk(2)
        for i, ref_chosen, ref_rejected in zip(indices, chosen.tolist(), rejected.tolist(), strict=True):
            found[i] = replace(rows[i], ref_chosen_logp=ref_chosen, ref_rejected_logp=ref_rejected)
    return [found[i] for i in range(len(rows))]


def _contrast_sums(logps: Tensor, batch: Batch) -> Tensor:
    return torch.where(batch["contrast"], logps, 0.0).sum(-1)


def _load(model_dir: str | Path, settings: TrainSettings, trust_remote_code: bool) -> PreTrainedModel:
    with quiet():
        return load_causal_lm(model_dir, device=settings.device, dtype=training_dtype(settings), trust_remote_code=trust_remote_code)


def _vocabulary(model: PreTrainedModel) -> int:
    return model.get_input_embeddings().num_embeddings  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]


def _completion_row(prompt_ids: list[int], completion_ids: list[int], *, vocabulary: int, place: str) -> CompletionRow:
    for name, ids in (("prompt", prompt_ids), ("completion", completion_ids)):
        if not ids:
            raise DataFormatError(f"{place}: the {name} must have at least one token: got none -- drop the row")
        check_ids(ids, vocabulary=vocabulary, place=place)
    return CompletionRow(prompt_ids=prompt_ids, completion_ids=completion_ids)


def _num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with in common."""
    for i, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return i
    return min(len(first), len(second))
