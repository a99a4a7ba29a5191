"""The Python that a solution holds, step by step."""

import re

_FENCED = r"^[ \t]*```[ \t]*(?:python|py)3?[ \t]*\n(?P<fenced>.*?)^[ \t]*```"
_TAGGED = r"<code>(?P<tagged>.*?)(?:<end_of_code>|</code>|\Z)"
_BLOCK = re.compile(f"{_FENCED}|{_TAGGED}", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_STEP_END, _CODE_END = "<end_of_step>", re.compile("<end_of_code>|</code>", re.IGNORECASE)


def code_of(text: str) -> str:
    """Return the Python of a solution so far: the code of all its steps, in order; empty without code.

    It reads complete blocks fenced as ``python`` or ``py``, and text between ``<code>`` and ``<end_of_code>`` or ``</code>``. Steps
    that end with ``<end_of_step>`` may divide such a part; of one that is still open, the code of the finished steps counts.

    Source: Guan et al. 2025, "rStar-Math: small LLMs can master math reasoning with self-evolved deep thinking", section 3.2: a step's code
    runs together with that of the steps before it.
    """
    return "".join(_block(match) for match in _BLOCK.finditer(text))


def _block(match: re.Match[str]) -> str:
    code = match["fenced"]
    if code is None:
        code = match["tagged"]
        if not _CODE_END.search(match[0]):
            code = code[: max(code.rfind(_STEP_END), 0)]
        code = code.replace(_STEP_END, "")
    return f"{code.strip(chr(10)).rstrip()}\n" if code.strip() else ""


def blocks_of(text: str) -> list[str]:
    """Return the Python of a solution so far, block by block, as ``code_of`` reads it; parts of a ``<code>`` between steps are blocks."""
    blocks: list[str] = []
    for match in _BLOCK.finditer(text):
        if match["fenced"] is not None:
            parts = [match["fenced"]]
        else:
            parts = match["tagged"].split(_STEP_END)
            parts = parts if _CODE_END.search(match[0]) else parts[:-1]
        blocks += [f"{part.strip(chr(10)).rstrip()}\n" for part in parts if part.strip()]
    return blocks
