"""The machine that a run uses, in words."""

import os
import re
from pathlib import Path

_CPU_INFO, _MEM_INFO, _GPUS = Path("/proc/cpuinfo"), Path("/proc/meminfo"), Path("/proc/driver/nvidia/gpus")


def machine() -> str:
    """Return GPUs, processor, usable cores and memory of this machine, as far as the system tells, such as ``2 cores of Xeon, 8 GB``."""
    gpus = [model for folder in _folders() if (model := _found(folder / "information", r"^Model:\s*(.+)$"))]
    counted = [f"{gpus.count(model)} x {model}" if gpus.count(model) > 1 else model for model in dict.fromkeys(gpus)]
    cores = len(os.sched_getaffinity(0))
    processor = re.sub(r"\((R|TM)\)|\bCPU\b|\s+", " ", _found(_CPU_INFO, r"^model name\s*:\s*(.+)$") or "processor")
    kilobytes = _found(_MEM_INFO, r"^MemTotal:\s*(\d+)")
    memory = [] if kilobytes is None else [f"{int(kilobytes) / 1024**2:.0f} GB"]
    return ", ".join([*counted, f"{cores} core{'' if cores == 1 else 's'} of {' '.join(processor.split())}", *memory])


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
