"""Search-guided reasoning self-improvement: tree search over reasoning steps, process reward models, and the loop that retrains both.

The names below are what most programs need. Each is imported when it is first used, so ``import stepladder`` loads no model library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepladder.commands.evolve import evolve
    from stepladder.interfaces import Policy, StepScorer, Verifier
    from stepladder.loops.config.load import load_config
    from stepladder.loops.runs.directory import load_run
    from stepladder.mcts.engine import SearchEngine
    from stepladder.mcts.methods import resolve_method
    from stepladder.solver import Solution, Solver
    from stepladder.types import Budget, LabelledProblem, Problem, Provenance, SearchResult, StopReason, Verdict

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "LabelledProblem",
    "Policy",
    "Problem",
    "Provenance",
    "SearchEngine",
    "SearchResult",
    "Solution",
    "Solver",
    "StepScorer",
    "StopReason",
    "Verdict",
    "Verifier",
    "evolve",
    "load_config",
    "load_run",
    "resolve_method",
]

_HOMES = {
    "Budget": "types",
    "LabelledProblem": "types",
    "Policy": "interfaces",
    "Problem": "types",
    "Provenance": "types",
    "SearchEngine": "mcts.engine",
    "SearchResult": "types",
    "Solution": "solver",
    "Solver": "solver",
    "StepScorer": "interfaces",
    "StopReason": "types",
    "Verdict": "types",
    "Verifier": "interfaces",
    "evolve": "commands.evolve",
    "load_config": "loops.config.load",
    "load_run": "loops.runs.directory",
    "resolve_method": "mcts.methods",
}
"""The module in which each public name is defined."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'stepladder' has no attribute {name!r}")
    value = getattr(import_module(f"stepladder.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return all public names, including those that are not imported yet."""
    return sorted({*globals(), *__all__})
