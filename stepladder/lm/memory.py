"""Less memory, and one sentence for a lack of it, with the setting that helps."""

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stepladder.errors import BackendError
from stepladder.lm.loading import computes_in_bf16, resolve_device

_CPU_ALLOCATOR = "can't allocate memory"
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_TRIM_EVERY_S = 5.0


class MemoryTrim:
    """Returns the memory of freed tensors on the CPU to the system now and then, where the C library can (glibc).

    Tensors of ever other sizes leave holes between each other, and glibc keeps them: a training of 123M parameters in bfloat16 grew from 5
    to 15 GB in 70 updates, while 2 GB were in use at the end of each. Memory that is given back costs time when it is needed again, a fifth
    of a small model's update, so it is not given back in every one.
    """

    def __init__(self) -> None:
        """Begin to wait."""
        self._last = time.monotonic()

    def trim(self) -> None:
        """Return freed memory, unless that was done within the last 5 seconds."""
        if _trim is not None and time.monotonic() - self._last >= _TRIM_EVERY_S:
            _trim(0)
            self._last = time.monotonic()


@contextmanager
def memory_explained(settings: Any, *, where: Callable[[], str], num_processes: int = 1) -> Iterator[None]:
    """Turn an out-of-memory error into one that names the place and the setting to change.

    Args:
        settings: The ``TrainSettings``.
        where: Called on failure; returns what the training was doing.
        num_processes: Processes that share a batch, >= 1.

    Raises:
        BackendError: If memory ran out, on a GPU or on the CPU.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and _CPU_ALLOCATOR not in str(error):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        remedy = memory_remedy(settings, num_processes=num_processes)
        raise BackendError(f"training: out of memory in {where()} ({said}) -- {remedy}") from error


def memory_remedy(settings: Any, *, num_processes: int) -> str:
    """Return the setting to change next. Settings that change no result come first."""
    if (rows := settings.rows_per_pass(num_processes)) > 1:
        return f"set micro_batch_size to {rows // 2}: now {rows} rows go into a forward pass; gradients stay the same"
    if not settings.gradient_checkpointing:
        return "set gradient_checkpointing = true: gradients stay the same, and training is about a third slower"
    if not computes_in_bf16(settings.bf16, resolve_device(settings.device)):
        return "set bf16 = true"
    if settings.lora is None:
        return "train adapters only (lora), or spread the model over several GPUs (training.accelerate_config)"
    return "spread the model over several GPUs (training.accelerate_config), or take a smaller one"
