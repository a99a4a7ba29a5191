"""Sets of real numbers that an answer may write in several ways: intervals, inequalities, unions."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from stepladder.data.grading.forms import Expression, Form, Items, Relation, SetOperation, Symbol, is_expression, negated
from stepladder.data.grading.normal import UndefinedError, normal_form

_INFINITY = Symbol("oo")
_MINUS_INFINITY = negated(_INFINITY)
_REALS = "mathbb R"
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}


@dataclass(frozen=True, slots=True)
class Interval:
    """All numbers between two ends; a single number is an interval of its own."""

    low: Expression
    has_low: bool
    """Whether the low end belongs to it."""
    high: Expression
    has_high: bool


@dataclass(frozen=True, slots=True)
class RealSet:
    """Intervals that do not touch, as far as their ends are rational."""

    parts: tuple[Interval, ...]
    letter: str = ""
    """The letter whose values the set describes, if it is written with one."""


def real_set(form: Form) -> RealSet | None:
    """Return the set of real numbers that a form denotes, or None."""
    if isinstance(form, Symbol):
        return RealSet((Interval(_MINUS_INFINITY, False, _INFINITY, False),)) if form.name == _REALS else None
    if isinstance(form, Items):
        return _of_items(form)
    if isinstance(form, Relation):
        return _of_relation(form)
    if isinstance(form, SetOperation):
        return _combined(form)
    return None


def _of_items(form: Items) -> RealSet | None:
    if form.opening == "{":
        points = [item for item in form.items if is_expression(item)]
        return _merged([Interval(point, True, point, True) for point in points]) if len(points) == len(form.items) else None
    if form.opening and len(form.items) == 2:
        low, high = form.items
        if is_expression(low) and is_expression(high):
            return _merged([Interval(low, form.opening == "[", high, form.closing == "]")])
        return None
    if form.opening or form.joint == ",":
        return None
    sets = [real_set(item) for item in form.items]
    known = [each for each in sets if each is not None]
    if len(known) < len(sets) or len({each.letter for each in known}) != 1:
        return None
    joined = _merged(part for each in known for part in each.parts) if form.joint == "or" else _intersection(known)
    return None if joined is None else RealSet(joined.parts, known[0].letter)


def _of_relation(form: Relation) -> RealSet | None:
    """Return the values of a letter that stands alone between bounds, or on one side."""
    members, signs = form.members, form.signs
    if signs == ("in",):
        inner = real_set(members[1])
        named = members[0]
        return RealSet(inner.parts, named.name) if inner is not None and isinstance(named, Symbol) else None
    if len(signs) == 1 and isinstance(members[1], Symbol) and not isinstance(members[0], Symbol):
        members, signs = (members[1], members[0]), (_FLIPPED[signs[0]],)
    if len(signs) == 1:
        return _one_sided(members[0], signs[0], members[1])
    if len(members) != 3:
        return None
    low, letter, high = members
    if not isinstance(letter, Symbol):
        return None
    if set(signs) <= {">", ">="}:
        low, high, signs = high, low, (_FLIPPED[signs[1]], _FLIPPED[signs[0]])
    if not is_expression(low) or not is_expression(high) or not set(signs) <= {"<", "<="}:
        return None
    merged = _merged([Interval(low, signs[0] == "<=", high, signs[1] == "<=")])
    return RealSet(merged.parts, letter.name)


def _one_sided(letter: Form, sign: str, bound: Form) -> RealSet | None:
    if not isinstance(letter, Symbol) or not is_expression(bound):
        return None
    below = Interval(_MINUS_INFINITY, False, bound, sign == "<=")
    above = Interval(bound, sign == ">=", _INFINITY, False)
    parts = {"<": (below,), "<=": (below,), ">": (above,), ">=": (above,), "!=": (below, above)}.get(sign)
    return None if parts is None else RealSet(parts, letter.name)


def _combined(form: SetOperation) -> RealSet | None:
    sets = [real_set(part) for part in form.parts]
    known = [each for each in sets if each is not None]
    if len(known) < len(sets):
        return None
    if form.name == "cup":
        return _merged(part for each in known for part in each.parts)
    if form.name == "cap":
        return _intersection(known)
    whole, removed = known
    return _without_points(whole, removed)


def _without_points(whole: RealSet, removed: RealSet) -> RealSet | None:
    """Return a set without some single numbers; None if more must be removed, or the order of the numbers is unknown."""
    parts = list(whole.parts)
    for point in removed.parts:
        if point.low != point.high:
            return None
        cut: list[Interval] = []
        for part in parts:
            low, at, high = _place(part.low), _place(point.low), _place(part.high)
            if low is None or at is None or high is None:
                return None
            if low < at < high:
                cut += [Interval(part.low, part.has_low, point.low, False), Interval(point.low, False, part.high, part.has_high)]
            elif low == at == high:
                continue
            else:
                cut.append(Interval(part.low, part.has_low and at != low, part.high, part.has_high and at != high))
        parts = cut
    return RealSet(tuple(parts), whole.letter)


def _intersection(sets: list[RealSet]) -> RealSet | None:
    """Return the intersection of single intervals with rational ends."""
    if any(len(each.parts) != 1 for each in sets):
        return None
    common = sets[0].parts[0]
    for other in (each.parts[0] for each in sets[1:]):
        places = [_place(end) for end in (common.low, other.low, common.high, other.high)]
        if None in places:
            return None
        low = max(((places[0], not common.has_low), common.low), ((places[1], not other.has_low), other.low), key=lambda pair: pair[0])
        high = min(((places[2], common.has_high), common.high), ((places[3], other.has_high), other.high), key=lambda pair: pair[0])
        common = Interval(low[1], not low[0][1], high[1], high[0][1])
    return _merged([common])


def _merged(parts: Iterable[Interval]) -> RealSet:
    """If all ends are rational or infinite, join intervals that touch and drop empty ones; else change nothing."""
    parts = list(parts)
    ends = [(_place(part.low), _place(part.high)) for part in parts]
    if any(low is None or high is None for low, high in ends):
        return RealSet(tuple(parts))
    order = sorted(range(len(parts)), key=lambda number: (ends[number][0], not parts[number].has_low))
    joined: list[Interval] = []
    for number in order:
        part, (low, high) = parts[number], ends[number]
        if low > high or (low == high and not (part.has_low and part.has_high)):  # type: ignore[operator]
            continue
        if joined and _touches(joined[-1], part):
            joined[-1] = _longer(joined[-1], part)
        else:
            joined.append(part)
    return RealSet(tuple(joined))


def _touches(left: Interval, right: Interval) -> bool:
    """Say whether nothing lies between an interval and one that begins no earlier; both have ends that can be ordered."""
    reach, low = _place(left.high), _place(right.low)
    return reach > low or (reach == low and (left.has_high or right.has_low))  # type: ignore[operator]


def _longer(left: Interval, right: Interval) -> Interval:
    """Return the union of two intervals that touch, of which the right one begins no earlier."""
    if (_place(right.high), right.has_high) > (_place(left.high), left.has_high):  # type: ignore[operator]
        return Interval(left.low, left.has_low, right.high, right.has_high)
    return left


def _place(end: Expression) -> Fraction | float | None:
    """Return an end as a number that can be ordered; None if it is not rational."""
    if end == _INFINITY:
        return float("inf")
    if end == _MINUS_INFINITY:
        return float("-inf")
    try:
        form = normal_form(end)
    except UndefinedError:
        return None
    return None if form is None else form.rational
