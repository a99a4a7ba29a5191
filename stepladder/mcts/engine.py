"""The event loop: many trees searched at once, each at its own pace.

One turn of the loop: admit problems to free rows, select the next wave of every tree whose last one is settled, hand out finished trees,
collect what the policy and the scorer have ready, and settle the waves that are complete. Trees never wait for each other. A tree's result
depends on the run seed, the round and the problem id alone, because every request carries a seed derived from these and because a wave is
settled as a whole, in the order in which it was selected.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from stepladder.errors import BackendError, ConfigError
from stepladder.interfaces import Policy, Renderer, ScoreRequest, ScoreResult, StepRequest, StepScorer, Verifier
from stepladder.mcts.backup import backup_paths
from stepladder.mcts.methods import SearchMethod
from stepladder.mcts.selection import NO_LEAF, select_beam, select_descent, select_root, tree_scores
from stepladder.mcts.state import NewNode, ScoreJob, SearchState, Settled
from stepladder.mcts.tree import NewNodes, add_nodes, allocate, grow, land_rows, reset_rows
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
        begin = time.perf_counter()
        while run.states or not run.drained:
            finished = run.launch()
            if on_progress is not None and run.has_news:
                on_progress(run.event())
            self.stats.total_s += time.perf_counter() - begin
            yield from finished
            begin = time.perf_counter()
            run.exchange()
        self.stats.total_s += time.perf_counter() - begin


def _check_caps(budget: Budget, max_trees: int) -> None:
    caps = {name: getattr(budget, name) for name in ("num_simulations", "max_tokens", "max_depth", "max_step_tokens")}
    for name, value in (caps | {"max_trees": max_trees}).items():
        if value is None and name == "max_tokens":
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

    def submit(self, make: Callable[..., Any], jobs: Sequence[tuple[Any, dict[str, Any]]]) -> None:
        """Submit one request per (what waits for it, its fields)."""
        requests = []
        for waiting, request in jobs:
            requests.append(make(ticket=self._next_ticket, **request))
            self._open[self._next_ticket] = waiting
            self._next_ticket += 1
        begin = time.perf_counter()
        self._backend.submit(requests)
        self.seconds += time.perf_counter() - begin

    def collect(self) -> list[tuple[Any, Any]]:
        """Return (what waited, result) pairs; at least one."""
        begin = time.perf_counter()
        results = self._backend.collect()
        self.seconds += time.perf_counter() - begin
        if not results:
            raise BackendError(
                f"{self._name}: collect() must return a result while requests are in flight: got none for {len(self)} requests"
            )
        for result in results:
            if result.ticket not in self._open:
                raise BackendError(f"{self._name}: every result must carry the ticket of an open request: got {result.ticket}")
        return [(self._open.pop(result.ticket), result) for result in results]


class _Run:
    """One call of ``search``."""

    def __init__(self, engine: SearchEngine, problems: Iterator[Problem]) -> None:
        method = engine.method
        num_slots = 1 if method.samples_solutions else max(method.num_children, method.root_samples)
        first = list(islice(problems, engine.max_trees))
        num_trees = max(len(first), 1)
        self.engine = engine
        self.drained = False
        self.states: list[SearchState] = []
        """Searches in progress, in order of admission."""
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
        if method.selection not in ("beam", "sample"):
            self._scores = tree_scores(
                selection=method.selection,
                c=float(method.c),
                c_base=float(method.c_base),
                unvisited=method.unvisited,
                normalise=method.normalise,
            )

    def event(self) -> SearchEvent:
        running = sum(state.generated_tokens for state in self.states)
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
            admitted.append(self._new_state(problem, self._free_rows.pop()))
        if admitted:
            reset_rows(self._tree, _rows(admitted))
        self.states += admitted
        self._settled += admitted

    def _new_state(self, problem: Problem, row: int) -> SearchState:
        engine = self.engine
        return SearchState(
            problem=problem,
            row=row,
            renderer=engine.renderer,
            method=engine.method,
            budget=engine.budget,
            provenance=engine.provenance,
            label_mode=engine.verifier is not None,
            scored=engine.scorer is not None,
        )

    def _finish(self, state: SearchState, reason: StopReason) -> SearchResult:
        self.states.remove(state)
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
            jobs += [((state, expansion), request) for expansion, request in state.ask(leaves, size)]
            if state.pending == 0:
                self._complete.append(state)
        if jobs:
            self._policy.submit(StepRequest, jobs)
        return finished

    def _select(self, states: list[SearchState], sizes: np.ndarray) -> np.ndarray:
        rows, method = _rows(states), self.engine.method
        if method.selection == "sample":
            return select_root(rows)
        if method.selection != "beam":
            return select_descent(self._tree, rows, sizes, scores=self._scores, discount=method.discount)
        waves, widths = select_beam(self._tree, rows, sizes, widths=np.array([state.width for state in states]))
        for state, width in zip(states, widths.tolist(), strict=True):
            state.width = width
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
        complete = set(map(id, self._complete))
        ready = [state for state in self.states if id(state) in complete]
        self._complete = []
        self._grade(ready)
        self._settle(ready)
        self._settled += ready

    def _take_samples(self) -> None:
        for (state, expansion), result in self._policy.collect():
            self._unscored += [(state, job) for job in state.receive(expansion, result)]
            if state.pending == 0:
                self._complete.append(state)

    def _exchange_scores(self, scorer: _Stream) -> None:
        """Feed the scorer once at least as much waits for it as for the policy: large batches, and neither of them starves."""
        if self._unscored and len(self._unscored) >= len(self._policy):
            jobs, self._unscored = self._unscored, []
            scorer.submit(ScoreRequest, [((state, job.branches), _score_request(job)) for state, job in jobs])
        if len(scorer):
            for (state, branches), result in scorer.collect():
                _take_scores(branches, result)
                state.pending -= 1
                if state.pending == 0:
                    self._complete.append(state)

    def _keep_time(self) -> None:
        stats = self.engine.stats
        stats.policy_s += self._policy.seconds
        self._policy.seconds = 0.0
        if self._scorer is not None:
            stats.scorer_s += self._scorer.seconds
            self._scorer.seconds = 0.0

    # -------------------------------------------------------------------------------------------------------------------- settle

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

    def _settle(self, states: list[SearchState]) -> None:
        """Write the new nodes of all waves into the arrays and back the waves up, in wave order."""
        method = self.engine.method
        settled = [state.settle(self._tree.raw_value[state.row]) for state in states]
        new = self._new_nodes(states, settled)
        most_nodes = max(len(state.table.steps) for state in states)
        self._tree = grow(self._tree, num_nodes=most_nodes, num_slots=int(new.slots.max(initial=-1)) + 1)
        add_nodes(self._tree, new)
        land_rows(self._tree, _rows(states))
        for place in range(max(len(one.backups) for one in settled)):
            paths = [(state.row, *one.backups[place]) for state, one in zip(states, settled, strict=True) if place < len(one.backups)]
            rows, nodes, returns, opened = zip(*paths, strict=True)
            backup_paths(
                self._tree,
                np.array(rows),
                np.array(nodes),
                np.array(returns, np.float32),
                opened=np.array(opened),
                rule="mean" if method.samples_solutions else method.backup,
                discount=method.discount,
            )

    def _new_nodes(self, states: list[SearchState], settled: list[Settled]) -> NewNodes:
        method = self.engine.method
        sizes = [len(one.worths) for one in settled]
        parents = [parent for state, one in zip(states, settled, strict=True) for parent in state.table.parents[one.first :]]
        depths = [depth for state, one in zip(states, settled, strict=True) for depth in state.table.depths[one.first :]]
        is_open = np.array([flag for one in settled for flag in one.is_open], bool)
        terminal = np.array([flag for one in settled for flag in one.is_terminal], bool)
        starts_visited = method.evaluation == "children" and not method.samples_solutions
        return NewNodes(
            rows=np.repeat(_rows(states), sizes),
            parents=np.array(parents, np.int64),
            slots=np.array([slot for one in settled for slot in one.slots], np.int64),
            depths=np.array(depths, np.int64),
            priors=np.array([prior for one in settled for prior in one.priors], np.float32),
            raw_values=np.array([worth for one in settled for worth in one.worths], np.float32),
            visited=np.full(sum(sizes), starts_visited),
            selectable=is_open | (method.terminals == "revisit"),
            terminal=terminal,
            truncated=~is_open & ~terminal,
        )


def _rows(states: Sequence[SearchState]) -> np.ndarray:
    return np.array([state.row for state in states])


def _score_request(job: ScoreJob) -> dict[str, Any]:
    branches = tuple(tuple(node.step.token_ids for node in branch) for branch in job.branches)
    return {"prefix_ids": job.prefix_ids, "branches": branches}


def _take_scores(branches: list[list[NewNode]], result: ScoreResult) -> None:
    if [len(scores) for scores in result.scores] != [len(branch) for branch in branches]:
        raise BackendError(
            f"scorer: a result must have one score per branch and step: got {[len(scores) for scores in result.scores]}, "
            f"expected {[len(branch) for branch in branches]} -- run stepladder.testing.check_scorer on the backend"
        )
    for branch, scores in zip(branches, result.scores, strict=True):
        for node, score in zip(branch, scores, strict=True):
            node.score = None if score is None or math.isnan(score) else float(score)
