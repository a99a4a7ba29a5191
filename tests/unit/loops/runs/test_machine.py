"""What this machine has, as far as the system tells."""

import os
from pathlib import Path

import pytest

from stepladder.loops.runs import machine


def _system(place: Path, monkeypatch: pytest.MonkeyPatch, *, limit: str) -> None:
    (place / "cpuinfo").write_text("processor : 0\nmodel name : Some(R) CPU 3000\n")
    (place / "meminfo").write_text("MemTotal:       16777216 kB\nMemFree: 1 kB\n")
    (place / "memory.max").write_text(f"{limit}\n")
    for name, file in (("_CPU_INFO", "cpuinfo"), ("_MEM_INFO", "meminfo"), ("_GROUP_FILE", "memory.max"), ("_GPUS", "gpus")):
        monkeypatch.setattr(machine, name, place / file)


@pytest.mark.parametrize(("limit", "gigabytes"), [("max", 16), (str(4 << 30), 4), (str(64 << 30), 16)])
def test_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, gigabytes: int) -> None:
    """Where it has less than the machine; the words on a run say the same as the checks before it."""
    _system(tmp_path, monkeypatch, limit=limit)
    assert machine.host_memory() == gigabytes << 30
    assert machine.machine().endswith(f" of Some 3000, {gigabytes} GB")


def test_a_system_that_tells_nothing_is_described_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every system has these files, or says which cores a process may use."""
    for name in ("_CPU_INFO", "_MEM_INFO", "_GROUP_FILE", "_GPUS"):
        monkeypatch.setattr(machine, name, tmp_path / "missing")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert (machine.host_memory(), machine.machine()) == (None, "3 cores of processor")
