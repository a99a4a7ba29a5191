"""What this machine has: memory, cores, disk, GPUs. Nothing is imported that takes long."""

import os
import shutil
from pathlib import Path

from stepladder.loops.assembly.devices import uses_gpu

GIB = 1 << 30
_MEMORY_FILE = Path("/proc/meminfo")
_GROUP_FILE = Path("/sys/fs/cgroup/memory.max")


def gib(size: float) -> str:
    """Return a size in bytes as text, such as ``1.5 GiB`` or ``12 MiB``."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.0f} MiB"


def host_memory() -> int | None:
    """Return the bytes of memory that this process may use: the machine's, or those of its container; None where Linux does not tell."""
    if not _MEMORY_FILE.is_file():
        return None
    total = next(int(line.split()[1]) << 10 for line in _MEMORY_FILE.read_text().splitlines() if line.startswith("MemTotal:"))
    group = _GROUP_FILE.read_text().strip() if _GROUP_FILE.is_file() else "max"
    return min(total, int(group)) if group.isdigit() else total


def device_memory(device: str) -> int | None:
    """Return the bytes of memory of a ``policy.device``: of the first GPU that it means, or of this machine."""
    if not uses_gpu(device):
        return host_memory()
    import torch

    number = int(device.partition(":")[2] or 0)
    return torch.cuda.get_device_properties(number).total_memory if number < torch.cuda.device_count() else None


def free_disk(place: Path) -> int:
    """Return the free bytes where a directory is, or would be made."""
    existing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
