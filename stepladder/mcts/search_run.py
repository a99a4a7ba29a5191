"""The event loop of ``SearchEngine.search``."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np

from stepladder.errors import BackendError
from stepladder.interfaces import ScoreRequest, ScoreResult, StepRequest, Verifier
from stepladder.mcts.backend_stream import BackendStream
from stepladder.mcts.expansion import Expansion, Rollout, ScoreJob
from stepladder.mcts.insertion import settle_waves
from stepladder.mcts.problem_search import ProblemSearch, SearchTerms
from stepladder.mcts.settings.growth import Steps
from stepladder.mcts.strategies.strategy import NO_LEAF, RunShape, rows_of
from stepladder.mcts.tree import allocate, reset_rows
from stepladder.types import Budget, Problem, SearchResult, StopReason, TreeRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchEvent:
    """Progress of a call of ``SearchEngine.search``; every figure counts from its beginning."""

    problems_done: int
    """Problems searched to the end."""
    generated_tokens: int
    """Tokens sampled so far, unfinished trees included."""
    solved: int
    """Finished problems with a right answer in their tree; 0 in solve mode."""
    oldest_tree: Callable[[], TreeRecord | None] = field(default=lambda: None, repr=False, compare=False)
    """Returns the tree of the unfinished problem that was begun first, as it is now; None if none is left. Call it before the next turn."""


@dataclass(slots=True)
class EngineStats:
    """Time use of an engine, in seconds, over all its searches."""

    policy_s: float = 0.0
    """Inside the policy."""
    scorer_s: float = 0.0
    """Inside the scorer."""
    verifier_s: float = 0.0
    """Inside the verifier."""
    total_s: float = 0.0
    """Inside ``search``, without the consumer's time between two results."""

    @property
    def engine_s(self) -> float:
        """Seconds of the search's own bookkeeping."""
        return self.total_s - self.policy_s - self.scorer_s - self.verifier_s


class Finished(NamedTuple):
    """A search that is over."""

    search: ProblemSearch
    """The search."""
    result: SearchResult
    """Its result."""


class SearchRun:
    """One call of ``SearchEngine.search``: the loop's state and the steps of one turn.

    A turn collects the finished results of policy and scorer and settles the complete waves (``exchange``). It then returns
    finished trees, admits problems to free rows, and selects the next wave of every tree whose last one is settled (``launch``). Trees
    never wait for each other.
    """

    def __init__(
        self,
        problems: Iterator[Problem],
        *,
        terms: SearchTerms,
        budget_of: Callable[[Problem], Budget],
        policy: BackendStream,
        scorer: BackendStream | None,
        verifier: Verifier | None,
        num_trees: int,
        stats: EngineStats,
    ) -> None:
        """Begin without any search.

        Args:
            problems: The problems; others may ``begin`` later.
            terms: The common terms of all searches.
            budget_of: Caps of a problem.
            policy: Proposes steps.
            scorer: Scores steps; None leaves them unscored.
            verifier: Label mode: grades answers; None is solve mode.
            num_trees: Problems searched at once, >= 1.
            stats: Takes the time inside the backends.

        """
        method = self._method = terms.method
        num_slots = max(method.growth.num_children, method.root_samples) if isinstance(method.growth, Steps) else 1
        self.has_news = False
        """Whether waves were settled by the last exchange."""
        self._terms, self._budget_of, self._verifier, self._stats = terms, budget_of, verifier, stats
        self._problems = problems
        self._drained = False
        """Whether no problem is left to admit."""
        self._num_admitted = 0
        self._searches: dict[int, ProblemSearch] = {}
        """Searches in progress by number of admission, and in that order."""
        self._tree = allocate(num_trees, num_nodes=1 + 8 * num_slots, num_slots=num_slots)
        widening = method.growth.widening if isinstance(method.growth, Steps) else None
        self._strategy = method.selection.strategy(RunShape(num_trees, num_slots, float(method.valuation.discount), widening))
        self._free_rows = list(range(num_trees))[::-1]
        self._settled: list[ProblemSearch] = []
        """Searches without a wave in flight."""
        self._complete: list[ProblemSearch] = []
        """Searches with a complete wave."""
        self._policy, self._scorer = policy, scorer
        self._unscored: list[tuple[ProblemSearch, ScoreJob]] = []
        self._done, self._done_tokens, self._done_solved = 0, 0, 0

    @property
    def is_active(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self._searches) or not self._drained

    def event(self) -> SearchEvent:
        """Return the progress so far."""
        running = sum(search.spending.generated_tokens for search in self._searches.values())
        return SearchEvent(
            problems_done=self._done,
            generated_tokens=self._done_tokens + running,
            solved=self._done_solved,
            oldest_tree=self._oldest_tree,
        )

    def _oldest_tree(self) -> TreeRecord | None:
        oldest = min(self._searches.values(), key=_number_of, default=None)
        return None if oldest is None else oldest.record(self._tree)

    # Launch: every tree is given its next wave or its end.

    def launch(self) -> list[Finished]:
        """Start the next wave of every settled tree, or end the tree, and fill free rows, until every tree is busy."""
        finished: list[Finished] = []
        self._admit()
        while self._settled:
            settled, self._settled = self._settled, []
            going = []
            for search in settled:
                reason = search.stop_reason()
                if reason is None:
                    going.append(search)
                else:
                    finished.append(self._finish(search, reason))
            if going:
                finished += self._start_waves(going)
            self._admit()
        return finished

    def begin(self, problem: Problem, budget: Budget, terms: SearchTerms) -> ProblemSearch:
        """Begin the search of a problem in a free row; it gets its first wave by the next ``launch``.

        Args:
            problem: The problem.
            budget: Its caps.
            terms: Its terms; the method is that of the run.
        """
        search = self._enter(problem, budget, terms)
        reset_rows(self._tree, rows_of([search]))
        self._settled.append(search)
        return search

    def _enter(self, problem: Problem, budget: Budget, terms: SearchTerms) -> ProblemSearch:
        """Give a new search a row, which is still to be emptied."""
        number = self._num_admitted
        # A prompt that cannot be written takes no row.
        search = ProblemSearch(problem, terms=terms, budget=budget, row=self._free_rows[-1], number=number)
        self._free_rows.pop()
        self._num_admitted += 1
        self._strategy.begin(search)
        self._searches[number] = search
        return search

    def end(self, search: ProblemSearch, reason: StopReason) -> SearchResult:
        """End a search before its time, and return what its settled waves found. Requests in flight are dropped."""
        self._policy.drop(lambda job: job[0] is search)
        if self._scorer is not None:
            self._scorer.drop(lambda job: job[0] is search)
        self._unscored = [(owner, job) for owner, job in self._unscored if owner is not search]
        self._settled = [other for other in self._settled if other is not search]
        self._complete = [other for other in self._complete if other is not search]
        return self._finish(search, reason).result

    @property
    def has_room(self) -> bool:
        """Whether a row is free."""
        return bool(self._free_rows)

    @property
    def settled(self) -> list[ProblemSearch]:
        """Searches without a wave in flight."""
        return self._settled

    @property
    def has_complete_waves(self) -> bool:
        """Whether waves are complete, so that the next exchange need not wait for results."""
        return bool(self._complete)

    def _admit(self) -> None:
        admitted: list[ProblemSearch] = []
        while self._free_rows and not self._drained:
            problem = next(self._problems, None)
            if problem is None:
                self._drained = True
                break
            admitted.append(self._enter(problem, self._budget_of(problem), self._terms))
        if admitted:
            reset_rows(self._tree, rows_of(admitted))
        self._settled += admitted

    def _finish(self, search: ProblemSearch, reason: StopReason) -> Finished:
        del self._searches[search.number]
        self._free_rows.append(search.row)
        self._done += 1
        self._done_tokens += search.spending.generated_tokens
        self._done_solved += search.solved
        return Finished(search, search.result(self._tree, reason))

    def _start_waves(self, searches: list[ProblemSearch]) -> list[Finished]:
        sizes = np.array([search.wave_size() for search in searches])
        waves = self._strategy.select(self._tree, searches, sizes)
        jobs: list[_PolicyJob] = []
        finished: list[Finished] = []
        for search, size, wave in zip(searches, sizes.tolist(), waves.tolist(), strict=True):
            leaves = [leaf for leaf in wave if leaf != NO_LEAF]
            if not leaves:
                finished.append(self._finish(search, StopReason.EXHAUSTED))
            elif self._strategy.has_reached_goal(self._tree, search, leaves):
                finished.append(self._finish(search, StopReason.GOAL))
            else:
                jobs += self._ask(search, leaves, size)
        if jobs:
            self._policy.submit(jobs, _step_request)
        return finished

    def _ask(self, search: ProblemSearch, leaves: list[int], size: int) -> list["_PolicyJob"]:
        """Begin a wave. One that only visits terminals again is complete at once; samples from before the search wait for scores alone."""
        samples = self._strategy.samples_after(search, leaves, search.expander.samples_after(leaves, size))
        asked = search.ask(leaves, samples)
        if asked and search.first_samples:
            self._unscored += [(search, job) for job in search.receive_first_samples(asked[0])]
            asked = []
        if search.pending == 0:
            self._complete.append(search)
        return [(search, expansion, None) for expansion in asked]

    # Exchange: results come in and complete waves are settled.

    def exchange(self) -> None:
        """Collect results, unless waves are complete without any (revisits only), and settle complete waves."""
        if not self._complete:
            if len(self._policy):
                self._take_samples()
            if self._scorer is not None:
                self._exchange_scores(self._scorer)
            self._keep_time()
        self.has_news = bool(self._complete)
        if not self._complete:
            return
        # Admission order, not arrival order, decides the order of the returned results.
        ready, self._complete = sorted(self._complete, key=_number_of), []
        self._grade(ready)
        self._tree = settle_waves(self._tree, ready, self._method)
        self._strategy.end_waves(self._tree, ready)
        for search in ready:
            search.end_wave(self._tree)
        self._settled += ready

    def _take_samples(self) -> None:
        asked: list[_PolicyJob] = []
        for (search, expansion, rollout), result in self._policy.collect():
            if rollout is None:
                jobs = search.receive(expansion, result)
                if search.rollouts is not None and not jobs:
                    asked += _rollouts(search, expansion)
            else:
                jobs = search.receive_rollout(expansion, rollout, result)
            for job in jobs:
                self._unscored.append((search, job))
            if search.pending == 0:
                self._complete.append(search)
        if asked:
            self._policy.submit(asked, _step_request)

    def _exchange_scores(self, scorer: BackendStream) -> None:
        """Feed the scorer when at least as much waits for it as for the policy, so that batches are large and neither of them starves."""
        if self._unscored and len(self._unscored) >= len(self._policy):
            scorer.submit(self._unscored, _score_request)
            self._unscored = []
        if not len(scorer):
            return
        asked: list[_PolicyJob] = []
        for (search, job), result in scorer.collect():
            _take_scores(job, result)
            search.pending -= 1
            if search.rollouts is not None and job.target is job.owner:
                asked += _rollouts(search, job.owner)
            if search.pending == 0:
                self._complete.append(search)
        if asked:
            self._policy.submit(asked, _step_request)

    def _keep_time(self) -> None:
        self._stats.policy_s += self._policy.seconds
        self._policy.seconds = 0.0
        if self._scorer is not None:
            self._stats.scorer_s += self._scorer.seconds
            self._scorer.seconds = 0.0

    def _grade(self, searches: list[ProblemSearch]) -> None:
        """Number the new nodes and grade all answers that are new to their trees, in one call."""
        asked = []
        for search in searches:
            asked += [(search, answer) for answer in search.enter_nodes()]
        if not asked or self._verifier is None:
            return
        begin = time.perf_counter()
        verdicts = self._verifier.grade([(search.problem.id, answer) for search, answer in asked])
        self._stats.verifier_s += time.perf_counter() - begin
        for (search, answer), verdict in zip(asked, verdicts, strict=True):
            search.answers.verdicts[answer] = verdict.outcome


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's cyclic garbage collector from walking all trees again and again while they grow.

    The trees contain no cycles. Without a model, the collector takes a quarter of the time at 256 problems, and half at 1,024.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_PolicyJob = tuple[ProblemSearch, Expansion, Rollout | None]
"""Purpose of a policy request: an expansion, or one of its rollouts."""


def _number_of(search: ProblemSearch) -> int:
    return search.number


def _step_request(ticket: int, job: _PolicyJob) -> StepRequest:
    search, expansion, rollout = job
    return search.request(ticket, expansion) if rollout is None else search.rollout_request(ticket, expansion, rollout)


def _rollouts(search: ProblemSearch, expansion: Expansion) -> list[_PolicyJob]:
    """Return the rollouts that follow when an expansion's own scores are complete."""
    return [(search, expansion, rollout) for rollout in search.ask_rollouts(expansion)]


def _score_request(ticket: int, job: tuple[ProblemSearch, ScoreJob]) -> ScoreRequest:
    prefix = job[1].prefix
    return ScoreRequest(ticket=ticket, prefix_ids=prefix.ids, branches=job[1].branches, observations=prefix.observations)


def _take_scores(job: ScoreJob, result: ScoreResult) -> None:
    if list(map(len, result.scores)) != list(map(len, job.branches)):
        raise BackendError(
            f"scorer: a result must have one score per branch and step: got {[len(scores) for scores in result.scores]}, "
            f"expected {[len(branch) for branch in job.branches]} -- run stepladder.testing.check_scorer on the backend"
        )
    known = job.target.scores
    for i, score in zip(job.places, chain.from_iterable(result.scores), strict=True):
        known[i] = None if score is None or math.isnan(score) else float(score)
