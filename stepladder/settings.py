"""Bounds of settings: number types with their ranges, and the check of settings made in Python.

A settings object is a frozen dataclass whose annotations hold the ranges, once. A configuration reads them through pydantic. If the object
is made in Python, ``check_bounds`` in ``__post_init__`` enforces them.
"""

import math
import types
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from stepladder.errors import ConfigError

Share = Annotated[float, Ge(0), Le(1)]
"""A number in [0, 1]."""
NonNegative = Annotated[float, Ge(0)]
"""A number of at least 0."""
Positive = Annotated[float, Gt(0)]
"""A number above 0."""
Count = Annotated[int, Ge(1)]
"""A whole number of at least 1."""
Natural = Annotated[int, Ge(0)]
"""A whole number of at least 0."""


RuleName = Literal["text", "sentence", "pattern", "tokens", "surprise"]
"""Rules for the end of a step."""


def check_bounds(settings: object, *, where: str) -> None:
    """Check every number and choice of a settings object against its annotation. Types without a range are not checked.

    Raises:
        ConfigError: If a value is out of range; the message begins with ``where``.
    """
    for name, annotation in _annotations(type(settings)).items():
        options, value = _options(annotation), getattr(settings, name)
        if not any(_accepts(option, value) for option in options):
            expected = " or ".join(_described(option) for option in options)
            raise ConfigError(f"{where}: {name} must be {expected}: got {value!r}")


@cache
def _annotations(kind: type) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(kind, include_extras=True).items() if name in kind.__dataclass_fields__}  # pyright: ignore[reportAttributeAccessIssue]


def _options(annotation: Any) -> list[Any]:
    """Return the alternatives of a union, or the annotation alone."""
    return list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else [annotation]


def _accepts(option: Any, value: Any) -> bool:
    if option is type(None):
        return value is None
    if get_origin(option) is Literal:
        return value in get_args(option)
    bounds = _bounds(option)
    if not bounds:
        return True
    is_number = isinstance(value, _numbers(option)) and not isinstance(value, bool)
    return is_number and all(_holds(bound, value) for bound in bounds)


def _numbers(option: Any) -> type | types.UnionType:
    """Return what a number with bounds may be: a whole number is a number, too, but not the other way round."""
    return int if get_args(option)[0] is int else int | float


def _bounds(option: Any) -> list[Ge | Gt | Le | Lt]:
    """Return the bounds of a number, the lower one first."""
    found = getattr(option, "__metadata__", ())
    return [bound for kinds in ((Ge, Gt), (Le, Lt)) for bound in found if isinstance(bound, kinds)]


def _holds(bound: Ge | Gt | Le | Lt, value: Any) -> bool:
    match bound:
        case Ge():
            return value >= bound.ge
        case Gt():
            return value > bound.gt
        case Le():
            return value <= bound.le
        case Lt():
            return value < bound.lt


def _described(option: Any) -> str:
    """Return a choice or a range in words: ``one of linear, cosine``, ``>= 1``, ``in [0, 0.5)``, ``> 0 and finite``."""
    if option is type(None):
        return "None"
    if get_origin(option) is Literal:
        return f"one of {', '.join(map(str, get_args(option)))}"
    whole = "a whole number " if _numbers(option) is int else ""
    match _bounds(option):
        case [Ge(ge=low)]:
            return f"{whole}>= {low}"
        case [Gt(gt=low)]:
            return f"> {low}"
        case [Gt(gt=low), Lt(lt=high)] if high == math.inf:
            return f"> {low} and finite"
        case [(Ge() | Gt()) as low, (Le() | Lt()) as high]:
            opening = f"[{low.ge}" if isinstance(low, Ge) else f"({low.gt}"
            closing = f"{high.le}]" if isinstance(high, Le) else f"{high.lt})"
            return f"in {opening}, {closing}"
    raise AssertionError(f"a bound that has no words yet: {option}")
