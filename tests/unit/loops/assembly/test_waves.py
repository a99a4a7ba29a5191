"""``wave = "auto"``: the fewest leaves in flight that fill a batch."""

import pytest

from stepladder.errors import ConfigError
from stepladder.loops.assembly.search import build_method, choose_search
from stepladder.loops.config.load import load_config
from stepladder.mcts.methods import with_filling_wave


def _wave(name, trees, *, simulations=64, **options):
    return with_filling_wave(name, {"wave": "auto", **options}, num_trees=trees, max_batch=256, simulations=simulations)["wave"]


def test_an_automatic_wave_just_fills_the_batch():
    """256 / (trees x 4 samples a leaf), rounded up: at most 8 leaves, unless no draw depends on another."""
    assert [_wave("mcts", trees, num_children=4) for trees in (300, 64, 40, 20, 5)] == [1, 1, 2, 4, 8]
    assert _wave("mcts", 5, num_children=4, simulations=3) == 3
    assert [_wave("majority", trees) for trees in (256, 32, 1)] == [1, 8, 64]
    assert _wave("restart", 1) == 8
    assert with_filling_wave("mcts", {"wave": 3}, num_trees=1, max_batch=256, simulations=64) == {"wave": 3}


@pytest.mark.parametrize("name", ["beam", "particle-filter"])
def test_a_width_is_not_chosen(name):
    """The wave of a beam and the particles of a filter decide what is searched."""
    with pytest.raises(ConfigError, match=rf"wave must be a number with method '{name}', .*: got 'auto' -- give the width"):
        _wave(name, 4)


def test_shards_decide_in_a_run_and_questions_in_a_search_for_answers():
    """Shards of 16 problems and a batch of 256: four leaves of four samples. One question has eight, 32 have two."""
    options = "search.options={wave='auto',num_children=4}"
    named = ["problems.train=a", "problems.test=b", "policy.model=m", "search.method=mcts", "policy.max_batch=256"]
    config = load_config(None, [*named, "run.shard_size=16", options])
    assert build_method(config, config.search).selection.wave == 4
    for questions, wave in ((1, 8), (32, 2)):
        method, _ = choose_search(config, method="mcts", options={"wave": "auto", "num_children": 4}, num_problems=questions)
        assert method.selection.wave == wave
