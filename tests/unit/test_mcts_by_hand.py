"""Small trees of published methods, worked out by hand from the papers' rules."""

import math

import pytest

from stepladder.testing import make_step
from stepladder.types import Budget, StopReason
from tests.unit.test_mcts_engine import one


def solution(prefix):
    """Return the steps so far, without the prompt."""
    return "".join(map(chr, prefix)).split("\n", 1)[1]


def letters(prefix, index, seed):
    """Sample i is the i-th letter; nothing ends."""
    return make_step("abcdefgh"[index])


def scores(**table):
    """Return a scorer that knows some solutions; 0.5 elsewhere."""
    return lambda prefix: table.get(solution(prefix), 0.5)


def test_rstar_math_by_hand():
    """Children 0.2, 0.9, 0.4 after one descent; the second expands b: 0.1, 0.3, 0.2 of mean 0.2, so b falls to (0.9 + 0.2) / 2 = 0.55.

    The root has N = 2. With c = 2, UCT is 0.55 + 2 sqrt(ln 2 / 2) = 1.727 for b and 0.4 + 2 sqrt(ln 2) = 2.065 for c, which comes third.
    """
    table = scores(a=0.2, b=0.9, c=0.4, ba=0.1, bb=0.3, bc=0.2)
    options = {"policy": letters, "scorer": table, "num_children": 3}
    two = one("rstar-math:code", budget=Budget(num_simulations=2), **options).tree
    assert two.parents == [-1, 0, 0, 0, 2, 2, 2] and two.visits == [2, 1, 2, 1, 1, 1, 1]
    assert two.values[:4] == pytest.approx([(0.5 + 0.2) / 2, 0.2, 0.55, 0.4])
    assert 0.55 + 2 * math.sqrt(math.log(2) / 2) < 0.4 + 2 * math.sqrt(math.log(2))
    assert one("rstar-math:code", budget=Budget(num_simulations=3), **options).tree.parents[7:] == [3, 3, 3]


def test_rest_mcts_by_hand():
    """Scores 0.2, 0.6, 0.4: the best, b, is rolled forward three greedy steps (always a) to 0.8 and is worth (0.6 + 0.8) / 2 = 0.7.

    Second descent: all unvisited, b first. It is worth 0.7 with one visit, and so is the root, by the visit-weighted mean of its children.
    Third descent: b has 0.7 + 0.99 sqrt(ln 2 / 1) = 1.52, c has 0.4 + 1 = 1.4, a 1.2: b's children, worth 0.5 or, for the best of them, the
    mean of 0.5 and its rollout's 0.5; the first comes first.
    """
    table = scores(a=0.2, b=0.6, c=0.4, baaa=0.8)
    options = {"policy": letters, "scorer": table}
    first = one("rest-mcts", budget=Budget(num_simulations=1), **options).tree
    assert first.scores[1:] == [0.2, 0.6, 0.4] and first.values == [None] * 4
    assert (first.generated_tokens, first.policy_calls) == (3 + 3, 2)
    second = one("rest-mcts", budget=Budget(num_simulations=2), **options).tree
    assert second.parents[4:] == [2, 2, 2] and second.visits[:4] == [2, 0, 1, 0]
    assert second.values[:3] == [pytest.approx(0.7), None, pytest.approx(0.7)]
    third = one("rest-mcts", budget=Budget(num_simulations=3), **options).tree
    assert third.parents[7:] == [4, 4, 4] and third.visits[2] == 2
    # The child's 0.5 replaces b's own estimate: a node with children is worth their mean.
    assert third.values[:3] == [pytest.approx(0.5), None, pytest.approx(0.5)]


def test_rest_mcts_stops_at_a_good_solution():
    """A solution that scores 0.9 ends the search at once, one of 0.89 does not."""

    def policy(prefix, index, seed):
        return make_step("=1", stop_reason=StopReason.END) if index == 0 else make_step("abcdefgh"[index])

    budget = Budget(num_simulations=3, max_depth=20)
    for known, reason, simulations in ((0.9, StopReason.VALUE, 1), (0.89, StopReason.SIMULATIONS, 3)):
        result = one("rest-mcts", policy=policy, scorer=lambda prefix, known=known: known if prefix[-1] == ord("1") else 0.5, budget=budget)
        assert (result.stop_reason, result.tree.num_simulations) == (reason, simulations)


def test_mcts_dpo_by_hand():
    """The root is unknown (0.5): children 0.7 and 0.4 gain 0.2 and -0.1, so Q = 0.9 and 0.3, and the root is worth their mean 0.6.

    The second descent takes a. Its children 0.9 and 0.3 gain 0.2 and -0.4: Q = 1.1 and -0.1, mean 0.5. At the root Q_a = 0.2 + 0.5 = 0.7
    with two visits, Q_b = 0.3 with one: (2 * 0.7 + 0.3) / 3.
    """
    options = {"policy": letters, "scorer": scores(a=0.7, b=0.4, aa=0.9, ab=0.3), "num_children": 2}
    first = one("mcts-dpo", budget=Budget(num_simulations=1), **options).tree
    assert first.values == pytest.approx([0.6, 0.7, 0.4])
    second = one("mcts-dpo", budget=Budget(num_simulations=2), **options).tree
    assert second.parents[3:] == [1, 1]
    assert second.values == pytest.approx([(2 * 0.7 + 0.3) / 3, 0.5, 0.4, 0.9, 0.3])


def test_a_committed_step_is_never_left():
    """Two simulations a step: then the search goes on below a, however good b becomes; the whole tree stays in the record."""
    table = scores(a=0.9, b=0.8, aa=0.1, ab=0.0)
    tree = one("mcts-dpo", policy=letters, scorer=table, num_children=2, commit=2, budget=Budget(num_simulations=6, max_depth=9)).tree
    free = one("mcts-dpo", policy=letters, scorer=table, num_children=2, commit=None, budget=Budget(num_simulations=6, max_depth=9)).tree
    assert tree.parents[:5] == free.parents[:5] == [-1, 0, 0, 1, 1]
    assert 2 not in tree.parents and 2 in free.parents


def test_treepo_by_hand():
    """Segments of two tokens: a cut is no end. Two branches of the root, each goes on by two until the text ends at six tokens."""

    def policy(prefix, index, seed):
        text = solution(prefix)
        return make_step(f"={text[0]}", stop_reason=StopReason.END) if len(text) == 4 else make_step("abcdefgh"[index] * 3)

    options = {"policy": policy, "scorer": None, "root_num_children": 2}
    result = one("treepo", budget=Budget(num_simulations=99, max_step_tokens=2), **options)
    assert result.tree.depths == [0] + [1] * 2 + [2] * 4 + [3] * 4
    assert result.tree.stop_reasons[1:7] == ["step"] * 6 and result.tree.stop_reasons[7:] == ["end"] * 4
    assert result.votes == {"a": 4.0, "b": 4.0} and result.stop_reason == StopReason.EXHAUSTED


def test_a_search_stops_when_its_answer_has_settled():
    """Every wave leads to the same answer: with 3 of the last 5, the third wave is the last; waves without any answer do not count."""

    def policy(prefix, index, seed):
        if len(solution(prefix)) == 0 or index:
            return make_step("abcdefgh"[index])
        return make_step("=7", stop_reason=StopReason.END)

    result = one(policy=policy, stop_agreement=3, stop_window=5, budget=Budget(num_simulations=50, max_depth=20))
    assert (result.stop_reason, result.answer) == (StopReason.CONVERGED, "7")
    assert [answer for _, answer in result.anytime] == [None, "7", "7", "7"]
