"""Rollouts: they value new nodes by continuing them with the policy, and leave no nodes in the tree."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

from stepladder.interfaces import Renderer, answer_of
from stepladder.mcts.expansion import Expansion, Rollout, ScoreJob, as_failed, score_jobs
from stepladder.mcts.found_answers import FoundAnswers, PathScores
from stepladder.mcts.search_method import SearchMethod
from stepladder.mcts.settings.growth import Rollouts
from stepladder.mcts.spending import Spending
from stepladder.mcts.tree import StepTable
from stepladder.types import Step, StopReason


class RolloutValuer:
    """Requests the rollouts of one problem's search and values their results."""

    def __init__(
        self,
        settings: Rollouts,
        method: SearchMethod,
        *,
        table: StepTable,
        spending: Spending,
        answers: FoundAnswers,
        scores: PathScores,
        renderer: Renderer,
        seed_of: Callable[..., int],
        by_outcome: bool,
    ) -> None:
        """Value by a method's settings; ``by_outcome`` values ends by their verdicts."""
        self.settings = settings
        self._table, self._spending, self._answers, self._scores = table, spending, answers, scores
        self._renderer, self._seed_of, self._by_outcome = renderer, seed_of, by_outcome
        self._max_depth = spending.budget.max_depth
        self._longest = self._max_depth if settings.rollout_steps is None else settings.rollout_steps
        self._segments = method.sampling.cut_steps == "continue"
        self._by_path = method.valuation.estimate == "path"
        self.by_agreement = settings.rollout_value == "agreement" and not by_outcome
        """Whether answers are weighed by how many agree."""

    def ask(self, expansion: Expansion) -> Sequence[Rollout]:
        """Return the rollouts of an expansion whose own scores are complete."""
        places = [place for place in range(len(expansion.steps)) if self._can_go_on(expansion, place)]
        if self.settings.rollout_of == "best":
            scores = [-1.0 if score is None else score for score in expansion.scores]
            best = scores.index(max(scores)) if scores else -1
            places = [place for place in places if place == best]
        num_samples, left = len(places) * self.settings.rollouts, expansion.tokens_left
        cap = None if left is None or not places else left // num_samples
        if cap is not None and cap < 1:
            places = []
        expansion.rollouts = [self._rollout(expansion, place, cap) for place in places]
        self._spending.policy_calls += len(places)
        return expansion.rollouts

    def _rollout(self, expansion: Expansion, place: int, max_tokens: int | None) -> Rollout:
        max_steps = min(self._longest, self._max_depth - expansion.depths[place])
        return Rollout(place, expansion.prefix.after(expansion.steps[place]), max_steps, max_tokens)

    def _can_go_on(self, expansion: Expansion, place: int) -> bool:
        return self._continues(expansion.steps[place].stop_reason) and expansion.depths[place] < self._max_depth

    def _continues(self, reason: StopReason) -> bool:
        return reason == StopReason.STEP or (reason == StopReason.LENGTH and self._segments)

    def sampling_seed(self, expansion: Expansion, rollout: Rollout) -> int:
        """Return the seed of a rollout's samples."""
        return self._seed_of("rollout", expansion.leaf, expansion.num_known + rollout.place)

    def receive(self, expansion: Expansion, rollout: Rollout, samples: tuple[tuple[Step, ...], ...]) -> None:
        """Receive the samples of a rollout."""
        text = self._table.path_text(expansion.leaf) + expansion.steps[rollout.place].text
        for steps in samples:
            rollout.samples.append(range(len(rollout.steps), len(rollout.steps) + len(steps)))
            rollout.steps += [step if step.token_ids else as_failed(step) for step in steps]
            rollout.answers.append(answer_of(self._renderer, steps, text))
        rollout.scores = [None] * len(rollout.steps)
        self._spending.num_rolled_out += len(samples)
        self._spending.generated_tokens += sum([len(step.token_ids) for step in rollout.steps])

    def score_jobs(self, expansion: Expansion, rollout: Rollout) -> list[ScoreJob]:
        """Return the scoring jobs of a rollout: its samples without failed steps."""
        branches = []
        for sample in rollout.samples:
            branch = [place for place in sample if rollout.steps[place].token_ids]
            if branch:
                branches.append(branch)
        return score_jobs(expansion, rollout, rollout.prefix, branches) if branches else []

    def worth(self, expansion: Expansion, rollout: Rollout) -> float | None:
        """Return the value of a new node from its rollouts under ``rollout_value``; None if they give none.

        A step has the worth of a node at its end.
        """
        if self.by_agreement:
            reached = Counter(self._answers.key_of(answer) for answer in rollout.answers if answer is not None)
            return max(reached.values(), default=0) / len(rollout.answers)
        before = [self._table.scores[node] for node in self._table.path(expansion.leaf)] + [expansion.scores[rollout.place]]
        worths = []
        for sample, answer in zip(rollout.samples, rollout.answers, strict=True):
            scores = [rollout.scores[place] for place in sample]
            found = [self._worth_of_end(expansion, rollout, before, sample, answer)]
            if self.settings.rollout_value == "best":
                found += [self._estimate(before, scores[:end]) for end in range(1, len(scores))]
            known = [worth for worth in found if worth is not None]
            if known:
                worths.append(max(known))
        return math.fsum(worths) / len(worths) if worths else None

    def _worth_of_end(
        self, expansion: Expansion, rollout: Rollout, before: list[float | None], sample: range, answer: str | None
    ) -> float | None:
        """Return the worth of the last step of a rollout's sample."""
        depth = expansion.depths[rollout.place] + len(sample)
        ended = depth >= self._max_depth or not self._continues(rollout.steps[sample[-1]].stop_reason)
        if ended and self._by_outcome:
            return self._answers.verdicts[answer]
        if ended and answer is None:
            return 0.0
        return self._estimate(before, [rollout.scores[place] for place in sample])

    def _estimate(self, before: list[float | None], scores: list[float | None]) -> float | None:
        """Return the worth of the last of some steps, alone, or together with all earlier steps if the method estimates paths."""
        return self._scores.of_steps([*before, *scores]) if self._by_path else scores[-1]

    def share_of(self, answer: str, expansion: Expansion) -> float:
        """Return the share of an answer among all answers of an expansion's samples and their rollouts."""
        key_of, reached = self._answers.key_of, Counter[str]()
        for rollout in expansion.rollouts:
            reached.update(key_of(found) for found in rollout.answers if found is not None)
        for index, count in enumerate(expansion.counts, start=expansion.first):
            known = self._table.answers.get(index)
            if known is not None:
                reached[key_of(known)] += count
        return reached[key_of(answer)] / reached.total()
