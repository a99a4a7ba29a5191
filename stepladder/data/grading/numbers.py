r"""Rule ``number``: the one number that a text states."""

import re
from fractions import Fraction

from stepladder.data.grading.notation import normalise_text, unwrap
from stepladder.data.grading.units import unit_name

MAX_NUMBER_CHARS = 5000
"""Longer texts state no number."""

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_DECIMAL = re.compile(rf"({_NUMBER})(?:e([+-]?\d{{1,3}}))?", re.IGNORECASE)
_FRACTION = re.compile(r"([^/]+)/([^/]+)|\\[dt]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(\d)(\d))")
_MIXED = re.compile(r"(\d+)\s+(\d+/\d+)|(\d+)\s*(\\[dt]?frac\s*(?:\{\d+\}\s*\{\d+\}|\d\d))")
_SPACED_THOUSANDS = re.compile(r"(?<=\d) (?=\d{3}(?!\d))")
_SIGN = re.compile(r"([+-]?)\s*(?:\\?\$)?\s*(.*)", re.DOTALL)
_PERCENT_OR_DOLLAR = re.compile(r"\s*\\?[%$]$")
_UNIT_WORD = re.compile(r"(.*[\d)}])\s+(?:\\text\s*\{)?\s*([A-Za-z][A-Za-z/^ \d]*?)\s*\}?", re.DOTALL)


def parse_number(text: str) -> Fraction | None:
    r"""Return the number that a text states, exactly, or None if it states none or more than one thing.

    Understood: a sign; thousands commas or spaces in their right places; decimals; powers of ten with up to three digits (``1.5e3``);
    fractions (``3/4``, ``\frac{3}{4}``) and mixed numbers (``3 1/2``); around these, ``$``, ``%``, a unit of measure or currency
    (``18 dollars``), a final full stop, ``\boxed{}`` and markdown. Signs and units are dropped: ``50%`` is 50, not 1/2. Not understood:
    other words (``18 apples``), roots, names of constants.
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    bare = _without_unit(unwrap(normalise_text(text)).replace("−", "-"))
    # LaTeX writes thousands as 1{,}000, 1,\!000 or 1\,000; each becomes a comma, so that its place is still checked.
    bare = bare.replace("{,}", ",").replace("\\!", "").replace("\\,", ",")
    sign, magnitude = _split_sign(bare.removesuffix(".") if not bare.endswith("..") else bare)
    if mixed := _MIXED.fullmatch(magnitude):
        whole, part = (found for found in mixed.groups() if found is not None)
        fraction, number = _ratio(part), _decimal(whole)
        return None if fraction is None or number is None else sign * (number + fraction)
    number = _ratio(magnitude) if _FRACTION.fullmatch(magnitude) else _decimal(_SPACED_THOUSANDS.sub(",", magnitude))
    return None if number is None else sign * number


def _without_unit(text: str) -> str:
    bare = _PERCENT_OR_DOLLAR.sub("", text)
    if bare == text and (match := _UNIT_WORD.fullmatch(text)) and len(match[2]) > 1 and unit_name(match[2]):
        return match[1]
    return bare


def _split_sign(text: str) -> tuple[int, str]:
    """Split a text into its sign and the rest, a dollar sign after the sign removed."""
    match = _SIGN.fullmatch(text)
    assert match is not None, "every part of the pattern may be empty"
    return (-1 if match[1] == "-" else 1), match[2]


def _ratio(text: str) -> Fraction | None:
    match = _FRACTION.fullmatch(text)
    assert match is not None, "callers pass fractions only"
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
