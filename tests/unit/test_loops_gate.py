"""Gates: only a model that is not worse on held-out problems replaces the best one."""

import pytest

from stepladder.loops.gate import gate_policy, gate_prm


@pytest.mark.parametrize(
    ("candidate", "best", "max_drop", "accepted"),
    [
        (0.5, 0.4, 0.0, True),
        (0.4, 0.4, 0.0, True),
        (0.39, 0.4, 0.0, False),
        (0.39, 0.4, 0.02, True),
        (None, 0.4, 0.0, False),
        (0.1, None, 0.0, True),
    ],
)
def test_policy_gate(candidate: float | None, best: float | None, max_drop: float, accepted: bool) -> None:
    """Equal or better passes, worse by more than the tolerance does not, and an untrained policy never does."""
    decision = gate_policy(candidate, best, max_drop=max_drop)
    assert decision.accepted is accepted
    assert decision.reason


@pytest.mark.parametrize(
    ("candidate", "best", "accepted"), [(0.5, None, False), (0.51, None, True), (0.7, 0.8, False), (0.8, 0.8, True), (None, None, False)]
)
def test_prm_gate_asks_for_more_than_chance(candidate: float | None, best: float | None, accepted: bool) -> None:
    """A PRM at chance is never adopted, not even as the first."""
    assert gate_prm(candidate, best, max_drop=0.0).accepted is accepted
