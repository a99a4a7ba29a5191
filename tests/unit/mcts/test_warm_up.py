"""Loops that are compiled before a clock runs."""

import subprocess
import sys

import pytest

from stepladder.mcts.methods import METHODS, resolve_method
from stepladder.mcts.warm_up import compile_loops

_CODE = """
import sys
from stepladder.mcts import backup, tree
from stepladder.mcts.methods import resolve_method
from stepladder.mcts.strategies import descent_kernels
from stepladder.mcts.warm_up import compile_loops
from tests.unit.mcts.test_engine import run, score

def compiled():
    modules = (backup, descent_kernels, tree)
    return {name: len(value.signatures) for m in modules for name, value in vars(m).items() if hasattr(value, "signatures")}

method, scored = sys.argv[1], sys.argv[2] == "scored"
compile_loops(resolve_method(method), scored=scored)
before = compiled()
run(method, scorer=score if scored else None)
assert any(before.values())
assert compiled() == before, (before, compiled())
"""


@pytest.mark.parametrize("method", ["mcts", "gumbel"])
@pytest.mark.parametrize("scored", ["scored", "unscored"])
def test_a_search_after_the_warm_up_compiles_nothing(method: str, scored: str) -> None:
    """Every compiled function that the search calls has its machine code already."""
    subprocess.run([sys.executable, "-c", _CODE, method, scored], check=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_warmed_up(method: str) -> None:
    """The tiny search comes to an end with and without scores."""
    for scored in (True, False):
        compile_loops(resolve_method(method), scored=scored)
