"""What all readers of answers share."""

import pytest

from stepladder.interfaces import answer_of
from stepladder.testing import CharRenderer
from stepladder.types import Step, StopReason


def step(text: str, reason: StopReason) -> Step:
    return Step(token_ids=tuple(map(ord, text)), logps=(0.0,) * len(text), text=text, stop_reason=reason)


@pytest.mark.parametrize("reason", [reason for reason in StopReason if reason != StopReason.END])
def test_a_solution_that_did_not_end_by_itself_has_no_answer(reason):
    """Its text may state one all the same: cut later, it might have stated another."""
    assert answer_of(CharRenderer(), [step("2+2=4", reason)]) is None


def test_the_answer_is_read_from_the_whole_solution():
    """The steps and what stood before them are one text."""
    steps = [step("2+2", StopReason.STEP), step("4", StopReason.END)]
    assert answer_of(CharRenderer(), steps) is None
    assert answer_of(CharRenderer(), steps[1:], "2+2=") == "4"
    assert answer_of(CharRenderer(), [step("", StopReason.END)], "2+2=4") is None, "a failed step"
