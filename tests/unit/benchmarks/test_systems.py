"""The comparison of systems: every recipe's settings load at the budget of all, and pass the checks of a run."""

import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.many_runs import processor_time, processor_time_added
from benchmarks.systems import STAGES, VARIANTS, Size, system_config
from stepladder.loops.assembly.checks import check_labels, check_searches
from stepladder.loops.config.schedule import round_config
from stepladder.recipes import recipes

SIZE = Size(rounds=2, tokens=400, updates=61, prm_updates=50)


@pytest.mark.parametrize("name", recipes())
def test_every_system_has_the_same_tokens_and_updates(name: str, tmp_path: Path) -> None:
    """In every round the stages of the policy share all updates, and search and samples for the PRM the tokens, a quarter at least."""
    config = system_config(tmp_path, name, SIZE, seed=7, solution_tokens=20.0)
    for number in (1, 2):
        settings = round_config(config, number)
        check_searches(settings)
        check_labels(settings)
        stages: list[Any] = [getattr(settings, stage) for stage in STAGES if getattr(settings, stage).enabled]
        assert sum(stage.max_updates or 0 for stage in stages) == SIZE.updates
        assert settings.prm.train.max_updates == SIZE.prm_updates
        samples = settings.prm.rollouts * 20 if config.prm.enabled else 0
        assert settings.search.max_tokens == max(SIZE.tokens - samples, SIZE.tokens // 4)
        assert settings.search.simulations == SIZE.tokens or "commit" in settings.search.options
        assert (settings.run.seed, settings.gate.max_drop, settings.run.update_every) == (7, 1.0, None)


def test_variants_are_tasks_of_their_own() -> None:
    """The noisy teacher is right less often, the deep task has longer programs."""
    default, noisy, deep = (SIZE.task(variant) for variant in VARIANTS)
    assert sum(noisy.right_shares) < sum(default.right_shares) and noisy.program_length == default.program_length
    assert deep.program_length > default.program_length and deep.right_shares == default.right_shares


def test_the_processor_time_of_a_continued_run_adds_up(tmp_path: Path) -> None:
    """Work of a fifth of a second, twice, also if the second part fails; waiting costs nothing."""
    file = tmp_path / "run.cpu-seconds"
    assert processor_time(file) is None
    with processor_time_added(file):
        _work(0.2)
        time.sleep(0.2)
    first = processor_time(file)
    assert first == pytest.approx(0.2, abs=0.1)
    with pytest.raises(ValueError), processor_time_added(file):
        _work(0.2)
        raise ValueError
    assert processor_time(file) == pytest.approx(first + 0.2, abs=0.1)


def _work(seconds: float) -> None:
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        pass
