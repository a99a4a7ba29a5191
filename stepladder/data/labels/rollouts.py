"""Step labels from rollouts: how often a policy still ends right from a prefix of a solution.

``estimate_prefixes`` asks policy and verifier; ``rollout_values`` and ``first_error_values`` turn the results into values of a tree's
nodes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stepladder.data.labels.values import gather_evidence, is_wrong
from stepladder.errors import ConfigError
from stepladder.interfaces import Policy, Renderer, StepRequest, StepResult, Verifier, answer_of, given_ranges
from stepladder.tree_paths import observation_ids, path_to
from stepladder.types import Failures, Problem, Step, StopReason, TreeRecord, derive_seed


class Prefix(NamedTuple):
    """A question and the beginning of a solution that states no final answer."""

    problem: Problem
    """The problem."""
    token_ids: tuple[int, ...]
    """The steps so far with their observations, concatenated."""
    observations: tuple[tuple[int, int], ...] = ()
    """Ranges of ``token_ids`` that were given instead of sampled, as (begin, end)."""

    @property
    def sampled_ids(self) -> tuple[int, ...]:
        """The steps without the observations."""
        given = {place for begin, end in self.observations for place in range(begin, end)}
        return tuple([token for place, token in enumerate(self.token_ids) if place not in given])


class Estimate(NamedTuple):
    """Rollouts from one prefix."""

    right: int
    """Rollouts that ended right."""
    total: int
    """Rollouts of the policy, without failed ones, which carry no information."""
    tokens: int = 0
    """Tokens that they generated."""
    failures: Failures = Failures()
    """Failed samples of the policy."""
    partial: float = 0.0
    """Sum of the partial credits of the other rollouts."""

    @property
    def soft(self) -> float | None:
        """Mean outcome of the rollouts, in [0, 1]: the share of right ones if there is no partial credit. None without a rollout."""
        return (self.right + self.partial) / self.total if self.total else None

    @property
    def hard(self) -> float | None:
        """1 if at least one rollout ended right, else 0; None without a rollout."""
        return float(self.right > 0) if self.total else None


Ask = Callable[[Sequence[Prefix]], list[Estimate]]
"""Rolls out from prefixes."""


def estimate_prefixes(
    policy: Policy,
    renderer: Renderer,
    verifier: Verifier,
    prefixes: Sequence[Prefix],
    *,
    num_rollouts: int,
    seed: int,
    temperature: float = 1.0,
    max_steps: int = 16,
    max_step_tokens: int = 256,
) -> list[Estimate]:
    """Return how many of ``num_rollouts`` rollouts from every prefix end right.

    Args:
        policy: Samples the rollouts.
        renderer: Its renderer.
        verifier: Grades them.
        prefixes: Start of the rollouts.
        num_rollouts: Rollouts per prefix, >= 1.
        seed: Seed of the rollouts; those of a prefix depend on it, the problem's id and the prefix alone.
        temperature: Of the rollouts, > 0.
        max_steps: Steps of a rollout, >= 1.
        max_step_tokens: Tokens of a step, >= 1.

    Raises:
        ConfigError: If ``num_rollouts`` is below 1.

    Source: Wang et al. 2024, "Math-Shepherd: verify and reinforce LLMs step-by-step without human annotations", section 3.3.
    """
    if num_rollouts < 1:
        raise ConfigError(f"estimate_prefixes: num_rollouts must be >= 1: got {num_rollouts}")
    prompts = [renderer.prompt_ids(prefix.problem) for prefix in prefixes]
    policy.submit(
        [
            StepRequest(
                ticket=ticket,
                prefix_ids=(*prompt, *token_ids),
                num_samples=num_rollouts,
                seed=derive_seed(seed, "rollout", problem.id, *token_ids),
                temperature=temperature,
                max_step_tokens=max_step_tokens,
                max_steps=max_steps,
                question=problem.question,
                given=given_ranges(len(prompt), observations),
            )
            for ticket, (prompt, (problem, token_ids, observations)) in enumerate(zip(prompts, prefixes, strict=True))
        ]
    )
    ends: dict[int, _Ends] = {}
    while results := policy.collect():
        # The steps themselves would fill the memory.
        ends |= {result.ticket: _Ends.of(result, renderer, prefixes[result.ticket]) for result in results}
    asked = [(prefix.problem.id, answer) for place, prefix in enumerate(prefixes) for answer in ends[place].answers]
    outcomes = iter([verdict.outcome for verdict in verifier.grade(asked)])
    return [ends[place].estimate([next(outcomes) for _ in ends[place].answers]) for place in range(len(prefixes))]


class _Ends(NamedTuple):
    """What is kept of the rollouts from one prefix until they are graded."""

    answers: list[str | None]
    """Answers of those that did not fail."""
    tokens: int
    """Tokens of all."""
    failures: Failures
    """Those that failed."""

    @classmethod
    def of(cls, result: StepResult, renderer: Renderer, prefix: Prefix) -> "_Ends":
        """Read the rollouts from a prefix."""
        samples = [sample for sample in result.samples if sample]
        before = renderer.decode(prefix.sampled_ids)
        return cls(
            answers=[answer_of(renderer, sample, before) for sample in samples if not _failed(sample)],
            tokens=sum(len(step.token_ids) for sample in samples for step in sample),
            failures=Failures.of(len(samples), [sample[-1].message for sample in samples if _failed(sample)]),
        )

    def estimate(self, outcomes: Sequence[float]) -> Estimate:
        """Return the estimate, given the outcome of every answer."""
        right = outcomes.count(1.0)
        return Estimate(right, len(outcomes), self.tokens, self.failures, partial=sum(outcomes) - right)


def _failed(sample: Sequence[Step]) -> bool:
    return sample[-1].stop_reason == StopReason.ERROR


def rollout_values(records: Sequence[TreeRecord], ask: Ask, *, hard: bool = False) -> list[list[float | None]]:
    """Return the value of every node from its rollouts: Math-Shepherd's soft or hard estimate.

    A graded leaf is worth its outcome and is not rolled out. The root, a failed step without a grade, and a prefix from which every rollout
    failed have no value. Equal prefixes are rolled out once.

    Args:
        records: Searched trees, or sampled solutions.
        ask: Rolls out.
        hard: Return 1 if any rollout ended right, instead of the share.
    """
    prefixes = [_prefixes(record) for record in records]
    open_nodes = [
        [
            node > 0 and outcome is None and bool(ids)
            for node, (outcome, ids) in enumerate(zip(record.outcomes, record.token_ids, strict=True))
        ]
        for record in records
    ]
    wanted = dict.fromkeys(
        prefix for own, asked in zip(prefixes, open_nodes, strict=True) for prefix, each in zip(own, asked, strict=True) if each
    )
    estimates = dict(zip(wanted, ask(list(wanted)), strict=True))

    def value(estimate: Estimate) -> float | None:
        return estimate.hard if hard else estimate.soft

    return [
        [value(estimates[prefix]) if each else outcome for prefix, each, outcome in zip(own, asked, record.outcomes, strict=True)]
        for own, asked, record in zip(prefixes, open_nodes, records, strict=True)
    ]


def first_error_values(records: Sequence[TreeRecord], ask: Ask) -> list[list[float | None]]:
    """Return labels of the nodes on every graded solution: 1 before its first error, 0 on it, None after it (no rollouts).

    Bisection finds the first error of a wrong solution. A prefix with a right leaf below it can succeed and is not rolled out, nor is
    any prefix twice. A node that is a first error on one path and good on another is good.

    Source: Luo et al. 2024, "Improve mathematical reasoning in language models by automated process supervision" (OmegaPRM), section 3.2.
    """
    prefixes, evidence = [_prefixes(record) for record in records], [gather_evidence(record) for record in records]
    wrong = [
        (number, path_to(record, leaf))
        for number, record in enumerate(records)
        for leaf, outcome in enumerate(record.outcomes)
        if is_wrong(outcome)
    ]
    known: dict[Prefix, bool] = {}

    def can_succeed(questions: Sequence[tuple[int, int]]) -> list[bool]:
        places = [(wrong[path][0], wrong[path][1][count - 1]) for path, count in questions]
        settled = [_settled(records[number], evidence[number].right, node) for number, node in places]
        unknown = [prefixes[number][node] for (number, node), given in zip(places, settled, strict=True) if given is None]
        fresh = [prefix for prefix in dict.fromkeys(unknown) if prefix not in known]
        known.update((prefix, bool(estimate.right)) for prefix, estimate in zip(fresh, ask(fresh) if fresh else [], strict=True))
        return [known[prefixes[number][node]] if given is None else given for (number, node), given in zip(places, settled, strict=True)]

    labels: list[list[float | None]] = [[None] * len(record.parents) for record in records]
    errors = find_first_errors([len(path) for _, path in wrong], can_succeed)
    for (number, path), error in zip(wrong, errors, strict=True):
        for node, label in zip(path, labels_until_error(len(path), error), strict=True):
            if label is not None:
                labels[number][node] = max(label, labels[number][node] or 0.0)
    for own, found in zip(labels, evidence, strict=True):
        own[1:] = [1.0 if right else label for right, label in zip(found.right[1:], own[1:], strict=True)]
    return labels


def find_first_errors(lengths: Sequence[int], can_succeed: Callable[[Sequence[tuple[int, int]]], list[bool]]) -> list[int | None]:
    """Return the index of the first step after which no rollout ends right, by bisecting all solutions at the same time.

    It assumes that a wrong solution stays wrong. So it rolls out ceil(log2(num_steps + 1)) prefixes instead of all.

    Args:
        lengths: Steps of every solution, >= 0.
        can_succeed: Says of each (solution, k) whether some rollout from its first k steps ends right, for k in [1, num_steps].

    Returns:
        An index in [0, num_steps) per solution, or None if the whole solution can succeed.

    Source: Luo et al. 2024, section 3.2.
    """
    good, bad = [0] * len(lengths), [length + 1 for length in lengths]
    while asked := [(i, (good[i] + bad[i]) // 2) for i in range(len(lengths)) if bad[i] - good[i] > 1]:
        for (i, middle), can in zip(asked, can_succeed(asked), strict=True):
            (good if can else bad)[i] = middle
    return [None if found == length else found for found, length in zip(good, lengths, strict=True)]


def labels_until_error(num_steps: int, first_error: int | None) -> list[float | None]:
    """Return labels of a solution with a known first error: 1 before it, 0 on it, None after it (no rollouts)."""
    if first_error is None:
        return [1.0] * num_steps
    return [1.0] * first_error + [0.0] + [None] * (num_steps - first_error - 1)


def _settled(record: TreeRecord, right: Sequence[int], node: int) -> bool | None:
    """Return whether a node is known to succeed (or fail) without any rollout; None if a rollout must decide."""
    if right[node]:
        return True
    ended = record.outcomes[node] is not None or record.stop_reasons[node] != StopReason.STEP or not record.token_ids[node]
    return False if ended else None


def _prefixes(record: TreeRecord) -> list[Prefix]:
    prefixes = [Prefix(Problem(id=record.problem_id, question=record.question), ())]
    for node, parent in enumerate(record.parents[1:], 1):
        before, observed = prefixes[parent], observation_ids(record, node)
        ids = (*before.token_ids, *record.token_ids[node], *observed)
        added = ((len(ids) - len(observed), len(ids)),) if observed else ()
        prefixes.append(before._replace(token_ids=ids, observations=before.observations + added))
    return prefixes
