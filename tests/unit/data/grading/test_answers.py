"""Grading rules as pure functions."""

from fractions import Fraction

import pytest

from stepladder.data.grading.answers import answer_key, math_match, number_match, unreadable_reason
from stepladder.data.grading.notation import MAX_CHARS
from stepladder.data.grading.numbers import parse_number
from stepladder.data.grading.rules import MathOptions
from stepladder.errors import ConfigError


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
        ("math", ["0.5", "\\frac12", "$\\dfrac{1}{2}$", "\\boxed{1/2}", "2/4", "50%"], ["50", "5", "\\frac{1}{3}"]),
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
    ("text", "rule", "reason"),
    [
        ("\\frac{{{", "math", "a brace is not closed"),
        ("5 6", "math", "two numbers stand side by side"),
        ("x" * (MAX_CHARS + 1), "math", "it is longer than 1,000 characters"),
        ("NaN", "math", "it is a gap"),
        ("1/0", "math", "it divides by zero"),
        (" ", "exact", "it is empty"),
        ("$ $", "math", "it is empty"),
        ("Janet has 4", "number", "it is not one number"),
        ("--3", "math", "two signs stand side by side"),
        ("(" * 50 + "1" + ")" * 50, "math", "nested more than"),
        ("^" * 500, "math", "has nothing before or after it"),
    ],
)
def test_what_no_answer_can_equal_has_a_reason(text, rule, reason):
    """Broken notation, gaps and several numbers are named as such."""
    assert reason in (unreadable_reason(text, rule) or "")


@pytest.mark.parametrize(
    "text",
    [
        "x_1 2",
        "2^3 5",
        "3 \\pi 4",
        "\\log_2 8",
        "\\frac 1 2",
        "1 + 2 + \\cdots + n",
        "May 5",
        "ABC",
        "]0, 1[",
        "a \\sim b",
        "\\infty",
        "3:05",
    ],
)
def test_what_is_well_formed_equals_itself(text):
    """Text that is not understood is still an answer."""
    assert unreadable_reason(text, "math") is None
    assert math_match(text, text) is True


@pytest.mark.parametrize("text", ["$" * 10**6, "{" * 10**6, "\\boxed{" * 10**5, "1," * 10**5, "*" * 10**6, "`" * 10**6, "9" * 10**6])
@pytest.mark.parametrize("rule", ["exact", "number", "math"])
def test_long_answers_are_refused_at_once(text, rule):
    """A megabyte of anything has a verdict before any of it is parsed; the test ends, so nothing here is quadratic."""
    assert (unreadable_reason(text, rule) is None) == (rule == "exact")
    assert len(answer_key(text, rule)) <= len(text)
    assert math_match(text, "1") is False


@pytest.mark.parametrize(
    "text",
    [
        "+".join("x" * 500),
        "x " * 499,
        "2^" * 300 + "2",
        "5!" * 400,
        "-" * 999,
        "(1," * 300,
        "\\sin" * 199,
        "\\sqrt" * 160 + "2",
        "|" * 999,
        "(a+b)" * 190,
    ],
)
def test_repetitive_answers_end(text):
    """Whatever a model repeats to the end of its budget is read, or refused, without deep recursion."""
    assert math_match(text, "1") is not True


@pytest.mark.parametrize(
    ("option", "reference", "answer"),
    [
        ("percent=unit", "50", "50\\%"),
        ("units=optional", "5 cm", "5"),
        ("names=optional", "x=3", "3"),
        ("brackets=any", "(1,2)", "[1,2]"),
        ("bases=optional", "2516_8", "2516"),
        ("case=ignored", "X", "x"),
        ("case=ignored", "Monday", "monday"),
    ],
)
def test_options_allow_what_is_strict_by_default(option, reference, answer):
    """Each option opens one door, and the default keeps it shut."""
    name, value = option.split("=")
    assert math_match(answer, reference) is False
    assert math_match(answer, reference, MathOptions.of(**{name: value})) is True


def test_order_can_be_kept():
    """Where the order of values is asked for, an option makes it count."""
    assert math_match("2, 1", "1, 2") is True
    assert math_match("2, 1", "1, 2", MathOptions.of(order="kept")) is False
    assert answer_key("2, 1", "math", MathOptions.of(order="kept")) == "2, 1"


def test_unknown_options_are_refused():
    """A misspelt option is no option."""
    with pytest.raises(ConfigError, match="option must be one of percent, units"):
        MathOptions.of(percents="unit")
    with pytest.raises(ConfigError, match="option percent must be fraction or unit: got 'both'"):
        MathOptions.of(percent="both")
