"""Requests and results of a wave: expansions, their rollouts, and the scores that they wait for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from stepladder.errors import BackendError
from stepladder.interfaces import Ranges
from stepladder.types import Step, StopReason


class Prefix(NamedTuple):
    """What comes before a step."""

    ids: tuple[int, ...]
    """The prompt, the steps and their observations."""
    observations: Ranges = ()
    """The ranges of ``ids`` that are observations."""

    def after(self, step: Step) -> "Prefix":
        """Return what comes before the step after another one."""
        ids = self.ids + step.token_ids + step.given_ids
        if not step.given_ids:
            return Prefix(ids, self.observations)
        return Prefix(ids, (*self.observations, (len(ids) - len(step.given_ids), len(ids))))


NO_PREFIX = Prefix(())
"""Stands in for a prefix that nobody needs."""


@dataclass(slots=True)
class Rollout:
    """Continuations of a new node that are to value it."""

    place: int
    """The new node, as its place in its expansion."""
    prefix: Prefix
    max_steps: int
    max_tokens: int | None = None
    """Of each sample; None is no cap."""
    steps: list[Step] = field(default_factory=list)
    """All steps of all samples."""
    scores: list[float | None] = field(default_factory=list)
    """Of each step."""
    samples: list[range] = field(default_factory=list)
    """Each sample's steps."""
    answers: list[str | None] = field(default_factory=list)
    """Final answer of each sample that ended by itself."""


@dataclass(slots=True)
class Expansion:
    """One leaf of a wave, and the nodes that grow from it. The lists are parallel: entry i of each belongs to new node i."""

    leaf: int
    num_samples: int
    """0 for a revisited terminal, which needs no request."""
    prefix: Prefix = NO_PREFIX
    tokens_left: int | None = None
    """Tokens that its samples, and then its rollouts, may still have together; None is no cap."""
    first: int = 0
    """Index of its first new node, once the nodes are numbered."""
    steps: Sequence[Step] = ()
    """The step that becomes each new node."""
    parents: Sequence[int] = ()
    """Index of the parent in the tree."""
    depths: Sequence[int] = ()
    counts: Sequence[int] = ()
    """Samples that were merged into each."""
    num_known: int = 0
    """Children that the leaf had before."""
    repeats: Sequence[tuple[int, int]] = ()
    """Children that the leaf had before and that were sampled again: index, and number of samples."""
    unseen: float = 1.0
    """Probability of the steps that were not sampled yet after the leaf, in [0, 1], if the leaf may be sampled again."""
    reopens: bool = False
    """Whether the leaf may be sampled again, once the nodes are numbered."""
    reasons: Sequence[StopReason] = ()
    """As in ``StepTable``, once the nodes are numbered."""
    scores: list[float | None] = field(default_factory=list)
    twins: Sequence[tuple[int, int]] = ()
    """New nodes that repeat an equal step after the same prefix: the place of each in the expansion, and the index of the node whose score
    it shares."""
    rollouts: Sequence[Rollout] = ()
    """Rollouts that value the new nodes in addition to their scores."""
    ends: Sequence[int] = ()
    """Per sample of a sampling method the index of its last node."""


@dataclass(slots=True)
class ScoreJob:
    """Branches to score after one prefix."""

    owner: Expansion
    """The expansion that has to wait for the scores."""
    target: Expansion | Rollout
    """Object that holds the steps and receives their scores."""
    prefix: Prefix
    places: list[int]
    """Places of the steps in the target, branch after branch."""
    branches: tuple[tuple[tuple[int, ...], ...], ...]
    """Tokens of the steps of each branch."""

    @classmethod
    def of(cls, owner: Expansion, target: Expansion | Rollout, prefix: Prefix, branches: list[list[int]]) -> "ScoreJob":
        """Return the job for branches given as places in the target."""
        tokens = tuple([_tokens(target.steps, branch) for branch in branches])
        return cls(owner, target, prefix, list(chain.from_iterable(branches)), tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens to score."""
        steps = chain.from_iterable(self.branches)
        return sum(map(len, steps))


def score_jobs(owner: Expansion, target: Expansion | Rollout, prefix: Prefix, branches: list[list[int]]) -> list[ScoreJob]:
    """Return the jobs for branches after one prefix: one, and another for every part of a branch after an observation."""
    if not any([step.given_ids for step in target.steps]):
        return [ScoreJob.of(owner, target, prefix, branches)]
    parts: dict[Prefix, list[list[int]]] = {}
    for branch in branches:
        start, at, part = prefix, prefix, list[int]()
        for place in branch:
            step = target.steps[place]
            part.append(place)
            at = at.after(step)
            if step.given_ids:
                parts.setdefault(start, []).append(part)
                start, part = at, []
        if part:
            parts.setdefault(start, []).append(part)
    return [ScoreJob.of(owner, target, start, found) for start, found in parts.items()]


def _tokens(steps: Sequence[Step], branch: list[int]) -> tuple[tuple[int, ...], ...]:
    return tuple([steps[place].token_ids for place in branch])


def check_samples(samples: tuple[tuple[Step, ...], ...], *, num_samples: int, max_steps: int) -> None:
    """Check that a policy returned the requested samples.

    Raises:
        BackendError: If it returned another number of samples, or a sample that continues after its end.
    """
    if len(samples) == num_samples and _are_whole(samples, max_steps):
        return
    got = [_reasons(steps) for steps in samples]
    raise BackendError(
        f"policy: a request for {num_samples} samples of up to {max_steps} steps must return as many, of which only the last step may "
        f"end otherwise than at a boundary: got {got} -- run stepladder.testing.check_policy on the backend"
    )


def _reasons(steps: tuple[Step, ...]) -> list[str]:
    return [str(step.stop_reason) for step in steps]


def _are_whole(samples: tuple[tuple[Step, ...], ...], max_steps: int) -> bool:
    """Say whether every sample ends by itself or after ``max_steps`` steps, and not earlier."""
    if max_steps == 1:
        return all([len(steps) == 1 for steps in samples])
    return all(_is_whole(steps, max_steps) for steps in samples)


def _is_whole(steps: tuple[Step, ...], max_steps: int) -> bool:
    if not 1 <= len(steps) <= max_steps:
        return False
    goes_on = steps[-1].stop_reason == StopReason.STEP
    return (not goes_on or len(steps) == max_steps) and all(step.stop_reason == StopReason.STEP for step in steps[:-1])


def as_failed(step: Step) -> Step:
    """Return a step without tokens as a failed step, because any other step without tokens would never end a solution."""
    if step.stop_reason == StopReason.ERROR:
        return step
    return Step(token_ids=(), logps=(), text="", stop_reason=StopReason.ERROR, message=f"empty step with stop reason {step.stop_reason!s}")
