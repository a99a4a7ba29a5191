"""Fakes with scripted answers and failures, and the contracts of backends, tokenizers and renderers.

The fakes need no model: ``ScriptedPolicy``, ``TableScorer``, ``ExactVerifier`` and ``CharRenderer`` make a whole search run in
microseconds. ``check_policy``, ``check_scorer``, ``check_tokenizer`` and ``check_renderer`` check what the search relies on, and raise
``AssertionError``. Call them on your own backend, tokenizer or renderer to find out whether the search can use it.
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
