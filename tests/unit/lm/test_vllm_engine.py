"""What is prepared before a vLLM engine starts; vLLM itself is not needed."""

import numba
from llvmlite.binding import ffi

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
