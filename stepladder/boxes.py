r"""Boxed answers: what stands in the last ``\boxed{}`` of a text.

This is how answers, and reference answers in written solutions, are read by default. Everything here takes time linear in the text.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_BEGIN = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE = re.compile(
    r"""
      [+-]? \d+ (?: [.,] \d+ )*                # \boxed 7, \boxed -3.5
    | \\[A-Za-z]+ (?= [^A-Za-z{] | $ )         # \boxed \pi
    | [A-Za-z]                                 # \boxed x
    """,
    re.VERBOSE,
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_BLANK = re.compile(
    r"""
    (?: \s | ~ | \\[,;:!\ ] | \\q?quad(?![A-Za-z]) | \\(?:hspace|vspace|h?phantom)\*?\{[^{}]*\} | \\(?:text|mathrm|mbox)\{\s*\}
      | \$ | _ | \\_ | \? | \.\.\. | … | □ | \\(?:ldots|dots|cdots|square|Box)(?![A-Za-z])
    )*
    """,
    re.VERBOSE,
)
_JOINT = re.compile(r"(?:[\s$,;&]|\b(?:and|or)\b|\\text\{\s*,?\s*(?:and|or)\s*\}|\\q?quad\b|\\[,; ()])*")
"""What may stand between two boxes that are one answer."""
_SEPARATOR = re.compile(r"[,;&]|\b(?:and|or)\b")


class Box(NamedTuple):
    """One box of a text that is in no other box."""

    start: int
    """Place of its command."""
    end: int
    """Place after it."""
    content: str | None
    """What stands in it, without surrounding blanks; None if it is not closed."""


def boxes(text: str) -> Iterator[Box]:
    r"""Yield the boxes of a text in order: ``\boxed{...}`` and ``\fbox{...}`` with balanced braces, and ``\boxed 7``."""
    place = 0
    while begin := _BEGIN.search(text, place):
        end = _end_of_argument(text, begin.end())
        if end is None:
            yield Box(begin.start(), len(text), None)
            return
        content = text[begin.end() : end]
        content = content[1:-1] if content.startswith("{") else content
        yield Box(begin.start(), end, content.strip())
        place = max(end, begin.end())


def boxed_answer(text: str) -> str | None:
    r"""Return what the last box of a text states; None if there is none, or it is open, empty or blank.

    Boxes that stand together, parted by commas or words only, are one answer: ``\boxed{1}, \boxed{2}`` states ``1, 2``. A box that is
    followed by another one elsewhere in the text is passed over: it may be an intermediate result.
    """
    found = list(boxes(text))
    if not found or not _is_stated(found[-1]):
        return None
    group = [found[-1]]
    for earlier in reversed(found[:-1]):
        between = text[earlier.end : group[0].start]
        if not (_is_stated(earlier) and len(between) < 80 and _JOINT.fullmatch(between) and _SEPARATOR.search(between)):
            break
        group.insert(0, earlier)
    contents = dict.fromkeys(box.content for box in group if box.content)
    return ", ".join(contents)


def _is_stated(box: Box) -> bool:
    return box.content is not None and not _BLANK.fullmatch(box.content)


def _end_of_argument(text: str, start: int) -> int | None:
    """Return the place after what a box command is applied to; None if it is not closed."""
    if text.startswith("{", start):
        return closing_brace(text, start + 1)
    bare = _BARE.match(text, start)
    if bare:
        return bare.end()
    command = _COMMAND.match(text, start)
    if command is None:
        return start
    end: int | None = command.end()
    while end is not None and text.startswith("{", end):
        end = closing_brace(text, end + 1)
    return end


def closing_brace(text: str, start: int) -> int | None:
    r"""Return the place after the ``}`` that closes a ``{`` before ``start``; None if it stays open. Escaped braces do not count."""
    depth = 1
    for match in _BRACE.finditer(text, start):
        if len(match[0]) == 1:
            depth += 1 if match[0] == "{" else -1
            if depth == 0:
                return match.end()
    return None
