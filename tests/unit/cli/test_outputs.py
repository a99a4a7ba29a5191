"""Every command keeps what it did not write, and what it reads."""

import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.locks import held
from tests.folders import contents
from tests.models import save_tiny_policy

COMMANDS = {
    "solve --output": ["solve", "--input", "in.jsonl", "--output", "OUT", "--policy", "model"],
    "solve --tree": ["solve", "what?", "--tree", "OUT", "--policy", "model"],
    "prm score": ["prm", "score", "in.jsonl", "--model", "model", "--output", "OUT"],
    "prm eval": ["prm", "eval", "in.jsonl", "--model", "model", "--json", "OUT"],
    "prm train": ["prm", "train", "in.jsonl", "--init", "model", "--output", "OUT"],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with an input, a thesis, and a folder of somebody's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"id": "1", "question": "1+1?", "answer": "2"}\n')
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("years of work")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("target", ["thesis.txt", "in.jsonl", "folder", ".", ".."])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_no_command_replaces_what_is_not_its_own(place, command, target, overwrite):
    """Foreign files, the input, folders that hold something, and the working directory: one sentence before any work, nothing changed."""
    before = contents(place)
    done = CliRunner().invoke(app, [target if word == "OUT" else word for word in COMMANDS[command]] + overwrite)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: --"), done.stderr
    assert done.stderr.count("\n") == 1
    assert contents(place) == before


@pytest.mark.parametrize("command", ["solve --output", "prm score", "prm train"])
def test_no_command_joins_another_at_the_same_output(place, command):
    """Two calls would mix the finished work that they keep beside the output: the second is refused, and the first one's files stay."""
    save_tiny_policy(place / "model", hidden=32, layers=1)
    (place / "OUT.part").write_text('{"schema_version": ')
    before = contents(place)
    more = ["--method", "majority"] if command == "solve --output" else []
    with held(place / "OUT"):
        done = CliRunner().invoke(app, COMMANDS[command] + more)
    assert done.exit_code == 2 and "only one process may write here at a time" in done.stderr, done.output
    assert done.stderr.count("error: ") == 1
    assert contents(place) == before


def test_a_rejected_setting_leaves_no_trace(place):
    """The right command works afterwards, and --dry-run refuses the same settings."""
    save_tiny_policy(place / "model", hidden=32, layers=1)
    text = '[problems]\ntrain = "in.jsonl"\ntest = "in.jsonl"\n[policy]\nmodel = "model"\n'
    (place / "c.toml").write_text(text)
    for more in ([], ["--dry-run"]):
        done = CliRunner().invoke(app, ["evolve", "c.toml", "--run-dir", "R", "--set", "format.answer_pattern=(((", *more])
        assert done.exit_code == 2
        assert "answer_pattern" in done.stderr
        assert not (place / "R").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("times", [1, 2])
def test_signals_end_quietly_with_their_codes(place, number, code, times):
    """Once or twice: no traceback, no half-written file, and the lock is free again."""
    script = (
        "import sys, time; from stepladder.cli.app import app; from stepladder.cli.signals import handle_signals\n"
        "from stepladder.cli.errors import errors_explained\n"
        "@app.command()\ndef wait():\n"
        "    with errors_explained(False):\n"
        "        try:\n            print('ready', flush=True)\n            time.sleep(60)\n"
        "        finally:\n            print('ending', flush=True); time.sleep(60 if len(sys.argv) > 2 else 0)\n"
        "handle_signals(); app(['wait'])"
    )
    process = subprocess.Popen([sys.executable, "-c", script, *["x"] * times], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "ending\n"
    if times == 2:
        time.sleep(0.2)
        process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
