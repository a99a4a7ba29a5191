"""Training the policy: supervised fine-tuning on traces, and step-level preference training on sibling steps.

Training uses the sampled token ids: nothing is tokenised again and no end-of-sequence is appended. Only completion tokens that the policy
sampled carry a loss.

There are three layers. Only the first two know the layout of tokens in a batch:

- ``CompletionRow`` and ``PreferenceRow`` are made from the stored records (``completion_rows``, ``preference_rows``);
- ``collate_completions`` and ``collate_preferences`` lay rows out: ``inputs`` for the model, and ``targets``, one line per completion;
- ``objectives.py`` turns logits and targets into the losses of ``preference_losses.py``.

By default the rows of a problem are merged into trees (``collate_packed_*``). The batch then says which position of the trees predicts
each completion token. From the log-probabilities on, everything is the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stepladder.errors import DataFormatError
from stepladder.lm.completions import IGNORE, CompletionRow, collate_completions, collate_packed_completions, read_at
from stepladder.lm.loading import load_causal_lm, load_tokenizer, quiet
from stepladder.lm.packing import PackedRow, lay_out
from stepladder.lm.processes import this_process
from stepladder.lm.references import ReferencedRow, add_reference
from stepladder.lm.settings import TrainSettings
from stepladder.lm.slots import num_shared
from stepladder.lm.training import (
    Batch,
    Collate,
    PackedCollate,
    ProgressCallback,
    TrainReport,
    identity_of,
    load_options,
    run_training,
    save_model,
)
from stepladder.lm.training_rows import Replay, check_ids, check_provenance, fit_context, vocabulary_size
from stepladder.policy.objectives import CompletionObjective, PreferenceObjective, WeightedCompletionObjective
from stepladder.types import AdvantageRow, GradedRow, PreferencePair, SoftTarget, Trace

SAMPLER = "sampler"
"""Name of the reference that consists of the policies that sampled the rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceRow:
    """Two completions of one prompt, with their log-probabilities under the reference model."""

    chosen: CompletionRow
    """The preferred completion."""
    rejected: CompletionRow
    """The other completion of the same prompt."""
    num_shared: int
    """Number of learned tokens that both completions begin with. They cancel in the preference loss, so its sums leave them out."""
    ref_chosen_logp: float = 0.0
    """Reference log-probability of the preferred completion from the first differing token on, in nats."""
    ref_rejected_logp: float = 0.0
    """The same for the other completion."""
    value_margin: float = 0.0
    """Value of the preferred step minus value of the other step."""
    visits: tuple[int, int] = (0, 0)
    """Simulations through the preferred and through the other step."""
    sampler_logps: tuple[float, float] | None = None
    """The same two log-probabilities under the policy that sampled the pair; None if unknown."""
    agreement: float | None = None
    """Agreement of two scorers on the order of the siblings, in [0, 1]; None if unknown."""
    uncertainty: float | None = None
    """Uncertainty of the order of the pair, in bits, in [0, 1]; None if unknown."""

    @property
    def group(self) -> str:
        """Problem of the pair."""
        return self.chosen.group

    @property
    def sequences(self) -> tuple[list[int], ...]:
        """The forwarded sequences: the preferred one, then the other."""
        return (*self.chosen.sequences, *self.rejected.sequences)

    @property
    def length(self) -> int:
        """Positions of the longer sequence."""
        return max(self.chosen.length, self.rejected.length)

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded for both sequences."""
        return self.chosen.num_tokens + self.rejected.num_tokens

    def with_reference(self, logps: Sequence[float]) -> "PreferenceRow":
        """Return the row with the reference's log-probabilities of the preferred and of the other completion."""
        return replace(self, ref_chosen_logp=logps[0], ref_rejected_logp=logps[1])


class SampledRow(ReferencedRow, Protocol):
    """A row whose reference may be the policy that sampled its completions."""

    @property
    def sampler_logps(self) -> Sequence[float] | None:
        """Log-probabilities of the completions under the policy that sampled them; None if unknown."""
        ...


RowT = TypeVar("RowT", bound=SampledRow)


def train_sft(
    model_dir: str | Path,
    traces: Sequence[Trace],
    out_dir: str | Path,
    settings: TrainSettings,
    *,
    renderer_hash: str,
    soft_targets: Sequence[SoftTarget] = (),
    replay: Replay[Trace] | None = None,
    trust_remote_code: bool = False,
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Fine-tune a policy on full solutions and save it to ``out_dir`` as a Hugging Face directory.

    Args:
        model_dir: Start model, a directory or hub id.
        traces: Solutions to imitate; the mean negative log-likelihood of their completion tokens is minimised.
        out_dir: Directory of the trained model, written completely or not at all; replaced if it exists.
        settings: Training settings.
        renderer_hash: Hash that every trace must carry.
        soft_targets: Steps to learn in proportion to their weights, beside the traces, whose weight is 1.
        replay: Other solutions to mix in, so that the policy does not forget them.
        trust_remote_code: Run code that ships with a hub model.
        on_progress: Called after every update.

    Returns:
        The result of the training.

    Raises:
        BackendError: If the loss stops being finite.
        CheckpointError: If a model cannot be read or written, or ``<out_dir>.work`` belongs to another training.
        ConfigError: If the device does not exist.
        DataFormatError: If there are no traces, one comes from another renderer or vocabulary, one has an empty prompt or completion,
            or all are longer than the model's context.
    """
    check_provenance((row.provenance for row in (*traces, *soft_targets)), renderer_hash=renderer_hash, what="traces")
    if replay is not None:
        check_provenance((row.provenance for row in replay.rows), renderer_hash=renderer_hash, what="replayed solutions")
    model = load_policy(model_dir, settings, trust_remote_code)
    save = saver(model_dir, trust_remote_code)
    dropped: dict[str, int] = {}
    made = completion_rows(traces, vocabulary=vocabulary_size(model)) + soft_rows(soft_targets, vocabulary=vocabulary_size(model))
    rows = fit_context(made, model, dropped, what="traces")
    if replay is not None:
        examples = completion_rows(replay.rows, vocabulary=vocabulary_size(model))
        replay = replace(replay, rows=fit_context(examples, model, {}, what="replayed solutions"))
    return run_training(
        model,
        rows,
        collate=collate_weighted if soft_targets else collate_completions,
        collate_packed=collate_packed_weighted if soft_targets else collate_packed_completions,
        objective=WeightedCompletionObjective() if soft_targets else CompletionObjective(),
        settings=settings,
        out_dir=Path(out_dir),
        identity=identity_of(settings, task="sft", start=str(model_dir), rows=rows, replay=replay),
        save=save,
        on_progress=on_progress,
        dropped=dropped,
        replay=replay,
    )


def train_preference(
    model_dir: str | Path,
    pairs: Sequence[PreferencePair],
    out_dir: str | Path,
    settings: TrainSettings,
    *,
    renderer_hash: str,
    objective: PreferenceObjective | None = None,
    reference: str | Path | None = None,
    trust_remote_code: bool = False,
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train a policy to prefer the chosen continuations and save it to ``out_dir`` as a Hugging Face directory.

    The log-probabilities of the reference are computed once on trees, before the first update, so there is never a second model in memory.
    To fine-tune on traces first, pass the directory that ``train_sft`` wrote.

    Args:
        model_dir: Start model, a directory or hub id.
        pairs: Sibling steps. A pair of equal steps is dropped and counted.
        out_dir: Directory of the trained model, written completely or not at all; replaced if it exists.
        settings: Training settings; ``batch_size`` counts pairs.
        renderer_hash: Hash that every pair must carry.
        objective: The loss; None is DPO with its defaults.
        reference: Reference model, a directory or hub id; None is the start model. ``SAMPLER`` takes the policies that sampled the pairs;
            their log-probabilities are stored with the pairs. This is the off-policy DPO of Agent Q.
        trust_remote_code: Run code that ships with a hub model.
        on_progress: Called after every update.

    Returns:
        The result of the training.

    Raises:
        BackendError: If the loss stops being finite.
        CheckpointError: If a model cannot be read or written, or ``<out_dir>.work`` belongs to another training.
        ConfigError: If the device does not exist.
        DataFormatError: If there are no pairs, one comes from another renderer or vocabulary, one has an empty prompt or step, none is
            left after dropping, or a pair lacks what the loss needs.
    """
    objective = objective or PreferenceObjective()
    check_provenance((pair.provenance for pair in pairs), renderer_hash=renderer_hash, what="preference pairs")
    model = load_policy(model_dir, settings, trust_remote_code)
    save = saver(model_dir, trust_remote_code)
    dropped: dict[str, int] = {}
    rows = preference_rows(pairs, vocabulary=vocabulary_size(model), dropped=dropped)
    rows = fit_context(rows, model, dropped, what="preference pairs")
    _check_known(objective, rows, off_policy=reference == SAMPLER)
    identity = identity_of(settings, task="preference", start=str(model_dir), rows=rows, objective=objective, reference=str(reference))
    if objective.needs_reference:
        rows = reference_rows(model, rows, settings, reference=reference, trust_remote_code=trust_remote_code)
    report = run_training(
        model,
        rows,
        collate=collate_preferences,
        collate_packed=collate_packed_preferences,
        objective=objective,
        settings=settings,
        out_dir=Path(out_dir),
        identity=identity,
        save=save,
        on_progress=on_progress,
        dropped=dropped,
    )
    # Under a launcher the weights may be spread over processes.
    alone = this_process(model.device).num_processes == 1
    return replace(report, ranking_accuracy=ranking_accuracy(model, rows, settings)) if alone else report


_RANKED = 256
"""Pairs at most by which the trained policy's order is measured."""


def ranking_accuracy(model: PreTrainedModel, rows: Sequence[PreferenceRow], settings: TrainSettings) -> float:
    """Return the share of pairs whose preferred side is likelier, from the first differing token on; of many pairs, every n-th counts.

    Source: Chen et al. 2024, "Preference learning algorithms do not learn preference rankings", the ranking accuracy.
    """
    chosen = rows[:: math.ceil(len(rows) / _RANKED)]
    seen = add_reference(model, chosen, settings, collate=collate_preferences, collate_packed=collate_packed_preferences)
    return sum(row.ref_chosen_logp > row.ref_rejected_logp for row in seen) / len(seen)


def completion_rows(traces: Sequence[Trace], *, vocabulary: int) -> list[CompletionRow]:
    """Return one row per trace.

    Raises:
        DataFormatError: If a prompt or completion is empty, or an id is outside the vocabulary.
    """
    rows = []
    for i, trace in enumerate(traces):
        place = f"trace {i} (problem {trace.problem_id!r})"
        rows.append(completion_row(trace, trace.completion_ids, trace.completion_given, vocabulary=vocabulary, place=place))
    return rows


def soft_rows(targets: Sequence[SoftTarget], *, vocabulary: int) -> list[CompletionRow]:
    """Return one weighted row per step.

    Raises:
        DataFormatError: If a prompt or step is empty, a weight is not in (0, 1], or an id is outside the vocabulary.
    """
    rows = []
    for i, target in enumerate(targets):
        place = f"soft target {i} (problem {target.problem_id!r})"
        if not 0.0 < target.weight <= 1.0:
            raise DataFormatError(f"{place}: the weight must be in (0, 1]: got {target.weight!r} -- drop the row")
        rows.append(replace(completion_row(target, target.completion_ids, [], vocabulary=vocabulary, place=place), weight=target.weight))
    return rows


def collate_weighted(rows: Sequence[CompletionRow]) -> Batch:
    """Lay out rows as ``collate_completions`` does, with ``weights``, float32 ``[B]``."""
    return {**collate_completions(rows), "weights": _weights(rows)}


def collate_packed_weighted(trees: Sequence[PackedRow[CompletionRow]], *, width: int = 0) -> Batch:
    """Lay out trees as ``collate_packed_completions`` does, with ``weights``, float32 ``[S]``."""
    return {**collate_packed_completions(trees, width=width), "weights": _weights([row for tree in trees for row in tree.rows])}


def _weights(rows: Sequence[CompletionRow]) -> Tensor:
    return torch.tensor([row.weight for row in rows], dtype=torch.float32)


def preference_rows(pairs: Sequence[PreferencePair], *, vocabulary: int, dropped: dict[str, int]) -> list[PreferenceRow]:
    """Return one row per pair whose steps differ. Pairs of equal steps teach nothing; they are counted in ``dropped``.

    Raises:
        DataFormatError: If a prompt or step is empty, or an id is outside the vocabulary.
    """
    rows = []
    for i, pair in enumerate(pairs):
        place = f"pair {i} (problem {pair.problem_id!r})"
        chosen = completion_row(pair, pair.chosen_ids, pair.chosen_given, vocabulary=vocabulary, place=place)
        rejected = completion_row(pair, pair.rejected_ids, pair.rejected_given, vocabulary=vocabulary, place=place)
        if chosen == rejected:
            dropped["equal steps"] = dropped.get("equal steps", 0) + 1
        else:
            start = _first_difference(chosen, rejected)
            rows.append(
                PreferenceRow(
                    chosen=chosen,
                    rejected=rejected,
                    num_shared=sum(token != IGNORE for token in chosen.targets[:start]),
                    value_margin=pair.chosen_value - pair.rejected_value,
                    visits=(pair.chosen_visits, pair.rejected_visits),
                    sampler_logps=_sampler_logps(pair, start),
                    agreement=pair.agreement,
                    uncertainty=pair.uncertainty,
                )
            )
    return rows


def collate_preferences(rows: Sequence[PreferenceRow]) -> Batch:
    """Lay out pairs: the B preferred completions, then the B others.

    Returns:
        The batch of ``collate_completions`` with these additions. ``contrast``, bool ``[2B, T']``: targets from the first differing token
        on. ``ref_logps``, float32 ``[2B]``: the reference's sums over them; ``sampler_logps``: the same sums under the policies that
        sampled the pairs. ``value_margins``, ``agreement`` and ``uncertainty``, float32 ``[B]``, and ``visits``, float32 ``[B, 2]``:
        statistics of the search. Unknown values are NaN.
    """
    batch = collate_completions([row.chosen for row in rows] + [row.rejected for row in rows])
    return {**batch, **_pair_terms(rows, batch["targets"])}


def collate_packed_preferences(trees: Sequence[PackedRow[PreferenceRow]], *, width: int = 0) -> Batch:
    """Lay out trees of pairs: the B preferred completions, then the B others.

    Returns:
        The batch of ``collate_packed_completions`` with the additions of ``collate_preferences``.
    """
    layout = lay_out([tree.tree for tree in trees], width=width)
    paths = [path + offset for tree, offset in zip(trees, layout.offsets, strict=True) for path in tree.tree.paths]
    rows = [row for tree in trees for row in tree.rows]
    batch = read_at(layout, paths[::2] + paths[1::2], [row.chosen for row in rows] + [row.rejected for row in rows])
    return {**batch, **_pair_terms(rows, batch["targets"])}


def _pair_terms(rows: Sequence[PreferenceRow], targets: Tensor) -> Batch:
    learned = targets != IGNORE
    num_shared = torch.tensor([row.num_shared for row in rows] * 2)
    ref_logps = [row.ref_chosen_logp for row in rows] + [row.ref_rejected_logp for row in rows]
    sampler_logps = [row.sampler_logps or (math.nan, math.nan) for row in rows]

    def as_floats(values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)

    return {
        "contrast": learned & (learned.cumsum(1) > num_shared[:, None]),
        "ref_logps": as_floats(ref_logps),
        "sampler_logps": as_floats([logps for side in zip(*sampler_logps, strict=True) for logps in side]),
        "value_margins": as_floats([row.value_margin for row in rows]),
        "visits": as_floats([row.visits for row in rows]),
        "agreement": as_floats([math.nan if row.agreement is None else row.agreement for row in rows]),
        "uncertainty": as_floats([math.nan if row.uncertainty is None else row.uncertainty for row in rows]),
    }


def reference_rows(
    model: PreTrainedModel,
    rows: Sequence[RowT],
    settings: TrainSettings,
    *,
    reference: str | Path | None,
    trust_remote_code: bool,
    collate: Collate = collate_preferences,
    collate_packed: PackedCollate = collate_packed_preferences,
) -> list[RowT]:
    """Return the rows with the log-probabilities of a reference.

    Args:
        model: The start model, which is the reference by default.
        rows: Rows; ``SAMPLER`` needs the log-probabilities of their samplers.
        settings: Training settings; the reference runs under them, too.
        reference: As for ``train_preference``.
        trust_remote_code: Run code that ships with a hub model.
        collate: Lays out rows.
        collate_packed: Lays out trees of rows.
    """
    if reference == SAMPLER:
        return [row.with_reference(row.sampler_logps or ()) for row in rows]
    model = model if reference is None else load_policy(reference, settings, trust_remote_code)
    return add_reference(model, rows, settings, collate=collate, collate_packed=collate_packed)


def _first_difference(chosen: CompletionRow, rejected: CompletionRow) -> int:
    """Return the place of the first token that differs, or that only one of the two completions learns."""
    return min(num_shared(chosen.completion_ids, rejected.completion_ids), num_shared(chosen.targets, rejected.targets))


def _sampler_logps(pair: PreferencePair, start: int) -> tuple[float, float] | None:
    """Return the sampler's log-probabilities of both steps from the first differing token on. Given tokens have 0 there."""
    if len(pair.chosen_logps) != len(pair.chosen_ids) or len(pair.rejected_logps) != len(pair.rejected_ids):
        return None
    return sum(pair.chosen_logps[start:]), sum(pair.rejected_logps[start:])


def _check_known(objective: PreferenceObjective, rows: Sequence[PreferenceRow], *, off_policy: bool) -> None:
    """Refuse pairs that lack what the loss needs."""
    missing = {
        "the visits": objective.smoothing == "visits" and sum(row.visits == (0, 0) for row in rows),
        "the uncertainty": objective.smoothing == "uncertainty" and sum(row.uncertainty is None for row in rows),
        "the sampler's log-probabilities": (objective.needs_sampler or off_policy) and sum(row.sampler_logps is None for row in rows),
    }
    for what, count in missing.items():
        if count:
            raise DataFormatError(
                f"preference training: this loss needs {what} of every pair: {count} have none -- label the trees again, or choose another"
            )


def load_policy(model_dir: str | Path, settings: TrainSettings, trust_remote_code: bool) -> PreTrainedModel:
    """Load a policy in the form that the settings train."""
    with quiet():
        return load_causal_lm(model_dir, **load_options(settings), trust_remote_code=trust_remote_code)


def saver(model_dir: str | Path, trust_remote_code: bool) -> Callable[[PreTrainedModel, Path], None]:
    """Return a function that writes a trained policy with the tokenizer and the step format of its start model."""
    tokenizer = load_tokenizer(model_dir, trust_remote_code=trust_remote_code)
    return partial(save_model, source=model_dir, tokenizer=tokenizer, trust_remote_code=trust_remote_code)


def completion_row(
    record: Trace | SoftTarget | PreferencePair | GradedRow | AdvantageRow,
    completion_ids: list[int],
    given: list[bool],
    *,
    vocabulary: int,
    place: str,
) -> CompletionRow:
    """Return the row of a completion after a record's prompt, some of whose tokens may be given.

    Raises:
        DataFormatError: If prompt or completion is empty, an id is outside the vocabulary, or nothing was sampled.
    """
    for name, ids in (("prompt", record.prompt_ids), ("completion", completion_ids)):
        if not ids:
            raise DataFormatError(f"{place}: the {name} must have at least one token: got none -- drop the row")
        check_ids(ids, vocabulary=vocabulary, place=place)
    if given and (len(given) != len(completion_ids) or all(given)):
        raise DataFormatError(
            f"{place}: every token of the completion must be marked as given or sampled, and one as sampled: got {len(given)} marks for "
            f"{len(completion_ids)} tokens, {sum(given)} of them given -- drop the row"
        )
    return CompletionRow(prompt_ids=record.prompt_ids, completion_ids=completion_ids, group=record.problem_id, completion_given=given)
