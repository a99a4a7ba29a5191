"""Budgets by problem: a function of the problem says what its search may spend."""

from dataclasses import replace

import pytest

from stepladder.errors import ConfigError
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import resolve_method
from stepladder.testing import CharRenderer, ScriptedPolicy, TableScorer
from stepladder.types import Budget
from tests.searches import PROBLEMS, PROVENANCE, propose, score

SIX = PROBLEMS[:6]


def search(method, budget, **options):
    """Search six problems and return the results by id."""
    engine = SearchEngine(
        policy=ScriptedPolicy(propose),
        scorer=TableScorer(score),
        renderer=CharRenderer(),
        method=resolve_method(method),
        budget=budget,
        provenance=PROVENANCE,
        **options,
    )
    return {result.problem_id: result for result in engine.search(SIX)}


def twice_the_number(problem):
    """Four simulations for the first problem, two more for each next one; every second one may go deeper."""
    number = int(problem.id.removeprefix("p"))
    return Budget(num_simulations=4 + 2 * number, max_depth=3 + 4 * (number % 2))


@pytest.mark.parametrize("method", ["mcts", "gumbel", "beam", "particle-filter", "q-star", "majority", "beam-lookahead"])
@pytest.mark.parametrize("max_trees", [2, 256])
def test_every_problem_is_searched_as_with_its_own_budget(method, max_trees):
    """The tree of a problem is the one that a search of all problems with that budget gives, in shared rows or not."""
    mixed = search(method, twice_the_number, max_trees=max_trees)
    for problem in SIX:
        assert mixed[problem.id] == search(method, twice_the_number(problem))[problem.id]
    assert len({result.tree.num_simulations for result in mixed.values()}) > 1 or method in ("beam", "particle-filter", "beam-lookahead")


def test_a_budget_is_asked_for_once_per_problem():
    """It is asked for when the search begins, in the order of the problems."""
    asked = []

    def budget_of(problem):
        asked.append(problem.id)
        return Budget(num_simulations=3)

    search("mcts", budget_of, max_trees=2)
    assert asked == [problem.id for problem in SIX]


def test_an_impossible_budget_of_a_problem_is_refused():
    """The rule is that of a budget for all."""
    with pytest.raises(ConfigError, match="max_depth must be a whole number >= 1: got 0"):
        search("mcts", lambda problem: replace(Budget(), max_depth=0))
