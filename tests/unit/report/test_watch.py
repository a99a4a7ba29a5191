"""``stepladder watch`` on runs that are finished, running, dead, or none at all."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.errors import CheckpointError
from stepladder.locks import locked
from stepladder.loops.runs.directory import LOCK_FILE, RunDir
from stepladder.loops.runs.live import live_tree, remove_live
from stepladder.loops.runs.seen_run import look
from stepladder.report.live_view import line, view
from stepladder.report.watch import begun_last, watch_run
from tests.report_run import full_rows, provenance, tree, write_run
from tests.unit.loops.runs.test_live import a_live

GROWING = live_tree(tree("p-7", origin=provenance(2, policy=1, scorer=1), question="4 1 7 2 \x1b[31m: a c f"))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with four of the four rounds of its settings."""
    return write_run(tmp_path / "run", full_rows())


def _shown(seen, *, width: int = 80, height: int | None = None, **console) -> str:
    out = io.StringIO()
    Console(file=out, width=width, **console).print(view(seen, width=width, height=height))
    return out.getvalue()


def _half(run: RunDir) -> None:
    """Take the last two rounds away."""
    for number in (2, 3):
        (run.round(number) / "round.json").unlink()


def test_a_finished_run_is_shown_and_left(run: RunDir) -> None:
    """Its rounds, and that it is finished; nothing waits."""
    seen = look(run, 3)
    text = _shown(seen)
    assert seen.state() == "finished" and f"{run.root}: finished" in text.replace("\n", "")
    assert "round 3: not accepted (held-out pass@1 " in text and "\nround 3: PRM accepted (held-out within-problem AUC " in text
    assert [row.split()[0] for row in text.splitlines() if re.match(r" +\d ", row)] == ["0", "1", "2", "3"]
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["watch", str(run.root)])
    assert done.exit_code == 0 and "finished" in done.output


def test_a_running_run_shows_its_place_its_speed_and_a_tree(run: RunDir) -> None:
    """Within 80 columns and the lines of the terminal; text of a model cannot drive the terminal."""
    _half(run)
    a_live(tree=GROWING).save(run.root)
    seen = look(run, 3)
    text = _shown(seen)
    assert seen.is_running and "round 2 of 3, stage 1 of 6, search" in text
    assert "40/144" in text and "3,000" in text and "7 " in text and "about 2 min left" in text
    assert "tree of p-7" in text and "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert len(_shown(seen, height=30).splitlines()) <= 30
    assert len(_shown(seen, height=10).splitlines()) < len(text.splitlines())


def test_colours_are_those_that_the_terminal_wants(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal has colours unless NO_COLOR is set; text then keeps its weight alone."""
    _half(run)
    a_live(tree=GROWING).save(run.root)
    monkeypatch.setenv("TERM", "xterm-256color")
    seen, colour = look(run, 3), re.compile(r"\x1b\[[0-9;]*3[0-9]")
    assert colour.search(_shown(seen, force_terminal=True))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(_shown(seen, force_terminal=True))


def test_a_dead_run_is_called_dead(run: RunDir) -> None:
    """A killed process leaves its file; one that was stopped in order does not. Both may go on."""
    _half(run)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    a_live(pid=ended.pid, tree=GROWING).save(run.root)
    text = _shown(look(run, 3), width=200)
    assert "its process has died; the same evolve command goes on" in text and "tree of" not in text
    assert CliRunner().invoke(app, ["watch", str(run.root)]).exit_code == 0
    remove_live(run.root)
    assert look(run, 3).state() == "stopped; the same evolve command goes on"


def test_a_run_that_goes_on_after_a_kill_is_running(run: RunDir) -> None:
    """The next process holds the lock before it says what it does; what the dead one was doing is not shown as its work."""
    _half(run)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    a_live(pid=ended.pid, tree=GROWING).save(run.root)
    with locked(run.root / LOCK_FILE, place=run.root):
        seen = look(run, 3)
        assert seen.state() == "running"
        assert "tree of" not in _shown(seen)
    assert look(run, 3).state() == "its process has died; the same evolve command goes on"


def test_lines_are_printed_without_a_terminal_until_the_run_ends(run: RunDir) -> None:
    """A line for every stage, then the whole picture; nothing is drawn over."""
    _half(run)
    a_live().save(run.root)
    out = io.StringIO()

    def end() -> None:
        time.sleep(0.15)
        a_live(stage="evaluate", stage_number=6, parts=()).save(run.root)
        time.sleep(0.3)
        remove_live(run.root)

    thread = threading.Thread(target=end)
    thread.start()
    watch_run(run.root, Console(file=out, width=80), interval_s=0.05)
    thread.join()
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("round 2 of 3, stage 1 of 6, search: search 40/144, 3,000 tokens/s, solved 7 (whole run 1:00")
    assert lines[1].startswith("round 2 of 3, stage 6 of 6, evaluate (whole run")
    assert "stopped" in out.getvalue() and "\x1b" not in out.getvalue()


def test_a_process_that_begins_or_ends_is_waited_for(run: RunDir) -> None:
    """It holds the lock before it says what it does, and after it has said it for the last time."""
    _half(run)
    lock, out = run.root / LOCK_FILE, io.StringIO()
    lock.write_text(json.dumps({"host": os.uname().nodename, "pid": os.getpid()}))

    def work() -> None:
        for change in (a_live().save, remove_live, lambda root: lock.unlink()):
            time.sleep(0.15)
            change(run.root)

    thread = threading.Thread(target=work)
    thread.start()
    watch_run(run.root, Console(file=out, width=80), interval_s=0.02)
    thread.join()
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("round 2 of 3, stage 1 of 6, search: search 40/144") and "stopped" in out.getvalue()


def test_one_line_says_what_is_done() -> None:
    """Before the first report, only the stage."""
    assert line(a_live(parts=(), seconds_left=None, began=0.0, time=65.0)) == "round 2 of 3, stage 1 of 6, search (whole run 1:05)"


def test_ctrl_c_ends_it_quietly_and_not_the_run(run: RunDir) -> None:
    """Exit code 130, no traceback, and the file of the run is as it was."""
    _half(run)
    a_live().save(run.root)
    before = (run.root / "live.json").read_bytes()
    watching = subprocess.Popen(
        [sys.executable, "-m", "stepladder", "watch", str(run.root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    assert watching.stdout.readline().startswith("round 2 of 3")
    watching.send_signal(signal.SIGINT)
    assert (watching.communicate(timeout=30)[1], watching.returncode) == ("", 130)
    assert (run.root / "live.json").read_bytes() == before


def test_what_is_no_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the remedy; without a name the run that was touched last is watched."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="must hold a run: found none"):
        begun_last()
    assert CliRunner().invoke(app, ["watch", "nothing"]).exit_code != 0
    for name, at in (("old", 100), ("new", 300), ("older", 50)):
        events = write_run(Path("runs") / name, full_rows()[:1]).root / "events.jsonl"
        os.utime(events, (at, at))
    assert begun_last() == Path("runs/new")
