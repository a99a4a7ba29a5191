"""A run small enough for a test: a two-layer model, a task that chance solves now and then, every stage exercised.

A solution is a line with a plus sign and a line with one of four letters, the answer. The warm-up teaches that form and nothing about which
letter is right, so a quarter of the samples are right: right and wrong siblings everywhere, and every kind of training row exists.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepladder.cli.app import app
from stepladder.commands import evolve as evolve_command
from tests.inline import inline_pool
from tests.models import save_tiny_policy

ANSWERS = "abcd"


def write_problems(path: Path, *, prefix: str, count: int, seed: int) -> Path:
    """Write a JSONL file of problems with single-character answers."""
    rng = random.Random(seed)
    rows = [{"id": f"{prefix}-{i}", "question": f"{prefix} {i} {rng.choice(ANSWERS)}", "answer": rng.choice(ANSWERS)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_solutions(path: Path, *, count: int) -> Path:
    """Write a JSONL file of solved problems whose answers are drawn at random."""
    rng = random.Random(4)
    rows = [{"id": f"warmup-{i}", "question": f"warmup {i}", "solution": f"+\n{rng.choice(ANSWERS)}\n"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tiny_config(folder: Path, *, rounds: int = 2, workers: int = 2, num_train: int = 24) -> Path:
    """Write problems, a model and a configuration under ``folder`` and return the configuration's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, seed in (("train", num_train, 1), ("held_out", 10, 2), ("test", 10, 3)):
        write_problems(folder / f"{split}.jsonl", prefix=split, count=count, seed=seed)
    write_solutions(folder / "warmup.jsonl", count=256)
    save_tiny_policy(folder / "model")
    path = folder / "tiny.toml"
    path.write_text(
        f"""
[run]
rounds = {rounds}
workers = {workers}
shard_size = 6

[problems]
train = "train.jsonl"
held_out = "held_out.jsonl"
test = "test.jsonl"
rule = "exact"

[format]
answer_pattern = "([a-d])"

[policy]
model = "model"
device = "cpu"

[warmup]
solutions = "warmup.jsonl"
train = {{ learning_rate = 5e-3, batch_size = 32, epochs = 4 }}

[search]
simulations = 8
max_depth = 4
max_step_tokens = 3
options = {{ num_children = 4, wave = 2 }}

[evaluate]
simulations = 4
samples = 4
options = {{ num_children = 4, wave = 2 }}

[labels.pairs]
min_margin = 0.0
rejected_must_fail = false

[sft]
epochs = 1
batch_size = 8
learning_rate = 1e-3

[preference]
epochs = 1
batch_size = 8
learning_rate = 1e-4

[gate]
min_problems = 1

[prm]
rollouts = 4

[prm.train]
epochs = 1
batch_size = 8
learning_rate = 1e-3
""",
        encoding="utf-8",
    )
    return path


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen]:
    """Start the command line in a process group of its own. If the block fails, or ends before the process, the whole group is killed."""
    command = [sys.executable, "-m", "stepladder", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A test run started in the background ignores Ctrl-C, and what it starts would, too.
    with subprocess.Popen(command, **pipes, text=True, env=environment, start_new_session=True, preexec_fn=_heed_interrupts) as process:
        ended = False
        try:
            yield process
            ended = process.poll() is not None
        finally:
            if not ended:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def killed(process: subprocess.Popen) -> bool:
    """Kill the started process, and wait until it and its workers have gone; say whether it still worked."""
    working = process.poll() is None
    process.kill()
    # Workers hold the other ends of the pipes: they are read to their ends when all of them have gone, too.
    process.communicate(timeout=120)
    return working


def files_below(folder: Path) -> list[Path]:
    """Return the files below a directory that need not exist, while another process writes, renames and removes some."""
    # os.walk skips a directory that vanishes while it is listed; pathlib raises.
    return [Path(place) / name for place, _, names in os.walk(folder) for name in names]


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stepladder(*arguments: object) -> subprocess.CompletedProcess:
    """Run the command line to its end."""
    with started(*arguments) as process:
        out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def called(*arguments: object) -> subprocess.CompletedProcess:
    """Run the command line in this process, workers included, where a process of its own would only import PyTorch again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evolve_command, "open_workers", inline_pool)
        done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)
