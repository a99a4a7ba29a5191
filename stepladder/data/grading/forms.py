"""Meaning of an answer as data: expressions, and the lists, sets, relations and words made from them.

An expression is a ``Number``, a ``Symbol`` or a ``Call`` of an operation on expressions. A ``Form`` is an expression or one of the other
records below. All are frozen and hashable.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeGuard


@dataclass(frozen=True, slots=True)
class Number:
    """A rational number, exactly."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Symbol:
    """A letter with its subscripts and accents, or a constant: ``pi``, ``e``, ``i``, ``oo``."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """An operation: ``add``, ``mul``, ``power``, or a function by its name, e.g. ``sin``."""

    name: str
    args: tuple["Expression", ...]


Expression = Number | Symbol | Call


@dataclass(frozen=True, slots=True)
class Word:
    """Text that is an answer by itself; order and case of its letters count."""

    text: str


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with its unit."""

    value: Expression
    unit: str
    """Canonical name, e.g. ``cm^2``, ``mile/hour``, ``degree``."""


@dataclass(frozen=True, slots=True)
class Based:
    """An integer that is written in a stated base."""

    digits: str
    """Digits and capital letters, without leading zeros."""
    base: int


@dataclass(frozen=True, slots=True)
class Items:
    """Several forms together."""

    opening: str
    """``(``, ``[``, ``{``, or empty for a list without brackets."""
    items: tuple["Form", ...]
    closing: str
    joint: str = ","
    """``,``, ``and`` or ``or``: the separator of the items of a list without brackets."""


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain like ``0 < x <= 3``."""

    members: tuple["Form", ...]
    """One more than there are signs."""
    signs: tuple[str, ...]
    """``=``, ``<``, ``<=``, ``>``, ``>=``, ``!=`` or ``in``."""
    named: bool
    """Whether the first member is only a name for the value: a letter, ``f(x)``, a word."""


@dataclass(frozen=True, slots=True)
class SetOperation:
    """A union, intersection or difference of sets."""

    name: str
    """``cup``, ``cap`` or ``setminus``."""
    parts: tuple["Form", ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Parts like ``2:3:5``, or a time of day."""

    parts: tuple["Form", ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries."""

    kind: str
    """``matrix``, or ``vmatrix`` for a determinant."""
    rows: tuple[tuple["Form", ...], ...]


@dataclass(frozen=True, slots=True)
class Opaque:
    """A text that is well-formed but not understood, like ``1 + 2 + ... + n``; only the same text is equal to it."""

    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A text that no answer can equal."""

    reason: str
    """The error, as a clause: ``two numbers stand side by side``."""


Form = Number | Symbol | Call | Word | Quantity | Based | Items | Relation | SetOperation | Ratio | Matrix | Opaque | Unreadable

ONE, MINUS_ONE = Number(Fraction(1)), Number(Fraction(-1))
CONSTANTS = frozenset({"pi", "e", "i", "oo"})
"""Symbols that are numbers, or infinity."""


def is_expression(form: Form) -> TypeGuard[Expression]:
    """Say whether a form is a scalar that can be calculated with."""
    return isinstance(form, Number | Symbol | Call)


def negated(expression: Expression) -> Expression:
    """Return minus an expression."""
    if isinstance(expression, Number):
        return Number(-expression.value)
    return Call("mul", (MINUS_ONE, expression))


def difference(left: Expression, right: Expression) -> Expression:
    """Return ``left - right``."""
    return Call("add", (left, negated(right)))


def quotient(left: Expression, right: Expression) -> Expression:
    """Return ``left / right``."""
    return Call("mul", (left, Call("power", (right, MINUS_ONE))))


def without_percent(expression: Expression) -> Expression:
    """Return an expression with its per cent signs taken off: 50% becomes 50."""
    if not isinstance(expression, Call):
        return expression
    args = tuple(map(without_percent, expression.args))
    return args[0] if expression.name == "percent" else Call(expression.name, args)


def subexpressions(expression: Expression) -> Iterator[Expression]:
    """Yield an expression and all its parts."""
    open_ = [expression]
    while open_:
        current = open_.pop()
        yield current
        if isinstance(current, Call):
            open_ += current.args


def letters_of(expression: Expression) -> set[str]:
    """Return the names of the variables in an expression."""
    found = {part.name for part in subexpressions(expression) if isinstance(part, Symbol)}
    return found - CONSTANTS


def expressions_of(form: Form) -> Iterator[Expression]:
    """Yield the expressions of a form, in their order."""
    if isinstance(form, Number | Symbol | Call):
        yield form
        return
    if isinstance(form, Quantity):
        parts: tuple[Form, ...] = (form.value,)
    elif isinstance(form, Items):
        parts = form.items
    elif isinstance(form, Relation):
        parts = form.members
    elif isinstance(form, SetOperation | Ratio):
        parts = form.parts
    elif isinstance(form, Matrix):
        parts = tuple(entry for row in form.rows for entry in row)
    else:
        parts = ()
    for part in parts:
        yield from expressions_of(part)
