"""Machine code for the loops over nodes.

A walk through a tree is a short loop per tree and level. As array operations over all trees it is dozens of calls per level, and with few
trees their overhead is most of the time. Compiled code runs in one thread, in plain IEEE arithmetic, in the written order.
"""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

_Function = TypeVar("_Function", bound=Callable)


def compiled(function: _Function) -> _Function:
    """Return a function that is compiled at its first call and cached on disk for later processes.

    The code is kept next to the source or, if that is not writable, in the user's cache directory. If neither is writable, every process
    makes its own. A changed file is compiled again, a changed other file is not noticed: a compiled function may call compiled functions
    of its own file only, and read constants of other files only if they never change. It cannot have keyword-only parameters.
    """
    try:
        return cast(_Function, njit(cache=True, error_model="numpy")(function))
    except RuntimeError:
        return cast(_Function, njit(error_model="numpy")(function))
