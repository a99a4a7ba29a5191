"""Questions about a table that only a tool can read: a step asks for a row, and the row follows it as an observation."""

import hashlib
import random
import re


def drawer(key: str) -> str:
    """Return the letter in a drawer: a table that nobody can guess."""
    return "abcd"[hashlib.sha256(key.encode()).digest()[0] % 4]


def problems(split: str) -> list[dict[str, str]]:
    """Draw drawers to ask for."""
    rng, rows = random.Random(split), []
    for number in range({"train": 2000, "held_out": 200, "test": 200}[split]):
        key = f"{rng.randint(1, 99)}-{rng.randint(1, 99)}"
        rows.append({"id": f"{split}-{number}", "question": f"which letter is in drawer {key}?", "answer": drawer(key)})
    return rows


def tool(step: str) -> str | None:
    """Open the drawer that a step asks for; other steps ask for nothing."""
    asked = re.fullmatch(r"open drawer (.*)\n", step)
    if asked is None:
        return None
    if not re.fullmatch(r"\d+-\d+", asked[1]):
        raise ValueError("a drawer has a number such as 12-7")
    return f"it holds {drawer(asked[1])}"
