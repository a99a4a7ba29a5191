"""Checks of settings.

Every check has the same meaning: its condition must hold, or it raises a ``ConfigError``.
"""

import math
from collections.abc import Collection
from typing import Any

from stepladder.errors import ConfigError, right_name


def check(condition: bool, message: str) -> None:
    """Refuse a setting with a message unless a condition holds."""
    if not condition:
        raise ConfigError(message)


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Require a value to be one of some names."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of its choices: got {value!r} -- {right_name(value, choices)}")


def check_count(name: str, value: Any, *, least: int = 1, optional: bool = False) -> None:
    """Require a whole number of at least ``least``. None passes if the setting is optional."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= least
    check(is_count or (optional and value is None), f"{name} must be a whole number >= {least}: got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Require true or false."""
    check(isinstance(value, bool), f"{name} must be true or false: got {value!r}")


def check_number(name: str, value: Any, rule: str, *, optional: bool = False) -> None:
    """Require a finite number that follows a rule. None passes if the setting is optional.

    Args:
        name: Name of the setting.
        value: Its value.
        rule: ``>= 0``, ``> 0``, ``in [0, 1]`` or ``in (0, 1]``.
        optional: Whether the setting may be None.

    Raises:
        ConfigError: If the value breaks the rule.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    holds = (is_number and _in_range(value, rule)) or (optional and value is None)
    check(holds, f"{name} must be a number {rule}: got {value!r}")


def _in_range(value: float, rule: str) -> bool:
    if rule == ">= 0":
        return value >= 0
    if rule == "> 0":
        return value > 0
    if rule == "in [0, 1]":
        return 0 <= value <= 1
    assert rule == "in (0, 1]", rule
    return 0 < value <= 1
