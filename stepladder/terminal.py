"""Safe terminal output. Models, servers and data files supply text, and a terminal obeys the control characters in it."""

import re
import sys

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
"""Control characters other than newline and tab, characters that change the writing direction, and surrogate halves."""


def plain(text: str) -> str:
    r"""Return text that a terminal only displays: each control character becomes its escape, such as ``\u001b``, as in JSON.

    Example: a title sequence, ``"\x1b]0;hello\x07"``, becomes ``"\\u001b]0;hello\\u0007"``. Newlines and tabs stay.
    """
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def one_line(text: str) -> str:
    """Return ``plain`` text on one line, so that a single message never looks like several."""
    return plain(" ".join(text.split()))


def echo(text: str, *, err: bool = False) -> None:
    """Print ``plain`` text and a newline to standard output or standard error. Characters that the stream cannot encode are escaped."""
    stream = sys.stderr if err else sys.stdout
    encoding = stream.encoding or "utf-8"
    print(plain(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
