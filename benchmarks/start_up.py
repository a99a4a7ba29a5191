"""Processor seconds that ``stepladder`` takes before it works, in fresh interpreters: the least of several.

python -m benchmarks.start_up --repeats 5

The rows are parts of each other: ``solve`` needs its own modules to refuse bad input, then PyTorch and transformers' models, and the
backends above them.
"""

import argparse
import resource
import subprocess
import sys

from stepladder.terminal import echo

# The collector is set as the command line sets it.
_IMPORT = "import gc; gc.set_threshold(50_000); import "
_LIBRARIES = "torch, transformers.modeling_utils"
_BACKENDS = "stepladder.policy.backends.transformers, stepladder.loops.assembly.prms, stepladder.prm.checkpoints"
CASES = {
    "Python alone": ["-c", "pass"],
    "stepladder --help": ["-m", "stepladder", "--help"],
    "solve, until a refusal": ["-c", f"{_IMPORT}stepladder.cli.app, stepladder.commands.solve"],
    "PyTorch and transformers' models alone": ["-c", f"{_IMPORT}{_LIBRARIES}"],
    "solve, all imports": ["-c", f"{_IMPORT}stepladder.cli.app, stepladder.commands.solve, {_BACKENDS}"],
}
"""Arguments of the interpreter."""


def cpu_seconds(arguments: list[str]) -> float:
    """Return the processor time of a fresh interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure in turn, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="interpreters of each kind")
    repeats = parser.parse_args().repeats
    found = [{name: cpu_seconds(arguments) for name, arguments in CASES.items()} for _ in range(repeats)]
    echo("| what | CPU s |\n|---|---|")
    for name in CASES:
        echo(f"| {name} | {min(each[name] for each in found):.2f} |")


if __name__ == "__main__":
    main()
