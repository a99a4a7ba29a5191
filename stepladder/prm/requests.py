"""Common parts of the scorers of a search: which waiting requests are answered together, and which token ids a model can read."""

from collections import deque
from collections.abc import Callable, Sequence

from stepladder.interfaces import ScoreRequest

_MAX_BRANCHES = 64
"""Number of branches that are scored together; exceeded if one request has more."""


def next_batch(waiting: deque[ScoreRequest], *, most: int, work: Callable[[ScoreRequest], int]) -> list[ScoreRequest]:
    """Take the oldest requests until their work reaches ``most``: at least one, unless none is waiting."""
    batch: list[ScoreRequest] = []
    total = 0
    while waiting and total < most:
        batch.append(waiting.popleft())
        total += work(batch[-1])
    return batch


def next_branches(waiting: deque[ScoreRequest]) -> list[ScoreRequest]:
    """Take the oldest requests until they hold enough branches to be scored together."""
    return next_batch(waiting, most=_MAX_BRANCHES, work=lambda request: max(1, len(request.branches)))


def known_ids(token_ids: Sequence[int], vocab_size: int) -> bool:
    """Say whether every id is one of a model that knows ``vocab_size`` ids."""
    return not token_ids or (min(token_ids) >= 0 and max(token_ids) < vocab_size)
