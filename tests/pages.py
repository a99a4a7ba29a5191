"""The blocks of the documentation: what a reader would copy into a shell, a Python session or a file, and whether it can run in a test.

A block runs unless a comment above it says why not: ``<!-- not run: needs a GPU -->``. Then its commands are parsed, and those of
``evolve`` are dry runs where the comment does not say that they need the hub.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "cli.md")]
"""Every page with blocks to copy; docs/cli.md is what --help prints, whose examples are run elsewhere."""

_FENCE = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\n+)?^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    kind: str
    """First word after the fence; empty for a block without one."""
    title: str
    """Name of the file that the block is, or empty."""
    text: str
    reason: str
    """Why the block is not run; empty for a block that is."""

    @property
    def place(self) -> str:
        """Return page and line."""
        return f"{self.page.name}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Return the words of every command of the block, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        kind, _, rest = match["info"].partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        line = 1 + text.count("\n", 0, match.start("info"))
        named = title[1] if title else ""
        found.append(Block(page=page, line=line, kind=kind, title=named, text=match["text"], reason=(match["reason"] or "").strip()))
    return found
