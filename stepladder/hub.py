"""The Hugging Face hub without a connection: one quick request replaces the libraries' half a minute of retries for each file."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from stepladder.errors import CheckpointError

_ANSWER_S = 5.0
"""Longest wait for any answer of the hub."""
_SWITCH = "HF_HUB_OFFLINE"


@cache
def why_unreachable() -> str | None:
    """Return why the hub cannot be reached, or None if it can. It is asked once per process, for a few seconds at most."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    failures: list[str] = []
    answered = threading.Event()

    def ask() -> None:
        import httpx2
        from huggingface_hub.utils import get_session

        try:
            get_session().head(constants.ENDPOINT, timeout=_ANSWER_S)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            failures.append(str(error) or type(error).__name__)
        answered.set()

    # A name lookup may take longer than any timeout of a request. The thread is then abandoned.
    threading.Thread(target=ask, daemon=True).start()
    if not answered.wait(2 * _ANSWER_S):
        return f"no answer within {2 * _ANSWER_S:g} s"
    return failures[0] if failures else None


@contextmanager
def cached_where_unreachable() -> Iterator[None]:
    """If the hub cannot be reached, make its libraries read only their cache while the block runs."""
    from huggingface_hub import constants

    if why_unreachable() is None or constants.HF_HUB_OFFLINE:
        yield
        return
    # Libraries read these names at every request. ``datasets`` has its own copy.
    places = [constants, *(sys.modules[name] for name in ("datasets.config",) if name in sys.modules)]
    for place in places:
        setattr(place, _SWITCH, True)
    try:
        yield
    finally:
        for place in places:
            setattr(place, _SWITCH, False)


def check_model_source(source: str) -> None:
    """Check that a model that is not a directory is on the hub or in its cache. Do this before model libraries load for seconds.

    Raises:
        CheckpointError: If it is in neither.
    """
    if not Path(source).is_dir() and why_unreachable() is not None and local_directory(source) is None:
        raise CheckpointError(absent(source, "model"))


def local_directory(source: str) -> Path | None:
    """Return the directory of a model, or where the hub's cache holds its configuration; None if it is not on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(source).is_dir():
        return Path(source)
    try:
        found = try_to_load_from_cache(source, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def absent(source: object, what: str) -> str:
    """Return the error for a source that is not a directory and cannot be fetched, because the hub cannot be reached."""
    from huggingface_hub import constants

    return (
        f"{source}: must be a directory or a hub id: there is no such directory, the cache holds no such {what}, and {constants.ENDPOINT} "
        f"cannot be reached ({why_unreachable()}) -- correct the path, or fetch it once where there is a network"
    )
