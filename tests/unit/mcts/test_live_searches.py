"""Searches that begin and end while others run."""

from dataclasses import replace

import pytest

from stepladder.errors import BackendError, ConfigError, DataFormatError
from stepladder.mcts.live_searches import LiveSearches, SearchJob
from stepladder.mcts.methods import resolve_method
from stepladder.testing import CharRenderer, ScriptedPolicy, TableScorer, make_step
from stepladder.types import Budget, Problem, StopReason
from tests.searches import PROBLEMS, PROVENANCE, propose, run, score

BUDGET = Budget(num_simulations=16, max_depth=6)
METHODS = ("mcts", "beam", "best-of-n", "rstar", "gumbel", "particle-filter")


def live_searches(policy=propose, *, scorer=score, arrival_seed=None, max_trees=256):
    """Return searches in progress over fakes, with the provenance that ``tests.searches.engine`` has."""
    return LiveSearches(
        policy=policy if hasattr(policy, "collect") else ScriptedPolicy(policy, shuffle_seed=arrival_seed),
        scorer=None if scorer is None else TableScorer(scorer, shuffle_seed=arrival_seed),
        renderer=CharRenderer(),
        provenance=PROVENANCE,
        max_trees=max_trees,
    )


def job(problem=PROBLEMS[0], method="mcts", *, budget=BUDGET, seed=PROVENANCE.seed, renderer=None, **options):
    """Return a search to begin."""
    return SearchJob(problem=problem, method=resolve_method(method, **options), budget=budget, seed=seed, renderer=renderer)


def finish(live):
    """Take turns until no search is left, and return the results by ticket."""
    results = {}
    while len(live):
        results |= dict(live.turn())
    return results


@pytest.mark.parametrize("arrival_seed", [None, 1, 2])
@pytest.mark.parametrize("scorer", [score, None])
def test_results_are_those_of_an_engine_whatever_runs_beside(scorer, arrival_seed):
    """Searches of six methods that begin one after the other, in shared batches, find what an engine of their own finds."""
    live = live_searches(scorer=scorer, arrival_seed=arrival_seed)
    expected = {method: run(method, scorer=scorer, problems=PROBLEMS[:3], budget=BUDGET) for method in METHODS}
    results, tickets = {}, {}
    for problem in PROBLEMS[:3]:
        for method in METHODS:
            tickets[live.begin(job(problem, method))] = (method, problem.id)
            results |= dict(live.turn())
    results |= finish(live)
    assert {tickets[ticket]: result for ticket, result in results.items()} == {
        (method, problem.id): expected[method][problem.id] for method in METHODS for problem in PROBLEMS[:3]
    }


def test_more_searches_than_a_run_has_trees():
    """Searches beyond the trees of one run get another run, and results stay the same."""
    problems = [Problem(id=f"p{i}", question=f"q{i % 5}") for i in range(150)]
    live = live_searches()
    tickets = {live.begin(job(problem)): problem.id for problem in problems}
    found = {tickets[ticket]: result for ticket, result in finish(live).items()}
    assert found == run(problems=problems, budget=BUDGET)


def test_room_is_limited_and_comes_back():
    """``has_room`` counts the searches in progress of all methods."""
    live = live_searches(max_trees=2)
    live.begin(job())
    assert live.has_room
    live.begin(job(method="beam"))
    assert not live.has_room
    finish(live)
    assert live.has_room
    assert len(live) == 0


class UnwritablePrompt(CharRenderer):
    """A renderer whose prompts cannot be written."""

    def prompt_ids(self, problem):
        raise DataFormatError("unwritable")


def test_a_prompt_that_cannot_be_written_takes_no_room():
    """As many refused searches as a run has trees leave room for others in the same arrays."""
    live = live_searches()
    live.begin(job())
    (before,) = live._all_runs()
    for _ in range(64):
        with pytest.raises(DataFormatError):
            live.begin(job(renderer=UnwritablePrompt()))
    live.begin(job(PROBLEMS[1]))
    assert live._all_runs() == [before]


def test_a_seed_of_ones_own():
    """A job's seed decides its samples; equal seeds give equal results, and the tree names the seed."""
    live = live_searches()
    first, again, other = (live.begin(job(seed=seed)) for seed in (7, 7, 8))
    results = finish(live)
    assert results[first] == results[again]
    assert results[first].tree.texts != results[other].tree.texts
    assert results[first].tree.provenance == replace(PROVENANCE, seed=7)


def test_a_prompt_of_ones_own():
    """A job may bring the renderer that makes its prompt."""

    class Shouted(CharRenderer):
        def prompt_ids(self, problem):
            return self.encode(problem.question.upper())

    live = live_searches()
    live.begin(job(renderer=Shouted()))
    (result,) = finish(live).values()
    assert result.tree.prompt_ids == list(map(ord, "Q0"))


def test_an_ended_search_keeps_what_it_found_and_disturbs_nobody():
    """A search that is ended has the waves that were settled; the others find what they would have found alone."""
    live = live_searches(arrival_seed=3)
    ended = live.begin(job(PROBLEMS[0]))
    kept = live.begin(job(PROBLEMS[1]))
    results = {}
    for _ in range(12):
        results |= dict(live.turn())
    assert ended not in results
    partial = live.end(ended, StopReason.SECONDS)
    results |= finish(live)
    assert list(results) == [kept]
    assert results[kept] == run(problems=PROBLEMS[1:2], budget=BUDGET)["p1"]
    whole = run(problems=PROBLEMS[:1], budget=BUDGET)["p0"]
    size = len(partial.tree.parents)
    assert partial.stop_reason == StopReason.SECONDS
    assert 1 < size < len(whole.tree.parents)
    assert partial.tree.texts == whole.tree.texts[:size]
    assert partial.anytime == whole.anytime[: len(partial.anytime)]


def test_a_search_that_is_ended_before_its_first_turn_is_empty():
    """Nothing was asked, so nothing was spent."""
    live = live_searches()
    result = live.end(live.begin(job()), StopReason.SECONDS)
    assert (result.answer, result.tree.generated_tokens, len(result.tree.parents), len(live)) == (None, 0, 1, 0)


def test_requests_of_an_ended_search_are_cancelled():
    """A policy that can cancel gets the tickets of an ended search, and none of another."""

    class Slow(ScriptedPolicy):
        def __init__(self):
            super().__init__(propose)
            self.cancelled = []

        def collect(self):
            return []

        def cancel(self, tickets):
            self.cancelled += tickets

    policy = Slow()
    live = live_searches(policy)
    first, _ = live.begin(job(PROBLEMS[0])), live.begin(job(PROBLEMS[1]))
    live.turn()
    asked = [request.ticket for request in policy.requests if request.question == "q0"]
    live.end(first, StopReason.SECONDS)
    assert policy.cancelled == asked
    assert len(asked) == 1


def test_a_turn_may_end_without_results():
    """A policy may return nothing after an interrupt; the search goes on with the next turn."""

    class Interrupted(ScriptedPolicy):
        calls = 0

        def collect(self):
            self.calls += 1
            return [] if self.calls % 2 else super().collect()

    live = live_searches(Interrupted(propose))
    ticket = live.begin(job())
    assert live.turn() == []
    assert finish(live)[ticket] == run(problems=PROBLEMS[:1], budget=BUDGET)["p0"]


def test_impossible_caps_are_refused():
    """A budget is checked when its search begins, and nothing is left of it."""
    live = live_searches()
    with pytest.raises(ConfigError, match="num_simulations must be a whole number >= 1"):
        live.begin(job(budget=Budget(num_simulations=0)))
    assert len(live) == 0


def test_a_broken_backend_raises():
    """A policy that fails as a whole ends the turn."""
    live = live_searches(ScriptedPolicy(propose, raise_after=3))
    live.begin(job())
    with pytest.raises(BackendError, match="scripted backend"):
        finish(live)


def test_the_common_path_settles():
    """A step is settled when every open leaf and every answer is below it."""
    lines = {0: ["a\n", "b\n"], 1: ["c\n", "c\n"], 2: ["=1", "=2"]}

    def scripted(prefix_ids, index, seed):
        text = "".join(map(chr, prefix_ids))
        depth = text.count("\n") - 1
        return make_step(lines[depth][index % 2], stop_reason=StopReason.END if depth == 2 else StopReason.STEP)

    live = live_searches(scripted)
    ticket = live.begin(job(num_children=1))
    paths = []
    while len(live):
        if not live.turn() and live.settled():
            view = live.view(ticket)
            paths.append([view.steps_to(node)[-1].text for node in view.common_path()])
    assert paths == [["a\n"], ["a\n", "c\n"], ["a\n", "c\n", "=1"]]


@pytest.mark.parametrize(
    ("method", "options"),
    [("mcts", {"num_children": 1, "widen": "power"}), ("best-of-n", {"wave": 1}), ("majority", {"wave": 1}), ("frontier", {})],
)
def test_no_path_settles_where_nodes_are_sampled_again(method, options):
    """After the first sample there is one path alone, and the next sample may leave it anywhere."""
    live = live_searches()
    ticket = live.begin(job(method=method, **options))
    seen = 0
    while len(live):
        if not live.turn() and live.settled():
            view = live.view(ticket)
            seen += view.num_simulations > 0
            assert view.common_path() == []
    assert seen
