"""The protocols between the search and the models.

A model backend is a stream: ``submit`` queues requests and returns at once, ``collect`` returns finished results. Tickets match results to
requests; results may come in any order. Each request carries its own seed, so a result does not depend on other requests in flight. A
failed request comes back as data (``StopReason.ERROR`` and a message). An exception means that the backend itself has failed.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, overload, runtime_checkable

from stepladder.errors import BackendError
from stepladder.types import Problem, Step, StopReason, Verdict

Ranges = tuple[tuple[int, int], ...]
"""Ranges of tokens as (begin, end), ascending, without overlap."""


def given_ranges(prompt_length: int, observations: Ranges) -> Ranges:
    """Return the given ranges of a prefix: its prompt, and observations whose ranges count from the end of the prompt."""
    return ((0, prompt_length), *((prompt_length + begin, prompt_length + end) for begin, end in observations))


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRequest:
    """Ask for ``num_samples`` continuations of one prefix."""

    ticket: int
    """Chosen by the caller, unique among its open requests."""
    prefix_ids: tuple[int, ...]
    """Prompt and steps so far, never empty."""
    num_samples: int
    """Continuations to sample, >= 1."""
    seed: int
    """Seed of this request, in [0, 2**63); sample i uses its own stream derived from (seed, i)."""
    temperature: float = 1.0
    """0 is greedy decoding. All samples are then equal, so ask for one."""
    max_step_tokens: int = 256
    """Cap on the tokens of one step."""
    question: str = ""
    """The question, where it is known: a box that it holds already is no final answer when a step repeats it."""
    max_steps: int = 1
    """Maximum steps per sample: 1 stops at the first step boundary; a larger number continues, at most to the end of the solution."""
    max_tokens: int | None = None
    """Cap on the tokens of one sample, all its steps together, >= 1; None is no other cap than those on steps. A sample that has spent it
    before its end is cut, as by the model's context."""
    excluded: tuple[Step, ...] | None = None
    """Single steps that are known after the prefix: a backend that can (``samples_distinct``) draws without replacement, never one of these
    and never a step twice, as long as there are others. None asks for independent samples."""
    given: Ranges = ()
    """Ranges of ``prefix_ids`` that the policy did not sample: the prompt, then observations. Empty if nobody knows."""
    parent_action: str | None = None
    """For steps that become children of a node, the kind of the node's own step (empty at the root, and without actions). None for all
    other samples, which a policy with actions leaves without a kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """The continuations of one ``StepRequest``."""

    ticket: int
    """The request's ticket."""
    samples: tuple[tuple[Step, ...], ...]
    """One entry per sample, in sample order, each with 1 to max_steps steps. Only a sample's last step may have a stop reason other than
    STEP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCounts:
    """Tokens that went through a policy's model so far. A policy that counts them has an attribute ``token_counts``."""

    prefix_tokens: int
    """Tokens of the prefixes of all started samples; every sample counts its own."""
    cached_tokens: int
    """Prefix tokens that did not go through the model for their sample."""
    generated_tokens: int
    """Tokens sampled."""
    forwarded_tokens: int
    """Tokens that went through the model: prefix tokens that were not cached, and all sampled tokens except each sample's last."""


@runtime_checkable
class Policy(Protocol):
    """Proposes steps.

    A policy that follows ``StepRequest.excluded`` has an attribute ``samples_distinct`` that is true.
    """

    def submit(self, requests: Sequence[StepRequest]) -> None:
        """Queue requests and return at once."""
        ...

    def collect(self) -> list[StepResult]:
        """Return finished results, at least one. The list is empty only if nothing is in flight. Blocks until a result is finished."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """Ask for the scores of the steps in branches that continue one prefix."""

    ticket: int
    """Chosen by the caller, unique among its open requests."""
    prefix_ids: tuple[int, ...]
    """Prompt and earlier steps, never empty. They are context and are not scored again."""
    branches: tuple[tuple[tuple[int, ...], ...], ...]
    """Branches (siblings). A branch is a sequence of steps, a step a sequence of token ids. Every step is scored. A branch ends before an
    observation: what follows one is another request."""
    observations: Ranges = ()
    """Ranges of ``prefix_ids`` after the prompt that the policy did not sample. They are context: no score counts them as steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreResult:
    """The scores of one ``ScoreRequest``."""

    ticket: int
    """The request's ticket."""
    scores: tuple[tuple[float | None, ...], ...]
    """One score in [0, 1] per branch and step; None if the scorer could not score the step."""


@runtime_checkable
class StepScorer(Protocol):
    """Scores steps: a process reward model."""

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        """Queue requests and return at once."""
        ...

    def collect(self) -> list[ScoreResult]:
        """Return finished results, at least one. The list is empty only if nothing is in flight."""
        ...


@runtime_checkable
class Renderer(Protocol):
    """Turns problems into prompts, and solutions into answers, in the same way everywhere."""

    hash: str
    """Identifies the template, the tokenizer and the step format. It is stored with everything made from them."""

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """Return the prompt of a problem as token ids."""
        ...

    def extract_answer(self, text: str) -> str | None:
        """Return the final answer that a solution states, or None."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of steps, without special tokens."""
        ...


class ToolCall(NamedTuple):
    """A step that may call a tool."""

    question: str
    """The question, where it is known."""
    turns: tuple[tuple[str, str], ...]
    """The solution before the step, as pairs of sampled text and the observation after it; the last observation is empty."""
    step: str
    """The step."""

    @property
    def sampled(self) -> str:
        """What the policy wrote before the step."""
        return "".join(text for text, _ in self.turns)

    @property
    def solution(self) -> str:
        """Everything before the step, observations included."""
        return "".join(text + observed for text, observed in self.turns)


class Observation(NamedTuple):
    """What a tool returned."""

    text: str
    """Its output, or the message of its error."""
    failed: bool = False
    """Whether it failed."""


class Tool(Protocol):
    """Runs what a step asks for."""

    def observe(self, calls: Sequence[ToolCall]) -> list[Observation | None]:
        """Return the observation after each step, in order; None after a step that calls nothing. Equal calls have equal observations."""
        ...

    def close(self) -> None:
        """End the tool's processes; a further call starts new ones."""
        ...


def sampled_runs(ids: Sequence[int], observations: Ranges, *, start: int) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Return the tokens from ``start`` on as pairs of sampled tokens and the observation after them, which is empty at the end."""
    runs = []
    for begin, end in (*observations, (len(ids), len(ids))):
        runs.append((ids[start:begin], ids[begin:end]))
        start = end
    return runs


@runtime_checkable
class Verifier(Protocol):
    """Holds the reference answers, outside the search."""

    def grade(self, answers: Sequence[tuple[str, str | None]]) -> list[Verdict]:
        """Grade (problem id, final answer or None) pairs, in order."""
        ...


def answer_of(renderer: Renderer, steps: Sequence[Step], before: str = "") -> str | None:
    """Return the final answer of a solution; None if it did not end by itself, or states none.

    A truncated solution has no answer, even if the text so far states one: it might have continued to another.

    Args:
        renderer: Reads the answer.
        steps: The last steps of the solution, at least one.
        before: Text of the steps before them.
    """
    last = steps[-1]
    if last.stop_reason != StopReason.END or not last.token_ids:
        return None
    return renderer.extract_answer(before + "".join([step.text for step in steps]))


@overload
def collect_all(backend: Policy, requests: Sequence[StepRequest]) -> list[StepResult]: ...
@overload
def collect_all(backend: StepScorer, requests: Sequence[ScoreRequest]) -> list[ScoreResult]: ...
def collect_all(backend: Any, requests: Sequence[Any]) -> list[Any]:
    """Submit requests to an idle backend, and return their results in the order of the requests."""
    backend.submit(requests)
    found: dict[int, Any] = {}
    while results := backend.collect():
        found |= {result.ticket: result for result in results}
    return [found[request.ticket] for request in requests]


def cancel_requests(backend: Any, tickets: Sequence[int]) -> Sequence[int]:
    """Have a backend with a method ``cancel`` stop working on open requests.

    Returns:
        The requests whose results still come, and are to be ignored: all of them with another backend, else none.
    """
    cancel = getattr(backend, "cancel", None)
    if cancel is None:
        return tickets
    if tickets:
        cancel(tickets)
    return ()


def check_ticket(ticket: int, open_tickets: Container[int]) -> None:
    """Check that the ticket of a new request is not already open.

    Raises:
        BackendError: If it is.
    """
    if ticket in open_tickets:
        raise BackendError(f"submit: ticket must be unique among open requests: got {ticket} again")
