"""What is prepared before a vLLM engine starts, and when sequences go to it; vLLM itself is not needed."""

import numba
from llvmlite.binding import ffi

from stepladder.lm.vllm_engine import Arrivals
from stepladder.lm.vllm_start import hide_llvmlite


def test_llvmlites_library_has_an_empty_dict_and_still_compiles() -> None:
    """Asked for ``__dict__`` it has nothing to look through; its functions work as before, and twice is once."""
    ffi.lib._fntab.pop("__dict__", None)
    assert not isinstance(ffi.lib.__dict__, dict), "llvmlite no longer makes a function of any name: remove hide_llvmlite"
    ffi.lib._fntab.pop("__dict__", None)
    hide_llvmlite()
    hide_llvmlite()
    assert ffi.lib.__dict__ == {}
    assert callable(ffi.lib.LLVMPY_GetVersionInfo)

    @numba.njit
    def double(x):
        return 2 * x

    assert double(21) == 42


def test_sequences_arrive_together_every_few_steps() -> None:
    """Every third step here; at once if nothing else is open, or none arrived for as long; in their order, without those dropped."""
    arrivals = Arrivals(3)
    arrivals.add("a", 1)
    assert arrivals.take(1) == [1]
    arrivals.add("b", 2)
    assert arrivals.take(2) == []
    arrivals.add("c", 3)
    arrivals.add("d", 4)
    assert arrivals.drop(["a", "c"]) == ["a"]
    assert arrivals.take(3) == []
    assert arrivals.take(3) == [2, 4]
    for _ in range(3):
        assert arrivals.take(3) == []
    arrivals.add("e", 5)
    assert arrivals.take(4) == [5]


def test_with_one_step_nothing_waits() -> None:
    """As on a CPU."""
    arrivals = Arrivals(1)
    for number in range(3):
        arrivals.add(str(number), number)
        assert arrivals.take(9) == [number]
