"""Failed samples of a stage: kept beside the shards, counted, and the end of a run where nothing else came."""

from pathlib import Path

import pytest

from stepladder.errors import BackendError
from stepladder.loops.runs.results import FailureFigures
from stepladder.loops.stages.failures import check_stage, failure_figures, failures_path, read_failures, write_failures
from stepladder.mcts.engine import SearchEngine
from stepladder.mcts.methods import resolve_method
from stepladder.testing import CharRenderer, ScriptedPolicy, make_step
from stepladder.types import Budget, Failures, Problem, Provenance, SearchResult, StopReason

_PROVENANCE = Provenance(round=1, policy_version=0, scorer_version=None, seed=0, config_hash="", renderer_hash="")


def _results(num_failing: int, num_sound: int) -> list[SearchResult]:
    """Search problems of which the first ones always fail."""
    policy = ScriptedPolicy(
        lambda prefix, index, seed: make_step("x", stop_reason=StopReason.END), fail_when=lambda request: request.prefix_ids[0] == ord("f")
    )
    engine = SearchEngine(
        policy=policy,
        renderer=CharRenderer(),
        method=resolve_method("majority"),
        budget=Budget(num_simulations=4),
        provenance=_PROVENANCE,
    )
    names = [f"f{i}" for i in range(num_failing)] + [f"s{i}" for i in range(num_sound)]
    return list(engine.search([Problem(id=name, question=name) for name in names]))


def _shard(folder: Path, number: int, num_failing: int, num_sound: int) -> Path:
    path = folder / f"shard-{number:04d}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_failures(path, Failures.sum(result.failures for result in _results(num_failing, num_sound)))
    path.write_text("{}")
    return path


def test_a_shard_has_a_file_of_failures_only_where_samples_failed(tmp_path: Path) -> None:
    """A shard that is written again without failures loses the file."""
    path = _shard(tmp_path, 0, 1, 2)
    assert read_failures([path]) == Failures(num_samples=12, num_failed=4, first_message="scripted failure")
    _shard(tmp_path, 0, 0, 3)
    assert not failures_path(path).exists()
    assert read_failures([path]) == Failures()


def test_a_stage_goes_on_while_any_sample_was_given(tmp_path: Path) -> None:
    """One sound problem in one shard is enough, and nothing is removed."""
    for other in ((1, 1), (0, 2)):
        shards = [_shard(tmp_path, 0, 2, 0), _shard(tmp_path, 1, *other)]
        assert check_stage(shards, "round 1: search").num_failed == 4 * (2 + other[0])
        assert all(path.exists() for path in shards)


def test_a_stage_of_which_every_sample_failed_ends_the_run_and_is_asked_again(tmp_path: Path) -> None:
    """One sentence with count and reason; no shard is left, so that the same command begins the stage anew."""
    shards = [_shard(tmp_path, number, 2, 0) for number in range(2)]
    with pytest.raises(BackendError, match="round 1: search: samples must be given: all 16 samples failed, the first with: scripted"):
        check_stage(shards, "round 1: search")
    assert list(tmp_path.iterdir()) == []


def test_the_figures_of_a_round_name_the_stages(tmp_path: Path) -> None:
    """Counts by folder, and the first message; nothing is added where nothing failed."""
    assert failure_figures(tmp_path) is None
    _shard(tmp_path / "trees", 0, 0, 1)
    assert failure_figures(tmp_path) is None
    _shard(tmp_path / "trees", 1, 1, 1)
    _shard(tmp_path / "evaluation" / "test" / "greedy", 0, 1, 0)
    expected = {"evaluation/test/greedy": 4, "trees": 4}
    assert failure_figures(tmp_path) == FailureFigures(failed_samples=expected, first_failure="scripted failure")
