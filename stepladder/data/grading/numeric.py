"""Equality by numbers: both sides to many digits, and with letters at random points.

Used in worker processes only, because it may take for ever. The digits follow the size of the numbers involved, so that a difference of
1 in 10^2000 is found. If they do not suffice, the answer is None, never a guess.
"""

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from mpmath import mp

from stepladder.data.grading.forms import Call, Expression, Number, Symbol, letters_of, subexpressions
from stepladder.data.grading.normal import normal_form

_MAX_MAGNITUDE = 5000
"""Powers of ten, up or down, beyond which numbers are not compared by their digits."""
_FEW_DIGITS = 30
_NUM_POINTS = 24
_NEEDED_POINTS = 4
"""Points at which both sides must be defined, of all that are tried."""

Point = dict[str, Fraction]


class _OutsideError(ArithmeticError):
    """A point is outside the domain of an expression."""


def same_value(left: Expression, right: Expression) -> bool | None:
    """Say whether two expressions are equal wherever both are defined; None if that stays open."""

    def agree(values: Sequence[Any], tolerance: Any) -> bool:
        return abs(values[0] - values[1]) <= tolerance

    return _everywhere([left, right], lambda: agree)


def proportional(left: Expression, right: Expression, *, positive: bool) -> bool | None:
    """Say whether one expression is a constant times the other, as the two sides of an equation may be.

    Args:
        left: One expression.
        right: The other; neither is zero everywhere.
        positive: Whether the constant must be positive, as for inequalities.
    """
    return _everywhere([left, right], lambda: _Proportion(positive=positive))


class _Proportion:
    """Compares ratios with the first one."""

    def __init__(self, *, positive: bool) -> None:
        self._positive = positive
        self._first: Any = None

    def __call__(self, values: Sequence[Any], tolerance: Any) -> bool:
        one, other = values
        if abs(one) <= tolerance or abs(other) <= tolerance:
            return bool(abs(one) <= tolerance and abs(other) <= tolerance)
        ratio = one / other
        if self._positive and not (mp.im(ratio) == 0 and mp.re(ratio) > 0):
            return False
        self._first = ratio if self._first is None else self._first
        return abs(one - self._first * other) <= tolerance * max(1, abs(self._first))


_Agree = Callable[[Sequence[Any], Any], bool]


def _everywhere(expressions: Sequence[Expression], make_agree: Callable[[], _Agree]) -> bool | None:
    """Say whether the values of some expressions agree: roughly at every point, and to all digits at a few."""
    letters = sorted(set().union(*(letters_of(each) for each in expressions)))
    is_complex = any(part == Symbol("i") for each in expressions for part in subexpressions(each))
    roughly, closely, valid = make_agree(), make_agree(), 0
    needed = _NEEDED_POINTS if letters else 1
    for point in _points(letters):
        try:
            agreed = _agree_at(expressions, point, roughly, closely if valid < needed else None, is_complex=is_complex)
        except (_OutsideError, ZeroDivisionError, ValueError):  # mpmath's word for a pole is ValueError
            continue
        if agreed is False:
            return False
        valid += agreed is True
    return True if valid >= needed else None


def _agree_at(expressions: Sequence[Expression], point: Point, roughly: _Agree, closely: _Agree | None, *, is_complex: bool) -> bool | None:
    scout = _Evaluator(point, is_complex=is_complex)
    with mp.workdps(_FEW_DIGITS):
        values = [scout.value(each) for each in expressions]
        # All digits that large and small intermediate numbers cost may be lost here.
        if not roughly(values, mp.mpf(10) ** (2 * scout.magnitude + 5 - _FEW_DIGITS)):
            return False
    if closely is None:
        return True
    if scout.magnitude > _MAX_MAGNITUDE:
        return None
    digits = 60 + 6 * scout.magnitude
    with mp.workdps(digits):
        evaluator = _Evaluator(point, is_complex=is_complex)
        values = [evaluator.value(each) for each in expressions]
        return closely(values, mp.mpf(10) ** (scout.magnitude + 10 - digits))


def _points(letters: Sequence[str]) -> list[Point]:
    """Return the same points for the same letters: of every combination of signs, small and large, broken and whole."""
    if not letters:
        return [{}]
    draw = random.Random(" ".join(letters))
    points: list[Point] = []
    for number in range(_NUM_POINTS):
        # The signs of the first letters count in binary, so that three letters have all eight combinations.
        signs = [-1 if number >> place & 1 else 1 for place in range(len(letters))]
        sizes = [_size(draw, kind=number // 8) for _ in letters]
        points.append({letter: sign * size for letter, sign, size in zip(letters, signs, sizes, strict=True)})
    return points


def _size(draw: random.Random, *, kind: int) -> Fraction:
    """Draw a broken number below 1, one below 3, or a small integer."""
    if kind == 2:
        return Fraction(draw.randint(2, 12))
    return Fraction(draw.randint(1000, [999_000, 2_999_000][kind]) | 1, 1_000_003)


class _Evaluator:
    """Values of expressions at one point, in the real numbers, or in the complex ones where i occurs."""

    def __init__(self, point: Point, *, is_complex: bool) -> None:
        self._point, self._is_complex = point, is_complex
        self.magnitude = 1
        """Largest power of ten, up or down, of any value on the way."""

    def value(self, expression: Expression) -> Any:
        """Return a value at mpmath's present precision."""
        if isinstance(expression, Number):
            value = mp.mpf(expression.value.numerator) / expression.value.denominator
        elif isinstance(expression, Symbol):
            value = self._symbol(expression.name)
        else:
            value = self._call(expression)
        if value:
            size = abs(value)
            if not mp.isfinite(size):
                raise _OutsideError
            self.magnitude = max(self.magnitude, abs(int(mp.log10(size))))
        return value

    def _symbol(self, name: str) -> Any:
        if name in ("pi", "e"):
            return +(mp.pi if name == "pi" else mp.e)
        if name == "i":
            return mp.mpc(0, 1)
        if name == "oo":
            raise _OutsideError
        return mp.mpf(self._point[name].numerator) / self._point[name].denominator

    def _call(self, call: Call) -> Any:
        if call.name == "power":
            return self._power(*call.args)
        args = [self.value(argument) for argument in call.args]
        if call.name == "add":
            return mp.fsum(args)
        if call.name == "mul":
            return mp.fprod(args)
        if call.name in ("floor", "ceil"):
            return self._rounded(call.name, args[0])
        value = _FUNCTIONS[call.name](*args)
        if not self._is_complex and mp.im(value):
            raise _OutsideError
        return value

    def _rounded(self, name: str, value: Any) -> Any:
        if mp.im(value):
            raise _OutsideError
        nearest = mp.nint(value)
        # With this many digits, a value this close to an integer is the integer.
        if abs(value - nearest) < mp.mpf(10) ** (10 - mp.dps):
            return nearest
        return mp.floor(value) if name == "floor" else mp.ceil(value)

    def _power(self, base: Expression, exponent: Expression) -> Any:
        foundation, power = self.value(base), self.value(exponent)
        if not foundation and mp.re(power) <= 0:
            raise _OutsideError
        if not self._is_complex and foundation < 0 and not mp.isint(power):
            return _real_root(foundation, exponent)
        return mp.power(foundation, power)


def _real_root(base: Any, exponent: Expression) -> Any:
    """Return a power of a negative number with an odd denominator in the exponent, like the cube root of -8."""
    form = normal_form(exponent)
    value = None if form is None else form.rational
    if value is None or value.denominator % 2 == 0:
        raise _OutsideError
    root = -mp.root(-base, value.denominator)
    return mp.power(root, value.numerator)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(mp, name) for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "factorial", "binomial")},
    **{"arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan, "ln": mp.log, "log": mp.log, "abs": abs},
    **{"percent": lambda value: value / 100, "degree": lambda value: value * mp.pi / 180},
}
