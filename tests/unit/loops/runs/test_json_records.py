"""Facts of a run that are read back: what is well-formed JSON and yet no fact of a run is one sentence."""

import json
from pathlib import Path

import pytest

from stepladder.errors import CheckpointError
from stepladder.loops.runs.evaluation_rows import PoolRow, check_problems, read_pools
from stepladder.loops.runs.results import PolicyTraining, TrainingSummary
from tests.report_run import SUMMARY


@pytest.mark.parametrize("name", ["rows", "last_loss"])
def test_numbers_that_nothing_can_compute_with_are_refused(name: str) -> None:
    """Python reads an integer of any length, and fails where it becomes a float or a text."""
    plain = {"sft": {**SUMMARY.to_dict(), name: 10**5000}}
    with pytest.raises(CheckpointError, match=f"^policy.json: must be the summary of a training: 'sft.{name}' must be below"):
        PolicyTraining.from_dict(plain, "policy.json")
    last = (2**63 - 1,)
    assert TrainingSummary.from_dict({**SUMMARY.to_dict(), "rows": last[0]}, "policy.json").rows == last[0]


def test_a_number_in_a_list_is_named_by_its_place() -> None:
    """The curve of a training is a list of lists."""
    with pytest.raises(CheckpointError, match=r"'curve\.1\.0' must be below"):
        TrainingSummary.from_dict({**SUMMARY.to_dict(), "curve": [[1, 0.5, None], [-(2**63), 0.5, None]]}, "sft.json")


def test_an_evaluation_that_lacks_a_problem_is_named(tmp_path: Path) -> None:
    """A row fewer, a row twice, and a row without samples: figures of the others would be figures of something else."""
    sample = {"num_tokens": 1, "answer_key": None, "score": None, "correct": False}
    plain = [{"problem_id": name, "samples": [sample]} for name in "abc"]

    def rows(found: list[dict]) -> list[PoolRow]:
        path.write_text(json.dumps({"rows": found}))
        return read_pools(path)

    path = tmp_path / "shard-0001.json"
    check_problems(path, rows(plain), "abc")
    with pytest.raises(CheckpointError, match=f"^{path}: must hold one row for each of its 3 problems: 'c' is missing -- remove the file"):
        check_problems(path, rows(plain[:2]), "abc")
    with pytest.raises(CheckpointError, match=f"^{path}: .* got 4 rows in another order, or of other problems -- remove the file"):
        check_problems(path, rows([*plain, plain[0]]), "abc")
    with pytest.raises(CheckpointError, match=f"^{path}: must hold samples of every problem: 'b' has none -- remove the file"):
        check_problems(path, rows([plain[0], {"problem_id": "b", "samples": []}, plain[2]]), "abc")
