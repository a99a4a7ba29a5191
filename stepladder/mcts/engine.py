"""The engine: it searches many trees at once, each at its own pace.

A tree's result depends on the run seed, the round and the problem id alone. Every request carries a seed derived from these, and a wave is
settled as a whole, in the order in which it was selected.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice

from stepladder.errors import check
from stepladder.interfaces import Policy, Renderer, StepScorer, Verifier
from stepladder.mcts.answer_rules import own_key
from stepladder.mcts.backend_stream import BackendStream
from stepladder.mcts.problem_search import Samples, SearchTerms
from stepladder.mcts.search_method import SearchMethod
from stepladder.mcts.search_run import EngineStats, SearchEvent, SearchRun, collector_paused
from stepladder.mcts.spending import check_budget, check_cap
from stepladder.types import Budget, Problem, Provenance, SearchResult

__all__ = ["BudgetRule", "EngineStats", "SearchEngine", "SearchEvent"]

BudgetRule = Callable[[Problem], Budget]
"""Returns the caps of a problem; called once per problem, at the start of its search."""


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
        budget: Budget | BudgetRule,
        provenance: Provenance,
        scorer: StepScorer | None = None,
        verifier: Verifier | None = None,
        key_of: Callable[[str], str] = own_key,
        max_trees: int = 256,
        tree_number: int = 0,
    ) -> None:
        """Set up a search.

        Args:
            policy: Proposes steps.
            renderer: Makes prompts and reads answers.
            method: How to search.
            budget: Caps per problem: the same for all, or a function of the problem.
            provenance: Stored with every tree; its seed and round seed the search.
            scorer: Scores steps. Without one, only ended nodes have a value: in label mode their outcome, in solve mode 0 if they cannot
                give an answer. Everywhere else a visit brings no return, and selection uses the parent's value, or 0.5.
            verifier: Label mode: terminals are valued by their outcome, cut and failed nodes by 0. None is solve mode.
            key_of: Canonical form of an answer: answers with the same key are one answer in votes. By default only equal texts are.
            max_trees: Problems searched at once.
            tree_number: How many trees of the same problems were searched before with this seed and round, >= 0; it changes all seeds.

        Raises:
            ConfigError: If a cap is impossible. The caps from a function are checked when the search of the problem begins.
        """
        check_cap("max_trees", max_trees)
        if isinstance(budget, Budget):
            check_budget(budget)
        self.policy, self.renderer, self.method, self.budget = policy, renderer, method, budget
        self.provenance, self.scorer, self.verifier, self.max_trees = provenance, scorer, verifier, max_trees
        self.key_of = key_of
        self.tree_number = tree_number
        self.stats = EngineStats()
        """Where the time went."""

    def search(
        self,
        problems: Iterable[Problem],
        *,
        first_samples: Mapping[str, Samples] | None = None,
        on_progress: Callable[[SearchEvent], None] | None = None,
    ) -> Iterator[SearchResult]:
        """Search problems and yield each result as its tree finishes.

        Problems are pulled as rows become free. With a backend that delivers in a fixed order, the order of results is fixed, too; the
        results themselves never depend on it. Run the iterator to its end before you use the backends for something else: requests that
        are in flight when it is dropped stay with them.

        Args:
            problems: The problems, with unique ids.
            first_samples: Solutions that were sampled before, by problem id, for methods that draw solutions. They are the first draws from
                the root, and cost the search no tokens and no calls. None of their steps may have failed.
            on_progress: Called after waves are settled, and so after each finished problem.

        Raises:
            BackendError: If a backend fails as a whole; a request that fails alone is a node with reason ERROR.
            ConfigError: If a problem's budget has an impossible cap, or the method does not draw solutions and there are first samples.
        """
        check(
            not first_samples or self.method.samples_solutions,
            f"search: first samples need a method that draws solutions, such as restart: got {self.method.name!r}",
        )
        run = self._run(iter(problems), first_samples or {})
        while run.is_active:
            with self._one_turn():
                run.exchange()
                finished = run.launch()
                if on_progress is not None and run.has_news:
                    on_progress(run.event())
            yield from [result for _, result in finished]

    def _run(self, problems: Iterator[Problem], first_samples: Mapping[str, Samples]) -> SearchRun:
        terms = SearchTerms(
            renderer=self.renderer,
            method=self.method,
            provenance=self.provenance,
            label_mode=self.verifier is not None,
            scored=self.scorer is not None,
            key_of=self.key_of,
            tree_number=self.tree_number,
            first_samples=first_samples,
        )
        first = list(islice(problems, self.max_trees))
        return SearchRun(
            chain(first, problems),
            terms=terms,
            budget_of=self._budget_of,
            policy=BackendStream("policy", self.policy),
            scorer=None if self.scorer is None else BackendStream("scorer", self.scorer),
            verifier=self.verifier,
            num_trees=max(len(first), 1),
            stats=self.stats,
        )

    def _budget_of(self, problem: Problem) -> Budget:
        if isinstance(self.budget, Budget):
            return self.budget
        budget = self.budget(problem)
        check_budget(budget)
        return budget

    @contextmanager
    def _one_turn(self) -> Iterator[None]:
        """Keep the time, with the garbage collector paused."""
        begin = time.perf_counter()
        try:
            with collector_paused():
                yield
        finally:
            self.stats.total_s += time.perf_counter() - begin
