"""Training in several processes that a launcher (``accelerate launch``) started: each one's rank, gathering, and whole weights."""

from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepladder.errors import BackendError
from stepladder.lm.tree_attention import core_model

T = TypeVar("T")


def this_process(device: torch.device) -> PartialState:
    """Return this process's place among those that train together. Without a launcher it is alone.

    Args:
        device: The device that it computes on; CPUs communicate over gloo, GPUs over NCCL.
    """
    return PartialState(cpu=device.type == "cpu")


def leave_group() -> None:
    """Leave the group of processes in order, if there is one, as the last thing that a process does.

    Threads of a group that still run when the interpreter ends abort the process: a finished training then looks like a failed one.
    """
    if torch.distributed.is_initialized():
        # Nobody leaves while another one still works, since the first to go closes its connections.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def gathered(items: list[T], here: PartialState) -> list[T]:
    """Return the items of all processes, in the order of the processes. All processes must call it."""
    return gather_object(items) if here.num_processes > 1 else items


def whole_model(kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """Return a model without weights, which takes no memory; ``fill`` adds the weights."""
    with torch.device("meta"):
        return kind(config)


def fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill a model of ``whole_model``, with or without adapters, with its weights.

    Raises:
        BackendError: If weights are missing.
    """
    model.load_state_dict(weights, strict=False, assign=True)
    core_model(model).tie_weights()
    if missing := [name for name, value in model.named_parameters() if value.is_meta]:
        raise BackendError(f"training: {len(missing)} weights were not gathered from the processes: {missing[0]!r} is the first")
