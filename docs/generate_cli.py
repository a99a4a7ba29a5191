"""Write docs/cli.md from the commands' own help, or with ``--check`` say whether it is current.

The file is never edited by hand, so it cannot disagree with the program.
"""

import sys
from pathlib import Path

import typer.main
from typer.testing import CliRunner

from stepladder.cli.app import app

TARGET = Path(__file__).with_name("cli.md")


def render() -> str:
    """Return the page: one section per command, as ``--help`` prints it at a width of 110."""
    runner = CliRunner(env={"COLUMNS": "110", "TERM": "dumb", "NO_COLOR": "1"})
    commands = [[]]
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        commands += [[name], *([name, below] for below in getattr(command, "commands", {}))]
    parts = ["# Commands\n\nGenerated from `--help` by `make docs`.\n"]
    for words in commands:
        result = runner.invoke(app, [*words, "--help"], prog_name="stepladder")
        text = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
        parts.append(f"## stepladder {' '.join(words)}".rstrip() + f"\n\n```\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.exists() and TARGET.read_text(encoding="utf-8") == render() else "docs/cli.md is out of date -- run make docs")
    TARGET.write_text(render(), encoding="utf-8")
