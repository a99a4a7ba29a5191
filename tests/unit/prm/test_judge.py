"""A judge's verdicts: reading, voting, merging, and the requests that ask for them."""

import pytest

from stepladder.errors import ConfigError
from stepladder.prm.judge import Judge, Thought, merge_runs, read_verdict, vote
from stepladder.prm.reader import Solution
from stepladder.prm.specs import NAMED_SPECS
from stepladder.testing import ScriptedPolicy
from stepladder.types import Step, StopReason

SPEC = NAMED_SPECS["judge"].spec


def test_the_last_verdict_in_a_text_counts():
    """A judge that changes its mind means the later word; other words are no verdict."""
    assert read_verdict(r"First \boxed{Yes}, no: \boxed{ No }", SPEC) is False
    assert read_verdict(r"\boxed{No} \boxed{Yes}", SPEC) is True
    assert read_verdict(r"Yes \boxed{Perhaps}", SPEC) is None
    assert read_verdict("", SPEC) is None


def test_votes_by_share_and_by_majority():
    """Two of three readable verdicts are good: 2/3, or 1; a tie is 0.5; nothing readable is no score."""
    verdicts = [True, None, True, False]
    assert vote(verdicts) == pytest.approx(2 / 3)
    assert vote(verdicts, rule="majority") == 1.0
    assert vote([True, False], rule="majority") == 0.5
    assert vote([False], rule="majority") == 0.0
    assert vote([None]) is None
    assert vote([]) is None


def test_runs_of_equal_verdicts_are_thoughts():
    """Steps good, good, bad, unknown, good make four thoughts that cover every step once."""
    assert merge_runs([0.9, 0.5, 0.49, None, 1.0]) == [Thought(0, 2, True), Thought(2, 3, False), Thought(3, 4, None), Thought(4, 5, True)]
    assert merge_runs([]) == []


def test_every_step_is_judged_by_the_samples_on_its_own_prompt():
    """The verdicts of a step depend on its prompt, which holds the steps before it and not those after; other solutions do not matter."""

    def propose(prefix_ids, sample, seed):
        step = bytes(prefix_ids).decode().split("Next step:\n")[1].split("\n\n")[0]
        good = step != "wrong" and sample % 4 != 3
        text = r"\boxed{Yes}" if good else r"\boxed{No}"
        if step == "silent":
            text = "hm"
        return Step(token_ids=(1,), logps=(0.0,), text=text, stop_reason=StopReason.END)

    policy = ScriptedPolicy(propose, shuffle_seed=3)
    judge = Judge(policy, SPEC, lambda prompt: tuple(prompt.encode()))
    solutions = [
        Solution(question="Q {step}", steps=("fine", "wrong", "silent")),
        Solution(question="R", steps=()),
        Solution(question="S", steps=("wrong",)),
    ]
    assert judge.score(solutions) == [(0.75, 0.0, None), (), (0.0,)]
    prompts = [bytes(request.prefix_ids).decode() for request in policy.requests]
    assert "Q {step}" in prompts[0], "what is filled in is never taken for a place"
    assert ["fine" in prompt for prompt in prompts] == [True, True, True, False]
    assert ["silent" in prompt for prompt in prompts] == [False, False, True, False]
    seeds = [request.seed for request in policy.requests]
    assert len(set(seeds)) == len(seeds)
    alone = ScriptedPolicy(propose)
    assert Judge(alone, SPEC, lambda prompt: tuple(prompt.encode())).score(solutions[2:]) == [(0.0,)]
    assert alone.requests[0].seed == seeds[3]
    assert {request.num_samples for request in policy.requests} == {8}
    asked = len(policy.requests)
    assert judge.score([*solutions[2:], Solution(question="S", steps=("wrong", "fine"))]) == [(0.0,), (0.0, 0.75)]
    assert len(policy.requests) == asked + 1, "a step is judged once"
    judge.reset()
    assert judge.score(solutions[2:]) == [(0.0,)]
    assert len(policy.requests) == asked + 2
    with pytest.raises(ConfigError, match="judge's spec"):
        Judge(policy, NAMED_SPECS["trl"].spec, lambda prompt: ())


def test_old_verdicts_are_forgotten(monkeypatch):
    """The newest stay, so that the memory of a server does not grow for ever; what was forgotten is asked again."""
    policy = ScriptedPolicy(lambda *_: Step(token_ids=(1,), logps=(0.0,), text=r"\boxed{Yes}", stop_reason=StopReason.END))
    judge = Judge(policy, SPEC, lambda prompt: tuple(prompt.encode()))
    solution = Solution(question="Q", steps=("a", "b", "c"))
    monkeypatch.setattr("stepladder.prm.judge._MAX_KNOWN", 2)
    for asked in (3, 4, 5):
        assert judge.score([solution]) == [(1.0, 1.0, 1.0)]
        assert len(policy.requests) == asked
        assert len(judge._known) == 3, "those of one call are kept until the next"
