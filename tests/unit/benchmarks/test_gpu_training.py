"""The GPU benchmark's figures: speeds from marks, and operations per token by hand."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import gpu_training
from benchmarks.gpu_training import SMALL, Clock, Enough, Limit, Mark, operations_per_token, watched


def test_speeds_are_medians_of_updates_of_one_kind() -> None:
    """The first two updates after the first, and after the change, are left out: they allocate and compile."""
    clock = Clock(1e9)
    clock.marks = [Mark(float(time), 10 * number, 100 * number) for number, time in enumerate((9, 15, 18, 20, 22, 26))]
    plain = clock.speed(compiled=False)
    assert plain == {"pairs_per_second": 5.0, "tokens_per_second": 50.0}
    assert clock.speed(compiled=True) is None
    clock.marks += [Mark(30.0 + number, 60 + 10 * number, 600 + 100 * number, True) for number in range(6)]
    assert clock.speed(compiled=True) == {"pairs_per_second": 10.0, "tokens_per_second": 100.0}
    assert clock.speed(compiled=False) == plain and clock.figures()["compiled_after"] == 30.0


def test_the_time_counts_from_the_first_mark(tmp_path: Path) -> None:
    """However long that took. The figures are in the file before the time is over."""
    clock = Clock(0.0, tmp_path / "part.json")
    clock.start -= 1000
    clock.note(4, 40)
    assert json.loads((tmp_path / "part.json").read_text())["first"] > 1000
    with pytest.raises(Enough):
        clock.note(8, 80)
    assert json.loads((tmp_path / "part.json").read_text())["marks"] == 2


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ("keep(); time.sleep(60)", {"marks": 7, "ended": "still running"}),
        ("time.sleep(60)", {"ended": "nothing within 4 s"}),
        ("keep(); raise SystemExit(3)", {"marks": 7, "ended": "exit code 3"}),
        ("keep()", {"marks": 7}),
    ],
)
def test_figures_outlive_their_part(work: str, expected: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that hangs is killed, and what it kept counts, with the reason of its end."""
    monkeypatch.setattr(gpu_training, "_GRACE_S", 0.5)
    file = tmp_path / "part.json"
    code = f"import time\ndef keep(): open({str(file)!r}, 'w').write('{{\"marks\": 7}}')\n{work}"
    found = watched([sys.executable, "-c", code], Limit(4.0, 0.5), file)
    assert found.keys() == expected.keys() and found.get("marks") == expected.get("marks")
    assert str(found.get("ended")).startswith(str(expected.get("ended")))


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
