r"""Tokens of an answer's text: markdown, Unicode, LaTeX and plain spelling give the same tokens.

Only marks that change the look of an answer are dropped: delimiters of formulas, ``\left``, spaces, sizes, bold type.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from stepladder.boxes import closing_brace

MAX_CHARS = 1000
"""Longer answers are unreadable under ``math``: a final answer is short."""

_THOUSANDS = "\u066c"
"""Stands for a comma that can only group thousands, as in 1{,}000."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_GREEK_LETTERS = "αβγδεζηθικλμµνξπρστφϕχψωΓΔΘΛΞΠΣΦΨΩ"
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu mu nu xi pi rho sigma tau phi phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
_CHARACTERS = {
    **{letter: f"\\{name} " for letter, name in zip(_GREEK_LETTERS, _GREEK_NAMES.split(), strict=True)},
    **{"−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∗": "*", "÷": "\\div ", "±": "\\pm ", "∓": "\\mp "},
    **{"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∞": "\\infty ", "√": "\\sqrt ", "∛": "\\sqrt[3] ", "°": "^\\circ ", "…": "\\ldots "},
    **{"∪": "\\cup ", "∩": "\\cap ", "∖": "\\setminus ", "∈": "\\in ", "∅": "\\emptyset ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}"},
    **{
        "∣": "|",
        "′": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        "⌊": "\\lfloor ",
        "⌋": "\\rfloor ",
        "⌈": "\\lceil ",
        "⌉": "\\rceil ",
        "∧": "\\land ",
    },
    **{"∧": "\\land ", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}", "∨": "\\lor ", "∠": "\\angle ", "△": "\\triangle ", "∶": ":"},
}
_GROUPED = re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!]|\\;)(?=\d{3}(?!\d))")
_DECIMAL_COMMA_LOOK = re.compile(r"\{,\}")
_LOOKS = re.compile(
    r"""
    \\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|quad|qquad|thinspace|hfill)(?![A-Za-z])   # \left(
    | (?<!\\)\\[,;:!\ ] | ~                                                                              # \,
    """,
    re.VERBOSE,
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_UPRIGHT = r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname\*?|bm|boldsymbol)"
_LEAD_IN = re.compile(
    r"""
    (?: (?:so|thus|hence|therefore) ,? \s+ )?
    (?: (?:the\s+)? (?:final\s+)? (?:answer|result|solution)s? \s* (?: is | are | : | = ) :? | (?:it|this) \s+ is ) \s+
    """,
    re.VERBOSE | re.IGNORECASE,
)
_PAIRS = (("**", "**"), ("*", "*"), ("__", "__"), ("```", "```"), ("`", "`"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))


@dataclass(frozen=True, slots=True)
class Token:
    """One sign, number, word or command."""

    kind: str
    """``number``, ``word``, ``command`` or ``sign``."""
    text: str
    """As written, aliases resolved."""
    spaced: bool
    """Whether white space stands before it."""
    upright: bool = False
    r"""Whether it stood in ``\\text{}`` or the like."""
    value: Fraction | None = None
    """Of a number."""
    end: int = 0
    """Place in the text after it."""


class NotationError(ValueError):
    """The text is broken; the message is a clause that describes the error."""


def normalise_text(text: str) -> str:
    """Return a text in Unicode form NFC with white space collapsed and trimmed; case is kept.

    Not NFKC, which would make 2² the same text as 22.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def unwrap(text: str) -> str:
    r"""Remove the marks around a whole answer: ``$...$``, ``\(...\)``, ``\boxed{...}``, ``**...**``, backticks, a final full stop."""
    for _ in range(10):
        inner = _without_full_stop(text)
        for opening, closing in _PAIRS:
            middle = inner[len(opening) : len(inner) - len(closing)]
            if inner.startswith(opening) and inner.endswith(closing) and middle and opening not in middle and closing not in middle:
                inner = middle.strip()
                break
        box = _BOX.match(inner)
        if box and closing_brace(inner, box.end()) == len(inner):
            inner = inner[box.end() : -1].strip()
        if inner == text:
            break
        text = inner
    return text


def plain_notation(text: str) -> str:
    """Return an answer in one notation: NFC, LaTeX commands for Unicode signs, no delimiters of formulas, no change of look."""
    text = unwrap(normalise_text(text))
    text = "".join(map(_plain_character, text))
    text = _SUPERSCRIPT_RUN.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _SUBSCRIPT_RUN.sub(lambda run: f"_{{{run[0].translate(_SUBSCRIPTS)}}}", text)
    text = _DECIMAL_COMMA_LOOK.sub(",", _GROUPED.sub(_THOUSANDS, text))
    text = _LOOKS.sub(" ", _without_delimiters(_without_boxes(text))).replace("**", "^")
    return _LEAD_IN.sub("", text.strip(), count=1) if _LEAD_IN.match(text.strip()) else text.strip()


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character in _CHARACTERS:
        return _CHARACTERS[character]
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    folded = unicodedata.normalize("NFKC", character)
    # A vulgar fraction: 1⁄2 with a fraction slash of its own.
    if "⁄" in folded and folded[0].isdigit():
        numerator, _, denominator = folded.partition("⁄")
        return f"\\frac{{{numerator}}}{{{denominator}}}" if denominator else character
    return character


def _without_delimiters(text: str) -> str:
    r"""Remove ``$`` that come in pairs, ``\(`` and ``\)``; a single ``$`` is a currency sign."""
    dollars = _DOLLAR.findall(text)
    text = _DOLLAR.sub("\\$" if len(dollars) == 1 else " ", text)
    # Not the \\[2pt] at the end of a matrix's row.
    return re.sub(r"(?<!\\)\\[()\[\]]", " ", text)


_DOLLAR = re.compile(r"(?<!\\)\$")


def _without_boxes(text: str) -> str:
    for _ in range(20):
        box = _BOX.search(text)
        end = closing_brace(text, box.end()) if box else None
        if box is None or end is None:
            break
        text = f"{text[: box.start()]} {text[box.end() : end - 1]} {text[end:]}"
    return text


def _without_full_stop(text: str) -> str:
    return text if text.endswith("..") else text.removesuffix(".").rstrip()


_ALIASES = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "frac"),
    **dict.fromkeys(("dbinom", "tbinom"), "binom"),
    **dict.fromkeys(("dots", "cdots", "dotsc", "dotsb", "vdots", "dotso"), "ldots"),
    **{"leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge", "neq": "ne", "lt": "<", "gt": ">", "infin": "infty"},
    **{"lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "lbrack": "[", "rbrack": "]", "lbrace": "\\{", "rbrace": "\\}", "colon": ":"},
    **{"times": "*", "cdot": "*", "ast": "*", "div": "/", "wedge": "land", "vee": "lor", "varnothing": "emptyset", "degree": "circ"},
    **{"exponentialE": "e", "imaginaryI": "i", "backslash": "setminus", "smallsetminus": "setminus", "prime": "'", "arctg": "arctan"},
    **{"tg": "tan", "ctg": "cot", "cosec": "csc", "bar": "overline", "widehat": "hat", "varepsilon": "epsilon", "varphi": "phi"},
}
_TOKEN = re.compile(
    rf"""
      (?P<space> \s+ )
    | (?P<upright> {_UPRIGHT} \s* \{{ )                                      # \text{{
    | (?P<repeating> (?:\d+|(?=\.)) \. \d* \\(?:overline|bar|dot) \s* (?: \{{\d+\}} | \d ) )   # 0.1\overline{{6}}
    | (?P<number>
          \d{{1,3}} (?: [,{_THOUSANDS}] \d{{3}} )+ (?!\d) (?: \.\d+ )?       # 1,000.5
        | \d{{1,3}} (?: \ \d{{3}} )+ (?!\d) (?: \.\d+ )?                     # 1 000
        | (?: \d+ (?: \.(?!\.)\d* )? | \.\d+ ) (?: [eE][+-]?\d{{1,3}} (?![\d.]) )?    # 12 or .5 or 1.5e-3
      )
    | (?P<dots> \.\.\.+ | \\[cl]?dots(?![A-Za-z]) )
    | (?P<command> \\[A-Za-z]+ )
    | (?P<escaped> \\[{{}}|%$&\#_] | \\\\ )                                   # \{{ and the end of a row
    | (?P<word> [^\W\d_]+ )
    | (?P<relation> <= | >= | != | == | <> )
    | (?P<sign> [^\s\\] )
    """,
    re.VERBOSE,
)
_SIGNS = {"\\%": "%", "\\|": "|", "\\&": "&", "==": "=", "<>": "!=", "\\_": "_"}


def tokenise(text: str) -> list[Token]:
    r"""Return the tokens of a text in plain notation; text in ``\text{}`` is marked upright.

    Raises:
        NotationError: If it contains something that cannot be a token, or an open ``\text{``.
    """
    tokens: list[Token] = []
    _scan(text, 0, len(text), tokens, upright=False)
    return tokens


def _scan(text: str, start: int, end: int, tokens: list[Token], *, upright: bool) -> None:
    spaced, opened, place = False, list[int](), start
    while place < end:
        match = _TOKEN.match(text, place, end)
        if match is None:
            raise NotationError(f"it holds {text[place : place + 10]!r}")
        kind, found = str(match.lastgroup), match[0]
        if kind == "number" and "," in found and opened and not _has_spaced_commas(text, opened[-1]):
            found = found[: found.index(",")]
        place += len(found)
        if kind == "space":
            spaced = True
            continue
        if kind == "upright":
            place, spaced = _scan_upright(text, place, end, tokens, spaced=spaced), False
            continue
        tokens.append(_token(kind, found, spaced=spaced, upright=upright, end=place))
        _note_bracket(tokens[-1].text, place, opened)
        spaced = False


def _scan_upright(text: str, start: int, end: int, tokens: list[Token], *, spaced: bool) -> int:
    r"""Read what a ``\text{`` holds, and return the place after its brace."""
    closing = closing_brace(text, start)
    if closing is None or closing > end:
        raise NotationError("a brace is not closed")
    before = len(tokens)
    # Text commands separate the text on both sides, as a space does.
    _scan(text, start, closing - 1, tokens, upright=True)
    if spaced and len(tokens) > before:
        tokens[before] = _spaced(tokens[before])
    return closing


def _note_bracket(found: str, place: int, opened: list[int]) -> None:
    """Keep the places of the brackets that are open."""
    if found in ("(", "[", "\\{"):
        opened.append(place)
    elif found in (")", "]", "\\}") and opened:
        opened.pop()


def _has_spaced_commas(text: str, start: int) -> bool:
    """Say whether a bracket parts its items by a comma and a space: then a comma without a space groups thousands there."""
    end = next((match.start() for match in re.finditer(r"[)\]}]", text[start:])), len(text) - start)
    return ", " in text[start : start + end]


def _spaced(token: Token) -> Token:
    return Token(token.kind, token.text, True, token.upright, token.value, token.end)


def _token(kind: str, found: str, *, spaced: bool, upright: bool, end: int) -> Token:
    if kind in ("number", "repeating"):
        value = _repeating(found) if kind == "repeating" else _decimal(found)
        return Token("number", found, spaced, upright, value, end)
    if kind == "dots":
        return Token("command", "\\ldots", spaced, upright, None, end)
    if kind == "command":
        name = _ALIASES.get(found[1:], found[1:])
        is_sign = not name[0].isalpha()
        return Token("sign" if is_sign else "command", name if is_sign else f"\\{name}", spaced, upright, None, end)
    if kind in ("escaped", "relation"):
        return Token("sign", _SIGNS.get(found, found), spaced, upright, None, end)
    return Token(kind, found, spaced, upright, None, end)


def _decimal(text: str) -> Fraction:
    digits, _, exponent = re.sub(rf"[,{_THOUSANDS} ]", "", text).lower().partition("e")
    return Fraction(digits.rstrip(".") or "0") * Fraction(10) ** int(exponent or 0)


def _repeating(text: str) -> Fraction:
    r"""Return 0.1666... for ``0.1\overline{6}``: the digits once, less those before the period, over as many nines and noughts."""
    before, _, period = text.partition("\\")
    whole, _, digits = before.partition(".")
    period = "".join(character for character in period if character.isdigit())
    fixed = int(whole + digits or "0")
    return Fraction(int(f"{fixed}{period}") - fixed, (10 ** len(period) - 1) * 10 ** len(digits))
