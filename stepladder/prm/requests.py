"""Common parts of the scorers of a search: which waiting requests are answered together, and which token ids a model can read."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from stepladder.interfaces import ScoreRequest
from stepladder.types import ValueRow

T = TypeVar("T")

_MAX_BRANCHES = 64
"""Number of branches that are scored together; exceeded if one request has more."""


class SplitPrefix(NamedTuple):
    """The prefix of a request as text."""

    question: str
    """The question."""
    steps: tuple[str, ...]
    """The earlier steps; a step begins with the observation before it."""
    observation: str = ""
    """The observation with which the next step begins; empty without one."""


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


def batches(items: Iterable[T], *, most: int, work: Callable[[T], int]) -> list[list[T]]:
    """Return items in their order in batches whose work is at most ``most``; an item with more is a batch of its own."""
    found: list[list[T]] = []
    room = 0
    for item in items:
        room -= work(item)
        if not found or room < 0:
            found.append([])
            room = most - work(item)
        found[-1].append(item)
    return found


def known_ids(token_ids: Sequence[int], vocab_size: int) -> bool:
    """Say whether every id is one of a model that knows ``vocab_size`` ids."""
    return not token_ids or (min(token_ids) >= 0 and max(token_ids) < vocab_size)


def path_requests(row: ValueRow) -> list[ScoreRequest]:
    """Return the requests for all steps of a path, in order: one for the steps up to each observation, and one for the rest."""
    requests: list[ScoreRequest] = []
    prefix, found, branch = tuple(row.prompt_ids), list[tuple[int, int]](), list[tuple[int, ...]]()
    for step, observed in zip(row.step_ids, row.given_ids or [[]] * len(row.step_ids), strict=True):
        branch.append(tuple(step))
        if observed:
            requests.append(ScoreRequest(ticket=len(requests), prefix_ids=prefix, branches=(tuple(branch),), observations=tuple(found)))
            prefix = (*prefix, *(token for part in (*branch, observed) for token in part))
            found.append((len(prefix) - len(observed), len(prefix)))
            branch = []
    if branch:
        requests.append(ScoreRequest(ticket=len(requests), prefix_ids=prefix, branches=(tuple(branch),), observations=tuple(found)))
    return requests


def begun(observation: str, steps: Iterable[str]) -> Iterator[str]:
    """Yield steps as text; the first begins with the observation before it."""
    for step in steps:
        yield observation + step
        observation = ""
