"""Loaded models that answer any number of questions, with a method, caps and a seed for each: the base of ``Solver`` and ``serve``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stepladder.interfaces import Renderer
from stepladder.lm.loaded_models import LoadedModels
from stepladder.loops.assembly.policies import build_policy, build_renderer, end_observations
from stepladder.loops.assembly.problems import build_verifier, vote_keys
from stepladder.loops.assembly.scorers import SearchedPrompts, build_scorer
from stepladder.loops.config.run import Config
from stepladder.mcts.live_searches import LiveResult, LiveSearches, SearchJob, SearchView
from stepladder.mcts.search_method import SearchMethod
from stepladder.mcts.warm_up import compile_loops
from stepladder.types import Budget, Problem, Provenance, SearchResult, StopReason

if TYPE_CHECKING:
    from stepladder.policy.prompts import PromptRenderer

QUESTION_ID = "question"
"""Problem id of every question. The id seeds a search, so a question has one result, whatever is asked before or beside it."""


class SearchSession:
    """A policy and PRMs in memory, and the searches in progress. One thread uses it.

    Example: ``ticket = session.begin("1+1", method=..., budget=...)``, then ``session.turn()`` until it returns the ticket.
    """

    def __init__(self, config: Config, models: LoadedModels, *, policy: str, prm: Sequence[str]) -> None:
        """Load the models.

        Args:
            config: The configuration.
            models: Holds the models; released by the caller.
            policy: Directory or hub id of the policy.
            prm: Directories or hub ids of the PRMs; none searches without scores.

        Raises:
            ConfigError: If a backend is not installed or settings are impossible.
            CheckpointError: If a model cannot be loaded.
            DataFormatError: If the PRM was trained on prompts of another policy.
            BackendError: If a server does not answer.
        """
        self.config = config
        self.renderer: PromptRenderer = build_renderer(config, policy)
        """Makes prompts, and reads answers."""
        self.context: int | None = _context(config, policy)
        """Tokens that the policy can hold; None if its configuration does not say."""
        self._has_prm = bool(prm)
        self._prompts = SearchedPrompts(self.renderer)
        self._compiled: set[SearchMethod] = set()
        self._asked: dict[int, tuple[int, ...]] = {}
        # It holds no answers; only its canonical forms are used.
        self._verifier = build_verifier(config.problems, [])
        sampler = self._policy = build_policy(config, models, policy)
        shared = {"policy": sampler, "policy_source": policy}
        self._live = LiveSearches(
            policy=self._policy,
            scorer=build_scorer(config, models, prm=prm, renderer=self.renderer, problems=self._prompts, **shared) if prm else None,
            renderer=self.renderer,
            provenance=Provenance(
                round=0, policy_version=0, scorer_version=None, seed=0, config_hash=config.hash(), renderer_hash=self.renderer.hash
            ),
            key_of=vote_keys(self._verifier),
            max_trees=config.search.max_trees,
        )

    def close(self) -> None:
        """End the processes of the grader and of the policy's tool; the models stay with their holder."""
        self._verifier.close()
        end_observations(self._policy)

    def __len__(self) -> int:
        """Return how many searches are in progress."""
        return len(self._live)

    @property
    def has_room(self) -> bool:
        """Whether another search may begin."""
        return self._live.has_room

    def begin(
        self, question: str, *, method: SearchMethod, budget: Budget, seed: int = 0, prompt_ids: tuple[int, ...] | None = None
    ) -> int:
        """Begin a search and return its ticket. ``has_room`` must hold.

        Args:
            question: The question.
            method: How to search.
            budget: Its caps.
            seed: Seed of the search, >= 0.
            prompt_ids: The prompt, if the renderer is not to make it from the question.

        Raises:
            ConfigError: If a cap is impossible.
            DataFormatError: If the prompt cannot be written.
        """
        if budget.max_seconds is not None and method not in self._compiled:
            compile_loops(method, scored=self._has_prm)
            self._compiled.add(method)
        problem = Problem(id=QUESTION_ID, question=question)
        renderer = _GivenPrompt(self.renderer, self.renderer.prompt_ids(problem) if prompt_ids is None else prompt_ids)
        ticket = self._live.begin(SearchJob(problem=problem, method=method, budget=budget, seed=seed, renderer=renderer))
        self._asked[ticket] = renderer.ids
        self._prompts.add(renderer.ids, question)
        return ticket

    def turn(self) -> list[LiveResult]:
        """Advance all searches and return those that are over; ``LiveSearches.turn`` has the rules.

        Raises:
            BackendError: If a model fails as a whole. Drop the session then.
        """
        results = self._live.turn()
        for result in results:
            self._prompts.remove(self._asked.pop(result.ticket))
        return results

    def end(self, ticket: int, reason: StopReason) -> SearchResult:
        """End a search before its time, and return what it found so far."""
        result = self._live.end(ticket, reason)
        self._prompts.remove(self._asked.pop(ticket))
        return result

    def settled(self) -> list[int]:
        """Return the searches whose last wave is in their tree."""
        return self._live.settled()

    def view(self, ticket: int) -> SearchView:
        """Return the present state of a search."""
        return self._live.view(ticket)

    def interrupt(self) -> None:
        """Make a ``turn`` that waits for the policy return soon; safe from any thread."""
        self._live.interrupt()


def _context(config: Config, policy: str) -> int | None:
    from stepladder.lm.loading import load_model_settings

    named, _ = load_model_settings(policy, trust_remote_code=config.policy.trust_remote_code)
    return getattr(named.get_text_config(), "max_position_embeddings", None)


class _GivenPrompt:
    """A renderer whose prompt is given; it reads answers like another one."""

    def __init__(self, renderer: Renderer, ids: tuple[int, ...]) -> None:
        self._renderer, self.ids = renderer, ids
        self.hash = renderer.hash

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        return self.ids

    def extract_answer(self, text: str) -> str | None:
        return self._renderer.extract_answer(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._renderer.decode(token_ids)
