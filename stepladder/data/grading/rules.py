"""Rules of a grader: one of three rules, and the options of rule ``math``."""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Literal, Self, get_args, get_type_hints

from stepladder.errors import ConfigError


class AnswerRule(StrEnum):
    """When a final answer counts as right."""

    EXACT = "exact"
    """The same text after Unicode normalisation, with white space collapsed; case matters."""
    NUMBER = "number"
    """The same number, exactly."""
    MATH = "math"
    """Mathematically equivalent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MathOptions:
    """Options that make rule ``math`` less strict than its default. ``docs/grading.md`` has an example of each."""

    percent: Literal["fraction", "unit"] = "fraction"
    """``fraction``: 50% is 1/2 and nothing else. ``unit``: a per cent sign is a unit that may be left out, so 50% is 50."""
    units: Literal["stated", "optional"] = "stated"
    """``stated``: a unit that the reference states must be given. ``optional``: it may be left out, but not replaced."""
    names: Literal["stated", "optional"] = "stated"
    """``stated``: the reference ``x = 3`` requires an equation, and 3 is not one. ``optional``: 3 is enough."""
    brackets: Literal["kept", "any"] = "kept"
    """``kept``: (1,2), [1,2] and {1,2} differ. ``any``: only the content of the brackets counts."""
    bases: Literal["stated", "optional"] = "stated"
    """``stated``: 11_2 must be given with its base. ``optional``: the digits alone will do."""
    order: Literal["free", "kept"] = "free"
    """``free``: values without brackets, like 1, 2, may come in any order (words may not). ``kept``: they may not."""
    case: Literal["kept", "ignored"] = "kept"
    """``kept``: X is not x. ``ignored``: words and letters are compared without case."""

    @classmethod
    def of(cls, **values: str) -> Self:
        """Return the options with some of them set by name.

        Raises:
            ConfigError: If an option or its value is unknown.
        """
        hints = get_type_hints(cls)
        known = {field.name: get_args(hints[field.name]) for field in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"grading: option must be one of {', '.join(known)}: got {name!r} -- choose one of these")
            if value not in known[name]:
                raise ConfigError(f"grading: option {name} must be {' or '.join(known[name])}: got {value!r} -- choose one of these")
        chosen: dict[str, Any] = values
        return cls(**chosen)


STRICT = MathOptions()
"""The default of every option."""
