r"""Expressions: sums, products, powers, functions, and their parts.

sum      = ["+" | "-"] product { ("+" | "-") product }
product  = power { ["*" | "/"] power }
power    = atom { "!" | "%" | "^\circ" | "^" exponent }
atom     = number | letters | command | bracket | "|" sum "|"
"""

from collections.abc import Sequence
from fractions import Fraction

from stepladder.data.grading.cursor import TokenCursor, UnclearError
from stepladder.data.grading.forms import (
    MINUS_ONE,
    ONE,
    Based,
    Call,
    Expression,
    Form,
    Items,
    Matrix,
    Number,
    Symbol,
    Word,
    negated,
    quotient,
)
from stepladder.data.grading.notation import NotationError, Token
from stepladder.data.grading.vocabulary import (
    ACCENTS,
    BASE_WORDS,
    CONSTANTS,
    FUNCTIONS,
    GREEK,
    INVERSES,
    JOINTS,
    LANGUAGE,
    MATRICES,
    OPENINGS,
    OPERANDS,
    RELATIONS,
    SET_SIGNS,
    SHAPES,
)

_MAX_SUFFIXES = 3


class ExpressionReader(TokenCursor):
    """A pass over tokens that reads expressions; ``reader.py`` reads the text around them."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        """Begin at the first token."""
        super().__init__(tokens)
        self.sign = 1
        r"""What ``\pm`` is read as."""
        self.saw_sign = False
        r"""Whether a ``\pm`` was read."""
        self._in_bars = 0
        self._literal = False
        """Whether the last atom was a number in digits."""

    def element(self) -> list[Form]:
        r"""Read one item of a list; with ``\pm`` it is two."""
        raise NotImplementedError

    def relation(self) -> Form:
        """Read an item that stands alone."""
        raise NotImplementedError

    def unit_ahead(self) -> tuple[str, int] | None:
        """Return a unit that fills the rest of the item, and its end."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------------------------- expressions

    def sum(self) -> Form:
        """Read terms with their signs; a form other than an expression only stands alone."""
        terms = [self._signed_product()]
        while self.peek_text() in ("+", "-", "\\pm", "\\mp"):
            terms.append(self._signed_product())
        return terms[0] if len(terms) == 1 else Call("add", tuple(as_expression(term) for term in terms))

    def _signed_product(self) -> Form:
        """Read a product with its sign; after a binary sign, one of its own is allowed: ``14 + -i``."""
        sign, found = 1, 0
        while (text := self.peek_text()) in ("+", "-", "\\pm", "\\mp") and found < 2:
            if found == 1 and not (self.at >= 2 and _ends_operand(self.tokens[self.at - 2])):
                raise NotationError("two signs stand side by side")
            self.saw_sign |= text in ("\\pm", "\\mp")
            sign *= {"+": 1, "-": -1, "\\pm": self.sign, "\\mp": -self.sign}[text]
            self.at += 1
            found += 1
        product = self._product()
        return product if sign > 0 else negated(as_expression(product))

    def _product(self) -> Form:
        self._literal = False
        factors: list[Form] = [self._power()]
        literal = self._literal
        while True:
            text = self.peek_text()
            if text in ("*", "/"):
                self.at += 1
                minus = self.peek_text() == "-"
                self.at += minus
                factor = as_expression(self._power())
                factor = negated(factor) if minus else factor
                factors.append(factor if text == "*" else Call("power", (factor, MINUS_ONE)))
                literal = self._literal
            elif self._begins_factor(text):
                mixed = self._mixed_number(factors[-1]) if literal else None
                if mixed is not None:
                    factors[-1], literal = mixed, False
                    continue
                start = self.tokens[self.at]
                factors.append(as_expression(self._power()))
                if literal and start.kind == "number":
                    raise NotationError("two numbers stand side by side")
                literal = self._literal
            else:
                return factors[0] if len(factors) == 1 else Call("mul", tuple(map(as_expression, factors)))

    def _begins_factor(self, text: str) -> bool:
        if self.at >= len(self.tokens) or text in JOINTS or text in RELATIONS or text in SET_SIGNS:
            return False
        token = self.tokens[self.at]
        if token.kind == "word":
            return self.unit_ahead() is None
        if text == "|":
            return not self._in_bars
        if token.kind == "command":
            return text in SHAPES or text[1:] in OPERANDS
        return token.kind == "number" or text in ("(", "[", "{")

    def _mixed_number(self, whole: Form) -> Form | None:
        """Read the fraction of a mixed number like ``3 1/2``; None if there is none here."""
        start, token = self.at, self.tokens[self.at]
        if not isinstance(whole, Number) or whole.value.denominator != 1:
            return None
        part: Fraction | None = None
        if token.text == "\\frac":
            fraction = self._atom()
            parts = [argument for argument in _quotient_parts(fraction) if isinstance(argument, Number)]
            part = parts[0].value / parts[1].value if len(parts) == 2 and parts[1].value else None
        elif token.kind == "number" and token.spaced and self.text_at(1) == "/" and self.at + 2 < len(self.tokens):
            numerator, denominator = token.value, self.tokens[self.at + 2].value
            if numerator is not None and denominator:
                part, self.at = numerator / denominator, self.at + 3
        self._literal = True
        if part is None:
            self.at = start
            return None
        if not 0 < part < 1:
            raise NotationError("a whole number stands beside an improper fraction")
        return Number(whole.value + part)

    def _power(self) -> Form:
        base = self._atom()
        for _ in range(_MAX_SUFFIXES):
            text = self.peek_text()
            if text == "!" and self.text_at(1) != "!":
                self.at += 1
                base = Call("factorial", (as_expression(base),))
            elif self._take_percent():
                base = Call("percent", (as_expression(base),))
            elif text == "^" and self._degree_ahead():
                base = Call("degree", (as_expression(base),))
            elif text == "^":
                self.at += 1
                base = Call("power", (as_expression(base), self._exponent()))
            else:
                break
            self._literal = False
        return base

    def _take_percent(self) -> bool:
        """Take a per cent sign, or the word."""
        for spelling in (("%",), ("percent",), ("per", "cent")):
            if tuple(self.text_at(offset) for offset in range(len(spelling))) == spelling:
                self.at += len(spelling)
                return True
        return False

    def _degree_ahead(self) -> bool:
        r"""Take ``^\circ`` or ``^{\circ}`` if it comes next."""
        ahead = tuple(self.text_at(offset) for offset in range(1, 4))
        for spelling in (("\\circ",), ("{", "\\circ", "}")):
            if ahead[: len(spelling)] == spelling:
                self.at += 1 + len(spelling)
                return True
        return False

    def _exponent(self) -> Expression:
        """Read what follows ``^``; ``2^3^2`` is 2^(3^2)."""
        minus = self.peek_text() == "-"
        self.at += minus
        exponent = as_expression(self._argument(split=False))
        if self.peek_text() == "^" and not self._degree_ahead():
            self.at += 1
            with self.deeper():
                exponent = Call("power", (exponent, self._exponent()))
        return negated(exponent) if minus else exponent

    # ------------------------------------------------------------------------------------------------------------------- atoms

    def _atom(self) -> Form:
        token = self.take()
        with self.deeper():
            atom = self._atom_of(token)
        self._literal = token.kind == "number" and isinstance(atom, Number)
        return atom

    def _atom_of(self, token: Token) -> Form:
        if token.kind == "number":
            return self._number(token)
        if token.kind == "word":
            return self._word(token)
        if token.kind == "command":
            return self._command(token)
        if token.text in OPENINGS:
            return self._bracket(token)
        if token.text == "{":
            return self._group()
        if token.text == "|":
            self._in_bars += 1
            inner = self.sum()
            self._in_bars -= 1
            self.expect("|")
            return Call("abs", (as_expression(inner),))
        if token.text in ("+", "-", "*", "/", "^", "_", "=", ",", ")"):
            raise NotationError(f"{token.text!r} has nothing before or after it")
        raise UnclearError

    def _number(self, token: Token) -> Form:
        assert token.value is not None, "number tokens carry their value"
        if self.peek_text() != "_":
            return Number(token.value)
        self.at += 1
        base = "".join(self.raw_group()).lower()
        value = BASE_WORDS.get(base) or (int(base) if base.isdecimal() and len(base) < 3 else 0)
        if not 2 <= value <= 36 or not token.text.isdecimal() or any(int(digit) >= value for digit in token.text):
            raise UnclearError
        return Based(token.text.lstrip("0") or "0", value)

    def _word(self, token: Token) -> Form:
        """Read letters in a formula: a constant, a function, or a product of letters."""
        text = token.text
        if is_function(text):
            return self._function(text)
        if text in CONSTANTS:
            return Symbol(CONSTANTS[text])
        is_word = len(text) > 3 or text.lower() in LANGUAGE or not (text.islower() or text.isupper())
        if is_word and len(text) > 1:
            raise UnclearError
        letters: list[Expression] = [Symbol(CONSTANTS.get(letter, letter)) for letter in text[:-1]]
        last = as_expression(self._decorated(text[-1]))
        # A power belongs to the last letter alone: xy^2 is x times y^2.
        if letters and self.peek_text() == "^" and not self._degree_ahead():
            self.at += 1
            last = Call("power", (last, self._exponent()))
        return Call("mul", (*letters, last)) if letters else last

    def _decorated(self, name: str) -> Expression:
        """Read the subscript and primes of a letter."""
        name = CONSTANTS.get(name, name)
        if self.peek_text() == "_":
            self.at += 1
            name += "_" + "".join(self.raw_group())
        while self.peek_text() == "'":
            self.at += 1
            name += "'"
        return Symbol(name)

    def _command(self, token: Token) -> Form:
        name = token.text[1:]
        if name in ("frac", "binom"):
            first, second = self._fraction_arguments()
            return quotient(first, second) if name == "frac" else Call("binomial", (first, second))
        if name in FUNCTIONS and name != "sqrt":
            return self._function(name)
        if name == "sqrt":
            return self._root()
        if name in CONSTANTS:
            return Symbol(CONSTANTS[name])
        if name in GREEK:
            return self._decorated(name)
        if name in ("lfloor", "lceil"):
            inner = as_expression(self.sum())
            self.expect("\\rfloor" if name == "lfloor" else "\\rceil")
            return Call("floor" if name == "lfloor" else "ceil", (inner,))
        if name == "emptyset":
            return Items("{", (), "}")
        if name == "begin":
            return self._matrix()
        if name in ACCENTS or token.text in SHAPES:
            return self._decorated(f"{name} {''.join(self.raw_group())}")
        raise UnclearError

    def _bracket(self, token: Token) -> Form:
        opening = token.text.removeprefix("\\")
        if opening == "{" and self.peek_text() == "\\}":
            self.at += 1
            return Items("{", (), "}")
        bars, self._in_bars = self._in_bars, 0
        items = self.element()
        doubled = len(items) > 1
        while self.peek_text() in (",", ";"):
            self.at += 1
            more = self.element()
            doubled |= len(more) > 1
            items += more
        self._in_bars = bars
        closing = self.take().text.removeprefix("\\")
        if closing not in (")", "]", "}") or (doubled and opening != "{"):
            raise UnclearError
        if len(items) == 1 and opening == "(" and closing == ")":
            return items[0]
        return Items(opening, tuple(items), closing)

    def _group(self) -> Form:
        r"""Read up to the ``}`` of an open brace; ``{5 \choose 2}`` is a binomial."""
        inner = self.relation()
        if self.peek_text() == "\\choose":
            self.at += 1
            inner = Call("binomial", (as_expression(inner), as_expression(self.sum())))
        self.expect("}")
        return inner

    def _matrix(self) -> Form:
        kind = "".join(self.raw_group())
        if kind not in MATRICES:
            raise UnclearError
        if kind == "array":
            self.raw_group()
        rows: list[list[Form]] = [[]]
        while self.peek_text() != "\\end":
            rows[-1] += self.element()
            sign = self.peek_text()
            if sign == "\\\\":
                rows.append([])
            elif sign != "&":
                break
            self.at += 1
        self.expect("\\end")
        if "".join(self.raw_group()) != kind:
            raise NotationError("a matrix is not closed")
        filled = tuple(tuple(row) for row in rows if row)
        return Matrix("vmatrix" if kind == "vmatrix" else "matrix", filled)

    # --------------------------------------------------------------------------------------------------------------- functions

    def _function(self, name: str) -> Expression:
        base: Expression | None = None
        power: Expression | None = None
        for _ in range(2):
            if self.peek_text() == "_" and base is None:
                self.at += 1
                base = as_expression(self._argument())
            elif self.peek_text() == "^" and power is None:
                self.at += 1
                power = self._exponent()
        if name == "sqrt":
            return Call("power", (as_expression(self._argument(split=False)), Number(Fraction(1, 2))))
        if power == Number(Fraction(-1)) and name in INVERSES:
            name, power = INVERSES[name], None
        if base is not None and name != "log":
            raise UnclearError
        argument = self._function_argument()
        value = _applied(name, argument, base)
        return value if power is None else Call("power", (value, power))

    def _function_argument(self) -> Expression:
        r"""Read the argument of a function: a bracket, or all factors up to the next sign or function, as in ``\sin 2x``."""
        if self.peek_text() in ("(", "[", "{", "|"):
            return as_expression(self._atom())
        argument = as_expression(self._power())
        while self._begins_factor(self.peek_text()) and not self._function_ahead() and self.peek_text() not in ("(", "["):
            argument = Call("mul", (argument, as_expression(self._power())))
        return argument

    def _function_ahead(self) -> bool:
        return is_function(self.peek_text().removeprefix("\\"))

    def _root(self) -> Expression:
        degree: Expression = Number(Fraction(2))
        if self.peek_text() == "[":
            self.at += 1
            degree = as_expression(self.sum())
            self.expect("]")
        radicand = as_expression(self._argument(split=False))
        return Call("power", (radicand, quotient(ONE, degree)))

    def _fraction_arguments(self) -> tuple[Expression, Expression]:
        r"""Read two arguments; ``\frac12`` has them in one token."""
        if self.at < len(self.tokens) and self.tokens[self.at].kind == "number" and len(self.tokens[self.at].text) == 2:
            digits = self.take().text
            if digits.isdecimal():
                return Number(Fraction(int(digits[0]))), Number(Fraction(int(digits[1])))
            raise UnclearError
        return as_expression(self._argument()), as_expression(self._argument())

    def _argument(self, *, split: bool = True) -> Form:
        """Read a group, or one token; with ``split`` a number of several digits is refused, of which TeX would take the first."""
        token = self.take()
        if token.kind == "number":
            if split and len(token.text) > 1:
                raise NotationError("digits without braces are ambiguous")
            assert token.value is not None, "number tokens carry their value"
            return Number(token.value)
        if token.kind == "word" and len(token.text) > 1 and token.text not in CONSTANTS and not is_function(token.text):
            raise UnclearError
        with self.deeper():
            return self._atom_of(token)


def is_function(name: str) -> bool:
    """Say whether a word is the name of a function."""
    return name in FUNCTIONS


def _ends_operand(token: Token) -> bool:
    return token.kind in ("number", "word", "command") or token.text in (")", "]", "}", "|", "!", "%")


def as_expression(form: Form) -> Expression:
    """Return a form as an expression: a word is the product of its letters, a bracket around one item is a bracket."""
    if isinstance(form, Number | Symbol | Call):
        return form
    if isinstance(form, Word) and len(form.text) <= 3 and form.text.isalpha():
        return Call("mul", tuple(Symbol(CONSTANTS.get(letter, letter)) for letter in form.text))
    if isinstance(form, Items) and len(form.items) == 1 and form.opening + form.closing == "[]":
        return as_expression(form.items[0])
    raise UnclearError


def _quotient_parts(form: Form) -> tuple[Expression, ...]:
    """Return numerator and denominator of a result of ``quotient``."""
    if isinstance(form, Call) and form.name == "mul" and len(form.args) == 2:
        left, right = form.args
        if isinstance(right, Call) and right.name == "power" and right.args[1] == Number(Fraction(-1)):
            return left, right.args[0]
    return ()


def _applied(name: str, argument: Expression, base: Expression | None) -> Expression:
    """Return a function applied; ``log`` without a base is to base 10."""
    if name == "exp":
        return Call("power", (Symbol("e"), argument))
    if name in ("log", "lg"):
        return Call("log", (argument, base or Number(Fraction(10))))
    return Call(name, (argument,))


def word_as_product(word: Word) -> Expression | None:
    """Return the product of the letters of a short word, or None for other words."""
    try:
        return as_expression(word)
    except UnclearError:
        return None
