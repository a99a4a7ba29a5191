"""Every file that a run, an export, an evaluation or a model directory holds, damaged in every way: one sentence, and nothing else broken.

One small run is made once. Each case damages one file, runs a command that reads it in this process, and puts everything back.
"""

import json
import os
import random
import re
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from stepladder import embedded
from stepladder.cli.app import app
from stepladder.commands import solve_search
from stepladder.policy.prompts import StepFormat
from stepladder.serve.server import SearchServer
from tests.models import save_tiny_policy
from tests.runs import stepladder, write_tiny_config

_KEPT = ("events.jsonl", "report.html", "metrics.jsonl", ".lock")
"""What a command may write although it fails: the record of its stages, and what is made anew each time."""


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for place in rng.sample(range(len(changed)), min(3, len(changed))):
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _huge_number(data: bytes, rng: random.Random) -> bytes:
    """Put an integer that no float holds in the place of another one."""
    found = list(re.finditer(rb"(?<=[:\[,] )\d+(?=[,\]}\s])", data))
    if not found:
        return data
    place = rng.choice(found)
    return data[: place.start()] + b"1" + b"0" * 400 + data[place.end() :]


def _last_row_lost(data: bytes, rng: random.Random) -> bytes:
    """Remove the last item of a list of rows."""
    content = json.loads(data)
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        return data
    content["rows"].pop()
    return json.dumps(content).encode()


DAMAGE = {
    "half": lambda data, rng: data[: len(data) // 2],
    "flipped": _flip,
    "flipped elsewhere": lambda data, rng: _flip(_flip(data, rng), rng),
    "empty": lambda data, rng: b"",
    "a list": lambda data, rng: b'[1, {"rows": [1]}, null]\n',
    "an object": lambda data, rng: b'{"rows": 5, "facts": [], "config": 3, "schema_version": 1, "stepladder": {}}\n',
    "nested": lambda data, rng: b"[" * 100_000,
    "garbage": lambda data, rng: rng.randbytes(300),
    "a huge number": _huge_number,
    "a lost row": _last_row_lost,
    "unreadable": None,
    "missing": None,
}

_OF_JSON = ("a huge number", "a lost row")
"""Damage that leaves well-formed JSON, for files of JSON alone, and not for all of them."""

RUN_FILES = {
    "run.json": ("report", "solve", "export preference", "finish", "eval"),
    "metrics.jsonl": ("report", "finish"),
    "events.jsonl": ("report", "finish"),
    "rounds/000/round.json": ("report", "solve", "finish"),
    "rounds/001/round.json": ("report", "solve", "export preference"),
    "rounds/001/labels.json": ("export preference", "finish"),
    "rounds/001/trees/shard-0000.parquet": ("report", "export tree", "export preference", "finish"),
    "rounds/001/trees/shard-0000.tokens.json": ("finish",),
    "rounds/001/traces/shard-0000.parquet": ("export sft", "finish"),
    "rounds/001/pairs/shard-0000.parquet": ("export preference", "finish"),
    "rounds/001/values/shard-0000.parquet": ("finish",),
    "rounds/001/rollouts/shard-0000.parquet": ("export value", "finish"),
    "rounds/001/rollouts/shard-0000.tokens.json": ("finish",),
    "rounds/001/rollout-values/shard-0000.parquet": ("export value", "finish"),
    "rounds/001/evaluation/test/greedy/shard-0000.json": ("report", "finish"),
    "rounds/001/evaluation/test/samples/shard-0001.json": ("report", "finish"),
    "rounds/001/evaluation/test/search/shard-0000.json": ("report", "finish"),
    "rounds/001/evaluation/test/search/shard-0000.parquet": ("report", "finish"),
    "rounds/001/evaluation/held_out/greedy/shard-0000.json": ("finish",),
    "rounds/000/models/policy.json": ("report", "solve"),
    "rounds/001/models/policy.json": ("finish",),
    "rounds/001/models/prm.json": ("finish",),
    "rounds/001/models/policy.digest": ("finish",),
    "rounds/001/models/prm.digest": ("finish",),
    "rounds/000/models/policy.digest": ("solve", "finish"),
    "rounds/000/models/policy/model.safetensors": ("solve", "finish", "eval"),
    "rounds/000/models/policy/config.json": ("solve",),
    "rounds/000/models/policy/tokenizer.json": ("solve",),
}
"""Files of a run, and the commands that read them."""

OTHER_FILES = {
    "bare/config.json": ("solve model",),
    "bare/generation_config.json": ("solve model",),
    "bare/tokenizer.json": ("solve model",),
    "bare/tokenizer_config.json": ("solve model",),
    "bare/model.safetensors": ("solve model", "serve"),
    "bare/stepladder_format.json": ("solve model",),
    "prm/stepladder_prm.json": ("prm score",),
    "prm/config.json": ("prm score",),
    "prm/tokenizer.json": ("prm score",),
    "prm/tokenizer_config.json": ("prm score",),
    "prm/model.safetensors": ("prm score",),
    "solutions.jsonl": ("prm score",),
    "solutions.json": ("prm score json",),
    "export/README.md": ("import",),
    "export/data/train-00000.parquet": ("import",),
    "questions.jsonl": ("solve file",),
    "questions.parquet": ("solve parquet",),
    "evaluation/eval.json": ("eval",),
    "evaluation/cells/greedy/any/seed-0/shard-0000.json": ("eval",),
    "evaluation/results.json": ("eval",),
    "tiny.toml": ("dry run",),
    "train.jsonl": ("dry run", "finish"),
    "test.jsonl": ("dry run",),
    "warmup.jsonl": ("dry run", "finish"),
    "start-run/start/task.json": ("evolve start",),
    "stopped.jsonl.part": ("solve stopped",),
    "ensemble/member-00/config.json": ("solve ensemble",),
    "ensemble/member-01/config.json": ("solve ensemble", "prm score ensemble"),
    "ensemble/member-01/model.safetensors": ("solve ensemble", "prm score ensemble"),
    "ensemble/member-01/stepladder_prm.json": ("solve ensemble", "prm score ensemble"),
    "ensemble/member-01/tokenizer.json": ("solve ensemble",),
    "other-prm/model.safetensors": ("solve ensemble",),
    "other-prm/stepladder_prm.json": ("solve ensemble",),
    "importing/imported/export/pairs/shard-0000.parquet": ("evolve imported",),
    "keys.txt": ("serve",),
    "other-prm/config.json": ("serve",),
}
"""Files elsewhere, and the commands that read them."""


def arguments(command: str, place: Path) -> list[str]:
    """Return the words of a command."""
    run, out, stopped = str(place / "run"), str(place / "out"), str(place / "stopped.jsonl")
    name, _, kind = command.partition(" ")
    small = ["--simulations", "2", "--method", "best-of-n"]
    bare = ["--policy", str(place / "bare")]
    words = {
        "report": ["report", run],
        "solve": ["solve", "test 1 a", "--run", run, *small],
        "solve model": ["solve", "test 1 a", "--policy", str(place / "bare"), *small],
        "solve file": ["solve", "--input", str(place / "questions.jsonl"), "--output", str(place / "answers.jsonl"), "--run", run, *small],
        "solve parquet": ["solve", "--input", str(place / "questions.parquet"), "--output", out, "--run", run, *small],
        "finish": ["evolve", str(place / "tiny.toml"), "--run-dir", run],
        "dry run": ["evolve", str(place / "tiny.toml"), "--run-dir", str(place / "new"), "--dry-run"],
        "evolve start": ["evolve", "--run-dir", str(place / "start-run")],
        "eval": ["eval", "--run", run, "--out", str(place / "evaluation"), "--method", "majority", "--tokens", "4", "--limit", "2"],
        "prm score": ["prm", "score", str(place / "solutions.jsonl"), "--model", str(place / "prm"), "--output", out],
        "prm score json": ["prm", "score", str(place / "solutions.json"), "--model", str(place / "prm"), "--output", out],
        "prm score ensemble": ["prm", "score", str(place / "solutions.jsonl"), "--model", str(place / "ensemble"), "--output", out],
        "import": ["import", str(place / "export"), "--run-dir", str(place / "new")],
        "evolve imported": ["evolve", str(place / "tiny.toml"), "--run-dir", str(place / "importing"), "--stop-after", "0"],
        "solve stopped": ["solve", "--input", str(place / "three.jsonl"), "--output", stopped, "--tree", f"{stopped}.json", *bare, *small],
        "solve ensemble": ["solve", "test 1 a", *bare, "--prm", str(place / "ensemble"), "--prm", str(place / "other-prm"), *small],
        "serve": ["serve", *bare, "--prm", str(place / "other-prm"), "--api-key-file", str(place / "keys.txt"), "--port", "0"],
    }
    return words[command] if name != "export" else ["export", run, "--format", kind, "--to", out]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished run, a bare model, a PRM, an export, an evaluation, and files of questions and solutions."""
    return make_place(tmp_path_factory.mktemp("damage"))


def make_place(folder: Path) -> Path:
    """Fill a directory with one of every kind of file, and return it."""
    settings = write_tiny_config(folder, rounds=1, workers=1, num_train=6)
    settings.write_text(settings.read_text().replace("epochs = 4", "epochs = 1"))
    done = stepladder("evolve", settings, "--run-dir", folder / "run")
    assert done.returncode == 0, done.stderr
    save_tiny_policy(folder / "bare", hidden=32, layers=1)
    StepFormat(answer_pattern="([a-d])").save(folder / "bare")
    shutil.copytree(folder / "run/rounds/001/models/prm", folder / "prm")
    rows = [{"question": "test 1 a", "steps": ["+\n", "a\n"]}]
    (folder / "solutions.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (folder / "solutions.json").write_text(json.dumps(rows))
    (folder / "questions.jsonl").write_text('{"id": "1", "question": "test 1 a"}\n')
    pq.write_table(pa.table({"id": ["1"], "question": ["test 1 a"]}), folder / "questions.parquet")
    embedded.prepare(folder / "start-run/start", seed=0)
    for command in ("report", "export preference", "eval"):
        done = CliRunner().invoke(app, arguments(command, folder))
        assert done.exit_code == 0, done.output
    shutil.move(folder / "out", folder / "export")
    for member in ("ensemble/member-00", "ensemble/member-01", "other-prm"):
        shutil.copytree(folder / "prm", folder / member)
    (folder / "keys.txt").write_text("a-key\nanother-key\n")
    _import(folder)
    _stop(folder)
    return folder


def _import(folder: Path) -> None:
    """Let a run learn from the export, and finish its warm-up, after which it stands before its first round."""
    importing = ["import", str(folder / "export"), "--run-dir", str(folder / "importing")]
    for words in (importing, arguments("evolve imported", folder)):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output


def _stop(folder: Path) -> None:
    """Answer two of three questions, as a call does that is killed between two of them."""
    rows = [{"id": str(number), "question": f"test {number} a"} for number in range(3)]
    (folder / "three.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    search = solve_search.search_reviewed

    def stopping(*given: Any) -> Iterator[Any]:
        for number, found in enumerate(search(*given)):
            if number == 2:
                raise KeyboardInterrupt
            yield found

    with patch.object(solve_search, "search_reviewed", stopping):
        assert CliRunner().invoke(app, arguments("solve stopped", folder)).exit_code == 130
    assert len((folder / "stopped.jsonl.part").read_text().splitlines()) == 3


def _snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return the content of every file, None for directories."""
    paths = sorted(path for path in folder.rglob("*") if path.name not in _KEPT)
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in paths}


@contextmanager
def damaged(path: Path, how: str, seed: str) -> Iterator[None]:
    """Damage a file while the block runs."""
    data = path.read_bytes()
    rights = path.stat().st_mode
    try:
        if how == "missing":
            path.unlink()
        elif how == "unreadable" and os.geteuid() != 0:
            path.chmod(0)
        elif how == "unreadable":
            # Rights do not stop root: a directory in the file's place does.
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(DAMAGE[how](data, random.Random(seed)))
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        elif path.exists():
            path.chmod(rights)
        path.write_bytes(data)


def _changes(path: Path, how: str, seed: str) -> bool:
    """Say whether a file has what the damage changes."""
    data = path.read_bytes()
    return DAMAGE[how](data, random.Random(seed)) != data


def run_command(command: str, place: Path) -> tuple[int, str]:
    """Run a command in this process; return its exit code and output, or -1 and the traceback of what it let through."""
    last = place / "run/rounds/001/round.json"
    finished = last.read_bytes() if command == "finish" else b""
    if command == "finish":
        # Without its figures a round is not finished: evolve reads all that the round made, and works out nothing anew.
        last.unlink()
    # A server whose models are loaded has nothing more to read.
    with patch.object(SearchServer, "run", lambda self, sockets: None):
        done = CliRunner().invoke(app, arguments(command, place))
    if command == "finish":
        last.write_bytes(finished)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return -1, "".join(traceback.format_exception(done.exception))
    return done.exit_code, done.output


def complaints(code: int, output: str, path: Path, place: Path) -> list[str]:
    """Say how an end differs from what every command promises: a known exit code, and at most one line, which names the file."""
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    # A setting may name a file as it was written, seen from the configuration.
    holders = [path.name, *(str(parent) for parent in path.parents if place in parent.parents)]
    wrong = {
        "must end with 0, 1 or 2": code not in (0, 1, 2),
        "must show no traceback": "Traceback" in output,
        "must say one sentence where it fails": len(errors) != (code != 0),
        "must not call it a bug": "bug of stepladder" in output,
        "must name the file or its directory": code != 0 and not any(name in line for name in holders for line in errors),
    }
    return [rule for rule, broken in wrong.items() if broken]


@pytest.mark.parametrize("path", [*(f"run/{name}" for name in RUN_FILES), *OTHER_FILES])
def test_a_damaged_file_is_one_sentence(place: Path, path: str) -> None:
    """Whatever is wrong with a file, and whichever command reads it: no traceback, and no other file changes where the command fails."""
    assert not list(faults(place, path))


def faults(place: Path, path: str) -> Iterator[str]:
    """Yield what goes wrong when a file is damaged in each way and each command that reads it is run."""
    before = _snapshot(place)
    for command in OTHER_FILES.get(path) or RUN_FILES[path.removeprefix("run/")]:
        for how in DAMAGE:
            if how == "missing" and command == "finish":
                # That is no damage: evolve makes what is missing again.
                continue
            seed = f"{path} {how}"
            if how in _OF_JSON and not (path.endswith(".json") and _changes(place / path, how, seed)):
                # Whole files would be used: a run would begin.
                continue
            with damaged(place / path, how, seed):
                code, output = run_command(command, place)
            wrong = complaints(code, output, place / path, place)
            changed = _put_back(place, before)
            if changed and code != 0 and command != "finish":
                wrong.append(f"must change nothing: {changed}")
            if wrong:
                yield f"{path}, {how}, {command}: {'; '.join(wrong)}\n{output}"


def _put_back(place: Path, before: dict[str, bytes | None]) -> list[str]:
    """Undo what a command has written, and return the names of what it changed."""
    after = _snapshot(place)
    changed = sorted(name for name in {*before, *after} if before.get(name, b"?") != after.get(name, b"?"))
    for name in reversed(changed):
        path = place / name
        if name not in before:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in changed:
        if (content := before.get(name)) is not None:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    return changed
