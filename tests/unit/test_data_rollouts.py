"""Labels from rollouts: counting on a scripted policy, and the binary search for the first error."""

import math

import pytest

from stepladder.data.rollouts import Estimate, estimate_prefixes, find_first_error, labels_until_error
from stepladder.errors import ConfigError
from stepladder.testing import ScriptedPolicy
from stepladder.types import Problem, Step, StopReason, Verdict


class Renderer:
    hash = "r"

    def prompt_ids(self, problem):
        return (1, 2)

    def extract_answer(self, text):
        return text.rpartition("=")[2] or None


class IsFive:
    def grade(self, answers):
        return [Verdict(correct=answer == "5", reason="") for _, answer in answers]


def scripted(prefix_ids, sample, seed):
    """Return a step, then an answer: after token 9 never right, otherwise right in every second sample."""
    if prefix_ids[-1] != 7:
        return Step(token_ids=(7,), logps=(0.0,), text="so\n", stop_reason=StopReason.STEP)
    right = 9 not in prefix_ids and sample % 2 == 0
    return Step(token_ids=(8,), logps=(0.0,), text="=5" if right else "=6", stop_reason=StopReason.END)


def test_rollouts_from_every_prefix_are_counted():
    """Half of four rollouts are right without token 9 and none with it, whatever order the results arrive in."""
    prefixes = [[], [(3,)], [(3,), (9,)], [(3,), (9,), (4,)]]
    expected = [Estimate(2, 4), Estimate(2, 4), Estimate(0, 4), Estimate(0, 4)]
    for shuffle in (None, 5):
        policy = ScriptedPolicy(scripted, shuffle_seed=shuffle)
        got = estimate_prefixes(policy, Renderer(), IsFive(), Problem(id="p", question="?"), prefixes, num_rollouts=4, seed=0)
        assert got == expected
    assert [(estimate.soft, estimate.hard) for estimate in got] == [(0.5, 1.0), (0.5, 1.0), (0.0, 0.0), (0.0, 0.0)]
    alone = ScriptedPolicy(scripted)
    estimate_prefixes(alone, Renderer(), IsFive(), Problem(id="p", question="?"), prefixes[2:3], num_rollouts=4, seed=0)
    seeds = {request.prefix_ids: request.seed for request in policy.requests}
    assert alone.requests[0].seed == seeds[1, 2, 3, 9], "a prefix's rollouts do not depend on the others"
    with pytest.raises(ConfigError, match="num_rollouts"):
        estimate_prefixes(alone, Renderer(), IsFive(), Problem(id="p", question="?"), [], num_rollouts=0, seed=0)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 8, 13])
def test_halving_finds_the_first_error_with_few_questions(num_steps):
    """For every place of the error, and for none, with at most ceil(log2(n + 1)) questions."""
    for error in [*range(num_steps), None]:
        asked = []

        def can_succeed(count, error=error, asked=asked):
            asked.append(count)
            return error is None or count <= error

        assert find_first_error(num_steps, can_succeed) == error
        assert len(asked) <= math.ceil(math.log2(num_steps + 1))
        assert all(1 <= count <= num_steps for count in asked)


def test_labels_say_nothing_behind_the_first_error():
    """Good steps, the wrong one, and unknown ones."""
    assert labels_until_error(4, 1) == [1.0, 0.0, None, None]
    assert labels_until_error(2, None) == [1.0, 1.0]
    assert labels_until_error(1, 0) == [0.0]
