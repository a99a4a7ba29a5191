"""A second model's say in the answer: the choice by hand, what is asked, and the command line."""

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.mcts.consistency import KEPT_SHARES, Candidate, Discriminator, choose_consistent
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import METHODS, resolve_method
from stepladder.policy.prompts import PromptRenderer, StepFormat
from stepladder.testing import ScriptedPolicy, TableScorer
from stepladder.types import Budget, Problem, Provenance, Step, StopReason
from tests.models import save_tiny_policy, tiny_tokenizer

FORMAT = StepFormat(answer_pattern=r"#(\d)")
RENDERER = PromptRenderer(tiny_tokenizer("chars"), FORMAT)
PROBLEM = Problem(id="p", question="q")
BUDGET = Budget(num_simulations=1, max_depth=4, max_step_tokens=8)


def found(node, answer, agreements):
    return Candidate(node=node, answer=answer, key=answer.lstrip("0"), agreements=agreements)


def test_the_choice_by_hand():
    """Of six solutions four are consistent. 7: 2 of 4, and 2 of its 3. 8: 1 of 4 and 1 of 2. 9: 1 of 4, and all of its own: it wins."""
    candidates = [found(1, "7", 2), found(2, "07", 4), found(3, "7", 1), found(4, "8", 0), found(5, "8", 3), found(6, "9", 2)]
    choice = choose_consistent(candidates, needed=2)
    assert (choice.answer, choice.node) == ("9", 6)
    assert choice.votes == pytest.approx({"9": 1 / 4 + 1, "7": 2 / 4 + 2 / 3, "8": 1 / 4 + 1 / 2})
    assert list(choice.votes) == ["9", "7", "8"]


def test_without_any_consistent_solution_the_most_frequent_answer_wins():
    """Shares of all solutions; the first of equals; nothing without solutions."""
    choice = choose_consistent([found(1, "7", 0), found(2, "8", 1), found(3, "8", 1)], needed=2)
    assert (choice.answer, choice.node, choice.votes) == ("8", 2, pytest.approx({"8": 2 / 3, "7": 1 / 3}))
    assert choose_consistent([found(1, "7", 0), found(2, "8", 0)], needed=2).answer == "7"
    empty = choose_consistent([], needed=2)
    assert (empty.answer, empty.node, empty.votes) == (None, None, {})


def step(text, reason):
    ids = tuple(RENDERER.tokenizer.encode(text, add_special_tokens=False))
    return Step(token_ids=ids, logps=(-0.5,) * len(ids), text=text, stop_reason=reason)


def searched(**solutions):
    """Return the result of a search that drew one solution of two steps for each answer, so often as told."""
    drawn = [answer for answer, times in solutions.items() for _ in range(times)]

    def policy(prefix, index, seed):
        answer = drawn[index].removeprefix("a")
        return step(f"#{answer}\n", StopReason.END) if RENDERER.decode(prefix).endswith(";\n") else step(f"so {answer};\n", StopReason.STEP)

    engine = SearchEngine(
        policy=ScriptedPolicy(policy),
        scorer=TableScorer(lambda prefix: 0.5),
        renderer=RENDERER,
        method=resolve_method("majority", wave=len(drawn)),
        budget=Budget(num_simulations=len(drawn), max_depth=4),
        provenance=Provenance(round=0, policy_version=0, scorer_version=0, seed=0, config_hash="0" * 16, renderer_hash="r"),
    )
    return next(engine.search([PROBLEM]))


def test_a_solution_is_begun_and_completed_by_the_second_model():
    """Three solutions say 7, two 8. The second model ends every beginning of an 8 with 8, of a 7 with 1: 8 is the answer.

    It is asked once per distinct solution and share, behind its own prompt; what it writes is counted.
    """
    result = searched(a7=3, a8=2)
    assert result.answer == "7"
    second = ScriptedPolicy(lambda prefix, index, seed: step("#8" if "8" in RENDERER.decode(prefix) else "#1", StopReason.END))
    discriminator = Discriminator(second, RENDERER, key_of=str, budget=BUDGET, seed=3)
    reviewed = discriminator.review(PROBLEM, result)
    assert (reviewed.answer, reviewed.votes) == ("8", pytest.approx({"8": 2.0}))
    assert reviewed.tree == result.tree and reviewed.tree.answers[reviewed.answer_node] == "8"
    prompt = RENDERER.prompt_ids(PROBLEM)
    lengths = Counter(len(request.prefix_ids) - len(prompt) for request in second.requests)
    # Nine characters, "so 7;\n#7" and a line break: shares of 0.2 to 0.5 are 2, 3, 4 and 5 of them.
    assert lengths == {2: 2, 3: 2, 4: 2, 5: 2} and len(KEPT_SHARES) == 4
    assert len({request.seed for request in second.requests}) == 8 and {request.num_samples for request in second.requests} == {1}
    assert discriminator.generated_tokens == 8 * 2


def test_a_second_model_that_fails_leaves_the_majority():
    """Failed and endless completions agree with nothing; a result without solutions stays as it is."""
    result = searched(a7=1, a8=2)
    for broken in ({}, lambda prefix, index, seed: step("so\n", StopReason.STEP)):
        reviewed = Discriminator(ScriptedPolicy(broken), RENDERER, key_of=str, budget=BUDGET, seed=3).review(PROBLEM, result)
        assert (reviewed.answer, reviewed.votes) == ("8", pytest.approx({"8": 2 / 3, "7": 1 / 3}))
    unsolved = searched(a=2)
    assert Discriminator(ScriptedPolicy({}), RENDERER, key_of=str, budget=BUDGET, seed=3).review(PROBLEM, unsolved) is unsolved


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    names = []
    for seed, name in enumerate(("policy", "second")):
        directory = save_tiny_policy(folder / name, seed=seed)
        StepFormat(answer_pattern=r"([a-z])").save(directory)
        names.append(str(directory))
    return names


def solve(models, *arguments):
    """Run ``stepladder solve`` on a tiny policy and return what it prints."""
    caps = ("--set", "search.max_step_tokens=6", "--set", "search.max_depth=3", "--set", "policy.device=cpu", "--json")
    done = CliRunner().invoke(app, ["solve", "1+1", "--policy", models[0], *caps, *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_runs_from_the_command_line(models, name):
    """Each method solves with a small token budget; its name stands in the answer."""
    row = solve(models, "--method", name, "--tokens", "20")
    assert row["method"] == name and row["generated_tokens"] > 0 and row["stop_reason"]


def test_a_second_model_and_a_cap_on_seconds_from_the_command_line(models):
    """The discriminator's tokens are reported beside the policy's; a search cut by the clock says so; both repeat."""
    arguments = ("--method", "majority", "--simulations", "8", "--discriminator", models[1])
    row, again = solve(models, *arguments), solve(models, *arguments)
    assert row["discriminator_tokens"] > 0 and {**row, "seconds": 0} == {**again, "seconds": 0}
    assert "discriminator_tokens" not in solve(models, "--method", "greedy", "--simulations", "1")
    assert solve(models, "--method", "mcts", "--seconds", "0.001")["stop_reason"] in ("seconds", "exhausted")
