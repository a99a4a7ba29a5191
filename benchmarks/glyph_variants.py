"""Variants of glyph programs, made of files beside those of the embedded task: keys that let wrong answers pass, and longer programs.

``prepare_variant`` writes a variant to disk, and ``variant_settings`` returns the settings that run on it. Held-out and test problems are
always graded exactly.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import short_keys
from stepladder.embedded import GlyphTask, prepare, settings
from stepladder.embedded.glyphs import LIST_LENGTH, make_world, warmup_rows
from stepladder.files import atomic_write_text

NAME = "glyphs"
"""The embedded task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """What differs from the embedded task."""

    about: str
    """It in one sentence, for readers."""
    task: dict[str, Any] = field(default_factory=dict)
    """Difficulty of the task, as for ``GlyphTask``."""
    examples: dict[int, int] = field(default_factory=dict)
    """Examples of the warm-up by the glyphs of their programs; empty leaves the task's own."""
    key_digits: int = LIST_LENGTH
    """Last digits of the answer that the key of a training problem states, in [1, 5]. A wrong answer that ends like it is graded right."""


VARIANTS = {
    "default": Variant(about="the embedded task"),
    "noisy": Variant(about="training answers are graded by their last digit alone", key_digits=1),
    "deep": Variant(
        about="programs of six glyphs; four in five examples of the warm-up have two to four",
        # Six misread glyphs, not eight: a longer program meets more of them.
        task={"program_length": 6, "right_shares": (0.3, 0.25, 0.2, 0.2, 0.15, 0.15)},
        examples={2: 2400, 3: 2400, 4: 4800, 6: 2400},
    ),
}


def prepare_variant(directory: Path, variant: Variant, task: GlyphTask, *, seed: int) -> None:
    """Write the files of a variant; existing ones stay unchanged.

    Args:
        directory: Where they go.
        variant: The variant.
        task: Sizes of the task; its difficulty is the variant's.
        seed: Seed of the problems, the examples and the weights, >= 0.
    """
    task = replace(task, **variant.task)
    files = prepare(directory / "task", seed=seed, task=task)
    if variant.key_digits < LIST_LENGTH:
        rows = map(json.loads, files.train.read_text(encoding="utf-8").splitlines())
        _write_rows(_short_keys(directory), ({**row, "answer": row["answer"][-variant.key_digits :]} for row in rows))
    if variant.examples:
        world = make_world(task, seed=seed)
        parts = [replace(task, program_length=length, num_warmup=count) for length, count in variant.examples.items()]
        rows = ({**row, "id": f"{part.program_length}-{row['id']}"} for part in parts for row in warmup_rows(part, world))
        _write_rows(_mixed_examples(directory), rows)


def variant_settings(directory: Path, variant: Variant) -> dict[str, Any]:
    """Return the settings for the files that ``prepare_variant`` writes to a directory, as in a configuration file."""
    plain = settings(directory / "task", NAME)
    if variant.key_digits < LIST_LENGTH:
        del plain["problems"]["rule"]
        plain["problems"].update(train=str(_short_keys(directory).resolve()), verifier=f"{Path(short_keys.__file__).resolve()}:grade")
    if variant.examples:
        plain["warmup"]["solutions"] = str(_mixed_examples(directory).resolve())
    return plain


def _short_keys(directory: Path) -> Path:
    return directory / "train-short-keys.jsonl"


def _mixed_examples(directory: Path) -> Path:
    return directory / "warmup-mixed.jsonl"


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    if not path.exists():
        atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
