"""Search methods, budgets and engines, from the configuration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stepladder.interfaces import Verifier
from stepladder.lm.loaded_models import LoadedModels
from stepladder.loops.assembly.policies import LiveWeights, build_policy, build_renderer
from stepladder.loops.assembly.scorers import build_scorer
from stepladder.loops.config.run import Config
from stepladder.loops.config.search import EvaluateConfig, ScoresConfig, SearchConfig
from stepladder.mcts.answer_rules import own_key
from stepladder.mcts.engine import BudgetRule, SearchEngine
from stepladder.mcts.methods import SearchMethod, resolve_method, with_filling_wave
from stepladder.mcts.settings.setting_checks import check_count, check_number
from stepladder.types import Budget, Problem, Provenance

_UNBOUNDED_SIMULATIONS = 1_000_000


def build_method(config: Config, section: SearchConfig | EvaluateConfig) -> SearchMethod:
    """Return the search method of a section of a configuration, with its options applied.

    Raises:
        ConfigError: If the method or an option is unknown or impossible.
    """
    return _method(config, section.method, section.options, num_problems=config.run.shard_size, simulations=section.simulations)


def _method(config: Config, name: str, options: Mapping[str, Any], *, num_problems: int, simulations: int) -> SearchMethod:
    """Return a method; its wave, if that is open, fills the policy's batches with so many problems."""
    trees = min(config.search.max_trees, num_problems)
    return resolve_method(
        name, **with_filling_wave(name, options, num_trees=trees, max_batch=config.policy.max_batch, simulations=simulations)
    )


def search_budget(section: SearchConfig) -> Budget:
    """Return the spending caps of the training search."""
    return Budget(
        num_simulations=section.simulations,
        max_tokens=section.max_tokens,
        max_depth=section.max_depth,
        max_step_tokens=section.max_step_tokens,
    )


def step_limit(section: SearchConfig, method: SearchMethod) -> int:
    """Return the cap on the tokens of one step.

    A search that goes on after a cut step may have segments shorter than steps. A method that ends a solution there gets the room of a
    whole solution instead: its steps end at their own ends.

    Args:
        section: The training search.
        method: The method that samples.
    """
    # How wide the search is has no part in this, and may still be open.
    searching = resolve_method(section.method, **{name: value for name, value in section.options.items() if name != "wave"})
    in_segments = searching.sampling.cut_steps == "continue" and method.sampling.cut_steps != "continue"
    return section.max_step_tokens * (section.max_depth if in_segments else 1)


def sampling_budget(section: SearchConfig, method: SearchMethod, *, num_samples: int) -> Budget:
    """Return the caps on whole solutions that are sampled beside the training search.

    Args:
        section: The training search.
        method: The method that samples.
        num_samples: Solutions per problem, >= 1.
    """
    caps = search_budget(section)
    return replace(caps, num_simulations=num_samples, max_tokens=None, max_step_tokens=step_limit(section, method))


def choose_search(
    config: Config,
    *,
    method: str | None = None,
    tokens: int | None = None,
    simulations: int | None = None,
    seconds: float | None = None,
    options: Mapping[str, Any] | None = None,
    num_problems: int = 1,
) -> tuple[SearchMethod, Budget]:
    """Return the method and the caps of a search for answers.

    With a cap on tokens or seconds and none on simulations the former alone decide; with none, the run's evaluation setting does.

    Args:
        config: The configuration; section ``evaluate`` has the defaults.
        method: Name of a search method; None takes the default, with its options.
        tokens: Cap on generated tokens.
        simulations: Cap on simulations.
        seconds: Cap on seconds.
        options: Settings of the method by name.
        num_problems: Problems that are searched together, >= 1.

    Raises:
        ConfigError: If the method, an option or a cap is unknown or impossible.
    """
    check_count("search: simulations", simulations, optional=True)
    check_count("search: tokens", tokens, optional=True)
    check_number("search: seconds", seconds, "> 0", optional=True)
    defaults = config.evaluate
    base = defaults.options if method in (None, defaults.method) else {}
    unbounded = token_simulations(tokens) if tokens else _UNBOUNDED_SIMULATIONS if seconds else None
    name, num_simulations = method or defaults.method, simulations or unbounded or defaults.simulations
    chosen = _method(config, name, base | dict(options or {}), num_problems=num_problems, simulations=num_simulations)
    budget = Budget(
        num_simulations=num_simulations,
        max_tokens=tokens or (None if simulations or seconds else defaults.max_tokens),
        exact_tokens=True,
        max_seconds=seconds,
        max_depth=config.search.max_depth,
        max_step_tokens=step_limit(config.search, chosen),
    )
    return chosen, budget


def token_simulations(max_tokens: int) -> int:
    """Return the cap on simulations for a search that a token budget ends.

    An expansion takes at least one token. A second visit to a terminal takes none, and methods that allow it could visit forever:
    so many simulations as tokens are enough for the former and an end to the latter.
    """
    return max_tokens


def search_engine(
    config: Config,
    models: LoadedModels,
    problems: Sequence[Problem],
    *,
    policy: str | LiveWeights,
    prm: str | Sequence[str] | None,
    method: SearchMethod,
    budget: Budget | BudgetRule,
    provenance: Provenance,
    scores: ScoresConfig | None = None,
    verifier: Verifier | None = None,
    key_of: Callable[[str], str] = own_key,
    tree_number: int = 0,
) -> SearchEngine:
    """Return a search engine with its models loaded.

    Args:
        config: The configuration.
        models: The models of this process.
        problems: The problems that will be searched; a PRM that reads text finds its questions among them.
        policy: As for ``build_policy``.
        prm: As for ``build_scorer``; none searches without one.
        method: How to search.
        budget: Caps per problem.
        provenance: Provenance of the trees; the renderer hash is filled in.
        scores: As for ``build_scorer``.
        verifier: Grades answers during the search; None searches without reference answers.
        key_of: Canonical form of an answer for votes, from ``vote_keys``; by default only equal texts are one answer.
        tree_number: As for ``SearchEngine``.

    Raises:
        ConfigError: If a backend is not installed or settings are impossible.
        CheckpointError: If a model cannot be loaded.
        DataFormatError: If the PRM was trained on prompts of another policy.
        BackendError: If a server does not answer.
    """
    renderer = build_renderer(config, policy.source if isinstance(policy, LiveWeights) else policy)
    sampler = build_policy(config, models, policy)
    scorer = None
    if prm:
        # Weights that change are those of no directory.
        shared = {"policy": sampler, "policy_source": None if isinstance(policy, LiveWeights) else policy}
        scorer = build_scorer(config, models, prm=prm, renderer=renderer, problems=problems, scores=scores, **shared)
    return SearchEngine(
        policy=sampler,
        scorer=scorer,
        renderer=renderer,
        method=method,
        budget=budget,
        verifier=verifier,
        key_of=key_of,
        provenance=replace(provenance, renderer_hash=renderer.hash),
        max_trees=config.search.max_trees,
        tree_number=tree_number,
    )
