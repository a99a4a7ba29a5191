"""The start of PRM training: a policy with a new value head, or an earlier process reward model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stepladder.errors import CheckpointError, ConfigError, DataFormatError
from stepladder.lm.loading import load_token_classifier, quiet
from stepladder.lm.training import save_model
from stepladder.prm.specs import SPEC_FILE, PRMSpec, Transform
from stepladder.types import derive_seed

HEAD_STD = 0.01
"""Spread of a new head's weights: the last layer norm makes hidden states of about unit entries, so first scores lie near 0.5."""


def initialise_prm(
    start: str | Path,
    *,
    renderer_hash: str,
    seed: int,
    spec: PRMSpec | None = None,
    device: str = "auto",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    quantization: Any = None,
) -> tuple[PreTrainedModel, PRMSpec]:
    """Return a process reward model to train, and its spec.

    A directory with a ``PRMSpec`` is continued as it is. Anything else is read as a policy. Its body gets a head on every token, drawn from
    the seed. The head has no dropout, which would shift the scale of the outputs between training and scoring.

    Args:
        start: Policy directory or hub id, or directory of a process reward model.
        renderer_hash: Hash of the renderer that made the training rows.
        seed: Seed of a new head, >= 0.
        spec: Spec of the model, without ``renderer_hash``; None is a value head with a sigmoid, or the spec of an earlier model.
        device: As for ``load_token_classifier``.
        dtype: As for ``load_token_classifier``.
        quantization: As for ``load_token_classifier``.
        trust_remote_code: Run code that ships with a hub model.

    Raises:
        CheckpointError: If the model cannot be read, or has another number of outputs per token than its spec says.
        ConfigError: If device or dtype is not available, or the earlier model does not match ``spec``.
        DataFormatError: If the earlier model was trained on rows of another renderer.
    """
    options: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code, "quantization": quantization}
    wanted = replace(spec or PRMSpec(), renderer_hash=renderer_hash)
    if not (Path(start) / SPEC_FILE).is_file():
        return new_head_model(start, num_outputs=wanted.num_outputs, seed=seed, **options), wanted
    found = PRMSpec.load(start)
    if found.family == "probe":
        raise ConfigError(
            f"{start}: a PRM to go on from must have a body of its own: it is a value head on the body of {found.body} -- start from a "
            "policy, or train a head with body 'policy'"
        )
    if found.renderer_hash != renderer_hash:
        raise DataFormatError(
            f"{start}: rows must come from the renderer that the PRM was trained with: got {renderer_hash!r}, expected "
            f"{found.renderer_hash!r} -- start from a policy instead"
        )
    if spec is not None and found != wanted:
        raise ConfigError(f"{start}: the model to go on from must be what is trained: it is {found!r}, expected {wanted!r} -- start anew")
    model = load_token_classifier(start, **options)
    head_of(model, start, found.num_outputs)
    return model, found


def new_head_model(start: str | Path, *, num_outputs: int, seed: int, **options: Any) -> PreTrainedModel:
    """Return a policy's body with a new linear head on every token, drawn from the seed, without dropout.

    Args:
        start: Policy directory or hub id.
        num_outputs: Outputs per token, >= 1.
        seed: Seed of the head, >= 0.
        options: Device, dtype, trust_remote_code and quantization, as for ``load_token_classifier``.

    Raises:
        CheckpointError: If the model cannot be read, or its head is not linear.
        ConfigError: If device or dtype is not available.
    """
    # The library warns that the head is not in the directory, which is as it should be.
    with quiet():
        model = load_token_classifier(start, **options, num_labels=num_outputs)
    draw_head(head_of(model, start, num_outputs), derive_seed(seed, "value head"))
    _remove_head_dropout(model)
    return model


def save_prm(model: PreTrainedModel, directory: Path, *, spec: PRMSpec, **options: Any) -> None:
    """Write a trained model as a Hugging Face directory with its spec; further options as for ``save_model``."""
    save_model(model, directory, **options)
    spec.save(directory)


def transform_logits(logits: Tensor, transform: Transform) -> Tensor:
    """Return values of raw outputs, as ``PRMSpec`` defines them, but without clipping ``identity``: a clipped value has no gradient."""
    if transform == "sigmoid":
        return torch.sigmoid(logits)
    if transform == "tanh01":
        return 0.5 * (torch.tanh(logits) + 1.0)
    return logits


def head_of(model: PreTrainedModel, start: str | Path, num_outputs: int) -> torch.nn.Linear:
    """Return the head of a token classifier.

    Raises:
        CheckpointError: If it is not one linear layer with ``num_outputs`` outputs.
    """
    head = getattr(model, "score", getattr(model, "classifier", None))
    if not isinstance(head, torch.nn.Linear) or head.out_features != num_outputs:
        raise CheckpointError(
            f"{start}: a reward model must have {num_outputs} linear output{'s' * (num_outputs > 1)} per token: got {head} "
            "-- start from a policy instead"
        )
    return head


def _remove_head_dropout(model: PreTrainedModel) -> None:
    # The configuration keeps it out of every later load; the layer that this load made is set by hand.
    model.config.classifier_dropout = 0.0
    if isinstance(layer := getattr(model, "dropout", None), torch.nn.Dropout):
        layer.p = 0.0


@torch.no_grad()
def draw_head(head: torch.nn.Linear, seed: int) -> None:
    """Give a head its first weights."""
    drawn = torch.empty(head.weight.shape).normal_(0.0, HEAD_STD, generator=torch.Generator().manual_seed(seed))
    head.weight.copy_(drawn)
    if head.bias is not None:
        head.bias.zero_()
