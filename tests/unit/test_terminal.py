"""Text that models, servers and data files supply, as a terminal sees it."""

import ast
import io
import sys
import unicodedata
from pathlib import Path

import pytest

from stepladder.terminal import echo, one_line, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;aGk=\x07", "\\u001b]52;c;aGk=\\u0007"),
        ("\x1b[2J\x1b[31mred", "\\u001b[2J\\u001b[31mred"),
        ("right\rwrong", "right\\u000dwrong"),
        ("\x9b31m", "\\u009b31m"),
        ("a\x08\x7f\x00", "a\\u0008\\u007f\\u0000"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("half \ud800", "half \\ud800"),
        ("line\n\tnext, \u00bd \u6570 [bold]", "line\n\tnext, \u00bd \u6570 [bold]"),
    ],
)
def test_control_characters_are_shown_and_not_sent(text: str, shown: str) -> None:
    """Each becomes its escape; other text stays as it is, newlines and tabs included."""
    assert plain(text) == shown


def test_no_control_character_of_unicode_is_left() -> None:
    """Whatever Unicode calls a control character or half a character is escaped, but for newline and tab."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    left = {unicodedata.category(character) for character in plain(everything)} & {"Cs"}
    assert not left
    assert {character for character in plain(everything) if unicodedata.category(character) == "Cc"} == {"\n", "\t"}


def test_one_line_is_one_line() -> None:
    """What is shown in one line cannot forge another."""
    assert one_line(" 5\n\nanswer:\u20286\x1b ") == "5 answer: 6\\u001b"


def test_echo_prints_where_a_character_cannot_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal without Unicode shows escapes and raises nothing."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    echo("\u00bd\x1b")
    assert raw.getvalue() == b"\\xbd\\u001b\n"


def test_nothing_else_in_the_package_prints() -> None:
    """``print`` and ``typer.echo`` would send raw text; consoles of rich print texts of our own only."""
    package = Path(__file__).parents[2] / "stepladder"
    for path in sorted(package.rglob("*.py")):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("print", "typer.echo", "click.echo"), f"{path}:{node.lineno}"
