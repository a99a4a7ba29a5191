"""The packing benchmark on a case small enough to check: what it trains on, what it counts, and the path that a GPU takes."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.packing import GPU, PREFERENCES, PRM, Case, Setup, make_pairs, make_values, num_unique_tokens, run_once, write_model

CASE = Case(num_trees=2, depth=2, branching=3)
# As on a GPU, but for the device and the size of the model.
SMALL = replace(
    GPU,
    prompt_tokens=5,
    step_tokens=3,
    device="cpu",
    model={
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
)


def test_rows_and_unique_tokens_by_hand() -> None:
    """A tree has 2 x 2 pairs and 2 x 3 nodes; of 5 + 2 x 3 x 3 tokens the last of each leaf and of the last chosen step predict nothing.

    Leaves are the two rejected steps of depth 1 and all three steps of depth 2: 23 - 5 = 18 tokens; values are read at all 23.
    """
    setup = Setup(prompt_tokens=5, step_tokens=3)
    assert len(make_pairs(CASE, setup)) == CASE.num_pairs == 8
    assert len(make_values(CASE, setup)) == 12
    assert num_unique_tokens(CASE, setup, trainer="trees") <= 2 * 18
    assert num_unique_tokens(CASE, setup, trainer=PRM[0]) <= 2 * 23


@pytest.mark.slow
def test_every_contestant_trains_as_on_a_gpu(tmp_path: Path) -> None:
    """In bfloat16, split into passes, on a Qwen2 of given shape: trees forward what is unique, the others what their rows have."""
    setup = replace(SMALL, batch_size=12, rows_per_pass=4)
    write_model(tmp_path / "model", setup)
    runs = {trainer: run_once(trainer, CASE, setup, tmp_path) for trainer in (*PREFERENCES, *PRM)}
    assert runs["trees"].tokens == num_unique_tokens(CASE, setup, trainer="trees")
    assert runs[PRM[0]].tokens == num_unique_tokens(CASE, setup, trainer=PRM[0])
    # Sequences of 5 + 3 and 5 + 3 + 3 tokens, each twice in each of 2 pairs per depth and tree; TRL appends a token to every one.
    rows = 2 * 2 * 2 * (8 + 11)
    assert (runs["paths"].tokens, runs["TRL"].tokens) == (rows - 16, rows + 16)
    assert runs[PRM[1]].tokens == 2 * 3 * (8 + 11)
    assert all(run.seconds > 0 for run in runs.values())
