"""A search over refinements: below a failed solution, a judge writes others, judges them, and refines the best of them further.

Source: Cheng et al. 2024, "SPaR: Self-play with tree-search refinement" (arXiv 2412.11605), and its code: breadth first, three children,
    two of them kept, three levels, until a refinement passes; the judge's critique of a solution is part of the prompt that refines it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from stepladder.interfaces import Policy, Renderer, StepRequest, answer_of, collect_all
from stepladder.loops.config.search import RefinementConfig
from stepladder.mcts.qvalues import aggregate_scores
from stepladder.prm.layout import filled
from stepladder.prm.reader import Scores, Solution
from stepladder.tree_paths import ids_along, path_to
from stepladder.types import Problem, Step, StopReason, TreeRecord, derive_seed


class CritiquingScorer(Protocol):
    """Judges written solutions, and says why."""

    def score(self, solutions: Sequence[Solution]) -> list[Scores]:
        """Return one score in [0, 1] or None per step of every solution."""
        ...

    def critique(self, solution: Solution) -> str:
        """Return what was said of the last step of a scored solution; empty if nothing was."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A whole solution of a problem."""

    problem: Problem
    """The problem."""
    steps: tuple[str, ...]
    """Its steps as text, without their ends."""
    token_ids: tuple[int, ...]
    """Its tokens."""
    text: str
    """Its text."""
    score: float
    """The judge's score, in [0, 1]."""
    answer: str | None
    """Its final answer; None if none could be read."""
    prompt_ids: tuple[int, ...] = ()
    """The prompt that asked for it as a refinement; empty for a solution of the search."""

    @property
    def solution(self) -> Solution:
        """What a judge reads."""
        return Solution(question=self.problem.question, steps=self.steps)


def failed_attempts(record: TreeRecord, *, accept: float, aggregation: str, step_end: str, most: int) -> list[Attempt]:
    """Return the ended solutions of a tree that its scores reject, distinct in their tokens, those of lowest score first.

    Args:
        record: A tree with scores.
        accept: Largest score of a failed solution.
        aggregation: Rule from the scores of steps to that of a solution.
        step_end: Text that ends a step.
        most: Solutions returned at most, >= 1.
    """
    found: dict[tuple[int, ...], Attempt] = {}
    for leaf, reason in enumerate(record.stop_reasons):
        path = path_to(record, leaf)
        ids = tuple(ids_along(record, path))
        score = aggregate_scores([record.scores[node] for node in path], rule=aggregation)
        if reason == StopReason.END and ids and score is not None and score <= accept:
            texts = [record.texts[node] for node in path]
            found[ids] = Attempt(
                problem=Problem(id=record.problem_id, question=record.question),
                steps=tuple(text.removesuffix(step_end) for text in texts),
                token_ids=ids,
                text="".join(texts),
                score=score,
                answer=record.answers[leaf],
            )
    return sorted(found.values(), key=lambda attempt: attempt.score)[:most]


def refinement_question(rule: RefinementConfig, problem: Problem, *, solution: str, critique: str) -> Problem:
    """Return the question that asks for a refinement of a solution."""
    text = filled(rule.prompt, question=problem.question, solution=solution.strip(), critique=critique.strip())
    return Problem(id=problem.id, question=text)


class _Written(NamedTuple):
    """A new refinement without its score."""

    tree: int
    prompt_ids: tuple[int, ...]
    sample: Sequence[Step]


class Refiner:
    """Searches for refinements that pass, below all failed solutions of a shard at once."""

    def __init__(
        self,
        policy: Policy,
        judge: CritiquingScorer,
        renderer: Renderer,
        rule: RefinementConfig,
        *,
        step_end: str,
        aggregation: str,
        seed: int,
        max_steps: int,
        max_step_tokens: int,
    ) -> None:
        """Prepare a search.

        Args:
            policy: Writes refinements.
            judge: Judges them.
            renderer: Makes prompts of questions, and reads answers.
            rule: Shape of the trees.
            step_end: Text that ends a step.
            aggregation: Rule from the scores of steps to that of a solution.
            seed: Seed of the samples; those of a tree depend on it, the problem and the failed solution alone.
            max_steps: Steps of a refinement, >= 1.
            max_step_tokens: Tokens of a step, >= 1.
        """
        self._policy, self._judge, self._renderer, self._rule = policy, judge, renderer, rule
        self._step_end, self._aggregation, self._seed = step_end, aggregation, seed
        self._max_steps, self._max_step_tokens = max_steps, max_step_tokens
        self.generated_tokens = 0
        """Tokens of all refinements so far."""

    def search(self, failed: Sequence[Attempt]) -> list[Attempt | None]:
        """Return an accepted refinement of every failed solution, the one of highest score of its level; None without one."""
        accepted: list[Attempt | None] = [None] * len(failed)
        beams = {tree: [attempt] for tree, attempt in enumerate(failed)}
        # The judge remembers what it says of these; prompts of refinements contain it.
        self._judge.score([attempt.solution for attempt in failed])
        for level in range(self._rule.depth):
            children = self._children(failed, beams, level)
            for tree in list(beams):
                # Sorting is stable: of equal scores the earlier sample goes first.
                ranked = sorted(children.get(tree, []), key=lambda attempt: -attempt.score)
                beams[tree] = ranked[: self._rule.keep]
                if not ranked or ranked[0].score > self._rule.accept:
                    accepted[tree] = ranked[0] if ranked else None
                    del beams[tree]
        return accepted

    def _children(self, failed: Sequence[Attempt], beams: dict[int, list[Attempt]], level: int) -> dict[int, list[Attempt]]:
        """Return the judged refinements of all open solutions, by tree: ended ones that say something new."""
        parents = [(tree, number, parent) for tree, beam in beams.items() for number, parent in enumerate(beam)]
        prompts = [self._prompt_ids(parent) for _, _, parent in parents]
        requests = [
            StepRequest(
                ticket=ticket,
                prefix_ids=prompt_ids,
                num_samples=self._rule.children,
                seed=derive_seed(self._seed, "refinement", parent.problem.id, *failed[tree].token_ids, level, number),
                temperature=self._rule.temperature,
                max_step_tokens=self._max_step_tokens,
                max_steps=self._max_steps,
            )
            for ticket, ((tree, number, parent), prompt_ids) in enumerate(zip(parents, prompts, strict=True))
        ]
        written = []
        for (tree, _, _), result, prompt_ids in zip(parents, collect_all(self._policy, requests), prompts, strict=True):
            written += [_Written(tree, prompt_ids, sample) for sample in result.samples]
        self.generated_tokens += sum(len(step.token_ids) for each in written for step in each.sample)
        return self._judged(failed, [each for each in written if each.sample[-1].stop_reason == StopReason.END])

    def _prompt_ids(self, attempt: Attempt) -> tuple[int, ...]:
        critique = self._judge.critique(attempt.solution)
        return self._renderer.prompt_ids(refinement_question(self._rule, attempt.problem, solution=attempt.text, critique=critique))

    def _judged(self, failed: Sequence[Attempt], written: Sequence[_Written]) -> dict[int, list[Attempt]]:
        steps = [tuple(step.text.removesuffix(self._step_end) for step in each.sample) for each in written]
        questions = [failed[each.tree].problem.question for each in written]
        solutions = [Solution(question=question, steps=own) for question, own in zip(questions, steps, strict=True)]
        found: dict[int, dict[tuple[int, ...], Attempt]] = {}
        for each, own, scores in zip(written, steps, self._judge.score(solutions), strict=True):
            ids = tuple(token for step in each.sample for token in step.token_ids)
            score = aggregate_scores(scores, rule=self._aggregation)
            if score is None or ids == failed[each.tree].token_ids:
                continue
            found.setdefault(each.tree, {}).setdefault(
                ids,
                Attempt(
                    problem=failed[each.tree].problem,
                    steps=own,
                    token_ids=ids,
                    text="".join(step.text for step in each.sample),
                    score=score,
                    answer=answer_of(self._renderer, each.sample),
                    prompt_ids=each.prompt_ids,
                ),
            )
        return {tree: list(attempts.values()) for tree, attempts in found.items()}
