"""An exact cap on tokens is never exceeded, whatever the method; by hand for each family of methods."""

import pytest

from stepladder.mcts.methods import METHODS
from stepladder.testing import make_step
from stepladder.types import Budget, StopReason
from tests.searches import one, run


def spent(result):
    """Return the tokens after each wave."""
    return [tokens for tokens, _ in result.anytime]


def capped(max_tokens, **limits):
    """Return a budget that an exact cap on tokens ends."""
    return Budget(num_simulations=max_tokens, max_tokens=max_tokens, exact_tokens=True, **limits)


def three(prefix, index, seed):
    """Every step has three tokens and is another one; nothing ends."""
    return make_step(f"{index}ab")


def test_a_tree_by_hand():
    """Steps of 3 tokens, 4 after a node: 12 for the root's, and then 6 tokens are allowed for each sample, twice the mean.

    Of 42, 30 are left: one leaf of 4 samples fits (24), a second one does not. 18 are left: 3 samples. 9 are left: 1 sample, and 1 of 6,
    and 1 of 3, which is what a mean sample takes. Nothing is left.
    """
    result = one("mcts", policy=three, budget=capped(42, max_depth=9), wave=8, num_children=4)
    assert spent(result) == [12, 24, 33, 36, 39, 42]
    assert result.stop_reason == StopReason.TOKENS and set(result.tree.stop_reasons[1:]) == {"step"}
    # With 44, 2 are left in the end, less than a mean sample.
    assert spent(one("mcts", policy=three, budget=capped(44, max_depth=9), wave=8, num_children=4))[-1] == 42


def test_a_step_that_does_not_fit_is_cut():
    """Four samples share ten tokens, two each, and of nothing is more asked than is left."""
    result = one("mcts", policy=three, budget=capped(10, max_depth=9), wave=8, num_children=4)
    assert result.tree.texts[1:] == ["0a", "1a", "2a", "3a"] and result.tree.stop_reasons[1:] == ["length"] * 4
    assert result.tree.generated_tokens == 8
    # Three tokens are three samples of one.
    assert one("mcts", policy=three, budget=capped(3), num_children=4).tree.texts[1:] == ["0", "1", "2"]


def test_a_beam_by_hand():
    """A beam of 2 with 2 samples each: 4 at the root (12 tokens), then 2 leaves of 2 samples where 24 fit, then 1 leaf of 2, or of 1."""
    result = one("beam", policy=three, budget=capped(45, max_depth=9), wave=2, num_children=2)
    # 33 are left: 33 / (2 x 6) = 2 leaves. 21: 1 leaf of 2. 15: the same. 9: 1 of 1. 6, 3: the same.
    assert spent(result) == [12, 24, 30, 36, 39, 42, 45]


def four_steps(prefix, index, seed):
    """A solution is three letters and an end, eight tokens; sample 2 of a request never ends."""
    begin = prefix.index(ord("\n")) + 1
    if index != 2 and len(prefix) - begin >= 6:
        return make_step(f"={index}", stop_reason=StopReason.END)
    return make_step("abcdefgh"[index] + "\n")


def test_samples_by_hand():
    """Solutions of 8 tokens, at most 5 steps of 4: of 70, the first request can have 3 draws at most, since one may take 20 tokens.

    The third one is as long as it may be, 5 steps of 2. So 26 are spent, 8.67 are the mean and 17.3 allowed: 2 draws of the 44 left, 1 of
    28, 1 of 20, 1 of 12, for which that is enough, and none of 4.
    """
    result = one("best-of-n", policy=four_steps, budget=capped(70, max_depth=5, max_step_tokens=4), wave=8)
    assert spent(result) == [26, 42, 50, 58, 66] and result.stop_reason == StopReason.TOKENS
    assert result.tree.num_simulations == 3 + 2 + 1 + 1 + 1


def test_a_solution_that_does_not_fit_is_cut():
    """Where nothing is known of the length, one draw may have all; it is cut at the cap."""
    result = one("best-of-n", policy=lambda *_: make_step("a\n"), budget=capped(7, max_depth=9), wave=8)
    assert result.tree.token_ids[1:] == [[97, 10], [97, 10], [97, 10], [97]] and result.tree.stop_reasons[-1] == "length"
    # A step that ends where the cap does is whole, and its solution is cut.
    result = one("best-of-n", policy=lambda *_: make_step("a\n"), budget=capped(6, max_depth=9), wave=8)
    assert result.tree.token_ids[1:] == [[97, 10]] * 3 and result.tree.stop_reasons[1:] == ["step", "step", "length"]


def test_restarts_by_hand():
    """Draws of 2 steps, 6 tokens, that others go on: the first request may take 2 x 4 each, so 3 of 8; then 12 are allowed for each."""
    result = one("restart", policy=three, budget=capped(26, max_depth=8, max_step_tokens=4), wave=8, draw_steps=2)
    # 26 / (8 x 4) is no draw at all, so one. 20 are left, 14, 8: one draw each. 2 are left.
    assert spent(result) == [6, 12, 18, 24]


def test_rollouts_share_what_the_samples_of_their_leaf_leave():
    """Two children of 3 tokens leave 18 of 24 for two rollouts, 9 each: three steps."""
    options = {"policy": three, "scorer": None, "rollouts": 1, "num_children": 2, "answers": {"p0": "1"}}
    result = one("mcts", budget=capped(24, max_depth=9), **options)
    assert result.tree.generated_tokens == 24 and len(result.tree.parents) == 3
    # 7 leave one token, which two rollouts cannot share.
    assert one("mcts", budget=capped(7, max_depth=9), **options).tree.generated_tokens == 6


@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_method_exceeds_the_cap(method):
    """Nor does it spend little, nor does a cap change anything that is far away."""
    limits = {"max_depth": 5, "max_step_tokens": 5}
    for cap in (1, 5, 23, 60, 200):
        for result in run(method, budget=capped(cap, **limits)).values():
            assert result.tree.generated_tokens <= cap
            if result.stop_reason == StopReason.TOKENS:
                assert result.tree.generated_tokens >= cap / 4, cap
    near, far = Budget(num_simulations=6, **limits), Budget(num_simulations=6, max_tokens=100_000, exact_tokens=True, **limits)
    assert run(method, budget=near) == run(method, budget=far)
