"""Labels from rollouts: counting on a scripted policy, the binary search for the first error, and values of a tree's nodes."""

import math

import pytest

from stepladder.data.labels.rollouts import (
    Estimate,
    Prefix,
    estimate_prefixes,
    find_first_errors,
    first_error_values,
    labels_until_error,
    rollout_values,
)
from stepladder.data.labels.value_rows import value_rows
from stepladder.errors import ConfigError
from stepladder.testing import ScriptedPolicy, error_step
from stepladder.types import Failures, Problem, Step, StopReason, Verdict
from tests.trees import random_tree, tree

PROBLEM = Problem(id="p", question="?")


class Renderer:
    hash = "r"

    def prompt_ids(self, problem):
        return (1, 2)

    def extract_answer(self, text):
        return text.rpartition("=")[2] or None

    def decode(self, token_ids):
        return "".join(f"[{i}]" for i in token_ids)


class IsFive:
    def grade(self, answers):
        return [Verdict(correct=answer == "5", reason="") for _, answer in answers]


def scripted(prefix_ids, sample, seed):
    """Return a step, then an answer: after token 9 never right, otherwise right in every second sample."""
    if prefix_ids[-1] != 7:
        return Step(token_ids=(7,), logps=(0.0,), text="so\n", stop_reason=StopReason.STEP)
    right = 9 not in prefix_ids and sample % 2 == 0
    return Step(token_ids=(8,), logps=(0.0,), text="=5" if right else "=6", stop_reason=StopReason.END)


def test_rollouts_that_failed_are_counted_and_say_nothing():
    """A failed rollout is no wrong one: it is left out of the share, and a prefix without any other has no value."""

    def failing(prefix_ids, sample, seed):
        unlucky = 9 in prefix_ids or sample == 1
        return error_step(f"gone for {sample}") if unlucky else scripted(prefix_ids, sample, seed)

    prefixes = [Prefix(PROBLEM, ids) for ids in ((3,), (3, 9))]
    some, none = estimate_prefixes(ScriptedPolicy(failing), Renderer(), IsFive(), prefixes, num_rollouts=4, seed=0)
    assert some == Estimate(2, 3, 6, Failures(num_samples=4, num_failed=1, first_message="gone for 1"))
    assert (some.soft, some.hard) == (2 / 3, 1.0)
    assert none == Estimate(0, 0, 0, Failures(num_samples=4, num_failed=4, first_message="gone for 0"))
    assert (none.soft, none.hard) == (None, None)
    record = tree((-1, None, None), (0, None, None))
    assert rollout_values([record], lambda asked: [none] * len(asked)) == [[None, None]]


def test_rollouts_from_every_prefix_are_counted():
    """Half of four rollouts, of two tokens each, are right without token 9 and none with it, whatever order the results arrive in."""
    prefixes = [Prefix(PROBLEM, ids) for ids in ((), (3,), (3, 9), (3, 9, 4))]
    expected = [Estimate(right, 4, 8, Failures(num_samples=4)) for right in (2, 2, 0, 0)]
    for shuffle in (None, 5):
        policy = ScriptedPolicy(scripted, shuffle_seed=shuffle)
        got = estimate_prefixes(policy, Renderer(), IsFive(), prefixes, num_rollouts=4, seed=0)
        assert got == expected
    assert [(estimate.soft, estimate.hard) for estimate in got] == [(0.5, 1.0), (0.5, 1.0), (0.0, 0.0), (0.0, 0.0)]
    alone = ScriptedPolicy(scripted)
    estimate_prefixes(alone, Renderer(), IsFive(), prefixes[2:3], num_rollouts=4, seed=0)
    seeds = {request.prefix_ids: request.seed for request in policy.requests}
    assert alone.requests[0].seed == seeds[1, 2, 3, 9], "a prefix's rollouts do not depend on the others"
    with pytest.raises(ConfigError, match="num_rollouts"):
        estimate_prefixes(alone, Renderer(), IsFive(), [], num_rollouts=0, seed=0)


def test_a_rollout_that_was_cut_is_not_right():
    """Its text states the right answer, but it did not end: the search calls it wrong, and so do the targets."""
    for reason, right in ((StopReason.END, 3), (StopReason.LENGTH, 0), (StopReason.STEP, 0)):
        policy = ScriptedPolicy(lambda *_, reason=reason: Step(token_ids=(8,), logps=(0.0,), text="=5", stop_reason=reason))
        (estimate,) = estimate_prefixes(policy, Renderer(), IsFive(), [Prefix(PROBLEM, ())], num_rollouts=3, seed=0, max_steps=1)
        assert (estimate.right, estimate.total) == (right, 3)


def test_halving_finds_every_first_error_with_few_questions():
    """For solutions of all lengths at once, every place of the error and none: at most ceil(log2(n + 1)) questions of each."""
    cases = [(length, error) for length in (0, 1, 2, 3, 8, 13) for error in [*range(length), None]]
    asked = [0] * len(cases)

    def can_succeed(questions):
        for i, count in questions:
            asked[i] += 1
            assert 1 <= count <= cases[i][0]
        return [cases[i][1] is None or count <= cases[i][1] for i, count in questions]

    assert find_first_errors([length for length, _ in cases], can_succeed) == [error for _, error in cases]
    assert all(count <= math.ceil(math.log2(length + 1)) for count, (length, _) in zip(asked, cases, strict=True))


def test_labels_say_nothing_behind_the_first_error():
    """Good steps, the wrong one, and unknown ones."""
    assert labels_until_error(4, 1) == [1.0, 0.0, None, None]
    assert labels_until_error(2, None) == [1.0, 1.0]
    assert labels_until_error(1, 0) == [0.0]


class Asked:
    """Answers from a table over prefixes and remembers the questions."""

    def __init__(self, right):
        self.right, self.prefixes = right, []

    def __call__(self, prefixes):
        self.prefixes += [prefix.token_ids for prefix in prefixes]
        return [Estimate(self.right(prefix.token_ids), 4) for prefix in prefixes]


# A wrong solution of four steps (1 2 3 4), a right one that leaves it after two (5), and a wrong one of two steps (6 7).
SOLUTIONS = tree(
    (-1, None, None),
    (0, None, None),
    (1, None, None),
    (2, None, None),
    (3, None, 0.0),
    (2, None, 1.0),
    (0, None, None),
    (6, None, 0.0),
)


def test_values_of_nodes_are_shares_of_their_rollouts():
    """Leaves are worth their outcome, the root nothing, equal prefixes are asked about once."""
    ask = Asked(lambda path: 3 if 103 not in path else 1)
    assert rollout_values([SOLUTIONS, SOLUTIONS], ask) == [[None, 0.75, 0.75, 0.25, 0.0, 1.0, 0.75, 0.0]] * 2
    assert sorted(ask.prefixes) == [(101,), (101, 102), (101, 102, 103), (106,)]
    hard = rollout_values([SOLUTIONS], Asked(lambda path: int(106 in path)), hard=True)
    assert hard == [[None, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]]


def test_first_errors_of_a_tree_cost_few_rollouts():
    """Step 3 is the first error of the long solution: 2 has a right leaf below and is not asked. Step 6 fails, so 7 has no label."""
    ask = Asked(lambda path: 0)
    assert first_error_values([SOLUTIONS], ask) == [[None, 1.0, 1.0, 0.0, None, 1.0, 0.0, None]]
    assert sorted(ask.prefixes) == [(101, 102, 103), (106,)]
    good = Asked(lambda path: 1)
    assert first_error_values([SOLUTIONS], good) == [[None, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]]


@pytest.mark.parametrize("seed", range(20))
def test_labels_of_random_trees_are_monotone_where_the_policy_is(seed):
    """Where success depends on how deep a prefix is, labels are 1 above the first error and 0 on it, and rows can be made of them."""
    record = random_tree(seed)
    (labels,) = first_error_values([record], Asked(lambda path: int(len(path) <= 2)))
    for node, label in enumerate(labels):
        if label == 0.0:
            above = record.parents[node]
            assert above == 0 or labels[above] == 1.0
    rows = value_rows([record], given=[labels]).rows
    assert sum(target is not None for row in rows for target in row.targets) == sum(
        label is not None and bool(record.token_ids[node]) for node, label in enumerate(labels) if node
    )


class Whole(Renderer):
    """The whole solution is the answer."""

    def extract_answer(self, text):
        return text


class Longer:
    """A third of a point for every character, up to one."""

    def grade(self, answers):
        return [Verdict(correct=len(answer) >= 9, reason="", credit=min(len(answer) / 9, 1.0)) for _, answer in answers]


def test_whole_solutions_include_the_prefix_and_earn_partial_credit():
    """The grader sees the steps of the prefix before the rollout: "[3]=5" and the like, two of them with 5 and 8 characters."""
    policy = ScriptedPolicy(
        lambda prefix, index, seed: Step(token_ids=(8,), logps=(0.0,), text="=5" * (index + 1), stop_reason=StopReason.END)
    )
    (short, long) = estimate_prefixes(
        policy, Whole(), Longer(), [Prefix(PROBLEM, (3,)), Prefix(PROBLEM, (3, 4))], num_rollouts=2, seed=0, max_steps=2
    )
    assert (short.right, short.soft, short.hard) == (0, pytest.approx((5 / 9 + 7 / 9) / 2), 0.0)
    assert (long.right, long.soft, long.hard) == (1, pytest.approx((8 / 9 + 1) / 2), 1.0)
