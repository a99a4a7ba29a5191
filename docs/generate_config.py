"""Write docs/config.md from the docstrings of all settings, or with ``--check`` say whether it is current.

The file is never edited by hand, so it cannot disagree with the program.
"""

import sys
from pathlib import Path

from stepladder.loops.config.reference import Entry, Table, all_tables

TARGET = Path(__file__).with_name("config.md")
INTRODUCTION = """\
# All settings

Generated from the docstrings of the settings by `make docs`. [configuration.md](configuration.md) explains files, `--set` and variants.

```sh
stepladder config                          # all tables
stepladder config problems                 # the settings of a table
stepladder config search.simulations       # one setting
stepladder config --search temperature     # settings whose name or meaning holds a word
stepladder config --template own > run.toml
stepladder evolve my.toml --dry-run        # the resolved settings, as TOML that evolve reads
```

A default of `-` means that the setting is left out; the texts call that None.
The options of search methods, under `search.options` and `evaluate.options`, are in [methods.md](methods.md).
"""


def render() -> str:
    """Return the page: one section per table, and one row per setting."""
    return "\n".join([INTRODUCTION, *(_section(table) for table in all_tables() if table.entries or table.type)])


def _section(table: Table) -> str:
    title = f"`{table.key}`" if table.key else "Top level"
    kind = "" if table.type is None else f" with type {table.type.replace(chr(39), '`')}"
    rows = [_row(entry) for entry in table.entries]
    head = ["| setting | values | default | meaning |", "|---|---|---|---|"] if rows else []
    return "\n".join([f"## {title}{kind}", "", table.meaning, "", *head, *rows, ""])


def _row(entry: Entry) -> str:
    default = "required" if entry.default is None else "-" if entry.default == "-" else f"`{entry.default}`"
    cells = (f"`{entry.key}`", entry.kind, default, entry.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(
            0 if TARGET.exists() and TARGET.read_text(encoding="utf-8") == render() else "docs/config.md is out of date -- run make docs"
        )
    TARGET.write_text(render(), encoding="utf-8")
