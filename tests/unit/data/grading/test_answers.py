"""Grading rules as pure functions."""

from fractions import Fraction

import pytest

from stepladder.data.grading.answers import MAX_MATH_CHARS, answer_key, math_readable, math_source, number_match, parse_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", Fraction(18)),
        ("+4", Fraction(4)),
        (" - 5", Fraction(-5)),
        ("-$1,234,567.8", Fraction(-12345678, 10)),
        ("\\$18.50", Fraction(37, 2)),
        ("$\\boxed{3/4}$.", Fraction(3, 4)),
        ("-\\frac{1}{2}", Fraction(-1, 2)),
        ("\\frac{-1}{2}", Fraction(-1, 2)),
        ("-3/-4", Fraction(3, 4)),
        ("\\frac34", Fraction(3, 4)),
        ("-3 1/2", Fraction(-7, 2)),
        ("3\\frac{1}{2}", Fraction(7, 2)),
        (".5", Fraction(1, 2)),
        ("5.e2", Fraction(500)),
        ("1.5E-3", Fraction(15, 10_000)),
        ("10 000.5", Fraction(20_001, 2)),
        ("75 \\%", Fraction(75)),
    ],
)
def test_number_is_read_exactly(text, number):
    """Each accepted spelling is one exact rational."""
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "$",
        "x",
        "--3",
        "1,00",
        "12,34",
        "1 00",
        "12 34",
        "3. 5",
        "1..",
        "1_000",
        "1/2/3",
        "1/0",
        "3 1/0",
        "½",
        "3½",
        "2²",
        "\\frac{1}{2}{3}",
        "18 apples",
        "5%%",
    ],
)
def test_what_is_no_single_number_is_not_read(text):
    """Nothing is guessed: two numbers, words and broken groups are no number."""
    assert parse_number(text) is None


def test_number_match_says_when_it_cannot_say():
    """None is neither right nor wrong."""
    assert number_match("1/2", "0.5") is True
    assert number_match("1/3", "0.3333") is False
    assert number_match("one", "1") is None
    assert number_match("1", "one") is None


@pytest.mark.parametrize(
    ("rule", "same", "different"),
    [
        ("exact", [" 3  1", "3 1"], ["31", "3 1."]),
        ("number", ["1,000", "1000.0", "$1e3", "2000/2"], ["1001", "a thousand"]),
        ("math", ["0.5", "\\frac12", "$\\dfrac{1}{2}$", "\\boxed{1/2}", "2/4"], ["50%", "5", "\\frac{1}{3}"]),
        ("math", ["\\left( 1,\\; 2 \\right)", "(1,2)", "$(1, 2)$."], ["(12)", "(2,1)"]),
        ("math", ["\\text{Monday}", "Monday"], ["monday"]),
        ("math", ["50%", "50\\%", "$50\\%$"], ["50"]),
        ("math", ["31/2", "15.5"], ["3 1/ 2x", "3 1"]),
    ],
)
def test_answer_key_joins_spellings_and_keeps_answers_apart(rule, same, different):
    """Votes for one answer are counted together, votes for two answers are not."""
    assert len({answer_key(text, rule) for text in same}) == 1
    assert answer_key(same[0], rule) not in {answer_key(text, rule) for text in different}


def test_answer_key_is_idempotent():
    """A key is its own key, so keys may be stored and keyed again."""
    for rule in ("exact", "number", "math"):
        for text in ["1,000", "-1/2", "50%", " a  b ", "$\\left(1,2\\right)$.", "3 1/2", "\\text{x y}", "½"]:
            key = answer_key(text, rule)
            assert answer_key(key, rule) == key


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("\\sqrt{8}", "$\\sqrt{8}$"),
        ("$$x$$", "$x$"),
        ("\\(x\\)", "$x$"),
        ("\\boxed{\\frac{1}{2}}", "$\\frac{1}{2}$"),
        ("it is $3$", "it is $3$"),
        ("18$", "$18\\$$"),
        ("x**2+1", "$x^{2}+1$"),
        ("2**3**2", "$2^{3^{2}}$"),
        ("a**(b+1)*c**2", "$a^{(b+1)}*c^{2}$"),
        ("2**", "$2**$"),
    ],
)
def test_math_source_is_one_formula(text, source):
    """What math-verify is given: dollar signs around a formula, powers as LaTeX writes them."""
    assert math_source(text) == source


def test_math_readable_refuses_what_the_parser_would_misread():
    """Adjacent numbers and endless texts never reach the parser."""
    assert math_readable("3 \\pi 4")
    assert not math_readable("5 6")
    assert not math_readable("x" * (MAX_MATH_CHARS + 1))
