"""Training an implicit process reward model: a language model whose log-ratio to where it started says how right a solution is.

Only outcomes of whole solutions are needed; the steps' scores come for free when the model is read against its start.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepladder.errors import ConfigError, DataFormatError
from stepladder.lm.loading import load_causal_lm, load_tokenizer
from stepladder.lm.rows import check_provenance, fit_context, pad, vocabulary_size
from stepladder.lm.training import (
    Batch,
    ProgressCallback,
    TrainReport,
    TrainSettings,
    autocast,
    identity_of,
    load_options,
    quiet,
    run_training,
)
from stepladder.prm.layout import SolutionLayout
from stepladder.prm.losses import implicit_ce_loss, implicit_dpo_loss
from stepladder.prm.model import save_prm
from stepladder.prm.reader import Solution
from stepladder.prm.rows import NO_TARGET, PathsRow, check_path_ids, count_dropped
from stepladder.prm.specs import PRMSpec, check_reads_tokens
from stepladder.types import ValueRow

Loss = Literal["implicit-ce", "implicit-dpo"]
LOSSES: tuple[Loss, ...] = ("implicit-ce", "implicit-dpo")


@dataclass(frozen=True, kw_only=True, slots=True)
class GradedSolution:
    """A solution whose outcome is known."""

    solution: Solution
    """The solution."""
    problem_id: str
    """Key of its problem."""
    outcome: float | None
    """How right it is, in [0, 1]; None where not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutcomeRow(PathsRow):
    """The graded solutions of one problem."""

    begins: list[int]
    """Index of each one's first token that belongs to a step, >= 1."""
    outcomes: list[float]
    """How right each is, in [0, 1]."""
    reference_logps: list[float]
    """Log-probability of each one's step tokens under the start model, in nats; empty until it was computed."""


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
        solutions: Graded solutions; those without an outcome, and for ``implicit-dpo`` problems of one kind only, are dropped and counted.
        out_dir: Where the trained model goes, whole or not at all; replaced if it exists.
        settings: How to train; ``batch_size`` counts problems.
        spec: An implicit spec; its beta is the loss's.
        loss: ``implicit-ce`` on outcomes or ``implicit-dpo`` between solutions of a problem.
        trust_remote_code: Run code that ships with a hub model.
        on_progress: Called after every update.

    Raises:
        BackendError: If the loss stops being finite.
        CheckpointError: If a model cannot be read or written or does not fit the spec.
        ConfigError: If the spec is not implicit or the loss is unknown.
        DataFormatError: If outcomes are out of range or all equal, or a solution does not fit the spec.
    """
    _check_choices(spec, loss)
    tokenizer = load_tokenizer(init, trust_remote_code=trust_remote_code)
    dropped: dict[str, int] = {}
    rows = outcome_rows(solutions, SolutionLayout(tokenizer, spec), compare=loss == "implicit-dpo", dropped=dropped)
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
    rows = outcome_rows_of_paths(paths, compare=loss == "implicit-dpo", dropped=dropped)
    tokenizer = load_tokenizer(init, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {"loss": loss, "trust_remote_code": trust_remote_code, "on_progress": on_progress}
    spec = replace(spec, renderer_hash=renderer_hash)
    return _fit(init, rows, Path(out_dir), settings, tokenizer=tokenizer, dropped=dropped, spec=spec, **options)


def _check_choices(spec: PRMSpec, loss: str) -> None:
    if spec.family != "implicit" or loss not in LOSSES:
        raise ConfigError(
            f"PRM training: loss {loss!r} and family {spec.family!r} must go together: expected one of {', '.join(LOSSES)} and 'implicit' "
            "-- change one of them"
        )


def _fit(
    init: str | Path,
    rows: list[OutcomeRow],
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
    rows = fit_context(rows, model, dropped, what="graded solutions")
    check_path_ids(rows, vocabulary=vocabulary_size(model), what="graded solution")
    objective = ImplicitObjective(loss_name=loss, beta=spec.beta)
    return run_training(
        model,
        add_reference(model, rows, settings),
        collate=collate_outcomes,
        objective=objective,
        settings=settings,
        out_dir=out_dir,
        identity=identity_of(settings, task="implicit", start=str(init), rows=rows, objective=objective),
        save=partial(save_prm, spec=spec, source=init, tokenizer=tokenizer, trust_remote_code=trust_remote_code),
        on_progress=on_progress,
        dropped=dropped,
    )


def outcome_rows(
    solutions: Sequence[GradedSolution], layout: SolutionLayout, *, compare: bool, dropped: dict[str, int]
) -> list[OutcomeRow]:
    """Return one row per problem with graded solutions, in the order of the problems; what is left out is counted in ``dropped``.

    Raises:
        DataFormatError: If an outcome is out of range, all are equal, or a solution does not fit the spec.
    """
    problems: dict[str, list[tuple[list[int], int, float]]] = {}
    for graded in solutions:
        outcome, place = graded.outcome, graded.solution.place
        if outcome is None:
            count_dropped(dropped, "no outcome", 1)
            continue
        if not 0.0 <= outcome <= 1.0:
            raise DataFormatError(f"{place}: the outcome must be in [0, 1]: got {outcome!r} -- correct the row")
        laid = layout.lay_out(graded.solution.question, graded.solution.steps, place=place)
        if not laid.token_ids:
            count_dropped(dropped, "no tokens", 1)
            continue
        problems.setdefault(graded.problem_id, []).append((list(laid.token_ids), max(1, laid.begin), outcome))
    return _finished(problems, compare=compare, dropped=dropped)


def outcome_rows_of_paths(paths: Sequence[ValueRow], *, compare: bool, dropped: dict[str, int]) -> list[OutcomeRow]:
    """Return one row per problem with graded solutions, in the order of the problems; what is left out is counted in ``dropped``.

    Raises:
        DataFormatError: If a prompt is empty, an outcome is out of range, or all are equal.
    """
    problems: dict[str, list[tuple[list[int], int, float]]] = {}
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
        ids = [*path.prompt_ids, *(token for step in path.step_ids for token in step)]
        problems.setdefault(path.problem_id, []).append((ids, len(path.prompt_ids), outcome))
    return _finished(problems, compare=compare, dropped=dropped)


def _finished(problems: dict[str, list[tuple[list[int], int, float]]], *, compare: bool, dropped: dict[str, int]) -> list[OutcomeRow]:
    rows = []
    for members in problems.values():
        if compare and len({outcome for _, _, outcome in members}) < 2:
            count_dropped(dropped, "problem without solutions to compare", 1)
            continue
        paths, begins, outcomes = (list(column) for column in zip(*members, strict=True))
        rows.append(OutcomeRow(paths=paths, begins=begins, outcomes=outcomes, reference_logps=[]))
    found = {outcome for row in rows for outcome in row.outcomes}
    if len(found) < 2:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "nothing"
        raise DataFormatError(
            f"graded solutions: outcomes must differ: got {', '.join(map(str, found)) or 'none'} only, and dropped {reasons} "
            "-- give right and wrong solutions"
        )
    return rows


@torch.no_grad()
def add_reference(model: PreTrainedModel, rows: Sequence[OutcomeRow], settings: TrainSettings) -> list[OutcomeRow]:
    """Return the rows with the log-probabilities of the model as it is now."""
    model.eval()
    added = []
    for row in rows:
        batch = collate_outcomes([row])
        with autocast(settings, model.device):
            logps = solution_logps(model, batch["inputs"]["input_ids"].to(model.device), batch["spans"].to(model.device))
        added.append(replace(row, reference_logps=logps.tolist()))
    return added


def solution_logps(model: nn.Module, input_ids: Int[Tensor, "S T"], spans: Int[Tensor, "S 2"]) -> Float[Tensor, " S"]:
    """Return the log-probability of the tokens from begin to end of every sequence, given all before them, in nats."""
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1].float()
    logps = logits.log_softmax(-1).gather(-1, input_ids[:, 1:, None])[..., 0]
    places = torch.arange(1, input_ids.shape[1], device=input_ids.device)
    inside = (places >= spans[:, :1]) & (places < spans[:, 1:])
    return (logps * inside).sum(-1)


def collate_outcomes(rows: Sequence[OutcomeRow]) -> Batch:
    """Lay the solutions of all problems out one below the other.

    Returns:
        ``inputs``: the model's arguments. ``spans`` [S, 2]: where the step tokens of every solution begin and end, ``members`` [B, G]: the
        solutions of every problem, ``targets`` [B, G]: their outcomes, NaN where there is no such solution, ``reference`` [S].
    """
    paths = [path for row in rows for path in row.paths]
    width = max(len(row.paths) for row in rows)
    members, targets = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), NO_TARGET)
    at = 0
    for i, row in enumerate(rows):
        count = len(row.paths)
        members[i, :count] = torch.arange(at, at + count)
        targets[i, :count] = torch.tensor(row.outcomes)
        at += count
    return {
        "inputs": {"input_ids": pad(paths, value=0)},
        "spans": torch.tensor([[begin, len(path)] for row in rows for path, begin in zip(row.paths, row.begins, strict=True)]),
        "members": members,
        "targets": targets,
        "reference": torch.tensor([logp for row in rows for logp in row.reference_logps]),
    }


@dataclass(frozen=True, kw_only=True)
class ImplicitObjective:
    """Mean loss over the solutions, or over the problems."""

    loss_name: Loss
    """``implicit-ce`` or ``implicit-dpo``."""
    beta: float
    """Factor on the log-ratio."""

    def counts(self, batch: Batch) -> Tensor:
        """Return the number of solutions and of problems whose solutions can be compared."""
        targets = batch["targets"]
        known = ~targets.isnan()
        differ = torch.where(known, targets, -torch.inf).amax(-1) > torch.where(known, targets, torch.inf).amin(-1)
        return torch.stack([known.sum(), differ.sum()])

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """Return the batch's share of the mean."""
        ratios = solution_logps(model, batch["inputs"]["input_ids"], batch["spans"]) - batch["reference"]
        grouped, targets = ratios[batch["members"]], batch["targets"]
        if self.loss_name == "implicit-ce":
            return implicit_ce_loss(grouped.flatten(), targets.flatten(), beta=self.beta, num_targets=counts[0].float())
        return implicit_dpo_loss(grouped, targets, beta=self.beta, num_groups=counts[1].float())
