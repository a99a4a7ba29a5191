"""Mutual consistency: a second model completes the beginnings of each solution, and the answer is chosen among those that both reach.

Both models read only the question and the solutions. No reference answer takes part; in the released selection one does.

Source: Qi et al. 2024, "Mutual reasoning makes smaller LLMs stronger problem-solvers", section 3.3; the settings are the defaults of its
``run_src/do_discriminate.py``: four beginnings of 20% to 50% (the paper says 20% to 80%), one completion of each at temperature 1, and
consistent from half of them on.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

from stepladder.interfaces import Policy, Renderer, StepRequest, StepResult, answer_of, collect_all
from stepladder.mcts.answer_rules import Choice
from stepladder.tree_paths import path_to, path_tokens
from stepladder.types import Budget, Problem, SearchResult, TreeRecord, derive_seed

KEPT_SHARES = (0.2, 0.3, 0.4, 0.5)
"""Shares of a solution's tokens that the second model is given."""
_NEEDED = len(KEPT_SHARES) // 2
_TEMPERATURE = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One solution that a search found."""

    node: int
    """Its last node."""
    answer: str
    """Its answer."""
    key: str
    """Canonical form of the answer: equal answers have equal keys."""
    agreements: int
    """Completions of its beginnings that reached the same answer."""


def choose_consistent(candidates: Sequence[Candidate], *, needed: int) -> Choice:
    """Return the answer with the most weight under both models.

        weight = share of the answer among the consistent solutions + share of its own solutions that are consistent

    A solution is consistent if at least ``needed`` completions agree with it. Without any consistent one, an answer weighs its share of all
    solutions. Ties go to the answer found first.

    Args:
        candidates: The solutions, in the order in which they were found.
        needed: Agreements, >= 1.

    Source: ``_calculate_scores`` and ``_find_winner_filtered`` of the released code, with every trace's reward 1.
    """
    consistent = [candidate for candidate in candidates if candidate.agreements >= needed]
    found = Counter(candidate.key for candidate in candidates)
    if consistent:
        kept = Counter(candidate.key for candidate in consistent)
        weights = {key: number / len(consistent) + number / found[key] for key, number in kept.items()}
    else:
        weights = {key: number / len(candidates) for key, number in found.items()}
    firsts = {candidate.key: candidate for candidate in reversed(consistent or candidates)}
    # Sorting is stable, and counters keep the order of first appearance.
    votes = {firsts[key].answer: weight for key, weight in sorted(weights.items(), key=lambda item: -item[1])}
    if not weights:
        return Choice(answer=None, node=None, votes={})
    winner = firsts[max(weights, key=weights.__getitem__)]
    return Choice(answer=winner.answer, node=winner.node, votes=votes)


class SolutionRenderer(Renderer, Protocol):
    """A renderer that also writes solutions, such as a ``PromptRenderer``."""

    def encode_solution(self, text: str, *, place: str = "solution") -> Sequence[tuple[int, ...]]:
        """Return a written solution as steps of token ids."""
        ...


class Discriminator:
    """A second model that reviews the solutions of finished searches."""

    def __init__(self, policy: Policy, renderer: SolutionRenderer, *, key_of: Callable[[str], str], budget: Budget, seed: int) -> None:
        """Serve a model.

        Args:
            policy: The second model.
            renderer: Its own prompts and steps.
            key_of: Canonical form of an answer.
            budget: Its caps on steps and on their tokens bound a completion.
            seed: Seed of the completions; each one's depends on it, the problem, the solution and the share alone.
        """
        self._policy, self._renderer, self._key_of, self._budget, self._seed = policy, renderer, key_of, budget, seed
        self.generated_tokens = 0
        """Tokens of its completions so far."""

    def review(self, problem: Problem, result: SearchResult) -> SearchResult:
        """Return a search's result with the answer chosen by mutual consistency. Without a solution nothing changes."""
        tree = result.tree
        texts = {node: _solution(tree, node) for node, answer in enumerate(tree.answers) if answer is not None}
        if not texts:
            return result
        keys = self._completed_keys(problem, list(dict.fromkeys(texts.values())))
        candidates = []
        for node, text in texts.items():
            answer = str(tree.answers[node])
            key = self._key_of(answer)
            candidates.append(Candidate(node=node, answer=answer, key=key, agreements=keys[text].count(key)))
        choice = choose_consistent(candidates, needed=_NEEDED)
        return replace(result, answer=choice.answer, answer_node=choice.node, votes=choice.votes)

    def _completed_keys(self, problem: Problem, solutions: Sequence[str]) -> dict[str, list[str | None]]:
        """Return, per solution, the answers that its completed beginnings reach."""
        prompt_ids = self._renderer.prompt_ids(problem)
        begun = []
        for text in solutions:
            begun += [(text, beginning, share) for share, beginning in self._beginnings(text)]
        requests = [
            StepRequest(
                ticket=ticket,
                prefix_ids=prompt_ids + beginning,
                num_samples=1,
                seed=derive_seed(self._seed, "discriminator", problem.id, text, str(share)),
                temperature=_TEMPERATURE,
                max_step_tokens=self._budget.max_step_tokens,
                max_steps=self._budget.max_depth,
                question=problem.question,
            )
            for ticket, (text, beginning, share) in enumerate(begun)
        ]
        keys: dict[str, list[str | None]] = {text: [] for text in solutions}
        for (text, beginning, _), finished in zip(begun, collect_all(self._policy, requests), strict=True):
            keys[text].append(self._key_after(beginning, finished))
        return keys

    def _beginnings(self, text: str) -> list[tuple[float, tuple[int, ...]]]:
        ids = tuple(chain.from_iterable(self._renderer.encode_solution(text)))
        return [(share, ids[: math.ceil(share * len(ids))]) for share in KEPT_SHARES]

    def _key_after(self, beginning: tuple[int, ...], finished: StepResult) -> str | None:
        (steps,) = finished.samples
        self.generated_tokens += sum(len(step.token_ids) for step in steps)
        answer = answer_of(self._renderer, steps, self._renderer.decode(beginning))
        return None if answer is None else self._key_of(answer)


def _solution(tree: TreeRecord, node: int) -> str:
    """Return the steps up to a node, with the observations between them, as text."""
    return path_tokens(tree, path_to(tree, node)).text
