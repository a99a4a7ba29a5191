"""The file that says what a run is doing: written while it works, gone afterwards, and harmless in between."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stepladder.loops.runs.live import LIVE_FILE, Live, LiveStage, live_tree, overall_left, read_live, remove_live
from tests.report_run import provenance, tree


def a_live(**changes) -> Live:
    """Return what a run of this process does."""
    return replace(
        Live(
            pid=os.getpid(),
            host=os.uname().nodename,
            time=time.time(),
            began=time.time() - 60,
            round=2,
            rounds=3,
            stage="search",
            stage_number=1,
            num_stages=6,
            purpose="looks for right solutions",
            seconds_left=125.0,
            parts=(LiveStage(name="search", items=40, total=144, tokens=9000, solved=7, seconds=3.0),),
        ),
        **changes,
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """With its tree; removing it twice is no error."""
    live = a_live(tree=live_tree(tree("p", origin=provenance(1, policy=0, scorer=None))))
    live.save(tmp_path)
    assert read_live(tmp_path) == live
    remove_live(tmp_path)
    remove_live(tmp_path)
    assert read_live(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": 1}', "[" * 100_000])
def test_a_file_that_is_none_is_as_good_as_missing(tmp_path: Path, text: str) -> None:
    """Another version or a torn copy must not end those who look."""
    (tmp_path / LIVE_FILE).write_text(text)
    assert read_live(tmp_path) is None


def test_a_place_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    """It is for people; the run goes on without."""
    (tmp_path / LIVE_FILE).mkdir()
    a_live().save(tmp_path)
    a_live().save(tmp_path / "missing" / "folder")


def test_the_dead_are_known(tmp_path: Path) -> None:
    """This process lives, one that has ended does not; of another machine only the age of the file speaks."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert a_live().is_alive()
    assert not a_live(pid=ended.pid).is_alive()
    assert a_live(host="elsewhere", pid=ended.pid).is_alive()
    assert not a_live(host="elsewhere", time=time.time() - 1000).is_alive()


def test_the_rest_of_parts_adds_up() -> None:
    """3 s for 40 of 144 items leave 7.8 s; a part that has not begun says nothing."""
    begun, done = a_live().parts[0], LiveStage(name="done", items=5, total=5, seconds=9.0)
    assert begun.seconds_left == pytest.approx(3 / 40 * 104)
    assert overall_left([done, begun]) == pytest.approx(7.8)
    assert overall_left([begun, LiveStage(name="later", total=10)]) is None


def test_a_tree_is_cut_to_its_best_path_and_its_most_visited_nodes() -> None:
    """Of a chain of three and 100 leaves, 40 nodes are kept, parents before children, and texts stay on their line."""
    record = tree("p", origin=provenance(1, policy=0, scorer=None))
    wide = replace(
        record,
        parents=[-1, 0, 1, *[0] * 100],
        depths=[0, 1, 2, *[1] * 100],
        texts=["", "first\nstep", "x" * 500, *["leaf"] * 100],
        token_ids=[[]] * 103,
        logps=[[]] * 103,
        priors=[1.0] * 103,
        scores=[None] * 103,
        visits=[50, 1, 1, *range(100, 0, -1)],
        values=[0.5, 0.9, float("nan"), *[0.1] * 100],
        stop_reasons=["step", "step", "end", *["step"] * 100],
        answers=[None, None, "7", *[None] * 100],
        outcomes=[None, None, 1.0, *[None] * 100],
    )
    shown = live_tree(wide)
    assert (len(shown.nodes), shown.num_nodes) == (40, 103)
    assert [node.text for node in shown.nodes if node.is_best][1:] == ["first step", "x" * 117 + "..."]
    assert all(node.parent < index for index, node in enumerate(shown.nodes))
    assert shown.nodes[2].end == "answer 7, right" and shown.nodes[2].value is None
    assert [node.visits for node in shown.nodes[3:]] == list(range(100, 63, -1))
    json.dumps([node.text for node in shown.nodes], allow_nan=False)


def test_the_time_left_is_not_told_from_the_first_of_many_items():
    """Of 900 updates, 8 tell nothing and 9 do: 9 in 18 seconds leave 891 x 2. Of two problems, one tells."""
    assert LiveStage(name="warm-up", items=8, total=900, seconds=90.0).seconds_left is None
    assert LiveStage(name="warm-up", items=9, total=900, seconds=18.0).seconds_left == 1782.0
    assert LiveStage(name="search", items=1, total=2, seconds=5.0).seconds_left == 5.0
    assert LiveStage(name="search", items=0, total=0).seconds_left is None
