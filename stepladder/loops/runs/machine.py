"""What this machine has: processor, cores, memory, disk, GPUs. Nothing is imported that takes long."""

import os
import re
import shutil
from pathlib import Path

GIB = 1 << 30
_CPU_INFO, _MEM_INFO, _GPUS = Path("/proc/cpuinfo"), Path("/proc/meminfo"), Path("/proc/driver/nvidia/gpus")
_GROUP_FILE = Path("/sys/fs/cgroup/memory.max")


def machine() -> str:
    """Return GPUs, processor, usable cores and memory of this machine, as far as the system tells, such as ``2 cores of Xeon, 8 GB``."""
    gpus = [model for folder in _folders() if (model := _found(folder / "information", r"^Model:\s*(.+)$"))]
    counted = [f"{gpus.count(model)} x {model}" if gpus.count(model) > 1 else model for model in dict.fromkeys(gpus)]
    cores = num_cores()
    processor = re.sub(r"\((R|TM)\)|\bCPU\b|\s+", " ", _found(_CPU_INFO, r"^model name\s*:\s*(.+)$") or "processor")
    memory = host_memory()
    size = [] if memory is None else [f"{memory / GIB:.0f} GB"]
    return ", ".join([*counted, f"{cores} core{'' if cores == 1 else 's'} of {' '.join(processor.split())}", *size])


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> int | None:
    """Return the bytes of memory that this process may use: the machine's, or those of its container; None where Linux does not tell."""
    kilobytes = _found(_MEM_INFO, r"^MemTotal:\s*(\d+)")
    if kilobytes is None:
        return None
    total, group = int(kilobytes) << 10, _found(_GROUP_FILE, r"^(\d+)$")
    return total if group is None else min(total, int(group))


def free_disk(place: Path) -> int:
    """Return the free bytes where a directory is, or would be made."""
    existing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def gib(size: float) -> str:
    """Return a size in bytes as text, such as ``1.5 GiB`` or ``12 MiB``."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.0f} MiB"


def _folders() -> list[Path]:
    return sorted(_GPUS.iterdir()) if _GPUS.is_dir() else []


def _found(path: Path, pattern: str) -> str | None:
    try:
        match = re.search(pattern, path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return None if match is None else match[1].strip()


def worker_memory_mb() -> int | None:
    """Return the largest resident memory so far of the processes that this one started, added up, in MB; None if unknown."""
    peaks = [_found(Path(f"/proc/{process}/status"), r"^VmHWM:\s*(\d+)") for process in _descendants(os.getpid())]
    known = [int(peak) for peak in peaks if peak is not None]
    return round(sum(known) / 1024) if known else None


def _descendants(process: int) -> list[int]:
    children = [
        int(child)
        for listed in Path(f"/proc/{process}/task").glob("*/children")
        if (text := _found(listed, r"(?s)(.+)")) is not None
        for child in text.split()
    ]
    return [each for child in children for each in (child, *_descendants(child))]
