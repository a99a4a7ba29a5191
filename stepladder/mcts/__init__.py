"""Tree search over reasoning steps: the arrays, the rules, the event loop and the named methods."""

from stepladder.mcts.engine import EngineStats, SearchEngine, SearchEvent
from stepladder.mcts.graph import to_networkx
from stepladder.mcts.methods import METHODS, resolve_method
from stepladder.mcts.search_method import SearchMethod
from stepladder.mcts.tree import Tree

__all__ = ["METHODS", "EngineStats", "SearchEngine", "SearchEvent", "SearchMethod", "Tree", "resolve_method", "to_networkx"]
