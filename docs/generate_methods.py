"""Write docs/methods.md from the methods' own table, or with ``--check`` say whether it is current.

The file is never edited by hand, so it cannot disagree with the program.
"""

import ast
import inspect
import sys
from dataclasses import fields
from pathlib import Path

from stepladder.mcts.axes import SearchMethod
from stepladder.mcts.methods import OUTSIDE, PRESETS

TARGET = Path(__file__).with_name("methods.md")


def render() -> str:
    """Return the page: the methods, what is missing, and every axis with its default."""
    rows = []
    for name, preset in PRESETS.items():
        settings = ", ".join(f"`{key}={_plain(value)}`" for key, value in preset.method.settings().items())
        cells = [f"`{name}`", preset.method.description, settings, preset.source, preset.budget, preset.differs]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    outside = [f"- **{name}**: {reason}." for name, reason in OUTSIDE.items()]
    meanings = _axis_docs()
    axes = [
        f"- `{axis.name}` = `{_plain(axis.default)}`. {meanings[axis.name]}"
        for axis in fields(SearchMethod)
        if axis.name not in ("name", "description")
    ]
    return "\n".join(
        [
            "# Search methods",
            "",
            "Generated from `stepladder.mcts.presets` by `make docs`. Every method is a point on the axes below, and",
            "`--option KEY=VALUE` changes any of them. Settings not named in a row have their defaults.",
            "",
            "| method | what it does | settings | source | published budget | where it differs |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "## Published searches that the axes do not express",
            "",
            *outside,
            "",
            "## The axes and their defaults",
            "",
            *axes,
            "",
        ]
    )


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool | None) else str(value)


def _axis_docs() -> dict[str, str]:
    """Return the docstring of each field, with code marks as Markdown has them."""
    (cls,) = ast.parse(inspect.getsource(SearchMethod)).body
    assert isinstance(cls, ast.ClassDef)
    docs = {}
    for axis, text in zip(cls.body, cls.body[1:], strict=False):
        if isinstance(axis, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(axis.target, ast.Name)
            docs[axis.target.id] = " ".join(str(text.value.value).split()).replace("``", "`")
    return docs


if __name__ == "__main__":
    if "--check" in sys.argv:
        current = TARGET.exists() and TARGET.read_text(encoding="utf-8") == render()
        sys.exit(0 if current else "docs/methods.md is out of date -- run make docs")
    TARGET.write_text(render(), encoding="utf-8")
