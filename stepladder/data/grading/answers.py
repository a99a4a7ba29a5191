r"""Grading rules as pure functions: when two final answers are the same.

Three rules: ``exact`` (the same text), ``number`` (the same number, without any tolerance) and ``math`` (mathematically equivalent). The
first two are decided here; ``math`` is decided here where both sides are the same text or plain numbers, and by math-verify in a worker
process (see ``verifier``) everywhere else, because symbolic algebra may take for ever.

``answer_key`` gives the form by which votes are counted. It never runs symbolic algebra, so under ``math`` two answers that only algebra
shows to be equal, like ``2\sqrt{2}`` and ``\sqrt{8}``, are two keys.
"""

import re
import unicodedata
from enum import StrEnum
from fractions import Fraction

MAX_MATH_CHARS = 1000
"""Longer answers are unreadable under ``math``: a final answer is short, and a parser's time may grow steeply with length."""


class AnswerRule(StrEnum):
    """When a final answer counts as right."""

    EXACT = "exact"
    """The same text after Unicode normalisation, with white space collapsed; case matters."""
    NUMBER = "number"
    """The same number, exactly."""
    MATH = "math"
    """Mathematically equivalent."""


_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_DECIMAL = re.compile(rf"({_NUMBER})(?:e([+-]?\d{{1,3}}))?", re.IGNORECASE)
_FRACTION = re.compile(r"([^/]+)/([^/]+)|\\[dt]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(\d)(\d))")
_MIXED = re.compile(r"(\d+)\s+(\d+/\d+)|(\d+)\s*(\\[dt]?frac\s*(?:\{\d+\}\s*\{\d+\}|\d\d))")
_SPACED_THOUSANDS = re.compile(r"(?<=\d) (?=\d{3}(?!\d))")
_TWO_NUMBERS = re.compile(r"\d\s+\d")
_OPERAND = re.compile(r"\s*([+-]?(?:\d+(?:\.\d+)?|[A-Za-z]|\([^()]*\)))(.*)", re.DOTALL)
_SIGN = re.compile(r"([+-]?)\s*(?:\\?\$)?\s*(.*)", re.DOTALL)
_UNIT = re.compile(r"\s*\\?[%$]$")
_DOLLAR = re.compile(r"(?<!\\)\$")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{(.*)\}", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}")
# Spacing commands and sizes that change nothing but the look.
_LATEX_LOOKS = re.compile(r"\\(?:left|right|big|Big|displaystyle|quad|qquad)(?![A-Za-z])|\\[!,;: ]|~")


def normalise_text(text: str) -> str:
    """Return a text in Unicode form NFC with white space collapsed and trimmed; case is kept.

    Not NFKC, which would make 2² the same text as 22.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def parse_number(text: str) -> Fraction | None:
    r"""Return the number that a text states, exactly, or None if it states none or more than one thing.

    Understood: a sign; thousands commas or spaces in their right places; decimals; powers of ten with up to three digits (``1.5e3``);
    fractions (``3/4``, ``\frac{3}{4}``) and mixed numbers (``3 1/2``); around these, ``$``, ``%``, a final full stop and ``\boxed{}``.
    Dollar and per cent signs are units and are dropped: ``50%`` is 50, not 1/2. Not understood: words (``18 apples``), roots, names of
    constants.
    """
    bare = _UNIT.sub("", _unwrap(_without_full_stop(normalise_text(text))).replace("−", "-"))
    # LaTeX writes thousands as 1{,}000, 1,\!000 or 1\,000; each becomes a comma, so that its place is still checked.
    bare = bare.replace("{,}", ",").replace("\\!", "").replace("\\,", ",")
    sign, magnitude = _split_sign(_without_full_stop(bare))
    if mixed := _MIXED.fullmatch(magnitude):
        whole, part = (found for found in mixed.groups() if found is not None)
        fraction, number = _ratio(part), _decimal(whole)
        return None if fraction is None or number is None else sign * (number + fraction)
    number = _ratio(magnitude) if _FRACTION.fullmatch(magnitude) else _decimal(_SPACED_THOUSANDS.sub(",", magnitude))
    return None if number is None else sign * number


def exact_match(answer: str, reference: str) -> bool:
    """Say whether two answers are the same text under rule ``exact``."""
    return normalise_text(answer) == normalise_text(reference)


def number_match(answer: str, reference: str) -> bool | None:
    """Say whether two answers are the same number; None if either is no plain number."""
    left, right = parse_number(answer), parse_number(reference)
    return None if left is None or right is None else left == right


def math_key(text: str) -> str:
    r"""Return an answer without what changes only its look: ``$``, ``\boxed``, ``\left``, ``\text{}``, spacing, ``\dfrac``, white space."""
    bare = _TEXT.sub(r"\1", _unwrap(_without_full_stop(normalise_text(text))))
    bare = _LATEX_LOOKS.sub(" ", bare)
    for spelling, canonical in (("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("\\%", "%"), ("\\$", "$"), ("−", "-")):
        bare = bare.replace(spelling, canonical)
    # Between digits white space means something: 3 1/2 is not 31/2.
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", bare)


def math_readable(text: str) -> bool:
    """Say whether a text may be given to math-verify at all.

    Not when it is very long, and not when two numbers stand side by side, which its parser would add or multiply (``5 6`` is 11 to it).
    """
    return len(text) <= MAX_MATH_CHARS and not _TWO_NUMBERS.search(text)


def math_source(text: str) -> str:
    r"""Return an answer as math-verify reads it: one formula between dollar signs, or a text with formulas of its own as it stands.

    Bare, ``(1,2)``, ``\sqrt{8}`` and ``50\%`` would parse to nothing.
    """
    bare = _latex_powers(_unwrap(_without_full_stop(normalise_text(text))))
    dollars = _DOLLAR.findall(bare)
    if dollars and len(dollars) % 2 == 0:
        return bare
    escaped = _DOLLAR.sub(lambda _: r"\$", bare)
    return f"${escaped}$"


def answer_key(text: str, rule: AnswerRule | str) -> str:
    """Return the canonical form of an answer, under which votes are counted.

    Under ``number`` and ``math`` a plain number's key is its lowest fraction (``1,000.0`` -> ``1000``, ``0.5`` -> ``1/2``); but under
    ``math`` an answer with a per cent sign keeps it, because there 50% is not 50. What is no number is keyed by its text.
    """
    rule = AnswerRule(rule)
    if rule is AnswerRule.EXACT:
        return normalise_text(text)
    if rule is AnswerRule.MATH and "%" in text:
        return math_key(text)
    number = parse_number(text)
    if number is not None:
        return str(number)
    return normalise_text(text) if rule is AnswerRule.NUMBER else math_key(text)


def _unwrap(text: str) -> str:
    r"""Remove ``$...$``, ``\(...\)``, ``\[...\]`` and ``\boxed{...}`` around the whole text."""
    while True:
        inner = text
        for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
            if len(inner) >= len(opening) + len(closing) and inner.startswith(opening) and inner.endswith(closing):
                inner = inner[len(opening) : len(inner) - len(closing)].strip()
                break
        if boxed := _BOXED.fullmatch(inner):
            inner = boxed[1].strip()
        if inner == text:
            return text
        text = inner


def _latex_powers(text: str) -> str:
    """Write ``a**b**c`` as ``a^{b^{c}}``; a LaTeX parser would stop at the first ``**`` and take ``a`` for the whole."""
    first, *parts = text.split("**")
    exponent, rest = "", ""
    for part in reversed(parts):
        match = _OPERAND.match(part)
        if match is None:
            return text
        operand, after = match.groups()
        higher = f"^{{{exponent}}}" if exponent else ""
        exponent, rest = (operand, after + higher + rest) if after.strip() else (operand + higher, rest)
    return f"{first}^{{{exponent}}}{rest}" if parts else text


def _without_full_stop(text: str) -> str:
    return text if text.endswith("..") else text.removesuffix(".")


def _split_sign(text: str) -> tuple[int, str]:
    """Split a text into its sign and the rest, a dollar sign after the sign removed."""
    match = _SIGN.fullmatch(text)
    assert match is not None, "every part of the pattern may be empty"
    return (-1 if match[1] == "-" else 1), match[2]


def _ratio(text: str) -> Fraction | None:
    match = _FRACTION.fullmatch(text)
    assert match is not None, "callers pass what has the form of a fraction"
    numerator, denominator = (_signed_decimal(part.strip()) for part in match.groups() if part is not None)
    return numerator / denominator if numerator is not None and denominator else None


def _signed_decimal(text: str) -> Fraction | None:
    sign, magnitude = _split_sign(text)
    number = _decimal(magnitude)
    return None if number is None else sign * number


def _decimal(text: str) -> Fraction | None:
    match = _DECIMAL.fullmatch(text)
    if match is None:
        return None
    try:
        return Fraction(match[1].replace(",", "")) * Fraction(10) ** int(match[2] or 0)
    except ValueError:
        # Python refuses to read integers of more than a few thousand digits; no final answer has so many.
        return None
