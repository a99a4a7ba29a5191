"""Budgets per problem: every rule by hand, the knapsack against exhaustive search, and the seeds of further trees."""

import itertools
import random
from typing import Any, get_args

import pytest

from stepladder.errors import ConfigError
from stepladder.mcts.allocation import (
    Allocation,
    ByPassRate,
    Knapsack,
    ProblemState,
    PromptCurriculum,
    Uniform,
    UnsolvedFirst,
    knapsack_counts,
    knapsack_value,
    scaled,
)
from stepladder.types import Budget
from tests import searches

BASE = Budget(num_simulations=8, max_tokens=100)


def states(**known: dict[str, Any]) -> list[ProblemState]:
    """Return what is known of some problems, by id."""
    return [ProblemState(problem_id=key, **facts) for key, facts in known.items()]


def simulations(rule: Allocation, given: list[ProblemState], *, seed: int = 0) -> dict[str, int]:
    """Return the simulations of the next pass, by problem."""
    return {key: budget.num_simulations for key, budget in rule.next_pass(given, base=BASE, seed=seed).items()}


def test_uniform_gives_every_problem_its_trees() -> None:
    """Two trees each, one a pass."""
    rule = Uniform(trees_per_problem=2)
    assert simulations(rule, states(a={}, b={})) == {"a": 8, "b": 8}
    assert simulations(rule, states(a={"trees": 1, "solved": True}, b={"trees": 1})) == {"a": 8, "b": 8}
    assert simulations(rule, states(a={"trees": 2}, b={"trees": 2})) == {}


def test_solved_problems_leave_and_the_others_get_larger_trees() -> None:
    """Problem a is solved by its first tree, b has all of its three; c gets its second tree, twice the size."""
    rule = UnsolvedFirst(trees_per_problem=3, growth=2)
    given = states(a={"trees": 1, "solved": True}, b={"trees": 3}, c={"trees": 1})
    assert rule.next_pass(given, base=BASE, seed=0) == {"c": Budget(num_simulations=16, max_tokens=200)}
    assert simulations(rule, states(a={}, b={})) == {"a": 8, "b": 8}
    # What graded samples have solved needs no search.
    assert simulations(rule, states(a={"solved": True, "sampled_tokens": 50}, b={"sampled_tokens": 50})) == {"b": 8}


def test_problems_of_earlier_rounds_can_be_left_out() -> None:
    """By default a problem that an earlier round solved is searched again."""
    given = states(a={"solved_before": True}, b={})
    assert simulations(UnsolvedFirst(), given) == {"a": 8, "b": 8}
    assert simulations(UnsolvedFirst(skip_solved=True), given) == {"b": 8}


def test_a_pool_is_spent_on_the_unsolved_and_not_beyond() -> None:
    """Pool of 4 x 150 = 600 tokens. After 380 for four trees, 95 each, 220 are left: two more trees, for those with the fewest tokens."""
    rule = UnsolvedFirst(trees_per_problem=9, pool_tokens=150)
    spent = {"a": {"tokens": 95, "solved": True}, "b": {"tokens": 110}, "c": {"tokens": 80}, "d": {"tokens": 95}}
    given = states(**{key: {"trees": 1, **facts} for key, facts in spent.items()})
    assert simulations(rule, given) == {"c": 8, "d": 8}
    done = states(**{key: {"trees": 2, "tokens": 150, "solved": False} for key in "abcd"})
    assert simulations(rule, done) == {}
    few = states(a={"trees": 1, "tokens": 95, "solved": True}, b={"trees": 1, "tokens": 95})
    assert simulations(rule, few) == {"b": 8}


def test_graded_samples_come_out_of_the_pool() -> None:
    """Two problems share 300 tokens. Samples of 300 leave nothing; of 200, 50 for each first tree; of 100, the caps of 100 fit."""
    rule = UnsolvedFirst(pool_tokens=150)
    for sampled, cap in ((150, None), (100, 50), (50, 100), (0, 100)):
        budgets = rule.next_pass(states(a={"sampled_tokens": sampled}, b={"sampled_tokens": sampled}), base=BASE, seed=0)
        assert budgets == ({} if cap is None else dict.fromkeys("ab", Budget(num_simulations=8, max_tokens=cap)))
    # What the samples of one have solved leaves more to the other, up to its cap.
    solved = rule.next_pass(states(a={"sampled_tokens": 130, "solved": True}, b={"sampled_tokens": 130}), base=BASE, seed=0)
    assert solved == {"b": Budget(num_simulations=8, max_tokens=40)}


def test_larger_trees_take_more_of_the_pool() -> None:
    """Trees of 1, then 4 times the size cost 100 and 400; of 2 x 600 tokens 200 are left after that, too little for one of 16 times."""
    rule = UnsolvedFirst(trees_per_problem=9, growth=4, pool_tokens=600)
    assert set(simulations(rule, states(a={"trees": 1, "tokens": 100}, b={"trees": 1, "tokens": 100}))) == {"a", "b"}
    assert simulations(rule, states(a={"trees": 2, "tokens": 500}, b={"trees": 2, "tokens": 500})) == {}


@pytest.mark.parametrize("seed", range(20))
def test_a_pool_is_never_exceeded_by_trees_within_their_means(seed: int) -> None:
    """Whatever was sampled and solved, and however trees grow: trees that take their caps fit into the pool."""
    rng = random.Random(seed)
    rule = UnsolvedFirst(trees_per_problem=rng.randint(1, 6), growth=rng.randint(1, 3), pool_tokens=rng.randint(100, 400))
    found = {f"p{i}": {"trees": 0, "tokens": 0, "sampled_tokens": rng.randint(0, 500), "solved": False} for i in range(rng.randint(1, 7))}
    before = sum(facts["sampled_tokens"] for facts in found.values())
    while budgets := rule.next_pass(states(**found), base=BASE, seed=1):
        for key, budget in budgets.items():
            found[key]["trees"] += 1
            found[key]["tokens"] += budget.max_tokens or 0
            found[key]["solved"] = rng.random() < 0.3
    assert sum(facts["tokens"] for facts in found.values()) <= max(rule.pool_tokens * len(found) - before, 0)


def test_knapsack_value_by_hand() -> None:
    """At p = 1/2 with 2 tries: (1 - 1/4 - 1/4) / 8; one try cannot be right and wrong; what is always or never right teaches nothing."""
    assert knapsack_value(0.5, 2) == pytest.approx(1 / 16)
    assert knapsack_value(0.25, 3) == pytest.approx((1 - 1 / 64 - 27 / 64) * 0.25 * 0.5625)
    assert knapsack_value(0.3, 1) == pytest.approx(0.0)
    assert knapsack_value(0.0, 5) == knapsack_value(1.0, 5) == 0.0


@pytest.mark.parametrize("seed", range(12))
def test_knapsack_counts_equal_exhaustive_search(seed: int) -> None:
    """Over all ways to share the total, no sum of values is larger; nothing is left over, and the bounds hold."""
    rng = random.Random(seed)
    rates = [rng.choice([0.0, 1.0, rng.random(), rng.random()]) for _ in range(4)]
    least, most = rng.choice([(1, 5), (2, 6)])
    total = rng.randint(4 * least, 4 * most)
    counts = knapsack_counts(rates, total=total, least=least, most=most)
    assert sum(counts) == total
    assert all(least <= count <= most for count in counts)
    ways = (way for way in itertools.product(range(least, most + 1), repeat=4) if sum(way) == total)
    best = max(sum(map(knapsack_value, rates, way)) for way in ways)
    assert sum(map(knapsack_value, rates, counts)) == pytest.approx(best, abs=1e-12)


def test_what_the_knapsack_cannot_use_goes_to_the_unsolved() -> None:
    """One problem that can gain is full at 4; of the six left, the two never solved get theirs in turn, the always solved one stays."""
    assert knapsack_counts([0.4, 0.0, 1.0, 0.0], total=4 + 3 + 1 + 2, least=1, most=4) == [4, 3, 1, 2]
    assert knapsack_counts([0.0, 1.0], total=7, least=1, most=4) == [4, 3]


def test_knapsack_gives_tokens_in_proportion() -> None:
    """16 simulations in all: the even problem gets more than the easy one, the caps follow, and there is one pass."""
    rule = Knapsack(least=2, most=14)
    given = states(easy={"pass_rate": 0.95}, even={"pass_rate": 0.4})
    budgets = rule.next_pass(given, base=BASE, seed=0)
    assert sum(budget.num_simulations for budget in budgets.values()) == 16
    assert budgets["even"].num_simulations > budgets["easy"].num_simulations
    assert all(budget.max_tokens == round(100 * budget.num_simulations / 8) for budget in budgets.values())
    assert rule.next_pass(states(easy={"trees": 1}, even={}), base=BASE, seed=0) == {}
    assert simulations(rule, states(a={}, b={})) == {"a": 8, "b": 8}


def test_the_curriculum_takes_the_middle() -> None:
    """Half of four: .4 and .7 are nearest to 1/2; unknown rates count as that and come first; equal ones change with the seed."""
    rule = PromptCurriculum(share=0.5)
    known = {"a": {"pass_rate": 0.0}, "b": {"pass_rate": 0.4}, "c": {"pass_rate": 0.7}, "d": {"pass_rate": 1.0}}
    assert set(simulations(rule, states(**known))) == {"b", "c"}
    assert set(simulations(rule, states(**known, e={}, f={}))) == {"e", "f", "b"}
    unknown = states(**{f"p{index}": {} for index in range(8)})
    chosen = {frozenset(simulations(rule, unknown, seed=seed)) for seed in range(5)}
    assert all(len(each) == 4 for each in chosen)
    assert len(chosen) > 1
    assert simulations(rule, states(a={"trees": 1})) == {}


def test_trees_by_pass_rate() -> None:
    """Fifths as in OREAL, the upper end of a range included; three ranges with zeros filter out what is never or always solved."""
    rule = ByPassRate()
    rates = {"a": 0.0, "b": 0.2, "c": 0.21, "d": 0.6, "e": 0.8, "f": 0.81, "g": 1.0}
    for trees, expected in enumerate([set("abcdefg"), set("abcde"), set("abcd"), set("abcd"), set("ab"), set("ab"), set()]):
        assert set(simulations(rule, states(**{key: {"pass_rate": rate, "trees": trees} for key, rate in rates.items()}))) == expected
    middle = ByPassRate(trees=(0, 1, 0))
    assert simulations(middle, states(a={"pass_rate": 0.1}, b={"pass_rate": 0.5}, c={"pass_rate": 0.9}, d={})) == {"b": 8, "d": 8}


@pytest.mark.parametrize("rule", get_args(Allocation))
def test_rules_end_and_depend_on_states_alone(rule: type[Allocation]) -> None:
    """Whatever the passes find, the rule ends, gives only known problems positive caps, and decides the same again."""
    made, rng = rule(), random.Random(3)
    found = {f"p{index}": {"pass_rate": rng.choice([None, rng.random()]), "trees": 0, "solved": False, "tokens": 0} for index in range(9)}
    for _ in range(10):
        budgets = made.next_pass(states(**found), base=BASE, seed=1)
        assert budgets == made.next_pass(states(**found), base=BASE, seed=1)
        if not budgets:
            break
        assert all(budget.num_simulations >= 1 for budget in budgets.values())
        for key in budgets:
            found[key]["trees"] += 1
            found[key]["tokens"] += 90
            found[key]["solved"] |= rng.random() < 0.3
    else:
        raise AssertionError("no end after ten passes")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(trees_per_problem=0), "trees_per_problem must be a whole number >= 1: got 0"),
        (lambda: Knapsack(least=5, most=4), "least must be at most most: got 5 and 4"),
        (lambda: Knapsack(least=9).check_with(BASE), "least and most must enclose search.simulations: got 9, 128 and 8"),
        (lambda: PromptCurriculum(share=0.0), r"share must be in \(0, 1\]: got 0.0"),
        (lambda: ByPassRate(trees=(0, 0)), r"trees must be whole numbers >= 0, one of them above 0: got \[0, 0\]"),
        (lambda: UnsolvedFirst(pool_tokens=50).check_with(BASE), "pool_tokens: needs search.max_tokens of at most 50: got 100"),
        (lambda: UnsolvedFirst(pool_tokens=50).check_with(Budget()), "pool_tokens: needs search.max_tokens of at most 50: got None"),
    ],
)
def test_impossible_settings_are_one_sentence(make: Any, message: str) -> None:
    """The setting, the rule and the value."""
    with pytest.raises(ConfigError, match=f"search.allocation.*{message}"):
        make()


def test_caps_are_scaled_and_never_below_one() -> None:
    """Half of 8, 100 and 3; no cap stays none; a thousandth is one."""
    assert scaled(Budget(num_simulations=8, max_tokens=100, max_calls=3), 0.5) == Budget(num_simulations=4, max_tokens=50, max_calls=2)
    assert scaled(Budget(num_simulations=8), 0.001) == Budget(num_simulations=1)


def test_another_tree_of_a_problem_has_other_seeds() -> None:
    """Trees differ by their number, and each is the same whenever it is searched."""
    trees = {}
    for number in (0, 1, 1):
        engine = searches.engine(answers=searches.ANSWERS, tree_number=number)
        (found,) = engine.search(searches.PROBLEMS[:1])
        assert trees.setdefault(number, found.tree) == found.tree
    assert trees[0].token_ids != trees[1].token_ids
