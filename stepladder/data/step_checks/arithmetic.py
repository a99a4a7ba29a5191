"""Whether a step's own arithmetic holds: the equations between plain numbers that it states."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

_MAX_LENGTH, _MAX_TERMS = 200, 100
"""Characters and numbers of the longest expression that is read. So no text takes long, and no number is one that ``int`` refuses."""
_NUMBER = rf"\d[\d,]{{0,{_MAX_LENGTH}}}(?:\.\d{{1,{_MAX_LENGTH}}})?"
"""A plain decimal number: ``3``, ``1,200``, ``0.5``."""
_BLANKS = r"\x20\t\xa0"
"""Blanks within a line: an equation does not go on in the next one, which may begin with the dash of a list."""
_OPERATORS = "-+*/×÷·⋅−^%"
# Every stretch of blanks and brackets can be read in one way only. With two, a sum of n numbers that no result follows would take time 2^n.
_EQUATION = re.compile(
    rf"""
    (?<! [\w.,)\]}}%$^\\+\-*/] )           # not the rest of something longer: x2+1, 10%-3, f(1)+2
    (?P<left>
        (?: \( | -[{_BLANKS}]? ){{0,20}}     # opening brackets and signs: (( or -
        {_NUMBER}
        (?:
            [{_BLANKS}()]* [-+*/×÷]       # an operation, perhaps after a bracket: ") +"
            [{_BLANKS}(]* (?: -[{_BLANKS}]? )?  # perhaps a bracket or a sign: "(-"
            {_NUMBER}
        ){{1,{_MAX_TERMS}}}                    # at least one operation: "2 + 3", "(1+2)*3"
        [{_BLANKS})]*
    )
    = [{_BLANKS}]*
    (?P<right> -? {_NUMBER} )             # the stated result: "5", "-1.5"
    (?! [.,]? \w                          # which does not go on: 5x, 5.x
      | [{_BLANKS}]+ \d                   # as a mixed number does: 3 1/2
      | \s* [{_OPERATORS}(\\]             # and is not itself part of a term: 5 + 1, 5%, 5(
    )
    """,
    re.VERBOSE,
)
_BEFORE_A_REST = re.compile(rf"(?: [{_OPERATORS}\d)\]}}] | \\[A-Za-z]+ ) [{_BLANKS}]* \Z", re.VERBOSE)
r"""The end of a text after which an equation is the rest of a longer one: ``x +``, ``2`` (a mixed number or a product), ``\times``."""
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def arithmetic_holds(text: str) -> bool | None:
    """Say whether every equation of plain numbers in a step is exactly true; None without a readable equation.

    Read are a sum, difference, product or quotient of decimal numbers, with brackets, followed by ``=`` and one number, all on one line,
    also inside ``<<...>>``. A decimal result may be rounded: it holds when the exact one rounds to it. Whatever has letters, units, powers
    or percent signs next to it, or is the rest of a longer expression, is ignored: an uncertain check gives no verdict.
    """
    verdicts = [_true(match["left"], match["right"]) for match in _EQUATION.finditer(text) if not _is_rest(text, match)]
    known = [verdict for verdict in verdicts if verdict is not None]
    return all(known) if known else None


def _is_rest(text: str, match: "re.Match[str]") -> bool:
    """Say whether an equation may be the rest of a longer one; a dash with a blank after it may be an operation, a sign or a list's."""
    # Nothing is longer than what is read, so no more of the text is looked at.
    before = text[max(0, match.start() - _MAX_LENGTH) : match.start()]
    return bool(re.match(r"-\s", match["left"])) or _BEFORE_A_REST.search(before) is not None


def _true(left: str, right: str) -> bool | None:
    if max(len(left), len(right)) > _MAX_LENGTH:
        return None
    expression = left.replace(",", "").replace("×", "*").replace("÷", "/").strip()
    stated = Fraction(right.replace(",", ""))
    try:
        exact = _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
    decimals = len(right.partition(".")[2])
    return exact == stated or (decimals > 0 and abs(exact - stated) <= Fraction(1, 2 * 10**decimals))


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp) and (operation := _OPERATIONS.get(type(node.op))):
        return operation(_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    raise ValueError(f"not arithmetic: {ast.dump(node)}")
