"""Search methods and budgets, from the configuration."""

from stepladder.loops.config.search import EvaluateConfig, SearchConfig
from stepladder.mcts.methods import SearchMethod, resolve_method
from stepladder.types import Budget


def build_method(section: SearchConfig | EvaluateConfig) -> SearchMethod:
    """Return the search method of a section with its options applied.

    Raises:
        ConfigError: If the method or an option is unknown or impossible.
    """
    return resolve_method(section.method, **section.options)


def search_budget(section: SearchConfig) -> Budget:
    """Return the spending caps of the training search."""
    return Budget(
        num_simulations=section.simulations,
        max_tokens=section.max_tokens,
        max_depth=section.max_depth,
        max_step_tokens=section.max_step_tokens,
    )
