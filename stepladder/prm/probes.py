"""Value heads on a policy's own hidden states: their directories, and the start of their training.

A head's directory holds its weights, its spec and the policy's tokenizer; the spec names the policy whose body it reads. Such a directory
may lie inside the policy's own (``FOLDER``): the two-head model of Chen et al. 2024, which other tools load as the language model alone.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepladder.files import atomic_directory
from stepladder.lm.loading import FORMAT_FILE
from stepladder.prm.checkpoints import check_fit, load_head
from stepladder.prm.new_models import draw_head, head_of
from stepladder.prm.sources import VALUE_HEAD_FOLDER
from stepladder.prm.specs import PRMSpec
from stepladder.types import derive_seed

HEAD_FILE = "value_head.safetensors"
"""The head's weights."""
FOLDER = VALUE_HEAD_FOLDER


def save_head(
    head: nn.Module, directory: Path, *, spec: PRMSpec, tokenizer: PreTrainedTokenizerBase, source: str | Path, dtype: torch.dtype
) -> None:
    """Write a head with its spec, the tokenizer, and the step format of the policy, if that has one.

    Args:
        head: One linear layer.
        directory: An existing directory, or a new one.
        spec: How it is read; it names the body.
        tokenizer: The policy's.
        source: The policy.
        dtype: Type of the stored weights.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = {f"score.{name}": tensor.detach().to(device="cpu", dtype=dtype).contiguous() for name, tensor in head.state_dict().items()}
    save_file(weights, directory / HEAD_FILE)
    spec.save(directory)
    tokenizer.save_pretrained(directory)
    step_format = Path(source) / FORMAT_FILE
    if step_format.is_file():
        shutil.copyfile(step_format, directory / FORMAT_FILE)


def save_probe(model: PreTrainedModel, directory: Path, *, spec: PRMSpec, source: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the head of a trained token classifier whose body is that of the policy ``source``."""
    save_head(head_of(model, source, spec.num_outputs), directory, spec=spec, tokenizer=tokenizer, source=source, dtype=torch.float32)


def copy_head(two_heads: Path, out: Path, *, body: str) -> None:
    """Write the head of a two-head model into a directory of its own, completely or not at all.

    Args:
        two_heads: Directory of the two-head model.
        out: The directory of the head; replaced if it exists.
        body: The model, as the head's spec will name it.
    """
    with atomic_directory(out) as temporary:
        shutil.copytree(two_heads / FOLDER, temporary, dirs_exist_ok=True)
        replace(PRMSpec.load(two_heads / FOLDER), body=body).save(temporary)


def freeze_body(model: PreTrainedModel, source: str | Path, *, num_outputs: int, start: str | Path | None) -> None:
    """Leave only the head of a token classifier to be trained, and give it the weights of an earlier head.

    Args:
        model: The classifier, on a policy's body.
        source: The policy, for messages.
        num_outputs: Outputs per token, >= 1.
        start: Directory of the earlier head; None keeps the new one.

    Raises:
        CheckpointError: If the earlier head does not fit.
    """
    head = head_of(model, source, num_outputs)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in head.parameters():
        parameter.requires_grad_(True)
    if start is not None:
        continue_head(head, start)


def continue_head(head: nn.Linear, start: str | Path) -> None:
    """Give a head the weights of an earlier one.

    Raises:
        CheckpointError: If that has another shape.
    """
    earlier = load_head(start, PRMSpec.load(start))
    check_fit(earlier, start, width=head.in_features)
    head.load_state_dict({name: tensor.to(head.weight) for name, tensor in earlier.state_dict().items()}, strict=False)


def new_head(width: int, *, num_outputs: int, seed: int) -> nn.Linear:
    """Return a linear head for hidden states of a width, drawn from the seed as for ``new_head_model``."""
    head = nn.Linear(width, num_outputs)
    draw_head(head, derive_seed(seed, "value head"))
    return head
