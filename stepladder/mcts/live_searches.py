"""Searches that begin and end while others run: any methods, one policy, one scorer, one batch.

``SearchEngine`` searches a given sequence of problems with one method. ``LiveSearches`` takes a problem at any time, with a method, caps
and a seed of its own. Searches of one method share the arrays of a ``SearchRun``; all of them share the models. A result is the same as
that of a ``SearchEngine`` with the same seed and problem id.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from stepladder.interfaces import Policy, Renderer, StepScorer
from stepladder.mcts.answer_rules import Choice, own_key
from stepladder.mcts.backend_stream import BackendStream
from stepladder.mcts.problem_search import ProblemSearch, SearchTerms
from stepladder.mcts.search_method import SearchMethod
from stepladder.mcts.search_run import EngineStats, SearchRun, collector_paused
from stepladder.mcts.settings.growth import Steps
from stepladder.mcts.spending import check_budget
from stepladder.types import Budget, Problem, Provenance, SearchResult, Step, StopReason

_RUN_TREES = 64
"""Trees of one run. A run grows to its deepest tree, so several small ones hold less memory than a large one."""
_MAX_SLOTS = 1 << 22
"""Slots of the arrays of one run when it begins; a run whose trees are wide has fewer of them."""
_TICKETS_PER_PORT = 1 << 40


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchJob:
    """A search to begin."""

    problem: Problem
    """The problem. Its id seeds the search; ids need not be unique."""
    method: SearchMethod
    """How to search."""
    budget: Budget
    """Its caps."""
    seed: int = 0
    """Seed of the search, >= 0."""
    renderer: Renderer | None = None
    """Makes this problem's prompt and reads its answers; None takes the common one."""


class LiveResult(NamedTuple):
    """The result of a search that is over."""

    ticket: int
    """The search, as ``begin`` named it."""
    result: SearchResult
    """What it found."""


class LiveSearches:
    """Searches in progress. Not thread-safe: one thread begins and ends searches and takes the turns.

    Example: ``live.begin(job)``, then ``live.turn()`` until it returns the result.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        renderer: Renderer,
        provenance: Provenance,
        scorer: StepScorer | None = None,
        key_of: Callable[[str], str] = own_key,
        max_trees: int = 256,
    ) -> None:
        """Serve a policy and a scorer, which nothing else may use meanwhile.

        Args:
            policy: Proposes steps.
            renderer: Makes prompts and reads answers.
            provenance: Stored with every tree, with the seed of its job.
            scorer: Scores steps; None searches without scores.
            key_of: Canonical form of an answer, as for ``SearchEngine``.
            max_trees: Searches at once, >= 1.
        """
        self._key_of = key_of
        self._renderer, self._provenance, self._max_trees = renderer, provenance, max_trees
        self._policy = _SharedBackend(policy)
        self._scorer = None if scorer is None else _SharedBackend(scorer)
        self._runs: dict[SearchMethod, list[_Run]] = {}
        self._searches: dict[int, tuple[_Run, ProblemSearch]] = {}
        self._tickets: dict[ProblemSearch, int] = {}
        self._num_begun = 0
        self.stats = EngineStats()
        """Where the time went."""

    def __len__(self) -> int:
        """Return how many searches are in progress."""
        return len(self._searches)

    @property
    def has_room(self) -> bool:
        """Whether another search may begin."""
        return len(self._searches) < self._max_trees

    def begin(self, job: SearchJob) -> int:
        """Begin a search and return its ticket. ``has_room`` must hold.

        Raises:
            ConfigError: If a cap is impossible.
            DataFormatError: If the prompt cannot be written.
        """
        check_budget(job.budget)
        run = self._run_for(job.method)
        provenance = replace(self._provenance, seed=job.seed)
        terms = replace(run.terms, provenance=provenance, renderer=job.renderer or self._renderer)
        search = run.loop.begin(job.problem, job.budget, terms)
        ticket = self._num_begun = self._num_begun + 1
        self._searches[ticket], self._tickets[search] = (run, search), ticket
        return ticket

    def end(self, ticket: int, reason: StopReason) -> SearchResult:
        """End a search before its time and return what it found so far; its requests in flight are dropped."""
        run, search = self._searches[ticket]
        result = run.loop.end(search, reason)
        self._forget(search)
        self._drop_idle_runs()
        return result

    def turn(self) -> list[LiveResult]:
        """Give every idle tree its next wave, take finished results of the models, and return the searches that are over.

        It blocks until a model returns something, unless nothing is in flight.

        Raises:
            BackendError: If a model fails as a whole. Drop this object then.
        """
        begin = time.perf_counter()
        with collector_paused():
            finished = [each for run in self._all_runs() for each in run.loop.launch()]
            results = [LiveResult(self._forget(search), result) for search, result in finished]
            self._drop_idle_runs()
            # What is finished is returned before anything blocks.
            if not results and self._searches:
                self._exchange()
        self.stats.total_s += time.perf_counter() - begin
        return results

    def settled(self) -> list[int]:
        """Return the searches whose last wave is in their tree, and none in flight."""
        return [self._tickets[search] for run in self._all_runs() for search in run.loop.settled]

    def view(self, ticket: int) -> "SearchView":
        """Return the present state of a search."""
        _, search = self._searches[ticket]
        return SearchView(search)

    def interrupt(self) -> None:
        """Make a ``turn`` that waits for the policy return soon; safe from any thread. Policies without ``interrupt`` are not affected."""
        self._policy.interrupt()

    def _exchange(self) -> None:
        runs = self._all_runs()
        if not any(run.loop.has_complete_waves for run in runs) and any(len(run.policy.stream) for run in runs):
            begin = time.perf_counter()
            self._policy.pump()
            self.stats.policy_s += time.perf_counter() - begin
        for run in runs:
            run.loop.exchange()

    def _all_runs(self) -> list["_Run"]:
        return [run for runs in self._runs.values() for run in runs]

    def _run_for(self, method: SearchMethod) -> "_Run":
        runs = self._runs.setdefault(method, [])
        found = next((run for run in runs if run.loop.has_room), None)
        if found is None:
            found = self._new_run(method)
            runs.append(found)
        return found

    def _new_run(self, method: SearchMethod) -> "_Run":
        terms = SearchTerms(
            renderer=self._renderer,
            method=method,
            provenance=self._provenance,
            label_mode=False,
            scored=self._scorer is not None,
            key_of=self._key_of,
        )
        policy = self._policy.open("policy")
        scorer = None if self._scorer is None else self._scorer.open("scorer", blocks=True)
        loop = SearchRun(
            iter(()),
            terms=terms,
            budget_of=_no_budget,
            policy=policy.stream,
            scorer=None if scorer is None else scorer.stream,
            verifier=None,
            num_trees=min(self._max_trees, _num_trees(method)),
            stats=self.stats,
        )
        return _Run(loop, terms, policy, scorer)

    def _forget(self, search: ProblemSearch) -> int:
        ticket = self._tickets.pop(search)
        del self._searches[ticket]
        return ticket

    def _drop_idle_runs(self) -> None:
        """Free the arrays of runs without a search."""
        busy = {id(run.loop) for run, _ in self._searches.values()}
        for method, runs in list(self._runs.items()):
            kept = [run for run in runs if id(run.loop) in busy]
            if len(kept) == len(runs):
                continue
            for run in runs:
                if run not in kept:
                    self._policy.close(run.policy)
                    if self._scorer is not None and run.scorer is not None:
                        self._scorer.close(run.scorer)
            if kept:
                self._runs[method] = kept
            else:
                del self._runs[method]


class SearchView:
    """The present state of one search, to be read before the next turn."""

    def __init__(self, search: ProblemSearch) -> None:
        """View a search."""
        self._search = search

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The rendered prompt."""
        return self._search.prompt_ids

    @property
    def generated_tokens(self) -> int:
        """Tokens sampled so far."""
        return self._search.spending.generated_tokens

    @property
    def num_simulations(self) -> int:
        """Simulations so far."""
        return self._search.num_simulations

    def choice(self) -> Choice:
        """Return the answer so far."""
        return self._search.answers.choice()

    def steps_to(self, node: int) -> list[Step]:
        """Return the steps from the root to a node."""
        table = self._search.table
        return [table.steps[each] for each in table.path(node)]

    def common_path(self) -> list[int]:
        """Return the nodes from the root on that every solution still to come, and every answer found, must contain.

        It is empty for methods that draw solutions, or sample nodes again: any node may still get another child there.
        """
        if self._search.may_branch_anywhere:
            return []
        table = self._search.table
        alive = [False] * len(table.steps)
        inner = set(table.parents)
        for node in range(len(table.steps) - 1, 0, -1):
            is_open = node not in inner and table.stop_reasons[node] is StopReason.STEP
            alive[node] = alive[node] or is_open or node in table.answers
            if alive[node]:
                alive[table.parents[node]] = True
        children: dict[int, list[int]] = {}
        for node in range(1, len(table.steps)):
            if alive[node]:
                children.setdefault(table.parents[node], []).append(node)
        path, at = [], 0
        while len(children.get(at, ())) == 1 and at not in table.answers:
            (at,) = children[at]
            path.append(at)
        return path


class _Run(NamedTuple):
    """The searches of one method that share arrays."""

    loop: SearchRun
    terms: SearchTerms
    policy: "_Port"
    scorer: "_Port | None"


def _num_trees(method: SearchMethod) -> int:
    """Return the trees of one run."""
    num_slots = max(method.growth.num_children, method.root_samples) if isinstance(method.growth, Steps) else 1
    return max(min(_RUN_TREES, _MAX_SLOTS // (8 * num_slots * num_slots)), 1)


def _no_budget(problem: Problem) -> Budget:
    raise AssertionError("a live run takes no problems from an iterator")


class _SharedBackend:
    """A backend behind several ports, each with a range of tickets of its own."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._ports: dict[int, _Port] = {}
        self._num_opened = 0

    def open(self, name: str, *, blocks: bool = False) -> "_Port":
        """Return a new port. One that ``blocks`` waits for a result of its own; others take what ``pump`` brought."""
        number = self._num_opened = self._num_opened + 1
        port = self._ports[number] = _Port(self, self._backend, blocks=blocks)
        port.stream = BackendStream(name, port, first_ticket=number * _TICKETS_PER_PORT, is_shared=True)
        return port

    def close(self, port: "_Port") -> None:
        """Close a port; results that are still to come are ignored."""
        self._ports = {number: other for number, other in self._ports.items() if other is not port}

    def pump(self) -> None:
        """Take finished results of the backend to their ports; blocks until there is one, or until an interrupt."""
        for result in self._backend.collect():
            port = self._ports.get(result.ticket // _TICKETS_PER_PORT)
            if port is not None:
                port.arrived.append(result)

    def interrupt(self) -> None:
        """Make a ``pump`` that waits return soon, if the backend can."""
        interrupt = getattr(self._backend, "interrupt", None)
        if interrupt is not None:
            interrupt()


class _Port:
    """What a run sees of a shared backend."""

    stream: BackendStream

    def __init__(self, shared: _SharedBackend, backend: Any, *, blocks: bool) -> None:
        self._shared, self._blocks = shared, blocks
        self.submit: Callable[[Sequence[Any]], None] = backend.submit
        self.cancel: Callable[[Sequence[int]], None] | None = getattr(backend, "cancel", None)
        self.arrived: list[Any] = []

    def collect(self) -> list[Any]:
        while self._blocks and not self.arrived:
            self._shared.pump()
        arrived, self.arrived = self.arrived, []
        return arrived
