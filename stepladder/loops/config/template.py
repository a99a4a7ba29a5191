"""A file of settings to start from: what a task needs, and every other setting as a comment with its default."""

import textwrap
from collections.abc import Iterator

from stepladder.errors import ConfigError, right_name
from stepladder.loops.config.reference import Entry, Table, all_tables
from stepladder.toml_text import toml_value

_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
TASKS: dict[str, dict[str, str]] = {
    "gsm8k": {"problems.train": "preset:gsm8k", "problems.test": "preset:gsm8k", "policy.model": _MODEL},
    "math": {"problems.train": "preset:math", "problems.test": "preset:math-500", "policy.model": _MODEL},
    "own": {
        "problems.train": "train.jsonl",
        "problems.test": "test.jsonl",
        "problems.verifier": "task.py:grade",
        "policy.model": _MODEL,
    },
}
"""The settings that each task states."""
_WIDTH = 110


def template(task: str) -> str:
    """Return a commented TOML file.

    Args:
        task: One of ``TASKS``.

    Raises:
        ConfigError: If there is no such task.
    """
    if task not in TASKS:
        raise ConfigError(f"--template: must be one of {', '.join(TASKS)}: got {task!r} -- {right_name(task, TASKS)}")
    parts = [
        f"# Settings for the task {task!r}. Lines with a comment sign state defaults; remove the sign to change one.\n"
        "# ... stands where a setting is left out by default, which the texts call None."
    ]
    for table in all_tables():
        parts.append("\n".join(_table_lines(table, TASKS[task])))
    return "\n\n".join(parts) + "\n"


def _table_lines(table: Table, stated: dict[str, str]) -> Iterator[str]:
    # The header of a table that is off by default would switch it on.
    if table.key:
        yield ("" if table.is_on else "# ") + f"[{table.key}]" + ("" if table.type is None else f"  # type = {table.type}")
    yield from _comment(table.meaning)
    for entry in table.entries:
        yield ""
        yield from _comment(f"{entry.meaning} ({entry.kind})")
        yield _line(entry, stated)


def _line(entry: Entry, stated: dict[str, str]) -> str:
    if entry.key in stated:
        return f"{entry.name} = {toml_value(stated[entry.key])}"
    return f"# {entry.name} = {'...' if entry.default in (None, '-') else entry.default}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, width=_WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)
