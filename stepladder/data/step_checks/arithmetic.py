"""Whether a step's own arithmetic holds: the equations between plain numbers that it states."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

_NUMBER = r"\d[\d,]*(?:\.\d+)?"
"""A plain decimal number: ``3``, ``1,200``, ``0.5``."""
_EQUATION = re.compile(
    rf"""
    (?<! [\w.)\]}}%$^\\+\-*/] )       # not the rest of something longer: x2+1, 10%-3, f(1)+2
    (?P<left>
        (?: \( | -\s? )*              # opening brackets and signs: (( or -
        {_NUMBER}
        (?:
            [\s()]* [-+*/×÷]          # an operation, perhaps after a bracket: ") +"
            [\s(]* (?: -\s? )?        # perhaps a bracket or a sign: "(-"
            {_NUMBER}
            [\s)]*
        )+                            # at least one operation: "2 + 3", "(1+2)*3"
    )
    = \s*
    (?P<right> -? {_NUMBER} )         # the stated result: "5", "-1.5"
    (?! [.,]? \w                      # which does not go on: 5x, 5.x
      | \s* [-+*/×÷^%(\\]            # and is not itself part of a term: 5 + 1, 5%, 5(
    )
    """,
    re.VERBOSE,
)
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_MAX_LENGTH = 200


def arithmetic_holds(text: str) -> bool | None:
    """Say whether every equation of plain numbers in a step is exactly true; None without a readable equation.

    Read are a sum, difference, product or quotient of decimal numbers, with brackets, followed by ``=`` and one number, also inside
    ``<<...>>``. A decimal result may be rounded: it holds when the exact one rounds to it. Whatever has letters, units, powers or percent
    signs next to it is ignored: an uncertain check gives no verdict.
    """
    verdicts = [verdict for match in _EQUATION.finditer(text) if (verdict := _true(match["left"], match["right"])) is not None]
    return all(verdicts) if verdicts else None


def _true(left: str, right: str) -> bool | None:
    expression = left.replace(",", "").replace("×", "*").replace("÷", "/").strip()
    stated = Fraction(right.replace(",", ""))
    if len(expression) > _MAX_LENGTH:
        return None
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
