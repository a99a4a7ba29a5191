"""The few HTML elements of the page.

A plain string is text and is always escaped; only what the report builds itself is marked as ``Markup``.
"""

import re
from collections.abc import Sequence
from html import escape

_DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")


class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


def html(value: str | int) -> Markup:
    """Return a value as HTML: escaped, unless it is Markup. Characters that reverse the text after them are shown as escapes."""
    return value if isinstance(value, Markup) else Markup(escape(with_directions_shown(str(value))))


def with_directions_shown(text: str, *, backslash: str = "\\") -> str:
    r"""Return text whose characters that embed, override or isolate a direction of writing are escapes, such as ``\u202e``.

    Such a character in an answer would reverse what the page says after it, figures included. A terminal shows the same escapes.

    Args:
        text: The text.
        backslash: How the result writes a backslash.
    """
    return _DIRECTIONS.sub(lambda match: f"{backslash}u{ord(match[0]):04x}", text)


def table(header: Sequence[str], rows: Sequence[Sequence[str | int]], *, style: str = "", text_columns: Sequence[int] = ()) -> Markup:
    """Return a table; the first column holds the row headers.

    Args:
        header: Column names.
        rows: Cells, one per column.
        style: CSS class of the table.
        text_columns: Columns that hold words; the others hold numbers and are set flush right.
    """
    kinds = ["words" if index in text_columns else "number" for index in range(len(header))]
    head = "".join(f'<th scope="col" class="{kind}">{html(name)}</th>' for name, kind in zip(header, kinds, strict=True))
    body = "".join(
        f'<tr><th scope="row" class="{kinds[0]}">{html(row[0])}</th>'
        + "".join(f'<td class="{kind}">{html(cell)}</td>' for cell, kind in zip(row[1:], kinds[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return Markup(
        f'<div class="scroll" tabindex="0"><table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def prose(text: str) -> Markup:
    """Return a sentence of the report as HTML in which a percent sign stays with its number, and a dash is one."""
    return Markup(escape(text).replace(" %", "\u00a0%").replace(" -- ", " – "))


def section(name: str, title: str, *parts: str) -> Markup:
    """Return a section with its heading; empty parts are left out."""
    return Markup(f'<section id="{name}"><h2>{escape(title)}</h2>{"".join(html(part) for part in parts if part)}</section>')


def lead(text: str) -> Markup:
    """Return the paragraph that explains a section."""
    return Markup(f'<p class="lead">{prose(text)}</p>')


def figure(chart: str, caption: str = "", attributes: str = "") -> Markup:
    """Return a chart with its caption."""
    return Markup(f"<figure{attributes}>{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}{chart}</figure>")


def beside(drawing: str, *texts: str) -> Markup:
    """Return a drawing with its explanation next to it, or above it on a narrow page."""
    return Markup(f'<div class="beside"><div>{drawing}</div><div>{"".join(html(text) for text in texts if text)}</div></div>')
