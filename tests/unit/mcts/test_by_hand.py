"""Small trees of published methods, worked out by hand from the papers' rules."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from stepladder.errors import ConfigError
from stepladder.mcts.strategies.restarts import restart_ranks
from stepladder.testing import ScriptedPolicy, make_step
from stepladder.types import Budget, StopReason
from tests.searches import one


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
    """One simulation goes down to an end and expands every node on its way: only the ends that it finds are backed up.

    Children 0.2, 0.9, 0.4: b is expanded: ba 0.1, bb 0.3 and an end b=1 of 0.8, which is backed up: b has (0.9 + 0.8) / 2 = 0.85, the root
    0.8. The descent goes on below b, where the end is closed: bb. Below it there is only an end, bb=2 of 0.6: bb has (0.3 + 0.6) / 2, b
    (0.9 + 0.8 + 0.6) / 3, the root (0.8 + 0.6) / 2. That was one simulation. The root has N = 2; with c = 1, UCT is 0.767 + sqrt(ln 2 / 3)
    = 1.247 for b, 0.4 + sqrt(ln 2) = 1.233 for c and 1.033 for a: the second simulation goes down to ba, which leads to an end of 0.5.
    """
    table = {"a": 0.2, "b": 0.9, "c": 0.4, "ba": 0.1, "bb": 0.3, "b=1": 0.8, "bb=2": 0.6}

    def policy(prefix, index, seed):
        text = solution(prefix)
        if len(text) == 2:
            return make_step("=2", stop_reason=StopReason.END)
        return make_step("=1", stop_reason=StopReason.END) if text and index == 2 else make_step("abc"[index])

    options = {"policy": policy, "scorer": lambda prefix: table.get(solution(prefix), 0.5), "num_children": 3}
    first = one("rstar-math:code", budget=Budget(num_simulations=1), **options)
    assert first.tree.parents == [-1, 0, 0, 0, 2, 2, 2, 5] and first.tree.num_simulations == 1
    assert first.tree.texts[4:] == ["a", "b", "=1", "=2"] and first.tree.visits == [2, 1, 3, 1, 1, 2, 1, 1]
    expected = [0.7, 0.2, (0.9 + 0.8 + 0.6) / 3, 0.4, 0.1, 0.45, 0.8, 0.6]
    assert first.tree.values == pytest.approx(expected)
    assert (0.9 + 0.8 + 0.6) / 3 + math.sqrt(math.log(2) / 3) > 0.4 + math.sqrt(math.log(2))
    second = one("rstar-math:code", budget=Budget(num_simulations=2), **options)
    assert second.tree.parents[8:] == [4] and second.tree.values[0] == pytest.approx((0.8 + 0.6 + 0.5) / 3)
    # The ends of all levels are there after as many simulations as descents: twelve steps take one.
    deep = one("rstar-math:code", policy=chain_of(12), scorer=None, num_children=1, budget=Budget(num_simulations=1)).tree
    assert max(deep.depths) == 12 and deep.answers[-1] == "1"


def test_rstar_math_without_scores_by_hand():
    """Without a PRM, a child has no visit before a descent goes through it, and the two presets differ in what that is worth.

    Steps a, b, c; below each x, w and an end; below these an end; all ends are wrong. The first descent takes the first child twice: it
    finds an end below a and one below ax, so a and the root have N = 2 and value 0. Then the UCT of a is 0 + sqrt(ln 2 / 2) = 0.589. As
    released, b has the 0 of values in [-1, 1], here 0.5, and no bonus: the second descent takes a again, and w below it. With half of
    the constant a has 0.294, and b is taken. By the publication every child is taken once before any twice.
    """

    def policy(prefix, index, seed):
        text = solution(prefix)
        if len(text) == 2 or (text and index == 2):
            return make_step("=2", stop_reason=StopReason.END)
        return make_step("xw"[index] if text else "abc"[index])

    options = {"policy": policy, "scorer": None, "answers": {"p0": "1"}, "num_children": 3, "budget": Budget(num_simulations=2)}
    first = ["", "a", "b", "c", "x", "w", "=2", "=2"]
    tree = one("rstar-math:code", **{**options, "budget": Budget(num_simulations=1)}).tree
    assert (tree.texts, tree.parents) == (first, [-1, 0, 0, 0, 1, 1, 1, 4])
    assert tree.visits == [2, 2, 0, 0, 1, 0, 1, 1] and tree.values[:3] == [0.0, 0.0, None]
    assert one("rstar-math:code", **options).tree.parents[8:] == [5]
    assert one("rstar-math:code", **options, c=0.5).tree.parents[8:] == [2, 2, 2, 8]
    assert one("rstar-math:paper", **options).tree.parents[8:] == [2, 2, 2, 8]


def test_a_cap_ends_a_descent_on_its_way():
    """Twelve steps to an end in one simulation; after five tokens or calls the last descent is over where it is, like every other."""
    options = {"policy": chain_of(12), "scorer": None, "num_children": 1}
    for cap, reason in (({"max_tokens": 5}, StopReason.TOKENS), ({"max_calls": 5}, StopReason.CALLS)):
        for number in (1, 2):
            result = one("rstar-math:code", budget=Budget(num_simulations=number, **cap), **options)
            assert (result.stop_reason, result.tree.generated_tokens, result.tree.num_simulations) == (reason, 5, 1)


def chain_of(length):
    """Return a policy whose only solution has so many steps."""

    def policy(prefix, index, seed):
        ends = len(solution(prefix)) == length - 1
        return make_step("=1", stop_reason=StopReason.END) if ends else make_step("a")

    return policy


def test_alphamath_backs_an_end_up_when_it_is_new():
    """Root 0.5 unknown, children a 0.9 and an end =1, right: its 1 reaches the root in the first simulation, and it is never selected.

    The root's own estimate is unknown without a score, so 1 is its value. Then a is expanded, brings back 0.9, and a second end, wrong,
    brings 0: the root has (1 + 0.9 + 0) / 3. An end without an answer brings nothing.
    """

    def policy(prefix, index, seed):
        text = solution(prefix)
        if index == 1:
            return make_step("=8" if text else "=7", stop_reason=StopReason.END)
        return make_step("x", stop_reason=StopReason.END) if index == 2 else make_step("a")

    options = {"policy": policy, "scorer": scores(a=0.9), "num_children": 3, "answers": {"p0": "7"}}
    first = one("alphamath:code", budget=Budget(num_simulations=1), **options).tree
    assert first.outcomes[1:] == [None, 1.0, 0.0] and first.visits == [2, 0, 1, 0] and first.values == [1.0, None, 1.0, None]
    result = one("alphamath:code", budget=Budget(num_simulations=2), **options)
    assert result.tree.parents[4:] == [1, 1, 1] and result.tree.visits == [4, 2, 1, 0, 0, 1, 0]
    assert result.tree.values[0] == pytest.approx((1 + 0.9 + 0) / 3) and result.tree.values[1] == pytest.approx(0.45)
    # The answer is at the end of the path of best value.
    assert result.answer == "7"


def test_rest_mcts_is_not_steered_by_verdicts():
    """With labels and without, the same tree grows; the verdicts are recorded beside it."""

    def policy(prefix, index, seed):
        return make_step(f"={index}", stop_reason=StopReason.END) if len(solution(prefix)) == 2 else make_step("abc"[index])

    options = {"policy": policy, "scorer": scores(a=0.6, ab=0.7), "budget": Budget(num_simulations=9)}
    free, labelled = one("rest-mcts", **options).tree, one("rest-mcts", answers={"p0": "2"}, **options).tree
    assert (free.parents, free.values, free.visits) == (labelled.parents, labelled.values, labelled.visits)
    assert 1.0 in labelled.outcomes and set(free.outcomes) == {None}


def test_rest_mcts_by_hand():
    """Scores 0.2, 0.6, 0.4: the best, b, is rolled forward by three steps (a each), the best of which, 0.8, makes it (0.6 + 0.8) / 2 = 0.7.

    It alone has a visit then, and the root, by the visit-weighted mean of its children, the same value. Second descent: with ln 1 = 0, b
    has 0.7, a and c have their scores and the bonus of 1: c is expanded, its first child (all are 0.5) is rolled out at 0.5, and the root
    is worth (0.7 + 0.5) / 2. Third: b has 0.7 + 0.99 sqrt(ln 2) = 1.52, c 0.5 + 0.82, a 1.2. Below b, ba is 0.5 and its rollout finds 0.8
    again: (0.5 + 0.8) / 2 = 0.65 for ba and for b, which has two visits: (2 * 0.65 + 0.5) / 3.
    """
    table = scores(a=0.2, b=0.6, c=0.4, baaa=0.8)
    options = {"policy": letters, "scorer": table}
    first = one("rest-mcts", budget=Budget(num_simulations=1), **options).tree
    assert first.scores[1:] == [0.2, 0.6, 0.4] and first.visits == [1, 0, 1, 0]
    assert first.values[::2] == pytest.approx([0.7, 0.7]) and first.values[1::2] == [None, None]
    assert (first.generated_tokens, first.policy_calls) == (3 + 3, 2)
    second = one("rest-mcts", budget=Budget(num_simulations=2), **options).tree
    assert second.parents[4:] == [3, 3, 3] and second.visits == [2, 0, 1, 1, 1, 0, 0]
    assert [second.values[node] for node in (0, 2, 3, 4)] == pytest.approx([0.6, 0.7, 0.5, 0.5])
    third = one("rest-mcts", budget=Budget(num_simulations=3), **options).tree
    assert third.parents[7:] == [2, 2, 2] and third.visits == [3, 0, 2, 1, 1, 0, 0, 1, 0, 0]
    assert [third.values[node] for node in (0, 2, 7)] == pytest.approx([(2 * 0.65 + 0.5) / 3, 0.65, 0.65])


def test_rstar_by_hand():
    """No PRM. The first child, a, is rolled out: three of four solutions say 7, so a and the root are worth 0.75.

    Next is b, the first without a visit. Two of its three samples end with 7, one with 8: that end is worth 2/3, the other 1/3, and the
    first is backed up. The third descent takes c, none of whose rollouts ends: 0.
    """

    def policy(prefix, index, seed):
        text = solution(prefix)
        if text.startswith("a"):
            return make_step("=8" if index == 3 else "=7", stop_reason=StopReason.END)
        if text.startswith("b"):
            return make_step("=8" if index == 1 else "=7", stop_reason=StopReason.END)
        return make_step("abc"[index % 3])

    options = {"policy": policy, "scorer": None, "rollouts": 4}
    first = one("rstar", budget=Budget(num_simulations=1, max_depth=4), **options)
    assert first.tree.visits == [1, 1, 0, 0] and first.tree.values == [0.75, 0.75, None, None] and first.answer is None
    second = one("rstar", budget=Budget(num_simulations=2, max_depth=4), **options)
    assert second.tree.parents[4:] == [2, 2] and second.tree.answers[4:] == ["7", "8"] and second.tree.visits[2:] == [1, 0, 1, 0]
    assert [second.tree.values[node] for node in (0, 2, 4)] == pytest.approx([(0.75 + 2 / 3) / 2, 2 / 3, 2 / 3])
    assert (second.answer, second.votes) == ("7", {"7": 2.0, "8": 1.0})
    third = one("rstar", budget=Budget(num_simulations=3, max_depth=4), **options)
    assert third.tree.parents[6:] == [3, 3, 3] and third.tree.values[3] == 0.0
    assert third.tree.values[0] == pytest.approx((0.75 + 2 / 3) / 3)


def test_lats_backs_up_the_best_child_alone():
    """Of 0.2, 0.6, 0.4 the second is played out to an end that scores 0.9: it is worth 0.9, the root too, and its siblings nothing yet."""

    def policy(prefix, index, seed):
        return make_step("=1", stop_reason=StopReason.END) if len(solution(prefix)) == 3 else make_step("abc"[index])

    table = {"a": 0.2, "b": 0.6, "c": 0.4, "baa=1": 0.9}
    options = {"policy": policy, "scorer": lambda prefix: table.get(solution(prefix), 0.5), "num_children": 3}
    tree = one("lats:paper", budget=Budget(num_simulations=1), **options).tree
    assert tree.visits == [1, 0, 1, 0] and tree.values[::2] == pytest.approx([0.9, 0.9]) and tree.values[1::2] == [None, None]


def test_q_star_by_hand():
    """A path has (min + last) / 2: the root's children 0.9 and 0.6; below a, aa has 0.5 and the solution a=1 has 0.7.

    No leaf has more than that solution, so the search ends after two expansions. Were it 0.55, b (0.6) would be expanded before it ended;
    and were its last step 1 after one of 0.3, it would have (0.3 + 1) / 2 = 0.65, and win.
    """

    def policy(prefix, index, seed):
        return make_step("=1", stop_reason=StopReason.END) if solution(prefix) == "a" and index else make_step("ab"[index])

    def search(**table):
        known = {"a": 0.9, "b": 0.6, "aa": 0.5, "ba": 0.1, "bb": 0.1, "a=1": 0.7, **table}
        return one(
            "q-star",
            policy=policy,
            scorer=lambda prefix: known[solution(prefix)],
            num_children=2,
            budget=Budget(num_simulations=9, max_depth=3),
        )

    found = search()
    assert (found.stop_reason, found.answer, found.tree.num_simulations) == (StopReason.GOAL, "1", 2)
    assert found.tree.values == pytest.approx([found.tree.values[0], found.tree.values[1], 0.6, 0.5, 0.7])
    assert found.votes == pytest.approx({"1": 0.7})
    later = search(**{"a=1": 0.55})
    assert (later.stop_reason, later.tree.num_simulations, later.tree.parents[5:]) == (StopReason.GOAL, 3, [2, 2])
    weak = search(a=0.3, b=0.2, aa=0.3, **{"a=1": 1.0})
    assert weak.stop_reason == StopReason.GOAL and weak.votes == pytest.approx({"1": 0.65})


def test_particles_by_hand():
    """Four particles: only a has odds worth the name, so all four go on from it; two of the four copies end, and ended ones stay."""

    def policy(prefix, index, seed):
        if solution(prefix) == "a" and index < 2:
            return make_step("=1", stop_reason=StopReason.END)
        return make_step("abcd"[index])

    table = {"a": 1.0, "a=1": 1.0}
    policy = ScriptedPolicy(policy)
    result = one("particle-filter", policy=policy, scorer=lambda prefix: table.get(solution(prefix), 0.0), budget=Budget(num_simulations=9))
    assert [(solution(request.prefix_ids), request.num_samples) for request in policy.requests] == [("", 4), ("a", 4)]
    assert result.tree.texts[5:] == ["=1", "c", "d"] and result.tree.priors[5:] == pytest.approx([0.5, 0.25, 0.25])
    # The next draw takes the ended particle four times: nothing is left to extend.
    assert (result.stop_reason, result.answer) == (StopReason.EXHAUSTED, "1")


def test_particles_are_as_many_as_they_were():
    """While none ends, every generation has as many samples as there are particles; a smaller budget cuts the last ones."""
    policy = ScriptedPolicy(lambda prefix, index, seed: make_step("abcdefgh"[index] + "xy"[seed % 2]))
    one("particle-filter", policy=policy, wave=6, budget=Budget(num_simulations=1000, max_depth=5))
    samples = Counter(len(solution(request.prefix_ids)) for request in policy.requests for _ in range(request.num_samples))
    assert samples == {depth: 6 for depth in (0, 2, 4, 6, 8)}
    cut = one("particle-filter", policy=letters, wave=6, budget=Budget(num_simulations=1000, max_depth=5, max_tokens=8))
    assert cut.tree.generated_tokens == 8 and cut.stop_reason == StopReason.TOKENS


def test_a_certain_step_does_not_branch():
    """Step a has a surprisal of 0.1 nats a token, b of 2: with a threshold of 0.5, a goes on by one step and b by three."""

    def policy(prefix, index, seed):
        return make_step("abc"[index] * 2, logp=(-0.1, -2.0, -2.0)[index])

    tree = one("mcts", policy=policy, branch_entropy=0.5, num_children=3, wave=3, budget=Budget(num_simulations=4)).tree
    families = Counter(tree.texts[parent] for parent in tree.parents[4:])
    assert families == {"aa": 1, "bb": 3, "cc": 3}


def test_rest_mcts_stops_at_a_good_solution():
    """A solution that scores 0.9 ends the search at once, one of 0.89 does not."""

    def policy(prefix, index, seed):
        return make_step("=1", stop_reason=StopReason.END) if index == 0 else make_step("abcdefgh"[index])

    budget = Budget(num_simulations=3, max_depth=20)
    for known, reason, simulations in ((0.9, StopReason.VALUE, 1), (0.89, StopReason.SIMULATIONS, 3)):
        result = one("rest-mcts", policy=policy, scorer=lambda prefix, known=known: known if prefix[-1] == ord("1") else 0.5, budget=budget)
        assert (result.stop_reason, result.tree.num_simulations) == (reason, simulations)


def test_mcts_dpo_by_hand():
    """The released rule is Q = r + gamma V with r = v(s') - v(s), and V = 0 at a leaf: a gain counts once.

    The root is unknown (0.5): children 0.7 and 0.4 gain 0.2 and -0.1, which are their Q, and the root is worth their mean, 0.05. The second
    descent takes a. Its children 0.9 and 0.3 gain 0.2 and -0.4, mean -0.1. At the root Q_a = 0.2 - 0.1 = 0.1 with two visits, Q_b = -0.1
    with one: (2 * 0.1 - 0.1) / 3. Along a path the gains add up to v(last) - v(first).
    """
    options = {"policy": letters, "scorer": scores(a=0.7, b=0.4, aa=0.9, ab=0.3), "num_children": 2}
    first = one("mcts-dpo", budget=Budget(num_simulations=1), **options).tree
    assert first.values == pytest.approx([0.05, 0.0, 0.0])
    second = one("mcts-dpo", budget=Budget(num_simulations=2), **options).tree
    assert second.parents[3:] == [1, 1]
    assert second.values == pytest.approx([(2 * 0.1 - 0.1) / 3, -0.1, 0.0, 0.0, 0.0], abs=1e-6)


def test_the_first_commitment_may_come_later():
    """Three simulations before the first move, one before each other: the fourth is below a, the fifth below a child of a."""
    options = {"policy": letters, "scorer": scores(a=0.9, b=0.9), "num_children": 2, "commit": 1}
    tree = one("mcts-dpo", commit_first=3, budget=Budget(num_simulations=5, max_depth=9), **options).tree
    expanded = list(dict.fromkeys(tree.parents[1:]))
    assert set(expanded[:3]) >= {0, 1, 2} and tree.depths[expanded[4]] > tree.depths[expanded[3]]


def test_a_committed_step_is_never_left():
    """Two simulations a step: then the search goes on below a, however good b becomes; the whole tree stays in the record."""
    table = scores(a=0.9, b=0.8, aa=0.1, ab=0.0)
    tree = one(
        "mcts-dpo", policy=letters, scorer=table, num_children=2, commit=2, commit_first=None, budget=Budget(num_simulations=6, max_depth=9)
    ).tree
    free = one(
        "mcts-dpo",
        policy=letters,
        scorer=table,
        num_children=2,
        commit=None,
        budget=Budget(num_simulations=6, max_depth=9),
    ).tree
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


def test_branches_of_treepo_share_their_width():
    """Four branches: two segments become four by two each, then each goes on by one; where one ends, three are left, of one each."""

    def policy(prefix, index, seed):
        text = solution(prefix)
        return make_step("=1", stop_reason=StopReason.END) if text == "aaaa" else make_step("abcdefgh"[index] * 2)

    options = {"policy": policy, "scorer": None, "root_num_children": 2, "wave": 4}
    tree = one("treepo", budget=Budget(num_simulations=99, max_depth=5, max_step_tokens=2), **options).tree
    assert [tree.depths.count(depth) for depth in range(6)] == [1, 2, 4, 4, 3, 3]
    assert [tree.texts[node] for node in range(7, 11)] == ["=1", "aa", "aa", "aa"]


def test_siblings_of_one_text_are_one_child():
    """Steps "a b", "a  b" and "a b " differ in tokens only: one child with the tokens of the first; all tokens count."""

    def policy(prefix, index, seed):
        return make_step(["a b", "a  b", "a b ", "ab"][index])

    merged = one(policy=policy, merge="text", budget=Budget(num_simulations=1)).tree
    assert merged.texts == ["", "a b", "ab"] and merged.priors == [1.0, 0.75, 0.25] and merged.generated_tokens == 3 + 4 + 4 + 2
    assert len(one(policy=policy, budget=Budget(num_simulations=1)).tree.texts) == 5


def test_a_search_stops_when_its_answer_has_settled():
    """Every wave leads to the same answer: with 3 of the last 5, the third wave is the last; waves without any answer do not count."""

    def policy(prefix, index, seed):
        if len(solution(prefix)) == 0 or index:
            return make_step("abcdefgh"[index])
        return make_step("=7", stop_reason=StopReason.END)

    result = one(policy=policy, stop_agreement=3, stop_window=5, budget=Budget(num_simulations=50, max_depth=20))
    assert (result.stop_reason, result.answer) == (StopReason.CONVERGED, "7")
    assert [answer for _, answer in result.anytime] == [None, "7", "7", "7"]


@pytest.mark.parametrize(("key_of", "reason"), [(str, StopReason.SIMULATIONS), (lambda answer: answer.lstrip("0"), StopReason.CONVERGED)])
def test_an_answer_settles_by_its_key(key_of, reason):
    """Three waves find 7, 07 and 007, each scored better than the one before: they agree by their key, and not as texts."""
    turn = itertools.count()

    def policy(prefix, index, seed):
        if len(solution(prefix)) == 0 or index:
            return make_step("abcdefgh"[index])
        return make_step(f"={'0' * next(turn)}7", stop_reason=StopReason.END)

    settings = {"answer_rule": "best", "stop_agreement": 3, "stop_window": 3, "budget": Budget(num_simulations=4, max_depth=20)}
    result = one(policy=policy, scorer=lambda prefix: 0.4 + 0.1 * solution(prefix).count("0"), key_of=key_of, **settings)
    assert [answer for _, answer in result.anytime] == [None, "7", "07", "007"]
    assert result.stop_reason is reason


@pytest.mark.parametrize(("key_of", "share"), [(str, 1 / 3), (lambda answer: answer.lstrip("0"), 1.0)])
def test_rollouts_agree_by_the_key_of_their_answers(key_of, share):
    """Three rollouts end in 7, 07 and 007: each is a third of the answers as text, and all of them by their key."""

    def policy(prefix, index, seed):
        return make_step("=" + "0" * index + "7", stop_reason=StopReason.END) if solution(prefix) else make_step("a")

    options = {"num_children": 1, "rollouts": 3, "rollout_value": "agreement", "evaluation": "best", "rollout_of": "best"}
    tree = one(policy=policy, key_of=key_of, scorer=None, budget=Budget(num_simulations=1), **options).tree
    assert tree.values[1] == pytest.approx(share)


def test_progressive_widening_by_hand():
    """K(N) = 2.2 sqrt(N): the root has 2 samples at first, a third at N = 1 (2 < 2.2), a fourth at N = 2 (3 < 3.1), none at N = 3 (3.8).

    The policy draws without replacement, one sample when a node is sampled again: c, then d; with p = 0.4, 0.3, 0.2 and 0.05 for a to d.
    The root's priors are those of all its children each time. The fourth simulation goes down, to the best child, c (0.9).
    """
    probabilities = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.05}

    def policy(prefix, index, seed):
        letter = "abcd"[index % 4]
        return make_step(letter, logp=math.log(probabilities[letter]))

    options = {
        "policy": policy,
        "scorer": scores(a=0.2, b=0.4, c=0.9, d=0.1),
        "num_children": 2,
        "widen": "power",
        "widen_base": 2.2,
        "siblings": "distinct",
        "prior": "mean-logp",
    }
    trees = [one(budget=Budget(num_simulations=number), **options).tree for number in (1, 2, 3, 4)]
    assert [tree.texts[1:] for tree in trees[:3]] == [["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]]
    assert trees[0].priors[1:] == pytest.approx([0.4 / 0.7, 0.3 / 0.7])
    assert trees[1].priors[1:] == pytest.approx([0.4 / 0.9, 0.3 / 0.9, 0.2 / 0.9])
    assert trees[2].priors[1:] == pytest.approx([0.4 / 0.95, 0.3 / 0.95, 0.2 / 0.95, 0.05 / 0.95])
    assert trees[0].values[0] == pytest.approx(0.3) and trees[1].values[0] == pytest.approx((0.3 + 0.9) / 2)
    assert trees[2].values[0] == pytest.approx((0.3 + 0.9 + 0.1) / 3) and trees[2].visits == [3, 1, 1, 1, 1]
    assert trees[3].parents[5:] == [3, 3] and trees[3].generated_tokens == 6


def test_a_child_that_is_sampled_again_counts_again():
    """Independent samples a a, then a: one child of three samples; the next sample, b, has a quarter. Both returns of a are its worth."""

    def policy(prefix, index, seed):
        return make_step("b" if len(drawn) == 3 and not drawn.append(1) else drawn.append(1) or "a", logp=-9.0)

    drawn: list[int] = []
    tree = one(
        policy=policy,
        scorer=scores(a=0.8, b=0.4),
        num_children=2,
        widen="power",
        widen_base=3.0,
        budget=Budget(num_simulations=3),
    ).tree
    assert tree.texts == ["", "a", "b"] and tree.priors[1:] == pytest.approx([0.75, 0.25])
    assert tree.values[0] == pytest.approx((0.8 + 0.8 + 0.4) / 3) and tree.visits == [3, 1, 1]


def test_a_node_closes_when_its_children_hold_the_probability():
    """Steps a and b hold 0.6 and 0.395: with less than 0.01 unseen the root is never sampled again, with a bound of 0.001 it is."""

    def policy(prefix, index, seed):
        letter = "abc"[index % 3]
        return make_step(letter, logp=math.log({"a": 0.6, "b": 0.395, "c": 0.005}[letter]))

    options = {"policy": policy, "scorer": scores(), "num_children": 2, "widen": "power", "widen_base": 9.0, "siblings": "distinct"}
    budget = Budget(num_simulations=8, max_depth=1)
    closed = one(budget=budget, **options)
    assert closed.tree.texts == ["", "a", "b"] and closed.stop_reason == StopReason.EXHAUSTED
    assert one(budget=budget, least_unseen=0.001, **options).tree.texts == ["", "a", "b", "c"]


def test_a_descent_stays_at_low_and_high_values():
    """FastMCTS's adaptive stay: a root worth 0.2 or 0.8 is sampled again, one worth 0.5 or 0 is left for its best child."""
    for worth, stays in ((0.2, True), (0.8, True), (0.5, False), (0.0, False)):
        tree = one(
            policy=lambda prefix, index, seed: make_step("abc"[seed % 3], logp=-9.0),
            scorer=lambda prefix, worth=worth: worth,
            num_children=1,
            widen="stay",
            budget=Budget(num_simulations=2),
        ).tree
        assert (tree.depths[-1] == 1) == stays


def test_path_votes_follow_priors_that_change():
    """The solution a=1 has mass 1/2 beside b; when c joins them by another sample, it has a third, and so has the vote."""

    def policy(prefix, index, seed):
        letter = ["a=1", "b", "c"][index % 3]
        return make_step(letter, logp=-9.0, stop_reason=StopReason.END if letter == "a=1" else StopReason.STEP)

    options = {"policy": policy, "scorer": scores(**{"a=1": 1.0}), "num_children": 2, "widen": "power", "widen_base": 3.0}
    votes = [one(budget=Budget(num_simulations=number), siblings="distinct", answer_rule="path-vote", **options).votes for number in (1, 2)]
    assert votes[0]["1"] == pytest.approx(1 / 2) and votes[1]["1"] == pytest.approx(1 / 3)


def test_the_frontier_by_hand():
    """Steps a, b, c have 0.5, 0.3, 0.15; below a are d (0.9) and e (0.06), elsewhere x, y (0.39), z. Priority: path times unseen mass.

    The root gives a, b, then 0.2 is unseen there. Of a 0.5, b 0.3 and the root 0.2, a is next: d, e, and 0.5 * 0.04 are left at a. d has
    0.45: the third expansion is below d, whose x and y have 0.18, and b (0.3) is the fourth. Then the root (0.2) gives c.
    Scores (odds) come in by their power: with b at 0.9, odds 9 to the power of 1, b (2.7) is before a (0.5).
    """
    probabilities = {"": {"a": 0.5, "b": 0.3, "c": 0.15}, "a": {"d": 0.9, "e": 0.06}}

    def policy(prefix, index, seed):
        letters, probability = zip(*probabilities.get(solution(prefix), {"x": 0.39, "y": 0.39, "z": 0.2}).items(), strict=True)
        return make_step(letters[index % len(letters)], logp=math.log(probability[index % len(letters)]))

    def expanded(number, scorer=None, **options):
        tree = one("frontier", policy=policy, scorer=scorer, wave=1, budget=Budget(num_simulations=number), **options).tree
        return tree, "".join(tree.texts[parent] or "-" for parent in dict.fromkeys(tree.parents[1:]))

    tree, order = expanded(4)
    assert order == "-adb" and tree.texts[1:5] == ["a", "b", "d", "e"]
    tree, _ = expanded(5)
    assert (tree.texts[-1], tree.parents[-1]) == ("c", 0)
    assert expanded(2, scores(b=0.9), score_weight=1.0)[1] == "-b"
    # With a bar of 0.4 only a and, below it, d are ever expanded; sampling the root again would give nothing that may go on.
    assert set(expanded(20, least_probability=0.4)[1]) == {"-", "a", "d"}


def test_restarts_by_hand():
    """Draws of two steps each: after one from the root, the next begins at the best node, whose score is divided by 1 + its draws.

    Draw 1: a (0.2), ab (0.8). Ranks: the root, worth the mean of its only child, 0.2 / 2; a 0.2; ab 0.8. Draw 2 from ab: aba (0.5), abab
    (0.3). Ranks: ab 0.8 / 2, aba 0.5. Draw 3 from aba, sample 0 of a new seed: its first step is c, then abac (0.1), abacb (0.45). Ranks:
    aba 0.25, ab 0.4, abacb 0.45, at the depth limit of 5. So draw 4 begins at ab again, and ends at once, right.
    """
    drawn = iter(["a", "b", "a", "b", "c", "b", "=1"])
    table = {"a": 0.2, "ab": 0.8, "aba": 0.5, "abab": 0.3, "abac": 0.1, "abacb": 0.45, "ab=1": 0.9}

    def policy(prefix, index, seed):
        step = next(drawn)
        return make_step(step, stop_reason=StopReason.END if step == "=1" else StopReason.STEP)

    options = {"policy": policy, "scorer": scores(**table), "wave": 1, "draw_steps": 2}
    result = one("restart", budget=Budget(num_simulations=4, max_depth=5), **options)
    tree = result.tree
    assert tree.texts == ["", "a", "b", "a", "b", "c", "b", "=1"]
    assert tree.parents == [-1, 0, 1, 2, 3, 3, 5, 2]
    assert tree.stop_reasons[6:] == ["depth", "end"] and result.answer == "1"
    # Draws are backed up from their last nodes: 0.8 at ab itself, then 0.3 below aba, 0 at the limit, and 0.9 at the end.
    assert tree.values[2] == pytest.approx((0.8 + 0.3 + 0.0 + 0.9) / 4) and tree.visits[:4] == [4, 4, 4, 2]


def test_restarts_without_a_prm_draw_to_the_end():
    """Nothing would tell from which step to go on: draws of one step would never get beyond the first."""
    drawn = iter(["a", "b", "=1"])

    def policy(prefix, index, seed):
        step = next(drawn)
        return make_step(step, stop_reason=StopReason.END if step == "=1" else StopReason.STEP)

    tree = one("restart", policy=policy, budget=Budget(num_simulations=1), scorer=None, draw_steps=1).tree
    assert tree.texts == ["", "a", "b", "=1"] and tree.stop_reasons[-1] == "end"


def test_restarts_go_on_from_first_samples():
    """The tree of ``test_restarts_by_hand``, whose first draw was sampled before the search: it costs neither tokens nor a call.

    The steps of the other three draws have five tokens and the two of "=1". The first sample counts as the draw from the root.
    """
    drawn = iter(["a", "b", "c", "b", "=1"])
    table = {"a": 0.2, "ab": 0.8, "aba": 0.5, "abab": 0.3, "abac": 0.1, "abacb": 0.45, "ab=1": 0.9}

    def policy(prefix, index, seed):
        step = next(drawn)
        return make_step(step, stop_reason=StopReason.END if step == "=1" else StopReason.STEP)

    options = {"policy": policy, "scorer": scores(**table), "wave": 1, "draw_steps": 2}
    samples = {"p0": ((make_step("a"), make_step("b")),)}
    result = one("restart", budget=Budget(num_simulations=4, max_depth=5), first_samples=samples, **options)
    tree = result.tree
    assert tree.texts == ["", "a", "b", "a", "b", "c", "b", "=1"]
    assert tree.parents == [-1, 0, 1, 2, 3, 3, 5, 2]
    assert tree.scores[1:3] == [0.2, 0.8] and result.answer == "1"
    assert tree.values[2] == pytest.approx((0.8 + 0.3 + 0.0 + 0.9) / 4) and tree.visits[:4] == [4, 4, 4, 2]
    assert tree.generated_tokens == sum(map(len, tree.token_ids[3:])) == 6
    assert tree.policy_calls == 3 and tree.num_simulations == 4 and result.failures.num_samples == 3


def test_first_samples_may_be_longer_than_draws_and_may_solve_the_problem():
    """A whole sample of four steps enters where draws have two; a right one ends a search that stops at a right answer, without a call."""

    def nothing(prefix, index, seed):
        raise AssertionError("nothing is drawn")

    right = (make_step("a"), make_step("b"), make_step("c"), make_step("=1", stop_reason=StopReason.END))
    wrong = (make_step("a"), make_step("=2", stop_reason=StopReason.END))
    options = {"policy": nothing, "scorer": scores(), "wave": 1, "draw_steps": 2, "stop_value": 0.5}
    tree = one("restart", answers={"p0": "1"}, first_samples={"p0": (wrong, right), "p1": (wrong,)}, **options).tree
    assert tree.parents == [-1, 0, 1, 1, 3, 4] and tree.outcomes == [None, None, 0.0, None, None, 1.0]
    assert (tree.generated_tokens, tree.policy_calls, tree.num_simulations) == (0, 0, 2)
    with pytest.raises(ConfigError, match="first samples need a method that draws solutions, such as restart: got 'mcts'"):
        one("mcts", first_samples={"p0": (right,)})


def test_ranks_of_restarts_by_hand():
    """Scores 0.6 and 0.2 below the root, one draw from the first: 0.6 / 2; a root with one draw is worth 0.4 / 2; power 0 forgets draws."""
    scores_of = np.array([[np.nan, 0.6, 0.2, 0.9, np.nan]])
    depths, draws = np.array([[0, 1, 1, 2, 2]]), np.array([[1, 1, 0, 0, 0]])
    goes_on = np.array([[True, True, True, False, True]])
    assert restart_ranks(scores_of, depths, goes_on, draws, power=1.0)[0].tolist() == pytest.approx([0.2, 0.3, 0.2, -np.inf, -np.inf])
    assert restart_ranks(scores_of, depths, goes_on, draws, power=0.0)[0].tolist() == pytest.approx([0.4, 0.6, 0.2, -np.inf, -np.inf])


@pytest.mark.parametrize("priority", ["deepsearch", "probability"])
def test_no_step_is_too_long_for_a_frontier(priority):
    """A step of 2,000 tokens at 0.4 nats has a probability of e^-800, which no float holds; without a least one it is expanded."""

    def policy(prefix, index, seed):
        return make_step("ab"[index % 2] * 2000, logp=-0.4)

    budget = Budget(num_simulations=3, max_depth=3, max_step_tokens=2000)
    tree = one("best-first", policy=policy, scorer=None, num_children=2, budget=budget, priority=priority).tree
    assert max(tree.depths) >= 2


def test_deepsearch_by_hand():
    """The score of a leaf is that of its parent: below a (0.9) before below the root and below b (0.1), and of equal ones the deeper."""
    options = {"policy": letters, "scorer": scores(a=0.9, b=0.1, aa=0.2, ab=0.2), "num_children": 2}
    two, three = (one("deepsearch", budget=Budget(num_simulations=number), **options).tree for number in (2, 3))
    # The root's mean is (0.5 + 0.2) / 2 and that of a (0.9 + 0.2) / 2: b has tanh(-0.3), the children of a have tanh(0.1).
    assert two.values[:2] == pytest.approx([0.35, 0.55])
    assert three.parents[1:] == [0, 0, 1, 1, 3, 3]
