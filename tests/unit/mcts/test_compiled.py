"""Compiled functions: where their code is kept, and who pays for the compiler."""

import math
import subprocess
import sys

from stepladder.mcts.compiled import compiled


def test_code_that_cannot_be_kept_is_compiled_all_the_same():
    """A function without a source file has no place for its code; numbers follow IEEE 754, division by zero included."""
    scope = {}
    exec("def ratio(a, b):\n    return a / b\n", scope)
    ratio = compiled(scope["ratio"])
    assert ratio(1.0, 4.0) == 0.25 and ratio(1.0, 0.0) == math.inf


def test_the_command_line_does_not_load_the_compiler():
    """``stepladder --help`` must answer at once."""
    done = subprocess.run(
        [sys.executable, "-c", "import stepladder.cli.app, sys; print('numba' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
