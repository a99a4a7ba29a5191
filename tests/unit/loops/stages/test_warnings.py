"""Warnings: every rule with a round that it is about, and one that it is not about."""

from dataclasses import replace

from stepladder.loops.runs.results import RoundRow
from stepladder.loops.runs.split_figures import MonitorFigures, PoolFigures
from stepladder.loops.stages.warnings import warnings_of
from tests.report_run import row, unmeasured

MONITORS = MonitorFigures(
    at_k=(), distinct_right=None, surprisal_per_token=None, prm_calibration_error=None, prm_scores=None, top_score=None, top_right=None
)


def round_of(
    number: int,
    *,
    one: float | None = 0.5,
    best: float | None = 0.8,
    surprisal: float | None = None,
    top: tuple[float, float] | None = None,
    unsound: float | None = None,
    accepted: bool = True,
    version: int | None = None,
) -> RoundRow:
    """A round with held-out figures."""
    score, right = top or (None, None)
    monitors = replace(MONITORS, surprisal_per_token=surprisal, top_score=score, top_right=right, unsound_right=unsound)
    held_out = replace(unmeasured(), pool=PoolFigures(num_samples=16, sampled_pass_at_1=one, pass_at_k=best), monitors=monitors)
    made = row(number, policy=0.5, search=0.5, majority=0.5, accepted=accepted)
    return replace(made, held_out=held_out, policy_version=number if version is None else version)


def test_an_ordinary_round_has_no_warning() -> None:
    """Better everywhere, a refused round between accepted ones, and the warm-up alone."""
    rounds = [round_of(0), round_of(1, one=0.6, best=0.85), round_of(2, accepted=False), round_of(3, one=0.7, best=0.79)]
    for number in range(4):
        assert warnings_of(rounds[:number], rounds[number]) == ()


def test_diversity_collapse() -> None:
    """pass@1 rises and pass@16 falls, both by more than 0.02; or tokens are four times less surprising."""
    (sentence,) = warnings_of([round_of(0)], round_of(1, one=0.6, best=0.7))
    assert sentence.startswith("diversity collapses: since the warm-up pass@1 of samples rose by 10.0 points, and pass@16 fell by 10.0")
    assert warnings_of([round_of(0)], round_of(1, one=0.6, best=0.785)) == ()
    assert warnings_of([round_of(0)], round_of(1, one=0.4, best=0.7)) == ()
    assert warnings_of([round_of(0)], round_of(1, one=None, best=0.7)) == ()
    (sentence,) = warnings_of([round_of(0, surprisal=0.8)], round_of(1, surprisal=0.1))
    assert "fell from 0.800 to 0.100 nats" in sentence
    assert warnings_of([round_of(0, surprisal=0.8)], round_of(1, surprisal=0.2)) == ()


def test_right_answers_with_wrong_steps() -> None:
    """The share of right samples with a false equation has risen since the warm-up, by more than 0.02."""
    (sentence,) = warnings_of([round_of(0, unsound=0.1), round_of(1, unsound=0.3)], round_of(2, unsound=0.25))
    assert "25.0% of the right samples with equations state a false one, 15.0 points more" in sentence
    assert warnings_of([round_of(0, unsound=0.1)], round_of(1, unsound=0.115)) == ()
    assert warnings_of([round_of(0)], round_of(1, unsound=0.5)) == ()


def test_a_gamed_prm() -> None:
    """The best-liked samples score higher than a round before and are right less often."""
    before = round_of(1, top=(0.7, 0.6))
    (sentence,) = warnings_of([round_of(0), before], round_of(2, top=(0.8, 0.5)))
    assert "rose by 0.100" in sentence and "fell by 10.0 points" in sentence
    assert warnings_of([round_of(0), before], round_of(2, top=(0.8, 0.6))) == ()
    assert warnings_of([round_of(0), before], round_of(2, top=(0.6, 0.5))) == ()
    assert warnings_of([round_of(0), round_of(1)], round_of(2, top=(0.8, 0.5))) == ()


def test_a_vanishing_class() -> None:
    """One right sample in a hundred, or one wrong; two are enough."""
    assert "right samples vanish: 1.0% of" in warnings_of([], round_of(0, one=0.01))[0]
    assert "wrong samples vanish: 99.0% of" in warnings_of([], round_of(0, one=0.99))[0]
    assert warnings_of([], round_of(0, one=0.02)) == () == warnings_of([], round_of(0, one=None))


def test_two_refusals() -> None:
    """Rounds 1 and 2 were refused; a round without a policy of its own was not."""
    refused = [round_of(0), round_of(1, accepted=False)]
    (sentence,) = warnings_of(refused, round_of(2, accepted=False))
    assert sentence.startswith("the policies of rounds 1 and 2 were refused")
    assert warnings_of(refused, round_of(2)) == ()
    assert warnings_of(refused, round_of(2, accepted=False, version=0)) == ()
