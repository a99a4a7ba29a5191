"""Ranges of settings, checked where the settings are made."""

from collections.abc import Mapping

from stepladder.errors import ConfigError


def check_ranges(settings: object, rules: Mapping[str, tuple[str, bool]], *, where: str) -> None:
    """Check settings: each by its name, what it must be, and whether it is.

    Raises:
        ConfigError: If one is not; the message begins with ``where``.
    """
    for name, (expected, holds) in rules.items():
        if not holds:
            raise ConfigError(f"{where}: {name} must be {expected}: got {getattr(settings, name)!r}")
