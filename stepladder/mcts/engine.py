"""The event loop: many trees searched at once, each at its own pace.

One turn of the loop: admit problems to free rows, select the next wave of every tree whose last one is settled, hand out finished trees,
collect what the policy and the scorer have ready, and settle the waves that are complete. Trees never wait for each other. A tree's result
depends on the run seed, the round and the problem id alone, because every request carries a seed derived from these and because a wave is
settled as a whole, in the order in which it was selected.
"""

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from stepladder.errors import BackendError, ConfigError
from stepladder.interfaces import Policy, Renderer, ScoreRequest, ScoreResult, StepRequest, StepScorer, Verifier
from stepladder.mcts.descent import NO_LEAF, DescentRule, descent_rule, select_descent
from stepladder.mcts.expansion import Expansion, Rollout, ScoreJob
from stepladder.mcts.gumbel import halving_schedules
from stepladder.mcts.insertion import settle_waves
from stepladder.mcts.method import SearchMethod
from stepladder.mcts.problem_search import SearchState
from stepladder.mcts.selection import reserve_waves, select_beam, select_frontier, select_root
from stepladder.mcts.tree import allocate, reset_rows
from stepladder.types import Budget, Problem, Provenance, SearchResult, StopReason


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchEvent:
    """Progress of a call of ``SearchEngine.search``; every figure counts from its beginning."""

    problems_done: int
    """Problems searched to the end."""
    generated_tokens: int
    """Tokens sampled so far, unfinished trees included."""
    solved: int
    """Finished problems with a right answer in their tree; 0 in solve mode."""


@dataclass(slots=True)
class EngineStats:
    """Where the time of an engine went, in seconds, over all its searches."""

    policy_s: float = 0.0
    """Inside the policy."""
    scorer_s: float = 0.0
    """Inside the scorer."""
    verifier_s: float = 0.0
    """Inside the verifier."""
    total_s: float = 0.0
    """Inside ``search``, the consumer's time between two results left out."""

    @property
    def engine_s(self) -> float:
        """Seconds of the search's own bookkeeping."""
        return self.total_s - self.policy_s - self.scorer_s - self.verifier_s


class SearchEngine:
    """Searches problems with one method, policy and scorer.

    Example: ``for result in SearchEngine(policy=..., renderer=..., ...).search(problems): print(result.answer)``.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        renderer: Renderer,
        method: SearchMethod,
        budget: Budget,
        provenance: Provenance,
        scorer: StepScorer | None = None,
        verifier: Verifier | None = None,
        max_trees: int = 256,
    ) -> None:
        """Set up a search.

        Args:
            policy: Proposes steps.
            renderer: Makes prompts and reads answers.
            method: How to search.
            budget: Caps per problem.
            provenance: Stored with every tree; its seed and round seed the search.
            scorer: Scores steps. Without one only ended nodes have a value: in label mode their outcome, in solve mode 0 for those that
                cannot give an answer; everywhere else a visit brings no return, and selection uses the parent's value, or 0.5.
            verifier: Label mode: terminals are valued by their outcome, cut and failed nodes by 0. None is solve mode.
            max_trees: Problems searched at once.

        Raises:
            ConfigError: If a cap is impossible.
        """
        _check_caps(budget, max_trees)
        self.policy, self.renderer, self.method, self.budget = policy, renderer, method, budget
        self.provenance, self.scorer, self.verifier, self.max_trees = provenance, scorer, verifier, max_trees
        self.stats = EngineStats()
        """Where the time went."""

    def search(self, problems: Iterable[Problem], *, on_progress: Callable[[SearchEvent], None] | None = None) -> Iterator[SearchResult]:
        """Search problems and yield each result as its tree finishes.

        Problems are pulled as rows become free. With a backend that delivers in a fixed order, the order of results is fixed, too; the
        results themselves never depend on it. Run the iterator to its end before the backends are used for something else: requests that
        are in flight when it is dropped stay with them.

        Args:
            problems: What to search, each id once.
            on_progress: Called whenever waves were settled, and thus after each finished problem.

        Raises:
            BackendError: If a backend fails as a whole; a request that fails alone is a node with reason ERROR.
        """
        run = _Run(self, iter(problems))
        while run.states or not run.drained:
            with self._one_turn():
                run.exchange()
                finished = run.launch()
                if on_progress is not None and run.has_news:
                    on_progress(run.event())
            yield from finished

    @contextmanager
    def _one_turn(self) -> Iterator[None]:
        """Keep the time, and keep Python's cyclic garbage collector from walking all trees again and again while they grow.

        The trees hold no cycles. Measured without a model, the collector takes a quarter of the time at 256 problems, half at 1,024.
        """
        was_enabled, begin = gc.isenabled(), time.perf_counter()
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()
            self.stats.total_s += time.perf_counter() - begin


def _check_caps(budget: Budget, max_trees: int) -> None:
    seconds = budget.max_seconds
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0):
        raise ConfigError(f"search: max_seconds must be a number > 0: got {seconds!r}")
    caps = {name: getattr(budget, name) for name in ("num_simulations", "max_tokens", "max_calls", "max_depth", "max_step_tokens")}
    for name, value in (caps | {"max_trees": max_trees}).items():
        if value is None and name in ("max_tokens", "max_calls"):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"search: {name} must be a whole number >= 1: got {value!r}")


class _Stream:
    """A backend with its open tickets; keeps the time and checks the protocol."""

    def __init__(self, name: str, backend: Any) -> None:
        self._name = name
        self._backend = backend
        self._open: dict[int, Any] = {}
        self._next_ticket = 0
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def submit(self, jobs: Sequence[Any], make: Callable[[int, Any], Any]) -> None:
        """Submit one request per job, made from a ticket and the job."""
        tickets = range(self._next_ticket, self._next_ticket + len(jobs))
        self._next_ticket += len(jobs)
        requests = list(map(make, tickets, jobs))
        self._open.update(zip(tickets, jobs, strict=True))
        begin = time.perf_counter()
        self._backend.submit(requests)
        self.seconds += time.perf_counter() - begin

    def collect(self) -> list[tuple[Any, Any]]:
        """Return (job, result) pairs; at least one."""
        begin = time.perf_counter()
        results = self._backend.collect()
        self.seconds += time.perf_counter() - begin
        if not results:
            raise BackendError(
                f"{self._name}: collect() must return a result while requests are in flight: got none for {len(self)} requests"
            )
        pairs = []
        for result in results:
            job = self._open.pop(result.ticket, None)
            if job is None:
                raise BackendError(f"{self._name}: every result must carry the ticket of an open request: got {result.ticket}")
            pairs.append((job, result))
        return pairs


class _Run:
    """One call of ``search``."""

    def __init__(self, engine: SearchEngine, problems: Iterator[Problem]) -> None:
        method = engine.method
        num_slots = 1 if method.samples_solutions else max(method.num_children, method.root_samples)
        first = list(islice(problems, engine.max_trees))
        num_trees = max(len(first), 1)
        self.engine = engine
        self.drained = False
        self._num_admitted = 0
        self.states: dict[int, SearchState] = {}
        """Searches in progress by number of admission, and in that order."""
        self.has_news = False
        """Whether waves were settled by the last exchange."""
        self._problems = chain(first, problems)
        self._tree = allocate(num_trees, num_nodes=1 + 8 * num_slots, num_slots=num_slots)
        self._free_rows = list(range(num_trees))[::-1]
        self._settled: list[SearchState] = []
        """Searches without a wave in flight."""
        self._complete: list[SearchState] = []
        """Searches whose wave has all its results."""
        self._policy = _Stream("policy", engine.policy)
        self._scorer = None if engine.scorer is None else _Stream("scorer", engine.scorer)
        self._unscored: list[tuple[SearchState, ScoreJob]] = []
        self._done, self._done_tokens, self._done_solved = 0, 0, 0
        self._noise = np.zeros((num_trees, num_slots))
        """Gumbel noise of the root's slots."""
        if method.descends:
            self._rule = self._descent_rule()

    def _descent_rule(self) -> DescentRule:
        method, num_simulations = self.engine.method, self.engine.budget.num_simulations
        return descent_rule(
            selection=method.selection,
            unvisited=method.unvisited,
            unvisited_bonus=method.unvisited_bonus,
            normalise=method.normalise,
            critic_mix=method.critic_mix,
            c=method.c,
            c_base=method.c_base,
            discount=method.discount,
            value_scale=method.value_scale,
            maxvisit_init=method.maxvisit_init,
            rescale=method.rescale_values,
            noise=self._noise,
            schedules=halving_schedules(self._noise.shape[1], num_simulations - 1, max_considered=method.max_considered),
        )

    def event(self) -> SearchEvent:
        running = sum(state.generated_tokens for state in self.states.values())
        return SearchEvent(problems_done=self._done, generated_tokens=self._done_tokens + running, solved=self._done_solved)

    # -------------------------------------------------------------------------------------------------------------------- launch

    def launch(self) -> list[SearchResult]:
        """Give every settled tree its next wave or its end, and fill rows that become free, until every tree is busy."""
        finished: list[SearchResult] = []
        self._admit()
        while self._settled:
            settled, self._settled = self._settled, []
            going = []
            for state in settled:
                reason = state.stop_reason()
                if reason is None:
                    going.append(state)
                else:
                    finished.append(self._finish(state, reason))
            if going:
                finished += self._start_waves(going)
            self._admit()
        return finished

    def _admit(self) -> None:
        admitted: list[SearchState] = []
        while self._free_rows and not self.drained:
            problem = next(self._problems, None)
            if problem is None:
                self.drained = True
                break
            admitted.append(self._new_state(problem, self._free_rows.pop(), self._num_admitted))
            self._num_admitted += 1
        if admitted:
            reset_rows(self._tree, _rows(admitted))
        if self.engine.method.selection == "gumbel":
            for state in admitted:
                draws = np.random.default_rng(state.seed_of("gumbel")).gumbel(size=self._noise.shape[1])
                self._noise[state.row] = self.engine.method.gumbel_scale * draws
        self.states |= {state.number: state for state in admitted}
        self._settled += admitted

    def _new_state(self, problem: Problem, row: int, number: int) -> SearchState:
        engine = self.engine
        return SearchState(
            problem=problem,
            row=row,
            number=number,
            renderer=engine.renderer,
            method=engine.method,
            budget=engine.budget,
            provenance=engine.provenance,
            label_mode=engine.verifier is not None,
            scored=engine.scorer is not None,
        )

    def _finish(self, state: SearchState, reason: StopReason) -> SearchResult:
        del self.states[state.number]
        self._free_rows.append(state.row)
        self._done += 1
        self._done_tokens += state.generated_tokens
        self._done_solved += state.solved
        return state.result(self._tree, reason)

    def _start_waves(self, states: list[SearchState]) -> list[SearchResult]:
        sizes = np.array([state.wave_size() for state in states])
        waves = self._select(states, sizes)
        jobs, finished = [], []
        for state, size, wave in zip(states, sizes.tolist(), waves.tolist(), strict=True):
            leaves = [leaf for leaf in wave if leaf != NO_LEAF]
            if not leaves:
                finished.append(self._finish(state, StopReason.EXHAUSTED))
                continue
            if self.engine.method.stop_at_goal and state.has_reached(self._tree.raw_value[state.row, leaves[0]]):
                finished.append(self._finish(state, StopReason.GOAL))
                continue
            jobs += [(state, expansion, None) for expansion in state.ask(leaves, size)]
            if state.pending == 0:
                self._complete.append(state)
        if jobs:
            self._policy.submit(jobs, _step_request)
        return finished

    def _select(self, states: list[SearchState], sizes: np.ndarray) -> np.ndarray:
        rows, method = _rows(states), self.engine.method
        if method.selection == "sample":
            return select_root(rows)
        if method.selection in ("best-first", "depth-first"):
            deepest_first = method.selection == "depth-first"
            return select_frontier(self._tree, rows, sizes, deepest_first=deepest_first, min_value=float(method.min_value))
        if method.descends:
            starts = np.array([state.base for state in states])
            return select_descent(self._tree, rows, sizes, rule=self._rule, starts=starts)
        if method.selection == "resample":
            return self._resample(states, sizes)
        waves, widths = select_beam(self._tree, rows, sizes, widths=np.array([state.widths for state in states]))
        for state, left in zip(states, widths.tolist(), strict=True):
            state.widths = left
        return waves

    def _resample(self, states: list[SearchState], sizes: np.ndarray) -> np.ndarray:
        drawn = [state.resample(self._tree.raw_value[state.row], size) for state, size in zip(states, sizes.tolist(), strict=True)]
        waves = np.full((len(states), max(1, *map(len, drawn))), NO_LEAF, np.int64)
        for wave, leaves in zip(waves, drawn, strict=True):
            wave[: len(leaves)] = leaves
        reserve_waves(self._tree, _rows(states), waves)
        return waves

    # ------------------------------------------------------------------------------------------------------------------ exchange

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
        # Admission order, not arrival order: it decides in which order results are handed out.
        ready, self._complete = sorted(self._complete, key=lambda state: state.number), []
        self._grade(ready)
        self._tree = settle_waves(self._tree, ready, self.engine.method)
        self._settled += ready

    def _take_samples(self) -> None:
        asked: list[_PolicyJob] = []
        rolls_out = self.engine.method.rollouts > 0
        for (state, expansion, rollout), result in self._policy.collect():
            if rollout is None:
                jobs = state.receive(expansion, result)
                if rolls_out and not jobs:
                    asked += _rollouts(state, expansion)
            else:
                jobs = state.receive_rollout(expansion, rollout, result)
            for job in jobs:
                self._unscored.append((state, job))
            if state.pending == 0:
                self._complete.append(state)
        if asked:
            self._policy.submit(asked, _step_request)

    def _exchange_scores(self, scorer: _Stream) -> None:
        """Feed the scorer once at least as much waits for it as for the policy: large batches, and neither of them starves."""
        if self._unscored and len(self._unscored) >= len(self._policy):
            scorer.submit(self._unscored, _score_request)
            self._unscored = []
        if not len(scorer):
            return
        asked: list[_PolicyJob] = []
        rolls_out = self.engine.method.rollouts > 0
        for (state, job), result in scorer.collect():
            _take_scores(job, result)
            state.pending -= 1
            if rolls_out and job.target is job.owner:
                asked += _rollouts(state, job.owner)
            if state.pending == 0:
                self._complete.append(state)
        if asked:
            self._policy.submit(asked, _step_request)

    def _keep_time(self) -> None:
        stats = self.engine.stats
        stats.policy_s += self._policy.seconds
        self._policy.seconds = 0.0
        if self._scorer is not None:
            stats.scorer_s += self._scorer.seconds
            self._scorer.seconds = 0.0

    def _grade(self, states: list[SearchState]) -> None:
        """Number the new nodes and grade all answers that are new to their trees, in one call."""
        asked = [(state, answer) for state in states for answer in state.enter_nodes()]
        if not asked or self.engine.verifier is None:
            return
        begin = time.perf_counter()
        verdicts = self.engine.verifier.grade([(state.problem.id, answer) for state, answer in asked])
        self.engine.stats.verifier_s += time.perf_counter() - begin
        for (state, answer), verdict in zip(asked, verdicts, strict=True):
            state.verdicts[answer] = float(verdict.correct)


def _rows(states: Sequence[SearchState]) -> np.ndarray:
    return np.array([state.row for state in states])


_PolicyJob = tuple[SearchState, Expansion, Rollout | None]
"""What a request to the policy is for: an expansion, or one of its rollouts."""


def _step_request(ticket: int, job: _PolicyJob) -> StepRequest:
    state, expansion, rollout = job
    return state.request(ticket, expansion) if rollout is None else state.rollout_request(ticket, expansion, rollout)


def _rollouts(state: SearchState, expansion: Expansion) -> list[_PolicyJob]:
    """Return the rollouts that follow once an expansion's own scores are in."""
    return [(state, expansion, rollout) for rollout in state.ask_rollouts(expansion)]


def _score_request(ticket: int, job: tuple[SearchState, ScoreJob]) -> ScoreRequest:
    return ScoreRequest(ticket=ticket, prefix_ids=job[1].prefix_ids, branches=job[1].branches)


def _take_scores(job: ScoreJob, result: ScoreResult) -> None:
    if list(map(len, result.scores)) != list(map(len, job.branches)):
        raise BackendError(
            f"scorer: a result must have one score per branch and step: got {[len(scores) for scores in result.scores]}, "
            f"expected {[len(branch) for branch in job.branches]} -- run stepladder.testing.check_scorer on the backend"
        )
    known = job.target.scores
    for i, score in zip(job.places, chain.from_iterable(result.scores), strict=True):
        known[i] = None if score is None or math.isnan(score) else float(score)
