"""Machine code for the loops over nodes.

Walking up and down a tree is a short loop per tree and level; as array operations over all trees it is dozens of calls per level, whose
overhead is most of the time where few trees are searched. Compiled code is one thread, in plain IEEE arithmetic, in the order written.
"""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

_Function = TypeVar("_Function", bound=Callable)


def compiled(function: _Function) -> _Function:
    """Return a function as machine code, made at its first call and kept on disk for later processes.

    The code is kept beside the source or, where that cannot be written, in the user's cache directory; where neither can, every process
    makes its own. A changed file is compiled again, a changed other file is not noticed: a compiled function may call compiled functions
    of its own file only, and read constants of other files only if they never change. It cannot have keyword-only parameters.
    """
    try:
        return cast(_Function, njit(cache=True, error_model="numpy")(function))
    except RuntimeError:
        return cast(_Function, njit(error_model="numpy")(function))
