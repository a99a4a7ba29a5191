"""What a long-lived process remembers, kept within a bound."""

from typing import Any


def forget_oldest(known: dict[Any, Any], most: int) -> None:
    """Forget what a dictionary has had the longest, until it has at most ``most`` entries."""
    while len(known) > most:
        del known[next(iter(known))]
