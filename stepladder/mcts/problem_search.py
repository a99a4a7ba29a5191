"""One problem's search in progress: what was asked, what came back, and what it came to.

The array statistics live in ``Tree``; this is the part of a tree that is ragged (tokens, texts, answers) or private to one problem
(seed, spending, the wave in flight). A wave passes through stages: ``ask`` for expansions, ``receive`` samples, receive their scores, the
same for rollouts, and, once all of it is in, ``enter_nodes`` in wave order and ``settle_waves``, so that arrival order leaves no trace.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from stepladder.errors import BackendError
from stepladder.interfaces import Renderer, StepRequest, StepResult
from stepladder.mcts.answer_rules import AnswerTally
from stepladder.mcts.expansion import Expansion, Rollout, ScoreJob, are_whole, failed
from stepladder.mcts.method import SearchMethod
from stepladder.mcts.qvalues import aggregate_scores
from stepladder.mcts.resample import draw_copies, particle_weights
from stepladder.mcts.tree import StepTable, Tree
from stepladder.types import Budget, Failures, Problem, Provenance, SearchResult, Step, StopReason, TreeRecord, derive_seed, seed_family

_StepKey = tuple[int, tuple[int, ...], StopReason]
"""(parent, tokens, stop reason): what makes two samples the same node."""
_NAMES = {reason: reason.value for reason in StopReason}
"""Plain strings: an enum's ``value`` is Python code."""
_STEP, _END, _ERROR = StopReason.STEP, StopReason.END, StopReason.ERROR
"""Looking a member up is Python code, too."""

_NO_REASON = "no reason given"


class SearchState:
    """The search of one problem."""

    def __init__(
        self,
        *,
        problem: Problem,
        row: int,
        number: int,
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
        self.number = number
        """How many searches were admitted before it."""
        self.method = method
        self.budget = budget
        self.prompt_ids = tuple(renderer.prompt_ids(problem))
        self.table = StepTable()
        self.wave: list[Expansion] = []
        self.pending = 0
        """Results that the wave still waits for."""
        self.widths = [method.wave // method.groups] * method.groups
        """Beams still running in each group."""
        self._particles = [(Tree.ROOT, method.wave)]
        """The newest generation of ``resample``: nodes, and how many particles each is."""
        self._copies: dict[int, int] = {}
        """Of each leaf of the wave, the particles that were drawn as its copies; ``resample`` only."""
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
        self._label_mode, self._scored = label_mode, scored
        self.seed_of = seed_family(derive_seed(provenance.seed, provenance.round, problem.id))
        """Derives every seed of the search from what it is for."""
        self.base = Tree.ROOT
        """Node from which the search goes on."""
        self._num_samples, self._num_rollouts = 0, 0
        self._failed: list[str] = []
        """What each failed sample said, in wave order."""
        self._policy_calls = 0
        self._best_score = -1.0
        """Best score of a solution with an answer."""
        self._committed_at = 0
        """Simulations made when the search last moved to a child."""
        self._scored_tokens = 0
        self.masses = [1.0]
        """Product of the priors on the path to each node; kept for answers that are weighed by it only."""
        self._shared: dict[_StepKey, int] = {}
        """Nodes by their step; kept by sampling methods, whose draws share their first steps."""
        self._tally = AnswerTally(method.answer_rule)
        self._begin = time.monotonic()
        self._anytime: list[tuple[int, str | None]] = []

    # ------------------------------------------------------------------------------------------------------------------ spending

    def stop_reason(self) -> StopReason | None:
        """Return why the search is over before its next wave, or None."""
        drawn = self._draws_solutions and self.method.temperature == 0 and self.num_simulations > 0
        if self.num_expandable == 0 or drawn:
            return StopReason.EXHAUSTED
        if self.method.stop_value is not None and self._best_score >= self.method.stop_value:
            return StopReason.VALUE
        if self._agrees():
            return StopReason.CONVERGED
        if self.budget.max_calls is not None and self._policy_calls >= self.budget.max_calls:
            return StopReason.CALLS
        if self.budget.max_seconds is not None and self.num_simulations and time.monotonic() - self._begin >= self.budget.max_seconds:
            return StopReason.SECONDS
        if self.num_simulations >= self.budget.num_simulations:
            return StopReason.SIMULATIONS
        if self.budget.max_tokens is not None and self.generated_tokens >= self.budget.max_tokens:
            return StopReason.TOKENS
        return None

    def _agrees(self) -> bool:
        agreement = self.method.stop_agreement
        if agreement is None or len(self._anytime) < agreement:
            return False
        recent = Counter(answer for _, answer in self._anytime[-self.method.stop_window :] if answer is not None)
        return bool(recent) and max(recent.values()) >= agreement

    @property
    def may_commit(self) -> bool:
        """Whether enough simulations were made since the search last moved, or began."""
        return self.method.commit is not None and self.num_simulations - self._committed_at >= self.method.commit

    def commit(self, node: int) -> None:
        """Go on from a node."""
        self.base = node
        self._committed_at = self.num_simulations

    def wave_size(self) -> int:
        """Return how many leaves (sampling methods: draws) the next wave may have, at least 1."""
        if self._draws_solutions and self.method.temperature == 0:
            return 1
        size = min(self.method.wave, self.budget.num_simulations - self.num_simulations)
        if self.budget.max_calls is not None and not self._draws_solutions:
            size = min(size, self.budget.max_calls - self._policy_calls)
        if self.budget.max_tokens is not None and self.generated_tokens:
            one_sample = self._draws_solutions or self.method.share or self.method.temperature == 0
            per_leaf = (1 if one_sample else self.method.num_children) * self.generated_tokens / self._num_samples
            size = min(size, int((self.budget.max_tokens - self.generated_tokens) / per_leaf))
        return max(size, 1)

    # ---------------------------------------------------------------------------------------------------------------------- wave

    def ask(self, leaves: list[int], num_draws: int) -> list[Expansion]:
        """Begin a wave; return the expansions that need the policy. Revisits ask for nothing."""
        samples = [num_draws] if self._draws_solutions else self._samples_after(leaves)
        asked = []
        for leaf, num_samples in zip(leaves, samples, strict=True):
            expansion = Expansion(leaf, num_samples)
            self.wave.append(expansion)
            if num_samples:
                expansion.prefix_ids = self.prompt_ids + self.table.path_ids(leaf)
                asked.append(expansion)
        self.num_simulations += num_draws if self._draws_solutions else len(leaves)
        self.pending = len(asked)
        self._policy_calls += len(asked)
        return asked

    def _samples_after(self, leaves: list[int]) -> list[int]:
        """Return how many steps to sample after each leaf; 0 where its solution has ended."""
        method, numbers = self.method, []
        for leaf in leaves:
            if self.table.stop_reasons[leaf] is not _STEP:
                numbers.append(0)
            elif method.temperature == 0:
                numbers.append(1)
            elif leaf == Tree.ROOT:
                numbers.append(method.root_samples)
            else:
                numbers.append(self._copies.get(leaf, 1) * (1 if self._goes_straight(leaf) else method.num_children))
        if method.share and leaves != [Tree.ROOT]:
            running = sum(self.widths)
            # The first ones, which are the best, take what does not divide.
            shares = [running // len(leaves) + (place < running % len(leaves)) for place in range(len(leaves))]
            numbers = [min(number, share) for number, share in zip(numbers, shares, strict=True)]
        return numbers

    def _goes_straight(self, leaf: int) -> bool:
        """Whether a leaf's own step was too certain for the leaf to branch."""
        logps = self.table.steps[leaf].logps
        return self.method.branch_entropy is not None and -math.fsum(logps) < self.method.branch_entropy * len(logps)

    def resample(self, raw_values: Float[np.ndarray, "N"], most: int) -> list[int]:
        """Draw the next generation of particles and return its leaves, at most ``most`` particles of them, in the order of their nodes.

        Those that ended are kept for the next draw.
        """
        if self._particles == [(Tree.ROOT, self.method.wave)]:
            self._particles, self._copies = [], {Tree.ROOT: self.method.wave}
            return [Tree.ROOT]
        nodes, copies = map(np.array, zip(*self._particles, strict=True))
        weights = particle_weights(
            raw_values[nodes].astype(np.float64),
            copies,
            rule=self.method.resample_by,
            temperature=float(self.method.resample_temperature),
        )
        rng = np.random.default_rng(self.seed_of("resample", self.num_simulations))
        drawn = draw_copies(weights, rng.random(self.method.wave)).tolist()
        self._particles, self._copies = [], {}
        for node, number in zip(nodes.tolist(), drawn, strict=True):
            if number and self.table.stop_reasons[node] != StopReason.STEP:
                self._particles.append((node, number))
            elif number and most > 0:
                self._copies[node] = min(number, most)
                most -= number
        return list(self._copies)

    def has_reached(self, raw_value: np.float32) -> bool:
        """Whether a solution with an answer scores at least what a leaf is worth; an unscored leaf may be worth anything."""
        return bool(np.float32(self._best_score) >= raw_value)

    def request(self, ticket: int, expansion: Expansion) -> StepRequest:
        """Return what the policy is asked for an expansion."""
        # The draws of later waves from the root differ by how many came before them.
        drawn = (self.num_simulations - expansion.num_samples,) if self._draws_solutions else ()
        return StepRequest(
            ticket=ticket,
            prefix_ids=expansion.prefix_ids,
            num_samples=expansion.num_samples,
            seed=self.seed_of(expansion.leaf, *drawn),
            temperature=float(self.method.temperature),
            max_step_tokens=self.budget.max_step_tokens,
            max_steps=self._max_steps,
        )

    def receive(self, expansion: Expansion, result: StepResult) -> list[ScoreJob]:
        """Take in the samples of an expansion and return what has to be scored: every new step once, nothing without a scorer.

        Raises:
            BackendError: If the policy returned another number of samples than asked, or a sample that goes on where it ended.
        """
        samples = result.samples
        self._check_samples(samples, expansion.num_samples, self._max_steps)
        self.pending -= 1
        self._num_samples += len(samples)
        if self._draws_solutions:
            self._graft_solutions(expansion, samples)
        else:
            self._graft_steps(expansion, samples)
        expansion.scores = [None] * len(expansion.steps)
        return self._score_jobs(expansion) if self._scored else []

    def _check_samples(self, samples: tuple[tuple[Step, ...], ...], num_samples: int, max_steps: int) -> None:
        if len(samples) == num_samples and are_whole(samples, max_steps):
            return
        got = [[str(step.stop_reason) for step in steps] for steps in samples]
        raise BackendError(
            f"policy: a request for {num_samples} samples of up to {max_steps} steps must return as many, of which only the last step may "
            f"end otherwise than at a boundary: got {got} -- run stepladder.testing.check_policy on the backend"
        )

    def _graft_steps(self, expansion: Expansion, samples: tuple[tuple[Step, ...], ...]) -> None:
        """Turn samples of one step each into children; equal ones become one."""
        steps: list[Step] = []
        counts: list[int] = []
        num_tokens, by_text = 0, self.method.merge == "text"
        known: dict[tuple[tuple[int, ...] | str, StopReason], int] = {}
        for (step,) in samples:
            token_ids = step.token_ids
            if not token_ids:
                step = failed(step)
            num_tokens += len(token_ids)
            key = (" ".join(step.text.split()) if by_text else token_ids, step.stop_reason)
            if key in known:
                counts[known[key]] += 1
            else:
                known[key] = len(steps)
                steps.append(step)
                counts.append(1)
        self.generated_tokens += num_tokens
        expansion.steps, expansion.counts = steps, counts
        expansion.parents = [expansion.leaf] * len(steps)
        expansion.depths = [self.table.depths[expansion.leaf] + 1] * len(steps)

    def _graft_solutions(self, expansion: Expansion, samples: tuple[tuple[Step, ...], ...]) -> None:
        """Turn whole solutions into branches that share their first steps.

        The last node of a draw stays its own even where an equal one exists, so that the tree has one leaf per draw, in the order of the
        draws.
        """
        known: dict[_StepKey, int] = {}
        depth = self.table.depths[expansion.leaf]
        new: list[Step] = []
        parents: list[int] = []
        depths: list[int] = []
        twins: list[tuple[int, int]] = []
        ends: list[int] = []
        for steps in samples:
            at = expansion.leaf
            for i, sampled in enumerate(steps, start=1):
                step = sampled if sampled.token_ids else failed(sampled)
                self.generated_tokens += len(step.token_ids)
                key = (at, step.token_ids, step.stop_reason)
                found = known.get(key, self._shared.get(key))
                if found is None or i == len(steps):
                    at = ~len(new)
                    if found is not None:
                        twins.append((~at, found))
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

    def _score_jobs(self, expansion: Expansion) -> list[ScoreJob]:
        places = [place for place, step in enumerate(expansion.steps) if step.token_ids]
        if self._draws_solutions:
            return self._await_scores(self._solution_jobs(expansion, places))
        if not places:
            return []
        branches = tuple([(step.token_ids,) for step in expansion.steps if step.token_ids])
        return self._await_scores([ScoreJob(expansion, expansion, expansion.prefix_ids, places, branches)])

    def _await_scores(self, jobs: list[ScoreJob]) -> list[ScoreJob]:
        self.pending += len(jobs)
        self._scored_tokens += sum([len(token_ids) for job in jobs for branch in job.branches for token_ids in branch])
        return jobs

    def _solution_jobs(self, expansion: Expansion, places: list[int]) -> list[ScoreJob]:
        """Cut the new nodes but the twins into branches, each as long as possible, so that every step is scored once."""
        groups: dict[int, list[list[int]]] = {}
        branch_ending_at: dict[int, list[int]] = {}
        twins = {place for place, _ in expansion.twins}
        for i in places:
            if i in twins:
                continue
            parent = expansion.parents[i]
            branch = branch_ending_at.pop(parent, None)
            if branch is None:
                branch = []
                groups.setdefault(parent, []).append(branch)
            branch.append(i)
            branch_ending_at[~i] = branch
        return [ScoreJob.of(expansion, expansion, self._prefix_ids(expansion, at), branches) for at, branches in groups.items()]

    def _prefix_ids(self, expansion: Expansion, at: int) -> tuple[int, ...]:
        steps: tuple[int, ...] = ()
        while at < 0:
            at, steps = expansion.parents[~at], expansion.steps[~at].token_ids + steps
        start = expansion.prefix_ids if at == expansion.leaf else self.prompt_ids + self.table.path_ids(at)
        return start + steps

    # ------------------------------------------------------------------------------------------------------------------ rollouts

    def ask_rollouts(self, expansion: Expansion) -> list[Rollout]:
        """Return the rollouts of an expansion whose own scores are in."""
        method = self.method
        places = [i for i in range(len(expansion.steps)) if self._can_go_on(expansion, i)]
        if method.rollout_of == "best":
            scores = [-1.0 if score is None else score for score in expansion.scores]
            places = [i for i in places if i == scores.index(max(scores))]
        longest = self.budget.max_depth if method.rollout_steps is None else method.rollout_steps
        rollouts = []
        for i in places:
            max_steps = min(longest, self.budget.max_depth - expansion.depths[i])
            rollouts.append(Rollout(i, expansion.prefix_ids + expansion.steps[i].token_ids, max_steps))
        expansion.rollouts = rollouts
        self.pending += len(places)
        self._policy_calls += len(places)
        return rollouts

    def _can_go_on(self, expansion: Expansion, place: int) -> bool:
        reason = expansion.steps[place].stop_reason
        continues = reason == StopReason.STEP or (reason == StopReason.LENGTH and self.method.cut_steps == "continue")
        return continues and expansion.depths[place] < self.budget.max_depth

    def rollout_request(self, ticket: int, expansion: Expansion, rollout: Rollout) -> StepRequest:
        """Return what the policy is asked for a rollout."""
        return StepRequest(
            ticket=ticket,
            prefix_ids=rollout.prefix_ids,
            num_samples=self.method.rollouts,
            seed=self.seed_of("rollout", expansion.leaf, rollout.place),
            temperature=float(self.method.rollout_temperature),
            max_step_tokens=self.budget.max_step_tokens,
            max_steps=rollout.max_steps,
        )

    def receive_rollout(self, expansion: Expansion, rollout: Rollout, result: StepResult) -> list[ScoreJob]:
        """Take in the samples of a rollout and return what has to be scored.

        Raises:
            BackendError: As ``receive``.
        """
        self._check_samples(result.samples, self.method.rollouts, rollout.max_steps)
        self.pending -= 1
        self._num_rollouts += len(result.samples)
        text = self.table.path_text(expansion.leaf) + expansion.steps[rollout.place].text
        for steps in result.samples:
            rollout.samples.append(range(len(rollout.steps), len(rollout.steps) + len(steps)))
            rollout.steps += [step if step.token_ids else failed(step) for step in steps]
            ended = steps[-1].stop_reason == StopReason.END and steps[-1].token_ids
            solution = text + "".join([step.text for step in steps])
            rollout.answers.append(self._renderer.extract_answer(solution) if ended else None)
        rollout.scores = [None] * len(rollout.steps)
        self.generated_tokens += sum([len(step.token_ids) for step in rollout.steps])
        branches = [[i for i in sample if rollout.steps[i].token_ids] for sample in rollout.samples]
        branches = [branch for branch in branches if branch]
        if not self._scored or not branches:
            return []
        return self._await_scores([ScoreJob.of(expansion, rollout, rollout.prefix_ids, branches)])

    def rollout_worth(self, expansion: Expansion, rollout: Rollout) -> float | None:
        """Return what the rollouts of a new node say by the method's ``rollout_value``; None where they say nothing.

        A step is worth what a node at its end would be worth.
        """
        if self._by_agreement:
            answers = Counter(answer for answer in rollout.answers if answer is not None)
            return max(answers.values(), default=0) / len(rollout.answers)
        before = [self.table.scores[node] for node in self.table.path(expansion.leaf)] + [expansion.scores[rollout.place]]
        worths = []
        for sample, answer in zip(rollout.samples, rollout.answers, strict=True):
            scores = [rollout.scores[i] for i in sample]
            last = self._worth_of_sample(expansion, rollout, before, sample, answer)
            on_way = range(1, len(scores)) if self.method.rollout_value == "best" else ()
            known = [worth for worth in [*[self._estimate(before, scores[:i]) for i in on_way], last] if worth is not None]
            if known:
                worths.append(max(known))
        return math.fsum(worths) / len(worths) if worths else None

    @property
    def _by_agreement(self) -> bool:
        return self.method.rollout_value == "agreement" and not self._label_mode

    def _worth_of_sample(
        self, expansion: Expansion, rollout: Rollout, before: list[float | None], sample: range, answer: str | None
    ) -> float | None:
        """Return what the last step of a rollout's sample is worth."""
        depth = expansion.depths[rollout.place] + len(sample)
        reason = rollout.steps[sample[-1]].stop_reason
        if reason == StopReason.LENGTH and self.method.cut_steps == "continue":
            reason = StopReason.STEP
        ended = reason != StopReason.STEP or depth >= self.budget.max_depth
        if ended and self._label_mode:
            return self.verdicts[answer]
        if ended and answer is None:
            return 0.0
        return self._estimate(before, [rollout.scores[i] for i in sample])

    def _estimate(self, before: list[float | None], scores: list[float | None]) -> float | None:
        """Return what the last of some steps is worth by itself, or with all before it where the method estimates paths."""
        return self._score_of_path([*before, *scores]) if self.method.estimate == "path" else scores[-1]

    # -------------------------------------------------------------------------------------------------------------------- settle

    def enter_nodes(self) -> list[str]:
        """Number the wave's new nodes in wave order, read their answers, and return those that have to be graded."""
        first = len(self.table.steps)
        for expansion in self.wave:
            if expansion.steps:
                self._enter(expansion)
            for rollout in expansion.rollouts:
                self._note_failures(rollout.steps, [1] * len(rollout.steps))
        if not self._label_mode:
            return []
        rolled_out = [answer for expansion in self.wave for rollout in expansion.rollouts for answer in rollout.answers]
        new = [self.table.answers.get(node) for node in range(first, len(self.table.steps))]
        answers = dict.fromkeys(new + rolled_out)
        return [answer for answer in answers if answer is not None and answer not in self.verdicts]

    def _note_failures(self, steps: Sequence[Step], counts: Sequence[int]) -> None:
        for step, count in zip(steps, counts, strict=True):
            if step.stop_reason is _ERROR:
                self._failed += [step.message or _NO_REASON] * count

    def _enter(self, expansion: Expansion) -> None:
        table = self.table
        expansion.first = first = len(table.steps)
        reasons = [step.stop_reason for step in expansion.steps]
        if self.method.cut_steps == "continue":
            reasons = [StopReason.STEP if reason == StopReason.LENGTH else reason for reason in reasons]
        if max(expansion.depths) >= self.budget.max_depth:
            at_limit = [depth >= self.budget.max_depth for depth in expansion.depths]
            reasons = [
                StopReason.DEPTH if cut and reason == StopReason.STEP else reason for reason, cut in zip(reasons, at_limit, strict=True)
            ]
        table.steps += expansion.steps
        if self._draws_solutions:
            expansion.parents = [parent if parent >= 0 else first + ~parent for parent in expansion.parents]
        table.parents += expansion.parents
        table.depths += expansion.depths
        table.stop_reasons += reasons
        table.scores += expansion.scores
        expansion.reasons = reasons
        for i, twin in expansion.twins:
            table.scores[first + i] = table.scores[twin if twin >= 0 else first + ~twin]
        if _ERROR in reasons:
            self._note_failures(expansion.steps, expansion.counts)
        if _END in reasons:
            self._read_answers(reasons, first)
        if self._draws_solutions:
            expansion.ends = [end if end >= 0 else first + ~end for end in expansion.ends]
            for index, step in enumerate(expansion.steps, start=first):
                self._shared.setdefault((table.parents[index], step.token_ids, step.stop_reason), index)

    def _read_answers(self, reasons: list[StopReason], first: int) -> None:
        table, texts = self.table, {}
        for index, reason in enumerate(reasons, start=first):
            if reason is _END:
                parent = table.parents[index]
                # Siblings share all text but their own.
                before = texts[parent] = texts[parent] if parent in texts else table.path_text(parent)
                answer = self._renderer.extract_answer(before + table.steps[index].text)
                if answer is not None:
                    table.answers[index] = answer

    def worth_of_end(self, expansion: Expansion, index: int) -> float | None:
        """Value a new node of an expansion at which the solution ended or was cut.

        In label mode it is worth its outcome. Else a terminal is worth its score, or under ``agreement`` the share of its answer, and what
        cannot give an answer any more (cut, failed, or ended without a readable one) 0.
        """
        table = self.table
        answer, score = table.answers.get(index), table.scores[index]
        if self._by_agreement and answer is not None:
            return self._share_of(answer, expansion)
        if self.method.estimate == "path":
            score = self.path_score(index)
        if self._label_mode:
            outcome = table.outcomes[index] = self.verdicts[answer]
            return outcome
        return 0.0 if answer is None else score

    def _share_of(self, answer: str, expansion: Expansion) -> float:
        """Return the share of an answer among those that the samples of an expansion and their rollouts reached."""
        reached = Counter(answer for rollout in expansion.rollouts for answer in rollout.answers if answer is not None)
        for index, count in enumerate(expansion.counts, start=expansion.first):
            known = self.table.answers.get(index)
            if known is not None:
                reached[known] += count
        return reached[answer] / reached.total()

    def note_answers(self, expansion: Expansion) -> None:
        """Count the answers of new terminals, or of a terminal that was visited again, which gives its path no further mass."""
        table, again = self.table, expansion.num_samples == 0
        first = expansion.leaf if again else expansion.first
        rule = self.method.answer_rule
        by_mass = rule == "path-vote" and not self._draws_solutions
        for index, count in enumerate([1] if again else expansion.counts, start=first):
            answer = table.answers.get(index)
            if answer is None:
                continue
            if by_mass:
                count = 0.0 if again else self.masses[index]
            score = self.path_score(index)
            self._best_score = max(self._best_score, -1.0 if score is None else score)
            self._tally.add(index, answer, score, count=count, path=table.path(index) if rule == "robust-path" else ())

    def path_score(self, index: int) -> float | None:
        """Return the score of the path to a node by the method's aggregation; None without any score."""
        score, rule = self.table.scores[index], self.method.aggregation
        if rule == "last" and score is not None:
            return score
        return self._score_of_path([self.table.scores[on_path] for on_path in self.table.path(index)])

    def _score_of_path(self, scores: list[float | None]) -> float | None:
        so_far = aggregate_scores(scores, rule=self.method.aggregation)
        ahead = self.method.ahead
        if so_far is None or ahead == 0 or scores[-1] is None:
            return so_far
        return (so_far + ahead * scores[-1]) / (1 + ahead)

    def end_wave(self, tree: Tree) -> None:
        """Forget the wave, which was written to the tree, and note the answer that the search would give now."""
        if self.method.selection == "resample":
            self._particles += [(expansion.first + i, count) for expansion in self.wave for i, count in enumerate(expansion.counts)]
        if self.method.answer_rule == "robust-path":
            used = slice(len(self.table.steps))
            self._tally.follow(tree.visits[self.row, used].tolist(), tree.value[self.row, used].tolist())
        self._anytime.append((self.generated_tokens, self._tally.leader()))
        self.wave = []

    # -------------------------------------------------------------------------------------------------------------------- result

    @property
    def solved(self) -> bool:
        """Whether the tree holds a right answer; always False in solve mode."""
        return 1.0 in self.table.outcomes.values()

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
            failures=Failures(
                num_samples=self._num_samples + self._num_rollouts,
                num_failed=len(self._failed),
                first_message=self._failed[0] if self._failed else None,
            ),
        )

    def _record(self, tree: Tree) -> TreeRecord:
        table, row = self.table, self.row
        nodes, used = range(len(table.steps)), slice(len(table.steps))
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
            generated_tokens=self.generated_tokens,
            policy_calls=self._policy_calls,
            scored_tokens=self._scored_tokens,
            num_simulations=self.num_simulations,
            provenance=self._provenance,
        )
