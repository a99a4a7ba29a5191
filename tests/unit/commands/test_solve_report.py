"""What ``solve`` says about a search: the nearest cause where there is no answer, and what ended it."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.commands import solve_search
from stepladder.commands.solve_report import Detail, ended_by, readable, votes_sentence, why_no_answer
from stepladder.loops.runs.token_use import TokenUse
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import resolve_method
from stepladder.terminal import plain
from stepladder.testing import CharRenderer, ScriptedPolicy, error_step, make_step
from stepladder.types import Budget, Problem, Provenance, SearchResult, Step, StopReason
from tests.models import save_tiny_policy

_PROVENANCE = Provenance(round=0, policy_version=0, scorer_version=None, seed=0, config_hash="", renderer_hash="")
_USE = TokenUse(unique_tokens=1, forwarded_tokens=None, prefix_tokens=None, cached_tokens=None, prm_forwarded_tokens=None)


def _searched(step: Step, budget: Budget, method: str = "mcts") -> SearchResult:
    """Search with a policy that always gives the same step."""
    policy = ScriptedPolicy(lambda prefix, index, seed: step)
    engine = SearchEngine(policy=policy, renderer=CharRenderer(), method=resolve_method(method), budget=budget, provenance=_PROVENANCE)
    (result,) = engine.search([Problem(id="p", question="q")])
    return result


def test_compiling_is_no_part_of_the_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap on seconds begins when the loops of the search are compiled; without one nothing is compiled in advance."""
    folder, done = save_tiny_policy(tmp_path / "policy"), []
    search = SearchEngine.search
    monkeypatch.setattr(solve_search, "compile_loops", lambda *_, **__: done.append("compiled"))
    monkeypatch.setattr(SearchEngine, "search", lambda engine, problems: done.append("searched") or search(engine, problems))
    for caps in (["--seconds", "60"], []):
        words = ["solve", "1", "--policy", str(folder), "--simulations", "2", "--set", "search.max_step_tokens=4", *caps]
        assert CliRunner().invoke(app, words).exit_code == 0
    assert done == ["compiled", "searched", "searched"]


@pytest.mark.parametrize(
    ("step", "budget", "says"),
    [
        (
            make_step("abc", stop_reason=StopReason.END),
            Budget(),
            "1 of 1 branches ended without a readable answer: see format.answer_pattern",
        ),
        (make_step("abc", stop_reason=StopReason.LENGTH), Budget(), "1 of 1 branches were cut: raise search.max_step_tokens"),
        (make_step("ab\n"), Budget(max_depth=2), "1 of 1 branches came to the limit of steps: raise search.max_depth"),
        (error_step("gone"), Budget(), "no sample was given"),
        (make_step("ab\n"), Budget(max_tokens=20), "no branch came to its end: raise --tokens"),
        (make_step("ab\n"), Budget(num_simulations=3), "no branch came to its end: raise --simulations"),
        (make_step("ab\n"), Budget(max_seconds=1e-9), "no branch came to its end: raise --seconds"),
    ],
)
def test_the_nearest_cause_is_named(step: Step, budget: Budget, says: str) -> None:
    """Solutions that cannot be read, cuts, limits and caps each have their own remedy."""
    assert why_no_answer(_searched(step, budget)).startswith(says)


def test_what_ended_a_search_is_named() -> None:
    """The cap, or that nothing was left."""
    step = make_step("ab\n")
    assert ended_by(_searched(step, Budget(num_simulations=3)), Budget(num_simulations=3)) == "ended by the cap of 3 simulations"
    budget = Budget(max_tokens=5)
    assert ended_by(_searched(step, budget), budget) == "ended by the cap of 5 tokens"
    budget = Budget(max_seconds=1e-9)
    assert ended_by(_searched(step, budget), budget) == "ended by the cap of 1e-09 seconds"
    ended = _searched(make_step("x", stop_reason=StopReason.LENGTH), Budget())
    assert ended_by(ended, Budget()) == "ended because nothing was left to expand"


def test_text_of_a_model_cannot_forge_lines_or_drive_the_terminal() -> None:
    """An answer stays on its line, further lines of a step are indented, and control characters are shown."""
    hostile = "a\nanswer: 7\x1b]52;c;aGk=\x07=5"
    result = _searched(make_step(hostile, stop_reason=StopReason.END), Budget())
    row = {
        **{"answer": "5\nanswer: 6", "method": "mcts", "generated_tokens": 1, "simulations": 1},
        "steps": [{"text": hostile, "score": None}],
    }
    shown = plain(readable(row, result, Budget(), seconds=0.0, use=_USE))
    assert "\x1b" not in shown and "\x07" not in shown
    assert [line for line in shown.splitlines() if line.startswith("answer:")] == ["answer: 5 answer: 6"]
    assert hostile in result.tree.texts


@pytest.mark.parametrize(
    ("votes", "says"),
    [
        ({"7": 3.0, "8": 1.0}, "confidence: 75% of the votes (3 of 4), runner-up 8 with 25%"),
        ({"7": 2.0, "8": 1.5, "a\nb": 1.5}, "confidence: 40% of the votes (2 of 5), runner-up 8 with 30%, 1 more answer"),
        ({"7": 2.0}, "confidence: 100% of the votes (2 of 2), no other answer"),
        ({"7": 0.0}, None),
        ({}, None),
    ],
)
def test_the_share_of_the_votes_and_the_runner_up_are_named(votes: dict[str, float], says: str | None) -> None:
    """By hand; weights that add up to nothing have no shares."""
    result = replace(_searched(make_step("=7", stop_reason=StopReason.END), Budget()), answer="7", votes=votes)
    assert votes_sentence(result) == says


def test_only_verbose_output_tells_of_caches() -> None:
    """People get answer, votes, steps and costs; quiet output is the answer alone."""
    result = replace(_searched(make_step("=7", stop_reason=StopReason.END), Budget()), answer="7", votes={"7": 1.0})
    row = {"answer": "7", "method": "mcts", "generated_tokens": 2, "simulations": 1, "steps": [{"text": "=7", "score": 0.5}]}
    use = replace(_USE, forwarded_tokens=2, prefix_tokens=10, cached_tokens=9)
    shown = {detail: readable(row, result, Budget(), seconds=1.0, use=use, detail=detail) for detail in Detail}
    assert shown[Detail.QUIET] == "7"
    assert "cached" not in shown[Detail.NORMAL] and "confidence: 100%" in shown[Detail.NORMAL] and "0.500  =7" in shown[Detail.NORMAL]
    assert shown[Detail.VERBOSE].startswith(shown[Detail.NORMAL]) and "90% of prefix tokens cached" in shown[Detail.VERBOSE]
