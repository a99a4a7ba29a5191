"""The words of the repository are plain English: phrases with a German word order, or with verbs without an agent, come in a better form.

Docstrings, comments, messages, help texts and documentation are read, not code. Add a phrase with its better form to ``BANNED``.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "benchmarks/RESULTS.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [*sorted((ROOT / "stepladder").rglob("*.py")), *sorted((ROOT / "docs").glob("*.py"))]

BANNED = {
    r"what \w+(?: \w+){0,2} (?:came|comes|come) to": "the result of",
    r"says? (?:of )?(?:itself|themselves)": "contains, or states",
    r"(?:is|are|was|were|be|been) told(?! apart)": "is reported, or receives",
    r"(?:is|are|was|were|be) told apart": "differ, or are separated",
    r"once it is told|once they are told": "if you pass",
    r"where there (?:is|are) none": "without one",
    r"where (?:it|that|this) is not known": "if unknown",
    r"of which (?:a|one|two|some|every|each|those|samples)": "a second sentence",
    r"one behind the other": "concatenated, or in a list",
    r"(?:behind|beside) each other": "one after the other, or at the same time",
    r"(?:tokens?|steps?|text|texts|ids|prompts?|prefix|prefixes|each|those|what \w+|goes on|last|nothing|none|put|stands?) behind": "after",
    r"behind (?:it|them|the last|a prompt|every|this one|that of)": "after",
    r"shut in(?:side)?": "sandboxed",
    r"what (?:becomes|became) of": "the result, or the change",
    r"company": "other requests in flight",
    r"(?:cannot|can|could|not|to) be had": "exists, or can be fetched",
    r"(?:is|are|be) gone on with|to be gone on with": "is continued",
    r"(?:be|is|are|was|were) asked for": "requested",
    r"(?:goes?|went|going) on from": "continues",
    r"as (?:it|they) stands?": "unchanged",
    r"(?:the )?wrong way round|turned round": "flipped",
    r"is no (?:whole |plain |valid )?(?:obstacle|directory|shard|file|json|export|number|word|list|table)": "is not a ...",
    r"all the same": "still",
    r"see to it": "make sure",
    r"(?:gives?|given|giving) (?:\w+ ){0,3}memory back": "free the memory",
    r"the more,? the (?:fewer|less|more)": "name what rises with what",
}
"""Regular expressions between word boundaries, and the better form of each."""


class Found(NamedTuple):
    """A banned phrase in its place."""

    path: Path
    line: int
    phrase: str
    better: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.phrase!r} -- better: {self.better}"


def find(text: str, *, path: Path = ROOT / "text", first_line: int = 1) -> list[Found]:
    """Return the banned phrases of a text, also those that a line break divides; code in backquotes is no text."""
    text = re.sub(r"`[^`\n]*`", lambda code: "`" + "x" * (len(code[0]) - 2) + "`" if len(code[0]) > 1 else code[0], text)
    found = []
    for phrase, better in BANNED.items():
        pattern = rf"\b(?:{phrase})\b".replace(" ", r"(?:\s|#)+")
        for match in re.finditer(pattern, text, flags=re.IGNORECASE):
            line = first_line + text.count("\n", 0, match.start())
            found.append(Found(path, line, " ".join(match[0].replace("#", " ").split()), better))
    return sorted(found, key=lambda each: each.line)


def _texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of every comment and of every string that holds at least two words; comments on adjacent lines are one text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            # The fields of an f-string become a placeholder, so that a phrase may not hide around one.
            yield node.lineno, "".join(str(part.value) if isinstance(part, ast.Constant) else "_" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    block: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if block and token.start[0] != block[-1][0] + 1:
            yield block[0][0], "\n".join(text for _, text in block)
            block = []
        block.append((token.start[0], token.string))
    if block:
        yield block[0][0], "\n".join(text for _, text in block)


def _prose(page: str) -> str:
    """Return a page with its code blocks blanked, line by line."""
    return re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), page, flags=re.MULTILINE | re.DOTALL)


def test_finder_reads_across_lines_and_skips_code() -> None:
    """A phrase that a line break divides is found in its line; the same words as code are not, nor as parts of longer words."""
    found = find("A plain line.\nThe samples that were\nasked for `what became of` accompany it.")
    assert [(each.line, each.phrase) for each in found] == [(2, "were asked for")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_hold_no_banned_phrase(path: Path) -> None:
    """Docstrings, comments, messages, help and report texts are plain."""
    found = {each for line, text in _texts(path.read_text(encoding="utf-8")) for each in find(text, path=path, first_line=line)}
    assert not found, "\n" + "\n".join(map(str, sorted(found)))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_hold_no_banned_phrase(path: Path) -> None:
    """The documentation is plain, generated pages included."""
    found = find(_prose(path.read_text(encoding="utf-8")), path=path)
    assert not found, "\n" + "\n".join(map(str, found))
