"""Beliefs of adaptive branching: draws against closed forms and against another sampler, and trees by hand."""

import math

import numpy as np
import pytest

from stepladder.mcts.strategies.adaptive_kernels import MODELS, Arm, ArmDraws, draw_arm, draw_mixed
from stepladder.testing import make_step
from stepladder.types import Budget, derive_seed
from tests.searches import PROBLEMS, run

NUMBER = 20_000


def stream(seed):
    """Return the random numbers of one search."""
    return ArmDraws(keys=np.array([derive_seed("test", seed)], np.uint64), counts=np.zeros(1, np.int64))


def drawn(arm, belief):
    """Draw many times from the belief about an arm."""
    draws = stream(str(arm))
    return np.array([draw_arm(arm, MODELS.index(belief), draws, 0) for _ in range(NUMBER)])


@pytest.mark.parametrize("scores", [[], [0.8], [0.2, 0.4, 0.9], [0.5] * 9])
def test_normal_beliefs_have_the_closed_form(scores):
    """The mean is Student's t with nu' degrees of freedom: its median is m', half of it lies between the quartiles of the t.

    Example: 0.2, 0.4, 0.9 have kappa' = nu' = 4, m' = 1.5 / 4, SS = 0.26, so nu' tau'^2 = 0.1 + 0.26 + 3 * 0.25 / 4.
    """
    n, total = len(scores), sum(scores)
    mean = total / n if n else 0.0
    scatter = 0.1 + sum((score - mean) ** 2 for score in scores) + n * mean**2 / (1 + n)
    if n == 3:
        assert scatter == pytest.approx(0.1 + 0.26 + 0.1875)
    scale = math.sqrt(scatter / (1 + n) / (1 + n))
    # Upper quartiles of Student's t with 1, 2, 4 and 10 degrees of freedom.
    quartile = scale * {0: 1.0, 1: 0.8164966, 3: 0.7406971, 9: 0.6998121}[n]
    found = drawn(Arm(float(n), float(total), float(sum(score**2 for score in scores))), "normal")
    centre = total / (1 + n)
    for bound, share in ((centre, 0.5), (centre + quartile, 0.75), (centre - quartile, 0.25)):
        assert (found < bound).mean() == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / NUMBER))


@pytest.mark.parametrize(("wins", "losses"), [(0.0, 0.0), (1.0, 0.0), (3.5, 1.5)])
def test_beta_beliefs_have_their_moments(wins, losses):
    """Beta(0.5 + wins, 0.5 + losses): mean a / (a + b), variance ab / ((a + b)^2 (a + b + 1))."""
    a, b = 0.5 + wins, 0.5 + losses
    found = drawn(Arm(wins + losses, wins, 0.0), "beta")
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    assert found.mean() == pytest.approx(a / (a + b), abs=4 * math.sqrt(variance / NUMBER))
    assert found.var() == pytest.approx(variance, rel=0.05)
    assert ((found >= 0) & (found <= 1)).all()


def test_mixed_beliefs_equal_those_of_another_sampler():
    """Three groups, and a new one: means, spreads and correlation of the draws are those of importance sampling from the prior.

    The other sampler draws mu, sigma_a, sigma_y from the prior, weighs each by the likelihood of the scores with the group means integrated
    out group by group, and draws the group means from their conditionals.
    """
    groups = [[0.1, 0.2, 0.15], [0.8, 0.9], [0.5]]
    counts, totals = (np.array([float(function(scores)) for scores in groups]) for function in (len, sum))
    squares = np.array([sum(score**2 for score in scores) for scores in groups])
    draws = stream("mixed")
    found = np.array([draw_mixed(counts, totals, squares, draws, 0) for _ in range(NUMBER)])

    rng, size = np.random.default_rng(0), 400_000
    mu, spread = rng.normal(0.5, 0.2, size), np.abs(rng.normal(0, 0.2, size))
    noise = np.abs(rng.normal(0, 0.3, size))
    log_weight, samples = np.zeros(size), []
    for scores in [*groups, []]:
        n, own = len(scores), (np.mean(scores) if scores else 0.0)
        precision = n / noise**2 + 1 / spread**2
        mean = (n * own / noise**2 + mu / spread**2) / precision
        if n:
            variance = spread**2 + noise**2 / n
            scatter = sum((score - own) ** 2 for score in scores)
            log_weight += -(n - 1) * np.log(noise) - scatter / (2 * noise**2) - 0.5 * np.log(variance) - (own - mu) ** 2 / (2 * variance)
        samples.append(rng.normal(mean, 1 / np.sqrt(precision)) + noise * rng.normal(size=size))
    weights = np.exp(log_weight - log_weight.max())
    weights /= weights.sum()
    effective = 1 / (weights**2).sum()
    assert effective > 5_000
    for k, other in enumerate(samples):
        mean = (weights * other).sum()
        deviation = math.sqrt((weights * (other - mean) ** 2).sum())
        error = deviation * math.sqrt(1 / effective + 1 / NUMBER)
        assert found[:, k].mean() == pytest.approx(mean, abs=4 * error + 0.004)
        assert found[:, k].std() == pytest.approx(deviation, rel=0.06)
    assert found[:, 0].mean() < found[:, 2].mean() < found[:, 1].mean()


def test_draws_follow_the_search_alone():
    """The tree of a problem is the same beside others and alone, and other for another problem."""
    budget = Budget(num_simulations=20, max_depth=5)
    together = run("ab-mcts-a", budget=budget, arrival_seed=1, max_trees=3)
    for name in ("p0", "p3"):
        alone = run("ab-mcts-a", budget=budget, problems=[problem for problem in PROBLEMS if problem.id == name])[name]
        assert alone.tree == together[name].tree
    assert together["p0"].tree.parents != together["p3"].tree.parents


@pytest.mark.parametrize("method", ["ab-mcts-a", "ab-mcts-m"])
def test_branching_follows_the_scores(method):
    """Where one first step in four is good and so is all below it, subtrees of good first steps are far larger, over twelve problems."""

    def policy(prefix, index, seed):
        return make_step("abcdefghijklmnop"[seed % 16], logp=-9.0)

    def known(prefix):
        good = "".join(map(chr, prefix)).split("\n", 1)[1][0] in "abcd"
        # Equal scores would settle a child of ab-mcts-m.
        return (0.7 if good else 0.1) + derive_seed(str(prefix)) % 100 / 500

    sizes = {True: [], False: []}
    for result in run(method, policy=policy, scorer=known, budget=Budget(num_simulations=60, max_depth=6), problems=PROBLEMS[:12]).values():
        tree = result.tree
        top = list(range(len(tree.parents)))
        for node, parent in enumerate(tree.parents):
            top[node] = node if parent <= 0 else top[parent]
        for node in (node for node, parent in enumerate(tree.parents) if parent == 0):
            sizes[tree.texts[node] in "abcd"].append(top.count(node))
    assert np.mean(sizes[True]) > 2 * np.mean(sizes[False])
