"""Ensembles, bounds, mixes and checks: by hand, and the scorers by the shipped contract."""

import math
import time

import numpy as np
import pytest

from stepladder.data.step_checks.arithmetic import arithmetic_holds
from stepladder.errors import ConfigError
from stepladder.interfaces import ScoreRequest
from stepladder.prm.compose import (
    BoundedScorer,
    CheckedScorer,
    EnsembleScorer,
    bin_entropy_penalty,
    clip_bound,
    delta_bound,
    ensemble_scores,
    mix_with_verdict,
    par_bound,
)
from stepladder.prm.outputs import check_entropy_penalty, scores_of
from stepladder.prm.specs import PRMSpec
from stepladder.testing import TableScorer, check_scorer

NAN = float("nan")


def test_ensembles_by_hand():
    """Scores 0.2 and 0.8: mean 0.5, worst 0.2, variance 0.09, so 0.5 - 0.5 * 0.09; a score that is missing stays missing."""
    scores = np.array([[0.2, 0.0, NAN], [0.8, 0.0, 0.5]])
    np.testing.assert_allclose(ensemble_scores(scores), [0.5, 0.0, NAN])
    np.testing.assert_allclose(ensemble_scores(scores, rule="min"), [0.2, 0.0, NAN])
    np.testing.assert_allclose(ensemble_scores(scores, rule="mean-variance"), [0.455, 0.0, NAN])
    assert ensemble_scores(np.array([[0.0], [1.0]]), rule="mean-variance", penalty=9.0) == [0.0]
    with pytest.raises(ConfigError, match="median"):
        ensemble_scores(scores, rule="median")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="penalty >= 0: got 'mean' with -1"):
        ensemble_scores(scores, penalty=-1)


def test_bin_entropy_is_nought_for_a_sure_head_and_one_for_an_even_one():
    """Half and half over four bins is log 2 / log 4."""
    probabilities = np.array([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(bin_entropy_penalty(probabilities), [0.0, 1.0, 0.5], atol=1e-12)
    assert bin_entropy_penalty(np.ones((2, 1))).tolist() == [0.0, 0.0]


def test_bounds_by_hand():
    """Clip keeps only what is missing, delta telescopes, PAR is one half at the reference and cannot overflow."""
    scores = np.array([0.9, 0.3, 0.6])
    np.testing.assert_allclose(clip_bound(scores, bound=0.5), [0.0, -0.2, 0.0])
    np.testing.assert_allclose(delta_bound(scores), [0.6, -0.3, 0.6])
    np.testing.assert_allclose(np.cumsum(delta_bound(scores)[::-1])[::-1], scores)
    assert delta_bound(np.zeros(0)).tolist() == []
    np.testing.assert_allclose(par_bound(np.array([0.5, 0.5 + math.log(3), -1e6]), reference=0.5), [0.5, 0.75, 0.0])


def test_no_wrong_solution_outranks_a_right_one():
    """sigmoid(0.5 * 2 ln 3) = 3/4 for a right one, 3/4 - 1 for a wrong one; the order holds for extreme rewards."""
    assert mix_with_verdict(2 * math.log(3), True) == pytest.approx(0.75)
    assert mix_with_verdict(2 * math.log(3), False) == pytest.approx(-0.25)
    assert mix_with_verdict(1e9, False) <= 0.0 <= mix_with_verdict(-1e9, True)


PREFIXES, STEPS = [(1, 2), (3,)], [(10,), (11, 12), (13,), (14,)]


def score_a(path):
    return sum(path) % 7 / 7


def score_b(path):
    return None if path[-1] == 14 else sum(path) % 5 / 5


def test_an_ensemble_keeps_the_contract_and_combines():
    """Whatever order the members answer in; where one has no score there is none."""
    made = [0]

    def build():
        made[0] += 1
        return EnsembleScorer([TableScorer(score_a, shuffle_seed=made[0]), TableScorer(score_a, shuffle_seed=3)], rule="min")

    check_scorer(build, prefix_ids=PREFIXES, steps=STEPS)
    scorer = EnsembleScorer([TableScorer(score_a, shuffle_seed=1), TableScorer(score_b, shuffle_seed=2)], rule="min")
    requests = [ScoreRequest(ticket=i, prefix_ids=PREFIXES[0], branches=((step,),)) for i, step in enumerate(STEPS)]
    scorer.submit(requests)
    got = {}
    while results := scorer.collect():
        got |= {result.ticket: result.scores[0][0] for result in results}
    expected = [min(score_a(PREFIXES[0] + step), score_b(PREFIXES[0] + step)) for step in STEPS[:3]]
    assert [got[i] for i in range(4)] == [*expected, None]
    with pytest.raises(ConfigError, match="at least one"):
        EnsembleScorer([])


def test_bounds_in_a_search_keep_the_contract():
    """0.9 and 0.3 bounded at 0.6: clip gives 0.6 and 0.3, PAR sigmoid(0.3) and sigmoid(-0.3); what has no score has none."""
    table = {10: 0.9, 12: 0.3, 13: None}
    for rule, expected in (("clip", (0.6, 0.3)), ("par", (1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(0.3))))):
        scorer = BoundedScorer(TableScorer(lambda path: table[path[-1]]), rule=rule, at=0.6)
        scorer.submit([ScoreRequest(ticket=0, prefix_ids=(1,), branches=(((10,), (11, 12)), ((13,),)))])
        assert scorer.collect()[0].scores == (pytest.approx(expected), (None,))
        check_scorer(lambda rule=rule: BoundedScorer(TableScorer(score_a), rule=rule, at=0.5), prefix_ids=PREFIXES, steps=STEPS)
    for rule, at in (("clip", 1.5), ("delta", 0.5)):
        with pytest.raises(ConfigError, match="bound: rule"):
            BoundedScorer(TableScorer(score_a), rule=rule, at=at)


def test_an_unsure_head_of_bins_loses_by_its_entropy():
    """Two equal bins of four, centres 1/8 and 3/8: mean 1/4, entropy 1/2, so 1/4 - 0.4 * 1/2; never below 0; a sure bin loses nothing."""
    spec = PRMSpec(bins=4, transform="identity")
    outputs = np.array([[50.0, 50.0, -50.0, -50.0], [-50.0, -50.0, -50.0, 50.0]])
    np.testing.assert_allclose(scores_of(outputs, spec), [0.25, 0.875], atol=1e-12)
    np.testing.assert_allclose(scores_of(outputs, spec, entropy_penalty=0.4), [0.05, 0.875], atol=1e-12)
    np.testing.assert_allclose(scores_of(outputs, spec, entropy_penalty=9.0), [0.0, 0.875], atol=1e-12)
    check_entropy_penalty(0.0, PRMSpec())
    for penalty, wrong in ((0.5, PRMSpec()), (-0.5, spec)):
        with pytest.raises(ConfigError, match="entropy_penalty"):
            check_entropy_penalty(penalty, wrong)


def by_step(check):
    """Return the check of requests that asks about each step alone."""
    return lambda requests: [[[check(step) for step in branch] for branch in request.branches] for request in requests]


def test_a_step_that_fails_its_check_is_capped():
    """Scores above the cap fall to it, lower ones and steps with nothing to check stay."""
    verdicts = {(10,): False, (11, 12): True, (13,): None}
    scorer = CheckedScorer(TableScorer(lambda path: 0.6 if path[-1] != 14 else None), by_step(verdicts.get), cap=0.1)
    scorer.submit([ScoreRequest(ticket=0, prefix_ids=(1,), branches=tuple((step,) for step in STEPS))])
    assert scorer.collect()[0].scores == ((0.1,), (0.6,), (0.6,), (None,))
    check_scorer(lambda: CheckedScorer(TableScorer(score_a), by_step(lambda step: step != (13,))), prefix_ids=PREFIXES, steps=STEPS)
    with pytest.raises(ConfigError, match="cap"):
        CheckedScorer(TableScorer(score_a), by_step(lambda step: None), cap=2.0)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("She spends 40 * 3 = <<40*3=120>>120 on lessons.", True),
        ("3 + 5 = 9 hours", False),
        ("So 2 × (3 + 4) = 14, and 14 / 4 = 3.5.", True),
        ("1,000 - 1 = 999", True),
        ("10 / 3 = 3.33", True),
        ("10 / 3 = 3.34", False),
        ("10 / 3 = 3", False),
        ("5 - 8 = -3", True),
        ("-2 + 5 = 3", True),
        ("1 + 1 = 2 and 2 + 2 = 5", False),
        ("x = 5", None),
        ("x + 2 = 5", None),
        ("2x + 3 = 5", None),
        ("3 + 4 = 5 + 2", None),
        ("2 + 3 = x", None),
        ("2^3 + 1 = 9", None),
        ("50% + 1 = 3", None),
        ("4 / 0 = 0", None),
        ("no numbers", None),
        ("x = 3 + 4 = 7", True),
        ("1 + 1 = 2\n2 + 2 = 5", False),
        ("2x + 3 + 4 = 15", None),
        ("5 apples + 3 + 4 = 12", None),
        (r"2 \times 3 + 4 = 10", None),
        ("2 · 3 + 4 = 10", None),
        ("2 1/2 + 1 = 3.5", None),
        ("1/2 + 3 = 3 1/2", None),
        ("x - 3 + 4 = 15", None),
        ("- 3 + 4 = 7", None),
        ("x = 12\n- 3 + 4 = 7", None),
        ("2 + 2 = " + "4" * 5000, None),
    ],
)
def test_arithmetic_of_a_step(text, holds):
    """Exact on plain numbers, rounded decimals accepted, and silent wherever something else may be meant."""
    assert arithmetic_holds(text) is holds


@pytest.mark.parametrize("text", [" + ".join(["1"] * 2000), "(" * 8000, "- " * 8000, "1," * 8000, "1 ) " * 4000])
def test_arithmetic_of_a_text_without_results_takes_no_time(text):
    """A sum of n numbers without a result can be told in time n, however its blanks and brackets are read."""
    started = time.process_time()
    assert arithmetic_holds(text) is None
    assert time.process_time() - started < 2
