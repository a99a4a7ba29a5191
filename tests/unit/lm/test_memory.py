"""Memory of freed tensors goes back to the system, but not all the time."""

import subprocess
import sys

import pytest

from stepladder.lm import memory
from stepladder.lm.memory import MemoryTrim

_HOLES = """
import time
from stepladder.lm import memory

def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

begin = resident_mb()
blocks = [bytearray(100_000) for _ in range(2000)]
trim = memory.MemoryTrim()
# The last block lies above the holes of the others.
del blocks[:-1]
held = resident_mb() - begin
trim.trim()
early = resident_mb() - begin
memory._TRIM_EVERY_S = 0.0
trim.trim()
print(held, early, resident_mb() - begin)
"""


@pytest.mark.skipif(memory._trim is None, reason="this C library gives no memory back")
def test_holes_between_what_is_in_use_are_given_back() -> None:
    """200 MB that were freed below a block in use stay with the process until they are given back."""
    ran = subprocess.run([sys.executable, "-c", _HOLES], capture_output=True, text=True, check=True)
    held, early, after = map(float, ran.stdout.split())
    assert held > 150 and early > 150, "otherwise there is nothing to give back"
    assert after < 20


def test_memory_is_given_back_every_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls at 4.9, 5, 9 and 10.5 s give memory back at 5 and 10.5."""
    clock, trimmed = [0.0], []
    monkeypatch.setattr(memory.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(memory, "_trim", lambda left: trimmed.append((clock[0], left)))
    trim = MemoryTrim()
    for clock[0] in (4.9, 5.0, 9.0, 10.5):
        trim.trim()
    assert trimmed == [(5.0, 0), (10.5, 0)]
