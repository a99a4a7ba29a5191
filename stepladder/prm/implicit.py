"""Training of an implicit process reward model: a language model whose log-ratio to its start model measures how right a solution is.

Training needs only outcomes of whole solutions. Comparing the model with its start model then gives scores of steps without further labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from stepladder.errors import ConfigError, DataFormatError
from stepladder.lm.completions import (
    IGNORE,
    CompletionRow,
    collate_completions,
    collate_packed_completions,
    completion_logps,
    contrast_sums,
)
from stepladder.lm.loading import load_causal_lm, load_tokenizer, quiet
from stepladder.lm.packing import PackedRow, group_rows
from stepladder.lm.references import add_reference
from stepladder.lm.settings import TrainSettings
from stepladder.lm.training import Batch, ProgressCallback, TrainReport, identity_of, load_options, run_training
from stepladder.lm.training_rows import check_ids, check_provenance, fit_context, vocabulary_size
from stepladder.prm.layout import SolutionLayout
from stepladder.prm.new_models import save_prm
from stepladder.prm.reader import Solution
from stepladder.prm.specs import PRMSpec, check_reads_tokens
from stepladder.prm.target_rows import NO_TARGET, count_dropped, solution_of_path
from stepladder.prm.value_losses import implicit_ce_loss, implicit_dpo_loss
from stepladder.types import PreferencePair, ValueRow

Loss = Literal["implicit-ce", "implicit-dpo"]
LOSSES: tuple[Loss, ...] = ("implicit-ce", "implicit-dpo")


@dataclass(frozen=True, kw_only=True, slots=True)
class GradedSolution:
    """A solution with a known outcome."""

    solution: Solution
    """The solution."""
    problem_id: str
    """Key of its problem."""
    outcome: float | None
    """Its outcome, in [0, 1]; None if unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutcomeRow(CompletionRow):
    """A solution with a known outcome; its steps are the completion."""

    outcome: float
    """How right it is, in [0, 1]."""
    ref_logp: float = 0.0
    """Log-probability of the steps under the start model, in nats."""

    def with_reference(self, logps: Sequence[float]) -> "OutcomeRow":
        """Return the row with the start model's log-probability of the steps."""
        return replace(self, ref_logp=logps[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemRow:
    """Solutions of one problem, which are compared."""

    solutions: list[OutcomeRow]
    """The solutions; their outcomes are not all equal."""

    @property
    def group(self) -> str:
        """Problem of the row."""
        return self.solutions[0].group

    @property
    def sequences(self) -> tuple[list[int], ...]:
        """What is forwarded."""
        return tuple(sequence for row in self.solutions for sequence in row.sequences)

    @property
    def length(self) -> int:
        """Positions of the longest solution."""
        return max(row.length for row in self.solutions)

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded."""
        return sum(row.num_tokens for row in self.solutions)

    def with_reference(self, logps: Sequence[float]) -> "ProblemRow":
        """Return the row with the start model's log-probability of every solution's steps."""
        return replace(self, solutions=[row.with_reference([logp]) for row, logp in zip(self.solutions, logps, strict=True)])


def train_implicit(
    init: str | Path,
    solutions: Sequence[GradedSolution],
    out_dir: str | Path,
    settings: TrainSettings,
    *,
    spec: PRMSpec,
    loss: Loss = "implicit-ce",
    trust_remote_code: bool = False,
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train an implicit process reward model against its start and save it, with spec and tokenizer, as a Hugging Face directory.

    Args:
        init: Language model to start from, which is the reference when the result is read.
        solutions: Graded solutions. Those without an outcome or too long for the context are dropped and counted. With ``implicit-dpo``,
            so are problems whose solutions are all equally right.
        out_dir: Directory of the trained model, written completely or not at all; replaced if it exists.
        settings: Training settings; ``batch_size`` counts solutions, or with ``implicit-dpo`` problems, whose solutions are compared.
        spec: An implicit spec; its beta is the loss's.
        loss: ``implicit-ce`` on outcomes, a mean over solutions, or ``implicit-dpo`` between the solutions of a problem, a mean over
            problems.
        trust_remote_code: Run code that ships with a hub model.
        on_progress: Called after every update.

    Raises:
        BackendError: If the loss stops being finite.
        CheckpointError: If a model cannot be read or written or does not fit the spec.
        ConfigError: If the spec is not implicit or the loss is unknown.
        DataFormatError: If outcomes are out of range or all equal, no solution is left, or one does not fit the spec.
    """
    _check_choices(spec, loss)
    tokenizer = load_tokenizer(init, trust_remote_code=trust_remote_code)
    dropped: dict[str, int] = {}
    rows = outcome_rows(solutions, SolutionLayout(tokenizer, spec), dropped=dropped)
    options: dict[str, Any] = {"spec": spec, "loss": loss, "trust_remote_code": trust_remote_code, "on_progress": on_progress}
    return _fit(init, rows, Path(out_dir), settings, tokenizer=tokenizer, dropped=dropped, **options)


def train_implicit_on_tokens(
    init: str | Path,
    paths: Sequence[ValueRow],
    out_dir: str | Path,
    settings: TrainSettings,
    *,
    renderer_hash: str,
    spec: PRMSpec,
    loss: Loss = "implicit-ce",
    trust_remote_code: bool = False,
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train an implicit process reward model on the policy's own tokens; see ``train_implicit``.

    Args:
        init: The policy that made the paths, which is the reference when the result is read.
        paths: Solutions whose last target is their outcome, as the target ``outcome`` makes them.
        out_dir: As for ``train_implicit``.
        settings: As for ``train_implicit``.
        renderer_hash: Hash that every path must carry; saved with the spec.
        spec: An implicit spec with the prompt ``tokens``.
        loss: As for ``train_implicit``.
        trust_remote_code: Run code that ships with a hub model.
        on_progress: Called after every update.

    Raises:
        ConfigError: Also if the spec reads text.
        DataFormatError: Also if there are no paths, or one comes from another renderer; otherwise as for ``train_implicit``.
    """
    _check_choices(spec, loss)
    check_reads_tokens(spec)
    check_provenance((path.provenance for path in paths), renderer_hash=renderer_hash, what="value rows")
    dropped: dict[str, int] = {}
    rows = outcome_rows_of_paths(paths, dropped=dropped)
    tokenizer = load_tokenizer(init, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {"loss": loss, "trust_remote_code": trust_remote_code, "on_progress": on_progress}
    spec = replace(spec, renderer_hash=renderer_hash)
    return _fit(init, rows, Path(out_dir), settings, tokenizer=tokenizer, dropped=dropped, spec=spec, **options)


def train_implicit_on_pairs(
    init: str | Path,
    pairs: Sequence[PreferencePair],
    out_dir: str | Path,
    settings: TrainSettings,
    *,
    renderer_hash: str,
    spec: PRMSpec,
    trust_remote_code: bool = False,
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train an implicit model of step values on pairs of steps after one prefix: DPO against the start model, a mean over pairs.

        Q(s, a) = beta * (log pi_theta(a | s) - log pi_start(a | s))

    Args:
        init: The policy that made the pairs, which is the reference when the result is read.
        pairs: Pairs of steps, such as ``StepPairs`` makes.
        out_dir: As for ``train_implicit``.
        settings: As for ``train_implicit``; ``batch_size`` counts pairs.
        renderer_hash: Hash that every pair must carry; saved with the spec.
        spec: An implicit spec with the prompt ``tokens`` that does not accumulate: a score is that of one step.
        trust_remote_code: Run code that ships with a hub model.
        on_progress: Called after every update.

    Raises:
        ConfigError: If the spec is another.
        DataFormatError: If there are no pairs, or one comes from another renderer.
        BackendError: If the loss stops being finite.
        CheckpointError: If a model cannot be read or written.

    Source: Zhai et al. 2024, "Enhancing decision-making for LLM agents via step-level Q-value models" (arXiv 2409.09345).
    """
    _check_choices(spec, "implicit-dpo")
    check_reads_tokens(spec)
    if spec.accumulate:
        raise ConfigError("PRM training: pairs of steps value single steps: got a spec that accumulates -- set accumulate to false")
    check_provenance((pair.provenance for pair in pairs), renderer_hash=renderer_hash, what="step pairs")
    rows = [ProblemRow(solutions=_sides(pair)) for pair in pairs]
    tokenizer = load_tokenizer(init, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {"loss": "implicit-dpo", "trust_remote_code": trust_remote_code, "on_progress": on_progress}
    spec = replace(spec, renderer_hash=renderer_hash)
    return _fit(init, rows, Path(out_dir), settings, tokenizer=tokenizer, dropped={}, spec=spec, **options)


def _sides(pair: PreferencePair) -> list[OutcomeRow]:
    """Return the better step with outcome 1 and the other one with outcome 0."""
    sides = ((pair.chosen_ids, pair.chosen_given, 1.0), (pair.rejected_ids, pair.rejected_given, 0.0))
    return [
        OutcomeRow(prompt_ids=pair.prompt_ids, completion_ids=ids, group=pair.problem_id, outcome=outcome, completion_given=given)
        for ids, given, outcome in sides
    ]


def _check_choices(spec: PRMSpec, loss: str) -> None:
    if spec.family != "implicit" or loss not in LOSSES:
        raise ConfigError(
            f"PRM training: loss {loss!r} and family {spec.family!r} must go together: expected one of {', '.join(LOSSES)} and 'implicit' "
            "-- change one of them"
        )


def _fit(
    init: str | Path,
    rows: Sequence[OutcomeRow] | Sequence[ProblemRow],
    out_dir: Path,
    settings: TrainSettings,
    *,
    tokenizer: PreTrainedTokenizerBase,
    spec: PRMSpec,
    loss: Loss,
    dropped: dict[str, int],
    trust_remote_code: bool,
    on_progress: ProgressCallback | None,
) -> TrainReport:
    with quiet():
        model = load_causal_lm(init, **load_options(settings), trust_remote_code=trust_remote_code)
    vocabulary, compare = vocabulary_size(model), loss == "implicit-dpo"
    for number, row in enumerate(rows):
        for part in row.solutions if isinstance(row, ProblemRow) else [row]:
            ids = [*part.prompt_ids, *part.completion_ids]
            check_ids(ids, vocabulary=vocabulary, place=f"graded solution {number} (problem {row.group!r})")
    made: list[Any] = fit_context(rows, model, dropped, what="graded solutions")  # pyright: ignore[reportArgumentType]
    if not isinstance(made[0], ProblemRow):
        made = rows_to_learn(made, compare=compare, dropped=dropped)
        made = problem_rows(made) if compare else made
    objective = ImplicitObjective(loss_name=loss, beta=spec.beta)
    layouts: dict[str, Any] = {
        "collate": collate_problems if compare else collate_outcomes,
        "collate_packed": collate_packed_problems if compare else collate_packed_outcomes,
    }
    return run_training(
        model,
        add_reference(model, made, settings, **layouts),
        **layouts,
        objective=objective,
        settings=settings,
        out_dir=out_dir,
        identity=identity_of(settings, task="implicit", start=str(init), rows=made, objective=objective),
        save=partial(save_prm, spec=spec, source=init, tokenizer=tokenizer, trust_remote_code=trust_remote_code),
        on_progress=on_progress,
        dropped=dropped,
    )


def outcome_rows(solutions: Sequence[GradedSolution], layout: SolutionLayout, *, dropped: dict[str, int]) -> list[OutcomeRow]:
    """Return one row per graded solution that has tokens; the others are counted in ``dropped``.

    Raises:
        DataFormatError: If an outcome is out of range, or a solution does not fit the spec.
    """
    rows: list[OutcomeRow] = []
    for graded in solutions:
        outcome, place = graded.outcome, graded.solution.place
        if outcome is None:
            count_dropped(dropped, "no outcome", 1)
            continue
        if not 0.0 <= outcome <= 1.0:
            raise DataFormatError(f"{place}: the outcome must be in [0, 1]: got {outcome!r} -- correct the row")
        laid = layout.lay_out(graded.solution.question, graded.solution.steps, place=place)
        # The first token of all is predicted by nothing.
        begin = max(1, laid.begin)
        prompt_ids, completion_ids = list(laid.token_ids[:begin]), list(laid.token_ids[begin:])
        if not completion_ids:
            count_dropped(dropped, "no tokens", 1)
            continue
        rows.append(OutcomeRow(prompt_ids=prompt_ids, completion_ids=completion_ids, group=graded.problem_id, outcome=outcome))
    return rows


def outcome_rows_of_paths(paths: Sequence[ValueRow], *, dropped: dict[str, int]) -> list[OutcomeRow]:
    """Return one row per graded path that has tokens after its prompt; the others are counted in ``dropped``.

    Raises:
        DataFormatError: If a prompt is empty, or an outcome is out of range.
    """
    rows: list[OutcomeRow] = []
    for i, path in enumerate(paths):
        outcome = path.targets[-1] if path.targets else None
        if outcome is None:
            count_dropped(dropped, "no outcome", 1)
            continue
        if not path.prompt_ids or not 0.0 <= outcome <= 1.0:
            raise DataFormatError(
                f"value row {i} (problem {path.problem_id!r}): the prompt must have tokens and the outcome be in [0, 1]: got {outcome!r} "
                "-- drop the row"
            )
        completion_ids, given = solution_of_path(path)
        if not completion_ids:
            count_dropped(dropped, "no tokens", 1)
            continue
        row = OutcomeRow(
            prompt_ids=path.prompt_ids, completion_ids=completion_ids, group=path.problem_id, outcome=outcome, completion_given=given
        )
        rows.append(row)
    return rows


def rows_to_learn(rows: Sequence[OutcomeRow], *, compare: bool, dropped: dict[str, int]) -> list[OutcomeRow]:
    """Return the rows that teach something: all rows, or, if the loss compares, those of problems with different outcomes.

    Raises:
        DataFormatError: If all outcomes are equal.
    """
    found: dict[str, set[float]] = {}
    for row in rows:
        found.setdefault(row.group, set()).add(row.outcome)
    one_sided = {problem for problem, outcomes in found.items() if compare and len(outcomes) < 2}
    count_dropped(dropped, "problem without solutions to compare", len(one_sided))
    rows = [row for row in rows if row.group not in one_sided]
    outcomes = sorted({row.outcome for row in rows})
    if len(outcomes) < 2:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "nothing"
        raise DataFormatError(
            f"graded solutions: outcomes must differ: got {', '.join(map(str, outcomes)) or 'none'} only, and dropped {reasons} "
            "-- give right and wrong solutions"
        )
    return rows


def problem_rows(rows: Sequence[OutcomeRow]) -> list[ProblemRow]:
    """Return one row per problem with all its rows, in the order of the problems' first rows."""
    return [ProblemRow(solutions=[rows[i] for i in indices]) for indices in group_rows(rows)]


def collate_outcomes(rows: Sequence[OutcomeRow]) -> Batch:
    """Lay out one row per solution.

    Returns:
        The batch of ``collate_completions`` with these additions. ``contrast``, bool, shaped like ``targets``: whether there is a target.
        ``outcomes`` and ``ref_logps``, float32 ``[S]``: the outcome of each of the S solutions, and its log-probability under the start
        model.
    """
    batch = collate_completions(rows)
    return {**batch, **_outcome_terms(rows, batch["targets"])}


def collate_packed_outcomes(trees: Sequence[PackedRow[OutcomeRow]], *, width: int = 0) -> Batch:
    """Lay out trees of solutions.

    Returns:
        The batch of ``collate_packed_completions`` with the additions of ``collate_outcomes``.
    """
    batch = collate_packed_completions(trees, width=width)
    return {**batch, **_outcome_terms([row for tree in trees for row in tree.rows], batch["targets"])}


def collate_problems(rows: Sequence[ProblemRow]) -> Batch:
    """Lay out the solutions of problems, one row per solution.

    Returns:
        The batch of ``collate_outcomes`` and ``members``, int64 ``[B, G]``: the solutions of every problem, then -1.
    """
    return {**collate_outcomes([solution for row in rows for solution in row.solutions]), "members": _members(rows)}


def collate_packed_problems(trees: Sequence[PackedRow[ProblemRow]], *, width: int = 0) -> Batch:
    """Lay out trees of the solutions of problems.

    Returns:
        The batch of ``collate_packed_outcomes`` with the additions of ``collate_problems``.
    """
    flat = [PackedRow(rows=[solution for row in tree.rows for solution in row.solutions], tree=tree.tree) for tree in trees]
    return {**collate_packed_outcomes(flat, width=width), "members": _members([row for tree in trees for row in tree.rows])}


def _outcome_terms(rows: Sequence[OutcomeRow], targets: Tensor) -> Batch:
    return {
        "contrast": targets != IGNORE,
        "outcomes": torch.tensor([row.outcome for row in rows], dtype=torch.float32),
        "ref_logps": torch.tensor([row.ref_logp for row in rows], dtype=torch.float32),
    }


def _members(rows: Sequence[ProblemRow]) -> Int[Tensor, "B G"]:
    counts = [len(row.solutions) for row in rows]
    return pad_sequence(list(torch.arange(sum(counts)).split(counts)), batch_first=True, padding_value=-1)


@dataclass(frozen=True, kw_only=True)
class ImplicitObjective:
    """Mean loss over the solutions, or over the problems."""

    loss_name: Loss
    """``implicit-ce`` or ``implicit-dpo``."""
    beta: float
    """Factor on the log-ratio."""

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of solutions, or of problems if the loss compares."""
        rows = batch["outcomes"] if self.loss_name == "implicit-ce" else batch["members"]
        return batch["targets"].new_tensor([len(rows)])

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the mean."""
        log_ratios, outcomes = contrast_sums(completion_logps(model, batch), batch) - batch["ref_logps"], batch["outcomes"]
        if self.loss_name == "implicit-ce":
            return implicit_ce_loss(log_ratios, outcomes, beta=self.beta, num_targets=counts[0].float())
        members = batch["members"]
        grouped = torch.where(members < 0, NO_TARGET, outcomes[members])
        return implicit_dpo_loss(log_ratios[members], grouped, beta=self.beta, num_groups=counts[0].float())
