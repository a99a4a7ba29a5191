"""The embedded default: a task, its solved examples and an untrained model, made on the spot, so that a run needs nothing from outside.

The library knows nothing of it. ``prepare`` writes ordinary problem files and an ordinary model directory, and ``settings`` returns an
ordinary configuration that names them.
"""

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

from stepladder.embedded import glyphs
from stepladder.embedded.glyphs import GlyphTask
from stepladder.files import atomic_write_text

DEFAULTS: dict[str, Any] = {
    "run": {"rounds": 4, "shard_size": 50},
    "problems": {"rule": "exact"},
    "format": {"prompt_template": glyphs.PROMPT_TEMPLATE, "step_end": glyphs.STEP_END, "answer_pattern": glyphs.ANSWER_PATTERN},
    "policy": {"device": "cpu", "max_batch": 1024},
    "warmup": {"train": {"learning_rate": 2e-3, "batch_size": 32, "epochs": 2.2, "weight_decay": 0.01}},
    "search": {
        "method": "mcts",
        "simulations": 16,
        "max_depth": 8,
        "max_step_tokens": 12,
        "options": {"num_children": 4, "wave": 2},
    },
    "sft": {"learning_rate": 5e-4, "epochs": 4, "batch_size": 64},
    "preference": {"learning_rate": 1e-4, "epochs": 1, "batch_size": 64, "sft_weight": 0.1},
    "prm": {"train": {"learning_rate": 2e-3, "epochs": 4, "batch_size": 64}},
    "evaluate": {"method": "mcts", "simulations": 8, "samples": 16, "options": {"num_children": 4, "wave": 2}},
}
"""Settings of the embedded run that differ from the general defaults; chosen on held-out problems."""


def settings(directory: Path, *, seed: int) -> dict[str, Any]:
    """Prepare the task and return the configuration of the embedded run as nested plain containers."""
    prepare(directory, seed=seed)
    paths = {
        "problems": {split: str((directory / f"{split}.jsonl").resolve()) for split in ("train", "held_out", "test")},
        "policy": {"model": str((directory / "base-model").resolve())},
        "warmup": {"solutions": str((directory / "warmup.jsonl").resolve())},
    }
    return {section: {**DEFAULTS.get(section, {}), **paths.get(section, {})} for section in DEFAULTS | paths}


def prepare(directory: Path, *, seed: int, task: GlyphTask | None = None) -> None:
    """Write problems, solved examples and base model; what exists is kept, and the same seed writes the same bytes.

    Files: ``train.jsonl``, ``held_out.jsonl`` and ``test.jsonl`` with id, question and answer; ``warmup.jsonl`` with id, question and
    solution; ``base-model/``. All questions are different.
    """
    task = task or GlyphTask()
    world = glyphs.make_world(task, seed=seed)
    questions = glyphs.draw_questions(task, seed=seed)
    for split, count in (("test", task.num_test), ("held_out", task.num_held_out), ("train", task.num_train)):
        rows = [
            {"id": f"{split}-{i}", "question": question, "answer": glyphs.answer(world, question)}
            for i, question in enumerate(islice(questions, count))
        ]
        _write_rows(directory / f"{split}.jsonl", rows)
    rng = random.Random(f"teacher {seed}")
    solved = [
        {"id": f"warmup-{i}", "question": question, "solution": glyphs.teacher_solution(world, question, rng=rng)}
        for i, question in enumerate(islice(questions, task.num_warmup))
    ]
    _write_rows(directory / "warmup.jsonl", solved)
    if not (directory / "base-model").exists():
        from stepladder.embedded.model import save_base_model

        save_base_model(directory / "base-model", seed=seed)


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    if not path.exists():
        atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
