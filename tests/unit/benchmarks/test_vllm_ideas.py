"""What is counted for ideas about vLLM: sequences of every step, and continuations that a search would have kept; vLLM is not needed."""

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.vllm_ideas import Filling, kept_share
from stepladder.types import StopReason


def _tree(parents: list[int], depths: list[int], reasons: list[StopReason]) -> Any:
    return SimpleNamespace(parents=parents, depths=depths, stop_reasons=reasons)


def test_a_continuation_is_kept_if_its_step_was_expanded() -> None:
    """Six steps below the root: one ended the solution and two lie at the limit, so three could go on; one of these has children."""
    step, end = StopReason.STEP, StopReason.END
    tree = _tree([-1, 0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 2, 2], [step, step, step, step, end, step, step])
    assert kept_share([tree], max_depth=2) == pytest.approx(1 / 3)
    # With a limit of three, the two could go on, too, and did not.
    assert kept_share([tree], max_depth=3) == pytest.approx(1 / 5)
    chain = _tree([-1, 0], [0, 1], [step, step])
    assert kept_share([tree, chain], max_depth=2) == pytest.approx(1 / 4)


def test_sequences_of_steps_are_counted_while_the_block_runs() -> None:
    """Every step as it is, and the engine's own step again afterwards."""
    steps = iter([["a", "b"], [], ["a"], ["b"]])
    engine = SimpleNamespace(sample_step=lambda: next(steps))
    own = engine.sample_step
    with Filling(engine) as filling:
        assert [engine.sample_step() for _ in range(3)] == [["a", "b"], [], ["a"]]
    assert filling.counts == [2, 0, 1]
    assert engine.sample_step is own
