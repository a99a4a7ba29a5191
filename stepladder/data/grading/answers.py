r"""Grading rules as pure functions: when two final answers are equal, and which references no answer can equal.

Three rules: ``exact`` (the same text), ``number`` (the same number, without any tolerance) and ``math`` (mathematically equivalent). What
``math`` cannot say here without algebra is left to worker processes (see ``verifier``), because algebra may take for ever.
"""

from collections.abc import Callable

from stepladder.data.grading.compare import are_words, decide, is_set_like
from stepladder.data.grading.forms import (
    Based,
    Form,
    Items,
    Matrix,
    Opaque,
    Quantity,
    Ratio,
    Relation,
    SetOperation,
    Unreadable,
    Word,
    difference,
    is_expression,
    without_percent,
)
from stepladder.data.grading.intervals import RealSet, real_set
from stepladder.data.grading.normal import normal_form
from stepladder.data.grading.notation import normalise_text
from stepladder.data.grading.numbers import parse_number
from stepladder.data.grading.reader import read
from stepladder.data.grading.rules import STRICT, AnswerRule, MathOptions
from stepladder.data.grading.units import OPTIONAL_UNITS


def exact_match(answer: str, reference: str) -> bool:
    """Say whether two answers are the same text under rule ``exact``."""
    return answer == reference or normalise_text(answer) == normalise_text(reference)


def number_match(answer: str, reference: str) -> bool | None:
    """Say whether two answers are the same number; None if either is not a plain number."""
    left, right = parse_number(answer), parse_number(reference)
    return None if left is None or right is None else left == right


def math_match(answer: str, reference: str, options: MathOptions = STRICT) -> bool | None:
    """Say whether two answers are mathematically equivalent; None if only algebra can say."""
    return decide(read(reference), read(answer), options)


def unreadable_reason(text: str, rule: AnswerRule | str) -> str | None:
    """Say why no answer can equal a text under a rule, as a clause; None if one can.

    A reference answer with a reason makes every answer to its problem wrong.
    """
    if not text.strip():
        return "it is empty"
    if AnswerRule(rule) is AnswerRule.NUMBER:
        return None if parse_number(text) is not None else "it is not one number"
    if AnswerRule(rule) is AnswerRule.EXACT:
        return None
    form = read(text)
    return form.reason if isinstance(form, Unreadable) else None


def answer_key(text: str, rule: AnswerRule | str, options: MathOptions = STRICT) -> str:
    r"""Return the canonical form of an answer, under which votes are counted.

    Answers with the same key are equal. The reverse holds if no algebra is needed: a plain number's key is its lowest fraction
    (``1,000.0`` -> ``1000``, ``0.5`` -> ``1/2``), ``2\sqrt{2}`` and ``\sqrt{8}`` have one key, and so have ``x+1`` and ``1+x``.
    """
    rule = AnswerRule(rule)
    if rule is AnswerRule.EXACT:
        return normalise_text(text)
    if rule is AnswerRule.NUMBER:
        number = parse_number(text)
        return normalise_text(text) if number is None else str(number)
    key = form_key(read(text), options) or normalise_text(text)
    return key.lower() if options.case == "ignored" else key


def form_key(form: Form, options: MathOptions = STRICT) -> str | None:
    """Return the canonical text of a form; None if it has none of its own."""
    if isinstance(form, Unreadable):
        return None
    if is_expression(form):
        normal = normal_form(without_percent(form) if options.percent == "unit" else form)
        return None if normal is None else str(normal)
    key = lambda part: form_key(part, options) or ""  # noqa: E731
    if is_set_like(form) and (values := real_set(form)):
        return _set_key(values, key)
    if isinstance(form, Items):
        return _items_key(form, [key(item) for item in form.items], options)
    if isinstance(form, Relation):
        return _relation_key(form, key)
    if isinstance(form, SetOperation | Ratio | Matrix):
        return _composed_key(form, key)
    return _plain_key(form, key, options)


def _plain_key(form: Form, key: Callable[[Form], str], options: MathOptions) -> str:
    if isinstance(form, Word):
        return form.text
    if isinstance(form, Opaque):
        return " ".join(form.tokens)
    if isinstance(form, Based):
        return form.digits if options.bases == "optional" else f"{form.digits}_{form.base}"
    assert isinstance(form, Quantity), "all other forms are dealt with"
    has_free_unit = form.unit in OPTIONAL_UNITS or options.units == "optional"
    return key(form.value) if has_free_unit else f"{key(form.value)} {form.unit}"


def _composed_key(form: SetOperation | Ratio | Matrix, key: Callable[[Form], str]) -> str:
    if isinstance(form, Ratio):
        return ":".join(map(key, form.parts))
    if isinstance(form, Matrix):
        rows = " \\\\ ".join(" & ".join(map(key, row)) for row in form.rows)
        return f"\\begin{{{form.kind}}} {rows} \\end{{{form.kind}}}"
    parts = [key(part) for part in form.parts]
    return f" \\{form.name} ".join(sorted(parts) if form.name != "setminus" else parts)


def _relation_key(form: Relation, key: Callable[[Form], str]) -> str:
    left, *others = form.members
    if form.signs == ("=",) and is_expression(left) and is_expression(others[0]):
        normal = normal_form(difference(left, others[0]))
        if normal is not None:
            return f"{normal.monic()[0]} = 0"
    return "".join(f"{key(member)} {sign} " for member, sign in zip(form.members, (*form.signs, ""), strict=True)).strip()


def _set_key(values: RealSet, key: Callable[[Form], str]) -> str:
    if values.letter:
        return f"{values.letter} in {_set_key(RealSet(values.parts), key)}"
    parts = [f"{'[' if part.has_low else '('}{key(part.low)}, {key(part.high)}{']' if part.has_high else ')'}" for part in values.parts]
    return " \\cup ".join(parts) or "\\{\\}"


def _items_key(form: Items, keys: list[str], options: MathOptions) -> str:
    free = form.opening == "{" or (not form.opening and options.order == "free" and not are_words(form.items))
    keys = sorted(set(keys) if form.opening == "{" else keys) if free else keys
    braces = {"{": "\\{", "}": "\\}"}
    opening, closing = (braces.get(bracket, bracket) for bracket in (form.opening, form.closing))
    return f"{opening}{', '.join(keys)}{closing}"
