"""The embedded tasks, which ``stepladder evolve`` runs without a configuration: the puzzle, and glyph programs.

``prepare`` writes a task to disk, as a user could do by hand. ``settings`` returns the configuration that runs on it. The rest of the
library reads those files and knows nothing about moves or glyphs.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stepladder.embedded import glyphs, puzzle, recipes
from stepladder.embedded.glyphs import GlyphTask
from stepladder.embedded.puzzle import PuzzleTask
from stepladder.errors import CheckpointError, check, right_name
from stepladder.files import atomic_directory, read_json_object
from stepladder.types import derive_seed

__all__ = [
    "DEFAULT_TASK",
    "RECIPE_TASK",
    "TASKS",
    "EmbeddedTask",
    "GlyphTask",
    "PreparedTask",
    "PuzzleTask",
    "prepare",
    "settings",
    "task_files",
]

TASK_FILE = "task.json"
_TASK_VERSION = 1
_SPLITS = ("train", "held_out", "test")

Size = GlyphTask | PuzzleTask
"""The size of a task; its class says which task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedTask:
    """Paths of a task's files."""

    train: Path
    """Problems to search."""
    held_out: Path
    """Problems for the gate."""
    test: Path
    """Problems for the reported figures."""
    warmup: Path
    """Solved examples."""
    base_model: Path
    """Untrained policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedTask:
    """A task that comes with the package."""

    size: type[GlyphTask] | type[PuzzleTask]
    """Class of its sizes; without arguments the tested one."""
    write: Callable[[Path, Any, int], None]
    """Writes the files of a size and a seed into a directory."""
    about: str
    """What it asks, in one clause."""
    recipe: dict[str, Any]
    """Settings that differ from the defaults."""
    seconds: tuple[float, float]
    """Seconds of its warm-up and of one round, on two CPU cores."""
    problems: dict[str, Any]
    """Grading of its answers."""
    format: dict[str, str]
    """Written form of prompts, steps and answers."""


def prepare(directory: Path, *, seed: int, task: Size | None = None) -> PreparedTask:
    """Write problems, solved examples and the untrained model of a seed, all or nothing. Existing files stay unchanged.

    Args:
        directory: The task directory; made by this call, or by an earlier one with the same seed and task.
        seed: Seed of the problems, the examples and the weights, >= 0.
        task: Which task, and its size and difficulty; None is the default task at its tested size.

    Raises:
        CheckpointError: If the directory holds something else, or is not writable.
    """
    size = TASKS[DEFAULT_TASK].size() if task is None else task
    identity = {"version": _TASK_VERSION, "seed": seed, "task": json.loads(json.dumps(asdict(size)))}
    if directory.exists():
        _check_identity(directory, identity)
    else:
        name, written = next((name, each) for name, each in TASKS.items() if isinstance(size, each.size))
        with atomic_directory(directory) as temporary:
            (temporary / "problems").mkdir()
            written.write(temporary, size, seed)
            (temporary / TASK_FILE).write_text(
                json.dumps({**identity, "name": name, "about": written.about}, indent=2) + "\n", encoding="utf-8"
            )
    return task_files(directory)


def settings(directory: Path, task: str | None = None) -> dict[str, Any]:
    """Return the settings for the task that ``prepare`` writes to a directory, as in a configuration file.

    Args:
        directory: The task directory.
        task: A name of ``TASKS``; None is the default.
    """
    chosen, files = TASKS[task or DEFAULT_TASK], task_files(directory)
    sections = {
        "problems": {split: str(getattr(files, split).resolve()) for split in _SPLITS} | chosen.problems,
        "policy": {"model": str(files.base_model.resolve())},
        "warmup": {"solutions": str(files.warmup.resolve())},
        "format": chosen.format,
    }
    return {section: {**chosen.recipe.get(section, {}), **sections.get(section, {})} for section in (*sections, *chosen.recipe)}


def expected_seconds(name: str | None, rounds: int) -> float:
    """Return how long a task takes at its tested size on two CPU cores; None is the default task."""
    warm_up, each = TASKS[name or DEFAULT_TASK].seconds
    return warm_up + rounds * each


def task_named(name: str | None) -> Size:
    """Return the tested size of a task; None is the default task.

    Raises:
        ConfigError: If there is no task of this name.
    """
    chosen = DEFAULT_TASK if name is None else name
    check(chosen in TASKS, f"--task: must be one of {', '.join(TASKS)}: got {chosen!r} -- {right_name(chosen, TASKS)}")
    return TASKS[chosen].size()


def task_files(directory: Path) -> PreparedTask:
    """Return the paths of a task's files in a directory, whether they exist or not."""
    problems = directory / "problems"
    return PreparedTask(
        train=problems / "train.jsonl",
        held_out=problems / "held_out.jsonl",
        test=problems / "test.jsonl",
        warmup=directory / "warmup.jsonl",
        base_model=directory / "base-model",
    )


def _check_identity(directory: Path, identity: dict[str, Any]) -> None:
    if directory.is_dir() and not (directory / TASK_FILE).exists():
        raise CheckpointError(f"{directory}: must hold the embedded task or not exist: found no {TASK_FILE} -- choose another --run-dir")
    remedy = "choose another --run-dir"
    found = read_json_object(directory / TASK_FILE, what="the description of the embedded task", remedy=remedy)
    different = [f"{key}: {found.get(key)!r} != {value!r}" for key, value in identity.items() if found.get(key) != value]
    if different:
        raise CheckpointError(f"{directory}: holds another embedded task: {'; '.join(different)} -- choose another --run-dir")


def _write_glyphs(directory: Path, task: GlyphTask, seed: int) -> None:
    # Imported here, because the command line must answer without loading a model library.
    from stepladder.embedded.model import write_base_model

    world = glyphs.make_world(task, seed=seed)
    for split in _SPLITS:
        _write_rows(directory / "problems" / f"{split}.jsonl", glyphs.problem_rows(task, world, split))
    _write_rows(directory / "warmup.jsonl", glyphs.warmup_rows(task, world))
    write_base_model(directory / "base-model", task, seed=derive_seed("glyph model", seed) % 2**32)


def _write_puzzle(directory: Path, task: PuzzleTask, seed: int) -> None:
    from stepladder.embedded.model import write_puzzle_model

    for split in _SPLITS:
        _write_rows(directory / "problems" / f"{split}.jsonl", puzzle.problem_rows(task, seed=seed, split=split))
    _write_rows(directory / "warmup.jsonl", puzzle.warmup_rows(task, seed=seed))
    write_puzzle_model(directory / "base-model", seed=derive_seed("puzzle model", seed) % 2**32)


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


TASKS: dict[str, EmbeddedTask] = {
    "puzzle": EmbeddedTask(
        size=PuzzleTask,
        write=_write_puzzle,
        about="sort eight digits by reversing prefixes",
        seconds=(60.0, 130.0),
        recipe=recipes.PUZZLE,
        problems={"verifier": puzzle.VERIFIER, "answer_field": ""},
        format={
            "prompt_template": puzzle.PROMPT_TEMPLATE,
            "step_end": puzzle.STEP_END,
            "answer": "solution",
            "answer_pattern": puzzle.END_PATTERN,
        },
    ),
    "glyphs": EmbeddedTask(
        size=GlyphTask,
        write=_write_glyphs,
        about="letters stand for functions on lists, which nobody names",
        seconds=(100.0, 115.0),
        recipe=recipes.GLYPHS,
        problems={},
        format={"prompt_template": glyphs.PROMPT_TEMPLATE, "step_end": glyphs.STEP_END, "answer_pattern": glyphs.ANSWER_PATTERN},
    ),
}
"""The embedded tasks by name."""
DEFAULT_TASK = "puzzle"
RECIPE_TASK = "glyphs"
"""The task on which recipes run without another one: their embedded sizes were chosen for it."""
