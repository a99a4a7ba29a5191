"""What is prepared before a vLLM engine starts; vLLM itself is not needed."""

import numba
from llvmlite.binding import ffi

from stepladder.lm.vllm_engine import hide_llvmlite


def test_llvmlites_library_has_no_dict_and_still_compiles():
    """Asked for ``__dict__`` it has none, so that a walk over all modules passes it by; its functions work as before, and twice is once."""
    hide_llvmlite()
    hide_llvmlite()
    assert not hasattr(ffi.lib, "__dict__")
    assert callable(ffi.lib.LLVMPY_GetVersionInfo)

    @numba.njit
    def double(x):
        return 2 * x

    assert double(21) == 42
