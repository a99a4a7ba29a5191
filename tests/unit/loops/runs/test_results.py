"""The figures of a round: the stored form and back, files of earlier versions, and files that are something else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepladder.errors import CheckpointError
from stepladder.loops.runs.directory import RunDir
from stepladder.loops.runs.results import (
    ROUND_SCHEMA_VERSION,
    FailedTraining,
    FailureFigures,
    LabelCounts,
    RoundRow,
    RoundTraining,
    RowCounts,
    TrainingSummary,
)
from stepladder.loops.runs.token_use import TokenUse
from tests.report_run import SEARCH, SUMMARY, full_rows, unmeasured

USE = TokenUse(unique_tokens=100, forwarded_tokens=120, prefix_tokens=1000, cached_tokens=900, prm_forwarded_tokens=None)


def variants() -> list[RoundRow]:
    """Return rows of every shape."""
    rows = full_rows()
    failed = RoundTraining(prm=FailedTraining(failed="the loss must be finite"))
    ensemble = RoundTraining(prm=TrainingSummary.of_ensemble([SUMMARY, replace(SUMMARY, updates=10, last_loss=0.5)]))
    return [
        *rows,
        replace(rows[0], training=RoundTraining(), seconds=None),
        replace(rows[1], search=replace(SEARCH, token_use=USE, rollout_tokens=7), training=failed),
        replace(rows[1], held_out=unmeasured(), test=unmeasured(), training=ensemble, nothing_learned="none of 3 problems was solved"),
        replace(rows[2], failures=FailureFigures(failed_samples={"trees": 4}, first_failure="refused")),
    ]


@pytest.mark.parametrize("row", variants())
def test_a_row_survives_its_stored_form(row: RoundRow) -> None:
    """What was written is what is read, nested records included."""
    assert RoundRow.from_dict(json.loads(json.dumps(row.to_dict())), "here") == row


def test_the_stored_form_is_flat() -> None:
    """The keys that scripts read: the headline, intervals beside accuracies, one level in each split."""
    plain = json.loads(json.dumps(full_rows()[1].to_dict()))
    assert (plain["policy_pass_at_1"], plain["search_accuracy"], plain["best_of_n_accuracy"]) == (0.45, 0.66, 0.5)
    assert plain["test"]["majority_accuracy_interval"] == pytest.approx([0.43, 0.53])
    assert plain["test"]["search_against_majority"]["num_better"] == 40
    assert plain["test"]["curves"]["search"][0] == [7, 0.0]
    assert plain["labels"]["pairs"]["kept"] == 1204
    assert plain["training"]["policy"]["sft"]["updates"] == 90
    assert "members" not in plain["training"]["prm"]
    assert "failed_samples" not in plain
    assert plain["schema_version"] == ROUND_SCHEMA_VERSION


def test_a_row_without_a_version_is_of_the_first_one() -> None:
    """Files that were written before versions still load."""
    plain = full_rows()[2].to_dict()
    del plain["schema_version"]
    assert RoundRow.from_dict(plain, "here") == full_rows()[2]


def without(plain: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return nested containers without one key."""
    first, *rest = keys
    if rest:
        return {**plain, first: without(plain[first], *rest)}
    return {name: value for name, value in plain.items() if name != first}


PLAIN = json.loads(json.dumps(full_rows()[1].to_dict()))


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        (without(PLAIN, "accepted"), "'accepted' is missing"),
        (without(PLAIN, "test", "problems"), r"'test.problems' is missing"),
        (without(PLAIN, "labels", "pairs", "kept"), r"'labels.pairs.kept' is missing"),
        ({**PLAIN, "foreign": 1}, "'foreign' is not known here"),
        ({**PLAIN, "search": {**PLAIN["search"], "foreign": 1}}, r"'search.foreign' is not known here"),
        ({**PLAIN, "round": "one"}, "'round' input should be a valid integer"),
        ({**PLAIN, "test": None}, "'test' input should be"),
        ({**PLAIN, "test": {**PLAIN["test"], "pass_at_1_interval": [0.1]}}, "interval"),
        ({**PLAIN, "schema_version": 9}, "schema_version must be 1: got 9"),
        ([], "must be the figures of a round: got list"),
        (None, "must be the figures of a round: got NoneType"),
    ],
)
def test_other_files_are_one_sentence_with_their_place(plain: object, words: str) -> None:
    """A missing or foreign key, a wrong type or version is named; nothing ends in a KeyError."""
    with pytest.raises(CheckpointError, match=words) as caught:
        RoundRow.from_dict(plain, "rounds/001/round.json")
    assert str(caught.value).startswith("rounds/001/round.json: ")
    assert " -- " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    """Half a file, bytes that are no text, and brackets without end."""
    run = RunDir(root=tmp_path)
    run.finish_round(full_rows()[0])
    (run.round(0) / "round.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"round\.json: must be the figures of a round"):
        run.rows()


def test_counts_of_shards_add_up() -> None:
    """By kind and by reason; kinds that no shard has stay out."""
    shards = [
        LabelCounts(traces=RowCounts(kept=1, dropped_by_reason={"a": 1}), pairs=RowCounts(kept=2), values=RowCounts(kept=number))
        for number in (3, 4)
    ]
    total = LabelCounts.sum(shards)
    assert total == LabelCounts(traces=RowCounts(kept=2, dropped_by_reason={"a": 2}), pairs=RowCounts(kept=4), values=RowCounts(kept=7))
    assert list(total.to_dict()) == ["traces", "pairs", "values"]


def test_an_ensemble_has_sums_means_and_members() -> None:
    """Updates, rows and tokens add up, losses are averaged."""
    both = TrainingSummary.of_ensemble([SUMMARY, replace(SUMMARY, updates=10, first_loss=2.234, dropped_by_reason={"long": 3})])
    assert (both.updates, both.rows, both.first_loss, both.dropped_by_reason) == (100, 1220, pytest.approx(1.734), {"long": 3})
    assert [member["updates"] for member in both.to_dict()["members"]] == [90, 10]
    assert TrainingSummary.of_ensemble([SUMMARY]) is SUMMARY
