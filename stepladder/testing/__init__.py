"""Fakes with scripted answers and failures, and the contracts that backends, tokenizers and renderers must keep.

The fakes need no model: ``ScriptedPolicy``, ``TableScorer``, ``ExactVerifier`` and ``CharRenderer`` make a whole search run in
microseconds. ``check_policy``, ``check_scorer``, ``check_tokenizer`` and ``check_renderer`` state what the search relies on, as checks that
raise ``AssertionError``; point them at a backend, tokenizer or renderer of your own to learn whether the search may use it.
"""

from stepladder.testing.backends import check_policy, check_scorer
from stepladder.testing.fakes import CharRenderer, ExactVerifier, ScriptedPolicy, TableScorer, error_step, make_step
from stepladder.testing.texts import check_renderer, check_tokenizer

__all__ = [
    "CharRenderer",
    "ExactVerifier",
    "ScriptedPolicy",
    "TableScorer",
    "check_policy",
    "check_renderer",
    "check_scorer",
    "check_tokenizer",
    "error_step",
    "make_step",
]
