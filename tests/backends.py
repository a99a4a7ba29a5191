"""Asking a policy backend in tests: short requests, and their samples in order."""

from collections.abc import Iterable, Sequence
from typing import Any

from stepladder.interfaces import Policy, StepRequest, collect_all
from stepladder.types import Step


def step_request(
    ticket: int = 0, prefix_ids: Iterable[int] = (5, 6, 7), num_samples: int = 1, seed: int = 0, **options: Any
) -> StepRequest:
    """Return a request behind a short prefix of the tiny tokenizer."""
    return StepRequest(ticket=ticket, prefix_ids=tuple(prefix_ids), num_samples=num_samples, seed=seed, **options)


def samples_of(policy: Policy, requests: Sequence[StepRequest]) -> list[tuple[tuple[Step, ...], ...]]:
    """Submit requests, collect until nothing is in flight, and return the samples of each, in the order of the requests."""
    return [result.samples for result in collect_all(policy, requests)]
