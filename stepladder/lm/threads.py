"""CPU threads of a process that runs models."""

import os

import torch

SMALL_MODEL = 30_000_000
"""Parameters below which one thread is about as fast as several on idle cores, and many times faster beside other work, which would keep
the threads waiting for each other in every operation."""
_SEVERAL = torch.get_num_threads()
_largest = 0


def fit_threads(num_parameters: int) -> None:
    """Give this process one thread while all models that it has loaded are small, else torch's own number of threads.

    The environment variable ``OMP_NUM_THREADS``, if it is set, has the say instead.

    Args:
        num_parameters: Parameters of a model that was just loaded onto the CPU.
    """
    global _largest
    if "OMP_NUM_THREADS" in os.environ:
        return
    _largest = max(_largest, num_parameters)
    torch.set_num_threads(1 if _largest < SMALL_MODEL else _SEVERAL)
