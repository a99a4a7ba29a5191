"""Step labels from rollouts: how often a policy still ends right from a prefix of a solution.

``estimate_prefixes`` asks policy and verifier; the rest is arithmetic on what they say.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stepladder.errors import ConfigError
from stepladder.interfaces import Policy, Renderer, StepRequest, Verifier
from stepladder.types import Problem, derive_seed


class Estimate(NamedTuple):
    """Rollouts from one prefix."""

    right: int
    """Rollouts that ended right."""
    total: int
    """Rollouts."""

    @property
    def soft(self) -> float:
        """Share of right ones, in [0, 1]."""
        return self.right / self.total

    @property
    def hard(self) -> float:
        """1 where at least one ended right, else 0."""
        return float(self.right > 0)


def estimate_prefixes(
    policy: Policy,
    renderer: Renderer,
    verifier: Verifier,
    problem: Problem,
    prefixes: Sequence[Sequence[Sequence[int]]],
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
        problem: The problem.
        prefixes: Steps so far, each as token ids; none of them states a final answer.
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
    prompt = renderer.prompt_ids(problem)
    paths = [tuple(token for step in prefix for token in step) for prefix in prefixes]
    policy.submit(
        [
            StepRequest(
                ticket=ticket,
                prefix_ids=(*prompt, *path),
                num_samples=num_rollouts,
                seed=derive_seed(seed, "rollout", problem.id, *path),
                temperature=temperature,
                max_step_tokens=max_step_tokens,
                max_steps=max_steps,
            )
            for ticket, path in enumerate(paths)
        ]
    )
    answers: list[list[str | None]] = [[] for _ in paths]
    while results := policy.collect():
        for result in results:
            answers[result.ticket] = [renderer.extract_answer(sample[-1].text) if sample else None for sample in result.samples]
    verdicts = iter(verifier.grade([(problem.id, answer) for given in answers for answer in given]))
    return [Estimate(sum(next(verdicts).correct for _ in given), len(given)) for given in answers]


def find_first_error(num_steps: int, can_succeed: Callable[[int], bool]) -> int | None:
    """Return the index of the first step after which no rollout ends right, by halving.

    A solution is assumed to stay wrong once it is: then ceil(log2(num_steps + 1)) prefixes are asked about instead of all.

    Args:
        num_steps: Steps of a solution, >= 0.
        can_succeed: Says whether some rollout from the first k steps ends right, for k in [1, num_steps].

    Returns:
        An index in [0, num_steps), or None where the whole solution can succeed.

    Source: Luo et al. 2024, "Improve mathematical reasoning in language models by automated process supervision", section 3.2.
    """
    good, bad = 0, num_steps + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if can_succeed(middle):
            good = middle
        else:
            bad = middle
    return None if good == num_steps else good


def labels_until_error(num_steps: int, first_error: int | None) -> list[float | None]:
    """Return labels of a solution with a known first error: 1 before it, 0 on it, none behind it, where nothing was asked."""
    if first_error is None:
        return [1.0] * num_steps
    return [1.0] * first_error + [0.0] + [None] * (num_steps - first_error - 1)
