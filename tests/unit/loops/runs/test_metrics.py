"""The figures of a run as records and as a data frame."""

import pandas

from stepladder import load_run
from tests.report_run import full_rows, write_run


def test_metrics_are_records_and_a_data_frame(tmp_path):
    """Every round is a row; nested figures have dotted names, and what was not measured is missing."""
    run = write_run(tmp_path / "run", full_rows())
    metrics = load_run(str(run.root)).metrics
    assert list(metrics) == run.rows()
    assert metrics[-1] == run.rows()[-1]
    assert len(metrics[1:]) == len(run.rows()) - 1
    frame = metrics.to_pandas()
    assert list(frame.index) == [row.round for row in run.rows()]
    assert list(frame["accepted"]) == [row.accepted for row in run.rows()]
    assert {name.partition(".")[0] for name in frame.columns} <= set(run.rows()[0].to_dict()) | set(run.rows()[-1].to_dict())
    assert "<table" in metrics._repr_html_()


def test_a_run_without_a_finished_round_has_an_empty_frame(tmp_path):
    """Nothing was measured, which is no error."""
    metrics = load_run(write_run(tmp_path / "run", []).root).metrics
    assert len(metrics) == 0
    assert metrics.to_pandas().empty
    assert isinstance(metrics.to_pandas(), pandas.DataFrame)
