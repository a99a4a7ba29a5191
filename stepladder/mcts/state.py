"""One problem's search in progress: what was asked, what came back, and what it came to.

The array statistics live in ``Tree``; this is the part of a tree that is ragged (tokens, texts, answers) or private to one problem (seed,
spending, the wave in flight). A wave passes through four stages: ``ask`` for expansions, ``receive`` samples, receive their scores, and, once
all of it is in, ``settle`` the new nodes in wave order, so that arrival order leaves no trace.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from stepladder.errors import BackendError
from stepladder.interfaces import Renderer, StepResult
from stepladder.mcts.answer_rules import Candidate, Choice, choose_answer
from stepladder.mcts.methods import SearchMethod
from stepladder.mcts.qvalues import aggregate_scores
from stepladder.mcts.selection import sibling_priors
from stepladder.mcts.tree import StepTable, Tree
from stepladder.types import Budget, Problem, Provenance, SearchResult, Step, StopReason, TreeRecord, derive_seed


_StepKey = tuple[int, tuple[int, ...], StopReason]
"""(parent, tokens, stop reason): what makes two samples the same node."""


@dataclass(slots=True)
class NewNode:
    """A step that is to become a node."""

    parent: int
    """Index of the parent in the tree, or ~i for entry i of the same expansion."""
    step: Step
    depth: int
    count: int = 1
    """Samples that were merged into it."""
    score: float | None = None
    twin: "NewNode | int | None" = None
    """An equal step after the same prefix, whose score it shares: an entry of the same expansion, or a node of the tree."""


@dataclass(slots=True)
class Expansion:
    """One leaf of a wave, and what grows from it."""

    leaf: int
    num_samples: int
    """0 for a revisited terminal, which asks for nothing."""
    prefix_ids: tuple[int, ...] = ()
    new: list[NewNode] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """Per sample its last node, as ``NewNode.parent`` counts."""


@dataclass(slots=True)
class ScoreJob:
    """Branches to score after one prefix, and the nodes that wait for the scores."""

    prefix_ids: tuple[int, ...]
    branches: list[list[NewNode]]


@dataclass(slots=True)
class Settled:
    """A settled wave: nodes from ``first`` on are new in the step table; ``backups`` are (node, return or NaN, change of open leaves)."""

    first: int
    priors: list[float]
    worths: list[float]
    """Raw value per new node, NaN where unknown."""
    is_open: list[bool]
    """Whether a new node can be expanded."""
    backups: list[tuple[int, float, int]]


class SearchState:
    """The search of one problem."""

    def __init__(  # noqa: PLR0913 - the parts of one search
        self, *, problem: Problem, row: int, renderer: Renderer, method: SearchMethod, budget: Budget, provenance: Provenance, label_mode: bool
    ) -> None:
        """Start a search; nothing is asked yet."""
        self.problem = problem
        self.row = row
        self.method = method
        self.budget = budget
        self.prompt_ids = tuple(renderer.prompt_ids(problem))
        self.table = StepTable()
        self.wave: list[Expansion] = []
        self.pending = 0
        """Results that the wave still waits for."""
        self.width = method.wave
        """Beams still running."""
        self.num_expandable = 1
        """Leaves that can be expanded, those in flight included."""
        self.num_simulations = 0
        self.generated_tokens = 0
        self.verdicts: dict[str | None, float] = {None: 0.0}
        """Outcome per answer, label mode only; a solution without a readable answer is wrong."""
        self._renderer = renderer
        self._provenance = provenance
        self._label_mode = label_mode
        self._seed = derive_seed(provenance.seed, provenance.round, problem.id)
        self._num_samples = 0
        self._policy_calls = 0
        self._scored_tokens = 0
        self._candidates: list[Candidate] = []
        self._candidate_of: dict[int, int] = {}
        self._shared: dict[_StepKey, int] = {}
        """Nodes by their step; kept by sampling methods, whose draws share their first steps."""
        self._choice = Choice(votes={})
        self._anytime: list[tuple[int, str | None]] = []

    # ------------------------------------------------------------------------------------------------------------------ spending

    def stop_reason(self) -> StopReason | None:
        """Return why the search is over before its next wave, or None."""
        drawn = self.method.samples_solutions and self.method.temperature == 0 and self.num_simulations > 0
        if self.num_expandable == 0 or drawn:
            return StopReason.EXHAUSTED
        if self.num_simulations >= self.budget.num_simulations:
            return StopReason.SIMULATIONS
        if self.budget.max_tokens is not None and self.generated_tokens >= self.budget.max_tokens:
            return StopReason.TOKENS
        return None

    def wave_size(self) -> int:
        """Return how many leaves (sampling methods: draws) the next wave may have, at least 1."""
        if self.method.samples_solutions and self.method.temperature == 0:
            return 1
        size = min(self.method.wave, self.budget.num_simulations - self.num_simulations)
        if self.budget.max_tokens is not None and self.generated_tokens:
            per_leaf = (1 if self.method.samples_solutions else self.method.num_children) * self.generated_tokens / self._num_samples
            size = min(size, int((self.budget.max_tokens - self.generated_tokens) / per_leaf))
        return max(size, 1)

    # ---------------------------------------------------------------------------------------------------------------------- wave

    def ask(self, leaves: list[int], num_draws: int) -> list[tuple[Expansion, dict[str, Any]]]:
        """Begin a wave; return its expansions, each with the fields of its request but the ticket. Revisits ask for nothing."""
        self.wave = [self._expansion(leaf, num_draws) for leaf in leaves]
        asked = [(expansion, self._request(expansion)) for expansion in self.wave if expansion.num_samples]
        self.num_simulations += num_draws if self.method.samples_solutions else len(leaves)
        self.pending = len(asked)
        self._policy_calls += len(asked)
        return asked

    def _expansion(self, leaf: int, num_draws: int) -> Expansion:
        method, reason = self.method, self.table.stop_reasons[leaf]
        if reason != StopReason.STEP:
            return Expansion(leaf=leaf, num_samples=0)
        if method.samples_solutions:
            num_samples = num_draws
        elif method.temperature == 0:
            num_samples = 1
        else:
            num_samples = method.root_samples if leaf == Tree.ROOT else method.num_children
        return Expansion(leaf=leaf, num_samples=num_samples, prefix_ids=self.prompt_ids + self.table.path_ids(leaf))

    def _request(self, expansion: Expansion) -> dict[str, Any]:
        drawn = (self.num_simulations,) if self.method.samples_solutions else ()
        return {
            "prefix_ids": expansion.prefix_ids,
            "num_samples": expansion.num_samples,
            "seed": derive_seed(self._seed, expansion.leaf, *drawn),
            "temperature": float(self.method.temperature),
            "max_step_tokens": self.budget.max_step_tokens,
            "max_steps": self._max_steps,
        }

    @property
    def _max_steps(self) -> int:
        return self.budget.max_depth if self.method.samples_solutions else 1

    def receive(self, expansion: Expansion, result: StepResult) -> list[ScoreJob]:
        """Take in the samples of an expansion and return what has to be scored: every new step once.

        Raises:
            BackendError: If the policy returned another number of samples than asked, or a sample that goes on where it ended.
        """
        samples, max_steps = result.samples, self._max_steps
        if len(samples) != expansion.num_samples or not all(_is_whole(steps, max_steps) for steps in samples):
            raise BackendError(
                f"policy: a request for {expansion.num_samples} samples of up to {max_steps} steps must return as many, of which only the "
                f"last step may end otherwise than at a boundary: got {[[str(step.stop_reason) for step in steps] for steps in samples]} "
                "-- run stepladder.testing.check_policy on the backend"
            )
        self.pending -= 1
        self._num_samples += len(samples)
        self.generated_tokens += sum(len(step.token_ids) for steps in samples for step in steps)
        self._graft(expansion, samples)
        jobs = self._score_jobs(expansion)
        self._scored_tokens += sum(len(node.step.token_ids) for job in jobs for branch in job.branches for node in branch)
        return jobs

    def _graft(self, expansion: Expansion, samples: tuple[tuple[Step, ...], ...]) -> None:
        """Merge samples by exact tokens into new nodes. The last node of a draw of a sampling method stays its own, so that such a tree has
        one leaf per draw, in the order of the draws.
        """
        own_ends = self.method.samples_solutions
        known: dict[_StepKey, int] = {}
        depth = self.table.depths[expansion.leaf]
        for steps in samples:
            at = expansion.leaf
            for i, sampled in enumerate(steps, start=1):
                step = _checked(sampled)
                key = (at, step.token_ids, step.stop_reason)
                found = known.get(key)
                if found is None and own_ends:
                    found = self._shared.get(key)
                if found is None or (own_ends and i == len(steps)):
                    twin = found if found is None or found >= 0 else expansion.new[~found]
                    at = ~len(expansion.new)
                    known.setdefault(key, at)
                    expansion.new.append(NewNode(key[0], step, depth + i, twin=twin))
                else:
                    if found < 0:
                        expansion.new[~found].count += 1
                    at = found
                if step.stop_reason == StopReason.ERROR:
                    break
            expansion.ends.append(at)

    def _score_jobs(self, expansion: Expansion) -> list[ScoreJob]:
        groups: dict[int, list[list[NewNode]]] = {}
        branch_ending_at: dict[int, list[NewNode]] = {}
        for i, node in enumerate(expansion.new):
            if node.twin is not None or not node.step.token_ids:
                continue
            branch = branch_ending_at.pop(node.parent, None)
            if branch is None:
                branch = []
                groups.setdefault(node.parent, []).append(branch)
            branch.append(node)
            branch_ending_at[~i] = branch
        return [ScoreJob(self._prefix_ids(expansion, at), branches) for at, branches in groups.items()]

    def _prefix_ids(self, expansion: Expansion, at: int) -> tuple[int, ...]:
        steps: tuple[int, ...] = ()
        while at < 0:
            node = expansion.new[~at]
            at, steps = node.parent, node.step.token_ids + steps
        start = expansion.prefix_ids if at == expansion.leaf else self.prompt_ids + self.table.path_ids(at)
        return start + steps

    # -------------------------------------------------------------------------------------------------------------------- settle

    def enter_nodes(self) -> list[str]:
        """Number the wave's new nodes in wave order, read their answers, and return the answers that were never seen before."""
        table, method = self.table, self.method
        for expansion in self.wave:
            first = len(table.steps)
            for node in expansion.new:
                parent = node.parent if node.parent >= 0 else first + ~node.parent
                index = len(table.steps)
                table.parents.append(parent)
                table.depths.append(node.depth)
                table.steps.append(node.step)
                table.num_children.append(0)
                reason = node.step.stop_reason
                if reason == StopReason.STEP and node.depth >= self.budget.max_depth:
                    reason = StopReason.DEPTH
                table.stop_reasons.append(reason)
                twin = node.twin
                table.scores.append(node.score if twin is None else table.scores[twin] if isinstance(twin, int) else twin.score)
                answer = self._renderer.extract_answer(table.path_text(index)) if reason == StopReason.END else None
                table.answers.append(answer)
                table.outcomes.append(None)
                if method.samples_solutions:
                    self._shared.setdefault((parent, node.step.token_ids, node.step.stop_reason), index)
            expansion.ends = [end if end >= 0 else first + ~end for end in expansion.ends]
        ended = table.answers[self._num_settled :]
        return [] if not self._label_mode else [answer for answer in dict.fromkeys(ended) if answer not in self.verdicts]

    @property
    def _num_settled(self) -> int:
        """Nodes that were there before this wave."""
        return len(self.table.steps) - sum(len(expansion.new) for expansion in self.wave)

    def settle(self, raw_value: Any) -> Settled:
        """Value the wave's new nodes and return what is to be written to the arrays and backed up, in wave order.

        Args:
            raw_value: The row of ``Tree.raw_value``, for leaves that are worth their own estimate.

        """
        table, first = self.table, self._num_settled
        settled = Settled(first=first, priors=[], worths=[], is_open=[], backups=[])
        for index in range(first, len(table.steps)):
            settled.worths.append(self._worth(index))
            settled.is_open.append(table.stop_reasons[index] == StopReason.STEP)
        at = 0
        for expansion in self.wave:
            span = slice(at, at + len(expansion.new))
            at = span.stop
            settled.priors += self._priors(expansion.new)
            settled.backups += self._backups(expansion, settled.worths, first, span, settled.is_open, raw_value)
        self._note_answers(first)
        self.wave = []
        return settled

    def _worth(self, index: int) -> float:
        """Value a new node: its PRM score while the solution goes on; the outcome (label mode) or the score of a terminal; 0 for what can
        no longer give an answer: cut, failed, or ended without a readable one.
        """
        table = self.table
        reason, score = table.stop_reasons[index], table.scores[index]
        if reason != StopReason.STEP:
            if self._label_mode:
                table.outcomes[index] = self.verdicts[table.answers[index]]
                return table.outcomes[index] or 0.0
            if table.answers[index] is None:
                return 0.0
        return math.nan if score is None else score

    def _priors(self, new: list[NewNode]) -> list[float]:
        if self.method.samples_solutions or not new:
            return [0.0] * len(new)
        logps = [sum(node.step.logps) / len(node.step.logps) if node.step.logps else -math.inf for node in new]
        return sibling_priors([node.count for node in new], logps, rule=self.method.prior)

    def _backups(
        self, expansion: Expansion, worths: list[float], first: int, span: slice, is_open: list[bool], raw_value: Any
    ) -> list[tuple[int, float, int]]:
        leaf = expansion.leaf
        if self.method.samples_solutions:
            return [(end, worths[end - first], 0) for end in expansion.ends]
        if expansion.num_samples == 0:
            return [(leaf, float(raw_value[leaf]), 0)]
        num_open = sum(is_open[span])
        self.num_expandable += num_open - 1
        opened = num_open if self.method.terminals == "skip" else len(expansion.new)
        if self.method.evaluation == "leaf":
            return [(leaf, float(raw_value[leaf]), opened)]
        known = [(node.count, worth) for node, worth in zip(expansion.new, worths[span], strict=True) if not math.isnan(worth)]
        total = sum(count for count, _ in known)
        mean = sum(count * worth for count, worth in known) / total if total else math.nan
        return [(leaf, mean, opened)]

    def _note_answers(self, first: int) -> None:
        """Bring candidates, choice and the anytime record up to date."""
        table, changed = self.table, False
        counts = {index: node.count for index, node in enumerate((n for e in self.wave for n in e.new), start=first)}
        for index, count in counts.items():
            answer = table.answers[index]
            if answer is not None:
                score = aggregate_scores([table.scores[on_path] for on_path in table.path(index)], rule=self.method.aggregation)
                self._candidate_of[index] = len(self._candidates)
                self._candidates.append(Candidate(node=index, answer=answer, score=score, count=count))
                changed = True
        for expansion in self.wave:
            place = self._candidate_of.get(expansion.leaf) if expansion.num_samples == 0 else None
            if place is not None:
                candidate = self._candidates[place]
                self._candidates[place] = replace(candidate, count=candidate.count + 1)
                changed = True
        if changed:
            self._choice = choose_answer(self._candidates, rule=self.method.answer_rule)
        self._anytime.append((self.generated_tokens, self._choice.answer))

    # -------------------------------------------------------------------------------------------------------------------- result

    @property
    def solved(self) -> bool:
        """Whether the tree holds a right answer; always False in solve mode."""
        return 1.0 in self.table.outcomes

    def result(self, tree: Tree, reason: StopReason) -> SearchResult:
        """Return what the search found."""
        return SearchResult(
            problem_id=self.problem.id,
            answer=self._choice.answer,
            answer_node=self._choice.node,
            votes=self._choice.votes,
            stop_reason=reason,
            anytime=tuple(self._anytime),
            tree=self._record(tree),
        )

    def _record(self, tree: Tree) -> TreeRecord:
        table, row = self.table, self.row
        used = slice(len(table.steps))
        visits = tree.visits[row, used].tolist()
        if self.method.samples_solutions:
            priors = [1.0] + [visits[node] / visits[parent] for node, parent in enumerate(table.parents) if node]
        else:
            priors = tree.prior[row, used].tolist()
        return TreeRecord(
            problem_id=self.problem.id,
            question=self.problem.question,
            prompt_ids=list(self.prompt_ids),
            method=self.method.name,
            parents=table.parents,
            depths=table.depths,
            token_ids=[list(step.token_ids) for step in table.steps],
            logps=[list(step.logps) for step in table.steps],
            texts=[step.text if step.message is None else step.message for step in table.steps],
            priors=priors,
            scores=table.scores,
            visits=visits,
            values=[None if math.isnan(value) else value for value in tree.value[row, used].tolist()],
            stop_reasons=[str(reason) for reason in table.stop_reasons],
            answers=table.answers,
            outcomes=table.outcomes,
            generated_tokens=self.generated_tokens,
            policy_calls=self._policy_calls,
            scored_tokens=self._scored_tokens,
            num_simulations=self.num_simulations,
            provenance=self._provenance,
        )


def _is_whole(steps: tuple[Step, ...], max_steps: int) -> bool:
    """Say whether a sample ends by itself or after ``max_steps`` steps, and nowhere before."""
    if not 1 <= len(steps) <= max_steps:
        return False
    last = steps[-1].stop_reason != StopReason.STEP or len(steps) == max_steps
    return last and all(step.stop_reason == StopReason.STEP for step in steps[:-1])


def _checked(step: Step) -> Step:
    """Return the step; one without tokens would never end a solution and becomes a failed one."""
    if step.token_ids or step.stop_reason == StopReason.ERROR:
        return step
    return Step(token_ids=(), logps=(), text="", stop_reason=StopReason.ERROR, message=f"empty step with stop reason {step.stop_reason!s}")
