"""Training of the process reward model on the policy's own tokens, with targets from searched trees and rollouts.

``target_rows.py`` makes rows from stored records and lays them out, ``objective.py`` turns outputs and targets into a loss of
``value_losses.py``. By default the paths of a problem are merged into trees: one forward pass scores every step of a tree.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from stepladder.errors import ConfigError
from stepladder.lm.loading import load_tokenizer, quiet
from stepladder.lm.settings import TrainSettings
from stepladder.lm.training import ProgressCallback, TrainReport, identity_of, load_options, run_training
from stepladder.lm.training_rows import Replay, check_provenance, fit_context, vocabulary_size
from stepladder.prm.new_models import initialise_prm, save_prm
from stepladder.prm.objective import COMPARING, Loss, StepObjective, check_loss
from stepladder.prm.probes import freeze_body, save_probe
from stepladder.prm.specs import PRMSpec, check_reads_tokens
from stepladder.prm.target_rows import (
    Supervise,
    collate_groups,
    collate_packed_groups,
    collate_packed_values,
    collate_values,
    group_rows,
    pair_rows,
    target_rows,
)
from stepladder.types import PreferencePair, ValueRow


def train_value(
    init_dir: str | Path,
    rows: Sequence[ValueRow] | Sequence[PreferencePair],
    out_dir: str | Path,
    settings: TrainSettings,
    *,
    renderer_hash: str,
    spec: PRMSpec | None = None,
    loss: Loss = "bce",
    supervise: Supervise = "step-end",
    head_from: str | Path | None = None,
    replay: Replay[ValueRow] | None = None,
    trust_remote_code: bool = False,
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train a process reward model and save it, with its ``PRMSpec`` and tokenizer, as a Hugging Face directory.

    Of a ``probe`` only the head is trained and saved: the policy's body is not changed.

    Args:
        init_dir: Policy (which gets a new head) or earlier process reward model.
        rows: Paths with targets. A path without targets is dropped and counted, and tokens after the last target are not forwarded. Or
            pairs of steps (or of whole solutions), for a comparing loss.
        out_dir: Directory of the trained model, written completely or not at all; replaced if it exists.
        settings: Training settings; ``batch_size`` counts paths, or groups of what is compared.
        renderer_hash: Hash that every row must carry.
        spec: Spec of a policy's new head, or the required spec of an earlier model; None is a value head with a sigmoid, and an earlier
            model's own.
        loss: ``bce`` on soft targets, ``mse`` between value and target, ``hl-gauss`` and ``two-hot`` on the bins of a value head:
            means over the targets of an update. ``pairwise`` between steps after the same beginning, with ``pairwise+mse`` also ``mse``,
            ``listwise`` between all targets of a problem: means over the groups.
        supervise: Which tokens of a step learn its target; a comparing loss reads the last one only.
        head_from: Directory of an earlier probe whose head is trained on; None begins with a new one.
        replay: Other paths to mix in, such as those of solved examples; not beside pairs.
        trust_remote_code: Run code that ships with a hub model.
        on_progress: Called after every update.

    Returns:
        The result of the training.

    Raises:
        BackendError: If the loss stops being finite.
        CheckpointError: If a model cannot be read or written, or ``<out_dir>.work`` belongs to another training.
        ConfigError: If the device does not exist, or model, loss and rows do not fit each other.
        DataFormatError: If there are no rows, one comes from another renderer or vocabulary or breaks its format, none is left after
            dropping, or nothing can be compared.
    """
    check_provenance((row.provenance for row in rows), renderer_hash=renderer_hash, what="value rows")
    if replay is not None:
        check_provenance((row.provenance for row in replay.rows), renderer_hash=renderer_hash, what="replayed paths")
    _check_choices(rows, loss, supervise)
    if spec is not None:
        check_reads_tokens(spec)
        check_loss(loss, spec)
    with quiet():
        model, spec = initialise_prm(
            init_dir,
            spec=spec,
            renderer_hash=renderer_hash,
            seed=settings.seed,
            **load_options(settings),
            trust_remote_code=trust_remote_code,
        )
    is_probe = spec.family == "probe"
    if is_probe:
        freeze_body(model, init_dir, num_outputs=spec.num_outputs, start=head_from)
    objective = StepObjective(loss_name=loss, spec=spec)
    dropped: dict[str, int] = {}
    made = _made_rows(rows, loss, supervise, spec, vocabulary=vocabulary_size(model), dropped=dropped)
    made = fit_context(made, model, dropped, what="value rows")
    if replay is not None:
        examples = _made_rows(replay.rows, loss, supervise, spec, vocabulary=vocabulary_size(model), dropped={})
        # A single path gives a comparing loss nothing to compare.
        replay = replace(replay, rows=fit_context(examples, model, {}, what="replayed paths")) if examples else None
    tokenizer = load_tokenizer(init_dir, trust_remote_code=trust_remote_code)
    parts: dict[str, Any] = {"spec": spec, "source": init_dir, "tokenizer": tokenizer}
    return run_training(
        model,
        made,
        collate=collate_groups if loss in COMPARING else collate_values,
        collate_packed=collate_packed_groups if loss in COMPARING else collate_packed_values,
        objective=objective,
        settings=settings,
        out_dir=Path(out_dir),
        identity=identity_of(settings, task="value", start=str(head_from or init_dir), rows=made, objective=objective, replay=replay),
        save=partial(save_probe, **parts) if is_probe else partial(save_prm, **parts, trust_remote_code=trust_remote_code),
        on_progress=on_progress,
        dropped=dropped,
        replay=replay,
    )


def _check_choices(rows: Sequence[Any], loss: Loss, supervise: Supervise) -> None:
    if supervise not in get_args(Supervise):
        raise ConfigError(f"PRM training: supervise must be one of {', '.join(get_args(Supervise))}: got {supervise!r} -- change it")
    if supervise == "every-token" and loss in COMPARING:
        raise ConfigError(f"PRM training: loss {loss!r} compares steps where they end: got supervise 'every-token' -- use 'step-end'")
    if isinstance(rows[0], PreferencePair) and loss not in ("pairwise", "pairwise+mse"):
        raise ConfigError(f"PRM training: pairs need the loss 'pairwise' or 'pairwise+mse': got {loss!r} -- change loss or target")


def _made_rows(
    rows: Sequence[Any], loss: Loss, supervise: Supervise, spec: PRMSpec, *, vocabulary: int, dropped: dict[str, int]
) -> list[Any]:
    lag = int(spec.read == "before-end")
    if isinstance(rows[0], PreferencePair):
        return pair_rows(rows, vocabulary=vocabulary, dropped=dropped, lag=lag)
    if loss in COMPARING:
        compare = "problem" if loss == "listwise" else "siblings"
        return group_rows(rows, vocabulary=vocabulary, dropped=dropped, compare=compare, lag=lag)
    return target_rows(rows, vocabulary=vocabulary, dropped=dropped, supervise=supervise, lag=lag)
