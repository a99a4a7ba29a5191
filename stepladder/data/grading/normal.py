r"""Exact normal forms: sums of products with rational coefficients, in which equal expressions mostly look the same.

``2\sqrt{2}`` and ``\sqrt{8}``, ``(x+1)^2`` and ``x^2+2x+1``, ``\frac{1}{1+i}`` and ``\frac12-\frac i2`` have one form each. Two equal forms
prove two expressions equal. Two different forms prove them different if both are ``settled``: built of letters, pi, e, i and square roots
of integers alone, among which no relation holds that the form would not know (for pi and e together none is known). What cannot be
taken apart, like ``sin(x)`` or ``1/(x+1)``, is an atom with a name.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from stepladder.data.grading.forms import Expression, Number, Symbol

_Powers = tuple[tuple[str, int], ...]
_Monomial = tuple[int, bool, _Powers]
"""Square-free radicand of one square root, whether i is a factor, and the atoms with their exponents, sorted."""
_UNIT: _Monomial = (1, False, ())
_MAX_TERMS = 300
_MAX_EXPONENT = 64
_LARGEST_PRIME = 1000


class UndefinedError(ArithmeticError):
    """The expression has no value, like 1/0."""


class EffortError(ArithmeticError):
    """The form would take more than the effort allowed."""


@dataclass(frozen=True, slots=True)
class NormalForm:
    """A sum of terms."""

    terms: tuple[tuple[_Monomial, Fraction], ...]
    """Monomials with their coefficients, none of them 0, sorted."""
    settled: bool
    """Whether a settled form with other terms is another value."""

    @property
    def rational(self) -> Fraction | None:
        """Its value if it is a rational number."""
        if not self.terms:
            return Fraction(0)
        (monomial, coefficient), *others = self.terms
        return coefficient if monomial == _UNIT and not others else None

    def monic(self) -> tuple["NormalForm", Fraction]:
        """Return the form divided by its first coefficient, and that coefficient; a zero form stays itself."""
        lead = next((value for _, value in self.terms), Fraction(1))
        return NormalForm(tuple((monomial, value / lead) for monomial, value in self.terms), self.settled), lead

    def __str__(self) -> str:
        parts = [_term_text(monomial, coefficient) for monomial, coefficient in self.terms]
        return " + ".join(parts).replace("+ -", "- ") or "0"


class _Normaliser:
    """One calculation, with a bound on its work."""

    def __init__(self, *, max_bits: int, max_work: int) -> None:
        self._max_bits, self._work = max_bits, max_work

    def of(self, expression: Expression) -> NormalForm:
        """Return the normal form of an expression."""
        if isinstance(expression, Number):
            return self._sum({_UNIT: expression.value}, settled=True)
        if isinstance(expression, Symbol):
            return self._symbol(expression.name)
        if expression.name == "power":
            return self._call_power(*expression.args)
        args = [self.of(argument) for argument in expression.args]
        if expression.name == "add":
            return self._add(args)
        if expression.name == "mul":
            product = args[0]
            for factor in args[1:]:
                product = self._multiply(product, factor)
            return product
        return self._function(expression.name, args)

    def _symbol(self, name: str) -> NormalForm:
        if name == "i":
            return NormalForm((((1, True, ()), Fraction(1)),), True)
        # Infinity obeys no arithmetic.
        return _atom(name, settled=name != "oo")

    def _sum(self, terms: dict[_Monomial, Fraction], *, settled: bool) -> NormalForm:
        return NormalForm(tuple(sorted(((monomial, value) for monomial, value in terms.items() if value), key=_order)), settled)

    def _add(self, forms: list[NormalForm]) -> NormalForm:
        terms: dict[_Monomial, Fraction] = {}
        for form in forms:
            for monomial, value in form.terms:
                self._spend(value)
                terms[monomial] = terms.get(monomial, Fraction(0)) + value
        return self._sum(terms, settled=all(form.settled for form in forms))

    def _multiply(self, left: NormalForm, right: NormalForm) -> NormalForm:
        if len(left.terms) > 1 and len(right.terms) > 1 and len(left.terms) * len(right.terms) > 4 * _MAX_TERMS:
            left, right = _as_atom(left), _as_atom(right)
        terms: dict[_Monomial, Fraction] = {}
        for one, first in left.terms:
            for other, second in right.terms:
                monomial, factor = _times(one, other)
                self._spend(first, second)
                terms[monomial] = terms.get(monomial, Fraction(0)) + first * second * factor
        return self._sum(terms, settled=left.settled and right.settled)

    def _spend(self, *values: Fraction) -> None:
        bits = sum(value.numerator.bit_length() + value.denominator.bit_length() for value in values)
        if bits > 2 * self._max_bits:
            raise EffortError("too many digits")
        self._work -= 1 + bits // 256
        if self._work < 0:
            raise EffortError("too much work")

    # ------------------------------------------------------------------------------------------------------------------ powers

    def _call_power(self, base: Expression, exponent: Expression) -> NormalForm:
        foundation, power = self.of(base), self.of(exponent)
        value = power.rational
        if value is None:
            return _power_atom(foundation, power)
        if value.denominator == 1 and abs(value) <= 1 << 40:
            return self._integer_power(foundation, int(value))
        return self._root(foundation, value, power)

    def _integer_power(self, base: NormalForm, exponent: int) -> NormalForm:
        if exponent < 0:
            return self._integer_power(self._inverse(base), -exponent)
        if base.rational is not None:
            return self._sum({_UNIT: self._rational_power(base.rational, exponent)}, settled=True)
        if len(base.terms) == 1:
            (monomial, coefficient), *_ = base.terms
            return self._monomial_power(monomial, coefficient, exponent, base.settled)
        if exponent > _MAX_EXPONENT:
            return _power_atom(base, NormalForm(((_UNIT, Fraction(exponent)),), True))
        result = NormalForm(((_UNIT, Fraction(1)),), True)
        for _ in range(exponent):
            if len(result.terms) * len(base.terms) > 4 * _MAX_TERMS:
                return _power_atom(base, NormalForm(((_UNIT, Fraction(exponent)),), True))
            result = self._multiply(result, base)
        return result

    def _monomial_power(self, monomial: _Monomial, coefficient: Fraction, exponent: int, settled: bool) -> NormalForm:
        radicand, imaginary, powers = monomial
        value = self._rational_power(coefficient, exponent) * self._rational_power(Fraction(radicand), exponent // 2)
        if imaginary and exponent % 4 in (2, 3):
            value = -value
        odd = exponent % 2 == 1
        raised = tuple((name, own * exponent) for name, own in powers) if exponent else ()
        return self._sum({(radicand if odd else 1, imaginary and odd, raised): value}, settled=settled)

    def _rational_power(self, base: Fraction, exponent: int) -> Fraction:
        bits = base.numerator.bit_length() + base.denominator.bit_length() - 2
        if bits * exponent > self._max_bits:
            raise EffortError("too many digits")
        self._spend(base)
        return base**exponent

    def _inverse(self, form: NormalForm) -> NormalForm:
        if not form.terms:
            raise UndefinedError("it divides by zero")
        if len(form.terms) == 1:
            (radicand, imaginary, powers), value = form.terms[0]
            flipped = tuple((name, -exponent) for name, exponent in powers)
            return self._sum({(radicand, imaginary, flipped): (-1 if imaginary else 1) / (value * radicand)}, settled=form.settled)
        if len(form.terms) == 2 and all(not powers for (_, _, powers), _ in form.terms):
            # 1 / (a + b) = (a - b) / (a^2 - b^2), which is rational for square roots and i.
            (one, first), (other, second) = form.terms
            conjugate = self._sum({one: first, other: -second}, settled=True)
            norm = self._multiply(form, conjugate).rational
            if norm:
                return self._multiply(conjugate, self._sum({_UNIT: 1 / norm}, settled=True))
        monic, lead = form.monic()
        inverse = _atom(f"({monic})", exponent=-1, settled=False)
        return self._multiply(inverse, self._sum({_UNIT: 1 / lead}, settled=True))

    def _root(self, base: NormalForm, exponent: Fraction, power: NormalForm) -> NormalForm:
        """Return a power with a broken exponent."""
        value = base.rational
        if value is None or abs(exponent.numerator) > _MAX_EXPONENT or exponent.denominator > _MAX_EXPONENT:
            return _power_atom(base, power)
        if value == 0:
            if exponent < 0:
                raise UndefinedError("it divides by zero")
            return self._sum({}, settled=True)
        raised = self._rational_power(1 / value if exponent < 0 else value, abs(exponent.numerator))
        degree = exponent.denominator
        if degree == 2:
            return self._square_root(raised)
        sign, raised = (-1, -raised) if raised < 0 and degree % 2 else (1, raised)
        if raised < 0:
            return _power_atom(base, power)
        # (p/q)^(1/n) = (p q^(n-1))^(1/n) / q
        outside, inside = _take_roots(raised.numerator * self._integer(raised.denominator, degree - 1), degree)
        coefficient = sign * Fraction(outside, raised.denominator)
        if inside == 1:
            return self._sum({_UNIT: coefficient}, settled=True)
        return self._sum({(1, False, ((f"({inside})^(1/{degree})", 1),)): coefficient}, settled=False)

    def _integer(self, base: int, exponent: int) -> int:
        return int(self._rational_power(Fraction(base), exponent))

    def _square_root(self, value: Fraction) -> NormalForm:
        if not value:
            return self._sum({}, settled=True)
        outside, inside = _take_roots(abs(value.numerator) * value.denominator, 2)
        # A large rest may hide the square of a large prime; then the form is not unique.
        settled = inside < _LARGEST_PRIME**3
        return self._sum({(inside, value < 0, ()): Fraction(outside, value.denominator)}, settled=settled)

    # --------------------------------------------------------------------------------------------------------------- functions

    def _function(self, name: str, args: list[NormalForm]) -> NormalForm:
        first = args[0]
        value = first.rational
        if name == "percent":
            return self._multiply(first, self._sum({_UNIT: Fraction(1, 100)}, settled=True))
        if name == "degree":
            return self._multiply(self._multiply(first, _atom("pi", settled=True)), self._sum({_UNIT: Fraction(1, 180)}, settled=True))
        if name == "ln":
            return self._logarithm(first)
        if name == "log":
            return self._logarithm_to_base(first, args[1])
        exact = None if value is None else self._exact_function(name, value, [argument.rational for argument in args[1:]])
        if exact is not None:
            return self._sum({_UNIT: exact}, settled=True)
        return _atom(f"{name}({', '.join(map(str, args))})", settled=False)

    def _exact_function(self, name: str, value: Fraction, others: list[Fraction | None]) -> Fraction | None:
        if name == "abs":
            return abs(value)
        if name in ("floor", "ceil"):
            return Fraction(math.floor(value) if name == "floor" else math.ceil(value))
        if value.denominator != 1:
            return None
        if name == "factorial":
            if value < 0:
                raise UndefinedError("it has the factorial of a negative number")
            # n! has about n log2 n bits.
            if int(value) * int(value).bit_length() > 2 * self._max_bits:
                raise EffortError("too many digits")
            return Fraction(math.factorial(int(value)))
        if name == "binomial" and others[0] is not None and others[0].denominator == 1 and 0 <= others[0] <= value:
            if min(others[0], value - others[0]) * value.numerator.bit_length() > self._max_bits:
                raise EffortError("too many digits")
            return Fraction(math.comb(int(value), int(others[0])))
        return Fraction(0) if value == 0 and name in ("sin", "tan", "arcsin", "arctan", "sinh", "tanh") else None

    def _logarithm_to_base(self, form: NormalForm, base: NormalForm) -> NormalForm:
        over, under = self._logarithm(form), self._logarithm(base)
        if not under.terms:
            raise UndefinedError("it divides by zero")
        (over_monic, lead), (under_monic, other) = over.monic(), under.monic()
        if over_monic.terms == under_monic.terms:
            return self._sum({_UNIT: lead / other}, settled=True)
        return self._multiply(over, self._inverse(under))

    def _logarithm(self, form: NormalForm) -> NormalForm:
        value = form.rational
        if form == _atom("e", settled=True):
            return self._sum({_UNIT: Fraction(1)}, settled=True)
        if value is None:
            return _atom(f"ln({form})", settled=False)
        if value <= 0:
            raise UndefinedError("it has the logarithm of a number that is not positive")
        terms: dict[_Monomial, Fraction] = {}
        for number, sign in ((value.numerator, 1), (value.denominator, -1)):
            for prime, exponent in _factors(number):
                key = (1, False, ((f"ln({prime})", 1),))
                terms[key] = terms.get(key, Fraction(0)) + sign * exponent
        return self._sum(terms, settled=not terms)


@lru_cache(maxsize=4096)
def normal_form(expression: Expression, *, max_bits: int = 1 << 15, max_work: int = 20_000) -> NormalForm | None:
    """Return the normal form of an expression, or None if it would take more than the effort allowed.

    Args:
        expression: The expression to normalise.
        max_bits: Largest size of a number.
        max_work: Largest number of operations on terms; large numbers count as several.

    Raises:
        UndefinedError: If the expression has no value.
    """
    try:
        return _Normaliser(max_bits=max_bits, max_work=max_work).of(expression)
    except EffortError:
        return None


def _atom(name: str, *, exponent: int = 1, settled: bool) -> NormalForm:
    return NormalForm((((1, False, ((name, exponent),)), Fraction(1)),), settled)


def _as_atom(form: NormalForm) -> NormalForm:
    return _atom(f"({form})", settled=False) if len(form.terms) > 1 else form


def _power_atom(base: NormalForm, exponent: NormalForm) -> NormalForm:
    shown = str(base) if str(base).isalnum() else f"({base})"
    return _atom(f"{shown}^({exponent})", settled=False)


def _times(left: _Monomial, right: _Monomial) -> tuple[_Monomial, int]:
    """Return the product of two monomials as a monomial and a factor."""
    common = math.gcd(left[0], right[0])
    factor = -common if left[1] and right[1] else common
    if not left[2] or not right[2]:
        powers = left[2] or right[2]
    else:
        exponents = dict(left[2])
        for name, exponent in right[2]:
            exponents[name] = exponents.get(name, 0) + exponent
        powers = tuple(sorted((name, exponent) for name, exponent in exponents.items() if exponent))
    return (left[0] // common * (right[0] // common), left[1] != right[1], powers), factor


def _small_primes(limit: int) -> list[int]:
    sieve = [True] * limit
    for number in range(2, math.isqrt(limit) + 1):
        if sieve[number]:
            sieve[number * number :: number] = [False] * len(range(number * number, limit, number))
    return [number for number in range(2, limit) if sieve[number]]


_PRIMES = _small_primes(_LARGEST_PRIME)


def _factors(number: int) -> list[tuple[int, int]]:
    """Return the small primes of a number with their exponents, and the remaining factor."""
    found = []
    for prime in _PRIMES:
        if prime * prime > number:
            break
        exponent = 0
        while number % prime == 0:
            number //= prime
            exponent += 1
        if exponent:
            found.append((prime, exponent))
    return [*found, (number, 1)] if number > 1 else found


def _take_roots(number: int, degree: int) -> tuple[int, int]:
    """For a positive number return (a, b) with ``number = a^degree * b``, where b holds no such power of a small prime and is none."""
    outside, inside = 1, 1
    for factor, exponent in _factors(number):
        if exponent == 1 and factor > _LARGEST_PRIME:
            root = round_root(factor, degree)
            if root**degree == factor:
                outside *= root
                continue
        outside *= factor ** (exponent // degree)
        inside *= factor ** (exponent % degree)
    return outside, inside


def round_root(number: int, degree: int) -> int:
    """Return the largest integer whose power of the degree is at most a number, by Newton's method."""
    if degree == 2:
        return math.isqrt(number)
    root = 1 << -(-number.bit_length() // degree)
    while True:
        better = ((degree - 1) * root + number // root ** (degree - 1)) // degree
        if better >= root:
            return root
        root = better


def _order(term: tuple[_Monomial, Fraction]) -> tuple[int, _Powers, int, bool]:
    """Highest powers first, plain numbers last."""
    radicand, imaginary, powers = term[0]
    return (-sum(exponent for _, exponent in powers), powers, -radicand, not imaginary)


def _term_text(monomial: _Monomial, coefficient: Fraction) -> str:
    radicand, imaginary, powers = monomial
    factors = [f"sqrt({radicand})"] if radicand > 1 else []
    factors += ["i"] if imaginary else []
    for name, exponent in powers:
        base = f"({name})" if "^" in name else name
        factors.append(name if exponent == 1 else f"{base}^{exponent}" if exponent > 0 else f"{base}^({exponent})")
    if not factors:
        return _number_text(coefficient)
    lead = "" if coefficient == 1 else "-" if coefficient == -1 else f"{_number_text(coefficient)}*"
    return lead + "*".join(factors)


def _number_text(value: Fraction) -> str:
    """Return a number in digits; in hexadecimal if Python would refuse to write so many digits."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) < 14_000:
        return str(value)
    return f"{value.numerator:#x}/{value.denominator:#x}"
