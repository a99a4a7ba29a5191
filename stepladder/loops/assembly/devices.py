"""Workers and GPUs of this machine."""

from pathlib import Path

from stepladder.loops.config.run import Config
from stepladder.loops.runs.machine import host_memory, num_cores


def num_workers(config: Config) -> int:
    """Return the number of worker processes: the given one, else one per core on a CPU, or one with a GPU."""
    if config.run.workers:
        return config.run.workers
    if uses_gpu(config.policy.device):
        return config.policy.vllm.data_parallel if config.policy.backend == "vllm" else 1
    return max(1, num_cores() // config.run.threads)


def gpus_per_worker(config: Config) -> int | None:
    """Return the number of GPUs of each worker; None if all workers see all GPUs."""
    section = config.policy.vllm
    return section.tensor_parallel if config.policy.backend == "vllm" and section.data_parallel > 1 else None


def uses_gpu(device: str) -> bool:
    """Say whether a device setting means a GPU on this machine; decided without importing torch for plain CPU settings."""
    if device == "cpu":
        return False
    if device.startswith("cuda"):
        return True
    if not Path("/dev/nvidiactl").exists():
        return False
    import torch

    return torch.cuda.is_available()


def device_memory(device: str) -> int | None:
    """Return the bytes of memory of a ``policy.device``: of the first GPU that it means, or of this machine; None if it is unknown."""
    if not uses_gpu(device):
        return host_memory()
    import torch

    number = int(device.partition(":")[2] or 0)
    return torch.cuda.get_device_properties(number).total_memory if number < torch.cuda.device_count() else None
