"""The GPU benchmark's figures: speeds from marks, and operations per token by hand."""

from dataclasses import replace

import pytest

from benchmarks.gpu_training import SMALL, Clock, Enough, operations_per_token


def test_speeds_are_medians_of_updates_of_one_kind() -> None:
    """The first two updates after the first, and after the change, are left out: they allocate and compile."""
    clock = Clock(1e9)
    clock.marks = [(float(time), 100 * number, False) for number, time in enumerate((9, 15, 18, 20, 22, 26))]
    plain = clock.speed(compiled=False)
    assert plain == (2.0, 50.0)
    assert clock.speed(compiled=True) is None
    clock.marks += [(30.0 + number, 600 + 100 * number, True) for number in range(6)]
    assert clock.speed(compiled=True) == (1.0, 100.0) and clock.speed(compiled=False) == plain
    with pytest.raises(Enough):
        Clock(0.0).note(1, 0.7, 5)


def test_operations_per_token_by_hand() -> None:
    """Two layers of width 32 with 14 heads of 16 on two key heads and an inner width of 48; a head of 100 tokens."""
    setup = replace(SMALL, prompt_tokens=3, step_tokens=2)
    body = 2 * (32 * 224 * 2 + 32 * 32 * 2 + 3 * 32 * 48)
    # Depth 8, branching 4: 3 tokens of prompt, then steps of 2, whose last tokens predict nothing where no step follows.
    # Chosen steps: 2 tokens at depths 3 + 2 d, the last one 1; three rejected ones beside each: their first token.
    seen = 1 + 2 + 3
    tokens = 3
    for depth in range(8):
        start = 3 + 2 * depth
        seen += (start + 1) * 4 + (start + 2 if depth < 7 else 0)
        tokens += 4 + (depth < 7)
    read = tokens - 2
    expected = 3 * (2 * body * tokens + 2 * 100 * 32 * read + 4 * (2 * 224) * seen) / tokens
    # Random steps of one symbol and a line break may begin alike, and are then one token.
    assert operations_per_token(setup) == pytest.approx(expected, rel=0.15)
    longer = replace(SMALL, prompt_tokens=3, step_tokens=9)
    assert operations_per_token(longer) > operations_per_token(setup)
