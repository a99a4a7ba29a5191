"""One problem's search in progress: what was asked, what came back, and what it came to.

The array statistics live in ``Tree``; this is the part of a tree that is ragged (tokens, texts, answers) or private to one problem
(seed, spending, the wave in flight). A wave passes through four stages: ``ask`` for expansions, ``receive`` samples, receive their scores,
and, once all of it is in, ``enter_nodes`` and ``settle`` in wave order, so that arrival order leaves no trace.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from stepladder.errors import BackendError
from stepladder.interfaces import Renderer, StepResult
from stepladder.mcts.answer_rules import AnswerTally
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
    """A settled wave, ready to be written to the arrays. The lists hold one entry per new node; nodes from ``first`` on are new."""

    first: int
    slots: list[int] = field(default_factory=list)
    """Child slot at the parent."""
    priors: list[float] = field(default_factory=list)
    worths: list[float] = field(default_factory=list)
    """Raw value, NaN where unknown."""
    is_open: list[bool] = field(default_factory=list)
    """Whether the node can be expanded."""
    is_terminal: list[bool] = field(default_factory=list)
    backups: list[tuple[int, float, int]] = field(default_factory=list)
    """(node, return or NaN, change of the number of open leaves), in wave order."""


class SearchState:
    """The search of one problem."""

    def __init__(
        self,
        *,
        problem: Problem,
        row: int,
        renderer: Renderer,
        method: SearchMethod,
        budget: Budget,
        provenance: Provenance,
        label_mode: bool,
        scored: bool,
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
        self._draws_solutions = method.samples_solutions
        self._max_steps = budget.max_depth if method.samples_solutions else 1
        self._label_mode = label_mode
        self._scored = scored
        self._seed = derive_seed(provenance.seed, provenance.round, problem.id)
        self._num_samples = 0
        self._policy_calls = 0
        self._scored_tokens = 0
        self._masses = [1.0]
        """Product of the priors from the root to each node; left at the root's by sampling methods, whose draws are counted."""
        self._shared: dict[_StepKey, int] = {}
        """Nodes by their step; kept by sampling methods, whose draws share their first steps."""
        self._num_settled = 1
        """Nodes that were there before the wave that is being settled."""
        self._tally = AnswerTally(method.answer_rule)
        self._anytime: list[tuple[int, str | None]] = []

    # ------------------------------------------------------------------------------------------------------------------ spending

    def stop_reason(self) -> StopReason | None:
        """Return why the search is over before its next wave, or None."""
        drawn = self._draws_solutions and self.method.temperature == 0 and self.num_simulations > 0
        if self.num_expandable == 0 or drawn:
            return StopReason.EXHAUSTED
        if self.num_simulations >= self.budget.num_simulations:
            return StopReason.SIMULATIONS
        if self.budget.max_tokens is not None and self.generated_tokens >= self.budget.max_tokens:
            return StopReason.TOKENS
        return None

    def wave_size(self) -> int:
        """Return how many leaves (sampling methods: draws) the next wave may have, at least 1."""
        if self._draws_solutions and self.method.temperature == 0:
            return 1
        size = min(self.method.wave, self.budget.num_simulations - self.num_simulations)
        if self.budget.max_tokens is not None and self.generated_tokens:
            one_sample = self._draws_solutions or self.method.temperature == 0
            per_leaf = (1 if one_sample else self.method.num_children) * self.generated_tokens / self._num_samples
            size = min(size, int((self.budget.max_tokens - self.generated_tokens) / per_leaf))
        return max(size, 1)

    # ---------------------------------------------------------------------------------------------------------------------- wave

    def ask(self, leaves: list[int], num_draws: int) -> list[tuple[Expansion, dict[str, Any]]]:
        """Begin a wave; return its expansions, each with the fields of its request but the ticket. Revisits ask for nothing."""
        self.wave = [self._expansion(leaf, num_draws) for leaf in leaves]
        asked = [(expansion, self._request(expansion)) for expansion in self.wave if expansion.num_samples]
        self.num_simulations += num_draws if self._draws_solutions else len(leaves)
        self.pending = len(asked)
        self._policy_calls += len(asked)
        return asked

    def _expansion(self, leaf: int, num_draws: int) -> Expansion:
        method, reason = self.method, self.table.stop_reasons[leaf]
        if reason != StopReason.STEP:
            return Expansion(leaf=leaf, num_samples=0)
        if self._draws_solutions:
            num_samples = num_draws
        elif method.temperature == 0:
            num_samples = 1
        else:
            num_samples = method.root_samples if leaf == Tree.ROOT else method.num_children
        return Expansion(leaf=leaf, num_samples=num_samples, prefix_ids=self.prompt_ids + self.table.path_ids(leaf))

    def _request(self, expansion: Expansion) -> dict[str, Any]:
        drawn = (self.num_simulations,) if self._draws_solutions else ()
        return {
            "prefix_ids": expansion.prefix_ids,
            "num_samples": expansion.num_samples,
            "seed": derive_seed(self._seed, expansion.leaf, *drawn),
            "temperature": float(self.method.temperature),
            "max_step_tokens": self.budget.max_step_tokens,
            "max_steps": self._max_steps,
        }

    def receive(self, expansion: Expansion, result: StepResult) -> list[ScoreJob]:
        """Take in the samples of an expansion and return what has to be scored: every new step once, nothing without a scorer.

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
        if self._draws_solutions:
            self._graft_solutions(expansion, samples)
        else:
            self._graft_steps(expansion, samples)
        return self._score_jobs(expansion) if self._scored else []

    def _graft_steps(self, expansion: Expansion, samples: tuple[tuple[Step, ...], ...]) -> None:
        """Turn samples of one step each into children; equal ones become one."""
        leaf, depth = expansion.leaf, self.table.depths[expansion.leaf] + 1
        known: dict[tuple[tuple[int, ...], StopReason], NewNode] = {}
        for (sampled,) in samples:
            step = _checked(sampled)
            self.generated_tokens += len(step.token_ids)
            node = known.get((step.token_ids, step.stop_reason))
            if node is None:
                known[step.token_ids, step.stop_reason] = NewNode(leaf, step, depth)
            else:
                node.count += 1
        expansion.new = list(known.values())

    def _graft_solutions(self, expansion: Expansion, samples: tuple[tuple[Step, ...], ...]) -> None:
        """Turn whole solutions into branches that share their first steps.

        The last node of a draw stays its own even where an equal one exists, so that the tree has one leaf per draw, in the order of the
        draws.
        """
        known: dict[_StepKey, int] = {}
        depth = self.table.depths[expansion.leaf]
        for steps in samples:
            at = expansion.leaf
            for i, sampled in enumerate(steps, start=1):
                step = _checked(sampled)
                self.generated_tokens += len(step.token_ids)
                key = (at, step.token_ids, step.stop_reason)
                found = known.get(key, self._shared.get(key))
                if found is None or i == len(steps):
                    twin = found if found is None or found >= 0 else expansion.new[~found]
                    at = ~len(expansion.new)
                    known.setdefault(key, at)
                    expansion.new.append(NewNode(key[0], step, depth + i, twin=twin))
                else:
                    at = found
                if step.stop_reason == StopReason.ERROR:
                    break
            expansion.ends.append(at)

    def _score_jobs(self, expansion: Expansion) -> list[ScoreJob]:
        new = [node for node in expansion.new if node.step.token_ids and node.twin is None]
        self._scored_tokens += sum([len(node.step.token_ids) for node in new])
        if self._draws_solutions:
            jobs = self._solution_jobs(expansion)
        else:
            jobs = [ScoreJob(expansion.prefix_ids, [[node] for node in new])] if new else []
        self.pending += len(jobs)
        return jobs

    def _solution_jobs(self, expansion: Expansion) -> list[ScoreJob]:
        """Cut the new nodes into branches, each as long as possible, so that every step is scored once."""
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
        """Number the wave's new nodes in wave order, read their answers, and return those that have to be graded."""
        self._num_settled = len(self.table.steps)
        for expansion in self.wave:
            if expansion.new:
                self._enter(expansion)
        if not self._label_mode:
            return []
        answers = dict.fromkeys(self.table.answers[self._num_settled :])
        return [answer for answer in answers if answer is not None and answer not in self.verdicts]

    def _enter(self, expansion: Expansion) -> None:
        table, new, first = self.table, expansion.new, len(self.table.steps)
        table.steps += [node.step for node in new]
        table.parents += [node.parent if node.parent >= 0 else first + ~node.parent for node in new]
        table.depths += [node.depth for node in new]
        table.stop_reasons += [
            StopReason.DEPTH if node.step.stop_reason == StopReason.STEP and node.depth >= self.budget.max_depth else node.step.stop_reason
            for node in new
        ]
        table.scores += [node.score if node.twin is None else self._twin_score(node.twin) for node in new]
        table.answers += [None] * len(new)
        table.outcomes += [None] * len(new)
        for index in range(first, len(table.steps)):
            if table.stop_reasons[index] == StopReason.END:
                table.answers[index] = self._renderer.extract_answer(table.path_text(index))
        if self._draws_solutions:
            expansion.ends = [end if end >= 0 else first + ~end for end in expansion.ends]
            for index, node in enumerate(new, start=first):
                self._shared.setdefault((table.parents[index], node.step.token_ids, node.step.stop_reason), index)

    def _twin_score(self, twin: NewNode | int) -> float | None:
        return self.table.scores[twin] if isinstance(twin, int) else twin.score

    def settle(self, raw_value: Any) -> Settled:
        """Value the wave's new nodes and return what is to be written to the arrays and backed up, in wave order.

        Args:
            raw_value: The row of ``Tree.raw_value``, for leaves that are worth their own estimate.

        """
        settled = Settled(first=self._num_settled)
        for expansion in self.wave:
            self._value_nodes(expansion, settled)
            self._note_answers(expansion, settled)
            self._back_up(expansion, settled, raw_value)
        self._anytime.append((self.generated_tokens, self._tally.leader()))
        self.wave = []
        return settled

    def _value_nodes(self, expansion: Expansion, settled: Settled) -> None:
        table, at = self.table, settled.first + len(settled.worths)
        reasons = table.stop_reasons[at : at + len(expansion.new)]
        for index, reason in enumerate(reasons, start=at):
            score = table.scores[index]
            if reason != StopReason.STEP:
                score = self._worth_of_end(index)
            settled.worths.append(math.nan if score is None else score)
        settled.is_open += [reason == StopReason.STEP for reason in reasons]
        settled.is_terminal += [reason == StopReason.END for reason in reasons]
        if self._draws_solutions:
            # A root with thousands of draws would need as many slots at every node.
            settled.slots += [Tree.NO_SLOT] * len(expansion.new)
            settled.priors += [0.0] * len(expansion.new)
        else:
            settled.slots += range(len(expansion.new))
            priors = self._priors(expansion.new)
            settled.priors += priors
            self._masses += [self._masses[expansion.leaf] * prior for prior in priors]

    def _worth_of_end(self, index: int) -> float | None:
        """Value a node at which the solution ended or was cut.

        In label mode it is worth its outcome. Else a terminal is worth its score, and what cannot give an answer any more (cut, failed, or
        ended without a readable one) 0.
        """
        table = self.table
        answer, score = table.answers[index], table.scores[index]
        if self._label_mode:
            outcome = table.outcomes[index] = self.verdicts[answer]
            return outcome
        return 0.0 if answer is None else score

    def _priors(self, new: list[NewNode]) -> list[float]:
        if not new:
            return []
        logps: list[float] = []
        if self.method.prior == "mean-logp":
            logps = [sum(node.step.logps) / len(node.step.logps) if node.step.logps else -math.inf for node in new]
        return sibling_priors([node.count for node in new], logps, rule=self.method.prior)

    def _note_answers(self, expansion: Expansion, settled: Settled) -> None:
        """Count the answers of new terminals, and of a terminal that was visited again, which gives its path no further mass."""
        at = len(settled.worths) - len(expansion.new)
        if expansion.num_samples:
            first = settled.first + at
            reached = [(first + i, node.count) for i, node in enumerate(expansion.new) if settled.is_terminal[at + i]]
        else:
            reached = [(expansion.leaf, 1)]
        for index, count in reached:
            answer = self.table.answers[index]
            if answer is None:
                continue
            by_mass = self.method.answer_rule == "path-vote" and not self._draws_solutions
            mass = (self._masses[index] if expansion.num_samples else 0.0) if by_mass else count
            self._tally.add(index, answer, self._trajectory_score(index), count=mass)

    def _trajectory_score(self, index: int) -> float | None:
        score, rule = self.table.scores[index], self.method.aggregation
        if rule == "last" and score is not None:
            return score
        return aggregate_scores([self.table.scores[on_path] for on_path in self.table.path(index)], rule=rule)

    def _back_up(self, expansion: Expansion, settled: Settled, raw_value: Any) -> None:
        leaf = expansion.leaf
        if self._draws_solutions:
            settled.backups += [(end, settled.worths[end - settled.first], 0) for end in expansion.ends]
            return
        if expansion.num_samples == 0:
            settled.backups.append((leaf, float(raw_value[leaf]), 0))
            return
        at = len(settled.worths) - len(expansion.new)
        num_open = sum(settled.is_open[at:])
        self.num_expandable += num_open - 1
        opened = num_open if self.method.terminals == "skip" else len(expansion.new)
        if self.method.evaluation == "leaf":
            settled.backups.append((leaf, float(raw_value[leaf]), opened))
            return
        total, weight = 0.0, 0
        for node, worth in zip(expansion.new, settled.worths[at:], strict=True):
            if not math.isnan(worth):
                total += node.count * worth
                weight += node.count
        settled.backups.append((leaf, total / weight if weight else math.nan, opened))

    # -------------------------------------------------------------------------------------------------------------------- result

    @property
    def solved(self) -> bool:
        """Whether the tree holds a right answer; always False in solve mode."""
        return 1.0 in self.table.outcomes

    def result(self, tree: Tree, reason: StopReason) -> SearchResult:
        """Return what the search found."""
        choice = self._tally.choice()
        return SearchResult(
            problem_id=self.problem.id,
            answer=choice.answer,
            answer_node=choice.node,
            votes=choice.votes,
            stop_reason=reason,
            anytime=tuple(self._anytime),
            tree=self._record(tree),
        )

    def _record(self, tree: Tree) -> TreeRecord:
        table, row = self.table, self.row
        used = slice(len(table.steps))
        visits = tree.visits[row, used].tolist()
        if self._draws_solutions:
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
            stop_reasons=[reason.value for reason in table.stop_reasons],
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
    if max_steps == 1:
        return len(steps) == 1
    if not 1 <= len(steps) <= max_steps:
        return False
    last = steps[-1].stop_reason != StopReason.STEP or len(steps) == max_steps
    return last and all(step.stop_reason == StopReason.STEP for step in steps[:-1])


def _checked(step: Step) -> Step:
    """Return the step; one without tokens would never end a solution and becomes a failed one."""
    if step.token_ids or step.stop_reason == StopReason.ERROR:
        return step
    return Step(token_ids=(), logps=(), text="", stop_reason=StopReason.ERROR, message=f"empty step with stop reason {step.stop_reason!s}")
