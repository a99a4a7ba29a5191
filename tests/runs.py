"""A run small enough for a test: random weights, a task that chance solves now and then, every stage exercised.

A step that contains a letter or digit is final and its last one is the answer, so a random policy over 60 characters is right about once
in forty samples: rare enough to leave wrong traces, common enough that every kind of training row exists.
"""

import json
import random
import string
from pathlib import Path

from tests.models import save_tiny_policy

ANSWERS = string.digits + string.ascii_lowercase


def write_problems(path: Path, *, prefix: str, count: int, seed: int) -> Path:
    """Write a JSONL file of problems with single-character answers."""
    rng = random.Random(seed)
    rows = [{"id": f"{prefix}-{i}", "question": f"{prefix} {i} {rng.choice(ANSWERS)}", "answer": rng.choice(ANSWERS)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tiny_config(folder: Path, *, rounds: int = 2, workers: int = 2, num_train: int = 24) -> Path:
    """Write problems, a model and a configuration under ``folder`` and return the configuration's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, seed in (("train", num_train, 1), ("held_out", 10, 2), ("test", 10, 3)):
        write_problems(folder / f"{split}.jsonl", prefix=split, count=count, seed=seed)
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
answer_pattern = "([a-z0-9])[^a-z0-9]*$"

[policy]
model = "model"
device = "cpu"

[search]
simulations = 8
max_depth = 4
max_step_tokens = 3
options = {{ num_children = 4, wave = 2 }}

[evaluate]
simulations = 4
samples = 4
options = {{ num_children = 4, wave = 2 }}

[labels]
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

[prm.train]
epochs = 1
batch_size = 8
learning_rate = 1e-3
""",
        encoding="utf-8",
    )
    return path
