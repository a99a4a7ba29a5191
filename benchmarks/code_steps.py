"""What a code step costs: CPU of the whole machine and wall time per step, with warm servers, one step at a time and four at once.

CPU time is read from ``/proc/stat``, since the sandbox's processes are nobody's children when they end. So it holds whatever else runs:
measure on an idle machine. The first row shows how idle it is.

    python -m benchmarks.code_steps
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from stepladder.data.step_checks.sandbox import CodeSandbox, run_code
from stepladder.terminal import echo

STEPS = 200
PROGRAMS = {
    "prints a number": "print(6 * 7)",
    "imports numpy": "import numpy\nprint(numpy.arange(4).sum())",
    "imports sympy": "import sympy\nprint(sympy.sqrt(16))",
}
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def machine_cpu_s() -> float:
    """Return the CPU seconds that all processes of the machine have had."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:])
    return (user + nice + system) / _TICKS_PER_S


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """Return CPU and wall time of some work, in milliseconds per step."""
    cpu, wall = machine_cpu_s(), time.monotonic()
    work()
    return 1000 * (machine_cpu_s() - cpu) / STEPS, 1000 * (time.monotonic() - wall) / STEPS


def main() -> None:
    """Print the table."""
    echo("| the step | CPU ms, one at a time | wall ms | CPU ms, four at once | wall ms |\n|---|---|---|---|---|")
    idle = cost(lambda: time.sleep(2.0))
    echo(f"| none: two seconds of rest, in as many parts | {idle[0]:.1f} | {idle[1]:.1f} | | |")
    for name, code in PROGRAMS.items():
        with_many = CodeSandbox(num_workers=4)
        with_many.run([f"{code}  # warm {number}" for number in range(8)])
        # A program that has run before is not run again, so every one is another.
        codes = [f"{code}  # {number}" for number in range(STEPS)]
        alone = cost(lambda codes=codes: [run_code(each, deadline_s=5) for each in codes])
        together = cost(lambda codes=codes, many=with_many: many.run(codes))
        echo(f"| {name} | {alone[0]:.1f} | {alone[1]:.1f} | {together[0]:.1f} | {together[1]:.1f} |")


if __name__ == "__main__":
    main()
