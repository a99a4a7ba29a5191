"""Expanders: the policy requests of one problem's search after the leaves of a wave, and the resulting nodes.

There is one for steps and one for whole solutions. An expander also numbers the new nodes once a wave is complete, in wave order, so that
arrival order leaves no trace.
"""

import math
from collections.abc import Callable
from typing import Protocol

from stepladder.mcts.expansion import Expansion, Prefix, ScoreJob, as_failed
from stepladder.mcts.families import Families, SiblingKey
from stepladder.mcts.search_method import SearchMethod
from stepladder.mcts.settings.growth import Sampling, Solutions, Steps
from stepladder.mcts.spending import Spending
from stepladder.mcts.tree import StepTable, Tree
from stepladder.types import Step, StopReason

_StepKey = tuple[int, tuple[int, ...], tuple[int, ...], StopReason]
"""(parent, tokens, observation, stop reason): two samples with equal keys are the same node."""
_STEP, _LENGTH, _DEPTH = StopReason.STEP, StopReason.LENGTH, StopReason.DEPTH
"""Looking a member of an enum up is Python code."""


class Expander(Protocol):
    """Expands the leaves of one search."""

    def max_steps_after(self, leaf: int) -> int:
        """Return how many steps a sample after a leaf has at most."""
        ...

    def samples_after(self, leaves: list[int], size: int) -> list[int]:
        """Return how many samples each leaf of a wave gets; 0 if its solution has ended."""
        ...

    def simulations_of(self, samples: list[int]) -> int:
        """Return the number of simulations of a wave, given the samples of its leaves."""
        ...

    def sampling_seed(self, expansion: Expansion) -> int:
        """Return the seed of an expansion's samples."""
        ...

    def graft(self, expansion: Expansion, samples: tuple[tuple[Step, ...], ...]) -> int:
        """Turn samples into the new nodes of an expansion, and return the tokens of the samples."""
        ...

    def excluded(self, expansion: Expansion) -> tuple[Step, ...] | None:
        """Return the steps that the samples of an expansion must differ from; None if they are independent."""
        ...

    def score_jobs(self, expansion: Expansion) -> list[ScoreJob]:
        """Return the scoring job of an expansion, with every new step once."""
        ...

    def number(self, expansion: Expansion) -> None:
        """Enter the new nodes into the table of steps."""
        ...


class StepExpander:
    """Expands leaves by single steps; equal ones become one child."""

    def __init__(
        self,
        method: SearchMethod,
        growth: Steps,
        *,
        table: StepTable,
        max_depth: int,
        seed_of: Callable[..., int],
        families: Families | None,
    ) -> None:
        """Expand by a method's settings, into a table of steps; ``families`` only if nodes can be sampled again."""
        self._table, self._seed_of = table, seed_of
        self._temperature = float(method.sampling.temperature)
        self._num_children, self._root_samples = growth.num_children, method.root_samples
        self._branch_entropy, self._by_text = growth.branch_entropy, growth.merge == "text"
        self._is_distinct = growth.siblings == "distinct"
        self._families = families
        self._cuts = _Cuts(method.sampling, max_depth)

    def max_steps_after(self, leaf: int) -> int:
        """Return 1."""
        return 1

    def samples_after(self, leaves: list[int], size: int) -> list[int]:
        """Return how many steps to sample after each leaf; 0 if its solution has ended."""
        return [self._samples_of(leaf) for leaf in leaves]

    def _samples_of(self, leaf: int) -> int:
        if self._table.stop_reasons[leaf] is not _STEP:
            return 0
        if self._temperature == 0:
            return 1
        if self._families is not None and self._families.num_drawn(leaf):
            return self._families.again_samples
        if leaf == Tree.ROOT:
            return self._root_samples
        return 1 if self._branch_entropy is not None and self._goes_straight(leaf, self._branch_entropy) else self._num_children

    def _goes_straight(self, leaf: int, least_entropy: float) -> bool:
        """Say whether a leaf's own step was too certain for the leaf to branch."""
        logps = self._table.steps[leaf].logps
        return -math.fsum(logps) < least_entropy * len(logps)

    def simulations_of(self, samples: list[int]) -> int:
        """Return the leaves of the wave."""
        return len(samples)

    def sampling_seed(self, expansion: Expansion) -> int:
        """Return the seed of an expansion's samples. If there were samples before, it depends on their number."""
        drawn = 0 if self._families is None else self._families.num_drawn(expansion.leaf)
        return self._seed_of(expansion.leaf, "again", drawn) if drawn else self._seed_of(expansion.leaf)

    def graft(self, expansion: Expansion, samples: tuple[tuple[Step, ...], ...]) -> int:
        """Turn samples of one step each into children, and return their tokens. Those equal to a child that exists are repeats."""
        steps: list[Step] = []
        counts: list[int] = []
        num_tokens, by_text = 0, self._by_text
        known: dict[SiblingKey, int] = {}
        for (step,) in samples:
            token_ids = step.token_ids
            if not token_ids:
                step = as_failed(step)
            num_tokens += len(token_ids)
            key = (" ".join(step.text.split()) if by_text else token_ids, step.stop_reason)
            if key in known:
                counts[known[key]] += 1
            else:
                known[key] = len(steps)
                steps.append(step)
                counts.append(1)
        expansion.steps, expansion.counts = steps, counts
        if self._families is not None:
            self._families.join(expansion, list(known), [step for (step,) in samples])
        expansion.parents = [expansion.leaf] * len(expansion.steps)
        expansion.depths = [self._table.depths[expansion.leaf] + 1] * len(expansion.steps)
        return num_tokens

    def score_jobs(self, expansion: Expansion) -> list[ScoreJob]:
        """Return one job of one branch per child. A failed child has nothing to score."""
        steps = expansion.steps
        places = [place for place, step in enumerate(steps) if step.token_ids]
        if not places:
            return []
        branches = tuple([(step.token_ids,) for step in steps if step.token_ids])
        return [ScoreJob(expansion, expansion, expansion.prefix, places, branches)]

    def number(self, expansion: Expansion) -> None:
        """Enter the new nodes into the table."""
        expansion.first = len(self._table.steps)
        expansion.reasons = self._cuts.reasons_of(expansion)
        _enter(self._table, expansion)
        if self._families is not None:
            self._families.enter(expansion)

    def excluded(self, expansion: Expansion) -> tuple[Step, ...] | None:
        """Return the steps that the samples of an expansion must differ from; None if they are independent."""
        if not self._is_distinct:
            return None
        return () if self._families is None else tuple(self._families.drawn_after(expansion.leaf))


class SolutionExpander:
    """Expands a node by solutions from there on, which become branches that share their first steps.

    A wave is one expansion. The numbers of its nodes are therefore known as soon as its samples are there.
    """

    def __init__(
        self,
        method: SearchMethod,
        growth: Solutions,
        *,
        table: StepTable,
        spending: Spending,
        seed_of: Callable[..., int],
        prompt_ids: tuple[int, ...],
        scored: bool,
    ) -> None:
        """Expand by a method's settings, into a table of steps; ``scored`` says whether steps are scored."""
        self._table, self._spending, self._seed_of, self._prompt_ids = table, spending, seed_of, prompt_ids
        self._cuts = _Cuts(method.sampling, spending.budget.max_depth)
        self._shared: dict[_StepKey, int] = {}
        """Nodes by their step."""
        self._longest, self._max_depth = growth.draw_steps if scored else None, spending.budget.max_depth

    def max_steps_after(self, leaf: int) -> int:
        """Return the steps down to the depth limit, or those of a shorter draw."""
        left = self._max_depth - self._table.depths[leaf]
        return left if self._longest is None else min(left, self._longest)

    def samples_after(self, leaves: list[int], size: int) -> list[int]:
        """Return the draws of the wave."""
        assert len(leaves) == 1, leaves
        return [size]

    def simulations_of(self, samples: list[int]) -> int:
        """Return the draws of the wave."""
        return sum(samples)

    def sampling_seed(self, expansion: Expansion) -> int:
        """Return the seed of a wave's draws. It depends on the number of earlier draws."""
        return self._seed_of(expansion.leaf, self._spending.num_simulations - expansion.num_samples)

    def graft(self, expansion: Expansion, samples: tuple[tuple[Step, ...], ...]) -> int:
        """Turn whole solutions into branches, and return their tokens.

        The last node of a draw stays separate even if an equal node exists, so that the tree has one leaf per draw, in the order of the
        draws; unless the draw stopped short of an end, where others may go on.
        """
        expansion.first = first = len(self._table.steps)
        known: dict[_StepKey, int] = {}
        depth = self._table.depths[expansion.leaf]
        new: list[Step] = []
        parents: list[int] = []
        depths: list[int] = []
        twins: list[tuple[int, int]] = []
        ends: list[int] = []
        num_tokens = 0
        for steps in samples:
            at = expansion.leaf
            for i, sampled in enumerate(steps, start=1):
                step = sampled if sampled.token_ids else as_failed(sampled)
                num_tokens += len(step.token_ids)
                key = (at, step.token_ids, step.given_ids, step.stop_reason)
                found = known.get(key, self._shared.get(key))
                stops_short = step.stop_reason is _STEP and depth + i < self._max_depth
                if found is None or (i == len(steps) and not stops_short):
                    if found is not None:
                        twins.append((len(new), found))
                    at = first + len(new)
                    known.setdefault(key, at)
                    parents.append(key[0])
                    new.append(step)
                    depths.append(depth + i)
                else:
                    at = found
                if step.stop_reason == StopReason.ERROR:
                    break
            ends.append(at)
        expansion.steps, expansion.parents, expansion.depths = new, parents, depths
        expansion.counts, expansion.twins, expansion.ends = [1] * len(new), twins, ends
        return num_tokens

    def score_jobs(self, expansion: Expansion) -> list[ScoreJob]:
        """Cut the new nodes, except the twins, into branches that are as long as possible, so that every step is scored once."""
        groups: dict[int, list[list[int]]] = {}
        branch_ending_at: dict[int, list[int]] = {}
        twins = {place for place, _ in expansion.twins}
        for place, step in enumerate(expansion.steps):
            if place in twins or not step.token_ids:
                continue
            parent = expansion.parents[place]
            branch = branch_ending_at.pop(parent, None)
            if branch is None:
                branch = []
                groups.setdefault(parent, []).append(branch)
            branch.append(place)
            if not step.given_ids:
                branch_ending_at[expansion.first + place] = branch
        return [ScoreJob.of(expansion, expansion, self._prefix(expansion, at), branches) for at, branches in groups.items()]

    def _prefix(self, expansion: Expansion, at: int) -> Prefix:
        """Return what comes before the steps after a node, which may be a new one."""
        steps: list[Step] = []
        while at >= expansion.first:
            place = at - expansion.first
            steps.append(expansion.steps[place])
            at = expansion.parents[place]
        prefix = expansion.prefix if at == expansion.leaf else prefix_of(self._table, self._prompt_ids, at)
        for step in reversed(steps):
            prefix = prefix.after(step)
        return prefix

    def excluded(self, expansion: Expansion) -> None:
        """Draws are independent."""

    def number(self, expansion: Expansion) -> None:
        """Enter the new nodes into the table and remember them for later draws."""
        table, first = self._table, expansion.first
        assert first == len(table.steps), "the numbers were given when the samples came in"
        expansion.reasons = self._cuts.reasons_of(expansion)
        _enter(table, expansion)
        for place, twin in expansion.twins:
            table.scores[first + place] = table.scores[twin]
        for index, step in enumerate(expansion.steps, start=first):
            self._shared.setdefault((table.parents[index], step.token_ids, step.given_ids, step.stop_reason), index)


class _Cuts:
    """How the stop reasons of steps become those of nodes."""

    def __init__(self, sampling: Sampling, max_depth: int) -> None:
        self._continues, self._max_depth = sampling.cut_steps == "continue", max_depth

    def reasons_of(self, expansion: Expansion) -> list[StopReason]:
        """Return the stop reason at each new node: a cut step may be a segment of the solution, and the depth limit cuts it, too."""
        reasons = [step.stop_reason for step in expansion.steps]
        if self._continues:
            reasons = [_STEP if reason == _LENGTH else reason for reason in reasons]
        if max(expansion.depths, default=0) >= self._max_depth:
            for place, depth in enumerate(expansion.depths):
                if depth >= self._max_depth and reasons[place] == _STEP:
                    reasons[place] = _DEPTH
        return reasons


def prefix_of(table: StepTable, prompt_ids: tuple[int, ...], node: int) -> Prefix:
    """Return what comes before the steps after a node of the tree."""
    start = len(prompt_ids)
    return Prefix(prompt_ids + table.path_ids(node), tuple([(start + begin, start + end) for begin, end in table.observations(node)]))


def _enter(table: StepTable, expansion: Expansion) -> None:
    table.steps += expansion.steps
    table.has_observations = table.has_observations or any([step.given_ids for step in expansion.steps])
    table.has_actions = table.has_actions or any([step.action for step in expansion.steps])
    table.parents += expansion.parents
    table.depths += expansion.depths
    table.stop_reasons += expansion.reasons
    table.scores += expansion.scores
