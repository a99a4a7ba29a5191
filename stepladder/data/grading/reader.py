r"""From tokens to forms: a recursive descent over one small grammar.

    answer   = element { ("," | ";" | "and" | "or") element }
    element  = ratio { ("=" | "<" | "<=" | ... | "\in") ratio }
    ratio    = sets { ":" sets }
    sets     = quantity { ("\cup" | "\cap" | "\setminus") quantity }
    quantity = words | [currency] sum [unit]

A text is unreadable only if it is broken: an open brace, two numbers side by side, a division by zero. Well-formed text outside the grammar
(dots, words in formulas, unknown commands) is kept as its tokens, and equals only the same tokens.
"""

from collections.abc import Sequence
from functools import lru_cache

from stepladder.data.grading.cursor import UnclearError
from stepladder.data.grading.expressions import ExpressionReader, is_function
from stepladder.data.grading.forms import (
    Call,
    Form,
    Items,
    Number,
    Opaque,
    Quantity,
    Ratio,
    Relation,
    SetOperation,
    Unreadable,
    Word,
    expressions_of,
    is_expression,
    negated,
)
from stepladder.data.grading.normal import UndefinedError, normal_form
from stepladder.data.grading.notation import MAX_CHARS, NotationError, Token, plain_notation, tokenise
from stepladder.data.grading.numbers import parse_number
from stepladder.data.grading.units import unit_name
from stepladder.data.grading.vocabulary import (
    CONSTANTS,
    CURRENCIES,
    GREEK,
    ITEM_ENDS,
    JOINTS,
    RELATIONS,
    SET_SIGNS,
    SHAPES,
)


@lru_cache(maxsize=4096)
def read(text: str) -> Form:
    """Return the meaning of an answer; never raises."""
    if len(text) > MAX_CHARS:
        number = parse_number(text)
        return Number(number) if number is not None else Unreadable(f"it is longer than {MAX_CHARS:,} characters")
    plain = plain_notation(text)
    if not plain:
        return Unreadable("it is empty")
    if plain.lower() == "nan":
        return Unreadable("it is a gap (NaN)")
    try:
        tokens = tokenise(plain)
        _check_braces(tokens)
    except NotationError as error:
        return Unreadable(str(error))
    try:
        form = _AnswerReader(tokens).answer()
        for expression in expressions_of(form):
            normal_form(expression)
    except UnclearError:
        return _opaque(tokens)
    except (NotationError, UndefinedError) as error:
        return Unreadable(str(error))
    except RecursionError:
        return Unreadable("it is nested too deep")
    return form


def _check_braces(tokens: Sequence[Token]) -> None:
    depth = 0
    for token in tokens:
        depth += {"{": 1, "}": -1}.get(token.text, 0)
        if depth < 0:
            raise NotationError("a brace is not opened")
    if depth:
        raise NotationError("a brace is not closed")


def _opaque(tokens: Sequence[Token]) -> Opaque:
    """Keep tokens as they are; a brace around one token means nothing."""
    texts: list[str] = []
    for token in tokens:
        if token.text == "}" and len(texts) > 1 and texts[-2] == "{":
            texts[-2:] = texts[-1:]
        else:
            texts.append(token.text)
    return Opaque(tuple(texts))


class _AnswerReader(ExpressionReader):
    """One pass over the tokens of an answer."""

    # --------------------------------------------------------------------------------------------------------------- answers

    def answer(self) -> Form:
        """Read all tokens."""
        joints: list[str] = []
        items = self.element()
        while joint := self._joint():
            joints.append(joint)
            items += self.element()
        if self.at < len(self.tokens):
            raise UnclearError
        if len(items) == 1:
            return items[0]
        others = [joint for joint in joints if joint != ","]
        return Items("", tuple(items), "", others[-1] if others else ",")

    def _joint(self) -> str | None:
        """Take the separator of two items: a comma, a word, or both."""
        found = None
        while (text := self.peek_text()) in JOINTS:
            if found is not None and JOINTS[text] == ",":
                raise NotationError("two commas stand side by side")
            found = JOINTS[text] if found in (None, ",") else found
            self.at += 1
        return found

    def element(self) -> list[Form]:
        r"""Read one item of a list; with ``\pm`` it is two."""
        start, outer = self.at, (self.sign, self.saw_sign)
        self.sign, self.saw_sign = 1, False
        items = [self.relation()]
        if self.saw_sign:
            self.at, self.sign = start, -1
            items.append(self.relation())
        self.sign, self.saw_sign = outer
        return items

    def relation(self) -> Form:
        named = self._names_value()
        members, signs = [self._ratio()], []
        while self.peek_text() in RELATIONS:
            signs.append(RELATIONS[self.take().text])
            members.append(self._ratio())
        return Relation(tuple(members), tuple(signs), named) if signs else members[0]

    def _names_value(self) -> bool:
        """Look ahead: is all up to the sign of a relation a name, like ``x``, ``x_1``, ``f(x)``, ``Area``, ``AB``?"""
        end = self.at
        while end < len(self.tokens) and self.tokens[end].text not in RELATIONS:
            if self.tokens[end].text in JOINTS:
                return False
            end += 1
        tokens = [token for token in self.tokens[self.at : end] if token.text not in ("{", "}", "'")]
        return end < len(self.tokens) and bool(tokens) and _is_named(tokens)

    def _ratio(self) -> Form:
        parts = [self._sets()]
        while self.peek_text() == ":":
            self.at += 1
            parts.append(self._sets())
        return Ratio(tuple(parts)) if len(parts) > 1 else parts[0]

    def _sets(self) -> Form:
        form = self._phrase() or self._quantity()
        while self.peek_text() in SET_SIGNS:
            name = SET_SIGNS[self.take().text]
            right = self._quantity()
            merged = form.parts if isinstance(form, SetOperation) and form.name == name != "setminus" else (form,)
            form = SetOperation(name, (*merged, right))
        return form

    def _phrase(self) -> Form | None:
        """Read an item that consists only of words, such as ``ABC`` or ``north``; a single ``x`` is a letter."""
        end = self.at
        while end < len(self.tokens) and self.tokens[end].kind == "word" and self.tokens[end].text not in JOINTS:
            end += 1
        words = self.tokens[self.at : end]
        follows = self.tokens[end].text if end < len(self.tokens) else ","
        if not words or not (follows in RELATIONS or follows in ITEM_ENDS or follows in (":", "}")):
            return None
        if len(words) == 1 and (len(words[0].text) == 1 or is_function(words[0].text) or words[0].text in CONSTANTS):
            return None
        if is_function(words[0].text):
            return None
        self.at = end
        letters = all(len(word.text) == 1 for word in words)
        return Word(("" if letters else " ").join(word.text for word in words))

    # ------------------------------------------------------------------------------------------------------------- quantities

    def _quantity(self) -> Form:
        currency = self._currency()
        value = self.sum()
        if currency is not None:
            if not is_expression(value):
                raise UnclearError
            return Quantity(negated(value) if currency[0] else value, currency[1])
        if not is_expression(value):
            return value
        if isinstance(value, Call) and value.name == "degree" and not self.unit_ahead():
            return Quantity(value.args[0], "degree")
        unit = self.unit_ahead()
        if unit is None:
            return value
        self.at = unit[1]
        return Quantity(value, unit[0])

    def _currency(self) -> tuple[bool, str] | None:
        """Take a currency sign, with a minus before it."""
        minus = self.peek_text() == "-"
        place = self.at + minus
        sign = self.tokens[place].text if place < len(self.tokens) else ""
        if sign not in CURRENCIES:
            return None
        self.at = place + 1
        return minus, CURRENCIES[sign]

    def unit_ahead(self) -> tuple[str, int] | None:
        """Return a unit that fills the rest of the item, and its end."""
        end, depth = self.at, 0
        while end < len(self.tokens) and self.tokens[end].text not in ITEM_ENDS:
            depth += {"{": 1, "}": -1}.get(self.tokens[end].text, 0)
            if depth < 0:
                break
            end += 1
        tokens = self.tokens[self.at : end]
        # A letter is a unit only in upright type: in 5 m it is a variable.
        if not tokens or (len(tokens[0].text) == 1 and tokens[0].kind == "word" and not tokens[0].upright):
            return None
        spelt = "".join((" " if token.spaced else "") + token.text for token in tokens if token.text not in ("{", "}"))
        name = unit_name(spelt.replace("^\\circ", "\\circ"))
        return None if name is None else (name, end)


def _is_letter(token: Token) -> bool:
    return (token.kind == "word" and len(token.text) == 1) or token.text.removeprefix("\\") in GREEK


def _is_named(tokens: list[Token]) -> bool:
    """Say whether tokens without braces are a name: a word, or a letter with an index and arguments."""
    if tokens[0].text in SHAPES:
        return True
    if all(token.kind == "word" for token in tokens):
        return _is_name(tokens[0].text) or (len(tokens) == 1 and len(tokens[0].text) == 1)
    if not _is_letter(tokens[0]):
        return False
    rest = [token.text for token in tokens[1:]]
    rest = rest[2:] if rest[:1] == ["_"] else rest
    return not rest or (rest[0] == "(" and rest[-1] == ")" and rest.count("(") == 1)


def _is_name(word: str) -> bool:
    """Say whether a word names a value, like ``Area`` or ``AB``; ``xy`` is a product."""
    return word.isalpha() and not (len(word) <= 3 and word.islower())
