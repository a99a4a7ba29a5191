"""Trackers that can receive the figures of a training. This imports no model library, so that settings are checked before work starts."""

from collections.abc import Sequence
from importlib.util import find_spec

from stepladder.errors import ConfigError

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
"""Names that ``transformers`` knows; each is also the name of the package that it needs."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that the package of every tracker is installed.

    Raises:
        ConfigError: If one is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"training: report_to names {name!r}, whose package must be installed: it is not -- pip install {name}")
