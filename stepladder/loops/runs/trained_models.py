"""Digests beside the models that a run trained: whether a model is still what the training left.

``models/policy.digest`` lies beside ``models/policy``; of an ensemble there is one digest. It is written before the summary of the
training, so that a finished training has one. Runs of earlier versions have none, and their models are taken as they are.
"""

from pathlib import Path

from stepladder.digests import current_digest
from stepladder.errors import CheckpointError
from stepladder.files import atomic_write_text, reading


def digest_file(model: Path) -> Path:
    """Return where the digest of a trained model lies."""
    return model.with_name(f"{model.name}.digest")


def seal_model(model: Path) -> None:
    """Write the digest of a model that was trained just now."""
    atomic_write_text(digest_file(model), f"{current_digest(model)}\n")


def was_trained(model: Path) -> bool:
    """Say whether a run trained a model, also one whose directory is gone: its digest stays."""
    return model.exists() or digest_file(model).exists()


def check_trained(model: Path) -> None:
    """Check that a model is what its training left; files that were not written since the last check are not read again.

    Raises:
        CheckpointError: If not, or if it is gone or cannot be read.
    """
    path = digest_file(model)
    remedy = f"restore it, or remove {model.parents[1]} and later rounds, and run evolve again"
    if not model.exists():
        raise CheckpointError(f"{model}: must be what the run trained: there is no such directory -- {remedy}")
    if not path.exists():
        return
    with reading(path, what="the digest of a trained model", remedy=remedy):
        expected = path.read_text(encoding="ascii").strip()
    with reading(model, what="a model that may be read", remedy=remedy):
        found = current_digest(model)
    if found != expected:
        raise CheckpointError(f"{model}: must be what the run trained: its files, or {path.name}, have changed since -- {remedy}")
