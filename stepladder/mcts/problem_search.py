"""One problem's search in progress: a record of its parts, and the stages of its waves.

The array statistics live in ``Tree``; this is the part of a tree that is ragged (tokens, texts, answers) or private to one problem (seed,
spending, the wave in flight). The stages of a wave: ``ask`` for expansions, ``receive`` samples, receive their scores, the same for
rollouts. Once all of it is in, ``enter_nodes`` in wave order and ``settle_waves``, so that arrival order leaves no trace.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from stepladder.interfaces import Ranges, Renderer, StepRequest, StepResult
from stepladder.mcts.expanders import Expander, SolutionExpander, StepExpander, prefix_of
from stepladder.mcts.expansion import Expansion, Prefix, Rollout, ScoreJob, check_samples
from stepladder.mcts.families import Families
from stepladder.mcts.found_answers import FoundAnswers, PathScores
from stepladder.mcts.rollout_values import RolloutValuer
from stepladder.mcts.search_method import SearchMethod
from stepladder.mcts.settings.growth import Solutions, Steps
from stepladder.mcts.spending import Spending
from stepladder.mcts.tree import StepTable, Tree
from stepladder.types import Budget, Failures, Problem, Provenance, SearchResult, Step, StopReason, TreeRecord, derive_seed, seed_family

_NAMES = {reason: reason.value for reason in StopReason}
"""Plain strings: an enum's ``value`` is Python code."""
_ERROR = StopReason.ERROR
_NO_REASON = "no reason given"

Samples = tuple[tuple[Step, ...], ...]
"""Solutions of one problem as their steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTerms:
    """The common terms of all searches of a run."""

    renderer: Renderer
    """Makes prompts and reads answers."""
    method: SearchMethod
    """How to search."""
    provenance: Provenance
    """Stored with every tree; seeds the search."""
    label_mode: bool
    """Whether terminals are valued by their outcome."""
    scored: bool
    """Whether steps are scored."""
    key_of: Callable[[str], str]
    """Canonical form of an answer for votes."""
    tree_number: int = 0
    """How many trees of the same problems were searched before in the same round; they have other seeds."""
    first_samples: Mapping[str, Samples] = field(default_factory=dict)
    """Solutions that were sampled before the search, by problem: they are the first draws from the root."""


class ProblemSearch:
    """The search of one problem."""

    def __init__(self, problem: Problem, *, terms: SearchTerms, budget: Budget, row: int, number: int) -> None:
        """Start a search without any request.

        Args:
            problem: The problem.
            terms: The common terms of all searches of the run.
            budget: Its caps.
            row: Row of its tree.
            number: How many searches were admitted before it.

        """
        method, renderer, provenance = terms.method, terms.renderer, terms.provenance
        self._terms = terms
        self.problem, self.budget, self.row, self.number = problem, budget, row, number
        self.prompt_ids = tuple(renderer.prompt_ids(problem))
        another = ("tree", terms.tree_number) if terms.tree_number else ()
        self.seed_of = seed_family(derive_seed(provenance.seed, provenance.round, problem.id, *another))
        """Derives every seed of the search from its purpose."""
        self.table = StepTable()
        self.wave: list[Expansion] = []
        self.goes_on = False
        """Whether the next wave belongs to the simulation of the last one."""
        self.pending = 0
        """Results that the wave still waits for."""
        self.num_expandable = 1
        """Leaves that can be expanded, those in flight included."""
        self.spending = Spending(budget, method)
        self.scores = PathScores(self.table, method.valuation)
        self.answers = FoundAnswers(method, table=self.table, scores=self.scores, renderer=renderer, key_of=terms.key_of)
        widening = None if isinstance(method.growth, Solutions) else method.growth.widening
        self.families = None if widening is None else Families(widening)
        """Children of nodes that may be sampled again; None if none may."""
        self.expander = self._expander(method)
        self.rollouts = self._valuer(terms)
        """Values new nodes in addition to their scores; None without rollouts."""
        self.first_samples = terms.first_samples.get(problem.id, ())
        """Solutions from before the search, until its first wave has taken them."""
        self._draws_once = method.samples_solutions and method.sampling.temperature == 0
        self._temperature = float(method.sampling.temperature)
        self._ends_by_outcome = method.valuation.end_value == "outcome"
        self._by_path = method.valuation.estimate == "path"
        self._failed: list[str] = []
        """Message of each failed sample, in wave order."""

    def _expander(self, method: SearchMethod) -> Expander:
        table, growth, seed_of = self.table, method.growth, self.seed_of
        if isinstance(growth, Solutions):
            return SolutionExpander(
                method,
                growth,
                table=table,
                spending=self.spending,
                seed_of=seed_of,
                prompt_ids=self.prompt_ids,
                scored=self._terms.scored,
            )
        return StepExpander(method, growth, table=table, max_depth=self.budget.max_depth, seed_of=seed_of, families=self.families)

    def _valuer(self, terms: SearchTerms) -> RolloutValuer | None:
        growth = terms.method.growth
        if isinstance(growth, Solutions) or growth.rollouts is None:
            return None
        return RolloutValuer(
            growth.rollouts,
            terms.method,
            table=self.table,
            spending=self.spending,
            answers=self.answers,
            scores=self.scores,
            renderer=terms.renderer,
            seed_of=self.seed_of,
            by_outcome=terms.label_mode and terms.method.valuation.end_value == "outcome",
        )

    @property
    def may_branch_anywhere(self) -> bool:
        """Whether a node that has children may get more of them."""
        return self.families is not None or self._terms.method.samples_solutions

    @property
    def num_simulations(self) -> int:
        """Simulations so far."""
        return self.spending.num_simulations

    @property
    def best_score(self) -> float:
        """Best score of a solution with an answer, -1 without one."""
        return self.answers.best_score

    @property
    def solved(self) -> bool:
        """Whether the tree has a right answer; always False in solve mode."""
        return 1.0 in self.table.outcomes.values()

    def stop_reason(self) -> StopReason | None:
        """Return the reason for which the search ends before its next wave, or None."""
        if self.num_expandable == 0 or (self._draws_once and self.num_simulations > 0):
            # Where the cap cut the last samples, nothing is left to expand because of it.
            return StopReason.TOKENS if self.spending.has_cut_samples() else StopReason.EXHAUSTED
        return self.answers.stop_reason() or self.spending.stop_reason(goes_on=self.goes_on)

    def wave_size(self) -> int:
        """Return how many leaves (sampling methods: draws) the next wave may have, at least 1."""
        return len(self.first_samples) or self.spending.wave_size()

    # The stages of a wave.

    def ask(self, leaves: list[int], samples: list[int]) -> list[Expansion]:
        """Begin a wave of leaves with their numbers of samples; return the expansions that need the policy. Revisits need none."""
        asked = []
        share, samples = (None, samples) if self.first_samples else self.spending.share(samples)
        for leaf, num_samples in zip(leaves, samples, strict=True):
            expansion = Expansion(leaf, num_samples, tokens_left=share)
            self.wave.append(expansion)
            if num_samples:
                expansion.prefix = prefix_of(self.table, self.prompt_ids, leaf)
                asked.append(expansion)
        self.pending = len(asked)
        self.spending.num_simulations += 0 if self.goes_on else self.expander.simulations_of(samples)
        self.spending.policy_calls += 0 if self.first_samples else len(asked)
        return asked

    def receive_first_samples(self, expansion: Expansion) -> list[ScoreJob]:
        """Receive the solutions from before the search in place of new samples; they were paid for before, and cost the search nothing."""
        samples, self.first_samples = self.first_samples, ()
        self.expander.graft(expansion, samples)
        return self._ask_scores(expansion)

    def receive(self, expansion: Expansion, result: StepResult) -> list[ScoreJob]:
        """Receive the samples of an expansion and return its scoring jobs: every new step once, or nothing without a scorer.

        Raises:
            BackendError: If the policy returned another number of samples than requested, or a sample that continues after its end.
        """
        check_samples(result.samples, num_samples=expansion.num_samples, max_steps=self.expander.max_steps_after(expansion.leaf))
        self.spending.num_samples += len(result.samples)
        num_tokens = self.expander.graft(expansion, result.samples)
        self.spending.generated_tokens += num_tokens
        if expansion.tokens_left is not None:
            expansion.tokens_left -= num_tokens
        return self._ask_scores(expansion)

    def _ask_scores(self, expansion: Expansion) -> list[ScoreJob]:
        expansion.scores = [None] * len(expansion.steps)
        return self._await(self.expander.score_jobs(expansion) if self._terms.scored else [])

    def ask_rollouts(self, expansion: Expansion) -> Sequence[Rollout]:
        """Return the rollouts that follow when an expansion's own scores are complete."""
        if self.rollouts is None:
            return ()
        asked = self.rollouts.ask(expansion)
        self.pending += len(asked)
        return asked

    def request(self, ticket: int, expansion: Expansion) -> StepRequest:
        """Return the policy request of an expansion."""
        return StepRequest(
            ticket=ticket,
            prefix_ids=expansion.prefix.ids,
            num_samples=expansion.num_samples,
            seed=self.expander.sampling_seed(expansion),
            temperature=self._temperature,
            max_step_tokens=self.budget.max_step_tokens,
            max_steps=self.expander.max_steps_after(expansion.leaf),
            max_tokens=None if expansion.tokens_left is None else expansion.tokens_left // expansion.num_samples,
            question=self.problem.question,
            excluded=self.expander.excluded(expansion),
            given=self._given(expansion.prefix),
            parent_action=self.table.steps[expansion.leaf].action if isinstance(self._terms.method.growth, Steps) else None,
        )

    def rollout_request(self, ticket: int, expansion: Expansion, rollout: Rollout) -> StepRequest:
        """Return the policy request of one of an expansion's rollouts."""
        assert self.rollouts is not None
        return StepRequest(
            ticket=ticket,
            prefix_ids=rollout.prefix.ids,
            num_samples=self.rollouts.settings.rollouts,
            seed=self.rollouts.sampling_seed(expansion, rollout),
            temperature=float(self.rollouts.settings.rollout_temperature),
            max_step_tokens=self.budget.max_step_tokens,
            max_steps=rollout.max_steps,
            max_tokens=rollout.max_tokens,
            question=self.problem.question,
            given=self._given(rollout.prefix),
        )

    def _given(self, prefix: Prefix) -> Ranges:
        return ((0, len(self.prompt_ids)), *prefix.observations)

    def receive_rollout(self, expansion: Expansion, rollout: Rollout, result: StepResult) -> list[ScoreJob]:
        """Receive the samples of a rollout and return its scoring jobs.

        Raises:
            BackendError: As ``receive``.
        """
        assert self.rollouts is not None
        check_samples(result.samples, num_samples=self.rollouts.settings.rollouts, max_steps=rollout.max_steps)
        self.rollouts.receive(expansion, rollout, result.samples)
        return self._await(self.rollouts.score_jobs(expansion, rollout) if self._terms.scored else [])

    def _await(self, jobs: list[ScoreJob]) -> list[ScoreJob]:
        """Wait for scores in the place of the result that asks for them."""
        self.pending += len(jobs) - 1
        for job in jobs:
            self.spending.scored_tokens += job.num_tokens
        return jobs

    def enter_nodes(self) -> list[str]:
        """Number the wave's new nodes in wave order, read their answers, and return the answers to grade."""
        first = len(self.table.steps)
        for expansion in self.wave:
            if expansion.num_samples:
                self.expander.number(expansion)
                self.answers.read(expansion)
                if _ERROR in expansion.reasons:
                    self._note_failures(expansion.steps, expansion.counts)
            for rollout in expansion.rollouts:
                self._note_failures(rollout.steps, [1] * len(rollout.steps))
        return self.answers.ungraded(self.wave, first) if self._terms.label_mode else []

    def _note_failures(self, steps: Sequence[Step], counts: Sequence[int]) -> None:
        for step, count in zip(steps, counts, strict=True):
            if step.stop_reason is _ERROR:
                self._failed += [step.message or _NO_REASON] * count

    def worth_of_end(self, expansion: Expansion, index: int) -> float | None:
        """Value a new node of an expansion at which the solution ended or was cut.

        In label mode it is worth its outcome, unless the method's ``end_value`` is the score. Else a terminal is worth its score, or under
        ``agreement`` the share of its answer, and it is worth 0 if it cannot give an answer any more (cut, failed, or ended without a
        readable one).
        """
        table = self.table
        answer = table.answers.get(index)
        if self._terms.label_mode:
            outcome = table.outcomes[index] = self.answers.verdicts[answer]
            if self._ends_by_outcome:
                return outcome
        if answer is None:
            return 0.0
        if self.rollouts is not None and self.rollouts.by_agreement:
            return self.rollouts.share_of(answer, expansion)
        return self.scores.of_node(index) if self._by_path else table.scores[index]

    def end_wave(self, tree: Tree) -> None:
        """Forget the wave, which is now in the tree, and record the present answer of the search."""
        widened = self.families is not None and any(expansion.num_known for expansion in self.wave)
        self.answers.end_wave(tree, self.row, self.spending.generated_tokens, widened=widened)
        self.wave = []

    def result(self, tree: Tree, reason: StopReason) -> SearchResult:
        """Return the result of the search."""
        choice, spent = self.answers.choice(), self.spending
        return SearchResult(
            problem_id=self.problem.id,
            answer=choice.answer,
            answer_node=choice.node,
            votes=choice.votes,
            stop_reason=reason,
            anytime=tuple(self.answers.anytime),
            tree=self.record(tree),
            failures=Failures(
                num_samples=spent.num_samples + spent.num_rolled_out,
                num_failed=len(self._failed),
                first_message=self._failed[0] if self._failed else None,
            ),
        )

    def record(self, tree: Tree) -> TreeRecord:
        """Return the tree as it is now. It shares lists with the search, which goes on to fill them."""
        table, row, spent = self.table, self.row, self.spending
        nodes, used = range(len(table.steps)), slice(len(table.steps))
        visits = tree.visits[row, used].tolist()
        if self._terms.method.samples_solutions:
            priors = [1.0] + [visits[node] / visits[parent] for node, parent in enumerate(table.parents) if node]
        else:
            priors = tree.prior[row, used].tolist()
        return TreeRecord(
            problem_id=self.problem.id,
            question=self.problem.question,
            prompt_ids=list(self.prompt_ids),
            method=self._terms.method.name,
            parents=table.parents,
            depths=table.depths,
            token_ids=[[*step.token_ids] for step in table.steps],
            logps=[[*step.logps] for step in table.steps],
            texts=[step.text if step.message is None else step.message for step in table.steps],
            priors=priors,
            scores=table.scores,
            visits=visits,
            values=[None if math.isnan(value) else value for value in tree.value[row, used].tolist()],
            stop_reasons=list(map(_NAMES.__getitem__, table.stop_reasons)),
            answers=list(map(table.answers.get, nodes)),
            outcomes=list(map(table.outcomes.get, nodes)),
            generated_tokens=spent.generated_tokens,
            policy_calls=spent.policy_calls,
            scored_tokens=spent.scored_tokens,
            num_simulations=spent.num_simulations,
            provenance=self._terms.provenance,
            qvalues=self._qvalues(tree, used),
            given_ids=[[*step.given_ids] for step in table.steps] if table.has_observations else [],
            given_texts=[step.given_text for step in table.steps] if table.has_observations else [],
            actions=[step.action for step in table.steps] if table.has_actions else [],
        )

    def _qvalues(self, tree: Tree, used: slice) -> list[float | None]:
        """Return the worth of every step; nothing if it is the value of its node."""
        rewards, discount = tree.reward[self.row, used], float(self._terms.method.valuation.discount)
        if discount == 1.0 and not rewards.any():
            return []
        qvalues = rewards + discount * tree.value[self.row, used]
        return [None if math.isnan(value) else value for value in qvalues.tolist()]
