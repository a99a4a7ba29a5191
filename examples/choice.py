"""Multiple choice: the letter of an option, or its text, is right. The answer key is a letter."""

import random
import re


def problems(split: str) -> list[dict[str, str]]:
    """Draw sums with four options. A file with the same fields, or a data set of the hub, would do as well."""
    rng, rows = random.Random(split), []
    for number in range({"train": 1000, "held_out": 100, "test": 100}[split]):
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        options = rng.sample(sorted({a + b, a + b + 10, a + b - 1, a + b + 2}), 4)
        listed = " ".join(f"({letter}) {option}" for letter, option in zip("abcd", options, strict=True))
        rows.append({"id": f"{split}-{number}", "question": f"{a}+{b}? {listed}", "answer": "abcd"[options.index(a + b)]})
    return rows


def prompt(question: str) -> str:
    """Put the options on lines of their own."""
    return f'Choose one option. Write its letter on the last line, after "answer:".\n\n{question.replace(" (", chr(10) + "(")}\n'


def grade(question: str, answer: str, reference: str) -> bool:
    """Take the letter, in brackets or not, or the text of the option."""
    options = dict(re.findall(r"\((\w)\) (\S+)", question))
    given = answer.strip().strip("().").lower()
    return given in (reference, options[reference])
