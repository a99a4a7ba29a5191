"""Plain settings become a configuration, or one sentence about the first that is wrong."""

import json
from typing import Any

from pydantic import ValidationError

from stepladder.errors import ConfigError
from stepladder.files import too_large
from stepladder.loops.config.explain import explain
from stepladder.loops.config.run import Config


def validated(plain: dict[str, Any], *, where: str) -> Config:
    """Return the configuration of plain settings.

    Args:
        plain: Tables of settings, as in a TOML file.
        where: Their origin, for the message.

    Raises:
        ConfigError: If a setting is unknown, missing or impossible.
    """
    if (large := too_large(plain)) is not None:
        raise ConfigError(f"{where}: setting {large!r}: must be below 2**63: got a larger number -- lower it")
    try:
        config = Config.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(explain(error, where=where)) from None
    _refuse_flags_for_numbers(plain, config.model_dump(mode="json"), where=where, key="")
    return config


def _refuse_flags_for_numbers(given: Any, read: Any, *, where: str, key: str) -> None:
    """Refuse true and false in the place of a number, where pydantic reads 1 and 0.

    Args:
        given: What was given.
        read: The same place of the configuration.
        where: The origin, for the message.
        key: Name of the place.
    """
    if isinstance(given, bool) and isinstance(read, int | float) and not isinstance(read, bool):
        raise ConfigError(f"{where}: setting {key!r}: must be a number: got {json.dumps(given)}")
    if isinstance(given, dict) and isinstance(read, dict):
        for name in given.keys() & read.keys():
            _refuse_flags_for_numbers(given[name], read[name], where=where, key=f"{key}.{name}" if key else name)
    elif isinstance(given, list) and isinstance(read, list):
        for number, (one, other) in enumerate(zip(given, read, strict=False)):
            _refuse_flags_for_numbers(one, other, where=where, key=f"{key}.{number}")
