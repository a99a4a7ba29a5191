"""Model names that name a search: ``NAME``, ``NAME@METHOD``, ``NAME@METHOD-SIMULATIONS`` and ``NAME@METHOD-TOKENSt``.

Examples: ``demo@beam`` searches by beam with the default budget, ``demo@mcts-64`` with 64 simulations, ``demo@mcts-4000t`` until 4,000
tokens are generated.
"""

import re
from typing import NamedTuple

from stepladder.errors import right_name
from stepladder.mcts.methods import METHODS
from stepladder.serve.errors import ApiError

_SEARCH = re.compile(r"(?P<method>.+?)(?:-(?P<number>[0-9]{1,12})(?P<unit>t?))?\Z", re.DOTALL)


class NamedSearch(NamedTuple):
    """The search that a model's name asks for."""

    method: str | None
    """Name of the method; None is the server's."""
    simulations: int | None
    """Cap on simulations; None is the server's."""
    tokens: int | None
    """Cap on generated tokens; None is the server's."""


def read_model_name(name: str, *, served: str) -> NamedSearch:
    """Return the search that a model's name asks for.

    Args:
        name: The name in the request.
        served: Name of the served model.

    Raises:
        ApiError: If the model or the method is unknown.
    """
    base, at, search = name.rpartition("@") if name != served else (name, "", "")
    if base != served and name != served:
        raise ApiError(
            404,
            f"model: {name[:100]!r} is not served -- use {served!r}, or {served}@METHOD-SIMULATIONS",
            code="model_not_found",
            param="model",
        )
    if not at:
        return NamedSearch(None, None, None)
    if search in METHODS:
        return NamedSearch(search, None, None)
    match = _SEARCH.match(search)
    method = match["method"] if match else search
    if method not in METHODS:
        raise ApiError(
            404, f"model: no search method {method[:60]!r} -- {right_name(method[:60], METHODS)}", code="model_not_found", param="model"
        )
    number = int(match["number"]) if match and match["number"] else None
    if number == 0:
        raise ApiError(404, f"model: a search needs a budget of at least 1: got {name[:100]!r}", code="model_not_found", param="model")
    in_tokens = bool(match and match["unit"])
    return NamedSearch(method, None if in_tokens else number, number if in_tokens else None)


def all_model_names(served: str) -> list[str]:
    """Return the served name, and the name with every method."""
    return [served, *(f"{served}@{method}" for method in METHODS)]
