"""A policy with several kinds of step: every kind has a prompt of its own and a share of the samples.

``ActionPolicy`` wraps any policy. Where a search expands a node, it samples each kind after its own prompt. The prompt is context of these
samples alone: the node holds the step, and everything later continues the plain prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

from stepladder.interfaces import Policy, Ranges, StepRequest, StepResult, cancel_requests
from stepladder.types import ROOT_ACTION, Problem, Step, StopReason, derive_seed

_KEPT_PROMPTS = 4096
"""Prompts that stay rendered."""

PromptOf = Callable[[Problem], tuple[int, ...]]
"""The prompt of a problem as token ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """A kind of step."""

    name: str
    """Its name, which is stored with the nodes."""
    share: Fraction
    """Its part of the samples, > 0, beside the shares of the other actions."""
    prompt: PromptOf
    """The prompt that stands in the place of the plain one."""
    after: tuple[str, ...] = ()
    """Actions whose steps it may follow, and ``ROOT_ACTION`` for the question; empty for all."""
    max_steps: int = 1
    """1 is one step. With more, a sample goes on to the end of its solution, at most for so many steps, and all of it is one node."""


def apportion(shares: Sequence[Fraction], count: int, *, offset: Fraction) -> list[int]:
    """Divide samples by systematic sampling: sample i goes to the action whose part of [0, 1) holds (i + offset) / count.

    Args:
        shares: Positive weights.
        count: Samples.
        offset: Uniform in [0, 1); then the expected numbers are exactly proportional to the shares.

    Returns:
        Samples of each action, which sum to ``count``. A number is its exact part where that is whole, else one of its two neighbours.

    Source: Madow 1949, "On the theory of systematic sampling, II".
    """
    ends = [count * end / sum(shares) - offset for end in accumulate(shares, initial=Fraction(0))]
    # Samples before the end of an action are those with i < end.
    below = [max(-(-end.numerator // end.denominator), 0) for end in ends]
    return [after - before for before, after in pairwise(below)]


@dataclass(kw_only=True, slots=True, eq=False)
class _Job:
    """An open request of the caller."""

    ticket: int
    parts: list[tuple[tuple[Step, ...], ...] | None]
    """The samples of each request to the policy, in the order of the actions; None while open."""
    open_parts: int


class ActionPolicy:
    """A ``Policy`` whose samples after a node are shared among actions.

    Requests without ``parent_action`` (rollouts, whole solutions) go to the policy as they are, and so do prompts that are not made of a
    question. The samples of a request come in the order of the actions. Which actions they are depends on the request alone.
    """

    samples_distinct = False

    def __init__(self, policy: Policy, prompt: PromptOf, actions: Sequence[Action]) -> None:
        """Wrap a policy.

        Args:
            policy: The policy.
            prompt: The plain prompt, with which requests begin.
            actions: At least one that may follow each of them and the question.
        """
        self._policy, self._actions = policy, tuple(actions)
        self._prompts = lru_cache(maxsize=_KEPT_PROMPTS)(lambda make, question: make(Problem(id="question", question=question)))
        self._prompt = prompt
        self._inner: dict[int, tuple[_Job, int, Action | None]] = {}
        """Requests to the policy by ticket: the job, the place of the part, its action."""
        self._dropped: set[int] = set()
        self._next_ticket = 0

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the policy, such as its counts of tokens."""
        return getattr(self._policy, name)

    def submit(self, requests: Sequence[StepRequest]) -> None:
        """Queue requests."""
        asked: list[StepRequest] = []
        for request in requests:
            parts = self._parts(request)
            job = _Job(ticket=request.ticket, parts=[None] * len(parts), open_parts=len(parts))
            for place, (action, part) in enumerate(parts):
                self._next_ticket += 1
                self._inner[self._next_ticket] = (job, place, action)
                asked.append(replace(part, ticket=self._next_ticket))
        self._policy.submit(asked)

    def collect(self) -> list[StepResult]:
        """Return finished results, at least one; empty only when nothing is in flight, or when the policy was interrupted."""
        done: list[StepResult] = []
        while not done and (self._inner or self._dropped):
            results = self._policy.collect()
            if not results:
                break
            for result in results:
                if result.ticket in self._dropped:
                    self._dropped.remove(result.ticket)
                    continue
                job, place, action = self._inner.pop(result.ticket)
                job.parts[place] = result.samples if action is None else tuple((_of(action, steps),) for steps in result.samples)
                job.open_parts -= 1
                if not job.open_parts:
                    done.append(StepResult(ticket=job.ticket, samples=tuple(each for part in job.parts for each in part or ())))
        return done

    def cancel(self, tickets: Sequence[int]) -> None:
        """Drop open requests; a policy that can stops working on them."""
        dropped = set(tickets)
        inner = [ticket for ticket, (job, *_) in self._inner.items() if job.ticket in dropped]
        for ticket in inner:
            del self._inner[ticket]
        self._dropped.update(cancel_requests(self._policy, inner))

    def _parts(self, request: StepRequest) -> list[tuple[Action | None, StepRequest]]:
        """Return the requests that one is divided into."""
        plain = self._prompts(self._prompt, request.question) if request.parent_action is not None and request.question else ()
        if not plain or request.prefix_ids[: len(plain)] != plain:
            return [(None, request)]
        actions = [action for action in self._actions if not action.after or (request.parent_action or ROOT_ACTION) in action.after]
        offset = Fraction(derive_seed(request.seed, "actions"), 2**63)
        counts = apportion([action.share for action in actions], request.num_samples, offset=offset)
        return [
            (action, self._with_prompt(request, action, count, len(plain))) for action, count in zip(actions, counts, strict=True) if count
        ]

    def _with_prompt(self, request: StepRequest, action: Action, count: int, plain_length: int) -> StepRequest:
        prompt = self._prompts(action.prompt, request.question)
        shift = len(prompt) - plain_length
        given: Ranges = ((0, len(prompt)), *((begin + shift, end + shift) for begin, end in request.given[1:])) if request.given else ()
        return replace(
            request,
            prefix_ids=(*prompt, *request.prefix_ids[plain_length:]),
            num_samples=count,
            seed=derive_seed(request.seed, "action", action.name),
            max_steps=action.max_steps,
            given=given,
        )


def _of(action: Action, steps: Sequence[Step]) -> Step:
    """Return the steps of a sample as one step of an action."""
    last = steps[-1]
    if len(steps) == 1 or last.stop_reason == StopReason.ERROR:
        return replace(last, action=action.name)
    stated = any(step.sampling_logps is not None for step in steps)
    return Step(
        token_ids=tuple(each for step in steps for each in step.token_ids),
        logps=tuple(each for step in steps for each in step.logps),
        text="".join(step.text for step in steps),
        stop_reason=last.stop_reason,
        message=last.message,
        sampling_logps=tuple(each for step in steps for each in step.sampling_logps or step.logps) if stated else None,
        action=action.name,
    )
