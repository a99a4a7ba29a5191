"""When two forms are the same answer, under the options of rule ``math``.

Everything is three-valued: True, False, or None if only algebra can say. The algebra is an argument: the grading process has none, so that
``decide`` is quick and never hangs; its workers compare numbers to many digits.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from stepladder.data.grading.expressions import word_as_product
from stepladder.data.grading.forms import (
    Based,
    Call,
    Expression,
    Form,
    Items,
    Matrix,
    Number,
    Quantity,
    Ratio,
    Relation,
    SetOperation,
    Symbol,
    Unreadable,
    Word,
    difference,
    is_expression,
    without_percent,
)
from stepladder.data.grading.intervals import RealSet, real_set
from stepladder.data.grading.normal import NormalForm, UndefinedError, normal_form
from stepladder.data.grading.rules import STRICT, MathOptions
from stepladder.data.grading.units import OPTIONAL_UNITS

Question = Literal["same", "proportional", "positive"]
"""Equal; equal up to a constant factor; up to a positive one."""
Algebra = Callable[[Question, Expression, Expression], bool | None]


def no_algebra(question: Question, left: Expression, right: Expression) -> bool | None:
    """Leave every question open."""
    return None


def decide(reference: Form, answer: Form, options: MathOptions = STRICT, *, algebra: Algebra = no_algebra) -> bool | None:
    """Say whether an answer is the reference answer; None where only algebra can say."""
    if isinstance(reference, Unreadable) or isinstance(answer, Unreadable):
        return False
    return _Comparison(options, algebra).same(reference, answer)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One comparison; the reference stands first in every method."""

    options: MathOptions
    algebra: Algebra

    def same(self, reference: Form, answer: Form) -> bool | None:
        """Compare two forms of any kinds."""
        reference, answer = self._stripped(reference), self._stripped(answer)
        if reference == answer:
            return True
        if isinstance(reference, Quantity) or isinstance(answer, Quantity):
            return self._same_quantity(reference, answer)
        sets = self._same_sets(reference, answer)
        if sets is not None or is_set_like(reference) != is_set_like(answer):
            return sets if sets is not None else self._across(reference, answer)
        return self._same_kind(reference, answer)

    def _stripped(self, form: Form) -> Form:
        """Remove the parts that do not count under the options."""
        if self.options.percent == "unit" and isinstance(form, Call):
            return without_percent(form)
        if isinstance(form, Based) and self.options.bases == "optional":
            return Number(Fraction(form.digits))
        if isinstance(form, Word) and self.options.case == "ignored":
            return Word(form.text.lower())
        if isinstance(form, Symbol) and self.options.case == "ignored":
            return Symbol(form.name.lower())
        return form

    # ------------------------------------------------------------------------------------------------------------- quantities

    def _same_quantity(self, reference: Form, answer: Form) -> bool | None:
        if isinstance(reference, Quantity) and isinstance(answer, Quantity):
            return False if reference.unit != answer.unit else self._expressions(reference.value, answer.value)
        if isinstance(reference, Quantity):
            if is_expression(answer):
                letter = _unit_as_letter(reference)
                as_letter = False if letter is None else self._expressions(letter, answer)
                may_be_left_out = reference.unit in OPTIONAL_UNITS or self.options.units == "optional"
                return _any([as_letter, self.same(reference.value, answer) if may_be_left_out else False])
            return self._last_value(reference, answer)
        assert isinstance(answer, Quantity), "one of the two is a quantity"
        if isinstance(reference, Relation):
            return self._across(reference, answer)
        letter = _unit_as_letter(answer)
        as_letter = False if letter is None else self.same(reference, letter)
        return _any([self.same(reference, answer.value), as_letter])

    # ------------------------------------------------------------------------------------------------------------- expressions

    def _expressions(self, left: Expression, right: Expression) -> bool | None:
        if left == right:
            return True
        one, other = self._normal(left), self._normal(right)
        if one is not None and other is not None:
            if one.terms == other.terms:
                return True
            if (one.settled and other.settled) or "oo" in (left_name(left), left_name(right)):
                return False
        return self.algebra("same", left, right)

    def _normal(self, expression: Expression) -> NormalForm | None:
        try:
            return normal_form(expression)
        except UndefinedError:
            return None

    def _proportional(self, left: Expression, right: Expression, *, positive: bool) -> bool | None:
        one, other = self._normal(left), self._normal(right)
        if one is not None and other is not None:
            if not one.terms or not other.terms:
                return False
            (one, first), (other, second) = one.monic(), other.monic()
            if one.terms == other.terms:
                return not positive or first * second > 0
            if one.settled and other.settled and _is_polynomial(one) and _is_polynomial(other):
                return False
        return self.algebra("positive" if positive else "proportional", left, right)

    # -------------------------------------------------------------------------------------------------------------------- kinds

    def _same_kind(self, reference: Form, answer: Form) -> bool | None:
        if isinstance(reference, Word) and isinstance(answer, Word):
            return False
        reference, answer = _as_expression(reference, answer), _as_expression(answer, reference)
        if isinstance(reference, Number | Symbol | Call) and isinstance(answer, Number | Symbol | Call):
            return self._expressions(reference, answer)
        if isinstance(reference, Items) and isinstance(answer, Items):
            return self._same_items(reference, answer)
        if isinstance(reference, Relation) and isinstance(answer, Relation):
            return self._same_relation(reference, answer)
        if isinstance(reference, Ratio) and isinstance(answer, Ratio):
            return self._in_order(reference.parts, answer.parts)
        if isinstance(reference, Matrix) and isinstance(answer, Matrix):
            shapes = [(form.kind, [len(row) for row in form.rows]) for form in (reference, answer)]
            return shapes[0] == shapes[1] and self._in_order(*([x for row in form.rows for x in row] for form in (reference, answer)))
        return self._across(reference, answer)

    def _across(self, reference: Form, answer: Form) -> bool | None:
        """Compare forms of different kinds: a value with the equation that states it, a list with its equations."""
        left, right = _assignments(reference), _assignments(answer)
        if left is not None and right is not None:
            return self._in_any_order(left, right)
        if isinstance(answer, Relation):
            return self._last_value(reference, answer)
        if isinstance(answer, Items) and not answer.opening and not isinstance(reference, Items):
            values = _values_of_one_name(answer)
            return False if values is None else self.same(reference, values)
        if isinstance(reference, Relation) and reference.signs == ("=",):
            name, value = reference.members
            # (x, y) = (2, 1) states the same as (2, 1).
            if isinstance(name, Items) or (reference.named and self.options.names == "optional"):
                return self.same(value, answer)
        return False

    def _last_value(self, reference: Form, answer: Form) -> bool | None:
        """Compare a value with a chain like ``x = 6/2 = 3``: every member but a name in front must be the value."""
        if not isinstance(answer, Relation) or set(answer.signs) != {"="}:
            return False
        members = answer.members[1:] if answer.named or isinstance(answer.members[0], Items) else answer.members
        return _all(self.same(reference, member) for member in members)

    # --------------------------------------------------------------------------------------------------------------------- items

    def _same_items(self, reference: Items, answer: Items) -> bool | None:
        if not reference.opening and not answer.opening:
            named = self._named_items(reference, answer)
            if named is not None:
                return named
        kinds = [form.opening + form.closing for form in (reference, answer)]
        if kinds[0] != kinds[1] and self.options.brackets == "kept" and set(kinds) != {"", "{}"}:
            return False
        if kinds[0] == "{}" or kinds[1] == "{}" or "" in kinds:
            as_set = "{}" in kinds
            if not as_set and (self.options.order == "kept" or are_words(reference.items) or are_words(answer.items)):
                return self._in_order(reference.items, answer.items)
            return self._in_any_order(reference.items, answer.items, once=as_set)
        return self._in_order(reference.items, answer.items)

    def _named_items(self, reference: Items, answer: Items) -> bool | None:
        """Compare lists of equations; None if they are none."""
        left, right = _assignments(reference), _assignments(answer)
        if left is not None and right is not None:
            return self._in_any_order(left, right)
        # Several values of one letter are a list of solutions, with or without the letter.
        left, right = _values_of_one_name(reference), _values_of_one_name(answer)
        if (left is None) == (right is None):
            return None
        if left is not None:
            return self._same_items(left, answer)
        assert right is not None, "one of the two is given"
        return self._same_items(reference, right)

    def _in_order(self, left: Sequence[Form], right: Sequence[Form]) -> bool | None:
        return _all(self.same(one, other) for one, other in zip(left, right, strict=True)) if len(left) == len(right) else False

    def _in_any_order(self, left: Sequence[Form], right: Sequence[Form], *, once: bool = False) -> bool | None:
        """Match two lists one to one; with ``once``, repeated items count once."""
        if once:
            left, right = self._distinct(left), self._distinct(right)
        if len(left) != len(right):
            return False
        rest, open_ = list(right), False
        for one in left:
            verdicts = [self.same(one, other) for other in rest]
            if True in verdicts:
                del rest[verdicts.index(True)]
            elif None in verdicts:
                open_ = True
            else:
                return False
        return None if open_ else True

    def _distinct(self, items: Sequence[Form]) -> list[Form]:
        kept: list[Form] = []
        for item in items:
            if not any(self.same(other, item) for other in kept):
                kept.append(item)
        return kept

    # ----------------------------------------------------------------------------------------------------------- relations, sets

    def _same_relation(self, reference: Relation, answer: Relation) -> bool | None:
        left, right = _assignments(reference), _assignments(answer)
        if left is not None and right is not None:
            return self._in_any_order(left, right)
        reference, answer = _rising(reference), _rising(answer)
        if reference.signs != answer.signs:
            return False
        members = self._in_order(reference.members, answer.members)
        if members or len(reference.signs) > 1 or reference.signs == ("in",):
            return members
        one, other, two, another, *_ = (*reference.members, *answer.members)
        if not (is_expression(one) and is_expression(other) and is_expression(two) and is_expression(another)):
            return members
        return self._proportional(difference(one, other), difference(two, another), positive=bool({"<", "<="} & set(reference.signs)))

    def _same_sets(self, reference: Form, answer: Form) -> bool | None:
        """Compare sets of real numbers, however they are written; None if one of the two is none, or both are plain brackets."""
        if isinstance(reference, Items) and isinstance(answer, Items) and not (_is_union(reference) or _is_union(answer)):
            return None
        left, right = real_set(reference), real_set(answer)
        if left is None or right is None or (left.letter and right.letter and left.letter != right.letter):
            return None
        if not (is_set_like(reference) or is_set_like(answer)):
            return None
        return self._same_real_sets(left, right)

    def _same_real_sets(self, left: RealSet, right: RealSet) -> bool | None:
        if len(left.parts) != len(right.parts):
            return False
        rest, verdicts = list(right.parts), []
        for part in left.parts:
            found = [
                _all(
                    [
                        part.has_low == other.has_low,
                        part.has_high == other.has_high,
                        self._expressions(part.low, other.low),
                        self._expressions(part.high, other.high),
                    ]
                )
                for other in rest
            ]
            best = True if True in found else None if None in found else False
            if best is not None and not best:
                return False
            verdicts.append(best)
            del rest[found.index(best)]
        return _all(verdicts)


def left_name(expression: Expression) -> str:
    """Return the name of a symbol, else nothing."""
    return expression.name if isinstance(expression, Symbol) else ""


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    open_ = False
    for verdict in verdicts:
        if verdict is False:
            return False
        open_ |= verdict is None
    return None if open_ else True


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    known = list(verdicts)
    return True if True in known else None if None in known else False


def _as_expression(form: Form, other: Form) -> Form:
    """Return a short word as the product of its letters if the other side is an expression."""
    if isinstance(form, Word) and is_expression(other):
        return word_as_product(form) or form
    return form


def _unit_as_letter(quantity: Quantity) -> Expression | None:
    """Return a quantity as a product if its unit is one letter: 5 m can be 5 times m."""
    return Call("mul", (quantity.value, Symbol(quantity.unit))) if len(quantity.unit) == 1 else None


def are_words(items: Sequence[Form]) -> bool:
    """Say whether a list is one of words or letters: then it is an ordering."""
    return all(isinstance(item, Word) or (isinstance(item, Symbol) and item.name.isalpha() and len(item.name) == 1) for item in items)


def _assignments(form: Form) -> list[Form] | None:
    """Return the equations that a form states for two or more names: ``x=2, y=1`` and ``(x,y)=(2,1)`` state the same."""
    if isinstance(form, Relation) and form.signs == ("=",):
        names, values = form.members
        if not isinstance(names, Items) or not isinstance(values, Items) or names.opening != values.opening:
            return None
        if len(names.items) == len(values.items) > 1 and all(isinstance(name, Symbol) for name in names.items):
            return [Relation((name, value), ("=",), True) for name, value in zip(names.items, values.items, strict=True)]
        return None
    if isinstance(form, Items) and not form.opening and all(isinstance(item, Relation) and item.signs == ("=",) for item in form.items):
        return list(form.items)
    return None


def _values_of_one_name(form: Items) -> Items | None:
    """Return a list without the name of its values: ``x = 1 or x = 2`` and ``x = 1, 2`` are ``1, 2``; None for other lists."""
    values: list[Form] = []
    names: set[Form] = set()
    for place, item in enumerate(form.items):
        if isinstance(item, Relation) and item.named and item.signs == ("=",):
            names.add(item.members[0])
            values.append(item.members[1])
        elif place and names and not isinstance(item, Relation):
            values.append(item)
        else:
            return None
    return Items("", tuple(values), "", form.joint) if len(names) == 1 else None


def _rising(relation: Relation) -> Relation:
    """Return a chain of inequalities with < or <= in place of > or >=."""
    if relation.signs and set(relation.signs) <= {">", ">=", "="} and set(relation.signs) != {"="}:
        flipped = {">": "<", ">=": "<=", "=": "="}
        return Relation(tuple(reversed(relation.members)), tuple(flipped[sign] for sign in reversed(relation.signs)), False)
    return relation


def is_set_like(form: Form) -> bool:
    """Say whether a form is a set of numbers that is written otherwise than in one pair of brackets."""
    if isinstance(form, Items):
        return _is_union(form)
    if isinstance(form, Relation):
        return not set(form.signs) <= {"="}
    return isinstance(form, SetOperation) or (isinstance(form, Symbol) and form.name == "mathbb R")


def _is_union(form: Items) -> bool:
    return not form.opening and all(isinstance(item, Relation) and item.signs != ("=",) for item in form.items)


def _is_polynomial(form: NormalForm) -> bool:
    return all(exponent > 0 for (_, _, powers), _ in form.terms for _, exponent in powers)
